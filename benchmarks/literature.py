"""Synthetic rows of three tables that papers measure on, by their measures: adult, magic and shoppers.

    python benchmarks/literature.py                  # resumes where it was stopped; an hour, on Linux
    python benchmarks/literature.py --tables shoppers --methods "CART 5" --again

The tables, split as large as in the papers, are read from ../shared/tables and never copied here; those that are not
there are left out, with a word. Each method gets the training rows, in a process of its own on one core, and draws as
many rows five times. XGBoost, with its defaults and native categories, tells real rows from synthetic ones (C2ST,
three folds) and learns from synthetic rows what it is tested on with real ones. Rows, times and scores are kept in
benchmarks/cache/literature/; scores are made anew when the rows or their sources are newer. The page is
benchmarks/results/literature.md.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from common import RESULTS, circumstances, table, write_json
from synthesizers import CART, FLOWLAB, REAL, boosting
from synthesizers.running import DRAWS, fit_and_draw, fresh

HERE = Path(__file__).parent
TABLES = HERE.parents[1] / "shared" / "tables"
CACHE = HERE / "cache" / "literature"
SOURCES = (
    HERE / "synthesizers" / "boosting.py",
    HERE.parent / "flowlab" / "report" / "metrics.py",
    *(HERE.parent / "flowlab" / "tables" / "frames" / f"{name}.py" for name in ("aligned", "nearness")),
)
TARGETS = {"adult": "income", "magic": "class", "shoppers": "Revenue"}
METHODS = (FLOWLAB, *CART)
PUBLISHED = {  # ROC-AUC on adult, magic, shoppers
    "c2st_train": {
        "TabDiff": (0.580, 0.613, 0.632),
        "TabPC": (0.572, 0.570, 0.553),
        "TabSyn": (0.603, 0.620, 0.672),
    },
    "efficiency": {"TabDiff": (0.913, 0.936, 0.917), "TabPC": (0.916, 0.932, 0.897)},
}


class Section(NamedTuple):
    """A table of the page: a score, how it is written, and what it means."""

    key: str
    title: str
    write: Callable[[float], str]
    note: str


SECTIONS = (
    Section(
        "c2st_test",
        "C2ST against test rows",
        "{:.3f}".format,
        "ROC-AUC of XGBoost telling the test rows from as many synthetic ones, mean over three folds; 0.5 is perfect. "
        "Real rows: five random parts of the training rows, each as many as there are test rows.",
    ),
    Section(
        "c2st_train",
        "C2ST against training rows",
        "{:.3f}".format,
        "The same of the training rows and as many synthetic ones, as papers do: more rows than those for testing, so "
        "that XGBoost tells more. Rows that repeat training rows, or "
        "lie closer to them than real rows do to each other, push it down, even below 0.5: read it beside the table "
        "before. Published: what papers report, not run here.",
    ),
    Section(
        "efficiency",
        "Machine-learning efficiency",
        "{:.3f}".format,
        "ROC-AUC on the test rows of XGBoost trained on as many synthetic rows as there are training rows; higher is "
        "better. Real rows: trained on the training rows. Published: what papers report, not run here.",
    ),
    Section(
        "dcr",
        "DCR share",
        "{:.3f}".format,
        "Share of synthetic rows whose nearest real row is a training row rather than one of as many test rows; 0.5 is "
        "expected of new rows.",
    ),
    Section("fit_cpu", "Fit, CPU-seconds", "{:.1f}".format, "On one core, of all threads, without imports."),
    Section(
        "sample_cpu",
        "Draw, CPU-seconds",
        "{:.2f}".format,
        "As many rows as there are training rows, on one core, of all threads.",
    ),
)


def stored(name: str, method: str, suffix: str) -> Path:
    return CACHE / f"{name}-{method.replace(' ', '_')}{suffix}"


def source(name: str, part: str) -> Path:
    """The file of a table's training or test rows."""
    return TABLES / f"{name}_{part}.parquet"


def split(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test rows."""
    train, test = (pd.read_parquet(source(name, part)) for part in ("train", "test"))
    return train, test


def evaluate(name: str, method: str) -> dict:
    """Scores of each draw, from the cache where they are up to date."""
    path = stored(name, method, "-scores.json")
    drawn = [] if method == REAL else draws_of(name, method)
    if fresh(path, *SOURCES, *drawn, source(name, "train"), source(name, "test")):
        return json.loads(path.read_text())
    train, test = split(name)
    if method == REAL:
        cells = boosting.floor(train, test, TARGETS[name], DRAWS)
    else:
        cells = [boosting.score(train, test, pd.read_parquet(file), TARGETS[name]) for file in drawn]
    keys = dict.fromkeys(key for cell in cells for key in cell)
    return write_json(path, {key: [cell[key] for cell in cells if key in cell] for key in keys})


def draws_of(name: str, method: str) -> list[Path]:
    return [stored(name, method, f"-{k}.parquet") for k in range(DRAWS)]


def facts_of(name: str, method: str) -> Path:
    return stored(name, method, ".json")


def run(name: str, methods: list[str], again: bool) -> None:
    """Fit, draw and score a table's methods, and say what came out."""
    print(f"{name} {REAL}: {line(evaluate(name, REAL))}", flush=True)
    rows = len(split(name)[0])
    for method in methods:
        facts = fit_and_draw(
            facts_of(name, method),
            Path(sys.executable),
            method,
            source(name, "train"),
            rows,
            draws_of(name, method),
            again,
        )
        found = facts if "error" in facts else {**facts, **evaluate(name, method)}
        print(f"{name} {method}: {line(found)}", flush=True)
        write(results())
    write(results())


def line(cell: dict) -> str:
    """One method on one table for the terminal."""
    if "error" in cell:
        return cell["error"]
    return ", ".join(f"{s.title} {written(s, cell)}" for s in SECTIONS if s.key in cell)


def results() -> dict[str, dict[str, dict]]:
    """What the cache holds: times and scores of each table and method."""
    found: dict[str, dict[str, dict]] = {}
    for name in TARGETS:
        for method in (REAL, *METHODS):
            paths = [path for path in (facts_of(name, method), stored(name, method, "-scores.json")) if path.exists()]
            cell = {key: value for path in paths for key, value in json.loads(path.read_text()).items()}
            if cell:
                found.setdefault(name, {})[method] = cell
    return found


def written(section: Section, cell: dict) -> str:
    """A score: mean ± standard deviation over draws, or a number that there is once."""
    if "error" in cell:
        return "failed"
    value = cell.get(section.key)
    if value is None:
        return ""
    if not isinstance(value, list):
        return section.write(value)
    mean = section.write(statistics.fmean(value))
    return f"{mean} ± {section.write(statistics.stdev(value))}" if len(value) > 1 else mean


def section_of(section: Section, found: dict[str, dict[str, dict]]) -> str:
    published = PUBLISHED.get(section.key, {})
    real = [REAL] if any(section.key in cells.get(REAL, {}) for cells in found.values()) else []
    lines = [
        [
            name,
            *(written(section, cells.get(method, {})) for method in (*METHODS, *real)),
            *(f"{values[list(TARGETS).index(name)]:.3f}" for values in published.values()),
        ]
        for name, cells in found.items()
    ]
    header = ["table", *METHODS, *real, *(f"{paper}, published" for paper in published)]
    return f"## {section.title}\n\n{section.note}\n\n{table(header, lines)}\n"


def described(found: dict[str, dict[str, dict]]) -> str:
    """The tables' sizes and targets."""
    lines = []
    for name in found:
        train, test = split(name)
        lines.append([name, f"{len(train):,} + {len(test):,}", str(train.shape[1]), TARGETS[name]])
    return table(["table", "training + test rows", "columns", "target"], lines)


def write(found: dict[str, dict[str, dict]]) -> None:
    """Write the page."""
    errors = [
        f"- {name}, {method}: {cell['error']}"
        for name, cells in found.items()
        for method, cell in cells.items()
        if "error" in cell
    ]
    failures = "\n".join(["## Failures", "", *errors, ""]) if errors else ""
    sections = "\n".join(section_of(section, found) for section in SECTIONS)
    (RESULTS / "literature.md").write_text(
        f"""# Synthetic rows of tables that papers measure on

`python benchmarks/literature.py` on {circumstances("xgboost", "scikit-learn", "pandas", "numpy")}, each method in a \
process of its own on one core. One split each, of the papers' sizes. Each method is fitted once with its defaults to \
the training rows and draws as many rows five times: mean ± standard deviation over the five draws, which meet the \
same real rows and the same folds. What is empty has not been run. CART is the sequential synthesizer of Reiter (2005) \
with leaves of at least 5 or 20 rows: it gives back real values alone.

{described(found)}

{sections}{failures}"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--again", action="store_true", help="also what is in the cache")
    options = parser.parse_args()
    for name in options.tables:
        lacking = [path for path in (source(name, "train"), source(name, "test")) if not path.exists()]
        if lacking:
            print(f"without {name}: there is no {lacking[0]}")
            continue
        CACHE.mkdir(parents=True, exist_ok=True)
        run(name, options.methods, options.again)


if __name__ == "__main__":
    main()
