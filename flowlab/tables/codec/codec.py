"""A DataFrame <-> the float64 matrix that the model sees, as a `Schema` says.

codec = Codec(Schema.infer(df))
rows = codec.encode(df)                     # codes of levels, numbers, NaN where a cell is missing
assert codec.decode(rows).equals(df)        # constants, duplicates and derived columns are put back
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from flowlab.tables.codec.columns import (
    Variable,
    column_variables,
    comparable,
    decode_column,
    derived_numbers,
    describe,
    encode_column,
    from_numbers,
    number_of,
    possible_cells,
    respell,
    supports,
)
from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import Array
from flowlab.tables.schema import Schema
from flowlab.tables.schema.column import LEVELLED, ColumnSchema
from flowlab.tables.schema.grid import on_grid
from flowlab.tables.schema.levels import UNKNOWN, codes_among, level_codes, log_seen, new_levels, take_levels


class Codec:
    """Tables of one schema as matrices, and back.

    Args:
        schema: The schema, without columns still to be decided (`Schema.check`).

    Attributes:
        variables: The columns of the matrix.

    Example:
        >>> df = pd.DataFrame({"n": [1, 2, 3], "city": ["Rome", None, "Oslo"], "year": [2024] * 3})
        >>> codec = Codec(Schema.infer(df))
        >>> [(variable.name, variable.classes, variable.nullable) for variable in codec.variables]
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
        self.variables: list[Variable] = []
        self._places: dict[Any, slice] = {}
        for index, column in enumerate(c for c in schema if c.modelled):
            variables = column_variables(column, index)
            self._places[column.name] = slice(len(self.variables), len(self.variables) + len(variables))
            self.variables += variables

    def encode(self, df: pd.DataFrame) -> Array:
        """The matrix (rows, variables) of a table: codes of levels (-1 if unseen), numbers, NaN for missing cells.

        Raises:
            ValueError: Columns are missing, unknown, or of other types than those of the schema.
        """
        self._check_names(df)
        matrix = np.empty((len(self.variables), len(df))).T  # columns lie together, as kernels want them
        for name, place in self._places.items():
            matrix[:, place] = encode_column(self.schema[name], df[name])
        return matrix

    def possible(self, df: pd.DataFrame, off_grid: bool = False) -> NDArray[np.bool_]:
        """Which rows can occur: those that agree with constants, copies, derived columns and closed sets of levels.

        Values must be within their supports, and on their grids unless `off_grid` says otherwise. A missing cell of a
        column that was complete in training agrees with everything.
        """
        matrix = self.encode(df)
        ok = np.ones(len(df), dtype=bool)
        for column in self.schema:
            if column.modelled:
                place = self._places[column.name]
                ok &= possible_cells(column, self.variables[place], matrix[:, place], df[column.name], off_grid)
            elif column.kind != "excluded":
                ok &= self._agrees(column, df)
        return ok

    def fits(self, matrix: Array, seen: bool = True) -> NDArray[np.bool_]:
        """Which rows of a matrix have derived columns within their supports and, with `seen`, their training ranges."""
        ok = np.ones(len(matrix), dtype=bool)
        for column in self.schema:
            if column.kind == "derived":
                ok &= supports(column, self._derived(column, matrix), 0.0, seen)
        return ok

    def _derived(self, column: ColumnSchema, matrix: Array) -> Array:
        """A derived column's numbers from the matrix, NaN where they cannot be told."""
        total = np.full(len(matrix), float(column.value))
        for source, weight in zip(column.sources, column.weights):
            if source not in self._places:
                return np.full(len(matrix), np.nan)
            own, variables = self.schema[source], self.variables[self._places[source]]
            total = total + weight * number_of(own, variables[0], matrix[:, self._places[source].start])
        step = column.resolution or column.decimals
        return on_grid(total, step) + 0.0 if step else total

    def decode(self, matrix: ArrayLike) -> pd.DataFrame:
        """The table of a matrix (rows, variables), with the data's columns, order, types and decimals.

        Excluded columns are left out.

        Raises:
            ValueError: The matrix has another width, or values that its columns cannot hold.
        """
        matrix = np.asarray(matrix, dtype=np.float64)
        if matrix.ndim != 2 or matrix.shape[1] != len(self.variables):
            raise ValueError(f"expected a matrix of shape (rows, {len(self.variables)}), got {matrix.shape}")
        done: dict[Any, pd.Series] = {}
        for column in self.schema:  # what a column is made of comes before it
            if column.modelled:
                place = self._places[column.name]
                done[column.name] = decode_column(column, self.variables[place], matrix[:, place])
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

    def log_seen(self, df: pd.DataFrame, matrix: Array) -> Array:
        """Log-probability (rows,) that each level is one that training had, or one that it did not have.

        Args:
            df: The table.
            matrix: Its matrix (rows, variables).
        """
        codes = self.codes(df, matrix)
        parts = [log_seen(codes[c.name], c.unseen, c.undeclared) for c in self.schema if c.unseen]
        return sum(parts, np.zeros(len(df)))

    @property
    def log_constants(self) -> float:
        """Log-probability that constant columns have their values in a row."""
        return float(sum(np.log1p(-column.unseen) for column in self.schema if column.kind == "constant"))

    def codes(self, df: pd.DataFrame, matrix: Array) -> dict[Any, Array]:
        """The codes (rows,) of every column of levels, constant or not; see `log_seen`."""
        found = {c.name: matrix[:, self._places[c.name].start] for c in self.schema if c.kind in LEVELLED}
        fixed = [c for c in self.schema if c.kind == "constant" and c.unseen]
        return found | {c.name: codes_among([c.value], df[c.name], c) for c in fixed}

    def encode_cells(self, name: Any, values: Any) -> Array:
        """Cells of one column, as a user gives them for a condition, as a matrix (cells, variables of that column).

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
            return np.full((len(listed), len(self.variables[self._places[name]])), np.nan)
        matrix = encode_column(column, listed)
        variables = self.variables[self._places[name]]
        wrong = ~possible_cells(column, variables, matrix, listed) | new_levels(column, matrix[:, 0])
        if wrong.any():
            raise ValueError(f"column {name!r} cannot be {listed[wrong].tolist()[0]!r}: {describe(column, variables)}")
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
            if column.unseen:
                return np.ones(len(df), dtype=bool)
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
            codes = np.where(new_levels(self.schema[column.duplicate_of], theirs), UNKNOWN, codes)  # may be recoded so
        else:
            theirs, codes = (comparable(column, values) for values in (source, ours))
        free = (np.isnan(codes) | np.isnan(theirs)) & (not column.nullable)
        return free | (codes == theirs) | (np.isnan(codes) & np.isnan(theirs))
