"""`FixedCombinations`: only combinations of levels that occur in training are possible."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.tables.frames import cells
from flowlab.tables.schema.column import ColumnSchema
from flowlab.tables.schema.detect import learn
from flowlab.tables.schema.expressions import quote
from flowlab.tables.schema.levels import take_levels
from flowlab.tables.schema.rules.rule import Label, Overrides, Rows, Rule, check_levels
from flowlab.tables.schema.schema import Schema

TITLE = "fixed combinations of"


@dataclass
class FixedCombinations(Rule):
    """Only combinations of levels that occur in training: one column of combinations is modelled in place of several.

    A missing cell counts as a level.

    Args:
        names: The columns.

    Example:
        >>> df = pd.DataFrame({"city": ["Rome", "Oslo", "Rome"], "country": ["Italy", "Norway", "Italy"]})
        >>> rule = FixedCombinations(["city", "country"])
        >>> rule.forward(df)["city, country"].tolist()
        ['["Rome", "Italy"]', '["Oslo", "Norway"]', '["Rome", "Italy"]']
        >>> rule.backward(rule.forward(df)).equals(df)
        True
        >>> rule.broken(pd.DataFrame({"city": ["Rome"], "country": ["Norway"]})).tolist()
        [True]
    """

    rejects = False

    names: list[Label]
    combinations: list[str] = field(default_factory=list, kw_only=True, repr=False)  # each a JSON list
    schemas: list[dict[str, Any]] = field(default_factory=list, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.names, str) or not isinstance(self.names, Iterable):
            raise ValueError(f"FixedCombinations needs a list of columns, got {self.names!r:.80}")
        self.names = [name.item() if isinstance(name, np.generic) else name for name in self.names]
        if len(self.names) < 2:
            raise ValueError(f"FixedCombinations needs at least two columns, got {self.names}")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"FixedCombinations names a column twice: {self.names}")
        super().__post_init__()

    def __str__(self) -> str:
        return f"{TITLE} {', '.join(map(quote, self.names))}"

    def columns(self) -> list[Any]:
        return self.names

    def replaced(self) -> list[Any]:
        return self.names

    def made(self) -> list[Any]:
        return [self.name]

    @property
    def name(self) -> str:
        """The name of the column of combinations."""
        return ", ".join(map(str, self.names))

    def learn(self, df: pd.DataFrame, given: Overrides | None = None) -> "FixedCombinations":
        super().learn(df)
        self.schemas = [learn(df[name], name, {"kind": "categorical"}).to_json() for name in self.names]
        self.combinations = [json.dumps(row, ensure_ascii=False) for row in self._combine(df)[1]]
        return self

    def check_learnt(self) -> None:
        if not bool(self.order) == bool(self.combinations) == bool(self.schemas):
            raise ValueError(f"the rule {self.shown} has learnt half of what it needs")
        if not self.order:
            return
        try:
            everything = pd.Categorical(self.combinations, categories=self.combinations)
            if len(self.schemas) != len(self.names) or {len(row) for row in self._table()} != {len(self.names)}:
                raise ValueError("columns and combinations do not fit together")
            self._backward(pd.DataFrame({self.name: everything}))
        except (
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            RecursionError,
            NotImplementedError,
        ) as error:
            raise ValueError(f"the rule {self.shown} cannot have learnt its combinations: {error}") from error

    def check_modelled(self, schema: Schema) -> None:
        check_levels(schema, self.name, self.combinations)

    def overrides(self) -> dict[Any, dict[str, Any]]:
        return {self.name: {"kind": "categorical", "unseen": 0.0}}

    def broken(self, df: pd.DataFrame) -> Rows:
        self._check(df)
        if not self.combinations:
            return np.zeros(len(df), dtype=bool)
        codes, combinations = self._combine(df)
        known = self._places()
        return ~np.array([plain(row) in known for row in combinations], dtype=bool)[codes]

    def _combine(self, df: pd.DataFrame) -> tuple[NDArray[np.int64], list[list[Any]]]:
        """Each row's combination as a code, and the combinations, sorted by the codes of their levels."""
        columns = [cells.levels(df[name], name) for name in self.names]
        rows, codes = np.unique(np.column_stack([codes for codes, _ in columns]), axis=0, return_inverse=True)
        combinations = [[None if code < 0 else values[code] for code, (_, values) in zip(row, columns)] for row in rows]
        return codes.reshape(-1), combinations

    def _table(self) -> list[list[Any]]:
        return [json.loads(text) for text in self.combinations]

    def _places(self) -> dict[str, int]:
        return {plain(row): k for k, row in enumerate(self._table())}

    def rewrite(self, df: pd.DataFrame) -> pd.DataFrame:
        codes, combinations = self._combine(df)
        place = self._places()
        values = pd.Categorical.from_codes(
            np.array([place[plain(row)] for row in combinations], dtype=np.int64)[codes], categories=self.combinations
        )
        first = min(list(df.columns).index(name) for name in self.names)
        frame = df.drop(columns=self.names)
        frame.insert(first, self.name, pd.Series(values, index=df.index))
        return frame

    def _backward(self, df: pd.DataFrame) -> pd.DataFrame:
        place = {text: k for k, text in enumerate(self.combinations)}
        codes, texts = cells.levels(df[self.name], self.name)
        rows = np.array([place[text] for text in texts])[codes]
        table = self._table()
        frame = df.drop(columns=self.name)
        for k, schema in enumerate(self.schemas):
            values = list(dict.fromkeys((type(row[k]), row[k]) for row in table if row[k] is not None))
            code = {key: i for i, key in enumerate(values)}
            codes_of = np.array([-1 if row[k] is None else code[type(row[k]), row[k]] for row in table])
            frame[self.names[k]] = take_levels(ColumnSchema(**schema), [v for _, v in values], codes_of[rows]).set_axis(
                df.index
            )
        return frame


def plain(row: list[Any]) -> str:
    """A combination as text in which 1 and 1.0 are equal: missing cells turn a column of integers into floats."""
    return json.dumps([int(v) if isinstance(v, float) and v.is_integer() else v for v in row], ensure_ascii=False)
