"""Additive (NICE) and affine (RealNVP, MAF) scalar maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowlab.arguments import real, settle
from flowlab.layers.scalar.scalar_map import Explicit, ScalarMap
from flowlab.torch_internals import sigmoid_backward

# The bound from which the difference of two numbers of its size, in place of tanh, costs a digit of small log-scales.
WIDE = 4.0


@dataclass(frozen=True)
class Additive(ScalarMap):
    """x = z + shift. Dinh et al. 2014, "NICE", section 3.2."""

    count: ClassVar[int] = 1

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return z + params[0], torch.zeros_like(z)

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return x - params[0], torch.zeros_like(x)


@dataclass(frozen=True)
class Affine(Explicit):
    """x = z · exp(s) + shift, with the log-scale s = bound · tanh(a / bound).

    Dinh et al. 2017, "Density estimation using Real NVP", equation 7. The soft clamp has slope one at
    zero and keeps every scale within exp(±bound), so that deep chains cannot overflow.

    Attributes:
        bound: Largest |log-scale|, in nats.
    """

    bound: float = 3.0

    count: ClassVar[int] = 2

    def __post_init__(self) -> None:
        settle(self, bound=real("bound", self.bound, 0))

    def kernel(self, inverse: bool) -> "AffineKernel":
        return AffineKernel(self.bound, inverse)


@dataclass(frozen=True)
class AffineKernel:
    """`Affine` in one direction, with a hand-written gradient; parameters are shift and raw log-scale."""

    bound: float
    inverse: bool

    def run(self, value: Tensor, params: Tensor, out: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        shift, raw = params.unbind(1)
        bound = -self.bound if self.inverse else self.bound
        if self.bound > WIDE:
            tanh = (raw / self.bound).tanh_()
            log_scale = tanh * bound
            sigmoid = tanh.add_(1).mul_(0.5)
        else:
            # tanh(a) = 2 sigmoid(2a) - 1, and torch's sigmoid takes a fifth of its tanh's time.
            sigmoid = (raw * (2 / self.bound)).sigmoid_()
            log_scale = (sigmoid * (2 * bound)).sub_(bound)
        scale = log_scale.exp()
        if self.inverse:
            torch.sub(value, shift, out=out).mul_(scale)
        else:
            torch.addcmul(shift, value, scale, out=out)
        return log_scale, (sigmoid, scale, out)

    def pull(
        self,
        value: Tensor,
        params: Tensor,
        saved: Sequence[Tensor],
        grad_mapped: Tensor,
        grad_log_slope: Tensor,
        out: Tensor,
    ) -> Tensor:
        sigmoid, scale, mapped = saved
        grad_value = torch.mul(grad_mapped, scale, out=out)
        grad = torch.empty_like(params)
        grad_shift, grad_raw = grad.unbind(1)
        if self.inverse:  # mapped = (value - shift) · scale, and the raw log-scale enters with a minus sign
            torch.neg(grad_value, out=grad_shift)
            grad_log_scale = torch.addcmul(grad_log_slope, grad_mapped, mapped)
        else:
            grad_shift.copy_(grad_mapped)
            grad_log_scale = torch.addcmul(grad_log_slope, grad_value, value)
        sigmoid_backward(grad_log_scale, sigmoid, grad_raw)
        grad_raw.mul_(-4 if self.inverse else 4)
        return grad

    def plain(self, value: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = torch.tanh(params[1] / self.bound) * (-self.bound if self.inverse else self.bound)
        if self.inverse:
            return (value - params[0]) * log_scale.exp(), log_scale
        return value * log_scale.exp() + params[0], log_scale
