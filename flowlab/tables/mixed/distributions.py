"""The distribution of one number for each of n rows, on the ranks of its `MarginalCDF`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab.tables.mixed.heads import Cells, Head

LEAST = 1e-15  # level that counts as the least one in slopes
THIN = 1e-9  # probability of an interval from which differences of levels are exact enough
FIRST, LATER, ROUNDS = (1, 4), 16, 12  # draws at once to accept one of: at first, and then up to so many times

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
        rows = rank.reshape(rank.shape[:-1].numel(), rank.shape[-1])
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


@dataclass(frozen=True)
class SharpenedDistribution:
    """A mixture of distributions, its levels F moved away from the ends: logit G = sharpness · logit F.

    A mixture of distributions that are each as wide as they should be is too wide, unless they are the same (Gneiting &
    Ranjan 2013, "Combining predictive distributions", who move levels by a beta distribution function; this one has an
    inverse in closed form).

    Attributes:
        mixture: The mixture.
        sharpness: The factor (n,), at least 1, which leaves the mixture as it is.
    """

    mixture: NumberDistribution
    sharpness: Tensor

    @property
    def missing(self) -> Tensor:
        return self.mixture.missing

    @property
    def log_present(self) -> Tensor:
        return self.mixture.log_present

    def take(self, rows: Tensor) -> "SharpenedDistribution":
        return SharpenedDistribution(self.mixture.take(rows), self.sharpness[rows])

    def log_prob(self, cells: Cells) -> Tensor:
        ends = torch.stack([cells.low, (cells.low + cells.width).clamp(max=1)])
        low, high = self.mixture.cdf(ends)
        return self.mixture.log_prob(cells) + log_gain(low, high, self.sharpness)

    def cdf(self, rank: Tensor) -> Tensor:
        return moved(self.mixture.cdf(rank), self.sharpness)

    def draw(self, uniform: Uniform) -> Tensor:
        nothing = torch.zeros_like(self.sharpness)
        return self.draw_between(nothing, nothing + 1, uniform)

    def draw_between(self, low: Tensor, high: Tensor, uniform: Uniform) -> Tensor:
        """Draws of the mixture, each accepted by how much likelier it is here: about one of `sharpness`."""
        rank = torch.zeros_like(low)
        left = torch.arange(len(rank), device=rank.device)  # the rows that have none yet
        mixture, most = self.mixture, self.sharpness.log()
        for i, count in enumerate([*FIRST, *[LATER] * ROUNDS]):
            if i == len(FIRST):  # the others lie between narrow limits, where the slope is less
                first, last = mixture.cdf(torch.stack([low[left], high[left]]))
                middle = torch.minimum(torch.maximum(torch.full_like(first, 0.5), first), last)
                most = most.index_put((left,), log_slope(middle, self.sharpness[left]))
            drawn = torch.stack([mixture.draw_between(low[left], high[left], uniform) for _ in range(count)])
            slope = log_slope(mixture.cdf(drawn), self.sharpness[left])
            accepted = uniform(drawn.numel()).view(drawn.shape).log() < slope - most[left]
            chosen = accepted.int().argmax(0)  # the first accepted one, or the first one
            rank[left] = drawn.gather(0, chosen.unsqueeze(0))[0]
            again = ~accepted.any(0)
            if not bool(again.any()):
                break
            mixture, left = mixture.take(again), left[again]
        return rank


def moved(level: Tensor, sharpness: Tensor) -> Tensor:
    """The levels of a `SharpenedDistribution` from those of its mixture."""
    return torch.sigmoid(sharpness * torch.logit(level.clamp(0, 1)))


def log_slope(level: Tensor, sharpness: Tensor) -> Tensor:
    """The log of the derivative of `moved`; the least levels count as `LEAST`, so that no value is impossible."""
    level = level.clamp(LEAST, 1 - LEAST)
    below, above = level.log(), torch.log1p(-level)
    whole = torch.logaddexp(sharpness * below, sharpness * above)
    return sharpness.log() + (sharpness - 1) * (below + above) - 2 * whole


def log_gain(low: Tensor, high: Tensor, sharpness: Tensor) -> Tensor:
    """Log of how much likelier intervals become between levels of a mixture, or points, where both are the same."""
    upper = low + high > 1  # near 1 differences of levels would be lost
    low, high = torch.where(upper, 1 - high, low), torch.where(upper, 1 - low, high)
    mass = high - low
    ratio = (moved(high, sharpness) - moved(low, sharpness)) / mass.clamp(min=THIN)
    return torch.where(mass > THIN, ratio.log(), log_slope((low + high) / 2, sharpness))


def uniform_from(generator: torch.Generator | None, device: torch.device) -> Uniform:
    """A source of uniform numbers in double precision."""

    def uniform(n: int) -> Tensor:
        return torch.rand(n, dtype=torch.float64, device=device, generator=generator)

    return uniform


def choose(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw indices (n,) with probabilities proportional to weights (k, n), from uniform numbers (n,)."""
    through = weights.cumsum(0)
    return (through < uniform * through[-1]).sum(0).clamp(max=len(weights) - 1)
