"""The distribution of one number for each of n rows, on the ranks of its `MarginalCDF`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab.tables.mixed.heads import Cells, Head

Uniform = Callable[[int], Tensor]  # returns as many independent uniform numbers


class NumberDistribution(Protocol):
    """Conditional distributions of one number, one for each of n rows, with the probability that it is missing."""

    @property
    def missing(self) -> Tensor:
        """The probability (n,) that the cell is missing; without meaning where it cannot be."""

    @property
    def log_present(self) -> Tensor:
        """The log of its complement (n,)."""

    def take(self, rows: Tensor) -> "NumberDistribution":
        """The distributions of some rows, by a mask (n,)."""

    def log_prob(self, cells: Cells) -> Tensor:
        """Log-probability of intervals and log-density of points (n,), of cells that are not missing."""

    def cdf(self, rank: Tensor) -> Tensor:
        """The probability of ranks up to `rank` (*points, n)."""

    def draw(self, uniform: Uniform) -> Tensor:
        """Ranks (n,)."""

    def draw_between(self, low: Tensor, high: Tensor, uniform: Uniform) -> Tensor:
        """Ranks (n,) between `low` and `high` (n,)."""


@dataclass(frozen=True)
class HeadDistribution:
    """What a network says.

    Attributes:
        head: The family.
        params: Its parameters (count, n).
        logit: The logit (n,) of being missing.
    """

    head: Head
    params: Tensor
    logit: Tensor

    @property
    def missing(self) -> Tensor:
        return torch.sigmoid(self.logit)

    @property
    def log_present(self) -> Tensor:
        return F.logsigmoid(-self.logit)

    def take(self, rows: Tensor) -> "HeadDistribution":
        return HeadDistribution(self.head, self.params[:, rows], self.logit[rows])

    def log_prob(self, cells: Cells) -> Tensor:
        return self.head.log_prob(self.params.unsqueeze(0), Cells(*(part.unsqueeze(0) for part in cells)))[0]

    def cdf(self, rank: Tensor) -> Tensor:
        rows = rank.reshape(-1, rank.shape[-1])
        return self.head.cdf(self.params.expand(len(rows), -1, -1), rows).view(rank.shape)

    def draw(self, uniform: Uniform) -> Tensor:
        return self.draw_between(torch.zeros_like(self.logit), torch.ones_like(self.logit), uniform)

    def draw_between(self, low: Tensor, high: Tensor, uniform: Uniform) -> Tensor:
        n = len(self.logit)
        ends = (part.unsqueeze(0) for part in (low, high, uniform(n), uniform(n)))
        return self.head.draw(self.params.unsqueeze(0), *ends)[0]


@dataclass(frozen=True)
class MixedDistribution:
    """A mixture of distributions of one number.

    Attributes:
        parts: The distributions.
        weight: Their weights (parts, n), each row's of sum one.
    """

    parts: Sequence[NumberDistribution]
    weight: Tensor

    @property
    def missing(self) -> Tensor:
        return (self.weight * torch.stack([part.missing for part in self.parts])).sum(0)

    @property
    def log_present(self) -> Tensor:
        return self._joint().logsumexp(0)

    def _joint(self) -> Tensor:
        """Log-probability (parts, n) of each part and of a value that is there."""
        return self.weight.log() + torch.stack([part.log_present for part in self.parts])

    def _shares(self) -> Tensor:
        """Weights (parts, n) of the parts where the value is there."""
        return self._joint().softmax(0)

    def take(self, rows: Tensor) -> "MixedDistribution":
        return MixedDistribution([part.take(rows) for part in self.parts], self.weight[:, rows])

    def log_prob(self, cells: Cells) -> Tensor:
        return (self._shares().log() + torch.stack([part.log_prob(cells) for part in self.parts])).logsumexp(0)

    def cdf(self, rank: Tensor) -> Tensor:
        total = torch.zeros_like(rank)
        for share, part in zip(self._shares(), self.parts, strict=True):
            total = total + share * part.cdf(rank)
        return total

    def draw(self, uniform: Uniform) -> Tensor:
        return self._drawn(self._shares(), lambda part, rows: part.draw(uniform), uniform)

    def draw_between(self, low: Tensor, high: Tensor, uniform: Uniform) -> Tensor:
        rank = self.draw(uniform)
        outside = (rank < low) | (rank > high)
        if bool(outside.any()):  # few, where the limits are those of the data: only for these are the masses worked out
            rank[outside] = self.take(outside)._draw_inside(low[outside], high[outside], uniform)
        return rank

    def _draw_inside(self, low: Tensor, high: Tensor, uniform: Uniform) -> Tensor:
        mass = torch.stack([part.cdf(high) - part.cdf(low) for part in self.parts]).clamp(min=0)
        between = lambda part, rows: part.draw_between(low[rows], high[rows], uniform)  # noqa: E731
        return self._drawn(self._shares() * mass, between, uniform)

    def _drawn(self, share: Tensor, draw: Callable[[NumberDistribution, Tensor], Tensor], uniform: Uniform) -> Tensor:
        """Draws (n,) from parts chosen with probabilities proportional to `share` (parts, n)."""
        which = choose(share, uniform(share.shape[1]))
        rank = torch.zeros_like(share[0])
        for k, part in enumerate(self.parts):
            rows = which == k
            if bool(rows.any()):
                rank[rows] = draw(part.take(rows), rows)
        return rank


def uniform_from(generator: torch.Generator | None, device: torch.device) -> Uniform:
    """A source of uniform numbers in double precision."""

    def uniform(n: int) -> Tensor:
        return torch.rand(n, dtype=torch.float64, device=device, generator=generator)

    return uniform


def choose(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw indices (n,) with probabilities proportional to weights (k, n), from uniform numbers (n,)."""
    through = weights.cumsum(0)
    return (through < uniform * through[-1]).sum(0).clamp(max=len(weights) - 1)
