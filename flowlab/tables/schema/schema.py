"""`Schema`: what each column of a table is; inferred from the data, printed with reasons, edited, kept as JSON.

schema = Schema.infer(df, {"zip": "categorical", "row": "excluded", "age": {"lower": 0, "upper": 120}})
print(schema)
schema["rooms"].kind = "integer"            # an edit; Schema.infer(df, schema) learns what follows from it
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flowlab.hints import fits, shown
from flowlab.tables.frames import cells
from flowlab.tables.frames.validation import numpy_dtype, rounding
from flowlab.tables.schema.column import FOUND, KINDS, LEVELLED, MODELLED, NUMERIC, SETTABLE, ColumnSchema
from flowlab.tables.schema.detect import learn
from flowlab.tables.schema.grid import check_scale
from flowlab.tables.schema.relations import as_column, mark_derived
from flowlab.tables.schema.stored import LABEL, check_dtypes, column_from
from flowlab.writing import written_whole

__all__ = ["ColumnSchema", "Schema"]

MANY_ROWS = 10  # rows from which equal columns are no accident
PARAMETERS_PER_LEVEL, BYTES_PER_PARAMETER = (
    100,
    16,
)  # roughly, in each network; value, gradient and the optimiser's two moments


class Schema:
    """The columns of a table in order: `schema["age"]`, iteration, `len`; prints as a table with reasons.

    Args:
        columns: One `ColumnSchema` per column.
        labels: The dtype and the name of the index of columns.

    Example:
        >>> df = pd.DataFrame({"rooms": [3, 4, 3], "city": ["Rome", "Oslo", None]})
        >>> schema = Schema.infer(df)
        >>> [(column.name, column.kind) for column in schema]
        [('rooms', 'integer'), ('city', 'categorical')]
        >>> schema["city"].categories
        ['Oslo', 'Rome']
        >>> Schema.from_json(schema.to_json()) == schema
        True
    """

    def __init__(self, columns: list[ColumnSchema], labels: tuple[str, Any] = ("str[pyarrow]", None)) -> None:
        self.columns, self.labels = list(columns), tuple(labels)
        self._position = {column.name: j for j, column in enumerate(self.columns)}

    @classmethod
    def infer(cls, df: pd.DataFrame, overrides: Any = None) -> "Schema":
        """The schema of a table.

        Args:
            df: The table.
            overrides: What not to infer: a dict from columns to a kind, or to a dict of fields of `ColumnSchema`
                ({"kind": "integer", "lower": 0}); "excluded" leaves a column out. Or a `Schema`, whose kinds, bounds,
                resolutions and levels are taken.

        Raises:
            ValueError: A column cannot be modelled, or contradicts the overrides; the message names it, and a remedy.
        """
        cells.check_frame(df)
        if not df.shape[1]:
            raise ValueError("the table has no columns")
        given = read_overrides(overrides, list(df.columns))
        if len(df) < 2:
            raise ValueError(f"the table has {len(df)} row{'s' * (len(df) != 1)}: at least 2 are needed to learn from")
        names = [cells.plain_label(label) for label in df.columns]
        columns = [learn(df.iloc[:, j], name, given.get(name, {})) for j, name in enumerate(names)]
        open_ = [j for j, c in enumerate(columns) if c.modelled]
        # A kind that was asked for is kept, whatever the column repeats.
        free = {j for j in open_ if "kind" not in given.get(names[j], {})}
        mark_duplicates(df, columns, free)
        mark_linear(df, columns, free)
        for j, column in enumerate(columns):
            if column.kind in NUMERIC:
                present = df.iloc[:, j].dropna()
                check_scale(cells.numbers(present, column.name), column.name, present.index)
        label = df.columns.name
        return cls(columns, (cells.spell(df.columns.dtype), label if isinstance(label, str | int) else None))

    def check(self) -> None:
        """Raise a ValueError that names columns that look like identifiers, with their costs and remedies."""
        lines = []
        for column in self:
            if column.kind not in KINDS:
                raise ValueError(
                    f"column {column.name!r}: unknown kind {column.kind!r}; choose one of {', '.join(MODELLED)}, "
                    "excluded"
                )
            if column.kind == "id":
                whole = cells.dtype_of(column.dtype).kind in "iuf"
                cost = column.cardinality * PARAMETERS_PER_LEVEL
                price = (
                    "As an integer it would cost little and say nothing"
                    if whole
                    else f"As a categorical it would cost about {cost:,} parameters, "
                    f"{cost * BYTES_PER_PARAMETER / 1e6:,.0f} MB in each network while training"
                )
                lines.append(
                    f"column {column.name!r} looks like an identifier: {column.cardinality:,} distinct levels, "
                    f"{column.reason}. {price}. "
                    f"Leave it out with schema={{{column.name!r}: 'excluded'}}, or keep it with "
                    f"schema={{{column.name!r}: '{'integer' if whole else 'categorical'}'}}"
                )
        if lines:
            raise ValueError("\n".join(lines))

    def __getitem__(self, name: Any) -> ColumnSchema:
        if name not in self._position:
            raise KeyError(f"no column {name!r}; there are {', '.join(map(repr, self._position))}")
        return self.columns[self._position[name]]

    def __contains__(self, name: Any) -> bool:
        return name in self._position

    def __iter__(self) -> Iterator[ColumnSchema]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.columns == other.columns and self.labels == other.labels

    __hash__ = None  # type: ignore[assignment]  # columns can be edited

    def __repr__(self) -> str:
        head = ("column", "kind", "dtype", "missing", "values", "step", "why")
        rows = [head] + [
            (
                str(c.name),
                c.kind,
                re.sub(r"^(str|string)\[.*\]$", r"\1", c.dtype),
                "" if not c.missing else f"{c.missing:.1%}" if c.missing >= 0.001 else "< 0.1%",
                _values(c),
                f"{c.resolution:g}" if c.resolution else "",
                c.reason,
            )
            for c in self
        ]
        widths = [max(len(row[k]) for row in rows) for k in range(len(head) - 1)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[-1]]).rstrip() for row in rows
        )

    def to_json(self) -> dict[str, Any]:
        """The schema in JSON's types."""
        return {"labels": list(self.labels), "columns": [column.to_json() for column in self]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Schema":
        """The schema that `to_json` wrote down.

        Raises:
            ValueError: It has other fields.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("columns"), list):
            raise ValueError("a schema is an object with a list of columns")
        labels: Any = data.get("labels")
        if not fits(labels, tuple[str, LABEL | None]):
            raise ValueError(f"the labels of a schema are {shown(labels)}")
        known = {f.name for f in fields(ColumnSchema)}
        for column in data["columns"]:
            if not isinstance(column, dict):
                raise ValueError(f"a column of a schema is {shown(column)}")
            if not {"name", "kind", "dtype"} <= column.keys() <= known:
                wrong = sorted(column.keys() ^ ({"name", "kind", "dtype"} | (column.keys() & known)))
                raise ValueError(
                    f"column {column.get('name')!r} of a schema: unknown or missing fields {', '.join(wrong)}"
                )
        columns = [column_from(column) for column in data["columns"]]
        if len({(type(column.name), column.name) for column in columns}) < len(columns):
            raise ValueError("a schema has two columns of one name")
        check_dtypes(columns)
        return cls(columns, tuple(labels))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a .json file: beside its destination first, then renamed, so that no half-written file is left."""
        path = Path(path)
        if path.suffix.lower() != ".json":
            raise ValueError(f"{path} must end in .json")
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with written_whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Schema":
        """The schema in a file that `save` wrote.

        Raises:
            ValueError: The file holds no schema.
        """
        try:
            return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # of JSON, of UTF-8, of the fields
            raise ValueError(f"{path} holds no schema: {error or type(error).__name__}") from error


def _values(column: ColumnSchema) -> str:
    """The description of a column's values in a printed schema."""
    if column.kind in LEVELLED:
        return f"{len(column.categories)} levels" + (", ordered" if column.ordered else "")
    if column.kind == "constant":
        return "missing" if column.value is None else str(column.value)
    low, high = (end if end is None or isinstance(end, str) else f"{end:g}" for end in (column.lower, column.upper))
    if low is not None or high is not None:
        return f"≤ {high}" if low is None else f"≥ {low}" if high is None else f"{low} to {high}"
    return f"{column.cardinality} distinct" if column.kind == "id" else ""


def read_overrides(overrides: Any, names: list[Any]) -> dict[Any, dict[str, Any]]:
    """What a user passed as a schema, as a dict of fields for each column."""
    if overrides is None:
        return {}
    if isinstance(overrides, Schema):
        given = {c.name: _kept(c) for c in overrides if c.kind != "excluded" or c.name in names}
    elif isinstance(overrides, Mapping):
        given = {name: {"kind": value} if isinstance(value, str) else value for name, value in overrides.items()}
    else:
        raise TypeError(f"schema must be a Schema or a dict from column to kind, got {type(overrides).__name__}")
    fields_ = {"kind"}.union(*SETTABLE.values())
    for name, values in given.items():
        if name not in names:
            raise ValueError(
                f"schema names column {name!r}, which is not in the table; there are {', '.join(map(repr, names))}"
            )
        if isinstance(values, ColumnSchema):
            given[name] = values = _kept(values)
        if not isinstance(values, Mapping) or not set(values) <= fields_:
            raise ValueError(
                f"schema of column {name!r}: expected a kind or a dict with fields among {', '.join(sorted(fields_))}, "
                f"got {values!r}"
            )
        given[name] = values = {
            key: value for key, value in values.items() if value is not None or key in ("lower", "upper")
        }
        if values.get("kind") == "exclude":
            values["kind"] = "excluded"
        choices = (*MODELLED, "id", "excluded")
        if values.get("kind", "id") not in choices:
            raise ValueError(f"schema of column {name!r}: kind {values['kind']!r} is none of {', '.join(choices)}")
    return given


def _kept(column: ColumnSchema) -> dict[str, Any]:
    """The fields of a column that overrides keep; facts about the data, such as constancy, are inferred anew."""
    if column.kind in FOUND or (column.kind == "categorical" and column.cardinality == 1):
        return {}
    kept = {
        "kind": column.kind,
        **{key: getattr(column, key) for key in SETTABLE.get(column.kind, ()) if key != "atoms"},
    }
    if column.categories and column.kind not in LEVELLED:  # the kind was edited: nothing was known of bounds
        kept = {key: value for key, value in kept.items() if value is not None}
    if not column.categories:  # the kind was edited, or levels are to be learnt
        kept.pop("unseen", None)
    return {key: value for key, value in kept.items() if key not in ("resolution", "categories") or value}


def mark_duplicates(df: pd.DataFrame, columns: list[ColumnSchema], free: set[int]) -> None:
    """Marks copies of earlier columns, and one-to-one recodings of earlier columns of levels."""
    for j, column in enumerate(columns):
        if j not in free:
            continue
        for i, earlier in enumerate(columns[:j]):
            # Columns that differ in either number cannot be the same: this spares nearly all comparisons.
            if not earlier.modelled or (earlier.cardinality, earlier.missing) != (column.cardinality, column.missing):
                continue
            ours, theirs = df.iloc[:, j], df.iloc[:, i]
            if earlier.kind in LEVELLED:
                recoding = match_levels(ours, theirs, column, earlier)
            else:
                recoding = [] if len(df) >= MANY_ROWS and equal_cells(ours, theirs, column, earlier) else None
            if recoding is not None:
                how = "a one-to-one recoding of" if recoding and recoding != earlier.categories else "a copy of"
                column.kind, column.reason = "duplicate", f"{how} {earlier.name!r}"
                column.duplicate_of, column.recoding, column.unseen = earlier.name, recoding, 0.0
                break


def equal_cells(ours: pd.Series, theirs: pd.Series, column: ColumnSchema, earlier: ColumnSchema) -> bool:
    """Whether two columns of numbers, or of times of one dtype, are equal."""
    if column.kind in NUMERIC and earlier.kind in NUMERIC:
        return np.array_equal(cells.numbers(ours, column.name), cells.numbers(theirs, earlier.name), equal_nan=True)
    return column.kind == earlier.kind and column.dtype == earlier.dtype and ours.equals(theirs)


def match_levels(ours: pd.Series, theirs: pd.Series, column: ColumnSchema, earlier: ColumnSchema) -> list[Any] | None:
    """Our value for each level of an earlier column, None unless they go together one to one in enough rows."""
    codes, values = cells.levels(ours, column.name)
    others, levels = cells.levels(theirs, earlier.name)
    pairs = np.unique(np.column_stack([others, codes]), axis=0)
    pairs = pairs[(pairs >= 0).any(axis=1)]
    count = earlier.cardinality
    if len(pairs) != count or (pairs < 0).any() or len(ours) < MANY_ROWS + 3 * count:
        return None
    value = {(type(levels[i]), levels[i]): values[k] for i, k in pairs}
    return [value[type(level), level] for level in earlier.categories]


def mark_linear(df: pd.DataFrame, columns: list[ColumnSchema], free: set[int]) -> None:
    """Marks complete columns of numbers that are exact linear combinations of earlier ones."""
    flags = [column.kind == "boolean" and cells.dtype_of(column.dtype).kind == "b" for column in columns]
    used = [j for j, c in enumerate(columns) if (c.kind in NUMERIC or flags[j]) and not c.nullable]
    if len(used) < 2:
        return
    x = np.column_stack([cells.numbers(df.iloc[:, j], columns[j].name) for j in used])
    precision = max(rounding(numpy_dtype(columns[j].dtype)) for j in used)
    names = [columns[j].name for j in used]
    learnt = [as_column(columns[j], names) for j in used]
    mark_derived(x, learnt, precision)
    for k, (j, found) in enumerate(zip(used, learnt)):
        if found.kind == "derived" and j in free:
            column = columns[j]
            column.kind, column.reason, column.atoms = "derived", found.reason, []
            weights = {columns[i].name: weight for i, weight in zip(used, found.weights) if weight}
            column.sources, column.weights = list(weights), list(weights.values())
            column.value, column.tolerance = found.value, found.tolerance
            column.seen, column.categories = [float(x[:, k].min()), float(x[:, k].max())], []
            if flags[j]:
                column.lower, column.upper, column.resolution = 0.0, 1.0, 1.0
