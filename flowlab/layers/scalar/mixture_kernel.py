"""The density direction of `MixtureCDF` with an analytic gradient: what training and scoring run.

`normal_score` is the same map in logarithms, which is exact however far out. The kernel takes sums of probabilities and
densities themselves, always on the side of the nearer tail: a third of the operations, and good for values up to
`NEAR`, where the fixed standard normal component keeps every sum away from the smallest float.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowlab.kernels import within
from flowlab.layers.scalar.normal import LOG_SQRT_2PI, inverse_log_cdf, log_cdf_and_hazard
from flowlab.layers.scalar.rational_quadratic import soft_clip

NEAR = 8.0
_DENSITY = 1 / math.sqrt(2 * math.pi)


def _tail(u: Tensor) -> Tensor:
    """1 - Φ(u), with all its digits where u is large: torch's own `ndtr` is zero from -5.6 on in single precision."""
    return (u * math.sqrt(0.5)).erfc_().mul_(0.5)


def normal_score(x: Tensor, log_weights: Tensor, means: Tensor, log_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Φ⁻¹(F(x)) and its log-derivative (*s) for a mixture of Gaussians (components, *s), exact however far out.

    All in differentiable operations on logarithms.
    """
    u = (x - means) * (-log_scales).exp()
    with torch.no_grad():  # work on the side of the nearer tail, where log Φ has digits
        sign = torch.where((log_weights.exp() * torch.special.ndtr(u)).sum(0) > 0.5, -1.0, 1.0).to(x.dtype)
    log_cdf, log_hazard = log_cdf_and_hazard(sign * u)
    terms = log_weights + log_cdf
    log_p = torch.logsumexp(terms, 0)
    z = inverse_log_cdf(log_p)
    # dz/dx = f(x)/φ(z) = Σ r_k h(u_k)/σ_k / h(z), with h = φ/Φ and r_k the components' shares of the tail.
    log_slope = torch.logsumexp(terms - log_p + log_hazard - log_scales, 0) - log_cdf_and_hazard(z)[1]
    return sign * z, log_slope


@dataclass(frozen=True)
class MixtureKernel:
    """Data to noise: z = Φ⁻¹(F(x)), for a mixture with distribution function F and density f.

    The log-slope is log f(x) - log φ(z).
    """

    components: int
    log_scale_bound: float
    floor: float

    def run(self, value: Tensor, params: Tensor, out: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        if not within(value, NEAR):
            mapped, log_slope = self.plain(value, params.transpose(0, 1))
            out.copy_(mapped)
            return log_slope, ()
        logits, means, raw = params.split(self.components, 1)
        shares = torch.softmax(logits, 1)
        clip = raw.abs().mul_(1 / self.log_scale_bound).add_(1)
        inverse_scale = (raw / clip).neg_().exp_()
        u = (value.unsqueeze(1) - means).mul_(inverse_scale)
        weights = shares * (1 - self.floor)
        mass = (u * u).mul_(-0.5).exp_().mul_(_DENSITY).mul_(weights)  # weight times density of u
        density = mass * inverse_scale
        # Probability of u's own tail; the other one is what it lacks to one. Both sums have positive terms only.
        tail = _tail(u.abs())
        other = 1 - tail
        below, above = torch.where(u < 0, tail, other), torch.where(u < 0, other, tail)
        own = self.floor * _DENSITY * (value * value).mul_(-0.5).exp_()
        lower = (weights * below).sum(1).add_(self.floor * _tail(-value))
        upper = (weights * above).sum(1).add_(self.floor * _tail(value))
        left = lower < upper
        score = torch.special.ndtri(torch.minimum(lower, upper))
        torch.where(left, score, -score, out=out)
        f = density.sum(1).add_(own)
        log_slope = f.log().add_(score * score, alpha=0.5).add_(LOG_SQRT_2PI)
        # How F moves with the logarithm of a weight: by the tail that F or 1 - F is made of, which has digits.
        share_of_tail = torch.where(left.unsqueeze(1), below, -above).mul_(weights)
        return log_slope, (shares, clip, inverse_scale, u, mass, density, own, share_of_tail, f, out)

    def pull(
        self,
        value: Tensor,
        params: Tensor,
        saved: Sequence[Tensor],
        grad_mapped: Tensor,
        grad_log_slope: Tensor,
        out: Tensor,
    ) -> Tensor:
        if not saved:
            return self._pull_far(value, params, grad_mapped, grad_log_slope, out)
        shares, clip, inverse_scale, u, mass, density, own, share_of_tail, f, z = saved
        # dz = dF / φ(z), and d log-slope = df / f + z dz.
        by_cdf = torch.addcmul(grad_mapped, grad_log_slope, z).mul_((z * z).mul_(0.5).exp_().mul_(1 / _DENSITY))
        by_density = grad_log_slope / f
        to_cdf, to_density = by_cdf.unsqueeze(1), by_density.unsqueeze(1)
        # f falls with x by Σ density · u / σ, and by the fixed component's own · x.
        bend = (density * u).mul_(inverse_scale)
        torch.addcmul(bend.sum(1), own, value, out=out).mul_(by_density).neg_().addcmul_(by_cdf, f)
        grad = torch.empty_like(params)
        by_logits, by_means, by_raw = grad.split(self.components, 1)
        by_means.copy_(bend.mul_(to_density)).addcmul_(density, to_cdf, value=-1)
        by_raw.copy_((u * u).sub_(1).mul_(density).mul_(to_density)).addcmul_(mass * u, to_cdf, value=-1)
        by_raw.div_(clip).div_(clip)
        by_weight = (share_of_tail * to_cdf).addcmul_(density, to_density)
        by_logits.copy_(by_weight).addcmul_(shares, by_weight.sum(1, keepdim=True), value=-1)
        return grad

    def plain(self, value: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return normal_score(value, *self.components_of(params))

    def components_of(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and log-scales (components + 1, *s), the fixed component last."""
        logits, means, log_scales = params.split(self.components)
        log_weights = torch.log_softmax(logits, 0) + math.log1p(-self.floor)
        zero = torch.zeros_like(params[:1])
        return (
            torch.cat([log_weights, zero + math.log(self.floor)]),
            torch.cat([means, zero]),
            torch.cat([soft_clip(log_scales, self.log_scale_bound), zero]),
        )

    def _pull_far(
        self, value: Tensor, params: Tensor, grad_mapped: Tensor, grad_log_slope: Tensor, out: Tensor
    ) -> Tensor:
        """The gradient by way of the plain form, for the rare batch with a value far out."""
        with torch.enable_grad():
            inputs = value.detach().requires_grad_(), params.detach().requires_grad_()
            outputs = self.plain(inputs[0], inputs[1].transpose(0, 1))
            by_value, by_params = torch.autograd.grad(outputs, inputs, (grad_mapped, grad_log_slope))
        out.copy_(by_value)
        return by_params.contiguous()
