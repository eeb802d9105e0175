"""The tables that a report is given: checked before any work is done, and made alike."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from flowlab.tables.frames.arrow import to_pandas

LEAST = 20  # rows that a report takes of each table
NAMED = 8  # columns that a text names; of more it says how many


def labels_of(model: Any) -> tuple[list[Any], bool]:
    """The columns that a model was fitted to, without those left out, and whether they came as an array.

    The columns of an array are called x0, x1 and so on.
    """
    return model.table_.names, model.table_.array


def as_table(model: Any, rows: Any, name: str) -> pd.DataFrame:
    """Make a DataFrame with the columns that the model was fitted to, in their order; further columns are left out.

    Args:
        model: A fitted model.
        rows: What the user gave.
        name: The argument's name, for messages.

    Raises:
        TypeError: The rows are no table (no array, for a model of an array).
        ValueError: Columns are missing or have the same name, or an array has another shape.
    """
    labels, array = labels_of(model)
    rows = to_pandas(rows)
    if isinstance(rows, pd.DataFrame):
        if not rows.columns.is_unique:
            twice = rows.columns[rows.columns.duplicated()].unique().tolist()
            raise ValueError(f"{name}: several columns have the same name {twice}: rename or drop them")
        lacking = [label for label in labels if label not in rows.columns]
        if lacking:
            hint = ", or give an array: the model was fitted to one" if array else ""
            raise ValueError(
                f"{name} has no column {list_labels(lacking)}; there are {list_labels(rows.columns)}{hint}"
            )
        return rows[labels]
    if not array:
        raise TypeError(
            f"{name} must be a table with the columns that the model was fitted to, {list_labels(labels)}: a "
            f"DataFrame, say; got {_type_name(rows)}"
        )
    try:
        matrix = np.asarray(rows)
        matrix = matrix if matrix.dtype.kind in "iuf" else matrix.astype(float)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.ndim != 2 or matrix.shape[1] != len(labels):
        what = f"shape {np.shape(rows)}" if isinstance(rows, np.ndarray) else _type_name(rows)
        raise ValueError(
            f"{name} must be an array of numbers (rows, {len(labels)}), as the model was fitted to; got {what}"
        )
    return pd.DataFrame(matrix, columns=labels)


def check_rows(tables: dict[str, pd.DataFrame], halved: bool = False) -> None:
    """Check that tables have enough rows to say anything.

    Args:
        tables: Tables by the name of their argument.
        halved: Whether half of the test rows stand for the training rows.

    Raises:
        ValueError: A table has too few rows.
    """
    for name, table in tables.items():
        if halved and name == "test" and len(table) < 2 * LEAST:
            raise ValueError(
                "without training rows half of the test rows stand for them: a report takes at least "
                f"{2 * LEAST}, test has {len(table)}"
            )
        if len(table) < LEAST:
            raise ValueError(f"a report takes at least {LEAST} rows of each table: {name} has {len(table)}")


def scores(model: Any, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Score rows that `as_table` made: the model's log-density of each."""
    return np.asarray(model.score_samples(rows.to_numpy() if model.table_.array else rows))


def list_labels(labels: Iterable[Any], after: Sequence[str] | None = None) -> str:
    """List labels for a reader, no more than a few.

    Args:
        labels: The labels.
        after: A text for each, to stand after it.

    Example:
        >>> list_labels(["a", 1]), list_labels(range(10))
        ("'a', 1", '0, 1, 2, 3, 4, 5, 6, 7 and 2 more')
    """
    labels = list(labels)
    ends = [""] * len(labels) if after is None else after
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(f"{label!r}{end}" for label, end in zip(labels[:NAMED], ends)) + more


def _type_name(value: Any) -> str:
    return "None" if value is None else type(value).__name__
