"""Infer the schema of one column from its cells."""

import datetime
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import DAY, Array
from flowlab.tables.frames.validation import numpy_dtype, rounding
from flowlab.tables.schema.column import NUMBERS, NUMERIC, SETTABLE, ColumnSchema, check_resolution, day_number
from flowlab.tables.schema.grid import (
    ATOM_WIDTH,
    FINE,
    check_size,
    common_decimals,
    decimal_grid,
    learn_column,
    offset_of,
    on_grid,
    spread,
)
from flowlab.tables.schema.levels import unseen_mass

ID_SHARE, ID_ROWS = 0.5, 50  # strings identify rows if a larger share of at least so many rows is distinct
MANY_VALUES = 1000  # maximum number of atoms, and of spellings
DATE = re.compile(
    r"\d{4}-\d{1,2}-\d{1,2}([ T]\d.*)?|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}( \d.*)?|\d{4}/\d{1,2}/\d{1,2}( \d.*)?"
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def learn(values: pd.Series, name: Any, given: Mapping[str, Any]) -> ColumnSchema:
    """Infer the schema of one column, regardless of the others, and apply the user's settings."""
    column = ColumnSchema(name, given.get("kind", ""), cells.spell(values.dtype))
    missing = values.isna().to_numpy(dtype=bool)
    column.missing = float(missing.mean())
    if column.kind == "excluded":
        column.reason = "left out as asked: neither modelled nor sampled"
        return column
    present = values[~missing]
    family = cells.family(present, name)
    if isinstance(values.dtype, pd.CategoricalDtype):
        column.levels_dtype = cells.spell(values.cat.categories.dtype)
        column.declared = [cells.plain(v, name) for v in values.cat.categories]
        column.ordered = bool(values.cat.ordered)
    if values.dtype == object and missing.any():
        first = values[missing].iloc[0]
        column.null = "None" if first is None else "<NA>" if first is pd.NA else "nan"
    if not len(present):
        column.kind, column.reason = "constant", "every cell is missing"
        return column
    kind, reason = guess(present, family, name)
    column.reason = reason if column.kind in ("", kind) else "as asked"
    column.kind = column.kind or kind
    fill = {
        "continuous": learn_numbers,
        "integer": learn_numbers,
        "datetime": learn_datetimes,
        "timedelta": learn_timedeltas,
    }
    fill.get(column.kind, learn_levels)(column, present)
    if given.keys() & {"categories", "unseen"}:  # levels that are listed are all there are
        column.unseen = given_unseen(column, given)
    if column.cardinality == 1:
        codes, unique = cells.levels(present, name)
        column.value = unique[codes[0]]
        column.kind, column.reason = "constant", "all values are equal"
        if column.nullable:  # only whether it is missing varies
            learn_levels(column, present)
            column.kind, column.reason = "categorical", f"always {column.value}, or missing"
            column.lower, column.upper, column.resolution, column.parts = None, None, 0.0, []
        return column
    apply_given(column, given, present)
    return column


def guess(present: pd.Series, family: str, name: Any) -> tuple[str, str]:
    """A column's kind and the reason for it, from the cells that are not missing."""
    if family in ("datetime", "timedelta"):
        return family, "times" if family == "datetime" else "time differences, in seconds"
    if family == "number":
        return guess_number(cells.numbers(present, name), present.dtype)
    if family == "boolean":
        return "boolean", "true or false"
    codes, unique = cells.levels(present, name)
    count = len(np.unique(codes))
    kinds = {type(v).__name__ for v in unique}
    reason = f"{count} levels"
    if len(kinds) > 1:
        reason = f"cells of several types ({', '.join(sorted(kinds))}), each value a level"
    elif family == "text" and all(DATE.fullmatch(v) for v in unique[:1000]):
        reason = "strings that look like dates: convert with pd.to_datetime to model them as times"
    elif family == "text" and all(NUMBER.fullmatch(v) for v in unique[:1000]):
        reason = "strings of digits, kept as strings: convert with pd.to_numeric to model them as numbers"
    if kinds == {"str"} and len(present) >= ID_ROWS and count > ID_SHARE * len(present):
        return "id", f"nearly all of {len(present):,} differ" + ("" if reason == f"{count} levels" else f"; {reason}")
    return "categorical", reason


def guess_number(x: Array, dtype: Any) -> tuple[str, str]:
    """The kind of a numeric column and the reason for it."""
    if (x != np.round(x)).any() or np.abs(x).max() > cells.EXACT:
        return "continuous", "numbers"
    values = np.unique(x)
    if len(values) == len(x) >= ID_ROWS and np.ptp(values) == len(x) - 1:
        return "id", "consecutive whole numbers, each once, like row numbers"
    if values.tolist() == [0, 1]:
        return "integer", "whole numbers, only 0 and 1: kept as numbers; make it 'boolean' if they mean no and yes"
    return "integer", "whole numbers" + (", stored as floats" if dtype.kind == "f" else "")


def learn_levels(column: ColumnSchema, present: pd.Series) -> None:
    """Learn the levels that occur, in the order of the dtype or sorted."""
    codes, unique = cells.levels(present, column.name)
    seen = np.unique(codes)
    column.cardinality = len(seen)
    if column.kind == "boolean" and len(seen) > 2:
        raise ValueError(f"column {column.name!r}: a boolean has two levels, got {len(seen)}: make it 'categorical'")
    if column.kind == "id":
        return
    column.categories = [unique[code] for code in seen]
    if column.kind == "categorical" and not all(isinstance(v, bool) for v in column.categories):
        column.unseen = unseen_mass(np.bincount(codes))
    if not column.levels_dtype:
        column.categories.sort(
            key=lambda v: v if len({type(u) for u in column.categories}) == 1 else (type(v).__name__, v)
        )


def learn_numbers(column: ColumnSchema, present: pd.Series) -> None:
    """Learn the grid, atoms and support of a numeric column."""
    x = cells.numbers(present, column.name)
    whole = (x == np.round(x)) & (np.abs(x) <= cells.EXACT)
    if column.kind == "integer" and not whole.all():
        row = cells.label(present.index, int((~whole).argmax()))
        raise ValueError(
            f"column {column.name!r}: expected whole numbers, got {x[~whole][0]:g} in row {row!r}: round it, or "
            "make it 'continuous'"
        )
    check_size(x, column.name, present.index)
    # Integers carry no rounding errors.
    learn_grid(column, x, 0.0 if whole.all() else rounding(numpy_dtype(column.dtype)), FINE)
    if column.kind == "integer":
        column.resolution, column.atoms, column.decimals = max(column.resolution, 1.0), [], 0.0
        column.atom_width = 0.0
    if column.resolution:
        column.offset = offset_of(x, column.step)
    learn_support(column, x)
    column.seen = [float(x.min()), float(x.max())]


def learn_grid(column: ColumnSchema, x: Array, precision: float, finest: float = 0.0) -> None:
    """Learn a resolution that divides every value, or else atoms; see `learn_column`."""
    column.cardinality = len(np.unique(x))
    detected = learn_column(x, str(column.name), precision, finest)
    if detected.kind == "constant":
        column.cardinality, column.tolerance = 1, detected.tolerance
        return
    column.resolution, column.atoms = (detected.resolution, []) if detected.kind == "grid" else (0.0, detected.atoms)
    column.decimals, column.atom_width = detected.decimals, detected.resolution if detected.atoms else 0.0
    reason = detected.reason if detected.kind != "continuous" else ""
    if column.resolution:
        coarse = column.resolution  # `learn_column` tolerates a few values off this grid, which would be rounded
        column.resolution = common_step(x, column.resolution, precision)
        if column.resolution:
            reason = f"multiples of {column.resolution:g}"
            column.spellings = spellings(x, on_grid(x, column.resolution))
        else:
            values, counts = np.unique(x, return_counts=True)
            values, counts = values[counts > 1], counts[counts > 1]
            column.atoms = np.sort(values[np.argsort(-counts, kind="stable")][:MANY_VALUES]).tolist()
            column.atom_width = ATOM_WIDTH * spread(x)
            column.decimals = common_decimals(x, 8 * precision * np.abs(x))
            reason = f"{len(column.atoms)} values repeat, off any grid"
        column.coarse = coarse if column.resolution < coarse else 0.0
    if reason and column.kind == "continuous":
        column.reason += f"; {reason}"


def common_step(x: Array, step: float, precision: float) -> float:
    """The step, or a finer power of ten, that divides all values up to rounding errors; 0 if none does."""
    # Subtraction leaves errors near zero that are small relative to its operands, not to its result.
    allowed = np.maximum(8 * precision * np.abs(x), 8 * min(precision, 1e-15) * np.median(np.abs(x)))
    while step:
        nearest = on_grid(x, step)
        off = np.abs(x - nearest) > allowed
        if not off.any():
            break
        # Grid points lie on every finer grid, too; they are included because a single value determines no grid.
        finer = decimal_grid(np.concatenate([x[off], nearest[off]]), np.tile(allowed[off], 2))
        step = finer if finer < step else 0.0
    return step


def spellings(x: Array, nearest: Array) -> list[float]:
    """Values that differ from their multiple of the resolution and share it with no other value."""
    values, where = np.unique(x, return_index=True)
    multiples = nearest[where]
    _, inverse, counts = np.unique(multiples, return_inverse=True, return_counts=True)
    result = values[(values != multiples) & (counts[inverse] == 1)]
    return result.tolist() if len(result) <= MANY_VALUES else []


def learn_support(column: ColumnSchema, x: Array) -> None:
    """Learn the bounds that the values or their dtype suggest."""
    low, high = float(x.min()), float(x.max())
    why = []
    # Proportions approach both ends; other small numbers merely happen to be below 1.
    if (
        column.kind in NUMERIC
        and 0 <= low <= high <= 1
        and (high == 1 or (high >= 0.95 and low <= 0.05 and len(x) >= 20))
    ):
        column.lower, column.upper = 0.0, 1.0
        why.append("within [0, 1]")
    elif low >= 0 and ends_at_zero(x, column.resolution):
        column.lower = 0.0
        why.append("none negative")
    bottom, top = limits(column.dtype)
    if top is not None:
        column.lower = bottom if column.lower is None else column.lower
        column.upper = top if column.upper is None else column.upper
        why.append(f"within {column.dtype}")
    if why:
        column.reason += f"; {', '.join(why)}"


def ends_at_zero(x: Array, resolution: float) -> bool:
    """Whether non-negative values suggest a support that ends at zero.

    They do if the minimum is within three mean spacings or one grid step of zero, or if the distance from the minimum
    to the median is at most half that from the median to the maximum.
    """
    low, middle, high = np.quantile(x, [0, 0.5, 1])
    return bool(low <= max(3 * (high - low) / len(x), resolution) or middle - low <= (high - middle) / 2)


def limits(name: str) -> tuple[float | None, float | None]:
    """The range of a small integer dtype, which samples must not leave; None where there is no bound."""
    dtype = numpy_dtype(name)
    if dtype.kind not in "iu" or dtype.itemsize > 4:
        return (0.0 if dtype.kind == "u" else None), None
    info = np.iinfo(dtype)
    return float(info.min), float(info.max)


def learn_datetimes(column: ColumnSchema, present: pd.Series) -> None:
    """Learn the first day, and which of day and time of day vary."""
    days, clock = cells.days_and_seconds(present, cells.zone_of(cells.dtype_of(column.dtype)), column.name)
    check_range(column, days * DAY)
    column.origin = str(np.datetime64(int(days.min()), "D"))
    column.parts = [part for part, x in (("day", days), ("time", clock)) if x.min() < x.max()]
    column.value = None if "time" in column.parts else float(clock[0])
    column.reason = "times, by the clock" if column.reason == "times" else column.reason
    if "time" not in column.parts:
        column.resolution = DAY
        column.reason += (
            "; whole days" if column.value == 0 else f"; all at {pd.Timedelta(seconds=float(clock[0]))} after midnight"
        )
    else:
        learn_time_grid(column, clock)
        column.reason += (
            f"; day and time of day in steps of {column.resolution:g} s"
            if column.resolution
            else "; day and time of day"
        )
    column.cardinality = len(np.unique(days * DAY + clock))


def check_range(column: ColumnSchema, seconds: Array) -> None:
    """Raise a ValueError for times within two days of the limits of their dtype, which samples might exceed."""
    furthest = 2**63 / cells.TICKS[cells.unit_of(cells.dtype_of(column.dtype))] - 2 * DAY
    if np.abs(seconds).max() > furthest:
        raise ValueError(
            f"column {column.name!r} holds times at the very end of what {column.dtype} can hold: if they stand for "
            "missing ones, make the cells missing; else convert the column to a coarser unit, .dt.as_unit('s')"
        )


def learn_timedeltas(column: ColumnSchema, present: pd.Series) -> None:
    """Learn the grid, atoms and support of time differences."""
    x = cells.seconds(present, column.name)
    check_range(column, x)
    learn_time_grid(column, x)
    if column.cardinality > 1:
        learn_support(column, x)


def learn_time_grid(column: ColumnSchema, x: Array) -> None:
    """`learn_grid` for seconds, preferring days, hours and minutes to powers of ten."""
    learn_grid(column, x, 1e-15)
    if column.resolution >= 1:
        column.resolution = next(
            step for step in (float(DAY), 3600.0, 60.0, column.resolution) if (x % step == 0).all()
        )


def apply_given(column: ColumnSchema, given: Mapping[str, Any], present: pd.Series) -> None:
    """Replace what was learnt with the user's settings, after checking them against the data."""
    for key in given.keys() - {"kind", *SETTABLE.get(column.kind, ())}:
        raise ValueError(
            f"schema of column {column.name!r}: {key!r} does not apply to a column of kind {column.kind!r}"
        )
    if given.get("resolution", column.resolution) != column.resolution:
        column.atoms, column.spellings, column.coarse = [], [], 0.0
    for key in given.keys() & set(NUMBERS):
        setattr(
            column,
            key,
            _bound(column, given[key], key) if key in ("lower", "upper") else _number(column, given[key], key),
        )
    if column.resolution:
        column.decimals = 0.0
    if column.atoms and not column.atom_width:
        column.atom_width = ATOM_WIDTH * spread(numbers_of(column, present))
    check_resolution(column)
    if given.keys() & {"lower", "upper", "resolution"}:
        check_given(column, given, present)
    column.ordered = bool(given.get("ordered", column.ordered))
    if "categories" in given:
        levels = [cells.plain(v, column.name) for v in given["categories"]]
        unlisted = [v for v in column.categories if v not in levels]
        if unlisted:
            raise ValueError(
                f"column {column.name!r}: level {unlisted[0]!r} is not among the schema's categories {levels[:20]}: "
                "add it, or set "
                "categories to None to learn them"
            )
        column.categories = [v for v in levels if v in column.categories]


def given_unseen(column: ColumnSchema, given: Mapping[str, Any]) -> float:
    """The user's probability of levels that training did not have, 0 beside listed levels."""
    unseen = float(_number(column, given.get("unseen", 0.0), "unseen"))
    if not 0 <= unseen < 1:
        raise ValueError(f"schema of column {column.name!r}: unseen must be a probability below 1, not {unseen:g}")
    return unseen


def numbers_of(column: ColumnSchema, present: pd.Series) -> Array:
    """A column of numbers or times as numbers: days for datetimes, seconds for time differences."""
    if column.kind == "datetime":
        return cells.days_and_seconds(present, cells.zone_of(cells.dtype_of(column.dtype)), column.name)[0]
    return (cells.seconds if column.kind == "timedelta" else cells.numbers)(present, column.name)


def check_given(column: ColumnSchema, given: Mapping[str, Any], present: pd.Series) -> None:
    """Raise a ValueError that names the first cell outside the user's bounds or off the user's grid."""
    x, ends = numbers_of(column, present), [column.lower, column.upper]
    if column.kind == "datetime":
        ends = [None if end is None else day_number(end) for end in ends]
    lower, upper = -np.inf if ends[0] is None else ends[0], np.inf if ends[1] is None else ends[1]
    wrong = {}
    if "lower" in given:
        wrong[f"is below its lower end {column.lower}"] = x < lower
    if "upper" in given:
        wrong[f"is above its upper end {column.upper}"] = x > upper
    if "resolution" in given and column.resolution and column.kind != "datetime":
        off = np.abs(x - on_grid(x, column.resolution))
        wrong[f"is no multiple of its resolution {column.resolution:g}"] = off > 1e-6 * column.resolution
    for what, rows in wrong.items():
        if rows.any():
            row = int(rows.argmax())
            raise ValueError(
                f"column {column.name!r}: {present.iloc[row]} in row {cells.label(present.index, row)!r} {what}: "
                "correct the schema, or the data"
            )


def _bound(column: ColumnSchema, value: Any, key: str) -> Any:
    if value is None:  # only the dtype's bound
        return limits(column.dtype)[key == "upper"] if column.kind in NUMERIC else None
    try:
        if column.kind == "datetime":
            return str(pd.Timestamp(value).date())
        if isinstance(value, datetime.timedelta | np.timedelta64) or (
            isinstance(value, str) and column.kind == "timedelta"
        ):
            return pd.Timedelta(value).total_seconds()
        end = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"schema of column {column.name!r}: {value!r} is no bound of a column of kind {column.kind!r}"
        ) from error
    if np.isnan(end) or end == (np.inf if key == "lower" else -np.inf):
        raise ValueError(f"schema of column {column.name!r}: {key} {value!r} leaves no value")
    return _bound(column, None, key) if np.isinf(end) else end


def _number(column: ColumnSchema, value: Any, key: str) -> Any:
    """A resolution or a probability, or a list of atoms, as floats."""
    try:
        result = [float(v) for v in value] if key == "atoms" else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"schema of column {column.name!r}: {key} cannot be {value!r}") from error
    if not np.isfinite(result).all():
        raise ValueError(f"schema of column {column.name!r}: {key} must be finite, not {value!r}")
    return result
