"""`GaussianFlow`: networks and a Gaussian mixture of the numbers, mixed number by number."""

import math

import torch
from torch import Tensor

from flowlab.mixture import stack
from flowlab.registry import register
from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.tables.mixed.distributions import MixedDistribution, NumberDistribution
from flowlab.tables.mixed.gaussians import GaussianDistribution, Gaussians, component_log_probs
from flowlab.tables.mixed.marginal_cdf import MarginalCDF
from flowlab.tables.mixed.mixed_flow import MixedFlow
from flowlab.tables.mixed.networks import CODE, MISSING, ConditionalNetworks, Z, fields_of, number_cells

WORTH = 3.0  # nats of held-out rows that Gaussians have to gain: they do not know levels, which networks do
SHRINKAGE = 5.0  # held-out rows that a share common to several counts as for each
STEPS = 30  # of expectation maximisation


@register
class GaussianFlow(ConditionalDensity):
    """The density in which the distribution of a number is a mixture of what networks and Gaussians say.

    Both know it given any other variables, networks by all of them, Gaussians by the numbers. Networks alone say the
    distribution of classes, and whether a cell is missing.

    Args:
        flow: The networks.
        gaussians: The Gaussian mixture of numbers.

    Attributes:
        share: The weight of each component, beside networks, for each variable (variables, components): not all know
            all numbers well, those that are there for outliers least.
    """

    share: Tensor

    def __init__(self, flow: MixedFlow, gaussians: Gaussians) -> None:
        super().__init__()
        if not set(gaussians.variables) <= set(flow.marginals()):
            raise ValueError("the Gaussian mixture is not of the networks' numbers")
        self.flow, self.gaussians = flow, gaussians
        self.features, self.columns, self.classes = flow.features, flow.columns, flow.classes
        self.nullable, self.order = flow.nullable, flow.order
        self.register_buffer("share", torch.zeros(self.features, gaussians.components, dtype=torch.float64))
        self.register_load_state_dict_post_hook(_check)

    @property
    def network(self) -> ConditionalNetworks:
        """The networks, whose inputs are what is observed of rows."""
        return self.flow.network

    def marginals(self) -> dict[int, MarginalCDF]:
        return self.flow.marginals()

    @torch.no_grad()
    def learn_share(self, cells: Tensor, row_weight: Tensor) -> None:
        """Choose the shares that make held-out rows likeliest, by expectation maximisation.

        They are shrunk to one share for each number, and these to one for all.

        Args:
            cells: Held-out rows (n, FIELDS · features), as `cells` makes them.
            row_weight: Their weights (n,).
        """
        if not len(cells):
            return
        ordered, log_weight, own, there = self._components(cells)
        networks = self.flow.log_probs(cells).double()[ordered]
        parts, weight = torch.stack([networks, own.logsumexp(1)]), row_weight * there
        common = SHRINKAGE * stack(parts.flatten(1), weight.flatten(), torch.ones(2), steps=100)
        for k, variable in enumerate(ordered):
            one = stack(parts[:, k], weight[k], common, steps=100)
            share = one[1].expand(self.gaussians.components)
            both = torch.stack([log_weight[k] + networks[k], own[k]])  # (2, components, n)
            for _ in range(STEPS):
                log_share = torch.stack([1 - share, share]).log().unsqueeze(-1)
                counts = ((log_share + both).flatten(0, 1).softmax(0).view(both.shape) * weight[k]).nansum(-1)
                share = (counts[1] + SHRINKAGE * one[1]) / (counts.sum(0) + SHRINKAGE)
            gain = (torch.stack([1 - share, share]).log().unsqueeze(-1) + both).flatten(0, 1).logsumexp(0) - networks[k]
            if float((gain.nan_to_num(0.0) * weight[k]).sum()) > WORTH:
                self.share[variable] = share

    def log_probs(self, cells: Tensor) -> Tensor:
        out = self.flow.log_probs(cells).double()
        if not bool((self.share > 0).any()):
            return out
        ordered, log_weight, own, there = self._components(cells)
        share = self.share[ordered].unsqueeze(-1)
        networks = (log_weight + (1 - share).log()).logsumexp(1) + out[ordered]
        out[ordered] = torch.where(there, torch.logaddexp(networks, (own + share.log()).logsumexp(1)), out[ordered])
        return out

    def _components(self, cells: Tensor) -> tuple[list[int], Tensor, Tensor, Tensor]:
        """What the Gaussians say of cells given those before them.

        Returns:
            Their numbers in order; log-weights of components, and log-densities that each adds (numbers, components,
            n); and which cells are there, rather than missing or unknown (numbers, n).
        """
        fields, numbers = fields_of(cells, self.features), self.gaussians.variables
        place = {variable: k for k, variable in enumerate(numbers)}
        ordered = [variable for variable in self.in_order() if variable in place]
        there = (fields[CODE] > -0.5) & (fields[MISSING] < 0.5)
        places = [place[variable] for variable in ordered]
        said = self.gaussians.conditionals(fields[Z, numbers].double(), there[numbers], places)
        own = component_log_probs(said, number_cells(fields[:, ordered].double()))
        inputs = None
        for k, variable in enumerate(ordered):
            if self.says_missing(variable):
                inputs = self.network.inputs(fields.to(self.network.first.dtype)) if inputs is None else inputs
                own[k] += self.flow.number(variable, self._before(variable, inputs, fields)).log_present
        there = there[ordered]
        return ordered, said[0], torch.where(there.unsqueeze(1), own, -math.inf), there

    def _before(self, variable: int, inputs: Tensor, fields: Tensor) -> Tensor:
        """The networks' inputs (inputs, n) of what is known of the variables before one."""
        order = self.in_order()
        seen = torch.zeros_like(fields[CODE], dtype=torch.bool)
        earlier = order[: order.index(variable)]
        seen[earlier] = fields[CODE, earlier] > -0.5
        return inputs * seen[self.network.owner]

    def observe(self, x: Tensor, known: Tensor) -> Tensor:
        return self.flow.observe(x, known)

    def reveal(self, seen: Tensor, variable: int, place: Tensor, missing: Tensor, where: Tensor | None = None) -> None:
        self.flow.reveal(seen, variable, place, missing, where)

    def class_log_prob(self, variable: int, seen: Tensor) -> Tensor:
        return self.flow.class_log_prob(variable, seen)

    def number(self, variable: int, seen: Tensor) -> NumberDistribution:
        said, share = self.flow.number(variable, seen), self.share[variable].unsqueeze(-1)
        if not bool((share > 0).any()):
            return said
        numbers = self.gaussians.variables
        first = torch.tensor([self.network.places[j].start for j in numbers], device=seen.device)
        there = (seen[first + 2] > 0.5) & (seen[first + 1] < 0.5)  # given, and not missing
        own = self.gaussians.conditional(numbers.index(variable), seen[first].double(), there)
        own[0] += share.log()
        total = own[0].logsumexp(0)
        own[0] -= total
        weight = torch.stack([1 - total.exp(), total.exp()]).clamp(0, 1)
        return MixedDistribution([said, GaussianDistribution(own, said)], weight)

    def extra_repr(self) -> str:
        return f"{self.features} variables"


def _check(flow: GaussianFlow, _: object) -> None:
    """Raise a ValueError unless tensors from a file are shares of the Gaussians' numbers."""
    others = [j for j in range(flow.features) if j not in flow.gaussians.variables]
    if not bool(((flow.share >= 0) & (flow.share <= 1)).all()) or bool((flow.share[others] != 0).any()):
        raise ValueError("the shares of a GaussianFlow are none")
