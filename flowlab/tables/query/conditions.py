"""Drawing under conditions: which rows a mixture of `MixedFlow`s gives when some cells are known, or known to lie somewhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowlab.flow import CHUNK
from flowlab.mixture import FlowMixture
from flowlab.tables.codec.table import WholeTable
from flowlab.tables.frames.arrow import to_pandas
from flowlab.tables.mixed.mixed_flow import MixedFlow, choose
from flowlab.tables.schema.grid import on_grid
from flowlab.tables.schema.relations import Column, Columns

IMPOSSIBLE = 1e-7  # probability of a condition, given those before it, below which it is refused
RARE = 1e-4  # share of draws that keep the conditions, below which no more are made
ENOUGH = 50 * CHUNK  # draws that tell whether so few keep them


class ConditionError(ValueError):
    """A condition has no probability, or next to none, under the model."""


@dataclass
class Conditions:
    """What is asked of rows: values of some units, and where some others may lie.

    Attributes:
        values: Known value of a unit; NaN for a missing cell.
        allowed: Closed intervals of numbers or codes for a unit.
        words: How the user said it, by unit.
    """

    values: dict[int, float] = field(default_factory=dict)
    allowed: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)


def read_given(given: Any) -> pd.DataFrame | dict[Any, Any]:
    """What a user asks of rows: a table of conditions, one per row; or for each column a value, a pair (low, high) or a list of values.

    Raises:
        TypeError: It is neither a table, nor a dict or Series of conditions.
        ValueError: A column's condition is none.
    """
    given = to_pandas(given)
    if given is None:
        return {}
    if isinstance(given, pd.DataFrame):
        return given
    if isinstance(given, list | tuple) and given and all(isinstance(row, Mapping | pd.Series) for row in given):
        names = list(given[0].keys())
        if any(list(row.keys()) != names for row in given):
            raise ValueError(f"given: all rows of conditions must be on the same columns, those of the first: {names}")
        return pd.DataFrame([dict(row) for row in given])
    if not isinstance(given, Mapping | pd.Series):
        raise TypeError(
            f"given must be a dict from column to condition, or a table with one row of conditions per row, not a {type(given).__name__}"
        )
    return {name: plain_wish(name, wish) for name, wish in given.items()}


def plain_wish(name: Any, wish: Any) -> Any:
    """A condition as a value, a tuple (low, high) or a list of values, whatever held the values."""
    if isinstance(wish, torch.Tensor) or (isinstance(wish, np.ndarray) and wish.ndim == 0):
        wish = wish.tolist()
    if isinstance(wish, pd.Interval):
        wish = (wish.left, wish.right)
    if isinstance(wish, np.bool_ | np.integer | np.floating):
        return wish.item()
    if pd.api.types.is_scalar(wish):
        return wish
    if isinstance(wish, Mapping) or not pd.api.types.is_list_like(wish) or getattr(wish, "ndim", 1) != 1:
        raise ValueError(
            f"column {name!r}: a condition is a value, a pair (low, high), or a list or set of values, not {short(wish)}"
        )
    values = [plain_wish(name, value) for value in wish]
    if any(isinstance(value, tuple | list) for value in values):
        raise ValueError(f"column {name!r}: a condition lists single values, not {short(wish)}")
    return tuple(values) if isinstance(wish, tuple) else values


def short(wish: Any) -> str:
    """A condition as text of no more than a line."""
    text = repr(wish)
    return text if len(text) <= 80 else text[:77] + "..."


def read_conditions(table: WholeTable, given: Mapping[Any, Any]) -> Conditions:
    """The conditions that a user's dict says: a value, a (low, high) pair, or a list or set of values for each column.

    Raises:
        ValueError: A column cannot be given, or cannot have such a value; the message names it.
    """
    found = Conditions()
    units = [unit.column for unit in table.units]
    for name, wish in given.items():
        listed, low_high = read_wish(name, wish)
        lone = is_lone(wish)
        place = table.place(name)
        own = range(len(units))[place]
        if low_high:
            rows = interval_ends(table, name, wish)
        else:
            rows = table.codec.encode_cells(name, listed[0] if lone else listed)
        for j in own:
            found.words[j] = f"{name} = {wish!r}" if lone else f"{name} in {short(wish)}"
        if lone:
            found.values |= {j: float(x) for j, x in zip(own, rows[0], strict=True)}
        elif low_high:
            if not rows[0, 0] <= rows[1, 0]:
                raise ValueError(f"column {name!r}: the interval {wish!r} is empty")
            # Of a time's units, days and seconds, the day alone is held here; what lies at the ends is sorted out afterwards.
            found.allowed[own[0]] = [(float(rows[0, 0]), float(rows[1, 0]))]
        else:
            first = rows[:, 0]
            if np.isnan(first).any():
                if not table.units[own[0]].classes:
                    raise ValueError(f"column {name!r}: ask for missing cells alone, not among other values")
                first = np.where(np.isnan(first), table.units[own[0]].classes, first)
            found.allowed[own[0]] = [(float(x), float(x)) for x in np.unique(first)]
    return found


def is_lone(wish: Any) -> bool:
    """Whether a condition is one value."""
    return not isinstance(wish, tuple | list)


def read_wish(name: Any, wish: Any) -> tuple[list[Any], bool]:
    """The values that a condition on a column lists, and whether they are the ends of an interval."""
    low_high = isinstance(wish, tuple)
    if low_high and len(wish) != 2:
        raise ValueError(f"column {name!r}: an interval is a pair (low, high), not {wish!r}")
    listed = [wish] if is_lone(wish) else list(wish)
    if not listed:
        raise ValueError(f"column {name!r}: the set of allowed values is empty")
    return listed, low_high


def read_ranges(columns: Columns, given: Mapping[Any, Any]) -> dict[int, list[tuple[float, float]]]:
    """As `read_conditions`, for complete numbers: the closed intervals that each column may lie in, by its place.

    Raises:
        ValueError: There is no such column, or it cannot have such a value, or one value of it has no probability.
    """
    names, found = [column.name for column in columns.columns], {}
    for name, wish in given.items():
        if str(name) not in names:
            raise ValueError(f"there is no column {name!r}; there are {', '.join(map(repr, names))}")
        j = names.index(str(name))
        listed, low_high = read_wish(name, wish)
        try:
            values = [math.nan if value is None else float(value) for value in listed]
        except (TypeError, ValueError):
            raise ValueError(f"column {name!r} holds numbers, not {wish!r}") from None
        if low_high:
            slack = 1e-6 * columns.columns[j].resolution
            low, high = (end if math.isnan(value) else value for value, end in zip(values, (-math.inf, math.inf)))
            if not low <= high:
                raise ValueError(f"column {name!r}: the interval {wish!r} is empty")
            found[j] = [(low - slack, high + slack)]
        else:
            found[j] = [around(columns.columns[j], value) for value in values]
    return found


def around(column: Column, value: float) -> tuple[float, float]:
    """The interval that stands for one value of a column of complete numbers, if that has a probability."""
    if math.isnan(value):
        raise ValueError(f"column {column.name!r} cannot be missing: every cell of it was there in training")
    if column.resolution and column.kind != "atoms":
        near, half, holds = on_grid(np.array(value), column.resolution), column.resolution / 4, "multiples of its step"
        known = abs(float(near) - value) < half
    elif column.kind == "constant":
        half, holds, known = column.tolerance, "one value", abs(value - column.value) <= column.tolerance
    else:
        half, holds, known = 0.0, "", value in column.atoms
        if not known:
            raise ValueError(
                f"column {column.name!r} holds numbers that do not repeat, and one of them, {value:g}, has no probability: give an interval "
                '(low, high), or fit with FlowDensity(members=["mixed"]), which can tell what a value says of the others'
            )
    if not known:
        raise ValueError(
            f"column {column.name!r} cannot be {value:g}: it holds {holds} {column.resolution or column.value:g}"
        )
    return value - half, value + half


def inside(rows: NDArray[np.float64], ranges: Mapping[int, list[tuple[float, float]]]) -> NDArray[np.bool_]:
    """Which rows (n, columns) lie where `read_ranges` says."""
    kept = np.ones(len(rows), dtype=bool)
    for j, intervals in ranges.items():
        kept &= np.any([(rows[:, j] >= low) & (rows[:, j] <= high) for low, high in intervals], axis=0)
    return kept


def interval_ends(table: WholeTable, name: Any, wish: tuple[Any, Any]) -> np.ndarray:
    """Both ends of an interval as numbers (2, 1) of the column's first unit; None, or infinity, is an open end."""
    column, unit = table.codec.schema[name], table.units[table.place(name)][0]
    if unit.classes and not column.ordered:
        raise ValueError(f"column {name!r} has levels without an order: give a list of them, not an interval")
    open_ends = (0.0, unit.classes - 1.0) if unit.classes else (unit.lower, unit.upper)
    out = np.array(open_ends)[:, None]
    for i, end in enumerate(wish):
        if not (end is None or (isinstance(end, float) and math.isinf(end))):
            out[i] = table.encode_end(name, end)
    if unit.resolution:  # the multiples within
        out[0], out[1] = np.ceil(out[0] / unit.resolution - 1e-6), np.floor(out[1] / unit.resolution + 1e-6)
        out *= unit.resolution
    out[0], out[1] = max(out[0, 0], open_ends[0]), min(out[1, 0], open_ends[1])
    return out


@torch.no_grad()
def draw(
    mixture: FlowMixture, conditions: Conditions, n: int, generator: torch.Generator | None
) -> tuple[Tensor, float]:
    """Rows (n, units) under conditions, and the share of draws that was accepted.

    Known values come first in the order, then the units that are held to intervals or sets, each drawn from where it may be; a draw is accepted
    with the probability that the later of these conditions had given the earlier ones, which makes the rows exact draws.

    Raises:
        ConditionError: A condition has (nearly) no probability; the message says which.
    """
    flows: list[MixedFlow] = list(mixture)
    device = mixture.log_weights.device
    x = torch.full((1, mixture.features), math.nan, dtype=torch.float64, device=device)
    known = torch.zeros_like(x, dtype=torch.bool)
    log_shares = mixture.log_weights.clone()
    before = 0.0
    for j in [j for j in flows[0].in_order() if j in conditions.values]:
        x[0, j], known[0, j] = conditions.values[j], True
        log_p = member_log_prob(mixture, x, known)[:, 0]
        total = float(log_p.logsumexp(0))
        refuse_improbable(total - before, flows[0], j, x[0, j], conditions)
        before, log_shares = total, log_p - total
    # The first restricted unit has one probability under each member: members count by it.
    restricted = [j for j in flows[0].in_order() if j in conditions.allowed]
    if restricted:
        log_shares = log_shares + torch.stack([one_mass(flow, restricted[0], x, known, conditions) for flow in flows])
        if not float(log_shares.logsumexp(0)) > math.log(IMPOSSIBLE):
            raise ConditionError(
                f"the condition {conditions.words[restricted[0]]} has a probability below {IMPOSSIBLE:g}"
            )
    shares = log_shares.softmax(0)
    found: list[Tensor] = []
    accepted = tried = 0
    while True:
        want = min(max(math.ceil((n - accepted) / max(accepted / tried if tried else 1.0, 0.01)), 1), CHUNK)
        which = torch.multinomial(shares, want, replacement=True, generator=generator)
        for k, flow in enumerate(flows):
            count = int((which == k).sum())
            if count:
                rows = _propose(flow, restricted, x.expand(count, -1), known.expand(count, -1), conditions, generator)
                found.append(rows)
                accepted += len(rows)
        tried += want
        if accepted >= n:
            rows = torch.cat(found)
            # Members lie one after the other: mixed, so that the first n are of all of them.
            return rows[torch.randperm(len(rows), generator=generator)[:n]], accepted / tried
        if tried >= ENOUGH and accepted < RARE * tried:
            break
    wishes = " and ".join(dict.fromkeys(conditions.words[j] for j in restricted))
    raise ConditionError(
        f"the conditions {wishes} together have next to no probability: {accepted} of {tried} draws kept them"
    )


def _propose(
    flow: MixedFlow,
    restricted: Sequence[int],
    x: Tensor,
    known: Tensor,
    conditions: Conditions,
    generator: torch.Generator | None,
) -> Tensor:
    x, shown, known = x.clone(), flow.shown(x, known), known.clone()
    log_accept = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for i, j in enumerate(restricted):
        x[:, j], log_mass = flow.draw_within(j, shown, conditions.allowed[j], generator)
        flow.show(shown, j, x[:, j])
        known[:, j] = True
        if i:
            log_accept += log_mass
    uniform = torch.rand(len(x), dtype=torch.float64, device=x.device, generator=generator)
    kept = uniform < log_accept.exp()
    return flow.fill(x[kept], known[kept], generator=generator)


def one_mass(flow: MixedFlow, unit: int, x: Tensor, known: Tensor, conditions: Conditions) -> Tensor:
    """Log-probability that a unit is where it may be, given the known cells of one row."""
    own = torch.Generator(x.device).manual_seed(0)  # the draw that comes with it is not used
    return flow.draw_within(unit, flow.shown(x, known), conditions.allowed[unit], own)[1][0]


def refuse_improbable(log_p: float, flow: MixedFlow, unit: int, value: Tensor, conditions: Conditions) -> None:
    """Raises where a known value cannot be, or has next to no probability of its own, given those before it."""
    ranks = flow._ranks().get(unit)
    own_probability = ranks is None or bool(torch.isnan(value)) or float(ranks.cell(value[None]).width[0]) > 0
    if log_p == -math.inf or (own_probability and log_p < math.log(IMPOSSIBLE)):
        raise ConditionError(
            f"the condition {conditions.words[unit]} has a probability of {math.exp(log_p):.1g}, given the conditions before it"
        )


@torch.no_grad()
def fill(
    mixture: FlowMixture,
    x: Tensor,
    known: Tensor,
    missing: bool = True,
    generator: torch.Generator | None = None,
    units: Sequence[int] | None = None,
) -> Tensor:
    """Draws the cells of rows (n, units) that are not known, or those of some units alone, given the known ones.

    Raises:
        ConditionError: The known cells of a row cannot be together; the message names the row.
    """
    uniform = torch.rand(len(x), dtype=torch.float64, device=x.device, generator=generator)
    which = choose(member_shares(mixture, x, known), uniform)
    out = x.clone()
    for k, flow in enumerate(mixture):
        rows = which == k
        if bool(rows.any()):
            out[rows] = flow.fill(x[rows], known[rows], missing, generator, units)
    return out


@torch.no_grad()
def class_probabilities(mixture: FlowMixture, x: Tensor, known: Tensor, unit: int, strict: bool = True) -> Tensor:
    """The probability of each class of a unit (n, classes), not missing, given the known cells of rows (n, units); see `member_shares`."""
    total = torch.zeros(())
    for flow, share in zip(mixture, member_shares(mixture, x, known, strict), strict=True):
        found: MixedFlow = flow
        probability = found.conditional(unit, found.shown(x, known)).exp()[: found.classes[unit]]
        total = total + share.unsqueeze(-1) * (probability / probability.sum(0)).T
    return total


def member_log_prob(mixture: FlowMixture, x: Tensor, known: Tensor) -> Tensor:
    """Log of each member's weight times its density of the known cells of rows (n, units): (members, n), nats."""
    return torch.stack([flow.log_prob(x, known=known) for flow in mixture]) + mixture.log_weights.unsqueeze(-1)


def member_shares(mixture: FlowMixture, x: Tensor, known: Tensor, strict: bool = True) -> Tensor:
    """The probability that each member gave each row (members, n), by its known cells.

    Raises:
        ConditionError: The known cells of a row cannot occur together; with `strict` False the members' weights are taken there.
    """
    log_p = member_log_prob(mixture, x, known)
    impossible = ~torch.isfinite(log_p.logsumexp(0))
    if strict and bool(impossible.any()):
        rows = impossible.nonzero().flatten().tolist()
        raise ConditionError(f"the known cells of {len(rows)} rows cannot occur together, the first in row {rows[0]}")
    return torch.where(impossible, mixture.log_weights.unsqueeze(-1), log_p).softmax(0)
