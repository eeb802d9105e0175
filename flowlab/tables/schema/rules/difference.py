"""`LessThan`: one column never exceeds another."""

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

HELD_SHARE, HELD_ROWS = 0.05, 10  # a value is frequent from this share and number of rows on
OTHER = "other"


@dataclass
class LessThan(Computed):
    """One column never exceeds another: their difference is modelled in place of the higher one.

    Times are subtracted as local times, so that whole days stay whole when the clocks change. There is no difference
    where the lower value is missing: a table with a higher value in such a row is rejected and needs a `Predicate`,
    which the text "low <= high" then becomes.

    If the higher column is often held at one value regardless of the lower column, such as a cap or a date that stands
    for "never", a categorical column beside the difference says so. If a frequent lower value, such as -1 for
    "unknown", has far larger differences than the others, these are counted from their minimum. Samples stay within
    the range of the higher column in training.

    Args:
        low: The lower column: numbers, times or time differences.
        high: The higher column.
        strict: Whether equality breaks the rule.

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
    fine: float = field(default=0.0, kw_only=True, repr=False)  # the grid of the difference
    # Each of these is a pair: days (0 except for datetimes), and seconds or a number.
    held: list[list[float]] = field(default_factory=list, kw_only=True, repr=False)
    least: float | None = field(default=None, kw_only=True, repr=False)  # bounds of the higher column in its schema
    most: float | None = field(default=None, kw_only=True, repr=False)
    # Each of these is a pair: a lower value, and the origin of its differences.
    shifts: list[list[float]] = field(default_factory=list, kw_only=True, repr=False)

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
        """The name of the column of differences."""
        return f"{self.high} - {self.low}"

    @property
    def place(self) -> str:
        """The name of the column that says where the higher column is held."""
        return f"{self.high} at"

    def check_learnt(self) -> None:
        super().check_learnt()
        if self.fine < 0 or not all(len(pair) == 2 for pair in [*self.held, *self.shifts]):
            raise ValueError(f"the rule {self.shown}: {self.fine}, {self.held!r:.80} cannot have been learnt")
        self._levels()

    def check_modelled(self, schema: Schema) -> None:
        dtype = cells.dtype_of(schema[self.difference].dtype)
        kind = cells.family(pd.Series([], dtype=dtype), self.difference)
        if (kind == "timedelta") != (cells.dtype_of(self.dtype).kind in "Mm") or kind not in ("number", "timedelta"):
            raise ValueError(f"column {self.difference!r} is of type {dtype}, of which there is no {self.high!r}")
        if self.held:
            check_levels(schema, self.place, self._levels())

    def learn(self, df: pd.DataFrame, given: Overrides | None = None) -> "LessThan":
        self.held = []
        super().learn(df)
        high = learn(df[self.high], self.high, (given or {}).get(self.high, {}))
        gap = self._gap(df)  # raises unless the columns are comparable
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
        super().learn(df)  # the names of the added columns are known only now
        return self

    def lost(self, df: pd.DataFrame) -> int:
        """The number of rows with a higher value but no lower one, which no difference can represent."""
        return int((df[self.low].isna() & df[self.high].notna()).sum())

    def overrides(self) -> dict[Any, dict[str, Any]]:
        places = {self.place: {"kind": "categorical", "unseen": 0.0}} if self.held else {}
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
        """Either column as one number per cell, times in the time zone of the higher column."""
        return _total(*clock(df[name], name, pd.Series([], dtype=cells.dtype_of(self.dtype))))

    def outside(self, df: pd.DataFrame) -> Rows:
        if df[self.high].isna().all():
            return np.zeros(len(df), dtype=bool)
        return ~self.within(self._total_of(df, self.high))

    def _gap(self, df: pd.DataFrame) -> Array:
        """high - low, as numbers or seconds."""
        if df[self.low].isna().all() or df[self.high].isna().all():  # regardless of the dtype
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
        """Values that the higher column takes far more often than independent differences would explain."""
        known = ~np.isnan(gap) & ~self.broken(df)
        if known.sum() < HELD_ROWS:
            return []
        days, x = clock(df[self.high][known], self.high, None)
        high, gap = _total(days, x), gap[known]
        low = high - gap
        values, first, counts = np.unique(high, return_index=True, return_counts=True)
        gaps, often = np.unique(gap, return_counts=True)
        held = []
        for k in np.flatnonzero(counts >= max(HELD_SHARE * len(high), HELD_ROWS)):
            wanted = on_grid(values[k] - low, self.fine) if self.fine else values[k] - low
            where = np.searchsorted(gaps, wanted).clip(max=len(gaps) - 1)
            expected = np.where(gaps[where] == wanted, often[where], 0).mean()
            if expected < counts[k] / 2:
                held.append([0.0 if days is None else float(days[first[k]]), float(x[first[k]])])
        return held

    def _shifts(self, df: pd.DataFrame, gap: Array) -> list[list[float]]:
        """Frequent lower values, such as -1 for "unknown", with differences larger than nearly all others."""
        known = ~np.isnan(gap)
        if known.sum() < HELD_ROWS:
            return []
        low, gap = self._total_of(df, self.low)[known], gap[known]
        values, where, counts = np.unique(low, return_inverse=True, return_counts=True)
        many = counts >= max(HELD_SHARE * len(low), HELD_ROWS)
        others = gap[~many[where]]
        if not len(others):
            return []
        minima = [(float(values[k]), float(gap[where == k].min())) for k in np.flatnonzero(many)]
        return [[value, start] for value, start in minima if start > np.quantile(others, 0.95)]

    def _starts(self, df: pd.DataFrame) -> Array:
        """The origin from which each row's difference is counted."""
        starts = np.zeros(len(df))
        if self.shifts and not df[self.low].isna().all():
            low = self._total_of(df, self.low)
            for value, start in self.shifts:
                starts[low == value] = start
        return starts

    def _levels(self) -> list[str]:
        """The levels of the column `place`: the held values, and one for all others."""
        if not self.held:
            return []
        days, x = np.array(self.held, dtype=np.float64).T
        return [*map(str, self._values(days, x)), OTHER]

    def _values(self, days: Array | None, x: Array) -> pd.Series:
        """Days and seconds, or numbers, in the dtype of the higher column."""
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
        families = [cells.family(df[name], name) for name in self.columns()]
        if "number" in families or "boolean" in families:
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
            codes, texts = cells.levels(df[self.place], self.place)
            names = self._levels()
            where = np.array([*(names.index(name) for name in texts), -1])[codes]
            at, present = np.array(self.held)[where.clip(0, len(self.held) - 1)], (where >= 0) & ~np.isnan(low)
            held = present & (where < len(self.held))
            high = np.where(held, at[:, 1], np.where(present, high, np.nan))
            days = None if days is None else np.where(held, at[:, 0], days)
        frame = df.drop(columns=[name for name in self.made() if name in df.columns])
        frame[self.high] = self._values(days, high).set_axis(df.index)
        return frame

    def _unstorable(self, total: Array) -> Rows:
        lowest, highest = storable(self.dtype)
        return (total < lowest) | (total > highest)

    def _stand_in(self, low: Array) -> Array:
        """What replaces values that the dtype cannot hold: a value that breaks the rule, or lies outside the data."""
        lowest, highest = storable(self.dtype)
        below = low - max(self.step, 1.0)
        outside = lowest if self.lower is not None and lowest < self.lower else highest
        return np.where(below < lowest, outside, below)

    def _on_step(self, high: Array, low: Array) -> Array:
        """Round to the grid of the higher column, one step up where rounding would break the rule."""
        if not self.step:
            return high
        rounded = on_grid(high, self.step)
        below = rounded <= low if self.strict else rounded < low
        return np.where(below & ~(high < low), on_grid(rounded + self.step, self.step), rounded)


def _total(days: Array | None, x: Array) -> Array:
    """Days and seconds as seconds; other numbers unchanged."""
    return x if days is None else days * DAY + x


def _bounds(column: ColumnSchema, slack: float) -> tuple[float | None, float | None]:
    """The bounds of a column as one number each: whole days for datetimes, else with a margin for rounding errors."""
    lower, upper = column.lower, column.upper
    if column.kind == "datetime":
        lower = None if lower is None else day_number(lower) * DAY
        upper = None if upper is None else np.nextafter((day_number(upper) + 1) * DAY, 0)
        slack = 0.0
    return None if lower is None else float(lower) - slack, None if upper is None else float(upper) + slack
