"""The cells of one column <-> its variables in the model's matrix."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import DAY, NULLS, Array
from flowlab.tables.frames.validation import numpy_dtype, rounding
from flowlab.tables.schema.column import LEVELLED, NUMERIC, ColumnSchema, check_resolution, day_number
from flowlab.tables.schema.grid import on_grid
from flowlab.tables.schema.levels import UNKNOWN, level_codes, take_levels


@dataclass(frozen=True)
class Variable:
    """One variable of the model: a column has one or more adjacent ones.

    Attributes:
        name: The column's name, with the variable's part if the column has several variables.
        column: The modelled column that it belongs to: 0, 1, 2 … without gaps.
        classes: Number of levels, 0 for a number.
        nullable: Whether the data have missing cells, NaN in the matrix. A column's variables are missing together.
        resolution: Width of a grid cell in the variable's numbers, 0 for continuous ones.
        atoms: Repeated values off any grid.
        lower: Lower end of the support, -inf if it has none.
        upper: Upper end, inf if it has none.
        atom_width: Width of the cell around each atom when a density is needed; 0 if it is not known.
        coarse: Width of the cells of a coarser grid on which nearly all values are, 0 for none.
        unseen: Probability of a level that training did not have, code `UNKNOWN`; 0 where there can be none.
        declared: Number of levels that are told apart, whether training has them or not; 0 where they are not known.
    """

    name: str
    column: int
    classes: int = 0
    nullable: bool = False
    resolution: float = 0.0
    atoms: tuple[float, ...] = ()
    lower: float = -np.inf
    upper: float = np.inf
    atom_width: float = 0.0
    coarse: float = 0.0
    unseen: float = 0.0
    declared: int = 0

    @property
    def step(self) -> float:
        """Width of the cells over which densities of numbers are spread, 0 for continuous values."""
        return self.coarse or self.resolution

    def log_width(self, x: Array) -> Array:
        """Log-widths (n,) of the cells of values x that have a probability; 0 for all others.

        Raises:
            ValueError: The width of the cells of repeated values is not known, as in an early model file.
        """
        if self.resolution:
            return np.where(np.isnan(x), 0.0, np.log(self.resolution))
        if not self.atoms:
            return np.zeros(len(x))
        if not self.atom_width:
            raise ValueError(
                f"column {self.name!r}: the model's file, of an early version, does not say how wide the cells of its "
                "repeated values are: fit the model anew"
            )
        return np.where(np.isin(x, self.atoms), np.log(self.atom_width), 0.0)


def column_variables(column: ColumnSchema, index: int) -> list[Variable]:
    """The variables of a modelled column."""
    name, nullable = str(column.name), column.nullable
    if column.kind in LEVELLED:
        if not column.categories:
            raise ValueError(
                f"column {name!r} was made {column.kind!r}, and its levels are not known: Schema.infer(df, schema) "
                "learns them"
            )
        classes, declared = len(column.categories), len(column.declared)
        return [Variable(name, index, classes, nullable, unseen=column.unseen, declared=declared)]
    if column.kind == "datetime":
        variables = []
        if "day" in column.parts:
            low, high = (_day(column, end) for end in (column.lower, column.upper))
            lower, upper = -np.inf if low is None else low, np.inf if high is None else high
            part = " (day)" if len(column.parts) > 1 else ""
            variables.append(Variable(name + part, index, nullable=nullable, resolution=1.0, lower=lower, upper=upper))
        if "time" in column.parts:
            part = " (time)" if len(column.parts) > 1 else ""
            top = DAY - column.resolution
            cell = column.resolution, tuple(column.atoms), 0.0, top, column.atom_width
            variables.append(Variable(name + part, index, 0, nullable, *cell))
        if not variables:
            raise ValueError(
                f"column {name!r} was made a datetime, and its days are not known: Schema.infer(df, schema) learns them"
            )
        return variables
    check_resolution(column)
    resolution = column.resolution
    if column.kind == "integer":
        resolution = resolution if resolution >= 1 else 1.0
    lower = -np.inf if column.lower is None else float(column.lower) - column.offset
    upper = np.inf if column.upper is None else float(column.upper) - column.offset
    if not lower <= upper:
        raise ValueError(f"column {name!r}: its lower end {lower:g} is above its upper end {upper:g}")
    atoms = () if resolution else tuple(column.atoms)
    grid = resolution, atoms, lower, upper, column.atom_width, column.coarse
    return [Variable(name, index, 0, nullable, *grid)]


def _day(column: ColumnSchema, value: Any) -> float | None:
    """A day's number, counted from the column's origin."""
    return None if value is None else float(day_number(str(value)) - day_number(column.origin))


def encode_column(column: ColumnSchema, values: pd.Series) -> Array:
    """The cells of a modelled column as a matrix (rows, variables)."""
    if column.kind in LEVELLED:
        return level_codes(column, values)[:, None]
    if values.isna().all():  # of whatever dtype
        return np.full((len(values), len(column.parts) or 1), np.nan)
    if column.kind in NUMERIC:
        x = cells.numbers(values, column.name)
        return (x - column.offset if column.offset else x)[:, None]
    if column.kind == "timedelta":
        return cells.seconds(values, column.name)[:, None]
    days, clock = cells.days_and_seconds(values, cells.zone_of(cells.dtype_of(column.dtype)), column.name)
    days = days - day_number(column.origin)
    return np.column_stack([{"day": days, "time": clock}[part] for part in column.parts])


def decode_column(column: ColumnSchema, variables: list[Variable], block: Array) -> pd.Series:
    """The inverse of `encode_column`."""
    missing = np.isnan(block[:, 0])
    if missing.any() and not column.nullable:
        raise ValueError(
            f"column {column.name!r} has no missing cells, and row {int(missing.argmax())} of the matrix is NaN"
        )
    if column.kind in LEVELLED:
        codes = np.where(missing, -1, np.nan_to_num(block[:, 0]))
        wrong = ~missing & ((codes != np.round(codes)) | (codes < 0) | (codes >= variables[0].classes))
        if wrong.any():
            raise ValueError(
                f"column {column.name!r}: {codes[wrong][0]:g} is no code of its {variables[0].classes} levels"
            )
        return take_levels(column, column.categories, codes.astype(np.int64))
    rounded = [number_of(column, variable, x) for variable, x in zip(variables, block.T)]
    if column.kind in NUMERIC:
        return from_numbers(column, respell(column, rounded[0] + 0.0))
    if column.kind == "timedelta":
        return cells.differences(rounded[0], column.dtype, column.name)
    parts = dict(zip(column.parts, rounded))
    days = parts.get("day", np.where(missing, np.nan, 0.0)) + day_number(column.origin)
    return cells.clock_times(
        days, parts.get("time", np.where(missing, np.nan, column.value or 0.0)), column.dtype, column.name
    )


def respell(column: ColumnSchema, values: Array) -> Array:
    """Multiples of the resolution as they are in the data, with their rounding errors."""
    if not column.spellings:
        return values
    known = np.array(column.spellings)  # sorted
    multiples = on_grid(known, column.resolution)
    place = np.searchsorted(multiples, values).clip(max=len(known) - 1)
    return np.where(multiples[place] == values, known[place], values)


def from_numbers(column: ColumnSchema, values: Array) -> pd.Series:
    """Numbers in a column's type."""
    return cells.from_numbers(values, column.dtype, column.name, NULLS[column.null])


def derived_numbers(column: ColumnSchema, table: Mapping[Any, pd.Series] | pd.DataFrame) -> Array:
    """A derived column's numbers from its sources' cells."""
    lacking = [source for source in column.sources if source not in table]
    if lacking:
        raise ValueError(
            f"column {column.name!r} is made of {lacking[0]!r}, which is left out: leave both out, or neither"
        )
    if not column.sources:
        rows = len(next(iter(table.values()))) if len(table) else 0
        return combined(column, {}) + np.zeros(rows)
    return combined(column, {source: cells.numbers(table[source], source) for source in column.sources})


def combined(column: ColumnSchema, numbers: Mapping[Any, Array]) -> Array:
    """A derived column's numbers from its sources' numbers."""
    total: Any = column.value
    for source, weight in zip(column.sources, column.weights):
        total = total + weight * numbers[source]
    step = column.resolution or column.decimals
    return on_grid(total, step) + 0.0 if step else np.asarray(total)


def supports(column: ColumnSchema, x: Array, slack: float, seen: bool = True) -> NDArray[np.bool_]:
    """Which numbers, or NaN, lie within a column's support and, with `seen`, within its range in training."""
    ok = np.ones(len(x), dtype=bool)
    for end, sign in ((column.lower, 1), (column.upper, -1)):
        if end is not None:
            ok &= ~(sign * (x - end) < -slack)
    if seen and column.seen:
        ok &= ~((x < column.seen[0] - column.tolerance) | (x > column.seen[1] + column.tolerance))
    return ok


def number_of(column: ColumnSchema, variable: Variable, x: Array) -> Array:
    """A column's numbers from those of its variable: rounded to grid or decimals, with the offset added back."""
    if variable.resolution:
        x = on_grid(x, variable.resolution)
    elif column.decimals:  # repeated values are as they are in the data
        x = np.where(np.isin(x, variable.atoms), x, on_grid(x, column.decimals))
    return x + column.offset if column.offset else x


def possible_cells(
    column: ColumnSchema, variables: list[Variable], matrix: Array, values: pd.Series, off_grid: bool = False
) -> NDArray[np.bool_]:
    """Which cells of a modelled column are missing or possible values, from the matrix of its variables.

    With `off_grid`, values between those of a grid are possible.
    """
    ok = fixed_parts_agree(column, values) if column.kind == "datetime" else np.ones(len(values), dtype=bool)
    precision = 8 * rounding(numpy_dtype(column.dtype)) if column.kind in NUMERIC else 1e-14
    for variable, x in zip(variables, matrix.T):
        if variable.classes:
            fine = (x >= 0) | ((x == UNKNOWN) & (variable.unseen > 0))
        else:
            slack = 1e-6 * variable.resolution
            fine = (x >= variable.lower - slack) & (x <= variable.upper + slack)
            if variable.resolution and not off_grid:
                off = np.abs(x - on_grid(x, variable.resolution))
                fine &= off <= slack + precision * np.abs(x)
        ok &= fine | np.isnan(x)
    return ok


def fixed_parts_agree(column: ColumnSchema, values: pd.Series) -> NDArray[np.bool_]:
    """Which times have the day, or the time of day, that all training rows share."""
    if values.isna().all() or len(column.parts) == 2:
        return np.ones(len(values), dtype=bool)
    days, clock = cells.days_and_seconds(values, cells.zone_of(cells.dtype_of(column.dtype)), column.name)
    same = days == day_number(column.origin) if column.parts == ["time"] else clock == column.value
    return same | np.isnan(days)


def comparable(column: ColumnSchema, values: pd.Series) -> Array:
    """One number per cell: equal numbers for equal cells."""
    found = cells.family(values, column.name)
    if found == "datetime":
        days, clock = cells.days_and_seconds(values, cells.zone_of(cells.dtype_of(column.dtype)), column.name)
        return days * DAY + clock
    return cells.seconds(values, column.name) if found == "timedelta" else cells.numbers(values, column.name)


def describe(column: ColumnSchema, variables: list[Variable]) -> str:
    """The values that a column can have, as text for messages."""
    if column.kind in LEVELLED:
        more = len(column.categories) - 10
        return f"its levels are {', '.join(map(repr, column.categories[:10]))}" + (
            f" and {more} more" if more > 0 else ""
        )
    if column.kind == "datetime":
        ends = f" from {column.lower or '…'} to {column.upper or '…'}" if column.lower or column.upper else ""
        return f"it holds times{ends} in steps of {column.resolution:g} s" + (
            "" if "day" in column.parts else f" on {column.origin}"
        )
    variable = variables[0]
    steps = f" in steps of {variable.resolution:g}" if variable.resolution else ""
    return (
        f"it holds numbers from {variable.lower + column.offset:.12g} to {variable.upper + column.offset:.12g}{steps}"
    )
