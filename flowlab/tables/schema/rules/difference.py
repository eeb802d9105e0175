"""`LessThan`: one column is never above another."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import DAY, NULLS, Array
from flowlab.tables.schema.column import ColumnSchema, day_number
from flowlab.tables.schema.detect import learn
from flowlab.tables.schema.expressions import quote
from flowlab.tables.schema.grid import on_grid
from flowlab.tables.schema.rules.rule import Computed, Label, Overrides, Rows, check_levels, clock, grid_step, storable
from flowlab.tables.schema.schema import Schema

HELD_SHARE, HELD_ROWS = 0.05, 10  # of rows with one higher value, from which it counts as held there
OTHER = "other"


@dataclass
class LessThan(Computed):
    """One column is never above another: their difference is modelled in place of the higher one.

    Differences of times are those of the clock, so that whole days stay whole days whatever the time zone does. Where
    the lower value is missing there is no difference: a table with a higher value in such a row is refused, and needs a
    `Predicate`, which the text "low <= high" then means.

    Where the higher column is held at a value, such as a cap or the end of time, whatever the lower one is, a column of
    levels says so beside the difference. Where a lower value such as -1 for "not known" is far below all others, its
    differences are counted from their least one. Models draw nothing outside of the range that the higher column had.

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

    low: Label
    high: Label
    strict: bool = False
    fine: float = field(default=0.0, kw_only=True, repr=False)  # the difference's grid
    held: list[list[float]] = field(
        default_factory=list, kw_only=True, repr=False
    )  # days (0 but for times), and seconds or a number

    least: float | None = field(
        default=None, kw_only=True, repr=False
    )  # what the higher column can be, as its schema says
    most: float | None = field(default=None, kw_only=True, repr=False)
    shifts: list[list[float]] = field(
        default_factory=list, kw_only=True, repr=False
    )  # lower value, what differences are counted from

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low == self.high:
            raise ValueError(f"the rule {self.shown} compares a column with itself")

    def __str__(self) -> str:
        return f"{quote(self.low)} {'<' if self.strict else '<='} {quote(self.high)}"

    def columns(self) -> list[Any]:
        return [self.low, self.high]

    def replaced(self) -> list[Any]:
        return [self.high]

    def made(self) -> list[Any]:
        return [*([self.place] if self.held else []), self.difference]

    @property
    def difference(self) -> str:
        """The name of the column that is modelled in place of the higher one."""
        return f"{self.high} - {self.low}"

    @property
    def place(self) -> str:
        """The name of the column of the values at which the higher one is held."""
        return f"{self.high} at"

    def check_learnt(self) -> None:
        super().check_learnt()
        if self.fine < 0 or not all(len(pair) == 2 for pair in [*self.held, *self.shifts]):
            raise ValueError(f"the rule {self.shown}: {self.fine}, {self.held!r:.80} cannot have been learnt")
        self._levels()

    def check_modelled(self, schema: Schema) -> None:
        dtype = cells.dtype_of(schema[self.difference].dtype)
        found = cells.family(pd.Series([], dtype=dtype), self.difference)
        if (found == "timedelta") != (cells.dtype_of(self.dtype).kind in "Mm") or found not in ("number", "timedelta"):
            raise ValueError(f"column {self.difference!r} is of type {dtype}, of which there is no {self.high!r}")
        if self.held:
            check_levels(schema, self.place, self._levels())

    def learn(self, df: pd.DataFrame, given: Overrides | None = None) -> "LessThan":
        self.held = []
        super().learn(df)
        high = learn(df[self.high], self.high, (given or {}).get(self.high, {}))
        gap = self._gap(df)  # raises unless the two can be compared
        if count := self.lost(df):
            raise ValueError(
                f"the rule {self.shown} works by the difference, and {count} rows have a {self.high!r} without a "
                f"{self.low!r}, which would be lost: "
                f"use flowlab.Predicate({str(self)!r})"
            )
        self.dtype, self.null = high.dtype, high.null
        steps = [grid_step(df[name], name) for name in self.columns()]
        self.step, self.fine = steps[1], min(steps)
        self.least, self.most = _bounds(high, 1e-6 * self.step)
        total = _total(*clock(df[self.high], self.high, None))
        if not np.isnan(total).all():
            self.lower, self.upper = float(np.nanmin(total)), float(np.nanmax(total))
        self.held, self.shifts = self._held(df, gap), self._shifts(df, gap)
        super().learn(df)  # the names that it makes are known only now
        return self

    def lost(self, df: pd.DataFrame) -> int:
        """The number of rows with a higher value but no lower one, which no difference can represent."""
        return int((df[self.low].isna() & df[self.high].notna()).sum())

    def overrides(self) -> dict[Any, dict[str, Any]]:
        places = {self.place: {"kind": "categorical"}} if self.held else {}
        return {**places, self.difference: {"lower": None if self.shifts else self._least}}

    @property
    def _least(self) -> float:
        return self.fine if self.strict else 0.0

    def broken(self, df: pd.DataFrame) -> Rows:
        self._check(df)
        gap = self._gap(df)
        broken = gap <= 0 if self.strict else gap < 0
        if (self.least is not None or self.most is not None) and not df[self.high].isna().all():
            high = self._total_of(df, self.high)
            broken |= high < (-np.inf if self.least is None else self.least)
            broken |= high > (np.inf if self.most is None else self.most)
        return broken

    def _total_of(self, df: pd.DataFrame, name: Any) -> Array:
        """One number for each cell of either column, times by the clock of the higher one."""
        return _total(*clock(df[name], name, pd.Series([], dtype=cells.dtype_of(self.dtype))))

    def outside(self, df: pd.DataFrame) -> Rows:
        if df[self.high].isna().all():
            return np.zeros(len(df), dtype=bool)
        return ~self.within(self._total_of(df, self.high))

    def _gap(self, df: pd.DataFrame) -> Array:
        """high - low: numbers, or seconds."""
        if df[self.low].isna().all() or df[self.high].isna().all():  # of whatever dtype
            return np.full(len(df), np.nan)
        low, high = (clock(df[name], name, df[self.high]) for name in self.columns())
        if (low[0] is None) != (high[0] is None):
            raise ValueError(
                f"the rule {self.shown} compares times with what is none: "
                f"{df[self.low].dtype} and {df[self.high].dtype}"
            )
        gap = high[1] - low[1]
        if low[0] is not None and high[0] is not None:
            gap = gap + (high[0] - low[0]) * DAY
        return on_grid(gap, self.fine) if self.fine else gap

    def _held(self, df: pd.DataFrame, gap: Array) -> list[list[float]]:
        """Values of the higher column in many rows, to which lower values and unrelated differences do not add up."""
        known = ~np.isnan(gap) & ~self.broken(df)
        if known.sum() < HELD_ROWS:
            return []
        days, x = clock(df[self.high][known], self.high, None)
        high, gap = _total(days, x), gap[known]
        low = high - gap
        values, first, counts = np.unique(high, return_index=True, return_counts=True)
        gaps, often = np.unique(gap, return_counts=True)
        found = []
        for k in np.flatnonzero(counts >= max(HELD_SHARE * len(high), HELD_ROWS)):
            wanted = on_grid(values[k] - low, self.fine) if self.fine else values[k] - low
            where = np.searchsorted(gaps, wanted).clip(max=len(gaps) - 1)
            expected = np.where(gaps[where] == wanted, often[where], 0).mean()
            if expected < counts[k] / 2:
                found.append([0.0 if days is None else float(days[first[k]]), float(x[first[k]])])
        return found

    def _shifts(self, df: pd.DataFrame, gap: Array) -> list[list[float]]:
        """Lower values in many rows, such as -1 for "not known", with differences larger than nearly all others."""
        known = ~np.isnan(gap)
        if known.sum() < HELD_ROWS:
            return []
        low, gap = self._total_of(df, self.low)[known], gap[known]
        values, where, counts = np.unique(low, return_inverse=True, return_counts=True)
        many = counts >= max(HELD_SHARE * len(low), HELD_ROWS)
        others = gap[~many[where]]
        if not len(others):
            return []
        least = [(float(values[k]), float(gap[where == k].min())) for k in np.flatnonzero(many)]
        return [[value, start] for value, start in least if start > np.quantile(others, 0.95)]

    def _starts(self, df: pd.DataFrame) -> Array:
        """What the difference of each row is counted from."""
        starts = np.zeros(len(df))
        if self.shifts and not df[self.low].isna().all():
            low = self._total_of(df, self.low)
            for value, start in self.shifts:
                starts[low == value] = start
        return starts

    def _levels(self) -> list[str]:
        """What the column of places says: the values that are held, and that it is another."""
        if not self.held:
            return []
        days, x = np.array(self.held, dtype=np.float64).T
        return [*map(str, self._values(days, x)), OTHER]

    def _values(self, days: Array | None, x: Array) -> pd.Series:
        """Days and seconds, or numbers, in the type of the higher column."""
        kind = cells.dtype_of(self.dtype)
        if kind.kind == "M":
            return cells.clock_times(np.zeros_like(x) if days is None else days, x, self.dtype, self.high)
        if kind.kind == "m":
            return cells.differences(x, self.dtype, self.high)
        return cells.from_numbers(x, self.dtype, self.high, NULLS[self.null])

    def rewrite(self, df: pd.DataFrame) -> pd.DataFrame:
        gap = self._gap(df)
        differences = gap - self._starts(df)
        position = list(df.columns).index(self.high)
        frame = df.drop(columns=self.high)
        if self.held:
            codes = np.full(len(df), len(self.held))
            codes[np.isnan(gap)] = -1
            for k, pair in enumerate(self.held):
                days, x = clock(df[self.high], self.high, None) if not np.isnan(gap).all() else (None, gap)
                codes[(x == pair[1]) & (True if days is None else days == pair[0]) & ~np.isnan(gap)] = k
            differences = np.where((codes >= 0) & (codes < len(self.held)), self._least, differences)
            levels = pd.Categorical.from_codes(codes, categories=self._levels())
            frame.insert(position, self.place, pd.Series(levels, index=df.index))
            position += 1
        frame.insert(position, self.difference, self._differences(df, differences).set_axis(df.index))
        return frame

    def _differences(self, df: pd.DataFrame, gap: Array) -> pd.Series:
        found = [cells.family(df[name], name) for name in self.columns()]
        if "number" in found or "boolean" in found:
            whole = all(df[name].dtype.kind in "iu" for name in self.columns())
            dtype = "float64" if not whole else "Int64" if np.isnan(gap).any() else "int64"
            return cells.from_numbers(gap, dtype, self.difference)
        units = [cells.unit_of(df[name].dtype) for name in self.columns()]
        unit = max(units, key=cells.TICKS.__getitem__)
        return cells.differences(gap, f"timedelta64[{unit}]", self.difference)

    def _backward(self, df: pd.DataFrame) -> pd.DataFrame:
        gap = clock(df[self.difference], self.difference, None)[1] + self._starts(df)
        like = pd.Series([], dtype=cells.dtype_of(self.dtype))
        days, low = clock(df[self.low], self.low, like)
        high = self._on_step(low + gap, low)
        high = np.where(self._unstorable(_total(days, high)), self._stand_in(low), high)
        if self.held:
            codes, found = cells.levels(df[self.place], self.place)
            names = self._levels()
            where = np.array([*(names.index(name) for name in found), -1])[codes]
            at, there = np.array(self.held)[where.clip(0, len(self.held) - 1)], (where >= 0) & ~np.isnan(low)
            held = there & (where < len(self.held))
            high = np.where(held, at[:, 1], np.where(there, high, np.nan))
            days = None if days is None else np.where(held, at[:, 0], days)
        frame = df.drop(columns=[name for name in self.made() if name in df.columns])
        frame[self.high] = self._values(days, high).set_axis(df.index)
        return frame

    def _unstorable(self, total: Array) -> Rows:
        lowest, highest = storable(self.dtype)
        return (total < lowest) | (total > highest)

    def _stand_in(self, low: Array) -> Array:
        """The replacement for values that the dtype cannot hold: one that breaks the rule, or lies outside the data."""
        lowest, highest = storable(self.dtype)
        below = low - max(self.step, 1.0)
        outside = lowest if self.lower is not None and lowest < self.lower else highest
        return np.where(below < lowest, outside, below)

    def _on_step(self, high: Array, low: Array) -> Array:
        """On the grid of the higher column, and one cell up where rounding went below the lower one."""
        if not self.step:
            return high
        rounded = on_grid(high, self.step)
        below = rounded <= low if self.strict else rounded < low
        return np.where(below & ~(high < low), on_grid(rounded + self.step, self.step), rounded)


def _total(days: Array | None, x: Array) -> Array:
    """One number for each time, too."""
    return x if days is None else days * DAY + x


def _bounds(column: ColumnSchema, slack: float) -> tuple[float | None, float | None]:
    """The bounds of a column as one number each, with room for rounding errors; those of times are whole days."""
    lower, upper = column.lower, column.upper
    if column.kind == "datetime":
        lower = None if lower is None else day_number(lower) * DAY
        upper = None if upper is None else np.nextafter((day_number(upper) + 1) * DAY, 0)
        slack = 0.0
    return None if lower is None else float(lower) - slack, None if upper is None else float(upper) + slack
