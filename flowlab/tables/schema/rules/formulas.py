"""Rules given by expressions: columns computed from others, and conditions on rows."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import NULLS, Array
from flowlab.tables.schema.detect import learn
from flowlab.tables.schema.evaluation import evaluate, to_floats
from flowlab.tables.schema.expressions import names_in, quote, read
from flowlab.tables.schema.grid import on_grid
from flowlab.tables.schema.rules.rule import Computed, Label, Overrides, Rows, Rule, can_miss, grid_step, storable


@dataclass
class Derived(Computed):
    """A column computed from others: it is not modelled but recomputed in samples.

    Its bounds hold: rows whose computed value violates a bound that the schema sets or the data suggest ("none
    negative", "within [0, 1]", the range of a small integer dtype) are impossible and are redrawn.

    Args:
        name: The computed column.
        expression: Column names (`unit price` in backquotes), numbers, arithmetic, comparisons, functions.

    Example:
        >>> df = pd.DataFrame({"price": [1.1, 2.5], "quantity": [3, 2], "total": [3.3, 5.0]})
        >>> rule = Derived("total", "price * quantity")
        >>> list(rule.forward(df))
        ['price', 'quantity']
        >>> rule.backward(rule.forward(df)).equals(df)
        True
    """

    name: Label
    expression: str
    nullable: bool = field(default=True, kw_only=True, repr=False)  # whether a cell was missing in training

    def __post_init__(self) -> None:
        if self.name in names_in(self.expression):
            raise ValueError(f"the rule {self.shown} computes a column from itself")
        super().__post_init__()

    def __str__(self) -> str:
        return f"{quote(self.name)} = {self.expression}"

    def columns(self) -> list[Any]:
        return [self.name, *names_in(self.expression)]

    def replaced(self) -> list[Any]:
        return [self.name]

    def learn(self, df: pd.DataFrame, given: Overrides | None = None) -> "Derived":
        super().learn(df)
        column = learn(df[self.name], self.name, (given or {}).get(self.name, {}))
        observed = cells.numbers(df[self.name], self.name)
        self.dtype, self.null, self.step = column.dtype, column.null, grid_step(df[self.name], self.name)
        self.lower, self.upper = (None if end is None else float(end) for end in (column.lower, column.upper))
        self.nullable = bool(np.isnan(observed).any())
        lost = df[names_in(self.expression)].isna().any(axis=1).to_numpy() & ~np.isnan(observed)
        if lost.any() and not can_miss(self.dtype):
            raise ValueError(
                f"the rule {self.shown} cannot compute {self.name!r} in {int(lost.sum())} rows, where a cell is "
                f"missing, and {self.dtype} has no missing values: convert the column with "
                f"df[{self.name!r}].astype('Int64'), or leave the rule out"
            )
        return self

    def broken(self, df: pd.DataFrame) -> Rows:
        self._check(df)
        observed, computed = cells.numbers(df[self.name], self.name), self._compute(df)
        inputs = df[names_in(self.expression)].notna().all(axis=1).to_numpy(dtype=bool)
        tolerance = 1e-9 * np.maximum(np.abs(observed), np.abs(computed)) + self.step / 2
        # A value where the expression has none, such as after division by zero, is wrong, too.
        wrong = inputs & ~np.isnan(observed) & ~(np.abs(observed - computed) <= tolerance)
        if not self.nullable:
            wrong |= inputs & np.isnan(computed)
        return wrong | ~self.within(observed, 1e-9 * max(self.step, 1e-3))

    def _compute(self, df: pd.DataFrame) -> Array:
        """The computed column; NaN where a cell is missing or no value is finite."""
        values = to_floats(evaluate(read(self.expression), df), self.name)
        values = np.where(np.isfinite(values), values, np.nan)
        return (on_grid(values, self.step) if self.step else values) + 0.0  # no -0.0

    def check_learnt(self) -> None:
        super().check_learnt()
        if self.dtype and cells.dtype_of(self.dtype).kind in "Mm":
            raise ValueError(f"the rule {self.shown}: times are not computed")

    def rewrite(self, df: pd.DataFrame) -> pd.DataFrame:
        return df.drop(columns=self.name)

    def _backward(self, df: pd.DataFrame) -> pd.DataFrame:
        computed = self._compute(df)
        lower, upper = storable(self.dtype)
        values = np.clip(computed, lower, upper)  # values beyond the dtype break the rule, clipped or not
        if not can_miss(self.dtype):
            values = np.where(np.isnan(values), 0.0, values)
        frame = df.copy()
        frame[self.name] = cells.from_numbers(values, self.dtype, self.name, NULLS[self.null]).set_axis(df.index)
        return frame


@dataclass
class Predicate(Rule):
    """A condition on rows: the model ignores it, and samples that break it are redrawn.

    Args:
        expression: As in `Derived`: "x > 0 or y > 0".

    Example:
        >>> rule = Predicate("x > 0 or y > 0")
        >>> rule.broken(pd.DataFrame({"x": [1.0, -1.0, None], "y": [-1.0, -2.0, -3.0]})).tolist()
        [False, True, False]
    """

    expression: str

    def __post_init__(self) -> None:
        names_in(self.expression)
        super().__post_init__()

    def __str__(self) -> str:
        return self.expression

    def columns(self) -> list[Any]:
        return names_in(self.expression)

    def broken(self, df: pd.DataFrame) -> Rows:
        self._check(df)
        expression = read(self.expression)
        holds = evaluate(expression, df)
        if holds.kind not in ("boolean", "nothing"):
            raise ValueError(
                f"the rule {self.shown} is {holds.kind}, neither true nor false: compare it with something"
            )
        judged = df[expression.needed].notna().all(axis=1).to_numpy(dtype=bool)
        return judged & holds.known & ~holds.data.astype(bool)
