"""Descriptions of tables in files, validated on loading, so that nothing in a hostile file can fail later."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from flowlab.hints import fits, hints_of, made, shown
from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import NULLS
from flowlab.tables.schema.column import KINDS, ColumnSchema

LABEL = str | int | float | bool  # what columns and levels are called in JSON
LISTS = {  # annotations that the classes leave open
    "name": LABEL,
    "lower": float | str | None,
    "upper": float | str | None,
    "value": LABEL | None,
    "duplicate_of": LABEL | None,
    "categories": list[LABEL],
    "declared": list[LABEL],
    "recoding": list[LABEL | None],
    "sources": list[LABEL],
}


COLUMN = {**hints_of(ColumnSchema), **LISTS}


def with_nan(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The same fields with NaN for None, by which files represent it."""
    names = set(names)
    return {name: math.nan if value is None and name in names else value for name, value in values.items()}


# Whole tables ---------------------------------------------------------------------------------------------------------


def column_from(values: Any) -> ColumnSchema:
    """A column of a schema from a file; `check_dtypes` has to follow."""
    column: ColumnSchema = made(ColumnSchema, values, COLUMN)
    if column.kind not in (*KINDS, ""):
        raise ValueError(f"column {shown(column.name)}: unknown kind {shown(column.kind)}")
    if column.null not in NULLS or not 0 <= column.missing <= 1 or not column.resolution >= 0:
        raise ValueError(f"column {shown(column.name)}: null, missing or resolution is none")
    if len(column.seen) not in (0, 2) or min(column.decimals, column.atom_width) < 0:
        raise ValueError(f"column {shown(column.name)}: the range in training, decimals or widths are none")
    if column.kind not in ("categorical", "constant"):  # in a schema that a user edited
        column.unseen = 0.0
    if not 0 <= column.unseen < 1:
        raise ValueError(f"column {shown(column.name)}: the probability of unseen levels is none")
    return column


def check_dtypes(columns: Iterable[ColumnSchema]) -> None:
    """Raise a ValueError unless the dtypes of columns can be modelled; each is looked at once, however many have it."""
    modelled = [column for column in columns if column.kind != "excluded"]
    levels = [column.levels_dtype or "object" for column in modelled if column.dtype == "category"]
    for name in {column.dtype for column in modelled} | set(levels):
        check_dtype(name)


def check_dtype(name: str) -> None:
    """Raise a ValueError unless a dtype can be modelled."""
    try:
        found = cells.family(pd.Series([], dtype=cells.dtype_of(name)), "")
    except (TypeError, ValueError, NotImplementedError, KeyError, OSError) as error:
        raise ValueError(f"{shown(name)} is no dtype that a table can have") from error
    if found == "category" and name != "category":
        raise ValueError(f"{shown(name)} is no dtype that a file has")


# The estimator --------------------------------------------------------------------------------------------------------


def calibration_from(data: Any) -> pd.DataFrame:
    """The goodness-of-fit tests, one row each."""
    if not fits(data, dict[str, list[Any]]) or not fits(data.get("test"), list[str]):
        raise ValueError("the tests of fit are no table")
    numbers = {name: column for name, column in data.items() if name != "test"}
    if not {"statistic", "p_value"} <= numbers.keys() or not fits(list(numbers.values()), list[list[float | None]]):
        raise ValueError("the tests of fit lack a statistic or a p-value")
    return pd.DataFrame(data).set_index("test")


def held_out_from(data: Any) -> np.ndarray:
    """Log-likelihoods of held-out rows, with -inf for None, by which files represent it."""
    if not fits(data, list[float | None]):
        raise ValueError("the log-densities of held-out rows are none")
    return np.sort(np.array([-math.inf if value is None else value for value in data], dtype=np.float64))


def names_of(model: Any) -> list[str] | None:
    """The names of an estimator's columns; None where it was fitted to rows without names."""
    return model.feature_names_in_.tolist() if hasattr(model, "feature_names_in_") else None


def read_names(model: Any, count: Any, names: Any) -> None:
    """Set an estimator's number of columns, and their names where not None.

    Raises:
        ValueError: They are no names of so many columns.
    """
    if type(count) is not int or not fits(names, list[str] | None) or (names is not None and len(names) != count):
        raise ValueError(f"the names of {shown(count)} columns are {shown(names)}")
    model.n_features_in_ = count
    if names is not None:
        model.feature_names_in_ = np.array(names, dtype=object)
