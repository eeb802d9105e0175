"""The mathematics of monotone rational-quadratic splines, in differentiable torch operations.

Durkan et al. 2019, "Neural spline flows"; Gregory & Delbourgo 1982, "Piecewise rational quadratic interpolation".
"""

import math

import torch
from torch import Tensor


def rational_quadratic(
    value: Tensor,
    knots_x: Tensor,
    knots_y: Tensor,
    slopes: Tensor,
    inverse: bool = False,
    last: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Evaluate monotone rational-quadratic splines.

    Args:
        value: Where to evaluate (*s), within the knots (callers clamp: the branch that `where` throws away must be
            safe, too).
        knots_x: Increasing knots on the input side, (bins + 1, *s) or broadcastable to it.
        knots_y: Increasing knots on the output side, likewise.
        slopes: Positive derivatives at the knots, likewise.
        inverse: Evaluate the inverse function: `value` lies on the output side.
        last: Index of the last knot in use, broadcastable to (1, *s), where some columns use fewer; all knots when
            None.

    Returns:
        The function's value and the log of its derivative, both (*s), each of the direction asked for.
    """
    searched = knots_y if inverse else knots_x
    # Inner knots alone are searched, so that the bin is valid by construction, at the edges as well.
    bin = (value >= searched[1:-1]).sum(0, keepdim=True)
    if last is not None:
        bin = torch.minimum(bin, last - 1)
    shape = (1, *value.shape)

    def pick(knots: Tensor, index: Tensor) -> Tensor:
        return knots.expand(-1, *value.shape).gather(0, index.expand(shape)).squeeze(0)

    x0, x1 = pick(knots_x, bin), pick(knots_x, bin + 1)
    y0, y1 = pick(knots_y, bin), pick(knots_y, bin + 1)
    d0, d1 = pick(slopes, bin), pick(slopes, bin + 1)
    width, height = x1 - x0, y1 - y0
    slope = height / width
    bend = d0 + d1 - 2 * slope
    if inverse:
        rise = value - y0
        a = height * (slope - d0) + rise * bend
        b = height * d0 - rise * bend
        c = -slope * rise
        # The discriminant is positive in exact arithmetic; the floor guards rounding, and the root's gradient at 0.
        discriminant = (b * b - 4 * a * c).clamp(min=torch.finfo(value.dtype).tiny)
        theta = 2 * c / (-b - discriminant.sqrt())
    else:
        theta = (value - x0) / width
    # Rounding may leave [0, 1] by an ulp. Only the value is clamped: a clamped gradient would be zero on the knots.
    theta = theta + (theta.clamp(0, 1) - theta).detach()
    cross = theta * (1 - theta)
    denominator = slope + bend * cross
    log_slope = (
        2 * slope.log() + (d1 * theta**2 + 2 * slope * cross + d0 * (1 - theta) ** 2).log() - 2 * denominator.log()
    )
    if inverse:
        return x0 + theta * width, -log_slope
    return y0 + height * (slope * theta**2 + d0 * cross) / denominator, log_slope


def soft_clip(x: Tensor, bound: float) -> Tensor:
    """x squeezed into (-bound, bound), with slope one at zero."""
    return x / (1 + (x / bound).abs())


def knot_positions(logits: Tensor, bound: float, slope: float) -> Tensor:
    """Knots (bins + 1, *s) from -bound to bound; no bin is narrower than a fraction of about `slope` of the widest."""
    return cumulated(torch.softmax(soft_clip(logits, -math.log(slope) / 2), dim=0), bound)


def cumulated(shares: Tensor, bound: float) -> Tensor:
    """Knots (bins + 1, *s) from -bound to bound of bins with these shares (bins, *s) of the box."""
    inner = bound * (2 * shares[:-1].cumsum(0) - 1)
    edge = torch.full_like(shares[:1], bound)
    return torch.cat([-edge, inner, edge])


def within(bound: float, value: Tensor, mapped: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
    """A map of [-bound, bound], found for clamped values, continued by the identity."""
    inside = value.abs() < bound
    return torch.where(inside, mapped, value), torch.where(inside, log_slope, torch.zeros_like(value))


def plain_spline(
    value: Tensor, params: Tensor, bins: int, bound: float, slope: float, periodic: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    """`SplineKernel` in differentiable torch operations, at values (*s) with parameters (count, *s).

    It is the reference, and what traces and second derivatives need.
    """
    widths, heights, slopes = params[:bins], params[bins : 2 * bins], params[2 * bins : 3 * bins - (not periodic)]
    knots_x, knots_y = knot_positions(widths, bound, slope), knot_positions(heights, bound, slope)
    slopes = soft_clip(slopes, -math.log(slope)).exp()
    if periodic:
        slopes = torch.cat([slopes, slopes[:1]])
    else:
        one = torch.ones_like(params[:1])
        slopes = torch.cat([one, slopes, one])
    inner = value.clamp(-bound, bound)
    if periodic:  # from torch 2.14 on the gradient of clamp is zero on its bounds, and -π is an angle like any other
        inner = value + (inner - value).detach()
    mapped, log_slope = rational_quadratic(inner, knots_x, knots_y, slopes, inverse)
    return (mapped, log_slope) if periodic else within(bound, value, mapped, log_slope)
