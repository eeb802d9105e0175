"""Dirty tables: the matrix of tests/dirty, and random tables made of dirty columns.

A random table is fitted or refused. It fails if an error is none of those that flowlab documents, or names no column;
if a row that the model was fitted to has a score that is not finite; if draws have other columns or types; or if the
model is another one after saving and loading.

    python -m benchmarks.faults.dirty_tables --scale 0.01
"""

import argparse
import collections
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import flowlab

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests"))  # the cases are the tests' own

from dirty.case import fit
from dirty.page import CASES, carry_out, models_in

TABLES = 500
MOST_ROWS = 80
Column = Callable[[np.random.Generator, int], Any]


def _some(*values: Any, dtype: Any = None) -> Column:
    """A column of some values; of Python objects unless a type is given."""

    def column(rng: np.random.Generator, rows: int) -> pd.Series:
        return pd.Series([values[i] for i in rng.integers(0, len(values), rows)], dtype=dtype or object)

    return column


def _with(column: Column, *odd: Any) -> Column:
    """A column in which one cell is another value."""

    def spoilt(rng: np.random.Generator, rows: int) -> pd.Series:
        cells = pd.Series(column(rng, rows)).astype(object)
        cells.iloc[int(rng.integers(rows))] = odd[int(rng.integers(len(odd)))]
        return cells.infer_objects()

    return spoilt


def _normal(rng: np.random.Generator, rows: int) -> pd.Series:
    return pd.Series(rng.normal(size=rows))


def _days(rng: np.random.Generator, rows: int) -> pd.Series:
    return pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 400, rows), "D"))


def _scaled(low: int, high: int) -> Column:
    return lambda rng, rows: pd.Series(rng.normal(size=rows) * 10.0 ** int(rng.integers(low, high)))


COLUMNS: dict[str, Column] = {
    "normal": _normal,
    "prices": lambda rng, rows: pd.Series(rng.lognormal(3, 1, rows).round(2)),
    "counts": lambda rng, rows: pd.Series(rng.poisson(2, rows)),
    "zeros and numbers": lambda rng, rows: pd.Series(np.where(rng.random(rows) < 0.5, 0.0, rng.gamma(1, size=rows))),
    "heavy tails": lambda rng, rows: pd.Series(rng.standard_cauchy(rows)),
    "any scale": _scaled(-30, 30),
    "extreme scale": _scaled(-320, 300),
    "an odd number": _with(_normal, np.inf, -np.inf, 1e308, 1e18, -1e100, 1e-310, np.nan),
    "a word among numbers": _with(_normal, "n/k", "", "nan"),
    "an odd object": _with(_some("a", "b"), [1], {"a": 1}, ("x",), b"bytes", 1j, np.inf, object),
    "huge integers": lambda rng, rows: pd.Series(2**60 + rng.integers(0, 99, rows)),
    "beyond 64 bits": _some(10**30, 10**31),
    "small integers": lambda rng, rows: pd.Series(rng.integers(0, 256, rows).astype("uint8")),
    "missing integers": _some(1, 5, None, dtype="Int64"),
    "half precision": lambda rng, rows: pd.Series(rng.uniform(-65000, 65000, rows).astype("float16")),
    "all missing": _some(None, np.nan),
    "constant": _some(7),
    "negative zero": _some(0.0, -0.0, 1.0),
    "truth or none": _some(True, False, None),
    "truth among numbers": _some(True, 1, 2.5),
    "words": _some("a", "b", "c"),
    "odd words": _some("", "nan", "None", "a\x00b", "👩‍🔬", "é", "e\u0301", "שלום", "a\nb", "=1+1", "<script>"),
    "identifiers": lambda rng, rows: pd.Series([f"id {i}" for i in range(rows)]),
    "text of digits": _some("01", "2", "003"),
    "money": _some("$1,658.18", "$5.00", "15 %"),
    "days": _days,
    "missing days": _with(_days, pd.NaT),
    "end of time": _with(_days, pd.Timestamp.max, pd.Timestamp("2262-01-01")),
    "days as text": _some("2024-01-31", "31.03.2020", "2023-02-29"),
    "zoned": lambda rng, rows: _days(rng, rows).dt.tz_localize("Europe/Berlin"),
    "mixed zones": _some(pd.Timestamp("2024-01-01 00:00+01:00"), pd.Timestamp("2024-06-01 00:00+02:00")),
    "durations": lambda rng, rows: pd.Series(pd.to_timedelta(rng.integers(-50, 50, rows), "h")),
    "periods": lambda rng, rows: pd.Series(pd.PeriodIndex(_days(rng, rows), freq="M")),
    "sparse": lambda rng, rows: pd.Series(pd.arrays.SparseArray(np.where(rng.random(rows) < 0.5, 0.0, 1.5))),
    "complex": lambda rng, rows: pd.Series(rng.normal(size=rows) + 1j),
    "category": _some("lo", "hi", None, dtype=pd.CategoricalDtype(["lo", "mid", "hi"], ordered=True)),
    "intervals": lambda rng, rows: pd.Series(pd.cut(rng.normal(size=rows), 3)),
}

REFUSED = [  # by themselves, mostly
    *("extreme scale", "an odd number", "an odd object", "huge integers", "beyond 64 bits", "identifiers"),
    *("end of time", "mixed zones", "periods", "sparse", "complex", "intervals"),
]


def random_table(seed: int) -> pd.DataFrame:
    """A table of one to six columns of the list, sometimes with a copy or a sum of others."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(2, MOST_ROWS))
    taken = [name for name in COLUMNS if name not in REFUSED]
    chosen = rng.choice(taken, int(rng.integers(1, 6)), replace=False).tolist()
    if rng.random() < 0.4:
        chosen.insert(int(rng.integers(len(chosen) + 1)), str(rng.choice(REFUSED)))
    frame = pd.DataFrame({name: COLUMNS[name](rng, rows) for name in chosen})
    numbers = frame.select_dtypes("number").columns
    if len(numbers) and rng.random() < 0.3:
        with np.errstate(all="ignore"):
            frame["derived"] = frame[numbers[0]] * 2
    return frame


def tried(seed: int) -> tuple[str, str]:
    """Fit a random table and use the model: "fitted" or "refused", or the kind of a failure, and its details."""
    frame = random_table(seed)
    try:
        model = fit(frame)
    except (ValueError, TypeError) as error:
        named = any(repr(name) in str(error) for name in frame.columns) or "rows" in str(error)
        return ("refused" if named else "an error that names no column"), f"{type(error).__name__}: {error}"
    try:
        scores = model.score_samples(frame)
        if not np.isfinite(scores).all():
            return "a training row without a finite score", f"rows {np.flatnonzero(~np.isfinite(scores))[:5]}"
        drawn = model.sample(20, random_state=0)
        if not drawn.dtypes.equals(frame[list(drawn.columns)].dtypes) or len(drawn.columns) != frame.shape[1]:
            return "draws of other types", f"{drawn.dtypes.to_dict()}"
        model.score_samples(drawn)
        model.save("m.flow")
        if not np.array_equal(flowlab.load("m.flow").score_samples(frame), scores):
            return "another model after loading", ""
        holes = frame.mask(np.random.default_rng(seed).random(frame.shape) < 0.2)
        model.impute(holes)
    except Exception as error:
        return f"an error in use, {type(error).__name__}", str(error)
    return "fitted", ""


def section(scale: float = 1.0) -> str:
    """Run the matrix and the random tables.

    Args:
        scale: 1 is all of the matrix and 500 random tables.

    Returns:
        The section, in Markdown.
    """
    start = time.perf_counter()
    kinds: dict[str, collections.Counter[str]] = {}
    wrong: list[str] = []
    cases = CASES[:: max(round(1 / scale), 1)]
    with tempfile.TemporaryDirectory() as folder:
        models = models_in(Path(folder))
        for case in cases:
            count = kinds.setdefault(case.kind, collections.Counter())
            steps = [step for step in (case.library, case.shell) if step is not None]
            _, failed = carry_out(case, models)
            count["refused"] += sum(bool(step.fails) for step in steps)
            count["works"] += sum(not step.fails for step in steps)
            count["wrong"] += len(failed)
            wrong += [f"{case.kind}, {case.situation}: {said}" for said in failed]
    middle = time.perf_counter()
    found: collections.Counter[str] = collections.Counter()
    tables = max(round(TABLES * scale), 1)
    with tempfile.TemporaryDirectory() as folder, chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for seed in range(tables):
            kind, details = tried(seed)
            found[kind] += 1
            if kind not in ("fitted", "refused"):
                wrong.append(f"table {seed}, {kind}: {details}"[:300])
    end = time.perf_counter()
    failures = tables - found["fitted"] - found["refused"]
    lines = [
        "## Dirty tables\n",
        f"{len(cases)} of {len(CASES)} situations of docs/dirty_tables.md in {middle - start:.0f} s, and {tables} "
        f"random tables of one to six of {len(COLUMNS)} kinds of dirty columns in {end - middle:.0f} s: each is "
        "fitted, scored, drawn from, saved, loaded and imputed, or refused by an error that names a column.\n",
        "| kind | library and command line: works | refused, as documented | wrong |",
        "|---|---:|---:|---:|",
        *(f"| {kind} | {count['works']} | {count['refused']} | {count['wrong']} |" for kind, count in kinds.items()),
        f"| random tables | {found['fitted']} | {found['refused']} | {failures} |",
    ]
    return "\n".join([*lines, *([""] if wrong else []), *(f"- {text}" for text in wrong)]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    print(section(parser.parse_args().scale))
