"""`Gaussians`: a Gaussian mixture of a table's numbers, which knows the distribution of each given any of the others.

Numbers are seen as the normal quantiles of their cells, so this is a Gaussian mixture copula. Many components follow
curved and even exact relations between columns closely, where networks and trees would need many more rows.

Source: Tewari, Giering & Raghunathan 2011, "Parametric characterization of multimodal distributions with non-Gaussian
modes" (Gaussian mixture copulas).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowlab.registry import register
from flowlab.tables.mixed.distributions import NumberDistribution, Uniform, choose
from flowlab.tables.mixed.heads import Cells, quantile
from flowlab.tables.mixed.marginal_cdf import log_normal_between


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
        if len(set(variables)) < len(variables):
            raise ValueError("the variables of a Gaussian mixture must differ")
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
        for rows, kept in patterns(there[order]):
            if not kept:
                continue
            seen = [order[i] for i in kept]
            lower, noise = self._noise(z[:, rows], seen)
            sd = lower.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
            terms = -noise.square() / 2 - sd.log()
            log_weight = (self.log_weight[:, None, None] + terms.cumsum(1) - terms).log_softmax(0)
            said = torch.stack([log_weight, z[seen][:, rows] - noise * sd, sd.expand_as(noise)])
            out[:, torch.tensor(kept, device=z.device).unsqueeze(-1), :, rows] = said.permute(2, 3, 0, 1)
        return out

    def conditional(self, place: int, z: Tensor, there: Tensor) -> Tensor:
        """Log-weights, means and standard deviations (3, components, n) of one variable given others that are there."""
        there = there.clone()
        there[place] = False
        out = z.new_empty(3, self.components, z.shape[1])
        for rows, kept in patterns(there):
            lower, noise = self._noise(z[:, rows], [*kept, place], of_last=False)
            sd = lower.diagonal(dim1=-2, dim2=-1)
            log_weight = self.log_weight - sd[:, :-1].log().sum(1)
            out[0][:, rows] = (log_weight.unsqueeze(-1) - noise.square().sum(1) / 2).log_softmax(0)
            out[1][:, rows] = self.mean[:, place, None] + (lower[:, -1:, :-1] @ noise)[:, 0]
            out[2][:, rows] = sd[:, -1:].expand(-1, noise.shape[-1])
        return out

    def _noise(self, z: Tensor, order: list[int], of_last: bool = True) -> tuple[Tensor, Tensor]:
        """Cholesky factors of variables in an order, and each component's noise (components, variables, n) of z."""
        lower = torch.linalg.cholesky(self.covariance[:, order][:, :, order])
        kept = order if of_last else order[:-1]
        size = len(kept)
        centred = z[kept] - self.mean[:, kept].unsqueeze(-1)
        return lower, torch.linalg.solve_triangular(lower[:, :size, :size], centred, upper=False)

    def extra_repr(self) -> str:
        return f"{len(self.variables)} variables, {self.components} components"


def patterns(there: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
    """Rows (m,) in which the same variables are there (variables, n), and which these are."""
    if not there.shape[1]:
        return
    if bool((there == there[:, :1]).all()):
        yield torch.arange(there.shape[1], device=there.device), there[:, 0].nonzero().flatten().tolist()
        return
    found, of = there.T.unique(dim=0, return_inverse=True)
    for k, pattern in enumerate(found):
        yield (of == k).nonzero().flatten(), pattern.nonzero().flatten().tolist()


@dataclass(frozen=True)
class GaussianDistribution:
    """Gaussian mixtures of one number, one for each row, in the normal scale.

    Attributes:
        said: Log-weights, means and standard deviations (3, components, n).
        other: Says how often the cell is missing.
    """

    said: Tensor
    other: NumberDistribution

    @property
    def missing(self) -> Tensor:
        return self.other.missing

    @property
    def log_present(self) -> Tensor:
        return self.other.log_present

    def take(self, rows: Tensor) -> "GaussianDistribution":
        return GaussianDistribution(self.said[..., rows], self.other.take(rows))

    def log_prob(self, cells: Cells) -> Tensor:
        return component_log_probs(self.said, cells).logsumexp(0)

    def cdf(self, rank: Tensor) -> Tensor:
        log_weight, mean, sd = self.said
        return (log_weight.exp() * torch.special.ndtr((quantile(rank).unsqueeze(-2) - mean) / sd)).sum(-2)

    def draw(self, uniform: Uniform) -> Tensor:
        log_weight, *moments = self.said
        n = log_weight.shape[1]
        component = choose(log_weight.exp(), uniform(n)).unsqueeze(0)
        mean, sd = (part.gather(0, component)[0] for part in moments)
        return torch.special.ndtr(mean + sd * torch.special.ndtri(uniform(n)))

    def draw_between(self, low: Tensor, high: Tensor, uniform: Uniform) -> Tensor:
        log_weight, means, sds = self.said
        n = len(low)
        below, above = (torch.special.ndtr((quantile(end) - means) / sds) for end in (low, high))
        mass = log_weight.exp() * (above - below).clamp(min=0)
        component = choose(mass, uniform(n)).unsqueeze(0)
        mean, sd, first, last = (part.gather(0, component)[0] for part in (means, sds, below, above))
        level = uniform(n)
        rank = torch.special.ndtr(mean + sd * torch.special.ndtri(first + level * (last - first)))
        rank = torch.where(mass.sum(0) > 0, rank, low + level * (high - low))
        return torch.minimum(torch.maximum(rank, low), high)


def component_log_probs(said: Tensor, cells: Cells) -> Tensor:
    """What each component adds (*variables, components, n) to the probability of intervals, or the density of points.

    Args:
        said: Log-weights, means and standard deviations (3, *variables, components, n).
        cells: Those of numbers that are not missing.
    """
    log_weight, mean, sd = said
    low, high = ((end.unsqueeze(-2) - mean) / sd for end in (cells.z_low, cells.z_high))
    # A density of z becomes one of the rank by the normal density there.
    density = cells.z_low.square().unsqueeze(-2) / 2 - low.square() / 2 - sd.log()
    return (
        log_weight
        + torch.where(cells.width.unsqueeze(-2) > 0, log_normal_between(low, high), density)
        + cells.log_slope.unsqueeze(-2)
    )


def _check(gaussians: Gaussians, _: object) -> None:
    """Raise a ValueError unless tensors from a file are a Gaussian mixture."""
    parts = (gaussians.log_weight, gaussians.mean, gaussians.covariance)
    fits = all(bool(torch.isfinite(part).all()) for part in parts)
    fits = fits and abs(float(gaussians.log_weight.exp().sum()) - 1) < 1e-6
    if not fits or bool(torch.linalg.cholesky_ex(gaussians.covariance.cpu()).info.any()):
        raise ValueError("the tensors of a Gaussian mixture of numbers are none")
