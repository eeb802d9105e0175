"""Columns and constants as the values that expressions compute with.

Integers are exact at any width: int64 where that holds them, Python integers otherwise. Booleans stay Booleans, all
other numbers are float64. Times are whole nanoseconds.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import mul
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.tables.frames import cells

Data = NDArray[Any]
Rows = NDArray[np.bool_]

DATE = re.compile(r"\s*(\d{4}|\d{1,2}[/.-]\d{1,2}[/.-]\d)")
DURATION = re.compile(r"\s*[-+]?P?\d.*[A-Za-z:]", flags=re.DOTALL)
SAFE = 2.0**62  # results estimated to be smaller fit int64
MOST = 1e300  # bound on integers
WORDS = dict(
    zip(
        ("number", "boolean", "text", "mixed", "datetime", "timedelta", "nothing"),
        ("numbers", "booleans", "text", "cells of several types", "times", "time differences", "nothing"),
    )
)


@dataclass(frozen=True)
class Values:
    """One value per row, or one for all rows.

    Attributes:
        kind: number, boolean, text, mixed, datetime or timedelta; nothing if every value is unknown.
        data: The values; arbitrary where unknown.
        known: Which values are known.
        what: Their description in messages, such as "column 'x'".
        zone: The time zone of datetimes, whose data are then in UTC; None if they have none and show local time.
        levels: A categorical dtype's levels, in order.
        codes: A categorical dtype's codes, the positions of the values among the levels.
        ordered: Whether the order of the levels is meaningful.
        constant: Whether the expression states the value.
    """

    kind: str
    data: Data
    known: Rows
    what: str
    zone: Any = None
    levels: Sequence[Any] | None = None
    codes: Data | None = None
    ordered: bool = False
    constant: bool = False

    def __str__(self) -> str:
        verb = "is among" if self.constant else "holds"
        return f"{self.what} {verb} {WORDS[self.kind]}"


def of_constant(value: Any) -> Values:
    """The value of a constant."""
    what = f"{value!r}"
    if isinstance(value, str):
        return Values("text", _objects([value]), np.ones(1, dtype=bool), what, constant=True)
    kind = "boolean" if isinstance(value, bool) else "number"
    return Values(
        kind,
        whole_numbers([value]) if type(value) is int else np.array([value]),
        np.ones(1, dtype=bool),
        what,
        constant=True,
    )


def of_column(values: pd.Series, name: Any) -> Values:
    """The values of a column."""
    known = values.notna().to_numpy(dtype=bool)
    what = f"column {name!r}"
    kind = cells.family(values, name) if known.any() else "nothing"
    if kind == "nothing":  # whatever the dtype: files yield numbers for a column of strings that is empty
        return Values(kind, np.zeros(len(values)), known, what)
    if kind == "category":
        levels = of_column(pd.Series(values.cat.categories), name)
        codes = values.cat.codes.to_numpy(dtype=np.int64)
        ordered = bool(values.cat.ordered)
        return Values(levels.kind, levels.data[codes], known, what, levels.zone, levels.data.tolist(), codes, ordered)
    if kind == "number":
        data = _numbers(values, known)
        return Values(kind, data, known & ~np.isnan(data) if data.dtype.kind == "f" else known, what)
    if kind == "boolean":
        data = values.astype("boolean").to_numpy(dtype=bool, na_value=False)
        return Values(kind, data, known, what)
    if kind == "datetime":
        return Values(kind, _instants(values), known, what, zone=cells.zone_of(values.dtype))
    if kind == "timedelta":
        unit = cells.unit_of(values.dtype)
        ticks = values.astype(f"timedelta64[{unit}]").to_numpy()
        return Values(kind, _nanoseconds(ticks, unit), known, what)
    data = values.to_numpy(dtype=object, na_value="")
    return Values(kind, data, known, what)


def _numbers(values: pd.Series, known: Rows) -> Data:
    """Numbers as integers or float64."""
    if cells.is_object(values.dtype):
        present = values[known].tolist()
        whole = all(isinstance(v, int | np.integer) for v in present)
        data = np.zeros(len(values), dtype=object) if whole else np.zeros(len(values))
        data[known] = [int(v) if whole else float(v) for v in present]
        return _fit(data) if whole else data
    if values.dtype.kind == "f":
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    if known.all():
        data = values.to_numpy(dtype=values.dtype if isinstance(values.dtype, np.dtype) else values.dtype.numpy_dtype)
    else:
        data = values.fillna(0).to_numpy(dtype=values.dtype.numpy_dtype)
    return _fit(data.astype(object)) if data.dtype == np.uint64 else data.astype(np.int64)


def _instants(values: pd.Series) -> Data:
    unit, zone = cells.unit_of(values.dtype), cells.zone_of(values.dtype)
    if isinstance(values.dtype, pd.ArrowDtype):
        values = pd.to_datetime(values).astype(f"datetime64[{unit}{', UTC' if zone else ''}]")
    if zone is not None:
        values = values.dt.tz_convert("UTC").dt.tz_localize(None)
    return _nanoseconds(values.to_numpy(), unit)


def _nanoseconds(ticks: Data, unit: str) -> Data:
    counts = np.where(np.isnat(ticks), 0, ticks.astype(np.int64))
    return exactly(mul, counts, np.array(cells.TICKS["ns"] // cells.TICKS[unit]))


def _objects(values: Sequence[Any]) -> Data:
    data = np.empty(len(values), dtype=object)
    data[:] = values
    return data


def whole_numbers(values: Sequence[int]) -> Data:
    return _fit(_objects(values))


def _fit(data: Data) -> Data:
    """Python integers as int64 if all of them fit."""
    return data.astype(np.int64) if not len(data) or (data.min() >= -(2**63) and data.max() < 2**63) else data


def exactly(op: Callable[[Any, Any], Any], x: Data, y: Data) -> Data:
    """Compute on integers exactly: in int64 if the results are sure to fit, else in Python integers."""
    estimate = np.abs(op(x.astype(np.float64), y.astype(np.float64)))
    if not (estimate < MOST).all():
        raise ValueError("whole numbers become too large: divide a column, or write 1.0 * it")
    if x.dtype == object or y.dtype == object or not (estimate < SAFE).all():
        return np.asarray(op(x.astype(object), y.astype(object)), dtype=object)
    return op(x, y)


def as_times(values: Values, like: Values) -> Values:
    """A string constant as a time if the other operand holds times; other values unchanged."""
    if not (values.constant and values.kind == "text" and like.kind in ("datetime", "timedelta")):
        return values
    text = values.data[0]
    advice = "'2024-01-31 12:00'" if like.kind == "datetime" else "'2 days 03:00:00'"
    try:
        if not (DATE if like.kind == "datetime" else DURATION).match(text):  # pandas also parses "now" and "5"
            raise ValueError("no such text")
        time = pd.Timestamp(text) if like.kind == "datetime" else pd.Timedelta(text)
        if like.kind == "datetime" and (like.zone is None) and time.tz is not None:
            raise ValueError(f"it has a time zone, {like.what} has none")
        if like.kind == "datetime" and like.zone is not None:
            if time.tz is None:  # as cells.times does
                time = time.tz_localize(like.zone, ambiguous=True, nonexistent="shift_forward")
            time = time.tz_convert("UTC").tz_localize(None)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{like}, and {text!r} is none ({error}): write it like {advice}") from error
    ticks = time.to_numpy()
    data = whole_numbers(
        [int(ticks.astype(np.int64)) * (cells.TICKS["ns"] // cells.TICKS[np.datetime_data(ticks.dtype)[0]])]
    )
    return replace(values, kind=like.kind, data=data, zone=like.zone)
