"""The base classes of rules between columns."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import NULLS, Array
from flowlab.tables.frames.validation import numpy_dtype, rounding
from flowlab.tables.schema.detect import common_step
from flowlab.tables.schema.expressions import shorten
from flowlab.tables.schema.grid import decimal_grid
from flowlab.tables.schema.schema import Schema

Rows = NDArray[np.bool_]
Label = str | int | float
COMPUTABLE = ("number", "boolean", "datetime", "timedelta")
Overrides = Mapping[Any, Mapping[str, Any]]


@dataclass
class Rule:
    """A rule between columns. Its fields are its arguments and what it has learnt, as JSON types.

    Attributes:
        order: The columns of the training table; empty until the rule has learnt.
    """

    kinds: ClassVar[dict[str, type["Rule"]]] = {}
    rejects: ClassVar[bool] = True  # whether rows from `backward` can break it

    order: list[Label] = field(default_factory=list, kw_only=True, repr=False)

    def __init_subclass__(cls) -> None:
        cls.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.generic):  # a label from an index
                value = value.item()
                setattr(self, f.name, value)
            if not fits(value, f.type):
                wanted = getattr(f.type, "__name__", str(f.type))
                raise ValueError(f"{f.name} of a rule {type(self).__name__} must be {wanted}, got {value!r:.80}")
        if self.order and not set(self.columns()) <= set(self.order):
            raise ValueError(f"the rule {self.shown} has learnt from a table without its columns")

    @property
    def shown(self) -> str:
        """The rule as shown in messages."""
        return repr(shorten(str(self)))

    def columns(self) -> list[Any]:
        """The columns that the rule refers to."""
        raise NotImplementedError

    def replaced(self) -> list[Any]:
        """The columns that `forward` removes."""
        return []

    def made(self) -> list[Any]:
        """The columns that `forward` adds in their place."""
        return []

    def learn(self, df: pd.DataFrame, given: Overrides | None = None) -> "Rule":
        """Learn the dtypes and grids that `backward` restores, from rows that keep the rule.

        Args:
            df: The table.
            given: The user's settings of columns, as in `Schema.infer`.
        """
        self._check(df)
        taken = [name for name in self.made() if name in df.columns]
        if taken:
            raise ValueError(
                f"the rule {self.shown} needs the name {taken[0]!r}, which a column already has: rename that column"
            )
        self.order = list(df.columns)
        return self

    def forward(self, df: pd.DataFrame) -> pd.DataFrame:
        """The table to model in place of the user's.

        Raises:
            ValueError: Rows break the rule; they must be dropped first.
        """
        if not self.order:
            self.learn(df)
        self._check(df)
        broken = self.broken(df)
        if broken.any():
            raise ValueError(
                f"{int(broken.sum())} of {len(df)} rows break the rule {self.shown}, "
                f"the first is row {cells.label(df.index, broken.argmax())!r}: "
                "drop them, df[~rule.broken(df)]"
            )
        return self.rewrite(df)

    def rewrite(self, df: pd.DataFrame) -> pd.DataFrame:
        """`forward` for rows that are known to keep the rule."""
        return df

    def backward(self, df: pd.DataFrame) -> pd.DataFrame:
        """Restore the user's table from a modelled one, with the columns and dtypes of training in their order.

        Impossible rows are kept, and break the rule.
        """
        if not self.order:
            raise ValueError(f"the rule {self.shown} has seen no table yet: learn(df) or forward(df) first")
        frame = self._backward(df)
        # Columns may have been dropped since.
        frame = frame[[name for name in self.order if name in frame.columns]]
        if not all(isinstance(name, str) for name in self.order):
            frame.columns = frame.columns.infer_objects()
        return frame

    def broken(self, df: pd.DataFrame) -> Rows:
        """Which rows certainly break the rule; those with missing cells may be undecided."""
        raise NotImplementedError

    def outside(self, df: pd.DataFrame) -> Rows:
        """Which rows have a computed cell outside the range of training; they are redrawn."""
        return np.zeros(len(df), dtype=bool)

    def overrides(self) -> dict[Any, dict[str, Any]]:
        """Overrides for `Schema.infer` of the columns that `forward` adds."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """The rule and what it has learnt, as JSON types."""
        return {"rule": type(self).__name__, **asdict(self)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Rule":
        """The rule that `to_json` wrote, validated as if its arguments came from a user.

        Raises:
            ValueError: It is not a rule, or its fields or their types are wrong.

        Example:
            >>> from flowlab import LessThan
            >>> Rule.from_json(LessThan("low", "high").to_json())
            LessThan(low='low', high='high', strict=False)
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"a rule must be a dict, got {data!r:.80}")
        values = dict(data)
        name = values.pop("rule", "")
        kind = Rule.kinds.get(name) if isinstance(name, str) else None
        if kind is None:
            raise ValueError(f"unknown rule {name!r:.80}; there are {', '.join(Rule.kinds)}")
        names = {f.name for f in fields(kind)}
        needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        if not needed <= values.keys() <= names:
            raise ValueError(
                f"a rule {kind.__name__} has the fields {', '.join(sorted(names))}, "
                f"got {', '.join(sorted(map(str, values)))}"
            )
        rule = kind(**values)
        rule.check_learnt()
        return rule

    def check_learnt(self) -> None:
        """Raise a ValueError if the learnt fields of a file are not ones that `learn` can produce."""

    def check_modelled(self, schema: Schema) -> None:
        """Raise a ValueError if `backward` cannot read the added columns as a file describes them."""

    def _backward(self, df: pd.DataFrame) -> pd.DataFrame:
        return df

    def _check(self, df: pd.DataFrame) -> None:
        lacking = [name for name in self.columns() if name not in df.columns]
        if lacking:
            raise ValueError(
                f"the rule {self.shown} names column {lacking[0]!r}, which is not in the table; there are "
                f"{', '.join(map(repr, df.columns))}"
            )


@dataclass
class Computed(Rule):
    """A rule that computes one column, with what it has learnt about that column.

    Attributes:
        dtype: The column's dtype.
        null: The missing value in a column of Python objects.
        step: The step of its grid; 0 for none.
        lower: Its lower bound, a number or seconds; None for none.
        upper: Its upper bound, likewise.
    """

    dtype: str = field(default="", kw_only=True, repr=False)
    null: str = field(default="None", kw_only=True, repr=False)
    step: float = field(default=0.0, kw_only=True, repr=False)
    lower: float | None = field(default=None, kw_only=True, repr=False)
    upper: float | None = field(default=None, kw_only=True, repr=False)

    def check_learnt(self) -> None:
        if self.null not in NULLS:
            raise ValueError(f"the rule {self.shown}: {self.null!r:.80} is no missing cell")
        if not (self.step == 0 or 1e-15 <= self.step <= 1e15):
            raise ValueError(f"the rule {self.shown}: {self.step} is no width of a grid")
        if bool(self.order) != bool(self.dtype):
            raise ValueError(f"the rule {self.shown} has learnt half of what it needs")
        if not self.dtype:
            return
        try:
            kind = cells.dtype_of(self.dtype)
            numbers = cells.is_object(kind) or cells.family(pd.Series([], dtype=kind), "") in COMPUTABLE
        except (TypeError, ValueError, KeyError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"the rule {self.shown}: {self.dtype!r:.80} is no type of a column") from error
        if not numbers:
            raise ValueError(f"the rule {self.shown}: nothing of type {self.dtype!r:.80} is computed")

    def within(self, values: Array, slack: float = 0.0) -> Rows:
        """Which values are NaN or lie within the bounds."""
        low = -np.inf if self.lower is None else self.lower
        high = np.inf if self.upper is None else self.upper
        return ~((values < low - slack) | (values > high + slack))


def can_miss(dtype: str) -> bool:
    """Whether a dtype can represent missing cells."""
    kind = cells.dtype_of(dtype)
    return not isinstance(kind, np.dtype) or kind.kind in "fOmM"


def storable(dtype: str) -> tuple[float, float]:
    """The smallest and largest number, or second, that a dtype can hold and float64 resolves."""
    kind = cells.dtype_of(dtype)
    if kind.kind in "Mm":
        most = 2.0**63 / cells.TICKS[cells.unit_of(kind)] - cells.DAY
        return -most, most
    number = getattr(kind, "numpy_dtype", kind)
    if number.kind == "b":
        return 0.0, 1.0
    if number.kind in "iu":
        info = np.iinfo(number)
        return float(max(info.min, -cells.EXACT)), float(min(info.max, cells.EXACT))
    largest = float(np.finfo(number if number.kind == "f" else np.float64).max)
    return -largest, largest


def fits(value: Any, wanted: Any) -> bool:
    """Whether a JSON value matches a type annotation.

    Example:
        >>> fits(["a", 1], list[str | int]), fits(True, float), fits(float("nan"), float)
        (True, False, False)
    """
    if wanted is Any:
        return True
    if get_origin(wanted) in (Union, UnionType):
        return any(fits(value, one) for one in get_args(wanted))
    if get_origin(wanted) is list:
        return isinstance(value, list) and all(fits(one, get_args(wanted)[0]) for one in value)
    if get_origin(wanted) is dict:
        key, item = get_args(wanted)
        return isinstance(value, dict) and all(fits(k, key) and fits(v, item) for k, v in value.items())
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(None) if wanted is None else wanted)


def check_levels(schema: Schema, name: Any, known: list[str]) -> None:
    """Raise a ValueError if a modelled column has levels that a rule does not know."""
    column = schema[name]
    levels = [*column.categories, *column.recoding, column.value]
    if column.kind not in ("categorical", "constant", "duplicate") or not set(map(str, levels)) <= {*known, "None"}:
        raise ValueError(f"column {name!r} of a rule has levels that the rule does not know")


def clock(values: pd.Series, name: Any, like: pd.Series | None) -> tuple[Array | None, Array]:
    """Days (None except for datetimes), and seconds or numbers; in the time zone of another column, if given."""
    family = cells.family(values, name)
    if family == "datetime":
        zone = cells.zone_of(values.dtype if like is None else like.dtype)
        return cells.days_and_seconds(values, zone, name)
    return None, cells.seconds(values, name) if family == "timedelta" else cells.numbers(values, name)


def grid_step(values: pd.Series, name: Any) -> float:
    """The power of ten, or the day, that divides all values; 0 if none does.

    A power of ten is at most 1, as other rows may lie between multiples of a larger one.
    """
    days, x = clock(values.dropna(), name, None)
    if days is not None and not x.any():
        return float(cells.DAY)
    precision = rounding(numpy_dtype(cells.spell(values.dtype)))
    x = np.append(x, 0.0)  # a single value determines no grid
    return common_step(x, min(decimal_grid(x, 8 * precision * np.abs(x)), 1.0), precision)
