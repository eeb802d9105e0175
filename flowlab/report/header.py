"""The header of the page: what was modelled, and which rows the report looks at."""

from datetime import UTC, datetime
from typing import Any

import pandas as pd

from flowlab.report.inputs import list_labels
from flowlab.tables.frames.aligned import kind
from flowlab.version import __version__

PLURALS = {"number": "numbers", "category": "categories", "time": "times", "duration": "durations"}


def facts(
    model: Any, train: pd.DataFrame, test: pd.DataFrame, synthetic: pd.DataFrame, seed: int, at_hand: bool
) -> list[tuple[str, str]]:
    """Make the lines of the header, each a name and a text.

    Args:
        model: The fitted model.
        train: The rows that it was fitted to, or those in their place.
        test: Held-out rows.
        synthetic: Rows that it drew.
        seed: The seed of the report.
        at_hand: Whether `train` are the rows that the model was fitted to.
    """
    exact, left_out = _not_modelled(model)
    modelled = train[[name for name in train.columns if name not in exact]]
    kinds = pd.Series([kind(modelled[name]) for name in modelled.columns], dtype=object).value_counts()
    missing = float(modelled.isna().to_numpy().mean()) if modelled.size else 0.0
    members = f"{len(model.members_)} member{'s' * (len(model.members_) != 1)}"
    columns = ", ".join(f"{n} {PLURALS[name] if n > 1 else name}" for name, n in kinds.items()) or "none"
    lines = [("Model", f"{type(model).__name__}, {members}"), ("Columns modelled", columns)]
    if exact:
        lines.append(("Columns kept exactly", list_labels(exact, [f" ({why})" for why in exact.values()])))
    if left_out:
        lines.append(("Columns left out", list_labels(left_out)))
    trained = "trained on" if at_hand else "in place of those trained on"
    of_which = "those trained on" if at_hand else "the former"
    return [
        *lines,
        ("Rows", f"{len(train):,} {trained}, {len(test):,} held out, {len(synthetic):,} synthetic"),
        ("Missing cells", f"{missing:.1%} of {of_which}, in modelled columns"),
        ("Seed", str(seed)),
        ("Written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by flowlab {__version__}"),
    ]


def _not_modelled(model: Any) -> tuple[dict[Any, str], list[Any]]:
    """Columns that come back exactly, with their kind, and columns that the user left out."""
    names = set(model.table_.names)
    not_modelled = [column for column in model.schema_ if not column.modelled]
    exact = {column.name: column.kind for column in not_modelled if column.name in names}
    return exact, [column.name for column in not_modelled if column.kind == "excluded"]
