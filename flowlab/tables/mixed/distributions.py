"""The distribution of one number for each of n rows, on the ranks of its `MarginalCDF`: of networks, leaves and both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab.tables.mixed.heads import Cells, Head, quantile

LOG_SQRT_2PI = math.log(2 * math.pi) / 2


class NumberDistribution(Protocol):
    """Conditional distributions of one number, one for each of n rows, with the probability that it is missing."""

    @property
    def missing(self) -> Tensor:
        """The probability (n,) that the cell is missing; without meaning where it cannot be."""

    @property
    def log_present(self) -> Tensor:
        """The log of its complement (n,)."""

    def log_prob(self, cells: Cells) -> Tensor:
        """Log-probability of intervals and log-density of points (n,), of cells that are not missing."""

    def cdf(self, rank: Tensor) -> Tensor:
        """The probability of ranks up to `rank` (*points, n)."""

    def draw(self, low: Tensor, high: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Ranks (n,) between `low` and `high` (n,), from two independent uniform numbers (n,) each."""


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

    def log_prob(self, cells: Cells) -> Tensor:
        return self.head.log_prob(self.params.unsqueeze(0), Cells(*(part.unsqueeze(0) for part in cells)))[0]

    def cdf(self, rank: Tensor) -> Tensor:
        rows = rank.reshape(-1, rank.shape[-1])
        return self.head.cdf(self.params.expand(len(rows), -1, -1), rows).view(rank.shape)

    def draw(self, low: Tensor, high: Tensor, first: Tensor, second: Tensor) -> Tensor:
        ends = (part.unsqueeze(0) for part in (low, high, first, second))
        return self.head.draw(self.params.unsqueeze(0), *ends)[0]


@dataclass(frozen=True)
class LeafDistribution:
    """What the values in leaves say: a Gaussian around each in the normal scale; or, if exact, its own cell.

    The entries (values in the leaves that a row falls into) of all rows lie one after another, row by row.

    Attributes:
        row: The row (entries,) that each entry belongs to, ascending.
        share: Its share (entries,) of the row's probability.
        centre: Its value's normal quantile (entries,).
        scale: The bandwidth (entries,) of its leaf.
        start: The lower end (entries,) of its cell in [0, 1].
        width: The width (entries,) of that cell; 0 for values that get a Gaussian.
        rest: The share (n,) of leaves without values, which stand for the marginal distribution.
        missing: The probability (n,) of being missing.
    """

    row: Tensor
    share: Tensor
    centre: Tensor
    scale: Tensor
    start: Tensor
    width: Tensor
    rest: Tensor
    missing: Tensor

    @property
    def log_present(self) -> Tensor:
        return torch.log1p(-self.missing)

    def _sum(self, parts: Tensor) -> Tensor:
        """The sum of entries (*points, entries) over each row: (*points, n)."""
        out = parts.new_zeros(*parts.shape[:-1], len(self.rest))
        return out.index_add_(-1, self.row, parts)

    def _below(self, rank: Tensor) -> Tensor:
        """The share of each entry's probability at ranks up to `rank` (*points, n): (*points, entries)."""
        at = rank[..., self.row]
        inside = ((at - self.start) / self.width.clamp(min=1e-300)).clamp(0, 1)
        smooth = torch.special.ndtr((quantile(rank)[..., self.row] - self.centre) / self.scale)
        return torch.where(self.width > 0, inside, smooth)

    def log_prob(self, cells: Cells) -> Tensor:
        low, high = cells.low, (cells.low + cells.width).clamp(max=1)
        mass = self._sum(self.share * (self._below(high) - self._below(low)).clamp(min=0)) + self.rest * cells.width
        distance = (cells.z_low[self.row] - self.centre) / self.scale
        smooth = torch.where(self.width > 0, 0, (-distance.square() / 2).exp() / self.scale)
        density = self._sum(self.share * smooth).log() - LOG_SQRT_2PI
        # A density of z becomes one of the rank by the normal density there.
        density = torch.logaddexp(density + cells.z_low.square() / 2 + LOG_SQRT_2PI, self.rest.log())
        return torch.where(cells.width == 0, density, mass.log()) + cells.log_slope

    def cdf(self, rank: Tensor) -> Tensor:
        return self._sum(self.share * self._below(rank)) + self.rest * rank

    def draw(self, low: Tensor, high: Tensor, first: Tensor, second: Tensor) -> Tensor:
        below, above = self._below(low), self._below(high)
        mass = (self.share * (above - below)).clamp(min=0)
        through = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
        ends = torch.searchsorted(self.row, torch.arange(len(self.rest), device=self.row.device), right=True)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        before, total = through[starts], through[ends] - through[starts]
        rest = self.rest * (high - low)
        level = first * (total + rest)
        entry = torch.searchsorted(through, before + level, right=True) - 1
        # Rows without entries, or whose entries have no probability here, take the marginal distribution.
        plain = (level >= total) | (total <= 0)
        entry = torch.minimum(torch.maximum(entry, starts), ends - 1).clamp(min=0)
        if not len(mass):
            return low + second * (high - low)
        place = below[entry] + second * (above[entry] - below[entry])
        smooth = torch.special.ndtr(self.centre[entry] + self.scale[entry] * torch.special.ndtri(place))
        rank = torch.where(self.width[entry] > 0, self.start[entry] + place * self.width[entry], smooth)
        rank = torch.where(plain, low + second * (high - low), rank)
        return torch.minimum(torch.maximum(rank, low), high)


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

    def log_prob(self, cells: Cells) -> Tensor:
        return (self._shares().log() + torch.stack([part.log_prob(cells) for part in self.parts])).logsumexp(0)

    def cdf(self, rank: Tensor) -> Tensor:
        total = torch.zeros_like(rank)
        for share, part in zip(self._shares(), self.parts, strict=True):
            total = total + share * part.cdf(rank)
        return total

    def draw(self, low: Tensor, high: Tensor, first: Tensor, second: Tensor) -> Tensor:
        masses = [part.cdf(high) - part.cdf(low) for part in self.parts]
        mass = self._shares() * torch.stack(masses).clamp(min=0)
        through = mass.cumsum(0)
        level = first * through[-1]
        which = (through < level).sum(0).clamp(max=len(self.parts) - 1)
        # The rest of the number that chose the part is uniform again.
        before = torch.cat([torch.zeros_like(mass[:1]), through[:-1]]).gather(0, which[None])[0]
        again = ((level - before) / mass.gather(0, which[None])[0]).nan_to_num(0.5).clamp(0, 1)
        rank = torch.zeros_like(low)
        for k, part in enumerate(self.parts):
            rank = torch.where(which == k, part.draw(low, high, again, second), rank)
        return rank
