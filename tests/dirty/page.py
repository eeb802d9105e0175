"""docs/dirty_tables.md, made of the cases and of what comes of them.

PYTHONPATH=tests python -m dirty.page          # writes the page anew
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dirty import asking, cells, conditions, files, shapes, times
from dirty.case import Case, Outcome, Step, carried_out, judge, numbers_model, whole_model, whole_table

PAGE = Path(__file__).parent.parent.parent / "docs" / "dirty_tables.md"
CASES: list[Case] = [case for part in (shapes, cells, times, files, asking, conditions) for case in part.CASES]
MOST = 260  # characters of a message
HEAD = """# Dirty tables

What the library and the command line do with {count} situations. Each is a test (`tests/dirty`); this page is made of
what comes of them (`PYTHONPATH=tests python -m dirty.page` writes it anew), and a test compares.

A fit that works also scores its own rows by finite numbers, draws rows of the same columns and types, and says the same
after `save` and `load`. Messages are shortened; those of the library are of `ValueError` unless another type is named.
`d` is the dirty column; `whole.flow` is a model of a clean table with a column of every kind.
"""


def models_in(folder: Path) -> dict[str, Path]:
    """Write the models and the table that commands ask for; their paths by name."""
    whole_model().save(folder / "whole.flow")
    numbers_model().save(folder / "numbers.flow")
    whole_table().to_csv(folder / "whole.csv", index=False)
    return {name: folder / name for name in ("whole.flow", "numbers.flow", "whole.csv")}


def carry_out(case: Case, models: Mapping[str, Path]) -> tuple[str, list[str]]:
    """Carry out the steps of a case; its row, and what is wrong."""
    steps = [step for step in (case.library, case.shell) if step is not None]
    outcomes = [carried_out(step, models) for step in steps]
    wrong = [said for step, outcome in zip(steps, outcomes, strict=True) if (said := judge(step, outcome))]
    return row(case, outcomes), wrong


def page(rows: dict[tuple[str, str], str]) -> str:
    """Write the page from the row of each case, by its kind and situation."""
    lines = [HEAD.format(count=len(CASES))]
    for kind in dict.fromkeys(case.kind for case in CASES):
        lines += [f"## {kind}\n", "| Situation | Library | Command line |", "|---|---|---|"]
        lines += [*(rows[case.kind, case.situation] for case in CASES if case.kind == kind), ""]
    return "\n".join(lines)


def row(case: Case, outcomes: Sequence[Outcome]) -> str:
    """Write the row of a case.

    Args:
        case: The case.
        outcomes: What came of its steps, in their order.
    """
    steps, told = iter(outcomes), [_plain(case.situation)]
    told += ["" if step is None else _told(step, next(steps)) for step in (case.library, case.shell)]
    return f"| {' | '.join(told)} |"


def _told(step: Step, outcome: Outcome) -> str:
    """Say what comes of a step."""
    done = f"`{_code(step.shown)}`: " if step.shown else ""
    if outcome.error is None:
        return done + _plain(step.says)
    kind = "" if step.shown or type(outcome.error) is ValueError else f"`{type(outcome.error).__name__}`: "
    return f"{done}{kind}`{_code(outcome.message)}`"


def _code(text: str) -> str:
    """Shorten a message to one line of code within a table."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).replace("`", "'").replace("|", "¦").split())
    line = line.removeprefix("error: ")
    return line if len(line) <= MOST else line[: MOST - 1] + "…"


def _plain(text: str) -> str:
    return text.replace("|", "¦").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def main() -> None:
    """Carry out all cases, and write the page."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        models = models_in(Path(folder))
        for case in CASES:
            rows[case.kind, case.situation], wrong = carry_out(case, models)
            if wrong:
                raise SystemExit(f"{case.kind}, {case.situation}: {'; '.join(wrong)}")
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
