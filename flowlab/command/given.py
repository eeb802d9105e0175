"""Conditions as `sample --given` takes them: 'cut=Ideal,carat=1.0:1.5,color=D|E,day=2024-01-01:,note="a, b"'."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from flowlab.command import texts
from flowlab.command.reading import KINDS, kind_of, levels_of
from flowlab.command.words import is_quoted, split, unquoted
from flowlab.tables.schema.column import ColumnSchema

USAGE = (
    "column=value, column=low:high or column=a|b, separated by commas, "
    'with "quotation marks" around what holds such a sign'
)


def read_given(parts: Sequence[str], columns: Mapping[Any, ColumnSchema]) -> dict[Any, Any]:
    """Parse conditions into what `FlowDensity.sample(given=)` takes.

    Args:
        parts: The text after each --given.
        columns: The columns of the model, by their labels.

    Raises:
        ValueError: A part is no condition, or a value is not of its column's kind.
    """
    labels = {str(label): label for label in columns}
    found: dict[Any, Any] = {}
    for part in (part for text in parts for part in split(text, ",")):
        pieces = split(part, "=", 1)
        name = unquoted(pieces[0])
        if len(pieces) < 2 or not name:
            raise ValueError(f'--given wants {USAGE}, not "{part}"')
        if name in labels and labels[name] in found:
            raise ValueError(f"--given names column {name!r} twice")
        if name not in labels:
            raise ValueError(f"--given: there is no column {name!r}; there are {', '.join(map(repr, labels))}")
        label = labels[name]
        choices = split(pieces[1], "|")
        if len(choices) > 1:
            found[label] = [_value(choice, columns[label]) for choice in choices]
        else:
            found[label] = _condition(pieces[1], columns[label])
    return found


def _condition(text: str, column: ColumnSchema) -> Any:
    """Parse one condition: a value, None for a missing cell, or the two ends of an interval."""
    try:
        return _value(text, column, strict=True)
    except ValueError as error:
        failed = error
    parts = split(text, ":")
    for k in range(1, len(parts)):  # times hold colons, too: take the one whose both sides can be parsed
        ends = ":".join(parts[:k]), ":".join(parts[k:])
        if not any(end.strip() for end in ends):
            break
        try:
            low, high = (_value(end, column, strict=True) if end.strip() else None for end in ends)
        except ValueError:
            continue
        return low, high
    if kind_of(column) in ("text", "mixed"):  # the model knows its levels, and lists them
        return unquoted(text)
    raise failed


def _value(text: str, column: ColumnSchema, strict: bool = False) -> Any:
    """Parse one value of a column's kind; None for an empty text, which means a missing cell.

    Raises:
        ValueError: The text is no such value or, with `strict`, no level of the column.
    """
    if not text.strip():
        return None
    said = unquoted(text)
    levels = {str(level): level for level in levels_of(column)}
    if said in levels and column.kind in ("categorical", "boolean", "constant"):
        return levels[said]
    kind = kind_of(column)
    if kind in ("text", "mixed"):
        if strict and not is_quoted(text):
            raise ValueError(f"--given: column {column.name} has no level {said!r}")
        return said
    word = pa.array([said], pa.string())
    if kind == "number":
        read = texts.numbers(word)
        found = None if read is None else read.tolist()[0]
    elif kind == "boolean":
        read = texts.truth(word, more=True)
        found = None if read is None else read.tolist()[0]
    elif kind == "duration":
        read = texts.spans(word, more=True)
        found = None if read is None else str(read.iloc[0])
    else:
        read = texts.days(word)
        found = None if read is None else said if texts.like(word, texts.ISO) else str(read.iloc[0])
    if found is None:
        raise ValueError(f"--given: column {column.name} holds {KINDS[kind]}, and {said!r} is none")
    return found
