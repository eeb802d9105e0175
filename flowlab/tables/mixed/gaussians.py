"""`Gaussians`: a Gaussian mixture of a table's numbers, which knows the distribution of each given any of the others.

Numbers are seen as the normal quantiles of their cells, so this is a Gaussian mixture copula. Many components follow
curved and even exact relations between columns closely, where networks and trees would need many more rows.

Source: Tewari, Giering & Raghunathan 2011, "Parametric characterization of multimodal distributions with non-Gaussian
modes" (Gaussian mixture copulas).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowlab.registry import register
from flowlab.tables.mixed.distributions import NumberDistribution, Uniform, choose
from flowlab.tables.mixed.heads import Cells, quantile


@register
class Gaussians(nn.Module):
    """The mixture.

    Args:
        variables: The variables of the table that it is about.
        components: Number of components.

    Attributes:
        log_weight: Log of the components' weights (components,).
        mean: Their means (components, variables).
        covariance: Their covariances (components, variables, variables).
    """

    log_weight: Tensor
    mean: Tensor
    covariance: Tensor

    def __init__(self, variables: Sequence[int], components: int) -> None:
        super().__init__()
        self.variables, self.components = list(variables), components
        m, real = len(self.variables), torch.float64
        self.register_buffer("log_weight", torch.zeros(components, dtype=real))
        self.register_buffer("mean", torch.zeros(components, m, dtype=real))
        self.register_buffer("covariance", torch.eye(m, dtype=real).repeat(components, 1, 1))
        self.register_load_state_dict_post_hook(_check)

    def conditionals(self, z: Tensor, there: Tensor, order: Sequence[int]) -> Tensor:
        """The distribution of each variable given those before it that are there.

        Args:
            z: Normal quantiles (variables, n).
            there: Which of them are there (variables, n); others are ignored, and what is said of them is 0.
            order: Places of variables, one after another.

        Returns:
            Log-weights, means and standard deviations (3, variables in order, components, n).
        """
        order = list(order)
        out = z.new_zeros(3, len(order), self.components, z.shape[1])
        there = there[order]
        if bool(there.all()):
            patterns, of = there[:, :1].T, torch.zeros_like(z[0], dtype=torch.long)
        else:
            patterns, of = there.T.unique(dim=0, return_inverse=True)
        for k, pattern in enumerate(patterns):
            rows, kept = (of == k).nonzero().flatten(), pattern.nonzero().flatten()
            if len(kept) and len(rows):
                seen = [order[i] for i in kept.tolist()]
                out[:, kept.unsqueeze(-1), :, rows] = self._in_order(z[seen][:, rows], seen).permute(1, 3, 0, 2)
        return out

    def _in_order(self, z: Tensor, order: list[int]) -> Tensor:
        """The same where all variables are there: (3, variables, components, n)."""
        lower = torch.linalg.cholesky(self.covariance[:, order][:, :, order])
        noise = torch.linalg.solve_triangular(lower, z - self.mean[:, order].unsqueeze(-1), upper=False)
        sd = lower.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
        terms = -noise.square() / 2 - sd.log()
        before = self.log_weight[:, None, None] + terms.cumsum(1) - terms
        return torch.stack([before.log_softmax(0), z - noise * sd, sd.expand_as(noise)]).transpose(1, 2)

    def conditional(self, place: int, z: Tensor, there: Tensor) -> Tensor:
        """Log-weights, means and standard deviations (3, components, n) of one variable given those that are there."""
        others = [k for k in range(len(self.variables)) if k != place]
        z, there = z.clone(), there.clone()
        z[place], there[place] = 0, True
        return self.conditionals(z, there, [*others, place])[:, -1]

    def extra_repr(self) -> str:
        return f"{len(self.variables)} variables, {self.components} components"


@dataclass(frozen=True)
class GaussianDistribution:
    """What the mixture says of one number.

    Attributes:
        log_weight: Log-weights (components, n).
        mean: Means in the normal scale (components, n).
        sd: Standard deviations (components, n).
        other: Says how often the cell is missing.
    """

    log_weight: Tensor
    mean: Tensor
    sd: Tensor
    other: NumberDistribution

    @property
    def missing(self) -> Tensor:
        return self.other.missing

    @property
    def log_present(self) -> Tensor:
        return self.other.log_present

    def take(self, rows: Tensor) -> "GaussianDistribution":
        parts = (part[:, rows] for part in (self.log_weight, self.mean, self.sd))
        return GaussianDistribution(*parts, self.other.take(rows))

    def log_prob(self, cells: Cells) -> Tensor:
        return log_prob_of(self.log_weight, self.mean, self.sd, cells)

    def cdf(self, rank: Tensor) -> Tensor:
        scaled = (quantile(rank).unsqueeze(-2) - self.mean) / self.sd
        return (self.log_weight.exp() * torch.special.ndtr(scaled)).sum(-2)

    def draw(self, uniform: Uniform) -> Tensor:
        n = self.mean.shape[1]
        component = choose(self.log_weight.exp(), uniform(n)).unsqueeze(0)
        mean, sd = self.mean.gather(0, component)[0], self.sd.gather(0, component)[0]
        return torch.special.ndtr(mean + sd * torch.special.ndtri(uniform(n)))

    def draw_between(self, low: Tensor, high: Tensor, uniform: Uniform) -> Tensor:
        n = len(low)
        below, above = (torch.special.ndtr((quantile(end) - self.mean) / self.sd) for end in (low, high))
        mass = self.log_weight.exp() * (above - below).clamp(min=0)
        component = choose(mass, uniform(n)).unsqueeze(0)
        mean, sd, first, last = (part.gather(0, component)[0] for part in (self.mean, self.sd, below, above))
        level = uniform(n)
        rank = torch.special.ndtr(mean + sd * torch.special.ndtri(first + level * (last - first)))
        rank = torch.where(mass.sum(0) > 0, rank, low + level * (high - low))
        return torch.minimum(torch.maximum(rank, low), high)


def log_prob_of(log_weight: Tensor, mean: Tensor, sd: Tensor, cells: Cells) -> Tensor:
    """Log-probability of intervals and log-density of points (*variables, n) under Gaussians (*variables, components, n).

    Cells are those of numbers that are not missing.
    """
    low, high = ((end.unsqueeze(-2) - mean) / sd for end in (cells.z_low, cells.z_high))
    # Beyond the mean levels are near 1, where differences would be lost: they are taken from the other end.
    side = torch.where(low > 0, -1.0, 1.0).to(low)
    mass = side * (torch.special.ndtr(side * high) - torch.special.ndtr(side * low))
    inside = (log_weight.exp() * mass.clamp(min=0)).sum(-2).log()
    # A density of z becomes one of the rank by the normal density there.
    density = (log_weight - low.square() / 2 - sd.log()).logsumexp(-2) + cells.z_low.square() / 2
    return torch.where(cells.width > 0, inside, density) + cells.log_slope


def _check(gaussians: Gaussians, _: object) -> None:
    """Raise a ValueError unless tensors from a file are a Gaussian mixture."""
    parts = (gaussians.log_weight, gaussians.mean, gaussians.covariance)
    fits = all(bool(torch.isfinite(part).all()) for part in parts)
    fits = fits and abs(float(gaussians.log_weight.exp().sum()) - 1) < 1e-6
    if not fits or bool(torch.linalg.cholesky_ex(gaussians.covariance.cpu()).info.any()):
        raise ValueError("the tensors of a Gaussian mixture of numbers are none")
