"""Tables made comparable: every column becomes numbers, the same way in each table, whatever its type and values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api import types

Array = NDArray[np.float64]
Cells = NDArray[np.int64]

BINS = 10  # of a numeric column in pair tables
LEVELS = 20  # of a category column in pair tables; rarer ones are pooled
ORDINAL = 255  # levels that a histogram tree can take as categories
LARGEST = 1e300  # what histogram trees see in place of infinity
CHUNK = 10_000  # rows counted at a time
INFERRED = {  # kinds by what pandas infers from the cells of columns of type object
    **dict.fromkeys(("integer", "floating", "mixed-integer-float", "decimal"), "number"),
    **dict.fromkeys(("datetime64", "datetime", "date"), "time"),
    **dict.fromkeys(("timedelta64", "timedelta"), "duration"),
}


@dataclass
class Column:
    """One column of several tables, as numbers that mean the same in each.

    Attributes:
        name: The column's name.
        kind: "number"; "time" (seconds since 1970 UTC); "duration" (seconds); "category" (positions in `levels`). The
            first table decides.
        values: Of each table, missing cells as NaN.
        levels: Of a category, as text: in their order if the first table has one, else sorted.
        known: Which levels the first table has, or declares.
    """

    name: Any
    kind: str
    values: list[Array]
    levels: list[str]
    known: NDArray[np.bool_]

    def cells(self) -> tuple[list[Cells], int]:
        """Each table's values in at most 22 shared cells: cell 0 is a missing value. Also how many cells there are.

        Numbers fall in ten cells between the first table's deciles (into a cell each, if there are no more than ten
        values); categories that are not among its twenty most frequent ones share the last cell.
        """
        first = self.values[0][~np.isnan(self.values[0])]
        if self.kind == "category":
            counts = np.bincount(first.astype(int), minlength=len(self.levels))
            frequent = np.argsort(-counts, kind="stable")[:LEVELS]
            cell = np.full(len(self.levels) + 1, LEVELS + 1)
            cell[frequent] = np.arange(1, len(frequent) + 1)
            return [_filled(x, lambda x: cell[x.astype(int)]) for x in self.values], LEVELS + 2
        edges = np.unique(first)
        if len(edges) > BINS:
            edges = np.unique(np.quantile(first, np.arange(1, BINS) / BINS, method="inverted_cdf"))
        else:
            edges = edges[:-1]
        return [_filled(x, lambda x: 1 + np.searchsorted(edges, x)) for x in self.values], len(edges) + 2


def align(*tables: pd.DataFrame) -> list[Column]:
    """The columns of the first table, in all tables; further columns of the others are left out.

    Raises:
        ValueError: A table has two columns of one name, or lacks a column of the first one.
    """
    for table in tables:
        if not table.columns.is_unique:
            twice = table.columns[table.columns.duplicated()].unique().tolist()
            raise ValueError(f"several columns have the same name {twice}: rename or drop them")
        lacking = [name for name in tables[0].columns if name not in table.columns]
        if lacking:
            raise ValueError(
                f"no column {', '.join(map(repr, lacking))} in a table that is compared with one that has it"
            )
    return [_align(name, [table[name] for table in tables]) for name in tables[0].columns]


def kind(column: pd.Series) -> str:
    """What a column is compared as: "number", "time", "duration" or "category".

    Example:
        >>> kind(pd.Series([1, None, 3], dtype="Int64")), kind(pd.Series([True, False])), kind(pd.Series(["a", None]))
        ('number', 'category', 'category')
    """
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype) or types.is_bool_dtype(dtype) or types.is_complex_dtype(dtype):
        return "category"
    if types.is_datetime64_any_dtype(dtype):
        return "time"
    if types.is_timedelta64_dtype(dtype):
        return "duration"
    if types.is_numeric_dtype(dtype):
        return "number"
    return INFERRED.get(types.infer_dtype(column, skipna=True), "category")


def matrix(columns: Sequence[Column], table: int) -> tuple[Array, NDArray[np.bool_]]:
    """Stack one table's values (rows, columns), clipped to ±1e300, and mark the columns to split as categories."""
    categorical = [column.kind == "category" and len(column.levels) <= ORDINAL for column in columns]
    return np.column_stack([column.values[table] for column in columns]).clip(-LARGEST, LARGEST), np.array(categorical)


def pair_counts(columns: Sequence[Column]) -> tuple[list[Array], Cells]:
    """Count the pairs of cells of all columns in each table.

    Returns:
        A matrix (cells, cells) for each table; and where each column's cells start.
    """
    cells, sizes = zip(*(column.cells() for column in columns))
    starts = np.cumsum([0, *sizes[:-1]])
    tables = [np.column_stack(table) + starts for table in zip(*cells)]
    return [_pair_counts(table, sum(sizes)) for table in tables], starts


def _pair_counts(cells: Cells, size: int) -> Array:
    total = np.zeros((size, size))
    for start in range(0, len(cells), CHUNK):
        chunk = cells[start : start + CHUNK]
        occupied = np.zeros((len(chunk), size), dtype=np.float32)
        occupied[np.arange(len(chunk))[:, None], chunk] = 1
        total += occupied.T @ occupied
    return total


def _align(name: Any, columns: list[pd.Series]) -> Column:
    first = columns[0]
    what = kind(first)
    if what != "category":
        return Column(name, what, [_numbers(column, what) for column in columns], [], np.array([], dtype=bool))
    coded = [_labelled(column) for column in columns]
    declared = [_label(level) for level in first.cat.categories] if isinstance(first.dtype, pd.CategoricalDtype) else []
    known = {*declared, *coded[0][1]}
    levels = list(dict.fromkeys([*declared, *sorted({level for _, seen in coded for level in seen})]))
    place = {level: float(j) for j, level in enumerate(levels)}
    values = [np.array([*(place[level] for level in seen), np.nan])[codes] for codes, seen in coded]
    return Column(name, what, values, levels, np.array([level in known for level in levels], dtype=bool))


def _numbers(column: pd.Series, what: str) -> Array:
    """Values as float64, NaN where there is none or where it cannot be read as what the first table has."""
    readable = types.is_numeric_dtype(column.dtype) or kind(column) in ("time", "duration")
    if isinstance(column.dtype, pd.ArrowDtype) or not readable:
        column = column.astype(object)
    if what == "number":
        return pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    if what == "duration":
        durations = pd.to_timedelta(column, errors="coerce")
    else:
        epoch = pd.Timestamp(0, tz="UTC")
        durations = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601") - epoch
    return durations.dt.total_seconds().to_numpy(dtype=np.float64, na_value=np.nan)


def _labelled(column: pd.Series) -> tuple[Cells, list[str]]:
    """Codes, -1 for missing cells, and the text of each code."""
    try:
        codes, seen = pd.factorize(column)
    except TypeError:  # cells that cannot be hashed, such as lists
        codes, seen = pd.factorize(column.map(str, na_action="ignore"))
    return codes, [_label(level) for level in seen]


def _label(level: Any) -> str:
    """The same text for 1 and 1.0: a missing cell turns the one into the other in some tables."""
    return str(int(level)) if isinstance(level, float | np.floating) and float(level).is_integer() else str(level)


def _filled(values: Array, to_cell: Any) -> Cells:
    """Cell 0 for missing values, and what `to_cell` says for the others."""
    present = ~np.isnan(values)
    cells = np.zeros(len(values), dtype=np.int64)
    cells[present] = to_cell(values[present])
    return cells
