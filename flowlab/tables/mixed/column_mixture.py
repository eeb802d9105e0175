"""`ColumnMixture`: networks and trees mixed column by column, each column by what predicts it best."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowlab.mixture import stack
from flowlab.registry import register
from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.tables.mixed.distributions import (
    MixedDistribution,
    NumberDistribution,
    SharpenedDistribution,
    choose,
    log_gain,
    uniform_from,
)
from flowlab.tables.mixed.forest import Forest
from flowlab.tables.mixed.gaussian_flow import GaussianFlow
from flowlab.tables.mixed.heads import FAR
from flowlab.tables.mixed.leaves import KINDS, LeafDistribution, Leaves
from flowlab.tables.mixed.marginal_cdf import MarginalCDF
from flowlab.tables.mixed.mixed_flow import MixedFlow
from flowlab.tables.mixed.networks import (
    CODE,
    LOG_SLOPE,
    LOW,
    MISSING,
    WIDTH,
    Z,
    fields_of,
    number_cells,
    outcomes_of,
)

PARTS = 1 + len(KINDS)  # networks, and each kind of leaves
SHRINKAGE = 5.0  # held-out rows that the weights common to all columns count as for each column
RARE_SHARE, RARE_ROWS = 0.02, 100  # share and number of training rows below both of which a level is rare
MANY_RARE = 0.1  # share of rows in a column's rare levels from which all rows' weights are theirs, too
FEWEST = 10  # rows of a level from which it can be said that networks misjudge them: two leaves of trees
MISFIT = 9.0  # twice the log of the likelihood ratio from which they do: by chance it is so large once in ninety times
TREES_FIRST = (0.5, 1.5, 1.5, 1.5)  # held-out rows that the parts are credited with where networks misjudge rows
SHARPNESS = (1.0, 3.0, 0.05)  # the least, the largest, and the step between those that are tried
WORTH = 3.0  # nats of held-out rows that a sharpness has to gain
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

    The order is that of the networks; what is said of networks here holds for a flow of networks and Gaussians, too.
    Trees know a variable's distribution given exactly the variables before it. Where others are known, too, this
    mixture is tilted by what the networks make of them (`_tilted_classes`); where some before it are not, the networks
    speak alone.

    Of a rare level networks see too few rows to learn what sets these apart, and held-out rows are too few to count in
    a column's weights. Rows of rare levels that networks misjudge (`misjudged_by`) therefore have weights of their own.
    The mixture of a number can be too wide, although its parts are not: it is then sharpened.

    Args:
        flow: The networks, with a Gaussian mixture of the numbers or without.
        forest: The trees, of the same variables in the same order.
        rare: Whether there are rare levels whose rows networks misjudge.
        sharpened: Whether there are numbers whose mixture is sharpened.

    Attributes:
        weights: The weights (variables, parts) of networks, and of each kind of `LeafDistribution`.
        misjudged: In rows of which outcomes networks misjudge which variables (outcomes of all classes, variables).
        rare_weights: The weights (variables, parts) for these rows.
        sharpness: That of each number's `SharpenedDistribution` (variables,).
    """

    weights: Tensor
    misjudged: Tensor
    rare_weights: Tensor
    sharpness: Tensor

    def __init__(
        self, flow: MixedFlow | GaussianFlow, forest: Forest, rare: bool = False, sharpened: bool = False
    ) -> None:
        super().__init__()
        if forest.order != flow.in_order() or forest.classes != flow.classes or forest.nullable != flow.nullable:
            raise ValueError("the trees are not of the networks' variables, or in another order")
        self.flow, self.forest = flow, forest
        self.features, self.columns, self.classes = flow.features, flow.columns, flow.classes
        self.nullable, self.order, self.rare = flow.nullable, flow.order, rare
        self.sharpened = sharpened
        self.register_buffer("weights", torch.full((self.features, PARTS), 1 / PARTS, dtype=torch.float64))
        self.weights[self.in_order()[0]] = _alone(self.weights)
        if rare:
            self.register_buffer("misjudged", torch.zeros(sum(forest.outcomes), self.features, dtype=torch.bool))
            self.register_buffer("rare_weights", self.weights.clone())
        if sharpened:
            self.register_buffer("sharpness", torch.ones(self.features, dtype=torch.float64))
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
            if self.rare:
                rows = self._misjudged(variable, fields_of(cells, self.features)[CODE])
                credit = torch.tensor(TREES_FIRST, dtype=torch.float64)
                self.rare_weights[variable] = stack(parts[:, i, rows], weight[i, rows], credit, steps=100)

    @torch.no_grad()
    def learn_sharpness(self, cells: Tensor, row_weight: Tensor) -> None:
        """Sharpen the mixtures of numbers whose held-out rows become likelier by it; arguments as of `learn_weights`.

        The weights must be known.
        """
        least, largest, step = SHARPNESS
        tried = torch.arange(least, largest + step / 2, step, dtype=torch.float64)
        found = torch.ones(self.features, dtype=torch.float64)
        fields, order = fields_of(cells, self.features), self.in_order()
        chunks = [fields_of(chunk, self.features) for chunk in cells.split(AT_ONCE)]
        observed = [(chunk, self._observed(chunk)) for chunk in chunks]
        # Where a cell up to a variable is not known, networks speak alone.
        known = (fields[CODE, order] > -0.5).cumprod(0).bool()
        for i, variable in enumerate(order):
            if not i or self.classes[variable] or not len(cells):
                continue
            there = known[i] & (fields[MISSING, variable] < 0.5)
            low, high = torch.cat([self._levels(variable, *chunk) for chunk in observed], 1)
            gain = (log_gain(low, high, tried.unsqueeze(-1)) * (row_weight * there)).sum(1)
            if float(gain.max()) > WORTH:
                found[variable] = tried[gain.argmax()]
        self.sharpened = bool((found > 1).any())
        if self.sharpened:
            self.register_buffer("sharpness", found)

    def _observed(self, fields: Tensor) -> Seen:
        """What has been observed of rows of which all is known that their fields say."""
        inputs = self.flow.network.inputs(fields.to(self.flow.network.first.dtype))
        return Seen(inputs, self._seen_by_trees(fields), fields[CODE] > -0.5)

    def _levels(self, variable: int, fields: Tensor, observed: Seen) -> Tensor:
        """Levels (2, n) of both ends of a number's cells in its mixture, before it is sharpened."""
        seen, weight = self._before(variable, observed)
        low, width = fields[LOW, variable].double(), fields[WIDTH, variable].double()
        return self._mixture(variable, seen, weight).cdf(torch.stack([low, (low + width).clamp(max=1)]))

    def _misjudged(self, variable: int, codes: Tensor) -> Tensor:
        """The rows (n,) of levels of which networks misjudge a variable, from codes of all variables (variables, n)."""
        out, start = torch.zeros_like(codes[0], dtype=torch.bool), 0
        for other, outcomes in enumerate(self.forest.outcomes):
            of = self.misjudged[start : start + outcomes, variable] if self.rare else out[:0]
            if bool(of.any()):
                out = out | of[codes[other].clamp(min=0).long()]
            start += outcomes
        return out

    def _weights_given(self, variable: int, codes: Tensor) -> Tensor:
        """The parts' weights (parts, n) for a variable, given codes of those before it (variables, n)."""
        weight = self.weights[variable].unsqueeze(-1)
        if not self.rare:
            return weight.expand(-1, codes.shape[1])
        return torch.where(self._misjudged(variable, codes), self.rare_weights[variable].unsqueeze(-1), weight)

    def _parts(self, cells: Tensor) -> Tensor:
        """Log-densities (parts, variables, n) of each variable given those before it, of each part."""
        fields = fields_of(cells, self.features)
        missing, codes, seen = fields[MISSING] > 0.5, fields[CODE].clamp(min=0), self._seen_by_trees(fields)
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

    def _seen_by_trees(self, fields: Tensor) -> Tensor:
        """What trees see (variables, n) of rows as fields."""
        numbers = torch.where(fields[MISSING] > 0.5, torch.nan, fields[Z])
        classes = torch.tensor(self.classes, device=fields.device).unsqueeze(-1) > 0
        return torch.where(classes, fields[CODE].clamp(min=0), numbers)

    def _leaves(self, variable: int, seen: Tensor) -> Sequence[NumberDistribution]:
        leaves = Leaves(self.forest, variable, seen, self.marginals()[variable])
        return [LeafDistribution(leaves, kind) for kind in KINDS]

    def log_probs(self, cells: Tensor) -> Tensor:
        return torch.cat([self._log_probs(chunk) for chunk in cells.split(AT_ONCE)], 1)

    def _log_probs(self, cells: Tensor) -> Tensor:
        fields = fields_of(cells, self.features)
        codes, missing = fields[CODE], fields[MISSING] > 0.5
        absent, parts = codes < -0.5, self._parts(cells)
        weight = torch.stack([self._weights_given(j, codes) for j in range(self.features)], 1)
        unknown, gain = torch.zeros_like(absent[0]), torch.zeros_like(parts[0])
        observed = self._observed(fields) if self.sharpened else None
        for variable in self.in_order():
            weight[:, variable, unknown] = _alone(weight).unsqueeze(-1)
            if observed is not None and float(self.sharpness[variable]) > 1:
                mixed = (weight[0, variable] < 1) & ~missing[variable]
                low, high = self._levels(variable, fields, observed)
                gain[variable] = torch.where(mixed, log_gain(low, high, self.sharpness[variable]), 0)
            unknown = unknown | absent[variable]
        return torch.where(absent, 0, (weight.log() + parts).logsumexp(0) + gain)

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
        alone = _alone(self.weights)[:, None]
        return torch.where(before & ~after, self._weights_given(variable, seen.trees), alone)

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

    def number(self, variable: int, seen: Seen) -> NumberDistribution:
        return self._number(variable, seen, self._weights(variable, seen))

    def _number(self, variable: int, seen: Seen, weight: Tensor) -> NumberDistribution:
        mixed = weight[0] < 1
        if not bool(mixed.any()):
            return self.flow.number(variable, seen.networks)
        mixture = self._mixture(variable, seen, weight)
        if not self.sharpened or float(self.sharpness[variable]) == 1:
            return mixture
        return SharpenedDistribution(mixture, torch.where(mixed, self.sharpness[variable], 1))

    def _mixture(self, variable: int, seen: Seen, weight: Tensor) -> MixedDistribution:
        parts = [self.flow.number(variable, seen.networks), *self._leaves(variable, seen.trees)]
        return MixedDistribution(parts, weight)

    def _before(self, variable: int, seen: Seen) -> tuple[Seen, Tensor]:
        """What has been observed of variables before one, and the parts' weights given these."""
        order = self.in_order()
        earlier = torch.zeros(self.features, dtype=torch.bool, device=seen.known.device)
        earlier[order[: order.index(variable)]] = True
        owner = torch.tensor(self.flow.network.owner, device=earlier.device)
        before = Seen(seen.networks * earlier[owner].unsqueeze(-1), seen.trees, seen.known & earlier.unsqueeze(-1))
        return before, self._weights_given(variable, seen.trees)

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
    for weights in (mixture.weights, mixture.rare_weights) if mixture.rare else (mixture.weights,):
        if not bool(((weights.sum(1) - 1).abs() < 1e-6).all()) or bool((weights < 0).any()):
            raise ValueError("the weights of a ColumnMixture are none")
    if mixture.rare:
        place = torch.tensor(mixture.in_order()).argsort()
        of = place.repeat_interleave(torch.tensor(mixture.forest.outcomes)).unsqueeze(-1)
        if bool((mixture.misjudged.cpu() & (place <= of)).any()):
            raise ValueError("a rare level of a ColumnMixture decides on variables before it")
    if mixture.sharpened:
        sharpness, numbers = mixture.sharpness, [j for j in mixture.in_order()[1:] if not mixture.classes[j]]
        others = [j for j in range(mixture.features) if j not in numbers]
        if not bool(((sharpness >= SHARPNESS[0]) & (sharpness <= SHARPNESS[1])).all()) or bool(
            (sharpness[others] != 1).any()
        ):
            raise ValueError("the sharpness of a ColumnMixture is none")
    mixture.forest.check_codes({j: max(marginal.atoms, 1) for j, marginal in mixture.marginals().items()}, least=-1)


def _alone(like: Tensor) -> Tensor:
    """Weights of the networks alone (parts,)."""
    return torch.tensor([1.0] + [0.0] * (PARTS - 1), dtype=like.dtype, device=like.device)


def rare_levels(values: Tensor, classes: int, row_weight: Tensor) -> list[int]:
    """The rare outcomes among codes (n,), NaN for missing cells; none of a number, nor where many rows' level is rare.

    Args:
        values: The codes.
        classes: Number of classes, 0 for a number; being missing is one more outcome.
        row_weight: Weights (n,).
    """
    if not classes:
        return []
    row_weight = torch.where(values < 0, 0, row_weight)  # of levels that training did not have
    code = torch.where(torch.isnan(values), classes, values.clamp(min=0)).long()
    count, square = (torch.bincount(code, weight, classes + 1) for weight in (row_weight, row_weight.square()))
    enough = count.square() >= FEWEST * square.clamp(min=1e-300)  # as many rows of equal weight would say as much
    rare = enough & (count < RARE_ROWS) & (count < RARE_SHARE * row_weight.sum())
    few = float(count[rare].sum()) <= MANY_RARE * float(row_weight.sum())
    return rare.nonzero().flatten().tolist() if few else []


@torch.no_grad()
def misjudged_by(
    flow: MixedFlow | GaussianFlow, rows: Tensor, row_weight: Tensor, generator: torch.Generator
) -> Tensor:
    """In rows of which rare levels networks misjudge which variables: (outcomes of all classes, variables).

    The noise of these rows is standard normal if the networks are right: `MISFIT` is about twice the log of the
    likelihood ratio of the normal distribution with the noise's own mean and variance. Who misjudges a level in one
    variable may do so in all after it, where few rows cannot show it. Variables before the level in the order cannot be
    misjudged by it.

    Args:
        flow: The networks.
        rows: Rows (n, variables), those of training among them: networks that fit too few rows fit these badly, too.
        row_weight: Their weights (n,).
        generator: Source of the noise of outcomes with a probability.
    """
    order, outcomes = flow.in_order(), outcomes_of(flow.classes, flow.nullable)
    groups = []
    for variable, classes in enumerate(flow.classes):
        for outcome in rare_levels(rows[:, variable], classes, row_weight):
            of = (flow.place(variable, rows[:, variable]) == outcome) & (row_weight > 0)
            groups.append((sum(outcomes[:variable]) + outcome, order.index(variable), of.nonzero().flatten()))
    out = torch.zeros(sum(outcomes), flow.features, dtype=torch.bool)
    if not groups:
        return out
    chosen = torch.cat([of for _, _, of in groups]).unique()  # sorted
    noise = flow.to_normal(rows[chosen], generator=generator)
    for outcome, place, of in groups:
        share = (row_weight[of] / row_weight[of].sum()).unsqueeze(-1)
        z = noise[torch.searchsorted(chosen, of)]
        square, mean = (share * z.square()).sum(0), (share * z).sum(0)
        ratio = (square - 1 - (square - mean.square()).clamp(min=1e-9).log()) / share.square().sum()
        later = order[place + 1 :]
        out[outcome, later] = bool((ratio[later] > MISFIT).any())
    return out
