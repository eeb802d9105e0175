"""Levels of a column <-> codes."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import NULLS, Array
from flowlab.tables.schema.column import ColumnSchema

UNKNOWN = -1.0  # code of a level that training did not see


def take_levels(column: ColumnSchema, values: list[Any], codes: NDArray[np.int64]) -> pd.Series:
    """Levels in a column's dtype."""
    if column.dtype != "category":
        return cells.take(values, codes, column.dtype, NULLS[column.null])
    index = pd.Index(cells.take(column.declared, np.arange(len(column.declared)), column.levels_dtype))
    position = np.array([*(column.declared.index(v) for v in values if v is not None), -1])
    return pd.Series(pd.Categorical.from_codes(position[codes], dtype=pd.CategoricalDtype(index, column.ordered)))


def level_codes(column: ColumnSchema, values: pd.Series) -> Array:
    """The codes of a column's levels as floats: NaN for missing cells, -1 for levels that training did not have."""
    return codes_among(column.categories, values, column)


def codes_among(known: list[Any], values: pd.Series, column: ColumnSchema) -> Array:
    """The position of each cell in a list of levels."""
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
