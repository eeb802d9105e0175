"""Conditions on rows, as users give them and as models take them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from flowlab.tables.codec.table import Table
from flowlab.tables.frames.arrow import to_pandas
from flowlab.tables.schema.column import ColumnSchema
from flowlab.tables.schema.levels import take_levels


class ConditionError(ValueError):
    """A condition has no probability, or next to none, under the model."""


@dataclass
class Conditions:
    """Conditions on the variables of a row.

    Attributes:
        values: Known values by variable; NaN for a missing cell.
        allowed: Closed intervals of numbers or codes by variable.
        text: The condition as text for messages, by variable.
        derived: Conditions on columns that are not modelled, by name: rows are rejected that do not keep them.
    """

    values: dict[int, float] = field(default_factory=dict)
    allowed: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    derived: dict[Any, Any] = field(default_factory=dict)


def read_given(given: Any) -> pd.DataFrame | dict[Any, Any]:
    """Normalise conditions: a table with one row of known values per row, or a dict of a condition per column.

    A condition is a value, a pair (low, high) or a list of values.

    Raises:
        TypeError: The argument is neither a table, nor a dict or Series of conditions.
        ValueError: A column's condition has another form.
    """
    given = to_pandas(given)
    if given is None:
        return {}
    if isinstance(given, pd.DataFrame):
        return given
    if isinstance(given, list | tuple) and given and all(isinstance(row, Mapping | pd.Series) for row in given):
        names = list(given[0].keys())
        if any(list(row.keys()) != names for row in given):
            raise ValueError(f"given: all rows of conditions must be on the same columns, those of the first: {names}")
        return pd.DataFrame([dict(row) for row in given])
    if not isinstance(given, Mapping | pd.Series):
        raise TypeError(
            "given must be a dict from column to condition, or a table with one row of conditions per row, not a "
            f"{type(given).__name__}"
        )
    return {name: plain_condition(name, condition) for name, condition in given.items()}


def read_values(given: Any) -> pd.DataFrame:
    """Known cells of rows, from a table or a dict of one value per column.

    Raises:
        ValueError: A column has several values.
    """
    conditions = read_given(given)
    if isinstance(conditions, pd.DataFrame):
        return conditions
    several = [name for name, condition in conditions.items() if not is_single(condition)]
    if several:
        raise ValueError(f"column {several[0]!r}: conditional wants one value of each given column, not several")
    return pd.DataFrame({name: [value] for name, value in conditions.items()}, index=[0])


def plain_condition(name: Any, condition: Any) -> Any:
    """A condition as a value, a tuple (low, high) or a list, from any container of values."""
    if isinstance(condition, torch.Tensor) or (isinstance(condition, np.ndarray) and condition.ndim == 0):
        condition = condition.tolist()
    if isinstance(condition, pd.Interval):
        condition = (condition.left, condition.right)
    if isinstance(condition, np.bool_ | np.integer | np.floating):
        return condition.item()
    if pd.api.types.is_scalar(condition):
        return condition
    if isinstance(condition, Mapping) or not pd.api.types.is_list_like(condition) or getattr(condition, "ndim", 1) != 1:
        raise ValueError(
            f"column {name!r}: a condition is a value, a pair (low, high), or a list or set of values, not "
            f"{short(condition)}"
        )
    values = [plain_condition(name, value) for value in condition]
    if any(isinstance(value, tuple | list) for value in values):
        raise ValueError(f"column {name!r}: a condition lists single values, not {short(condition)}")
    return tuple(values) if isinstance(condition, tuple) else values


def short(condition: Any) -> str:
    """A condition as text of at most 80 characters."""
    text = repr(condition)
    return text if len(text) <= 80 else text[:77] + "..."


def read_conditions(table: Table, given: Mapping[Any, Any]) -> Conditions:
    """The conditions of a dict from columns to a value, a (low, high) pair or a list of values.

    Raises:
        ValueError: A column cannot be given, or cannot have such a value; the message names it.
    """
    conditions = Conditions()
    for name, condition in given.items():
        listed, low_high = listed_values(name, condition)
        single = is_single(condition)
        kind = table.schema[name].kind if name in table.schema else None
        if kind == "constant":
            check_constant(table.schema[name], condition)
            continue
        if kind in ("derived", "duplicate"):
            conditions.derived[name] = condition
            continue
        variables = range(len(table.variables))[table.place(name)]
        if low_high:
            rows = interval_ends(table, name, condition)
        else:
            rows = table.codec.encode_cells(name, listed[0] if single else listed)
        for j in variables:
            conditions.text[j] = f"{name} = {condition!r}" if single else f"{name} in {short(condition)}"
        if single:
            conditions.values |= {j: float(x) for j, x in zip(variables, rows[0], strict=True)}
        elif low_high:
            if not rows[0, 0] <= rows[1, 0]:
                raise ValueError(f"column {name!r}: the interval {condition!r} is empty")
            # Of a time's variables, day and seconds, only the day is restricted; `sampling.within` checks the ends.
            conditions.allowed[variables[0]] = [(float(rows[0, 0]), float(rows[1, 0]))]
        else:
            first = rows[:, 0]
            if np.isnan(first).any():
                if not table.variables[variables[0]].classes:
                    raise ValueError(f"column {name!r}: ask for missing cells alone, not among other values")
                first = np.where(np.isnan(first), table.variables[variables[0]].classes, first)
            conditions.allowed[variables[0]] = [(float(x), float(x)) for x in np.unique(first)]
    return conditions


def is_single(condition: Any) -> bool:
    """Whether a condition is one value."""
    return not isinstance(condition, tuple | list)


def listed_values(name: Any, condition: Any) -> tuple[list[Any], bool]:
    """The values that a condition on a column lists, and whether they are the ends of an interval."""
    low_high = isinstance(condition, tuple)
    if low_high and len(condition) != 2:
        raise ValueError(f"column {name!r}: an interval is a pair (low, high), not {condition!r}")
    listed = [condition] if is_single(condition) else list(condition)
    if not listed:
        raise ValueError(f"column {name!r}: the set of allowed values is empty")
    return listed, low_high


def check_constant(column: ColumnSchema, condition: Any) -> None:
    """Raise a ValueError for a condition that a constant column does not keep."""
    value = take_levels(column, [column.value], np.array([0 if column.value is not None else -1]))
    if not keeps(value, condition).all():
        raise ValueError(f"column {column.name!r} cannot be {short(condition)}: it is always {column.value!r}")


def inside(matrix: NDArray[np.float64], conditions: Conditions) -> NDArray[np.bool_]:
    """Which rows (n, variables) keep conditions on modelled columns."""
    kept = np.ones(len(matrix), dtype=bool)
    for j, value in conditions.values.items():
        kept &= np.abs(matrix[:, j] - value) <= 1e-9 * abs(value)
    for j, intervals in conditions.allowed.items():
        kept &= np.any([(matrix[:, j] >= low) & (matrix[:, j] <= high) for low, high in intervals], axis=0)
    return kept


def keeps(values: pd.Series, condition: Any) -> NDArray[np.bool_]:
    """Which cells of a column that is not modelled keep a condition."""
    kept = pd.Series(True, index=values.index)
    if isinstance(condition, tuple):
        for end, side in zip(condition, (values.ge, values.le), strict=True):
            if end is not None and not pd.isna(end):
                kept &= side(end).fillna(False).astype(bool)
        return np.asarray(kept & values.notna(), dtype=bool)
    wanted = [condition] if is_single(condition) else condition
    if pd.api.types.is_numeric_dtype(values.dtype) and all(isinstance(value, int | float) for value in wanted):
        x = values.to_numpy(dtype=float, na_value=np.nan)[:, None]
        return np.asarray(np.isclose(x, np.array(wanted, dtype=float), rtol=1e-9, atol=0.0, equal_nan=True).any(1))
    return np.asarray(values.isin(wanted) | (values.isna() & any(map(pd.isna, wanted))), dtype=bool)


def interval_ends(table: Table, name: Any, condition: tuple[Any, Any]) -> np.ndarray:
    """Both ends of an interval as numbers (2, 1) of the column's first variable; None, or infinity, is an open end."""
    column, variable = table.codec.schema[name], table.variables[table.place(name)][0]
    if variable.classes and not column.ordered:
        raise ValueError(f"column {name!r} has levels without an order: give a list of them, not an interval")
    open_ends = (0.0, variable.classes - 1.0) if variable.classes else (variable.lower, variable.upper)
    out = np.array(open_ends)[:, None]
    for i, end in enumerate(condition):
        if not (end is None or (isinstance(end, float) and math.isinf(end))):
            out[i] = table.encode_end(name, end)
    if variable.resolution:  # the multiples within
        out[0], out[1] = np.ceil(out[0] / variable.resolution - 1e-6), np.floor(out[1] / variable.resolution + 1e-6)
        out *= variable.resolution
    out[0], out[1] = max(out[0, 0], open_ends[0]), min(out[1, 0], open_ends[1])
    return out
