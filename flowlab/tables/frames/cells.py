"""Cells of a pandas column <-> plain numbers and levels, for every dtype that a table may hold.

Every column belongs to one of six families: number, boolean, text, mixed, datetime, timedelta (or to category, a dtype
whose levels are of any of these). Numbers become float64, times days and seconds, everything else plain Python values
that JSON can hold.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[np.float64]

DAY = 86400  # seconds
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # per second
EXACT = 2**53 - 1  # whole numbers above it have no float64 of their own
NULLS: dict[str, Any] = {"None": None, "nan": np.nan, "<NA>": pd.NA}
PYTHON = {  # what pandas calls the contents of an object column -> its family
    "string": "text",
    "empty": "text",
    "boolean": "boolean",
    "integer": "number",
    "floating": "number",
    "mixed-integer-float": "number",
    "integer-na": "number",
    "mixed": "mixed",
    "mixed-integer": "mixed",
}
ADVICE = {
    "datetime": "pd.to_datetime(...)",
    "datetime64": "pd.to_datetime(...)",
    "zoned": "pd.to_datetime(..., utc=True)",
    "date": "pd.to_datetime(...)",
    "timedelta": "pd.to_timedelta(...)",
    "timedelta64": "pd.to_timedelta(...)",
    "time": "pd.to_timedelta(... .astype(str)), the time since midnight",
    "decimal": ".astype(float)",
    "complex": "its real and imaginary parts",
    "period": ".dt.to_timestamp()",
    "interval": ".astype(str)",
    "bytes": ".str.decode('utf-8')",
    "sparse": ".sparse.to_dense()",
    "dictionary": '.astype("category")',
}


def spell(dtype: Any) -> str:
    """A name of a dtype that `dtype_of` inverts; pandas' own names do not distinguish its string dtypes.

    Example:
        >>> spell(pd.StringDtype("python")), spell(np.dtype("int8")), spell(pd.ArrowDtype(pa.string()))
        ('string[python]', 'int8', 'string[arrow]')
    """
    if isinstance(dtype, pd.StringDtype):
        return (
            f"{'string' if dtype.na_value is pd.NA else 'str'}[{'python' if dtype.storage == 'python' else 'pyarrow'}]"
        )
    if isinstance(dtype, pd.ArrowDtype) and pa.types.is_string(dtype.pyarrow_dtype):
        return "string[arrow]"
    return str(dtype)


def dtype_of(name: str) -> Any:
    """The dtype of a name from `spell`."""
    if name == "string[arrow]":
        return pd.ArrowDtype(pa.string())
    if name.startswith("str["):
        try:
            return pd.StringDtype(name[4:-1], na_value=np.nan)
        except TypeError:  # pandas 2.2 knows one such type
            return pd.StringDtype("pyarrow_numpy")
    return pd.api.types.pandas_dtype(name)


def is_object(dtype: Any) -> bool:
    """Whether cells of a dtype are any Python objects."""
    return isinstance(dtype, np.dtype) and dtype.kind == "O"


def family(values: pd.Series, name: Any) -> str:
    """The family of a column's cells: number, boolean, text, mixed, datetime, timedelta or category.

    Raises:
        ValueError: They are nothing that can be modelled. The message names the column, and says what to make of it.
    """
    dtype = values.dtype
    if is_object(dtype):
        found = pd.api.types.infer_dtype(values, skipna=True)
        if found in PYTHON:
            return PYTHON[found]
        zoned = found == "datetime" and any(getattr(value, "tzinfo", None) for value in values.dropna())
        raise ValueError(f"column {name!r} holds {found} objects{_advice(name, 'zoned' if zoned else found)}")
    if isinstance(dtype, pd.CategoricalDtype):
        return "category"
    if isinstance(dtype, pd.StringDtype) or (isinstance(dtype, pd.ArrowDtype) and dtype.kind == "U"):
        return "text"
    kinds = {"b": "boolean", "i": "number", "u": "number", "f": "number", "M": "datetime", "m": "timedelta"}
    if not isinstance(dtype, pd.SparseDtype | pd.PeriodDtype | pd.IntervalDtype) and dtype.kind in kinds:
        return kinds[dtype.kind]
    raise ValueError(f"column {name!r} is of type {dtype}{_advice(name, str(dtype).lower())}")


def _advice(name: Any, found: str) -> str:
    known = next((f"with {way}" for word, way in ADVICE.items() if found.startswith(word)), None)
    way = known or "to numbers, strings, booleans or times"
    return f", which is not modelled: convert it {way}, or leave it out with schema={{{name!r}: 'excluded'}}"


def check_frame(df: Any) -> None:
    """Raise a TypeError or ValueError unless the argument is a DataFrame with distinct plain labels."""
    if not isinstance(df, pd.DataFrame):
        raise TypeError(
            f"expected a pandas DataFrame, got {type(df).__name__}: pd.DataFrame(...) makes one of most things"
        )
    if not df.columns.is_unique:
        twice = df.columns[df.columns.duplicated()].unique().tolist()
        raise ValueError(f"several columns have the same name {twice}: rename or drop them")
    for label in df.columns:
        number = isinstance(label, int | float | np.integer | np.floating) and not isinstance(label, bool)
        if not (isinstance(label, str) or number) or label != label:
            raise ValueError(
                f"column label {label!r} is neither a string nor a number: df.columns = df.columns.map(str)"
            )


def plain_label(label: Any) -> Any:
    """A column's label as a Python object, which JSON can hold."""
    return label.item() if isinstance(label, np.generic) else label


def numbers(values: pd.Series, name: Any) -> Array:
    """A column of numbers or booleans as float64, NaN where a cell is missing.

    Raises:
        ValueError: The cells are no numbers, or infinite, or whole numbers that float64 cannot tell apart.
    """
    found = family(values, name)
    if found not in ("number", "boolean"):
        if found == "category":
            dtype = values.cat.categories.dtype
            if pd.api.types.is_numeric_dtype(dtype):
                return numbers(pd.Series(np.asarray(values, dtype=object)), name)
        raise ValueError(
            f"column {name!r}: expected numbers, got {found} ({values.dtype}): convert it with "
            f"pd.to_numeric(df[{name!r}]), "
            "or model it as categorical"
        )
    missing = values.isna().to_numpy(dtype=bool)
    if is_object(values.dtype):
        x = np.full(len(values), np.nan)
        whole = [v for v in values[~missing] if not isinstance(v, float | np.floating)]
        largest = max((abs(int(v)) for v in whole), default=0)
        x[~missing] = [float(v) for v in values[~missing]] if largest <= EXACT else 0.0
    else:
        x = values.to_numpy(dtype=np.float64, na_value=np.nan)
        whole_type = values.dtype.kind in "iu"
        largest = int(np.abs(x[~missing]).max(initial=0.0)) if whole_type else 0
    if largest > EXACT:
        raise ValueError(
            f"column {name!r} holds integers above 2**53, which float64 cannot tell apart: subtract an offset, or make "
            "it a "
            "string if it is an identifier"
        )
    infinite = np.isinf(x)
    if infinite.any():
        raise ValueError(
            f"column {name!r} holds {int(infinite.sum())} infinite values, the first in row "
            f"{label(values.index, infinite.argmax())!r}: "
            "drop those rows, or make the cells missing"
        )
    return x


def levels(values: pd.Series, name: Any) -> tuple[NDArray[np.int64], list[Any]]:
    """The code of every cell, -1 for missing ones, and the distinct plain values of the codes.

    Example:
        >>> levels(pd.Series(["b", "a", None, "b"]), "x")
        (array([ 0,  1, -1,  0]), ['b', 'a'])
    """
    found = family(values, name)
    if found == "category":
        return values.cat.codes.to_numpy(dtype=np.int64), [plain(v, name) for v in values.cat.categories]
    if is_object(values.dtype) and found != "text":
        # True, 1 and 1.0 are equal to Python, and different levels here.
        codes, seen = np.full(len(values), -1), dict[Any, int]()
        for i in np.flatnonzero(values.notna().to_numpy()):
            value = plain(values.iloc[i], name, label(values.index, i))
            codes[i] = seen.setdefault((type(value), value), len(seen))
        return codes, [value for _, value in seen]
    codes, unique = pd.factorize(values)
    return codes.astype(np.int64), [plain(v, name) for v in unique]


def label(index: pd.Index, row: Any) -> Any:
    """A row's label as a Python object, for messages."""
    return index[row : row + 1].tolist()[0]


def plain(value: Any, name: Any, row: Any = None) -> Any:
    """A level as a value that JSON can hold; times as ISO strings."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        value = value.item()
    if isinstance(value, pd.Timestamp | pd.Timedelta):
        return value.isoformat()
    if hasattr(value, "isoformat"):  # a date of pyarrow's
        return pd.Timestamp(value).isoformat()
    if isinstance(value, str | bool | int) or (isinstance(value, float) and np.isfinite(value)):
        return value
    where = "" if row is None else f" in row {row!r}"
    raise ValueError(
        f"column {name!r} holds a cell of type {type(value).__name__}{where}: {str(value)[:40]!r}. "
        "A level must be a string, a "
        f"finite number or a boolean: convert the column, or leave it out with schema={{{name!r}: 'excluded'}}"
    )


def take(values: Sequence[Any], codes: NDArray[np.int64], dtype: str, null: Any = None) -> pd.Series:
    """The column of a dtype with plain value `values[code]` in each row, missing where the code is -1."""
    kind = dtype_of(dtype)
    if is_object(kind):
        table = np.empty(len(values) + 1, dtype=object)
        table[:] = [*values, null]
        return pd.Series(table[codes], dtype=object)
    if len(values) == 0:
        return pd.Series([None] * len(codes), dtype=kind)
    if kind.kind in "Mm":
        array: Any = times(pd.Series(list(values)), kind).array
    else:
        array = pd.Series(list(values)).astype(kind).array
    if (codes >= 0).all():
        return pd.Series(array.take(codes))
    taken = array.take(codes, allow_fill=True)
    return pd.Series(taken).astype(kind)


def filled(values: pd.Series, rows: NDArray[np.int64], drawn: pd.Series) -> pd.Series:
    """A column with its missing cells replaced by draws, in its own dtype or the narrowest one that holds all values.

    Args:
        values: The column.
        rows: The rows (k,) that have draws.
        drawn: The draws (k,), in the column's dtype in training; those at observed cells are ignored.
    """
    gone = values.iloc[rows].isna().to_numpy(dtype=bool)
    if not gone.any():
        return values
    new = drawn[gone]
    if values.isna().all():  # a type that comes from no cell, such as read_csv's float64
        return pd.Series(drawn.array, index=values.index, name=values.name)
    if isinstance(values.dtype, pd.CategoricalDtype):
        levels = pd.Index(new.dropna().unique())
        values = values.cat.add_categories(levels[~levels.isin(values.cat.categories)])
        return _put(values, rows[gone], new.astype(values.dtype))
    try:
        cast = new.astype(values.dtype)
        same = bool((cast.astype(new.dtype) == new).fillna(True).all())
    except (TypeError, ValueError, OverflowError):
        same = False
    if same:
        return _put(values, rows[gone], cast)
    return _put(values.astype(pd.concat([values.iloc[:0], new.iloc[:0]]).dtype), rows[gone], new)


def _put(values: pd.Series, rows: NDArray[np.int64], new: pd.Series) -> pd.Series:
    out = values.copy()
    out.iloc[rows] = new.array
    return out


def times(values: pd.Series, dtype: Any) -> pd.Series:
    """ISO strings, dates or times as times of a dtype; a time without a zone is the wall clock's."""
    zone = zone_of(dtype)
    if dtype.kind == "m":
        return pd.to_timedelta(values).astype(dtype)
    if zone is None:
        return pd.to_datetime(values, format="ISO8601").astype(dtype)
    parsed = [pd.Timestamp(v) for v in values]
    aware = [pd.NaT if v is pd.NaT else _localize(v, zone) if v.tz is None else v.tz_convert(zone) for v in parsed]
    return pd.Series(aware, dtype=pd.DatetimeTZDtype("ns", zone)).astype(dtype)


def _localize(value: Any, zone: Any) -> Any:
    return value.tz_localize(zone, ambiguous=True, nonexistent="shift_forward")


def zone_of(dtype: Any) -> Any:
    """The time zone of a datetime dtype, None if it has none."""
    if isinstance(dtype, pd.ArrowDtype):
        return getattr(dtype.pyarrow_dtype, "tz", None)
    return getattr(dtype, "tz", None)


def unit_of(dtype: Any) -> str:
    """The unit in which times of a dtype are counted: s, ms, us or ns."""
    if isinstance(dtype, pd.ArrowDtype):
        return getattr(dtype.pyarrow_dtype, "unit", "s")  # dates have none
    return dtype.unit if isinstance(dtype, pd.DatetimeTZDtype) else str(np.datetime_data(dtype)[0])


def days_and_seconds(values: pd.Series, zone: Any, name: Any) -> tuple[Array, Array]:
    """The days since 1970 and the seconds since midnight of local time in a zone, NaN for missing cells.

    Raises:
        ValueError: The cells are no times, or one side has a time zone and the other has none.
    """
    found = family(values, name)
    if found != "datetime":
        raise ValueError(
            f"column {name!r}: expected times, got {found} ({values.dtype}): convert it with "
            f"pd.to_datetime(df[{name!r}])"
        )
    if isinstance(values.dtype, pd.ArrowDtype):
        values = pd.to_datetime(values).astype(
            f"datetime64[{unit_of(values.dtype)}{', UTC' if zone_of(values.dtype) else ''}]"
        )
    if (values.dt.tz is None) != (zone is None):
        here, there = (f"a time zone ({tz})" if tz is not None else "no time zone" for tz in (values.dt.tz, zone))
        raise ValueError(
            f"column {name!r} has {here}, it was fitted with {there}: use .dt.tz_localize(...) or .dt.tz_localize(None)"
        )
    if zone is not None:
        values = values.dt.tz_convert(zone).dt.tz_localize(None)
    clock = values.to_numpy()
    day = clock.astype("datetime64[D]")
    missing = np.isnat(clock)
    ticks = (clock - day).astype(np.int64) / TICKS[np.datetime_data(clock.dtype)[0]]
    return np.where(missing, np.nan, day.astype(np.int64)), np.where(missing, np.nan, ticks)


def clock_times(days: Array, seconds: Array, dtype: str, name: Any) -> pd.Series:
    """The inverse of `days_and_seconds`.

    At changes of clocks, skipped hours move forward, and repeated hours are taken as the first.
    """
    kind = dtype_of(dtype)
    unit, zone = unit_of(kind), zone_of(kind)
    stamps = _ticks(days * DAY, seconds, unit, name, dtype).view(f"datetime64[{unit}]")
    index = pd.DatetimeIndex(stamps)
    if zone is not None:
        index = index.tz_localize(zone, ambiguous=np.ones(len(index), dtype=bool), nonexistent="shift_forward")
    return pd.Series(index).astype(kind)


def seconds(values: pd.Series, name: Any) -> Array:
    """A column of time differences in seconds, NaN where missing."""
    found = family(values, name)
    if found != "timedelta":
        raise ValueError(
            f"column {name!r}: expected time differences, got {found} ({values.dtype}): convert it with "
            f"pd.to_timedelta(df[{name!r}])"
        )
    unit = unit_of(values.dtype)
    ticks = values.astype(f"timedelta64[{unit}]").to_numpy()
    whole, rest = np.divmod(ticks.astype(np.int64), TICKS[unit])
    return np.where(np.isnat(ticks), np.nan, whole + rest / TICKS[unit])


def differences(values: Array, dtype: str, name: Any) -> pd.Series:
    """The inverse of `seconds`."""
    kind = dtype_of(dtype)
    unit = unit_of(kind)
    whole = np.floor(values)
    return pd.Series(_ticks(whole, values - whole, unit, name, dtype).view(f"timedelta64[{unit}]")).astype(kind)


def _ticks(whole: Array, rest: Array, unit: str, name: Any, dtype: str) -> NDArray[np.int64]:
    """Whole seconds and a fraction as int64 counts of a unit; the least integer (NaT) where either is NaN."""
    missing = np.isnan(whole) | np.isnan(rest)
    if (np.abs(np.where(missing, 0.0, whole)) * TICKS[unit] >= 2.0**63).any():
        raise ValueError(f"column {name!r}: a time is outside the range of {dtype}")
    whole, rest = np.where(missing, 0, whole), np.where(missing, 0, rest)
    ticks = np.round(whole).astype(np.int64) * TICKS[unit] + np.round(rest * TICKS[unit]).astype(np.int64)
    return np.where(missing, np.iinfo(np.int64).min, ticks)


def from_numbers(values: Array, dtype: str, name: Any, null: Any = None) -> pd.Series:
    """Numbers as a column of a dtype, missing where NaN; whole numbers must have been rounded.

    Raises:
        ValueError: A number is outside the dtype's range, or missing where the dtype has no missing values.
    """
    kind = dtype_of(dtype)
    missing = np.isnan(values)
    if is_object(kind):
        whole = bool((values[~missing] == np.round(values[~missing])).all())
        cells = np.empty(len(values), dtype=object)
        cells[:] = [null if gap else int(v) if whole else v for v, gap in zip(values.tolist(), missing)]
        return pd.Series(cells, dtype=object)
    number = getattr(kind, "numpy_dtype", kind)
    if number.kind in "biu":
        info = np.iinfo(number) if number.kind != "b" else np.iinfo("uint8")
        low, high = (0, 1) if number.kind == "b" else (int(info.min), int(info.max))
        wrong = (values < low) | (values > high)
        if missing.any() and isinstance(kind, np.dtype):
            raise ValueError(
                f"column {name!r} is of type {dtype}, which has no missing values, and row {int(missing.argmax())} is "
                "missing"
            )
    else:
        wrong = ~missing & (np.abs(values) > np.finfo(number).max)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"column {name!r}: {values[row]:g} in row {row} is outside the range of {dtype}")
    if isinstance(kind, np.dtype):
        return pd.Series(values.astype(kind))
    if number.kind == "f":
        return pd.Series(pd.array(values.astype(number), dtype=f"Float{8 * number.itemsize}")).astype(kind)
    filled = np.where(missing, 0, values).astype(number)
    masked = pd.arrays.BooleanArray(filled, missing) if number.kind == "b" else pd.arrays.IntegerArray(filled, missing)
    return pd.Series(masked).astype(kind)
