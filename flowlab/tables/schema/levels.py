"""Levels of a column <-> codes."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import NULLS, Array
from flowlab.tables.schema.column import LEVELLED, ColumnSchema

UNKNOWN = -1.0  # code of a level that training did not see


def new_levels(column: ColumnSchema, codes: Array) -> NDArray[np.bool_]:
    """Which codes (n,), of a column's first variable, are those of levels that training did not see."""
    return (codes == UNKNOWN) & (column.kind in LEVELLED)


def unseen_mass(counts: NDArray[np.int64]) -> float:
    """The probability of a level that is not among those counted: nearly the share of those that occur once.

    Source: Good 1953, "The population frequencies of species and the estimation of population parameters" (Turing's
    estimate), with half a cell more, so that it is neither 0 nor 1.

    Example:
        >>> unseen_mass(np.array([5, 3, 1]))
        0.15
    """
    return float(((counts == 1).sum() + 0.5) / (counts.sum() + 1))


def log_seen(codes: Array, unseen: float, undeclared: int) -> Array:
    """Log-probability (n,) of what codes say: a level that training had, or a certain other one; 0 for missing cells.

    Args:
        codes: The codes (n,).
        unseen: Probability of a level that training did not have.
        undeclared: Number of such levels that are told apart.
    """
    new, missing = codes == UNKNOWN, np.isnan(codes)
    return np.where(missing, 0.0, np.where(new, np.log(unseen / undeclared), np.log1p(-unseen)))


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
