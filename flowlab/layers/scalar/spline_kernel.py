"""The rational-quadratic spline as one autograd function with an analytic backward: what training and scoring run.

`rational_quadratic.py` has the same map in plain differentiable form, which is the reference, and which double
backward, torch.func, torch.compile and torch.export use. What makes this form fast: bins never lie on the last axis,
which is the batch; only the softmax and its gradient touch all bins, everything else works on the two knots around each
value; comparisons write floats (torch's booleans are slow to make and to sum); temporaries are reused in place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowlab.layers.scalar.rational_quadratic import plain_spline


@dataclass(frozen=True)
class SplineKernel:
    """Splines on [-bound, bound] in one direction, with a hand-written gradient.

    Raw parameters are `bins` logits of widths, as many of heights, and the logarithms of the slopes: at the `bins`
    knots of the circle where `periodic`, else at the `bins - 1` inner knots, with slope one at the ends and the
    identity outside.
    """

    bins: int
    bound: float
    slope: float
    periodic: bool
    inverse: bool

    def run(self, value: Tensor, params: Tensor, out: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        bins, bound, inverse, (d, n) = self.bins, self.bound, self.inverse, value.shape
        inside = None if self.periodic else value.abs() < bound
        safe = value.clamp(-bound, bound)

        clip, shares, knots = self._knots(params)
        # passed[:, j] is one where the value is beyond inner knot j: inner knots alone, so that the bin is valid by
        # construction.
        passed = value.new_empty(d, bins - 1, n)
        torch.ge((safe + bound).mul_(0.5 / bound).unsqueeze(1), knots[:, int(inverse), 1:-1], out=passed)
        bin = passed.sum(1)
        element = torch.arange(n, device=value.device)
        feature = torch.arange(d, device=value.device).unsqueeze(1)
        step = bin.long().mul_(n).add_(element)  # of the value's bin in (bins, n), flattened
        before = torch.stack([step, step + (bins + 1) * n]).add_(feature, alpha=2 * (bins + 1) * n).view(-1)
        start, end = knots.view(-1).index_select(0, before), knots.view(-1).index_select(0, before.add_(n))
        start.mul_(2 * bound).sub_(bound)
        # Of the knots as they are rounded: what a bin loses the next one must gain.
        width = end.mul_(2 * bound).sub_(bound).sub_(start).view(2, d, n)
        start = start.view(2, d, n)

        slopes, free, slope_clip, beside = self._slopes(params, passed, bin, step, element, feature)
        (x0, y0), (w, h), (d0, d1) = start, width, slopes
        s = h / w
        bend = (d0 + d1).sub_(s, alpha=2)
        if inverse:
            rise = safe - y0
            bent = rise * bend
            a = torch.addcmul(bent, h, s - d0)
            b = torch.mul(h, d0).sub_(bent)
            c = rise.mul_(s)
            # The discriminant is positive in exact arithmetic; the floor guards rounding.
            root = torch.addcmul(b * b, a, c, value=4).clamp_(min=torch.finfo(value.dtype).tiny).sqrt_()
            theta = c.mul_(2).div_(root.add_(b))
        else:
            theta = (safe - x0).div_(w)
        theta.clamp_(0, 1)
        squared, cross, _, denominator, numerator = _terms(theta, s, d0, d1, bend)
        log_slope = (s * s).mul_(numerator).div_(denominator.square()).log_()
        mapped = out if inside is None else torch.empty_like(value)
        if inverse:
            torch.addcmul(x0, theta, w, out=mapped)
            log_slope.neg_()
        else:
            torch.addcmul(y0, h, squared.mul_(s).addcmul_(d0, cross).div_(denominator), out=mapped)
        if inside is not None:
            torch.where(inside, mapped, value, out=out)
            inside = inside.to(value.dtype)
            log_slope.mul_(inside)
        saved = (inside, clip, shares, passed, step, beside, free, slope_clip, start, width, slopes, theta)
        return log_slope, saved

    def _knots(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The logits' soft clip, the shares of the bins (d, 2, bins, n), and the knots (d, 2, bins + 1, n) in [0, 1].

        Widths come before heights.
        """
        bins, slope, (d, _, n) = self.bins, self.slope, params.shape
        logits = params[:, : 2 * bins]
        clip = _soft_clip_divisor(logits, -math.log(slope) / 2)
        shares = torch.softmax((logits / clip).view(d, 2, bins, n), 2)
        knots = params.new_empty(d, 2, bins + 1, n)
        knots[:, :, 0].zero_()
        knots[:, :, bins].fill_(1)
        ends, parts = knots.unbind(2), shares.unbind(2)
        for j in range(1, bins):
            torch.add(ends[j - 1], parts[j - 1], out=ends[j])
        return clip, shares, knots

    def _slopes(
        self, params: Tensor, passed: Tensor, bin: Tensor, step: Tensor, element: Tensor, feature: Tensor
    ) -> tuple[Tensor, ...]:
        """The slopes (2, d, n) at the knots on both sides of the values, and what their gradient needs."""
        bins, slope, (d, count, n) = self.bins, self.slope, params.shape
        free = params.new_ones(2, d, n)  # zero at the ends of the box, where the slope is one
        if self.periodic:
            left = step + 2 * bins * n
            after = torch.add(bin, 1).sub_(passed[:, -1], alpha=bins)
        else:
            # Where the bin is the first, `left` is a row of height parameters: read, multiplied by zero, and written
            # before the heights' own gradient is.
            left = step + (2 * bins - 1) * n
            after = bin.clamp(max=bins - 2)
            free[0] = passed[:, 0]
            free[1].sub_(passed[:, -1])
        right = after.long().mul_(n).add_(element).add_(2 * bins * n)
        beside = torch.stack([left, right]).add_(feature, alpha=count * n).view(-1)
        slopes = params.view(-1).index_select(0, beside).view(2, d, n)
        slope_clip = _soft_clip_divisor(slopes, -math.log(slope))
        slopes.div_(slope_clip).mul_(free).exp_()
        return slopes, free, slope_clip, beside

    def pull(
        self,
        value: Tensor,
        params: Tensor,
        saved: Sequence[Tensor],
        grad_mapped: Tensor,
        grad_log_slope: Tensor,
        out: Tensor,
    ) -> Tensor:
        inside, _, _, _, _, _, free, slope_clip, _, width, slopes, theta = saved
        beyond = None
        if inside is not None:
            beyond = grad_mapped - grad_mapped * inside  # outside the box the map is the identity
            grad_mapped, grad_log_slope = grad_mapped * inside, grad_log_slope * inside
        (w, h), (d0, d1) = width, slopes
        s = h / w
        bend = (d0 + d1).sub_(s, alpha=2)
        squared, cross, rest, denominator, numerator = _terms(theta, s, d0, d1, bend)
        over_d, over_n = denominator.reciprocal(), numerator.reciprocal()
        turn = 1 - 2 * theta
        # With y = y0 + h g(θ, s, d0, d1) and L = log dy/dx = 2 log s + log N - 2 log D (N: numerator, D: denominator):
        g = (squared * s).addcmul_(d0, cross).mul_(over_d)
        h_g_theta = (h * s).mul_(numerator).mul_(over_d).mul_(over_d)
        half_l_theta = (d1 * theta).addcmul_(s, turn).sub_(d0).addcmul_(d0, theta).mul_(over_n)
        half_l_theta.sub_((bend * turn).mul_(over_d))
        if self.inverse:
            # The mapped value is x0 + θ w, where θ solves y = value: the implicit function's derivative.
            m = grad_log_slope.neg()
            grad_value = (grad_mapped * w).addcmul_(m, half_l_theta, value=2).div_(h_g_theta)
            grad_y = grad_value.neg()
        else:
            m = grad_log_slope
            grad_y = grad_mapped
            grad_value = (grad_y * h_g_theta).addcmul_(m, half_l_theta, value=2).div_(w)
        # h ∂g/∂s = h (θ² - g turn_q) / D and ∂L/∂s = 2 (1/s + q/N - turn_q/D), with q = θ(1 - θ) and turn_q = 1 - 2q.
        h_over_d = (grad_y * h).mul_(over_d)
        turn_q = 1 - 2 * cross
        grad_s = torch.addcmul(squared, g, turn_q, value=-1).mul_(h_over_d)
        grad_s.addcmul_(m, s.reciprocal().addcmul_(cross, over_n).sub_(turn_q.mul_(over_d)), value=2).div_(w)
        # h ∂g/∂d0 = h q (1 - g) / D, h ∂g/∂d1 = -h q g / D, ∂L/∂d0 = (1 - θ)²/N - 2q/D, ∂L/∂d1 = θ²/N - 2q/D.
        h_q = h_over_d.mul_(cross)
        both = (m * over_d).mul_(cross).mul_(2).addcmul_(h_q, g)
        m_over_n = m * over_n
        grad_slopes = torch.empty_like(slopes)
        torch.addcmul(h_q, m_over_n, rest, out=grad_slopes[0])
        torch.mul(m_over_n, squared, out=grad_slopes[1])
        grad_slopes.sub_(both).mul_(slopes).mul_(free).div_(slope_clip).div_(slope_clip)

        # Of the value's bin: where it starts and how wide it is, on both sides.
        grad_start, grad_width = torch.empty_like(width), torch.empty_like(width)
        if self.inverse:
            grad_start[0].copy_(grad_mapped)
            torch.mul(grad_mapped, theta, out=grad_width[0])
        else:
            torch.neg(grad_value, out=grad_start[0])
            torch.mul(grad_start[0], theta, out=grad_width[0])
        grad_width[0].addcmul_(grad_s, s, value=-1)
        grad_start[1].copy_(grad_y)
        torch.addcmul(grad_s, grad_y, g, out=grad_width[1])

        grad = self._pull_params(params, saved, grad_slopes, grad_start, grad_width)
        if beyond is None:
            out.copy_(grad_value)
        else:
            torch.add(grad_value, beyond, out=out)
        return grad

    def _pull_params(
        self, params: Tensor, saved: Sequence[Tensor], grad_slopes: Tensor, grad_start: Tensor, grad_width: Tensor
    ) -> Tensor:
        """The gradient in the parameters, given those in the slopes, starts and widths (2, d, n); overwrites these."""
        _, clip, shares, passed, step, beside, _, _, start, width, _, _ = saved
        bins, bound, (d, count, n) = self.bins, self.bound, params.shape
        grad = torch.empty_like(params)
        grad[:, 2 * bins :].zero_()
        left, right = beside.view(2, -1)
        to_left, to_right = grad_slopes.view(2, -1)
        # The two sides are different rows, except where one of them is free of parameters and yields to the other.
        if self.periodic:
            grad.view(-1).index_add_(0, right, to_right).index_add_(0, left, to_left)
        else:
            grad.view(-1).scatter_(0, right, to_right).scatter_(0, left, to_left)
        # Bin j moves the start of every bin after it and the width of its own; then the softmax's and the clip's
        # gradient.
        grad_width.mul_(width)
        mean = torch.addcmul(grad_width, start.add(bound), grad_start).transpose(0, 1).unsqueeze(2).neg_()
        grad_start = grad_start.mul_(2 * bound).transpose(0, 1).unsqueeze(2)
        logits = grad[:, : 2 * bins].unflatten(1, (2, bins))
        torch.addcmul(mean, passed.unsqueeze(1), grad_start, out=logits[:, :, :-1])
        logits[:, :, -1:].copy_(mean)
        logits.mul_(shares)
        feature = torch.arange(d, device=params.device).unsqueeze(1)
        own = torch.stack([step, step + bins * n]).add_(feature, alpha=count * n)
        grad.view(-1).index_add_(0, own.view(-1), grad_width.view(-1))
        grad[:, : 2 * bins].div_(clip).div_(clip)
        return grad

    def plain(self, value: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return plain_spline(value, params, self.bins, self.bound, self.slope, self.periodic, self.inverse)


def _soft_clip_divisor(x: Tensor, bound: float) -> Tensor:
    """1 + |x / bound|: the soft clip divides x by it, and its gradient by its square."""
    divisor = x.abs()
    return torch.add(x.new_ones(()), divisor, alpha=1 / bound, out=divisor)


def _terms(theta: Tensor, s: Tensor, d0: Tensor, d1: Tensor, bend: Tensor) -> tuple[Tensor, ...]:
    """θ², q = θ(1 - θ), (1 - θ)², and the spline's D = s + bend q and N = d1 θ² + 2 s q + d0 (1 - θ)²."""
    squared = theta * theta
    cross = theta - squared
    rest = (1 - theta).square_()
    denominator = torch.addcmul(s, bend, cross)
    numerator = (d1 * squared).addcmul_(s, cross, value=2).addcmul_(d0, rest)
    return squared, cross, rest, denominator, numerator
