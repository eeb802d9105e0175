"""Synthetic rows of real mixed tables: `FlowDensity()` against sequential trees, SDV's synthesizers, random forests,
an autoregressive network and boosted trees.

    python benchmarks/synthesis.py                  # resumes where it was stopped; on Linux
    python benchmarks/synthesis.py --tables credit --methods flowlab --again

Each method gets the same training rows (80 %) of the same tables (benchmarks/synthesizers/tables.py), in a process of
its own on one core, draws 5,000 rows five times, and of each draw the first rows, as many as there are training rows,
are scored. Rows, times and scores are kept in benchmarks/cache/synthesis/; scores are made anew when the rows or the
metrics' source are newer. Tables and picture are written to benchmarks/results/synthesis.md and .png. Peers but CART
live in environments of their own (`make bench-synthesis` makes them); those that are not there are left out, with a
word. Unmasking Trees takes most of the time: a quarter of an hour for the smallest table, up to an hour for others.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import pandas as pd
from common import RESULTS, write_json
from synthesizers import ARF, ARGN, CART, METHODS, OURS, REAL, SDV, SNAPPED, SPREAD, UNMASKING, report, scores
from synthesizers.running import DRAWS, answer, fit_and_draw, fresh, without_missing
from synthesizers.tables import TABLES, snapped, split_of

HERE = Path(__file__).parent
ROOT = HERE.parent
CACHE = HERE / "cache" / "synthesis"
WORKERS = HERE / "synthesizers"
METRICS = (
    *(WORKERS / f"{name}.py" for name in ("scores", "quality", "tables")),
    ROOT / "flowlab" / "report" / "metrics.py",
    *(ROOT / "flowlab" / "tables" / "frames" / f"{name}.py" for name in ("aligned", "nearness")),
)
DRAWN = 5000
ENVIRONMENTS = {"sdv": SDV, "arf": (ARF,), "argn": ARGN, "utrees": (UNMASKING,)}  # .venv-NAME, and what runs in it


def stored(name: str, what: str, suffix: str = ".parquet") -> Path:
    return CACHE / f"{name}-{what.replace(' ', '_')}{suffix}"


def draws_of(name: str, method: str) -> list[Path]:
    """The files of all draws."""
    return [stored(name, method, f"{f'-{k}' if k else ''}.parquet") for k in range(DRAWS)]


def split(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test rows, from the files that every process reads."""
    train, test = (pd.read_parquet(stored(name, what)) for what in ("train", "test"))
    return train, test


def prepare(name: str) -> None:
    """Those files, where they are not there or the preparation has changed."""
    for what, frame in zip(("train", "test"), split_of(name)):
        path = stored(name, what)
        if not path.exists() or not pd.read_parquet(path).equals(frame):
            frame.to_parquet(path)


def draw(name: str, method: str, python: Path, again: bool) -> dict:
    """A method's times on a table, or its error; its rows lie in the cache."""
    facts, rows, train = stored(name, method, ".json"), draws_of(name, method), stored(name, "train")
    if method not in SNAPPED:
        return fit_and_draw(facts, python, method, train, DRAWN, rows, again)
    source = SNAPPED[method]
    found = draw(name, source, python, again=False)
    for path, drawn in zip(rows, draws_of(name, source)) if "error" not in found else ():
        if again or not fresh(path, drawn, train):
            snapped(pd.read_parquet(drawn), pd.read_parquet(train)).to_parquet(path)
    return write_json(facts, found)


def quality(name: str, rows: Path, python: Path) -> dict:
    """SDMetrics' overall score, as documented: against the rows that were fitted."""
    found = answer([python, WORKERS / "quality.py", stored(name, "train"), rows])
    return {"sdmetrics_error": found["error"]} if "error" in found else found


def evaluate(name: str, method: str, sdv_python: Path) -> dict:
    """Scores of a method's rows, from the cache where they are up to date; `REAL` is the noise floor.

    `SPREAD` are means over all draws; the others are the first draw's. Draws of all methods are compared with the same
    test rows and by the same folds, so that differences of two methods go draw by draw.
    """
    path, drawn = stored(name, method, "-scores.json"), draws_of(name, method)
    sources = (*drawn, *METRICS) if method != REAL else METRICS
    if fresh(path, stored(name, "train"), *sources):
        return json.loads(path.read_text())
    train, test = split(name)
    if method == REAL:
        found = {**scores.floor(train, test), **quality(name, stored(name, "test"), sdv_python)}
        return write_json(path, found | averaged([{"c2st": auc} for auc in scores.floors(train, test, DRAWS)]))
    tables = [pd.read_parquet(file)[: len(train)] for file in drawn]
    draws = [
        {**scores.score(train, test, rows, TABLES[name].target), **scored_quality(name, rows, sdv_python)}
        for rows in tables
    ]
    return write_json(path, draws[0] | averaged(draws))


def averaged(draws: list[dict]) -> dict:
    """Means of the scores that are taken of each draw, and under "draws" what they are of."""
    each = {key: [cell[key] for cell in draws if key in cell] for key in SPREAD}
    each = {key: values for key, values in each.items() if values}
    return {**{key: statistics.fmean(values) for key, values in each.items()}, "draws": each}


def scored_quality(name: str, rows: pd.DataFrame, python: Path) -> dict:
    """`quality` of rows that are in no file."""
    with tempfile.NamedTemporaryFile(suffix=".parquet", dir=CACHE) as used:
        rows.to_parquet(used.name)
        return quality(name, Path(used.name), python)


def results() -> dict[str, dict[str, dict]]:
    """What the cache holds: facts and scores of each table and method."""
    found: dict[str, dict[str, dict]] = {}
    for name in TABLES:
        cells = {}
        for method in (REAL, *METHODS):
            paths = [stored(name, method, suffix) for suffix in (".json", "-scores.json")]
            cell = {
                key: value for path in paths if path.exists() for key, value in json.loads(path.read_text()).items()
            }
            if cell:
                cells[method] = cell
        if cells:
            train, test = split(name)
            found[name] = {**cells, "rows": {"train": len(train), "test": len(test), "columns": train.shape[1]}}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--again", action="store_true", help="also what is in the cache")
    for name in ENVIRONMENTS:
        parser.add_argument(f"--{name}-python", type=Path, default=ROOT / f".venv-{name}" / "bin" / "python")
    options = parser.parse_args()
    pythons = dict.fromkeys((*OURS, *CART), Path(sys.executable))
    for name, methods in ENVIRONMENTS.items():
        pythons |= dict.fromkeys(methods, getattr(options, f"{name}_python"))
    pythons |= {method: pythons[source] for method, source in SNAPPED.items()}
    options.methods = without_missing(options.methods, pythons)
    CACHE.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    for name in options.tables:
        prepare(name)
        evaluate(name, REAL, options.sdv_python)
        for method in options.methods:
            facts = draw(name, method, pythons[method], options.again)
            found = {} if "error" in facts else evaluate(name, method, options.sdv_python)
            print(f"{name} {method}: {report.line({**facts, **found})}", flush=True)
        report.write(results(), RESULTS / "synthesis.md", RESULTS / "synthesis.png")


if __name__ == "__main__":
    main()
