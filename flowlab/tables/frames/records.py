"""Short texts of dataclasses with many fields."""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any


def set_fields(record: Any, hidden: Sequence[str] = (), most: int = 8) -> str:
    """The fields of a dataclass that differ from their defaults, as in its repr; of long lists the first values.

    Example:
        >>> from flowlab.tables.schema.column import ColumnSchema
        >>> set_fields(ColumnSchema("age", "integer", "int64", atoms=list(range(99))))
        "name='age', kind='integer', dtype='int64', atoms=[0, 1, 2, 3, 4, 5, 6, 7, and 91 more]"
    """
    parts = []
    for one in fields(record):
        value = getattr(record, one.name)
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if one.name in hidden or (default is not MISSING and value == default):
            continue
        text = repr(value)
        if isinstance(value, list) and len(value) > most:
            text = f"[{', '.join(map(repr, value[:most]))}, and {len(value) - most} more]"
        parts.append(f"{one.name}={text}")
    return ", ".join(parts)
