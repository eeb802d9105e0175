"""Additive (NICE) and affine (RealNVP, MAF) scalar maps."""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowlab.kernels import differentiable_backward, plain_backward, transforming


@dataclass(frozen=True)
class Additive:
    """x = z + shift. Dinh et al. 2014, "NICE", section 3.2."""

    periodic: ClassVar[bool] = False
    box: ClassVar[None] = None
    count: ClassVar[int] = 1

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return z + params[0], torch.zeros_like(z)

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return x - params[0], torch.zeros_like(x)


@dataclass(frozen=True)
class Affine:
    """x = z · exp(s) + shift, with the log-scale s = bound · tanh(a / bound).

    Dinh et al. 2017, "Density estimation using Real NVP", equation 7. The soft clamp has slope one at
    zero and keeps every scale within exp(±bound), so that deep chains cannot overflow.

    Attributes:
        bound: Largest |log-scale|, in nats.
    """

    bound: float = 3.0

    periodic: ClassVar[bool] = False
    box: ClassVar[None] = None
    count: ClassVar[int] = 2

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return affine(z, params, self.bound, inverse=False)

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return affine(x, params, self.bound, inverse=True)


def affine(value: Tensor, params: Tensor, bound: float, inverse: bool) -> tuple[Tensor, Tensor]:
    """`Affine` at values (*s) from shifts and raw log-scales, params (2, *s)."""
    if transforming() or params.shape[1:] != value.shape:  # `ElementwiseAffine` has the same parameters for all rows
        return _affine(value, params, bound, inverse)
    return _AffineFunction.apply(value, params, bound, inverse)


def _affine(value: Tensor, params: Tensor, bound: float, inverse: bool) -> tuple[Tensor, Tensor]:
    log_scale = torch.tanh(params[1] / bound) * (-bound if inverse else bound)
    if inverse:
        return (value - params[0]) * log_scale.exp(), log_scale
    return value * log_scale.exp() + params[0], log_scale


class _AffineFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, params: Tensor, bound: float, inverse: bool) -> tuple[Tensor, Tensor]:
        shift, raw = params
        squashed = (raw / bound).tanh_()
        log_scale = squashed * (-bound if inverse else bound)
        scale = log_scale.exp()
        mapped = (value - shift).mul_(scale) if inverse else torch.addcmul(shift, value, scale)
        ctx.save_for_backward(value, params, squashed, scale, mapped)
        ctx.options = bound, inverse
        return mapped, log_scale

    @staticmethod
    def backward(ctx: Any, grad_mapped: Tensor, grad_log_scale: Tensor) -> tuple[Tensor | None, ...]:
        value, params, squashed, scale, mapped = ctx.saved_tensors
        bound, inverse = ctx.options
        if plain_backward(grad_mapped, grad_log_scale):
            plain = functools.partial(_affine, bound=bound, inverse=inverse)
            return *differentiable_backward(plain, (value, params), (grad_mapped, grad_log_scale)), None, None
        grad_value = grad_mapped * scale
        grad = torch.empty_like(params)
        if inverse:  # mapped = (value - shift) · scale, and the raw log-scale enters with a minus sign
            torch.neg(grad_value, out=grad[0])
            torch.addcmul(grad_log_scale, grad_mapped, mapped, out=grad[1]).neg_()
        else:
            grad[0].copy_(grad_mapped)
            torch.addcmul(grad_log_scale, grad_value, value, out=grad[1])
        grad[1].addcmul_(grad[1] * squashed, squashed, value=-1)  # tanh' = 1 - tanh²
        return grad_value, grad, None, None
