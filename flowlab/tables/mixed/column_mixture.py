"""`ColumnMixture`: networks and trees mixed column by column, each column by what predicts it best."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowlab.mixture import stack
from flowlab.registry import register
from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.tables.mixed.distributions import (
    HeadDistribution,
    MixedDistribution,
    NumberDistribution,
    choose,
    uniform_from,
)
from flowlab.tables.mixed.forest import Forest
from flowlab.tables.mixed.heads import FAR
from flowlab.tables.mixed.leaves import KINDS, LeafDistribution, Leaves
from flowlab.tables.mixed.marginal_cdf import MarginalCDF
from flowlab.tables.mixed.mixed_flow import MixedFlow
from flowlab.tables.mixed.networks import CODE, LOG_SLOPE, MISSING, Z, fields_of, number_cells

PARTS = 1 + len(KINDS)  # networks, and each kind of leaves
SHRINKAGE = 5.0  # held-out rows that the weights common to all columns count as for each column
AT_ONCE = 4096  # rows scored at once
CANDIDATES = 8  # for a number given variables after it


@dataclass
class Seen:
    """What has been observed of n rows.

    Attributes:
        networks: As the networks see it.
        trees: As trees see it (variables, n).
        known: Which cells have been observed (variables, n).
    """

    networks: Tensor
    trees: Tensor
    known: Tensor

    def take(self, rows: Tensor) -> "Seen":
        """What has been observed of some rows, by a mask (n,)."""
        return Seen(self.networks[:, rows], self.trees[:, rows], self.known[:, rows])


@register
class ColumnMixture(ConditionalDensity):
    """The density in which p(x_j | x_<j) is a mixture of what networks and trees say, with weights for each variable.

    The order is that of the networks. Trees know a variable's distribution given exactly the variables before it. Where
    others are known, too, this mixture is tilted by what the networks make of them (`_tilted_classes`); where some
    before it are not, the networks speak alone.

    Args:
        flow: The networks.
        forest: The trees, of the same variables in the same order.

    Attributes:
        weights: The weights (variables, parts) of networks, and of each kind of `LeafDistribution`.
    """

    weights: Tensor

    def __init__(self, flow: MixedFlow, forest: Forest) -> None:
        super().__init__()
        if forest.order != flow.in_order() or forest.classes != flow.classes or forest.nullable != flow.nullable:
            raise ValueError("the trees are not of the networks' variables, or in another order")
        self.flow, self.forest = flow, forest
        self.features, self.columns, self.classes = flow.features, flow.columns, flow.classes
        self.nullable, self.order = flow.nullable, flow.order
        self.register_buffer("weights", torch.full((self.features, PARTS), 1 / PARTS, dtype=torch.float64))
        self.weights[self.in_order()[0]] = _alone(self.weights)
        self.register_load_state_dict_post_hook(_check)

    def marginals(self) -> dict[int, MarginalCDF]:
        return self.flow.marginals()

    @torch.no_grad()
    def learn_weights(self, cells: Tensor, row_weight: Tensor) -> None:
        """Choose the weights that make held-out rows likeliest, shrunk to the weights common to all columns.

        Args:
            cells: Held-out rows (n, FIELDS · features), as `cells` makes them.
            row_weight: Their weights (n,).
        """
        order = self.in_order()
        later = order[1:]
        if not len(cells) or not later:
            return
        parts = torch.cat([self._parts(chunk) for chunk in cells.split(AT_ONCE)], 2)[:, later]
        # Where a cell up to a variable is not known, trees are not asked.
        known = (fields_of(cells, self.features)[CODE, order] > -0.5).cumprod(0)[1:]
        weight = row_weight * known
        common = stack(parts.flatten(1), weight.flatten(), torch.ones(PARTS), steps=100)
        for i, variable in enumerate(later):
            self.weights[variable] = stack(parts[:, i], weight[i], SHRINKAGE * common, steps=100)

    def _parts(self, cells: Tensor) -> Tensor:
        """Log-densities (parts, variables, n) of each variable given those before it, of each part."""
        fields = fields_of(cells, self.features)
        missing = fields[MISSING] > 0.5
        codes, numbers = fields[CODE].clamp(min=0), torch.where(missing, torch.nan, fields[Z])
        seen = torch.where(torch.tensor(self.classes, device=cells.device).unsqueeze(-1) > 0, codes, numbers)
        out = self.flow.log_probs(cells).double().repeat(PARTS, 1, 1)
        for variable in self.in_order()[1:]:
            of = fields[:, variable].double()
            if self.classes[variable]:
                p = self.forest.class_probabilities(variable, seen)
                out[1:, variable] = p.gather(0, codes[variable].long()[None])[0].log() + of[LOG_SLOPE]
                continue
            number = number_cells(of)
            for k, leaves in enumerate(self._leaves(variable, seen), 1):
                value = leaves.log_prob(number)
                if self.says_missing(variable):
                    value = torch.where(missing[variable], leaves.missing.log(), value + leaves.log_present)
                else:
                    value = torch.where(missing[variable], 0, value)
                out[k, variable] = value
        return out

    def _leaves(self, variable: int, seen: Tensor) -> Sequence[NumberDistribution]:
        leaves = Leaves(self.forest, variable, seen, self.marginals()[variable])
        return [LeafDistribution(leaves, kind) for kind in KINDS]

    def log_probs(self, cells: Tensor) -> Tensor:
        return torch.cat([self._log_probs(chunk) for chunk in cells.split(AT_ONCE)], 1)

    def _log_probs(self, cells: Tensor) -> Tensor:
        absent = fields_of(cells, self.features)[CODE] < -0.5
        parts = self._parts(cells)
        weight = self.weights.T.unsqueeze(-1).expand(parts.shape).clone()
        unknown = torch.zeros_like(absent[0])
        for variable in self.in_order():
            weight[:, variable, unknown] = _alone(weight).unsqueeze(-1)
            unknown = unknown | absent[variable]
        return torch.where(absent, 0, (weight.log() + parts).logsumexp(0))

    def observe(self, x: Tensor, known: Tensor) -> Seen:
        trees = torch.zeros(self.features, len(x), dtype=torch.float64, device=x.device)
        networks = self.flow.observe(x, torch.zeros_like(known))
        seen = Seen(networks, trees, torch.zeros_like(known.T))
        for variable, observed in enumerate(known.T):
            if bool(observed.any()):
                self.tell(seen, variable, x[:, variable], observed)
        return seen

    def reveal(self, seen: Seen, variable: int, place: Tensor, missing: Tensor, where: Tensor | None = None) -> None:
        self.flow.reveal(seen.networks, variable, place, missing, where)
        value = place.double() if self.classes[variable] else torch.where(missing, torch.nan, place)
        where = torch.ones_like(missing) if where is None else where
        seen.trees[variable] = torch.where(where, value, seen.trees[variable])
        seen.known[variable] |= where

    def _sees(self, variable: int, seen: Seen) -> tuple[Tensor, Tensor]:
        """Of which rows (n,) all variables before one are known, and of which any after it."""
        order = self.in_order()
        i = order.index(variable)
        return seen.known[order[:i]].all(0), seen.known[order[i + 1 :]].any(0)

    def _weights(self, variable: int, seen: Seen) -> Tensor:
        """The parts' weights (parts, n) for a variable: the networks alone where trees are not asked what they know."""
        before, after = self._sees(variable, seen)
        return torch.where(before & ~after, self.weights[variable].unsqueeze(-1), _alone(self.weights)[:, None])

    def class_log_prob(self, variable: int, seen: Seen) -> Tensor:
        log_p = self._classes(variable, seen, self._weights(variable, seen))
        before, after = self._sees(variable, seen)
        tilted = before & after
        if bool(tilted.any()):
            log_p[:, tilted] = self._tilted_classes(variable, seen.take(tilted))
        return log_p

    def _classes(self, variable: int, seen: Seen, weight: Tensor) -> Tensor:
        log_p = self.flow.class_log_prob(variable, seen.networks)
        if bool((weight[0] == 1).all()):
            return log_p
        leaves = self.forest.class_probabilities(variable, seen.trees)
        return (weight[0] * log_p.exp() + (1 - weight[0]) * leaves).log()

    def number(self, variable: int, seen: Seen) -> HeadDistribution | MixedDistribution:
        return self._number(variable, seen, self._weights(variable, seen))

    def _number(self, variable: int, seen: Seen, weight: Tensor) -> HeadDistribution | MixedDistribution:
        networks = self.flow.number(variable, seen.networks)
        if bool((weight[0] == 1).all()):
            return networks
        return MixedDistribution([networks, *self._leaves(variable, seen.trees)], weight)

    def _before(self, variable: int, seen: Seen) -> tuple[Seen, Tensor]:
        """What has been observed of variables before one, and the parts' weights given these."""
        order = self.in_order()
        earlier = torch.zeros(self.features, dtype=torch.bool, device=seen.known.device)
        earlier[order[: order.index(variable)]] = True
        owner = torch.tensor(self.flow.network.owner, device=earlier.device)
        before = Seen(seen.networks * earlier[owner].unsqueeze(-1), seen.trees, seen.known & earlier.unsqueeze(-1))
        return before, self.weights[variable].unsqueeze(-1).expand(-1, seen.known.shape[1])

    def _tilted_classes(self, variable: int, seen: Seen) -> Tensor:
        """As `class_log_prob`, where all variables before one are known and some after it.

        What all parts say given the variables before, p(x | before), is tilted by what the networks say of the others:
        p(x | before) · n(x | before, after) / n(x | before), divided by its sum.
        """
        before, weight = self._before(variable, seen)
        log_ratio = self.flow.class_log_prob(variable, seen.networks)
        log_ratio = log_ratio - self.flow.class_log_prob(variable, before.networks)
        return (self._classes(variable, before, weight) + log_ratio).log_softmax(0)

    def draw(
        self, variable: int, seen: Seen, x: Tensor, *, missing: bool = True, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        value, place = super().draw(variable, seen, x, missing=missing, generator=generator)
        before, after = self._sees(variable, seen)
        tilted = before & after & ~torch.isnan(value)  # missing or not: as the networks say
        if not self.classes[variable] and bool(tilted.any()):
            value[tilted], place[tilted] = self._draw_tilted(variable, seen.take(tilted), generator)
        return value, place

    def _draw_tilted(self, variable: int, seen: Seen, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw a number from the density that `_tilted_classes` describes: its values and normal quantiles (n,).

        It is one of several candidates, half of them from p(x | before) and half from n(x | before, after), chosen by
        the tilted density over that of the candidates (Rubin 1987, "The SIR algorithm").
        """
        before, weight = self._before(variable, seen)
        n, uniform = seen.known.shape[1], uniform_from(generator, seen.known.device)
        plain, informed = self._number(variable, before, weight), self.flow.number(variable, seen.networks)
        uninformed, marginal = self.flow.number(variable, before.networks), self.marginals()[variable]
        low, high = (end.expand(n) for end in marginal.seen)

        values, places, log_weights = [], [], []
        for k in range(CANDIDATES):
            value, place = marginal.value_and_middle((informed if k % 2 else plain).draw_between(low, high, uniform))
            cells = number_cells(self.variable_fields(variable, value))
            log_p, log_n, log_before = (number.log_prob(cells) for number in (plain, informed, uninformed))
            values.append(value)
            places.append(place)
            log_weights.append((log_p + log_n - log_before - torch.logaddexp(log_p, log_n)).nan_to_num(-FAR))
        chosen = choose(torch.stack(log_weights).softmax(0), uniform(n))[None]
        return torch.stack(values).gather(0, chosen)[0], torch.stack(places).gather(0, chosen)[0]

    def extra_repr(self) -> str:
        return f"{self.features} variables"


def _check(mixture: ColumnMixture, _: object) -> None:
    """Raise a ValueError unless tensors from a file are weights, and numbers' entries atoms of their columns."""
    total = mixture.weights.sum(1)
    if not bool(((total - 1).abs() < 1e-6).all()) or bool((mixture.weights < 0).any()):
        raise ValueError("the weights of a ColumnMixture are none")
    mixture.forest.check_codes({j: max(marginal.atoms, 1) for j, marginal in mixture.marginals().items()}, least=-1)


def _alone(like: Tensor) -> Tensor:
    """Weights of the networks alone (parts,)."""
    return torch.tensor([1.0] + [0.0] * (PARTS - 1), dtype=like.dtype, device=like.device)
