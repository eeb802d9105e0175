"""A DataFrame <-> the float64 matrix that the model sees, as a `Schema` says.

codec = Codec(Schema.infer(df))
rows = codec.encode(df)                     # codes of levels, numbers, NaN where a cell is missing
assert codec.decode(rows).equals(df)        # constants, duplicates and derived columns are put back
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from flowlab.tables import cells
from flowlab.tables.cells import DAY, NULLS, Array
from flowlab.tables.column import LEVELLED, NUMERIC, ColumnSchema, check_resolution, day_number
from flowlab.tables.encode import on_grid
from flowlab.tables.frame import numpy_dtype, rounding
from flowlab.tables.schema import Schema

UNKNOWN = -1.0  # code of a level that training did not see


@dataclass(frozen=True)
class Unit:
    """One variable of the model: a column has one or more adjacent ones.

    Attributes:
        name: The column's name, with the part of it if it has several units.
        column: The modelled column that it belongs to: 0, 1, 2 … without gaps.
        classes: Number of levels, 0 for a number.
        nullable: Whether the data miss it (NaN in the matrix). A column's units are missing together.
        resolution: Width of a grid cell in the unit's numbers, 0 for continuous ones.
        atoms: Repeated values off any grid.
        lower: Lower end of the support, -inf if it has none.
        upper: Upper end, inf if it has none.
    """

    name: str
    column: int
    classes: int = 0
    nullable: bool = False
    resolution: float = 0.0
    atoms: tuple[float, ...] = ()
    lower: float = -np.inf
    upper: float = np.inf


class Codec:
    """Tables of one schema as matrices, and back.

    Args:
        schema: The schema, without columns still to be decided (`Schema.check`).

    Attributes:
        units: The columns of the matrix.

    Example:
        >>> df = pd.DataFrame({"n": [1, 2, 3], "city": ["Rome", None, "Oslo"], "year": [2024] * 3})
        >>> codec = Codec(Schema.infer(df))
        >>> [(unit.name, unit.classes, unit.nullable) for unit in codec.units]
        [('n', 0, False), ('city', 2, True)]
        >>> codec.encode(df)
        array([[ 1.,  1.],
               [ 2., nan],
               [ 3.,  0.]])
        >>> codec.decode(codec.encode(df)).equals(df)
        True
    """

    def __init__(self, schema: Schema) -> None:
        schema.check()
        self.schema = schema
        self.units: list[Unit] = []
        self._places: dict[Any, slice] = {}
        for index, column in enumerate(c for c in schema if c.modelled):
            units = column_units(column, index)
            self._places[column.name] = slice(len(self.units), len(self.units) + len(units))
            self.units += units

    def encode(self, df: pd.DataFrame) -> Array:
        """The matrix (rows, units) of a table: codes for levels (-1 for one that training did not see), numbers, NaN where missing.

        Raises:
            ValueError: Columns are missing, unknown, or of another nature than those of the schema.
        """
        self._check_names(df)
        matrix = np.empty((len(df), len(self.units)))
        for name, place in self._places.items():
            matrix[:, place] = encode_column(self.schema[name], df[name])
        return matrix

    def possible(self, df: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows can come out of `decode`: they agree with constants, duplicates, derived columns, levels, supports and grids.

        A missing cell of a column that was complete in training is unknown, and agrees with everything.
        """
        matrix = self.encode(df)
        ok = np.ones(len(df), dtype=bool)
        for column in self.schema:
            if column.modelled:
                place = self._places[column.name]
                ok &= possible_cells(column, self.units[place], matrix[:, place], df[column.name])
            elif column.kind != "excluded":
                ok &= self._agrees(column, df)
        return ok

    def fits(self, matrix: Array) -> NDArray[np.bool_]:
        """Which rows of a matrix give derived columns values within their support, and within the range that they had in training."""
        ok = np.ones(len(matrix), dtype=bool)
        for column in self.schema:
            if column.kind == "derived":
                ok &= supports(column, self._derived(column, matrix), 0.0)
        return ok

    def _derived(self, column: ColumnSchema, matrix: Array) -> Array:
        """A derived column's numbers from the matrix, NaN where they cannot be told."""
        total = np.full(len(matrix), float(column.value))
        for source, weight in zip(column.sources, column.weights):
            if source not in self._places:
                return np.full(len(matrix), np.nan)
            own, units = self.schema[source], self.units[self._places[source]]
            total = total + weight * number_of(own, units[0], matrix[:, self._places[source].start])
        return on_grid(total, column.resolution) + 0.0 if column.resolution else total

    def decode(self, matrix: ArrayLike) -> pd.DataFrame:
        """The table of a matrix (rows, units): columns, order, types and decimals of the data, without excluded columns.

        Raises:
            ValueError: The matrix has another width, or values that its columns cannot hold.
        """
        matrix = np.asarray(matrix, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != len(self.units):
            raise ValueError(f"expected a matrix of shape (rows, {len(self.units)}), got {matrix.shape}")
        done: dict[Any, pd.Series] = {}
        for column in self.schema:  # what a column is made of comes before it
            if column.modelled:
                place = self._places[column.name]
                done[column.name] = decode_column(column, self.units[place], matrix[:, place])
            elif column.kind == "constant":
                code = 0 if column.value is not None else -1
                done[column.name] = take_levels(column, [column.value], np.full(len(matrix), code))
            elif column.kind == "duplicate":
                done[column.name] = self._repeat(column, done[column.duplicate_of])
            elif column.kind == "derived":
                done[column.name] = from_numbers(column, respell(column, derived_numbers(column, done)))
        frame = pd.DataFrame(dict(enumerate(done.values())), index=range(len(matrix)))
        frame.columns = self._labels(list(done))
        return frame

    def encode_cells(self, name: Any, values: Any) -> Array:
        """Cells of one column, as a user gives them for a condition, as a matrix (cells, units of that column).

        Args:
            name: The column.
            values: One cell or several; times may be strings ("2024-01-31 12:00"), None is a missing cell.

        Raises:
            ValueError: There is no such column in the model, or a value is none that the column can have.
        """
        if name not in self.schema:
            raise ValueError(f"there is no column {name!r}; there are {', '.join(repr(c.name) for c in self.schema)}")
        column = self.schema[name]
        if not column.modelled:
            raise ValueError(f"column {name!r} cannot be given: it is {column.kind} ({column.reason})")
        cell = values.dtype if isinstance(values, pd.Series) else None
        listed = values if cell is not None else pd.Series([values] if np.ndim(values) == 0 else list(values))
        if listed.isna().any() and not column.nullable:
            raise ValueError(f"column {name!r} cannot be missing: every cell of it was there in training")
        if cell is None and column.kind in ("datetime", "timedelta"):
            try:
                listed = cells.times(listed, cells.dtype_of(column.dtype))
            except (ValueError, TypeError) as error:
                raise ValueError(f"column {name!r}: {values!r} is not readable as times: {error}") from error
        listed = listed.reset_index(drop=True)
        if listed.isna().all():
            return np.full((len(listed), len(self.units[self._places[name]])), np.nan)
        matrix = encode_column(column, listed)
        units = self.units[self._places[name]]
        wrong = ~possible_cells(column, units, matrix, listed)
        if wrong.any():
            raise ValueError(f"column {name!r} cannot be {listed[wrong].tolist()[0]!r}: {describe(column, units)}")
        return matrix

    def to_json(self) -> dict[str, Any]:
        """The schema in JSON's types: all there is to know."""
        return self.schema.to_json()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Codec":
        """The codec that `to_json` wrote down."""
        return cls(Schema.from_json(data))

    def _check_names(self, df: pd.DataFrame) -> None:
        cells.check_frame(df)
        lacking = [c.name for c in self.schema if c.kind != "excluded" and c.name not in df.columns]
        strange = [name for name in df.columns if name not in self.schema]
        if lacking or strange:
            parts = [f"columns {lacking} are missing"] * bool(lacking)
            parts += [f"columns {strange} were not there in training"] * bool(strange)
            raise ValueError(f"the table does not have the columns of the schema: {'; '.join(parts)}")

    def _labels(self, names: list[Any]) -> pd.Index:
        dtype, label = self.schema.labels
        try:
            return pd.Index(names, dtype=cells.dtype_of(dtype), name=label)
        except (TypeError, ValueError):  # labels of another pandas
            return pd.Index(names, name=label)

    def _repeat(self, column: ColumnSchema, source: pd.Series) -> pd.Series:
        """A duplicate, from the column that it repeats."""
        if column.recoding:
            codes = level_codes(self.schema[column.duplicate_of], source)
            return take_levels(column, column.recoding, np.where(np.isnan(codes), -1, codes).astype(np.int64))
        if pd.api.types.is_numeric_dtype(source.dtype) or source.dtype == object:
            return from_numbers(column, cells.numbers(source, column.name))
        return source.copy()

    def _agrees(self, column: ColumnSchema, df: pd.DataFrame) -> NDArray[np.bool_]:
        """Which rows have the values that a constant, duplicate or derived column must have."""
        ours = df[column.name]
        unknown = ours.isna().to_numpy(dtype=bool) & (not column.nullable)
        if column.kind == "constant":
            if column.value is None:
                return ours.isna().to_numpy(dtype=bool)
            if ours.isna().all():
                return unknown
            if not isinstance(column.value, str | bool) or cells.dtype_of(column.dtype).kind in "Mm":
                same = comparable(column, take_levels(column, [column.value], np.zeros(1, dtype=np.int64)))
                return unknown | (np.abs(comparable(column, ours) - same) <= column.tolerance)
            return unknown | (codes_among([column.value], ours, column) == 0)
        if column.kind == "derived":
            x = cells.numbers(ours, column.name)
            expected = derived_numbers(column, df)
            close = np.abs(x - expected) <= column.tolerance
            return np.isnan(x) | np.isnan(expected) | (close & supports(column, x, column.tolerance, seen=False))
        source = df[column.duplicate_of]
        if column.recoding:
            theirs = level_codes(self.schema[column.duplicate_of], source)
            codes = codes_among(column.recoding, ours, column)
        else:
            theirs, codes = (comparable(column, values) for values in (source, ours))
        free = (np.isnan(codes) | np.isnan(theirs)) & (not column.nullable)
        return free | (codes == theirs) | (np.isnan(codes) & np.isnan(theirs))


def column_units(column: ColumnSchema, index: int) -> list[Unit]:
    """The units of a modelled column."""
    name, nullable = str(column.name), column.nullable
    if column.kind in LEVELLED:
        if not column.categories:
            raise ValueError(
                f"column {name!r} was made {column.kind!r}, and its levels are not known: Schema.infer(df, schema) learns them"
            )
        return [Unit(name, index, classes=len(column.categories), nullable=nullable)]
    if column.kind == "datetime":
        units = []
        if "day" in column.parts:
            low, high = (_day(column, end) for end in (column.lower, column.upper))
            lower, upper = -np.inf if low is None else low, np.inf if high is None else high
            part = " (day)" if len(column.parts) > 1 else ""
            units.append(Unit(name + part, index, nullable=nullable, resolution=1.0, lower=lower, upper=upper))
        if "time" in column.parts:
            part = " (time)" if len(column.parts) > 1 else ""
            top = DAY - column.resolution
            units.append(Unit(name + part, index, 0, nullable, column.resolution, tuple(column.atoms), 0.0, top))
        if not units:
            raise ValueError(
                f"column {name!r} was made a datetime, and its days are not known: Schema.infer(df, schema) learns them"
            )
        return units
    check_resolution(column)
    resolution = column.resolution
    if column.kind == "integer":
        resolution = resolution if resolution >= 1 else 1.0
    lower = -np.inf if column.lower is None else float(column.lower) - column.offset
    upper = np.inf if column.upper is None else float(column.upper) - column.offset
    if not lower <= upper:
        raise ValueError(f"column {name!r}: its lower end {lower:g} is above its upper end {upper:g}")
    return [Unit(name, index, 0, nullable, resolution, () if resolution else tuple(column.atoms), lower, upper)]


def _day(column: ColumnSchema, value: Any) -> float | None:
    """A day's number, counted from the column's origin."""
    return None if value is None else float(day_number(str(value)) - day_number(column.origin))


def encode_column(column: ColumnSchema, values: pd.Series) -> Array:
    """The cells of a modelled column as a matrix (rows, units)."""
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


def decode_column(column: ColumnSchema, units: list[Unit], block: Array) -> pd.Series:
    """The inverse of `encode_column`."""
    missing = np.isnan(block[:, 0])
    if missing.any() and not column.nullable:
        raise ValueError(
            f"column {column.name!r} has no missing cells, and row {int(missing.argmax())} of the matrix is NaN"
        )
    if column.kind in LEVELLED:
        codes = np.where(missing, -1, np.nan_to_num(block[:, 0]))
        wrong = ~missing & ((codes != np.round(codes)) | (codes < 0) | (codes >= units[0].classes))
        if wrong.any():
            raise ValueError(f"column {column.name!r}: {codes[wrong][0]:g} is no code of its {units[0].classes} levels")
        return take_levels(column, column.categories, codes.astype(np.int64))
    rounded = [
        on_grid(block[:, k], unit.resolution) if unit.resolution else block[:, k] for k, unit in enumerate(units)
    ]
    if column.kind in NUMERIC:
        numbers = number_of(column, units[0], block[:, 0])
        if column.decimals:
            numbers = on_grid(numbers, column.decimals)
        return from_numbers(column, respell(column, numbers + 0.0))
    if column.kind == "timedelta":
        seconds = on_grid(rounded[0], column.decimals) if column.decimals else rounded[0]
        return cells.differences(seconds, column.dtype, column.name)
    parts = dict(zip(column.parts, rounded))
    days = parts.get("day", np.where(missing, np.nan, 0.0)) + day_number(column.origin)
    return cells.clock_times(
        days, parts.get("time", np.where(missing, np.nan, column.value or 0.0)), column.dtype, column.name
    )


def respell(column: ColumnSchema, values: Array) -> Array:
    """Multiples of the resolution as the data write them, rounding errors and all."""
    if not column.spellings:
        return values
    known = np.array(column.spellings)  # sorted
    multiples = on_grid(known, column.resolution)
    place = np.searchsorted(multiples, values).clip(max=len(known) - 1)
    return np.where(multiples[place] == values, known[place], values)


def from_numbers(column: ColumnSchema, values: Array) -> pd.Series:
    """Numbers in a column's type."""
    return cells.from_numbers(values, column.dtype, column.name, NULLS[column.null])


def take_levels(column: ColumnSchema, values: list[Any], codes: NDArray[np.int64]) -> pd.Series:
    """Levels in a column's type."""
    if column.dtype != "category":
        return cells.take(values, codes, column.dtype, NULLS[column.null])
    index = pd.Index(cells.take(column.declared, np.arange(len(column.declared)), column.levels_dtype))
    position = np.array([*(column.declared.index(v) for v in values if v is not None), -1])
    return pd.Series(pd.Categorical.from_codes(position[codes], dtype=pd.CategoricalDtype(index, column.ordered)))


def level_codes(column: ColumnSchema, values: pd.Series) -> Array:
    """The codes of a column's levels as floats: NaN where missing, -1 for a level that training did not see."""
    return codes_among(column.categories, values, column)


def codes_among(known: list[Any], values: pd.Series, column: ColumnSchema) -> Array:
    """The place of each cell in a list of levels."""
    codes, found = cells.levels(values, column.name)
    texts = {isinstance(v, str) for v in known}, {isinstance(v, str) for v in found}
    if len(texts[0]) == len(texts[1]) == 1 and texts[0] != texts[1]:
        here, there = ("strings" if True in side else "numbers or booleans" for side in reversed(texts))
        raise ValueError(
            f"column {column.name!r}: its levels are {there}, got {here} ({values.dtype}): convert it with .astype(...)"
        )
    # 1, 1.0 and True are one level unless the column tells them apart.
    typed = len(set(known)) < len(known)
    place = {(type(v), v) if typed else v: float(k) for k, v in enumerate(known)}
    table = np.array([*(place.get((type(v), v) if typed else v, UNKNOWN) for v in found), np.nan])
    return table[codes]


def derived_numbers(column: ColumnSchema, table: Mapping[Any, pd.Series] | pd.DataFrame) -> Array:
    """A derived column's numbers from those that it is made of."""
    total: Any = column.value
    for source, weight in zip(column.sources, column.weights):
        if source not in table:
            raise ValueError(
                f"column {column.name!r} is made of {source!r}, which is left out: leave both out, or neither"
            )
        total = total + weight * cells.numbers(table[source], source)
    if not column.sources:
        total = np.full(len(next(iter(table.values()))) if len(table) else 0, float(total))
    return on_grid(total, column.resolution) + 0.0 if column.resolution else total


def supports(column: ColumnSchema, x: Array, slack: float, seen: bool = True) -> NDArray[np.bool_]:
    """Which numbers lie within a column's support, and with `seen` within the range that it had in training; NaN does."""
    ok = np.ones(len(x), dtype=bool)
    for end, sign in ((column.lower, 1), (column.upper, -1)):
        if end is not None:
            ok &= ~(sign * (x - end) < -slack)
    if seen and column.seen:
        ok &= ~((x < column.seen[0] - column.tolerance) | (x > column.seen[1] + column.tolerance))
    return ok


def number_of(column: ColumnSchema, unit: Unit, x: Array) -> Array:
    """The numbers of a column that its unit's numbers stand for: on their grid, and moved back to where they were."""
    if unit.classes:  # false and true
        return x
    rounded = on_grid(x, unit.resolution) if unit.resolution else x
    return rounded + column.offset if column.offset else rounded


def possible_cells(column: ColumnSchema, units: list[Unit], matrix: Array, values: pd.Series) -> NDArray[np.bool_]:
    """Which cells of a modelled column are among the values that it can have, from the matrix of its units; missing ones are."""
    ok = fixed_parts_agree(column, values) if column.kind == "datetime" else np.ones(len(values), dtype=bool)
    precision = 8 * rounding(numpy_dtype(column.dtype)) if column.kind in NUMERIC else 1e-14
    for unit, x in zip(units, matrix.T):
        if unit.classes:
            fine = x >= 0
        else:
            slack = 1e-6 * unit.resolution
            fine = (x >= unit.lower - slack) & (x <= unit.upper + slack)
            if unit.resolution:
                fine &= np.abs(x - on_grid(x, unit.resolution)) <= slack + precision * np.abs(x)
        ok &= fine | np.isnan(x)
    return ok


def fixed_parts_agree(column: ColumnSchema, values: pd.Series) -> NDArray[np.bool_]:
    """Which times have the day, or the time of day, that all had in training."""
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


def describe(column: ColumnSchema, units: list[Unit]) -> str:
    """What values a column can have, for messages."""
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
    unit = units[0]
    steps = f" in steps of {unit.resolution:g}" if unit.resolution else ""
    return f"it holds numbers from {unit.lower + column.offset:.12g} to {unit.upper + column.offset:.12g}{steps}"
