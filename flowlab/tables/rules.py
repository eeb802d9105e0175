"""Rules between columns that samples must keep: `forward` replaces what a rule decides by what it leaves open, `backward` puts it back.

rule = parse_rule("low <= high")            # or LessThan("low", "high")
rows = df[~rule.broken(df)]                 # rows of the data that break the rule are the caller's to drop
modelled = rule.forward(rows)               # `high - low`, at least 0, in place of `high`
assert rule.backward(modelled).equals(rows)

The first table that `forward` sees is learnt from (`learn` does it alone). A rule with a missing cell in it cannot be judged: it is not broken.
"""

import json
import keyword
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.tables import cells
from flowlab.tables.cells import DAY, NULLS, Array
from flowlab.tables.codec import take_levels
from flowlab.tables.column import ColumnSchema, common_step, learn
from flowlab.tables.encode import decimal_grid, on_grid
from flowlab.tables.expressions import evaluate, names_in, quote
from flowlab.tables.frame import numpy_dtype, rounding

Rows = NDArray[np.bool_]

NAME = r"(?:[^\W\d]\w*|`[^`]+`)"


@dataclass
class Rule:
    """What all rules share. A rule's fields are its arguments and what it has learnt, in JSON's types.

    Attributes:
        order: The columns of the table that was learnt from; empty before.
    """

    kinds: ClassVar[dict[str, type["Rule"]]] = {}

    order: list[Any] = field(default_factory=list, init=False, repr=False)

    def __init_subclass__(cls) -> None:
        cls.kinds[cls.__name__] = cls

    def columns(self) -> list[Any]:
        """The columns that the rule speaks of."""
        raise NotImplementedError

    def learn(self, df: pd.DataFrame) -> "Rule":
        """Looks at a table's types and grids, which `backward` restores. Rows that break the rule are passed over."""
        self._check(df)
        self.order = list(df.columns)
        return self

    def forward(self, df: pd.DataFrame) -> pd.DataFrame:
        """The table that is modelled in place of the user's.

        Raises:
            ValueError: Rows break the rule: drop them first.
        """
        if not self.order:
            self.learn(df)
        self._check(df)
        broken = self.broken(df)
        if broken.any():
            raise ValueError(
                f"{int(broken.sum())} of {len(df)} rows break the rule {str(self)!r}, the first is row {cells.label(df.index, broken.argmax())!r}: "
                "drop them, df[~rule.broken(df)]"
            )
        return self._forward(df)

    def backward(self, df: pd.DataFrame) -> pd.DataFrame:
        """The user's table of a modelled one: the columns and types that were learnt, in their order."""
        if not self.order:
            raise ValueError(f"the rule {str(self)!r} has seen no table yet: learn(df) or forward(df) first")
        frame = self._backward(df)
        # Columns may have been left out since.
        frame = frame[[name for name in self.order if name in frame.columns]]
        if not all(isinstance(name, str) for name in self.order):
            frame.columns = frame.columns.infer_objects()
        return frame

    def broken(self, df: pd.DataFrame) -> Rows:
        """Which rows break the rule for certain."""
        raise NotImplementedError

    def overrides(self) -> dict[Any, dict[str, Any]]:
        """What the rule knows of the columns that `forward` makes, as `Schema.infer` takes it."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """The rule and what it has learnt, in JSON's types."""
        return {"rule": type(self).__name__, **asdict(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Rule":
        """The rule that `to_json` wrote down.

        Example:
            >>> Rule.from_json(LessThan("low", "high").to_json())
            LessThan(low='low', high='high', strict=False)
        """
        values = dict(data)
        kind = Rule.kinds.get(values.pop("rule", ""))
        if kind is None:
            raise ValueError(f"unknown rule {data.get('rule')!r}; there are {', '.join(Rule.kinds)}")
        rule = kind.__new__(kind)
        names = {f.name for f in fields(kind)}
        if names != values.keys():
            raise ValueError(
                f"a rule {kind.__name__} has the fields {', '.join(sorted(names))}, got {', '.join(sorted(values))}"
            )
        for name, value in values.items():
            setattr(rule, name, value)
        return rule

    def _forward(self, df: pd.DataFrame) -> pd.DataFrame:
        return df

    def _backward(self, df: pd.DataFrame) -> pd.DataFrame:
        return df

    def _check(self, df: pd.DataFrame) -> None:
        lacking = [name for name in self.columns() if name not in df.columns]
        if lacking:
            raise ValueError(
                f"the rule {str(self)!r} names column {lacking[0]!r}, which is not in the table; there are "
                f"{', '.join(map(repr, df.columns))}"
            )


@dataclass
class LessThan(Rule):
    """One column is never above another: their difference is modelled in place of the higher one.

    Differences of times are those of the clock, so that whole days stay whole days whatever the time zone does. Where the lower value is
    missing there is no difference: a table with a higher value in such a row is refused, and needs a `Predicate`, which the text "low <= high"
    then means.

    Args:
        low: The lower column: numbers, times or time differences.
        high: The higher column.
        strict: Whether the two must differ.

    Example:
        >>> df = pd.DataFrame({"low": [1.1, 2.0], "high": [1.4, 2.5]})
        >>> rule = LessThan("low", "high")
        >>> rule.forward(df)
           low  high - low
        0  1.1         0.3
        1  2.0         0.5
        >>> rule.backward(rule.forward(df)).equals(df)
        True
    """

    low: Any
    high: Any
    strict: bool = False
    dtype: str = field(default="", init=False, repr=False)  # of `high`, like what follows
    null: str = field(default="None", init=False, repr=False)
    step: float = field(default=0.0, init=False, repr=False)  # 0 where it is on no grid
    fine: float = field(default=0.0, init=False, repr=False)  # the difference's

    def __str__(self) -> str:
        return f"{quote(self.low)} {'<' if self.strict else '<='} {quote(self.high)}"

    def columns(self) -> list[Any]:
        return [self.low, self.high]

    @property
    def difference(self) -> str:
        """The name of the column that is modelled in place of the higher one."""
        return f"{self.high} - {self.low}"

    def learn(self, df: pd.DataFrame) -> "LessThan":
        super().learn(df)
        high = learn(df[self.high], self.high, {})
        self.broken(df)  # raises unless the two can be compared
        if count := self.lost(df):
            raise ValueError(
                f"the rule {str(self)!r} works by the difference, and {count} rows have a {self.high!r} without a {self.low!r}, which would be lost: "
                f"use flowlab.Predicate({str(self)!r})"
            )
        if self.difference in df.columns:
            raise ValueError(
                f"the rule {str(self)!r} needs the name {self.difference!r}, which a column already has: rename that column"
            )
        self.dtype, self.null = high.dtype, high.null
        steps = [_step(df[name], name) for name in self.columns()]
        self.step, self.fine = steps[1], min(steps)
        return self

    def lost(self, df: pd.DataFrame) -> int:
        """The number of rows whose higher value no difference can hold, since the lower one is missing."""
        return int((df[self.low].isna() & df[self.high].notna()).sum())

    def overrides(self) -> dict[Any, dict[str, Any]]:
        return {self.difference: {"lower": self.fine if self.strict else 0.0}}

    def broken(self, df: pd.DataFrame) -> Rows:
        self._check(df)
        gap = self._gap(df)
        return gap <= 0 if self.strict else gap < 0

    def _gap(self, df: pd.DataFrame) -> Array:
        """high - low: numbers, or seconds."""
        low, high = (_clock(df[name], name, df[self.high]) for name in self.columns())
        if (low[0] is None) != (high[0] is None):
            raise ValueError(
                f"the rule {str(self)!r} compares times with what is none: {df[self.low].dtype} and {df[self.high].dtype}"
            )
        gap = high[1] - low[1]
        if low[0] is not None and high[0] is not None:
            gap = gap + (high[0] - low[0]) * DAY
        return on_grid(gap, self.fine) if self.fine else gap

    def _forward(self, df: pd.DataFrame) -> pd.DataFrame:
        gap = self._gap(df)
        found = cells.family(df[self.high], self.high)
        if found == "number":
            whole = all(df[name].dtype.kind in "iu" for name in self.columns())
            dtype = "float64" if not whole else "Int64" if np.isnan(gap).any() else "int64"
            values = cells.from_numbers(gap, dtype, self.difference)
        else:
            units = [cells.unit_of(df[name].dtype) for name in self.columns()]
            values = cells.differences(gap, f"timedelta64[{max(units, key=cells.TICKS.__getitem__)}]", self.difference)
        place = list(df.columns).index(self.high)
        frame = df.drop(columns=self.high)
        frame.insert(place, self.difference, values.set_axis(df.index))
        return frame

    def _backward(self, df: pd.DataFrame) -> pd.DataFrame:
        kind = cells.dtype_of(self.dtype)
        gap = _clock(df[self.difference], self.difference, None)[1]
        days, low = _clock(df[self.low], self.low, pd.Series([], dtype=kind))
        high = self._on_step(low + gap, low)
        if days is not None:
            values = cells.clock_times(days, high, self.dtype, self.high)
        elif kind.kind == "m":
            values = cells.differences(high, self.dtype, self.high)
        else:
            values = cells.from_numbers(high, self.dtype, self.high, NULLS[self.null])
        frame = df.drop(columns=self.difference)
        frame[self.high] = values.set_axis(df.index)
        return frame

    def _on_step(self, high: Array, low: Array) -> Array:
        """On the grid of the higher column, and one cell up where rounding went below the lower one."""
        if not self.step:
            return high
        rounded = on_grid(high, self.step)
        below = rounded <= low if self.strict else rounded < low
        return np.where(below, on_grid(rounded + self.step, self.step), rounded)


def _step(values: pd.Series, name: Any) -> float:
    """The power of ten, or the day, of which all values are multiples: never above 1, where other rows may be; 0 if there is none."""
    days, x = _clock(values.dropna(), name, None)
    if days is not None and not x.any():
        return float(DAY)
    precision = rounding(numpy_dtype(cells.spell(values.dtype)))
    x = np.append(x, 0.0)  # a single value has no grid
    return common_step(x, min(decimal_grid(x, 8 * precision * np.abs(x)), 1.0), precision)


def _clock(values: pd.Series, name: Any, like: pd.Series | None) -> tuple[Array | None, Array]:
    """Days, None but for times, and numbers or seconds; in the time zone of another column."""
    found = cells.family(values, name)
    if found == "datetime":
        zone = cells.zone_of(values.dtype if like is None else like.dtype)
        return cells.days_and_seconds(values, zone, name)
    return None, cells.seconds(values, name) if found == "timedelta" else cells.numbers(values, name)


@dataclass
class FixedCombinations(Rule):
    """Only combinations of levels that were seen: one column of combinations is modelled in place of several. A missing cell is a level here.

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

    names: list[Any]
    combinations: list[str] = field(default_factory=list, init=False, repr=False)  # each a JSON list
    schemas: list[dict[str, Any]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        self.names = list(self.names)
        if len(self.names) < 2:
            raise ValueError(f"FixedCombinations needs at least two columns, got {self.names}")

    def __str__(self) -> str:
        return f"fixed combinations of {self.name}"

    def columns(self) -> list[Any]:
        return self.names

    @property
    def name(self) -> str:
        """The name of the column that is modelled in place of the others."""
        return ", ".join(map(str, self.names))

    def learn(self, df: pd.DataFrame) -> "FixedCombinations":
        super().learn(df)
        if self.name in df.columns:
            raise ValueError(
                f"the rule {str(self)!r} needs the name {self.name!r}, which a column already has: rename that column"
            )
        self.schemas = [learn(df[name], name, {"kind": "categorical"}).to_json() for name in self.names]
        self.combinations = self._combine(df)[1]
        return self

    def overrides(self) -> dict[Any, dict[str, Any]]:
        return {self.name: {"kind": "categorical"}}

    def broken(self, df: pd.DataFrame) -> Rows:
        self._check(df)
        codes, found = self._combine(df)
        known = set(self.combinations)
        return (
            ~np.array([text in known for text in found], dtype=bool)[codes] if known else np.zeros(len(df), dtype=bool)
        )

    def _combine(self, df: pd.DataFrame) -> tuple[NDArray[np.int64], list[str]]:
        """The combination of each row as a code, and the combinations in the order of their levels."""
        columns = [cells.levels(df[name], name) for name in self.names]
        rows, codes = np.unique(np.column_stack([codes for codes, _ in columns]), axis=0, return_inverse=True)
        texts = [[None if code < 0 else values[code] for code, (_, values) in zip(row, columns)] for row in rows]
        return codes.reshape(-1), [json.dumps(text, ensure_ascii=False) for text in texts]

    def _forward(self, df: pd.DataFrame) -> pd.DataFrame:
        codes, found = self._combine(df)
        place = {text: k for k, text in enumerate(self.combinations)}
        values = pd.Categorical.from_codes(
            np.array([place[text] for text in found])[codes], categories=self.combinations
        )
        first = min(list(df.columns).index(name) for name in self.names)
        frame = df.drop(columns=self.names)
        frame.insert(first, self.name, pd.Series(values, index=df.index))
        return frame

    def _backward(self, df: pd.DataFrame) -> pd.DataFrame:
        place = {text: k for k, text in enumerate(self.combinations)}
        codes, found = cells.levels(df[self.name], self.name)
        rows = np.array([place[text] for text in found])[codes]
        table = [json.loads(text) for text in self.combinations]
        frame = df.drop(columns=self.name)
        for k, schema in enumerate(self.schemas):
            values = list(dict.fromkeys((type(row[k]), row[k]) for row in table if row[k] is not None))
            code = {key: i for i, key in enumerate(values)}
            codes_of = np.array([-1 if row[k] is None else code[type(row[k]), row[k]] for row in table])
            frame[self.names[k]] = take_levels(ColumnSchema(**schema), [v for _, v in values], codes_of[rows]).set_axis(
                df.index
            )
        return frame


@dataclass
class Derived(Rule):
    """A column that is computed from others: it is not modelled, and computed anew.

    Args:
        name: The column.
        expression: As `DataFrame.eval` reads it: names of columns (`unit price` in backticks), arithmetic, comparisons, functions such as log.

    Example:
        >>> df = pd.DataFrame({"price": [1.1, 2.5], "quantity": [3, 2], "total": [3.3, 5.0]})
        >>> rule = Derived("total", "price * quantity")
        >>> list(rule.forward(df))
        ['price', 'quantity']
        >>> rule.backward(rule.forward(df)).equals(df)
        True
    """

    name: Any
    expression: str
    dtype: str = field(default="", init=False, repr=False)
    null: str = field(default="None", init=False, repr=False)
    step: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.name in names_in(self.expression):
            raise ValueError(f"the rule {str(self)!r} computes a column from itself")

    def __str__(self) -> str:
        return f"{quote(self.name)} = {self.expression}"

    def columns(self) -> list[Any]:
        return [self.name, *names_in(self.expression)]

    def learn(self, df: pd.DataFrame) -> "Derived":
        super().learn(df)
        column = learn(df[self.name], self.name, {})
        cells.numbers(df[self.name], self.name)
        self.dtype, self.null, self.step = column.dtype, column.null, _step(df[self.name], self.name)
        return self

    def broken(self, df: pd.DataFrame) -> Rows:
        self._check(df)
        ours, computed = cells.numbers(df[self.name], self.name), self._compute(df)
        return np.abs(ours - computed) > 1e-9 * np.maximum(np.abs(ours), np.abs(computed)) + self.step / 2

    def _compute(self, df: pd.DataFrame) -> Array:
        values = cells.numbers(evaluate(self.expression, df), self.name)
        return on_grid(values, self.step) if self.step else values

    def _forward(self, df: pd.DataFrame) -> pd.DataFrame:
        return df.drop(columns=self.name)

    def _backward(self, df: pd.DataFrame) -> pd.DataFrame:
        values = cells.from_numbers(self._compute(df), self.dtype, self.name, NULLS[self.null])
        frame = df.copy()
        frame[self.name] = values.set_axis(df.index)
        return frame


@dataclass
class Predicate(Rule):
    """A condition on rows: the model knows nothing of it, samples that break it are drawn again.

    Args:
        expression: As `DataFrame.eval` reads it: "x > 0 or y > 0".

    Example:
        >>> rule = Predicate("x > 0 or y > 0")
        >>> rule.broken(pd.DataFrame({"x": [1.0, -1.0, None], "y": [-1.0, -2.0, -3.0]})).tolist()
        [False, True, False]
    """

    expression: str

    def __post_init__(self) -> None:
        names_in(self.expression)

    def __str__(self) -> str:
        return self.expression

    def columns(self) -> list[Any]:
        return names_in(self.expression)

    def broken(self, df: pd.DataFrame) -> Rows:
        self._check(df)
        holds = evaluate(self.expression, df)
        if cells.family(holds, self.expression) != "boolean":
            raise ValueError(
                f"the rule {self.expression!r} is {holds.dtype}, neither true nor false: compare it with something"
            )
        judged = df[self.columns()].notna().all(axis=1).to_numpy()
        return judged & ~holds.astype("boolean").to_numpy(dtype=bool, na_value=True)


def parse_rule(text: str) -> Rule:
    """The rule that a string means: "low < high", "low <= high", "total = price * quantity", or a condition on rows.

    Example:
        >>> parse_rule("start <= end")
        LessThan(low='start', high='end', strict=False)
        >>> parse_rule("total = price * quantity")
        Derived(name='total', expression='price * quantity')
        >>> parse_rule("x > 0 or y > 0")
        Predicate(expression='x > 0 or y > 0')
    """
    match = re.fullmatch(rf"\s*({NAME})\s*(<=?|>=?)\s*({NAME})\s*", text)
    if match and not any(keyword.iskeyword(match[k]) for k in (1, 3)):
        low, high = (match[k].strip("`") for k in ((1, 3) if match[2][0] == "<" else (3, 1)))
        return LessThan(low, high, strict=len(match[2]) == 1)
    match = re.fullmatch(rf"\s*({NAME})\s*=(?!=)\s*(.+?)\s*", text, flags=re.DOTALL)
    return Derived(match[1].strip("`"), match[2]) if match else Predicate(text.strip())
