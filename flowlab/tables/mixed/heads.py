"""Heads of mixed flows: conditional distribution functions G on [0, 1] with parameters from a network.

Values come as the intervals of `MarginalCDF`. With zero parameters G is uniform, or nearly so: every column starts with
its marginal distribution. Parameters are (variables, count, n), values (variables, n).
"""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab.registry import register

FAR = 1000.0  # stands for infinity in the normal scale: products with it stay finite
# Beyond this quantile a smooth head is uniform in the rank, so that it follows the marginal distribution's tail; its
# own tail would have an infinite density at the very end of a support.
TAIL = 4.0
TAIL_RANK = math.erfc(TAIL / math.sqrt(2)) / 2
NARROW = 1e-4  # width in the normal scale below which a cell counts as a point
LOG_TAIL = math.log(TAIL_RANK)


class Cells(NamedTuple):
    """Numbers as heads see them, each (variables, n).

    Attributes:
        low: Lower end of the interval in [0, 1].
        width: Its width, 0 for points.
        z_low: The normal quantile of the lower end.
        z_high: That of the upper end.
        log_slope: For points the log of the marginal density, for intervals 0.
    """

    low: Tensor
    width: Tensor
    z_low: Tensor
    z_high: Tensor
    log_slope: Tensor


@runtime_checkable
class Head(Protocol):
    """A family of distributions on [0, 1]."""

    @property
    def count(self) -> int:
        """Parameters of one value."""

    def initial(self) -> Tensor:
        """Parameters (count,) to start from."""

    def log_prob(self, params: Tensor, cells: Cells) -> Tensor:
        """Log-probability of intervals and log-density of points, (variables, n)."""

    def cdf(self, params: Tensor, rank: Tensor) -> Tensor:
        """G(rank)."""

    def draw(self, params: Tensor, low: Tensor, high: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Draw between `low` and `high` from two independent uniform numbers each."""


@register
class Histogram:
    """A piecewise constant density, with a linear spline as distribution function.

    Source: Müller et al. 2019, "Neural importance sampling", section 4.1.

    Args:
        bins: Number of equal bins of [0, 1].
    """

    def __init__(self, bins: int = 48) -> None:
        self.bins = bins

    @property
    def count(self) -> int:
        return self.bins

    def initial(self) -> Tensor:
        return torch.zeros(self.bins)

    def _locate(self, rank: Tensor) -> tuple[Tensor, Tensor]:
        scaled = rank * self.bins
        index = scaled.floor().nan_to_num(0.0).clamp(0, self.bins - 1)  # NaN stays NaN in the result, but indexes bin 0
        return index.long(), scaled - index

    def log_prob(self, params: Tensor, cells: Cells) -> Tensor:
        log_p = params.log_softmax(-2)
        k, start = self._locate(cells.low)
        log_first = log_p.gather(-2, k.unsqueeze(-2)).squeeze(-2)
        end = start + cells.width * self.bins
        # The share of each bin that the cell covers: cheaper and more precise than a difference of two cdfs.
        edge = torch.arange(self.bins, dtype=params.dtype, device=params.device).unsqueeze(-1)
        low, high = ((cells.low + part).unsqueeze(-2) * self.bins - edge for part in (0, cells.width))
        several = (log_p.exp() * (high.clamp(max=1) - low.clamp(min=0)).clamp(min=0)).sum(-2)
        # Within one bin the exact width counts.
        alone = end <= 1
        tiny = torch.finfo(params.dtype).tiny
        log_mass = torch.where(alone, 1, several).clamp(min=tiny).log()
        point = cells.width == 0
        inner = torch.where(point, 1 / self.bins, cells.width).log() + math.log(self.bins)
        log_mass = torch.where(alone, log_first + inner, log_mass)
        return torch.where(point, log_first + math.log(self.bins) + cells.log_slope, log_mass + cells.log_slope)

    def cdf(self, params: Tensor, rank: Tensor) -> Tensor:
        p = params.softmax(-2)
        k, inside = self._locate(rank)
        mass = p.gather(-2, k.unsqueeze(-2)).squeeze(-2)
        return p.cumsum(-2).gather(-2, k.unsqueeze(-2)).squeeze(-2) - mass * (1 - inside)

    def draw(self, params: Tensor, low: Tensor, high: Tensor, first: Tensor, second: Tensor) -> Tensor:
        p = params.softmax(-2)
        through = p.cumsum(-2)
        start, end = self.cdf(params, low), self.cdf(params, high)
        level = start + first * (end - start)
        k = (through < level.unsqueeze(-2)).sum(-2).clamp(max=self.bins - 1).unsqueeze(-2)
        mass = p.gather(-2, k).squeeze(-2)
        before = through.gather(-2, k).squeeze(-2) - mass
        inside = ((level - before) / mass.clamp(min=torch.finfo(mass.dtype).tiny)).clamp(0, 1)
        return torch.minimum(torch.maximum((k.squeeze(-2) + inside) / self.bins, low), high)

    def __repr__(self) -> str:
        return f"Histogram({self.bins})"


@register
class Logistics:
    """A mixture of logistic distributions of the normal quantile of the rank: a smooth head for continuous columns.

    Args:
        components: Their number.
    """

    def __init__(self, components: int = 8) -> None:
        self.components = components

    @property
    def count(self) -> int:
        return 3 * self.components

    def initial(self) -> Tensor:
        centres = torch.linspace(-1.5, 1.5, self.components) if self.components > 1 else torch.zeros(1)
        return torch.cat([-centres.square() / 2, centres, torch.full((self.components,), -0.7)])

    def _parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, centre, log_scale = params.unflatten(-2, (3, self.components)).unbind(-3)
        return logits.log_softmax(-2), centre, F.softplus(log_scale) + 1e-3

    def _log_tails(self, log_weight: Tensor, centre: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of the quantiles below -TAIL and above TAIL."""
        below = log_weight + F.logsigmoid((-TAIL - centre) / scale)
        above = log_weight + F.logsigmoid((centre - TAIL) / scale)
        return below.logsumexp(-2), above.logsumexp(-2)

    def log_prob(self, params: Tensor, cells: Cells) -> Tensor:
        log_weight, centre, scale = self._parts(params)
        below, above = self._log_tails(log_weight, centre, scale)
        z_low, z_high = cells.z_low.clamp(-TAIL, TAIL), cells.z_high.clamp(-TAIL, TAIL)
        a = (z_low.unsqueeze(-2) - centre) / scale
        b = (z_high.unsqueeze(-2) - centre) / scale
        point, empty = cells.width == 0, z_high - z_low < NARROW
        # σ(b) - σ(a) = σ(b) σ(-a) (1 - exp(a - b)), which keeps its digits however close a and b are.
        gap = torch.where(empty, 1, z_high - z_low).unsqueeze(-2) / scale
        log_above = F.logsigmoid(-a)
        mass = (log_weight + F.logsigmoid(b) + log_above + torch.log(-torch.expm1(-gap))).logsumexp(-2)
        mass = torch.where(empty, -math.inf, mass)
        high = cells.low + cells.width
        in_below = high.clamp(max=TAIL_RANK) - cells.low.clamp(max=TAIL_RANK)
        in_above = high.clamp(min=1 - TAIL_RANK) - cells.low.clamp(min=1 - TAIL_RANK)
        in_below = torch.where(cells.z_low < -TAIL, torch.minimum(cells.width, TAIL_RANK - cells.low), in_below)
        in_above = torch.where(cells.z_low > TAIL, cells.width, in_above)
        for log_tail, inside in ((below, in_below), (above, in_above)):
            reaches = inside > 0
            part = log_tail + torch.where(reaches, inside / TAIL_RANK, 1).log()
            both = torch.logaddexp(torch.where(empty, part, mass), part)
            mass = torch.where(reaches, torch.where(torch.isinf(mass), part, both), mass)
        # A point's density is one of z: that of x is it times dz/dx = F'(x) / φ(z).
        density = (log_weight + F.logsigmoid(a) + log_above - scale.log()).logsumexp(-2)
        density = density + z_low.square() / 2 + 0.5 * math.log(2 * math.pi)
        density = torch.where(cells.z_low < -TAIL, below - LOG_TAIL, density)
        density = torch.where(cells.z_low > TAIL, above - LOG_TAIL, density)
        # So is a cell's probability, where it is too narrow for a difference: density times width.
        narrow = empty & ~point & (cells.z_low.abs() <= TAIL)
        density = density + torch.where(narrow, cells.width, 1).log()
        return torch.where(point | narrow, density, mass) + cells.log_slope

    def cdf(self, params: Tensor, rank: Tensor) -> Tensor:
        log_weight, centre, scale = self._parts(params)
        below, above = self._log_tails(log_weight, centre, scale)
        z = quantile(rank).clamp(-TAIL, TAIL)
        body = (log_weight + F.logsigmoid((z.unsqueeze(-2) - centre) / scale)).exp().sum(-2)
        low = below.exp() * (rank / TAIL_RANK)
        high = 1 - above.exp() * ((1 - rank) / TAIL_RANK)
        return torch.where(rank < TAIL_RANK, low, torch.where(rank > 1 - TAIL_RANK, high, body))

    def draw(self, params: Tensor, low: Tensor, high: Tensor, first: Tensor, second: Tensor) -> Tensor:
        log_weight, centre, scale = self._parts(params)
        start = torch.sigmoid((quantile(low).clamp(-TAIL, TAIL).unsqueeze(-2) - centre) / scale)
        end = torch.sigmoid((quantile(high).clamp(-TAIL, TAIL).unsqueeze(-2) - centre) / scale)
        share = log_weight.exp() * (end - start)
        # The tails count as two more components, of ranks that are uniform there.
        below, above = (log_tail.exp() for log_tail in self._log_tails(log_weight, centre, scale))
        ends = [
            (low.clamp(max=TAIL_RANK), high.clamp(max=TAIL_RANK)),
            (low.clamp(min=1 - TAIL_RANK), high.clamp(min=1 - TAIL_RANK)),
        ]
        tails = [mass * (to - since) / TAIL_RANK for mass, (since, to) in zip((below, above), ends, strict=True)]
        share = torch.cat([share, torch.stack(tails, -2)], -2)
        through = share.cumsum(-2)
        k = (through < (first * through[..., -1, :]).unsqueeze(-2)).sum(-2).clamp(max=self.components + 1)
        component = k.clamp(max=self.components - 1).unsqueeze(-2)
        start, end, centre, scale = (part.gather(-2, component).squeeze(-2) for part in (start, end, centre, scale))
        rank = torch.special.ndtr(centre + scale * torch.logit(start + second * (end - start)))
        for place, (since, to) in enumerate(ends, self.components):
            rank = torch.where(k == place, since + second * (to - since), rank)
        return torch.minimum(torch.maximum(rank, low), high)

    def __repr__(self) -> str:
        return f"Logistics({self.components})"


def quantile(rank: Tensor) -> Tensor:
    """The standard normal quantile, with `FAR` in place of infinity."""
    return torch.special.ndtri(rank).clamp(-FAR, FAR)


@register
class HistogramAndLogistics:
    """A mixture of a histogram, for heaps and gaps, and logistic distributions, for strong dependence.

    Args:
        bins: Bins of the histogram.
        components: Logistic distributions.
    """

    def __init__(self, bins: int = 48, components: int = 8) -> None:
        self.bins, self.components = bins, components
        self.parts: tuple[Head, Head] = (Histogram(bins), Logistics(components))

    @property
    def count(self) -> int:
        return 1 + sum(part.count for part in self.parts)

    def initial(self) -> Tensor:
        return torch.cat([torch.zeros(1), *(part.initial() for part in self.parts)])

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logit, histogram, logistics = params.split([1, *(part.count for part in self.parts)], -2)
        return logit.squeeze(-2), histogram, logistics

    def log_prob(self, params: Tensor, cells: Cells) -> Tensor:
        logit, *split = self._split(params)
        first, second = (part.log_prob(p, cells) for part, p in zip(self.parts, split, strict=True))
        both = torch.logaddexp(F.logsigmoid(logit) + first, F.logsigmoid(-logit) + second)
        return torch.where(torch.isfinite(first), both, first)  # of -inf the gradient would be NaN

    def cdf(self, params: Tensor, rank: Tensor) -> Tensor:
        logit, *split = self._split(params)
        first, second = (part.cdf(p, rank) for part, p in zip(self.parts, split, strict=True))
        return second + torch.sigmoid(logit) * (first - second)

    def draw(self, params: Tensor, low: Tensor, high: Tensor, first: Tensor, second: Tensor) -> Tensor:
        logit, *split = self._split(params)
        share = torch.sigmoid(logit)
        mass = [part.cdf(p, high) - part.cdf(p, low) for part, p in zip(self.parts, split, strict=True)]
        # The part is drawn by its share of the probability between the ends; the rest of the number is uniform again.
        share = share * mass[0] / (share * mass[0] + (1 - share) * mass[1])
        chosen = first < share
        again = torch.where(chosen, first / share, (first - share) / (1 - share))
        a, b = (part.draw(p, low, high, again.clamp(0, 1), second) for part, p in zip(self.parts, split, strict=True))
        return torch.where(chosen, a, b)

    def __repr__(self) -> str:
        return f"HistogramAndLogistics({self.bins}, {self.components})"
