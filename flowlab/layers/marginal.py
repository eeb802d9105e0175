"""`Marginal`: each column alone is made Gaussian by a smooth monotone map fitted to data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowlab.arguments import is_whole, whole
from flowlab.layers.layer import Layer, flat
from flowlab.layers.linear import mean_and_scale
from flowlab.layers.scalar.normal import LOG_SQRT_2PI, inverse_log_cdf, log_cdf_and_hazard
from flowlab.layers.scalar.rational_quadratic import rational_quadratic

FAR = 12.0  # noise beyond ±12 (probability 1e-33) continues on a straight line, so that no tail overflows
BIN_CHOICES = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
GAUSSIAN = -1.0  # stands for the tail shape of a Gaussian
PARETO = (1e-3, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # other shapes


class Marginal(Layer):
    """A monotone map of each column alone, fitted so that its noise is standard normal.

    Between an upper and a lower quantile the map is a rational-quadratic spline through normal scores of sample
    quantiles, with as many bins as cross-validated likelihood wants. Beyond, the tail follows the data: straight
    (Gaussian), or a generalised Pareto tail z = Φ⁻¹(1 − p (1 + ξ(x − t)/σ)^(−1/ξ)) with ξ between 0 (exponential) and
    1 (Cauchy), whichever is the likelier (Pickands 1975). The whole map is fixed after fitting, continuously
    differentiable, and has exact log-determinants. Before fitting it is the identity.

    Args:
        features: Width of noise and data.
        bins: Most bins per column, or the number for each column, which is then not chosen.

    Attributes:
        chosen: After fitting, the number of bins for each column (fewer are in use where values coincide).

    Example:
        >>> import torch, flowlab
        >>> x = torch.distributions.LogNormal(0.0, 1.0).sample((500, 2))
        >>> layer = flowlab.layers.Marginal(2)
        >>> layer.initialise(x)
        >>> z, log_det = layer.inverse(x)
        >>> bool((z.std(0) - 1).abs().max() < 0.05)
        True
    """

    initialised: Tensor
    knots_x: Tensor
    knots_z: Tensor
    slopes: Tensor
    last: Tensor
    tail_shape: Tensor
    tail_scale: Tensor

    def __init__(self, features: int, *, bins: int | Sequence[int] = 64) -> None:
        super().__init__()
        self.features = features = whole("features", features)
        each = [bins] * features if is_whole(bins) else bins
        if isinstance(each, str) or not isinstance(each, Sequence) or len(each) != features:
            raise ValueError(f"bins must be one number, or one for each of {features} features, not {bins!r}")
        each = [whole("bins", number) for number in each]
        self.bins = each[0] if is_whole(bins) else each
        self.chosen: list[int] = []
        most = self.most = max(each)
        grid = torch.linspace(-3, 3, most + 1)[:, None].expand(-1, features).contiguous()
        self.register_buffer("initialised", torch.tensor(False))
        self.register_buffer("knots_x", grid.clone())
        self.register_buffer("knots_z", grid.clone())
        self.register_buffer("slopes", torch.ones(most + 1, features))  # dz/dx at the knots
        self.register_buffer(
            "last", torch.full((features,), most)
        )  # a column may use fewer bins than there is room for
        self.register_buffer("tail_shape", torch.full((2, features), GAUSSIAN))  # ξ below and above
        self.register_buffer("tail_scale", torch.ones(2, features))  # σ below and above, the data's units

    def initialise(self, x: Tensor) -> None:
        if len(x) < 2:
            return  # nothing to learn a shape from
        self.chosen = []
        for j in range(self.features):
            column = x[:, j].double().sort().values
            self.chosen.append(choose_bins(column, self.bins) if isinstance(self.bins, int) else self.bins[j])
            fitted = fit_bins(column, self.chosen[-1])
            knots = len(fitted.knots_x)
            for buffer, values in (
                (self.knots_x, fitted.knots_x),
                (self.knots_z, fitted.knots_z),
                (self.slopes, fitted.slopes),
            ):
                buffer[:knots, j] = values.to(buffer)
                # Room that is not used holds further knots, never searched, but safe to compute with.
                buffer[knots:, j] = values[-1].to(buffer) + torch.arange(1, self.most + 2 - knots).to(buffer)
            self.last[j] = knots - 1
            self.tail_shape[:, j] = fitted.shape.to(self.tail_shape)
            self.tail_scale[:, j] = fitted.scale.to(self.tail_scale)
        self.initialised.fill_(True)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(z, to_noise=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(x, to_noise=True)

    def _map(self, value: Tensor, to_noise: bool) -> tuple[Tensor, Tensor]:
        columns = flat(value).T
        mapped, log_slope = column_map(
            columns,
            self.knots_x.unsqueeze(-1),
            self.knots_z.unsqueeze(-1),
            self.slopes.unsqueeze(-1),
            self.last.unsqueeze(-1),
            self.tail_shape.unsqueeze(-1),
            self.tail_scale.unsqueeze(-1),
            to_noise,
        )
        return mapped.T.reshape(value.shape), log_slope.sum(0).view(value.shape[:-1])


def column_map(
    value: Tensor,
    knots_x: Tensor,
    knots_z: Tensor,
    slopes: Tensor,
    last: Tensor,
    shape: Tensor,
    scale: Tensor,
    to_noise: bool,
) -> tuple[Tensor, Tensor]:
    """The map of `Marginal` for values (features, n); knots (bins + 1, features, 1), tails (2, features, 1)."""
    index = last.unsqueeze(0)
    ends_x = torch.cat([knots_x[:1], knots_x.gather(0, index)])
    ends_z = torch.cat([knots_z[:1], knots_z.gather(0, index)])
    ends_slope = torch.cat([slopes[:1], slopes.gather(0, index)])
    ends = ends_x if to_noise else ends_z
    # Not clamp or minimum, whose gradients on the outermost knots are not the map's.
    inside = torch.where(value < ends[0], ends[0], torch.where(value > ends[1], ends[1], value))
    mapped, log_slope = rational_quadratic(inside, knots_x, knots_z, slopes, inverse=not to_noise, last=index)
    for side, sign in ((0, -1.0), (1, 1.0)):
        beyond = sign * (value - ends[side])
        safe = beyond.clamp(min=0)
        tail = tail_to_noise if to_noise else tail_to_data
        end, slope = sign * ends_z[side], ends_slope[side]
        moved, tail_slope = tail(safe, end, slope, shape[side], scale[side])
        outside = beyond > 0
        start = ends_z[side] if to_noise else ends_x[side]
        mapped = torch.where(outside, start + sign * moved, mapped)
        log_slope = torch.where(outside, tail_slope, log_slope)
    return mapped, log_slope


def tail_survival(end: Tensor) -> Tensor:
    """log of the normal probability beyond `end`."""
    return log_cdf_and_hazard(-end)[0]


def far_point(end: Tensor, shape: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """How far beyond the last knot, in data units, noise reaches FAR, and dz/dx there."""
    xi = shape.clamp(min=1e-3)
    far = torch.full_like(end, FAR)
    far_x = scale * torch.expm1(xi * (tail_survival(end) - tail_survival(far))) / xi
    return far_x, (-log_cdf_and_hazard(-far)[1]).exp() / (scale + xi * far_x)


def tail_to_noise(beyond: Tensor, end: Tensor, slope: Tensor, shape: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Distance past the last knot in data units -> distance in noise units, and log dz/dx."""
    straight = (beyond * slope, slope.log().expand_as(beyond))
    far_x, far_slope = far_point(end, shape, scale)
    near = torch.minimum(beyond, far_x)
    xi = shape.clamp(min=1e-3)
    log_survival = tail_survival(end) - torch.log1p(xi * near / scale) / xi
    z = -inverse_log_cdf(log_survival)
    # dz/dx = f(x) / φ(z), with f = survival / (σ + ξ x).
    log_slope = -log_cdf_and_hazard(-z)[1] - (scale + xi * near).log()
    is_far = beyond > far_x
    z = torch.where(is_far, FAR + (beyond - near) * far_slope, z) - end
    log_slope = torch.where(is_far, far_slope.log().expand_as(z), log_slope)
    gaussian = shape == GAUSSIAN
    return torch.where(gaussian, straight[0], z), torch.where(gaussian, straight[1], log_slope)


def tail_to_data(beyond: Tensor, end: Tensor, slope: Tensor, shape: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `tail_to_noise`, with log dx/dz."""
    straight = (beyond / slope, -slope.log().expand_as(beyond))
    far_x, far_slope = far_point(end, shape, scale)
    z = end + beyond
    near = z.clamp(max=FAR)
    xi = shape.clamp(min=1e-3)
    x = scale * torch.expm1(xi * (tail_survival(end) - tail_survival(near))) / xi
    log_slope = log_cdf_and_hazard(-near)[1] + (scale + xi * x).log()
    is_far = z > FAR
    x = torch.where(is_far, far_x + (z - near) / far_slope, x)
    log_slope = torch.where(is_far, -far_slope.log().expand_as(z), log_slope)
    gaussian = shape == GAUSSIAN
    return torch.where(gaussian, straight[0], x), torch.where(gaussian, straight[1], log_slope)


@dataclass
class _Column:
    """One column's fitted map: knots (k,), slopes dz/dx (k,), tail shape and scale (2,), in float64."""

    knots_x: Tensor
    knots_z: Tensor
    slopes: Tensor
    shape: Tensor
    scale: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """The summed log-density of a sorted column (n,); tails go on as they are beyond ±FAR."""
        ends = self.knots_x[[0, -1]]
        first, last = torch.searchsorted(x, ends).tolist()
        knots_x, knots_z, slopes = (part[:, None, None] for part in (self.knots_x, self.knots_z, self.slopes))
        z, log_slope = rational_quadratic(x[None, first:last], knots_x, knots_z, slopes)
        total = (log_slope - z.square() / 2 - LOG_SQRT_2PI).sum()
        for side, excess in ((0, ends[0] - x[:first]), (-1, x[last:] - ends[1])):
            end = float(self.knots_z[side]) * (-1 if side == 0 else 1)
            log_survival, _ = beyond_normal(end)
            if self.shape[side] == GAUSSIAN:
                log_f = gaussian_excess(excess, end, log_survival, self.slopes[side])
            else:
                log_f = pareto_excess(excess, self.shape[side], self.scale[side])
            total = total + log_f.sum() + len(excess) * log_survival
        return total


def choose_bins(x: Tensor, most_bins: int) -> int:
    """The number of bins that cross-validated likelihood wants for a sorted column (n,)."""
    choices = [bins for bins in BIN_CHOICES if bins <= most_bins and 4 * bins <= len(x)] or [min(2, most_bins)]
    # Large columns are thinned, the choice needs no more. Folds are random but always the same: held-out order
    # statistics at regular places would repeat the training rows' noise.
    thinned = x[:: max(1, len(x) // 20_000)]
    best, best_score = choices[0], -math.inf
    if len(choices) > 1:
        fold = torch.randperm(len(thinned), generator=torch.Generator().manual_seed(0)) % 4
        for bins in choices:
            score = 0.0
            for k in range(4):
                score += float(fit_bins(thinned[fold != k], bins).log_density(thinned[fold == k]))
            if score > best_score:
                best, best_score = bins, score
            elif bins > 4 * best:
                break
    return best


def fit_bins(x: Tensor, bins: int) -> _Column:
    """Fit a sorted column with a given number of bins."""
    n = len(x)
    centre, scale = centre_and_spread(x)
    in_tail = min(max(round(n**0.5), 3), n // 4)
    if x[0] == x[-1] or in_tail < 1:
        # No spread, or too few rows for a tail: a Gaussian.
        z = torch.linspace(-2, 2, bins + 1, dtype=torch.float64)
        one = torch.ones_like(z)
        tails = torch.full((2,), GAUSSIAN, dtype=torch.float64)
        return _Column(centre + scale * z, z, one / scale, tails, torch.ones(2, dtype=torch.float64))
    # Knots are equally spaced half in noise, half in probability; the outer two leave `in_tail` rows to each tail.
    outer = in_tail / n
    z_outer = -float(torch.special.ndtri(torch.tensor(outer, dtype=torch.float64)))
    level = torch.linspace(outer, 1 - outer, bins + 1, dtype=torch.float64)
    z = torch.special.ndtri(level) if z_outer <= 0 else torch.linspace(-z_outer, z_outer, bins + 1, dtype=torch.float64)
    level = (level + torch.special.ndtr(z)) / 2
    knots = torch.quantile(x, level) if n < 100_000 else x[(level * (n - 1)).round().long()]
    # Tied values make knots coincide: keep one of them, at the middle of its levels, so that no slope is infinite.
    apart = scale * 1e-6 + 8 * torch.finfo(x.dtype).eps * knots[1:].abs()
    group = torch.cat([torch.zeros(1), ((knots[1:] - knots[:-1]) > apart).double()]).cumsum(0).long()
    size = torch.zeros(int(group[-1]) + 1, dtype=torch.float64).index_add(0, group, torch.ones_like(level))
    knots = torch.zeros_like(size).index_add(0, group, knots) / size
    level = torch.zeros_like(size).index_add(0, group, level) / size
    if len(knots) < 2:  # nearly all rows are one value
        knots = torch.stack([knots[0] - scale, knots[0] + scale])
        level = torch.tensor([0.16, 0.84], dtype=torch.float64)
    z = torch.special.ndtri(level)
    shapes, scales, end_slopes = [], [], []
    for sign, end, z_end in ((-1.0, knots[0], -z[0]), (1.0, knots[-1], z[-1])):
        excess = sign * (x - end)
        shape, sigma, slope = fit_tail(excess[excess > 0], float(z_end), scale)
        shapes.append(shape)
        scales.append(sigma)
        end_slopes.append(slope)
    slopes = monotone_slopes(knots, z)
    slopes[0], slopes[-1] = end_slopes
    return _Column(
        knots, z, slopes, torch.tensor(shapes, dtype=torch.float64), torch.tensor(scales, dtype=torch.float64)
    )


def centre_and_spread(x: Tensor) -> tuple[float, float]:
    """Median and standard deviation of a sorted column.

    The latter is from the narrowest pair of quantiles that differ, so that outliers do not count.
    """
    n = len(x)
    for share in (0.25, 0.1, 0.02):
        low, high = x[int(share * n)], x[n - 1 - int(share * n)]
        if high > low:
            return float(x[n // 2]), float(high - low) / 2 / -float(torch.special.ndtri(torch.tensor(share)))
    mean, scale = mean_and_scale(x[:, None])
    return float(mean), float(scale)


def monotone_slopes(x: Tensor, z: Tensor) -> Tensor:
    """Derivatives that keep a rational-quadratic spline smooth: weighted geometric means of the neighbouring chords."""
    width = x[1:] - x[:-1]
    log_chord = ((z[1:] - z[:-1]) / width).log()
    weight = width[1:] / (width[1:] + width[:-1])
    inner = weight * log_chord[:-1] + (1 - weight) * log_chord[1:]
    return torch.cat([log_chord[:1], inner, log_chord[-1:]]).exp()


def fit_tail(excess: Tensor, end: float, scale: float) -> tuple[float, float, float]:
    """Shape ξ, scale σ and the slope dz/dx at the last knot of the tail that makes the excesses likeliest.

    Candidates are a straight (Gaussian) tail and generalised Pareto tails on a grid of shapes; the σ of
    each is found on a grid around what the median excess implies, which no outlier moves, held by one row of prior
    data. With few excesses the prior on the shape decides for slightly more than an exponential: a tail that is too
    thin costs far more than one too thick.
    """
    median = max(float(excess.median()) if len(excess) else 0.0, 1e-6 * scale)
    factor = torch.logspace(-0.6, 0.6, 25, dtype=torch.float64, base=10.0)
    log_survival, hazard = beyond_normal(end)
    data = torch.cat([excess, torch.tensor([median], dtype=torch.float64)])[:, None]
    # dz/dx = slope; the same slope as an exponential of mean sigma has at the knot.
    sigma = median / math.log(2) * factor
    straight = gaussian_excess(data, end, log_survival, 1 / (sigma * hazard)).sum(0)
    xi = torch.tensor(PARETO, dtype=torch.float64)[:, None]
    sigmas = median * xi / (2**xi - 1) * factor
    curved = pareto_excess(data[:, None], xi, sigmas).sum(0)
    total = torch.cat([straight[None] - 1.5 * abs(GAUSSIAN - 0.1), curved - 1.5 * (xi - 0.1).abs()])
    row, k = divmod(int(total.argmax()), len(factor))
    shape, best = (GAUSSIAN, sigma[k]) if row == 0 else (PARETO[row - 1], sigmas[row - 1, k])
    return shape, float(best), 1 / (float(best) * hazard)


def beyond_normal(end: float) -> tuple[float, float]:
    """log of the normal probability beyond `end`, and the hazard there."""
    log_survival = math.log(math.erfc(end / math.sqrt(2)) / 2)
    return log_survival, math.exp(-end * end / 2 - LOG_SQRT_2PI - log_survival)


def gaussian_excess(excess: Tensor, end: float, log_survival: float, slope: Tensor) -> Tensor:
    """log-density of how far values lie beyond the last knot, given that they do, where the map stays straight."""
    return -((end + slope * excess).square()) / 2 - LOG_SQRT_2PI + slope.log() - log_survival


def pareto_excess(excess: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
    """The same of a generalised Pareto tail."""
    return -scale.log() - (1 + 1 / shape) * torch.log1p(shape / scale * excess)
