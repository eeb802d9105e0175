"""The report: one HTML page, with everything in it, on what a model says about held-out rows and how good its synthetic rows are."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment

from flowlab.report import figures, panels
from flowlab.report.door import as_table, check_rows, facts
from flowlab.report.findings import (
    BASELINE_ROWS,
    LEARNT,
    Findings,
    classifier_count,
    column_limits,
    dependence_difference,
    findings,
    interval,
    verdict,
)
from flowlab.report.page import Picture, Section, Table, is_figure, shown
from flowlab.runtime import threads_for
from flowlab.training.fitting import progress_bar
from flowlab.writing import written_whole

MOST_COLUMNS = 60  # that get a picture
MOST_SYNTHETIC = 10_000  # rows drawn, unless told
PRIVACY = "Privacy: are the rows new?"
NOT_JUDGED = "The rows that the model was fitted to were not at hand. Whether synthetic rows are copies of them, or too near to them, was not looked at."
EXPLAINED = (
    "“column …” looks at the noise of one column by itself. “radius” looks at how far from the origin each row's noise lies, all columns together: too far means "
    "that the model is too narrow, or has missed rows far out; too near, that it is too wide. “energy” compares the noise of whole rows with fresh noise, and sees dependence "
    "between columns that the model has missed."
)
SCHEMA = ("kind", "dtype", "missing", "lower", "upper", "resolution", "cardinality", "reason")


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

    It holds the held-out log-likelihood against baselines, synthetic rows against real ones (columns, pairs, a classifier,
    train-on-synthetic-test-on-real, missing cells, validity, privacy), tests of fit, the ensemble and the schema. Every metric stands beside
    its noise floor, what real rows score against other real rows.

    Tables of fewer than a million numbers are worked on by one thread (`flowlab.runtime.threads_for`).

    Args:
        model: A fitted `FlowDensity`.
        train: The rows that it was fitted to: a table, or an array for a model of an array. None if they are not at hand: half of `test` stands for
            them, and whether rows were copied is not judged.
        test: Rows that it has not seen; at least twenty, forty without `train`. Without them no report can be honest.
        path: The .html file.
        synthetic: Rows that the model drew; drawn here if None.
        n: How many to draw: as many as there are training rows if None, but at most 10,000.
        target: The column that trees predict in train-on-synthetic-test-on-real; chosen if None.
        title: What the page calls the table; the file's name if None.
        seed: Decides the draw, and everything else that is random.
        progress: Show a bar, of classifiers fitted: most of the time goes there.

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
    numbers = min(max(len(train), len(test)), LEARNT) * train.shape[1]
    with threads_for(numbers), progress_bar(classifier_count(train), progress, "report: drawing", "fit") as bar:
        if "synthetic" not in tables:
            count = min(len(train), MOST_SYNTHETIC) if n is None else n
            tables["synthetic"] = as_table(model, model.sample(count, random_state=seed), "synthetic")
        found = findings(model, train, test, tables["synthetic"], seed, target, bar)
        if not at_hand:
            found.checks = [check for check in found.checks if check.anchor != "privacy"]
        bar.set_description("report: page")
        name = path.stem if title is None else title
        header = facts(model, train, test, tables["synthetic"], seed, at_hand)
        page = _page(name, header, found, _sections(model, found, at_hand))
    return _write(path, page)


def _sections(model: Any, found: Findings, at_hand: bool) -> list[Section]:
    parts = [
        _likelihood(found),
        _columns(found),
        _pairs(found),
        _classifier(found),
        _transfer(found),
        _missing(found),
        _validity(found),
        _rules(model, found),
        _privacy(found) if at_hand else Section("privacy", PRIVACY, [NOT_JUDGED]),
        _calibration(model.calibration_),
        _members(model),
        _training(model.history_),
        _schema(model),
        Section("summary", "The model in its own words", code=model.summary()),
    ]
    return [part for part in parts if part is not None]


def _page(name: str, header: list[tuple[str, str]], found: Findings, sections: list[Section]) -> str:
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["shown"] = shown
    environment.tests["figure"] = is_figure
    template = environment.from_string(files("flowlab.report").joinpath("report.html").read_text(encoding="utf-8"))
    headline, sentences = verdict(found.checks, found.floor_rows)
    return template.render(
        name=name,
        day=f"{datetime.now(UTC):%Y-%m-%d}",
        facts=header,
        model=[check.words for check in found.checks if check.anchor == "likelihood"],
        headline=headline,
        sentences=sentences,
        checks=found.checks,
        sections=sections,
    )


def _write(path: Path, page: str) -> Path:
    """Beside its place first, then renamed: whoever looks finds the old page or the new one, whole."""
    with written_whole(path) as temporary:
        temporary.write_bytes(page.encode("utf-8", "replace"))
    return path


def _likelihood(found: Findings) -> Section:
    head = ["method", "nats per row", "model's gain", "model ahead", "impossible rows"]
    rows: list[list[Any]] = []
    for name, row in found.likelihood.iterrows():
        own = name == "model"
        gain = "" if own else f"{row['gain']:+.3f} ± {row['gain_error']:.3f}"
        ahead = "" if own else f"{row['ahead']:.0%}"
        rows.append([name, f"{row['mean']:.3f} ± {row['standard_error']:.3f}", gain, ahead, int(row["impossible"])])
    joint = " “Gaussian” and “Gaussian mixture” are joint densities of the complete columns of numbers, with the other columns independent."
    return Section(
        "likelihood",
        "Log-likelihood of held-out rows",
        [
            f"Mean log-likelihood of {len(found.test):,} rows that the model has not seen, in nats per row ± standard error: higher is better. "
            "The gain is the mean of row-by-row differences, and so is known more precisely than either mean."
        ],
        [
            Table(
                head,
                rows,
                "Every method has the same reference measure. “independent columns” are smoothed distributions of each column by itself."
                + (joint if len(rows) > 2 else "")
                + f" Baselines learn from at most {BASELINE_ROWS:,} training rows. Rows of probability zero are left out of means.",
            )
        ],
    )


def _columns(found: Findings) -> Section:
    distances = found.fidelity.distances
    floor, limits = np.array([one.distances["distance"] for one in found.floor]), column_limits(found.floor)
    ratio = distances["distance"].to_numpy() / np.maximum(limits, 1e-6)
    rows = [
        [
            distances.index[j],
            distances["measure"].iloc[j],
            float(distances["distance"].iloc[j]),
            interval(floor[:, j].tolist()),
            float(limits[j]),
            f"{ratio[j]:.2f}",
            "beyond chance" if ratio[j] > 1 else "like real rows",
        ]
        for j in np.argsort(-np.nan_to_num(ratio), kind="stable")
    ]
    pictures = [
        Picture(
            panels.svg(
                panels.column_panel(found.columns[j]), f"column{j}", f"{found.columns[j].name}: real and synthetic"
            ),
            f"{distances.index[j]} · {distances['measure'].iloc[j]} {distances['distance'].iloc[j]:.3f} (real rows {floor[:, j].mean():.3f})",
        )
        for j in range(min(len(distances), MOST_COLUMNS))
    ]
    more = f" The first {MOST_COLUMNS} of {len(distances)} columns are drawn." if len(distances) > MOST_COLUMNS else ""
    return Section(
        "columns",
        "Columns, one by one",
        [
            "Distance of each column's distribution from the real one: Kolmogorov-Smirnov (KS) of numbers and times, total variation (TV) of "
            f"categories; lower is better, 0 is perfect. The noise floor is what {found.floor_rows:,} real rows score against as many others, in "
            f"{len(found.floor)} tries; the limit, three standard deviations above its mean, is what they rarely exceed. Heights are shares of rows, and "
            f"histograms span 99 % of the real values.{more}"
        ],
        [
            Table(
                ["column", "measure", "distance", "noise floor", "limit", "distance / limit", "reading"],
                rows,
                "Furthest beyond its limit first.",
            )
        ],
        pictures,
        small=True,
        legend=True,
    )


def _pairs(found: Findings) -> Section | None:
    own = found.fidelity
    if len(own.distances) < 2:
        return None
    real, synthetic = own.dependence
    gaps = [dependence_difference(one) for one in found.floor]
    # Scaled to the largest difference, but to no less than one that means something: noise alone shall not look like much.
    most = max(float(np.abs((synthetic - real).to_numpy()).max()), 4 * float(np.nanmean(gaps)), 0.05)
    maps = [
        panels.heat_map(real, "real"),
        panels.heat_map(synthetic, "synthetic"),
        panels.heat_map(synthetic - real, "synthetic − real", -most, most, "RdBu_r"),
    ]
    names = [str(name) for name in real.columns]
    a, b = np.triu_indices(len(names), 1)
    floor = np.mean([one.similarity.to_numpy() for one in found.floor], axis=0)
    gap = floor - own.similarity.to_numpy()
    worst = np.argsort(-gap[a, b], kind="stable")[:10]
    rows: list[list[Any]] = [
        [
            f"{names[a[k]]} × {names[b[k]]}",
            float(own.similarity.iloc[a[k], b[k]]),
            float(floor[a[k], b[k]]),
            float(real.iloc[a[k], b[k]]),
            float(synthetic.iloc[a[k], b[k]]),
        ]
        for k in worst
    ]
    unnamed = "" if len(names) <= panels.NAMED else " Columns are in the order of the table."
    return Section(
        "pairs",
        "Pairs of columns",
        [
            f"Joint tables of two columns overlap by {own.pairs:.3f} on average (1 − total variation; higher is better, 1 is perfect); those of real "
            f"rows by {interval([one.pairs for one in found.floor])}. The maps show how strongly columns depend on one another: Cramér's V of numbers cut "
            f"at their deciles, 0 for unrelated columns, 1 where one decides the other. The third map should be "
            f"white; its scale ends at ±{most:.2f}, and differences between real rows are {np.nanmean(gaps):.3f} on average.{unnamed}"
        ],
        [
            Table(
                ["pair", "overlap", "noise floor", "dependence, real", "dependence, synthetic"],
                rows,
                "The pairs whose overlap is furthest below that of real rows.",
            )
        ],
        [Picture(panels.svg(figure, f"map{i}", figure.axes[0].get_title())) for i, figure in enumerate(maps)],
        small=True,
    )


def _classifier(found: Findings) -> Section:
    floor = [one.auc for one in found.floor]
    return Section(
        "classifier",
        "Classifier two-sample test",
        [
            "Gradient-boosted trees try to tell synthetic rows from real ones that the model has not seen (ROC-AUC, five-fold cross-validated). Nearer to 0.5 "
            "is better; 1 means that every synthetic row gives itself away. It is the hardest test here: it sees what columns do together."
        ],
        [
            Table(
                ["rows", "AUC"],
                [["synthetic against real", found.fidelity.auc], ["real against real (noise floor)", interval(floor)]],
            )
        ],
    )


def _transfer(found: Findings) -> Section:
    transfer = found.transfer
    section = Section("transfer", "Train on synthetic, test on real")
    if transfer is None:
        section.text = ["There is no column to predict from others."]
        return section
    section.text = [
        f"Gradient-boosted trees learn to predict “{transfer.target}” from the other columns, from synthetic or from real rows (as many), and are "
        f"tested on real rows that neither has seen: {transfer.measure}; higher is better. A ratio of 1 means that synthetic rows teach as much."
    ]
    rows: list[list[Any]] = [
        [f"{transfer.measure}, trained on real rows", transfer.real],
        [f"{transfer.measure}, trained on synthetic rows", transfer.synthetic],
        ["ratio", transfer.ratio],
        ["ratio of two halves of the real rows (noise floor)", interval(found.transfer_floor)],
    ]
    section.tables = [Table(["measured", "score"], rows)]
    return section


def _missing(found: Findings) -> Section:
    section = Section("missing", "Missing cells")
    some = found.missing[(found.missing > 0).any(axis=1)]
    if not len(some):
        section.text = ["No cell is missing, neither in the real rows nor in the synthetic ones."]
        return section
    section.text = [
        f"Total variation of which cells are missing together: {found.fidelity.patterns:.3f} (lower is better, 0 is perfect); between real rows "
        f"{interval([one.patterns for one in found.floor])}. The shares of missing cells should be like those of the real rows, give or take two "
        "standard errors."
    ]
    rows: list[list[Any]] = []
    for name, real, synthetic in zip(some.index, some["real"], some["synthetic"]):
        error = np.sqrt(real * (1 - real) * (1 / len(found.test) + 1 / len(found.synthetic)))
        rows.append([name, f"{real:.2%}", f"{synthetic:.2%}", f"{error:.2%}"])
    section.tables = [Table(["column", "missing, real", "missing, synthetic", "standard error"], rows)]
    return section


def _validity(found: Findings) -> Section:
    own = found.fidelity.validity
    floor = np.mean([one.validity["out_of_range"].to_numpy(dtype=float) for one in found.floor], axis=0)
    rows: list[list[Any]] = []
    for j, (name, row) in enumerate(own.iterrows()):
        dtype = row["dtype_real"] if row["same_dtype"] else f"{row['dtype_real']} → {row['dtype_synthetic']}"
        shares = [_share(row[key]) for key in ("unknown_categories", "fractions", "out_of_range")]
        rows.append([name, *shares, _share(floor[j]), dtype])
    return Section(
        "validity",
        "Cells that no real row has",
        [
            "Shares of synthetic cells that are categories unknown to the real rows, fractions where real values are whole, or beyond the real "
            "extremes; lower is better. A few cells beyond the extremes are right: the noise floor says how many real rows have, beside others."
        ],
        [Table(["column", "unknown categories", "fractions", "beyond extremes", "noise floor", "type"], rows)],
    )


def _rules(model: Any, found: Findings) -> Section | None:
    rules = model.table_.rules
    if not rules:
        return None
    tables = found.train, found.test, found.synthetic
    rows = [[str(rule), *(_share(float(np.mean(rule.broken(table)))) for table in tables)] for rule in rules]
    return Section(
        "rules",
        "Rules between columns",
        [
            "Shares of rows that break a rule. Real ones are left out of the fit and have no likelihood; synthetic ones keep all rules."
        ],
        [Table(["rule", "training rows", "held-out rows", "synthetic rows"], rows)],
    )


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2%}"


def _privacy(found: Findings) -> Section:
    p = found.privacy
    rows: list[list[Any]] = [
        ["rows equal to a training row", f"{p.copies:.2%}", f"{p.copies_held_out:.2%}", "like held-out rows"],
        [
            "nearer to training than to held-out rows",
            f"{p.nearer_to_train:.3f} ± {p.standard_error:.3f}",
            "0.5",
            "0.5 or less",
        ],
        ["median distance to the nearest training row", p.distance, p.distance_held_out, "like held-out rows"],
    ]
    return Section(
        "privacy",
        PRIVACY,
        [
            "Were training rows remembered? Distances are Gower's, with ranks: 0 for equal rows, 1 for rows that differ in everything. Tables of few "
            "values have copies by nature, hence the comparison with held-out rows. This is a measurement on these rows, no guarantee: the model "
            "is not differentially private."
        ],
        [Table(["measured", "synthetic rows", "held-out rows (noise floor)", "expected"], rows)],
    )


def _calibration(tests: pd.DataFrame) -> Section:
    section = Section("calibration", "Calibration")
    if not len(tests):
        section.text = ["There are no held-out rows of the model's own to test the fit with."]
        return section
    section.text = [
        "Rows that were held out while fitting, turned into noise by the model: tests of whether that noise is what it should be. A p-value "
        "below 0.01 means that the test sees a difference; of many tests, one in a hundred does so by chance. The overview has the smallest of them "
        f"times their number, {len(tests)}, and at most 1 (Bonferroni's correction): that is below 0.01 by chance once in a hundred pages.",
        EXPLAINED,
    ]
    rows = [[name, float(row["statistic"]), float(row["p_value"])] for name, row in tests.iterrows()]
    section.tables = [Table(["test", "statistic", "p-value"], rows)]
    return section


def _members(model: Any) -> Section:
    members = model.members_
    rows = [list(row) for row in members.itertuples(index=False)]
    text = "The members of the mixture, with their log-likelihood on the model's own held-out rows (nats per row; higher is better) and their weight."
    text += f" The mixture itself has {model.validation_score_:.3f}: a little hopeful, since those rows also chose when to stop, and the weights."
    return Section("members", "Members of the ensemble", [text], [Table([str(name) for name in members.columns], rows)])


def _training(history: pd.DataFrame) -> Section | None:
    if not len(history):
        return None
    picture = Picture(panels.svg(figures.training_curve(history), "training", "training curve"))
    return Section(
        "training", "Training", ["The network with the largest weight; lower is better."], pictures=[picture]
    )


def _schema(model: Any) -> Section:
    form: dict[str, Callable[[Any], Any]] = {
        "missing": _share,
        "resolution": lambda width: f"{width:g}" if width else None,
        **dict.fromkeys(("lower", "upper"), lambda end: f"{end:g}" if isinstance(end, float) else end),
    }
    rows = [
        [c.name, *(form.get(field, lambda value: value)(getattr(c, field)) for field in SCHEMA)] for c in model.schema_
    ]
    head = ["column", *("why" if name == "reason" else name for name in SCHEMA)]
    return Section("schema", "How each column is treated", tables=[Table(head, rows)])
