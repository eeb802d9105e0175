"""What a report is given, checked before any work is done and made alike; and the facts of its header."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

import flowlab
from flowlab.report.columns import kind
from flowlab.tables.frames.arrow import to_pandas

LEAST = 20  # rows that a report takes of each table
NAMED = 8  # columns that the header names; of more it says how many
SEVERAL = {"number": "numbers", "category": "categories", "time": "times", "duration": "durations"}


def labels_of(model: Any) -> tuple[list[Any], bool]:
    """The columns that a model was fitted to, without those left out; and whether they came as an array, whose columns are x0, x1 and so on."""
    return model.table_.names, model.table_.array


def as_table(model: Any, rows: Any, name: str) -> pd.DataFrame:
    """Rows as a DataFrame with the columns that the model was fitted to, in their order; further columns are left out.

    Args:
        model: A fitted model.
        rows: What the user gave.
        name: What the argument is called.

    Raises:
        TypeError: The rows are no table (no array, for a model of an array).
        ValueError: Columns are missing, or twice there, or an array has another shape.
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
            raise ValueError(f"{name} has no column {_listed(lacking)}; there are {_listed(rows.columns)}{hint}")
        return rows[labels]
    if not array:
        raise TypeError(
            f"{name} must be a table with the columns that the model was fitted to, {_listed(labels)}: a DataFrame, "
            f"say; got {_kind_name(rows)}"
        )
    try:
        matrix = np.asarray(rows)
        matrix = matrix if matrix.dtype.kind in "iuf" else matrix.astype(float)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.ndim != 2 or matrix.shape[1] != len(labels):
        what = f"shape {np.shape(rows)}" if isinstance(rows, np.ndarray) else _kind_name(rows)
        raise ValueError(
            f"{name} must be an array of numbers (rows, {len(labels)}), as the model was fitted to; got {what}"
        )
    return pd.DataFrame(matrix, columns=labels)


def check_rows(tables: dict[str, pd.DataFrame], halved: bool = False) -> None:
    """Raises a ValueError where a table has too few rows to say anything; `halved` if half of the test rows stand for the training rows."""
    for name, table in tables.items():
        if halved and name == "test" and len(table) < 2 * LEAST:
            raise ValueError(
                f"without training rows half of the test rows stand for them: a report takes at least {2 * LEAST}, test has {len(table)}"
            )
        if len(table) < LEAST:
            raise ValueError(f"a report takes at least {LEAST} rows of each table: {name} has {len(table)}")


def scores(model: Any, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The model's log-densities of rows that `as_table` made."""
    return np.asarray(model.score_samples(rows.to_numpy() if model.table_.array else rows))


def facts(
    model: Any, train: pd.DataFrame, test: pd.DataFrame, synthetic: pd.DataFrame, seed: int, at_hand: bool
) -> list[tuple[str, str]]:
    """What the header says: name and text."""
    exact, left_out = _not_modelled(model)
    modelled = train[[name for name in train.columns if name not in exact]]
    kinds = pd.Series([kind(modelled[name]) for name in modelled.columns], dtype=object).value_counts()
    missing = float(modelled.isna().to_numpy().mean()) if modelled.size else 0.0
    found = [
        ("Model", f"{type(model).__name__}, {len(model.members_)} member{'s' * (len(model.members_) != 1)}"),
        ("Columns modelled", ", ".join(f"{n} {SEVERAL[k] if n > 1 else k}" for k, n in kinds.items()) or "none"),
    ]
    if exact:
        found += [("Columns kept exactly", _listed(exact, [f" ({why})" for why in exact.values()]))]
    if left_out:
        found += [("Columns left out", _listed(left_out))]
    return [
        *found,
        (
            "Rows",
            f"{len(train):,} {'trained on' if at_hand else 'in place of those trained on'}, {len(test):,} held out, {len(synthetic):,} synthetic",
        ),
        ("Missing cells", f"{missing:.1%} of {'those trained on' if at_hand else 'the former'}, in modelled columns"),
        ("Seed", str(seed)),
        ("Written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by flowlab {flowlab.__version__}"),
    ]


def _not_modelled(model: Any) -> tuple[dict[Any, str], list[Any]]:
    """Columns that come back exactly, with their kind, and columns that the user left out."""
    names = set(model.table_.names)
    beside = [column for column in model.schema_ if not column.modelled]
    exact = {column.name: column.kind for column in beside if column.name in names}
    return exact, [column.name for column in beside if column.kind == "excluded"]


def _listed(labels: Any, after: Sequence[str] | None = None) -> str:
    """Labels as a user reads them, no more than a few.

    Example:
        >>> _listed(["a", 1]), _listed(range(10))
        ("'a', 1", '0, 1, 2, 3, 4, 5, 6, 7 and 2 more')
    """
    labels = list(labels)
    ends = [""] * len(labels) if after is None else after
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(f"{label!r}{end}" for label, end in zip(labels[:NAMED], ends)) + more


def _kind_name(value: Any) -> str:
    return "None" if value is None else type(value).__name__
