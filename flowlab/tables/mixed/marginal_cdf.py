"""Numbers <-> ranks in [0, 1], where repeated values own intervals: what the heads of `MixedFlow` work with."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowlab.layers import Marginal
from flowlab.layers.marginal import choose_bins
from flowlab.registry import register
from flowlab.tables.schema.grid import FINE

KNOTS = 64  # bins of the smooth part at most
LEAST = 1e-30  # width of a cell that is stored as such
LOG_SQRT_2PI = math.log(2 * math.pi) / 2
MOST = 5.0  # quantile beyond which networks cannot tell ranks apart
FEW = 20  # values from which the smooth part is fitted to those off the atoms alone


class Cell(NamedTuple):
    """The intervals of [0, 1] that values are mapped to.

    Attributes:
        low: Lower ends (n,).
        width: Widths (n,), 0 for values without a probability.
        log_slope: For those the log of the marginal density, nats per unit of the column; else 0. -inf outside the
            support.
    """

    low: Tensor
    width: Tensor
    log_slope: Tensor

    @property
    def middle(self) -> Tensor:
        """The normal quantile of the interval's middle: the input of other networks."""
        return torch.special.ndtri((self.low + self.width / 2).clamp(max=1)).clamp(-MOST, MOST)


@register
class MarginalCDF(nn.Module):
    """A column's smoothed distribution function F, with a jump at each repeated value (atom).

    F(x) = smooth · F_c(x) + the shares of the atoms up to x, where F_c is the distribution function of a `Marginal`
    truncated to the support. The smooth share is that of values seen once, Good and Turing's estimate of the
    probability of an unseen value. On a grid each value stands for a cell of the grid's width, elsewhere for a point.
    With a conditional distribution function G on [0, 1], a value with an interval has the probability
    G(low + width) - G(low), any other the density g(low) · F'(x).

    Args:
        atoms: Number of repeated values.
        knots: Bins of the smooth part.
        resolution: Width of a grid cell in the column's units, 0 for none.
        lower: Lower end of the support.
        upper: Upper end of the support.

    Example:
        >>> import torch
        >>> from flowlab.tables.mixed.marginal_cdf import learn_marginal_cdf
        >>> x = torch.tensor([0.0] * 50 + [1.0] * 30 + list(range(2, 22)), dtype=torch.float64)
        >>> cdf = learn_marginal_cdf(x, resolution=1.0, lower=0.0)
        >>> cdf.cell(torch.tensor([0.0, 1.0], dtype=torch.float64)).width.round(decimals=1).tolist()
        [0.5, 0.3]
        >>> cdf.value(torch.tensor([0.2, 0.6], dtype=torch.float64)).tolist()
        [0.0, 1.0]
    """

    values: Tensor
    shares: Tensor
    smooth: Tensor
    seen: Tensor
    cut: Tensor
    starts: Tensor

    def __init__(
        self,
        atoms: int,
        knots: int,
        resolution: float = 0.0,
        lower: float | None = None,
        upper: float | None = None,
    ) -> None:
        super().__init__()
        self.atoms, self.knots, self.resolution, self.lower, self.upper = atoms, knots, resolution, lower, upper
        self.marginal = Marginal(1, bins=[knots]).double()
        self.register_buffer("values", torch.zeros(atoms, dtype=torch.float64))  # sorted
        self.register_buffer("shares", torch.zeros(atoms, dtype=torch.float64))
        self.register_buffer("smooth", torch.ones((), dtype=torch.float64))
        self.register_buffer("cut", torch.tensor([-math.inf, math.inf], dtype=torch.float64))  # quantiles of the ends
        self.register_buffer("starts", torch.zeros(atoms, dtype=torch.float64))  # ranks where the atoms' jumps begin
        self.register_buffer("seen", torch.tensor([0.0, 1.0], dtype=torch.float64))  # ranks that all rows span

    def cell(self, x: Tensor) -> Cell:
        """The cells of values x (n,)."""
        half = self.resolution / 2
        place, at_atom = self._nearest(x)
        before = torch.cat([self.shares.new_zeros(1), self.shares.cumsum(0)])[place]
        share = torch.zeros_like(x)
        if self.atoms:
            share = torch.where(at_atom, self.shares[place.clamp(max=self.atoms - 1)], 0)
        first, last = self.cut
        outside = (x < self._end(self.lower, -half / 2, -math.inf)) | (x > self._end(self.upper, half / 2, math.inf))
        log_all = log_normal_between(first, last)
        both = torch.stack([x - half, x + half]) if self.resolution else x.unsqueeze(0)
        quantiles, log_slope = self.marginal.inverse(both.unsqueeze(-1))
        quantiles = torch.minimum(torch.maximum(quantiles.squeeze(-1), first), last)
        z, z_high, log_slope = quantiles[0], quantiles[-1], log_slope[0]
        low = (self.smooth * (log_normal_between(first.expand_as(z), z) - log_all).exp() + before).clamp(max=1)
        if not self.resolution:
            density = log_slope - z.square() / 2 - LOG_SQRT_2PI - log_all + self.smooth.log()
            return Cell(low, share, torch.where(outside, -math.inf, torch.where(share > 0, 0, density)))
        log_width = torch.logaddexp(share.log(), self.smooth.log() + log_normal_between(z, z_high) - log_all)
        # Far out a cell's probability underflows: the log-slope carries the rest.
        width = log_width.exp().clamp(min=LEAST)
        return Cell(low, width, torch.where(outside, -math.inf, log_width - width.log()))

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The number of atoms below values x (n,), and whether each value is the atom of that index."""
        half = self.resolution / 2
        place = torch.searchsorted(self.values, x - half / 2)
        if not self.atoms:
            return place, torch.zeros_like(x, dtype=torch.bool)
        return place, (self.values[place.clamp(max=self.atoms - 1)] - x).abs() <= half / 2

    def atom(self, x: Tensor) -> Tensor:
        """The index (n,) of the atom that each value x (n,) is, -1 for none."""
        place, at_atom = self._nearest(x)
        return torch.where(at_atom, place, -1)

    @staticmethod
    def _end(end: float | None, beyond: float, without: float) -> float:
        return without if end is None else end + beyond

    def value(self, rank: Tensor) -> Tensor:
        """The values (n,) that ranks belong to."""
        return self._place(rank)[0]

    def value_and_middle(self, rank: Tensor) -> tuple[Tensor, Tensor]:
        """The values (n,) that ranks belong to, and the `middle` of their cells: cheaper than `cell` of the values."""
        x, at_atom, atom = self._place(rank)
        if self.resolution:
            values, which = torch.unique(x, return_inverse=True)
            return x, self.cell(values).middle[which]
        low, width = rank, torch.zeros_like(rank)
        if self.atoms:
            low, width = torch.where(at_atom, self.starts[atom], rank), torch.where(at_atom, self.shares[atom], 0)
        return x, Cell(low, width, width).middle

    def _place(self, rank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The values (n,) that ranks belong to, whether these are atoms, and the last atom that is not above."""
        if not self.atoms:
            return self._smooth_value(rank), torch.zeros_like(rank, dtype=torch.bool), rank.long()
        through = self.shares.cumsum(0)
        place = torch.searchsorted(self.starts, rank, right=True) - 1
        atom = place.clamp(min=0)
        below = torch.where(place >= 0, through[atom], 0)
        at_atom = (place >= 0) & (rank <= self.starts[atom] + self.shares[atom])
        x = self.values[atom]
        smooth = ~at_atom
        if bool(smooth.any()):
            x[smooth] = self._smooth_value(rank[smooth] - below[smooth])
        return x, at_atom, atom

    def _smooth_value(self, level: Tensor) -> Tensor:
        """The values (n,) up to which the smooth part has gathered a probability."""
        first, last = torch.special.ndtr(self.cut)
        z = torch.special.ndtri(first + (level / self.smooth).clamp(0, 1) * (last - first)).clamp(-8.0, 8.0)
        x = self.marginal.forward(z.unsqueeze(-1))[0].squeeze(-1)
        if self.resolution:
            x = (x / self.resolution).round() * self.resolution
        if self.lower is not None or self.upper is not None:  # rounding errors alone can have led outside
            x = x.clamp(self.lower, self.upper)
        return x

    def prepare(self) -> None:
        """Compute the buffers that follow from marginal, atoms and support, once these are set."""
        half = self.resolution / 2
        for i, end in enumerate((self._end(self.lower, -half, -math.inf), self._end(self.upper, half, math.inf))):
            if math.isfinite(end):
                self.cut[i] = self.marginal.inverse(self.cut.new_tensor([[end]]))[0][0, 0]
        first, last = self.cut
        z = torch.minimum(torch.maximum(self.marginal.inverse(self.values.unsqueeze(-1))[0].squeeze(-1), first), last)
        below = (log_normal_between(first.expand_as(z), z) - log_normal_between(first, last)).exp()
        self.starts.copy_(self.smooth * below + self.shares.cumsum(0) - self.shares)

    def extra_repr(self) -> str:
        return f"{self.atoms} atoms, resolution={self.resolution:g}, support=[{self.lower}, {self.upper}]"


def log_normal_between(low: Tensor, high: Tensor) -> Tensor:
    """Log of the standard normal probability between low and high, with all its digits in either tail."""
    # By the tail on the side of both; symmetric, so both are turned to the left.
    right = low > 0
    a, b = torch.where(right, -high, low), torch.where(right, -low, high)
    log_b = torch.special.log_ndtr(b)
    ratio = torch.where(a < b, torch.special.log_ndtr(a) - log_b, 0).exp()
    return torch.where(a < b, log_b + torch.log1p(-ratio.clamp(max=1)), -math.inf)


@torch.no_grad()
def learn_marginal_cdf(
    x: Tensor,
    *,
    resolution: float = 0.0,
    atoms: Sequence[float] = (),
    lower: float | None = None,
    upper: float | None = None,
    weight: Tensor | None = None,
    spanning: Tensor | None = None,
) -> MarginalCDF:
    """Estimate the marginal distribution function of a column from its values x (n,), in double precision.

    Args:
        x: Finite values; without any, the result is the standard normal.
        resolution: Width of a grid cell: every repeated value is then an atom. A grid below `FINE` counts as none, but
            its repeated values remain atoms.
        atoms: The repeated values of a column that is on no grid.
        lower: Lower end of the support, None for none.
        upper: Upper end of the support, None for none.
        weight: Weight of each value; equal when None.
        spanning: Values (m,) that samples may range over, `x` among them; x when None.
    """
    weight = torch.ones_like(x) if weight is None else weight
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    if len(x) and resolution < FINE * float(x.std(correction=0)):  # such cells' probabilities would have no digits
        resolution, atoms = 0.0, values[counts > 1].tolist() if resolution else atoms
    mass = torch.zeros_like(values).index_add(0, inverse, weight)
    repeated = counts > 1 if resolution else torch.isin(values, torch.tensor(list(atoms), dtype=x.dtype))
    kept, share = values[repeated], mass[repeated]
    rest = x[~repeated[inverse]]
    if len(rest) < FEW:  # too few to tell their distribution: all distinct values, then
        rest = values
    if resolution and len(rest):
        noise = torch.rand(len(rest), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        rest = rest + (noise - 0.5) * resolution
    total = float(weight.sum())
    smooth = max((total - float(share.sum())) / total, 1 / (len(x) + 1)) if total > 0 else 1.0
    if len(rest) and float(rest.max()) == float(rest.min()):  # one value, but for what is not seen yet
        spread = resolution or max(abs(float(rest[0])), 1.0) * 1e-3
        rest = rest[0] + spread * torch.linspace(-2, 2, 9, dtype=x.dtype)
    knots = choose_bins(rest.sort().values, KNOTS) if len(rest) > 1 else 2
    cdf = MarginalCDF(len(kept), knots, resolution, lower, upper)
    cdf.marginal.initialise(rest.unsqueeze(-1))
    cdf.values.copy_(kept)
    cdf.shares.copy_(share / max(float(share.sum()), 1e-300) * (1 - smooth) if len(kept) else share)
    cdf.smooth.fill_(smooth if len(kept) else 1.0)
    cdf.prepare()
    spanning = x if spanning is None else spanning
    if len(spanning):
        ends = cdf.cell(torch.stack([spanning.min(), spanning.max()]))
        cdf.seen.copy_(torch.stack([ends.low[0], ends.low[1] + ends.width[1]]).clamp(0, 1))
    return cdf
