"""Write the report: one HTML page, with everything in it, on how good a model and its synthetic rows are."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from flowlab.report.evidence import MOST_LEARNT, Evidence
from flowlab.report.header import facts
from flowlab.report.inputs import as_table, check_rows
from flowlab.report.page import format_cell, is_numeric
from flowlab.report.sections import OVERVIEW, SECTIONS, Section
from flowlab.report.verdict import verdict
from flowlab.runtime import progress_bar, threads_for
from flowlab.writing import written_whole

MOST_SYNTHETIC = 10_000  # rows drawn, unless told


def write_report(
    model: Any,
    train: Any,
    test: Any,
    path: str | os.PathLike[str],
    *,
    synthetic: Any = None,
    n: int | None = None,
    target: Any = None,
    title: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write a report on a fitted model as one self-contained HTML file.

    It holds the held-out log-likelihood against baselines, synthetic rows against real ones (columns, pairs, a
    classifier, train-on-synthetic-test-on-real, missing cells, validity, privacy), tests of fit, the ensemble and the
    schema. Every metric stands beside its noise floor, what real rows score against other real rows.

    Tables of fewer than a million numbers are worked on by one thread (`flowlab.runtime.threads_for`).

    Args:
        model: A fitted `FlowDensity`.
        train: The rows that it was fitted to: a table, or an array for a model of an array. None if they are not at
            hand: half of `test` stands for them, and whether rows were copied is not judged.
        test: Rows that it has not seen; at least twenty, forty without `train`. Without them no report can be honest.
        path: The .html file.
        synthetic: Rows that the model drew; drawn here if None.
        n: How many to draw: as many as there are training rows if None, but at most 10,000.
        target: The column that trees predict in train-on-synthetic-test-on-real; chosen if None.
        title: What the page calls the table; the file's name if None.
        seed: Decides the draw, and everything else that is random.
        progress: Show a bar, of trees fitted: most of the time goes there.

    Returns:
        The path.

    Raises:
        TypeError: A table is none.
        ValueError: A table has fewer than twenty rows, or lacks a column; the target is no column.
    """
    path, at_hand = Path(path), train is not None
    given = {"train": train, "test": test, "synthetic": synthetic}
    tables = {name: as_table(model, rows, name) for name, rows in given.items() if rows is not None or name == "test"}
    check_rows(tables, halved=not at_hand)
    if target is not None and target not in tables["test"].columns:
        raise ValueError(f"target {target!r} is no column; there are {', '.join(map(repr, tables['test'].columns))}")
    if not at_hand:
        shuffled = tables["test"].sample(frac=1, random_state=seed)
        tables["train"], tables["test"] = shuffled.iloc[: len(shuffled) // 2], shuffled.iloc[len(shuffled) // 2 :]
    train, test = tables["train"], tables["test"]
    numbers = min(max(len(train), len(test)), MOST_LEARNT) * train.shape[1]
    steps = sum(section.steps(train.shape[1]) for section in SECTIONS)
    with threads_for(numbers), progress_bar(steps, progress, "report: drawing", "fit") as bar:
        if "synthetic" not in tables:
            count = min(len(train), MOST_SYNTHETIC) if n is None else n
            tables["synthetic"] = as_table(model, model.sample(count, random_state=seed), "synthetic")
        check_rows(tables)
        rows = train, test, tables["synthetic"]
        evidence = Evidence.gather(model, *rows, at_hand=at_hand, target=target, seed=seed, bar=bar)
        sections = []
        for section in SECTIONS:
            bar.set_description(f"report: {section.anchor}")
            if (computed := section.compute(evidence)) is not None:
                sections.append(computed)
        bar.set_description("report: page")
        header = facts(model, *rows, seed, at_hand)
        page = _page(path.stem if title is None else title, header, sections, evidence.floor_rows)
    return _write(path, page)


def _page(name: str, header: list[tuple[str, str]], sections: Sequence[Section], floor_rows: int) -> str:
    """Fill the template with what sections show, their checks and the verdict on these."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["format_cell"] = format_cell
    environment.tests["numeric"] = is_numeric
    template = environment.from_string(files("flowlab.report").joinpath("report.html").read_text(encoding="utf-8"))
    checks_of = {type(section): section.judge() for section in sections}
    checks = [check for section in OVERVIEW for check in checks_of.get(section, [])]
    headline, sentences = verdict(checks, floor_rows)
    return template.render(
        name=name,
        day=f"{datetime.now(UTC):%Y-%m-%d}",
        facts=header,
        model=[check.words for check in checks if check.anchor == "likelihood"],
        headline=headline,
        sentences=sentences,
        checks=checks,
        sections=[(section, section.draw()) for section in sections],
    )


def _write(path: Path, page: str) -> Path:
    """Write beside the path first, then rename: a reader finds the old page or the new one, whole."""
    with written_whole(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", "replace"))
    return path
