"""`GaussianFlow`: networks and a Gaussian mixture of the numbers, mixed number by number."""

import torch
from torch import Tensor

from flowlab.mixture import stack
from flowlab.registry import register
from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.tables.mixed.distributions import MixedDistribution, NumberDistribution
from flowlab.tables.mixed.gaussians import GaussianDistribution, Gaussians, log_prob_of
from flowlab.tables.mixed.marginal_cdf import MarginalCDF
from flowlab.tables.mixed.mixed_flow import MixedFlow
from flowlab.tables.mixed.networks import CODE, MISSING, ConditionalNetworks, Z, fields_of, number_cells

WORTH = 3.0  # nats of held-out rows that Gaussians have to gain: they do not know levels, which networks do
SHRINKAGE = 5.0  # held-out rows that the weights common to all numbers count as for each


@register
class GaussianFlow(ConditionalDensity):
    """The density in which the distribution of a number is a mixture of what networks and Gaussians say.

    Both know it given any other variables, networks by all of them, Gaussians by the numbers. Networks alone say the
    distribution of classes, and whether a cell is missing.

    Args:
        flow: The networks.
        gaussians: The Gaussian mixture of numbers.

    Attributes:
        share: The weight of the Gaussians for each variable (variables,).
    """

    share: Tensor

    def __init__(self, flow: MixedFlow, gaussians: Gaussians) -> None:
        super().__init__()
        if not set(gaussians.variables) <= set(flow.marginals()):
            raise ValueError("the Gaussian mixture is not of the networks' numbers")
        self.flow, self.gaussians = flow, gaussians
        self.features, self.columns, self.classes = flow.features, flow.columns, flow.classes
        self.nullable, self.order = flow.nullable, flow.order
        self.register_buffer("share", torch.zeros(self.features, dtype=torch.float64))
        self.register_load_state_dict_post_hook(_check)

    @property
    def network(self) -> ConditionalNetworks:
        """The networks, whose inputs are what is observed of rows."""
        return self.flow.network

    def marginals(self) -> dict[int, MarginalCDF]:
        return self.flow.marginals()

    @torch.no_grad()
    def learn_share(self, cells: Tensor, row_weight: Tensor) -> None:
        """Choose the weights that make held-out rows likeliest, shrunk to the weight common to all numbers.

        Args:
            cells: Held-out rows (n, FIELDS · features), as `cells` makes them.
            row_weight: Their weights (n,).
        """
        numbers = self.gaussians.variables
        if not len(cells):
            return
        parts, fields = self._parts(cells)[:, numbers], fields_of(cells, self.features)
        weight = row_weight * ((fields[CODE, numbers] > -0.5) & (fields[MISSING, numbers] < 0.5))
        common = stack(parts.flatten(1), weight.flatten(), torch.ones(2), steps=100)
        for k, variable in enumerate(numbers):
            shares = stack(parts[:, k], weight[k], SHRINKAGE * common, steps=100)
            gain = ((shares.log().unsqueeze(-1) + parts[:, k]).logsumexp(0) - parts[0, k]).nan_to_num(0.0)
            self.share[variable] = shares[1] if float((gain * weight[k]).sum()) > WORTH else 0.0

    def log_probs(self, cells: Tensor) -> Tensor:
        if not bool((self.share > 0).any()):
            return self.flow.log_probs(cells).double()
        share = self.share.unsqueeze(-1)
        return (torch.stack([1 - share, share], 0).log() + self._parts(cells)).logsumexp(0)

    def _parts(self, cells: Tensor) -> Tensor:
        """Log-densities (2, variables, n) of each variable given those before it, of networks and of Gaussians."""
        fields, numbers = fields_of(cells, self.features), self.gaussians.variables
        place = {variable: k for k, variable in enumerate(numbers)}
        ordered = [variable for variable in self.in_order() if variable in place]
        out = self.flow.log_probs(cells).double().repeat(2, 1, 1)
        there = (fields[CODE] > -0.5) & (fields[MISSING] < 0.5)
        said = self.gaussians.conditionals(
            fields[Z, numbers].double(), there[numbers], [place[variable] for variable in ordered]
        )
        value = log_prob_of(said, number_cells(fields[:, ordered].double()))
        inputs = None
        for k, variable in enumerate(ordered):
            if self.says_missing(variable):
                inputs = self.network.inputs(fields.to(self.network.first.dtype)) if inputs is None else inputs
                value[k] += self.flow.number(variable, self._before(variable, inputs, fields)).log_present
            out[1, variable] = torch.where(there[variable], value[k], out[1, variable])
        return out

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
        said, share = self.flow.number(variable, seen), self.share[variable]
        if not float(share):
            return said
        numbers = self.gaussians.variables
        first = torch.tensor([self.network.places[j].start for j in numbers], device=seen.device)
        there = (seen[first + 2] > 0.5) & (seen[first + 1] < 0.5)  # given, and not missing
        own = GaussianDistribution(self.gaussians, numbers.index(variable), seen[first].double(), there, said)
        weight = torch.stack([1 - share, share]).unsqueeze(-1).expand(-1, seen.shape[1])
        return MixedDistribution([said, own], weight)

    def extra_repr(self) -> str:
        return f"{self.features} variables"


def _check(flow: GaussianFlow, _: object) -> None:
    """Raise a ValueError unless tensors from a file are shares of the Gaussians' numbers."""
    others = [j for j in range(flow.features) if j not in flow.gaussians.variables]
    if not bool(((flow.share >= 0) & (flow.share <= 1)).all()) or bool((flow.share[others] != 0).any()):
        raise ValueError("the shares of a GaussianFlow are none")
