"""The sinh-arcsinh scalar map: tails of any weight, on each side its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowlab.arguments import real, settle
from flowlab.layers.scalar.scalar_map import Explicit

FAR = 12.0  # |arcsinh z| beyond which, at |z| = 81,000, x is proportional to z: nothing overflows


@dataclass(frozen=True)
class SinhArcsinh(Explicit):
    """x = sinh(a(arcsinh z)), where the slope of a goes from one tail weight, on the left, to that on the right.

    Jones & Pewsey 2009, "Sinh-arcsinh distributions", with two slopes in place of one and a shift:
    a(u) = (r + l)/2 · u + (r − l)/2 · (√(u² + 1) − 1). Under normal noise a tail weight of 1 leaves a tail normal, 2
    makes it exponential, more makes it heavier still, and less makes it lighter. Both directions are formulas.

    Attributes:
        heaviest: Largest tail weight; the smallest is its reciprocal.

    Example:
        >>> import torch, flowlab
        >>> z = torch.tensor([-3.0, 0.0, 3.0])
        >>> left, right = torch.zeros(3), torch.ones(3)  # logarithms of the tail weights, but for a soft clamp
        >>> x, log_slope = flowlab.layers.SinhArcsinh().forward(z, torch.stack([left, right]))
        >>> bool(x[2] > 2 * -x[0])
        True
    """

    heaviest: float = 3.0

    count: ClassVar[int] = 2

    def __post_init__(self) -> None:
        settle(self, heaviest=real("heaviest", self.heaviest, 1))

    def kernel(self, inverse: bool) -> "SinhArcsinhKernel":
        return SinhArcsinhKernel(math.log(self.heaviest), inverse)


@dataclass(frozen=True)
class SinhArcsinhKernel:
    """`SinhArcsinh` in one direction, with a hand-written gradient.

    Parameters are the raw logarithms of the tail weights, left and right.
    """

    bound: float
    inverse: bool

    def plain(self, value: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        left, right = (self.bound * (params / self.bound).tanh()).exp()
        mapped, log_slope, *_ = self._map(value, left, right)
        return mapped, log_slope

    def run(self, value: Tensor, params: Tensor, out: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        tanh = (params / self.bound).tanh_()
        weights = (self.bound * tanh).exp_()
        mapped, log_slope, *parts = self._map(value, *weights.unbind(1))
        out.copy_(mapped)
        return log_slope, (tanh, weights, out, *parts)

    def pull(
        self,
        value: Tensor,
        params: Tensor,
        saved: Sequence[Tensor],
        grad_mapped: Tensor,
        grad_log_slope: Tensor,
        out: Tensor,
    ) -> Tensor:
        tanh, weights, mapped, near, inside, root, slope, cosh_u, cosh_a = saved
        z, x = (mapped, value) if self.inverse else (value, mapped)
        half = (weights[:, 1] - weights[:, 0]) / 2
        tanh_a = x / cosh_a
        # The gradient of log dx/dz by z, and by the mean and half the difference of the tail weights.
        by_z = (tanh_a * slope - z / cosh_u + torch.where(inside, half / (root**3 * slope), 0)) / cosh_u
        by_mean = tanh_a * near + torch.where(inside, 1 / slope, 0)
        by_half = tanh_a * (root - 1) + torch.where(inside, near / (root * slope), 0)
        if self.inverse:  # x stays where it is: z moves by −dx/dp · dz/dx, and the log-slope has a minus sign
            grad_z = torch.addcmul(grad_mapped, grad_log_slope, by_z, value=-1)
            by_a, grad_log_slope = grad_z * (-cosh_u / slope), -grad_log_slope
            torch.div(by_a, -cosh_a, out=out)
        else:
            by_a = grad_mapped * cosh_a
            torch.addcmul(by_a * slope / cosh_u, grad_log_slope, by_z, out=out)
        grad_mean = torch.addcmul(by_a * near, grad_log_slope, by_mean)
        grad_half = torch.addcmul(by_a * (root - 1), grad_log_slope, by_half)
        grad = torch.stack([grad_mean - grad_half, grad_mean + grad_half], 1)
        return grad.mul_(weights).mul_((1 - tanh.square()) / 2)

    def _map(self, value: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, ...]:
        """Mapped values and log-slopes; and what the gradient needs besides."""
        mean, half = (right + left) / 2, (right - left) / 2
        if self.inverse:
            a = value.asinh()
            bend = half * (math.sqrt(FAR**2 + 1) - 1)
            a_near = torch.minimum(torch.maximum(a, bend - mean * FAR), bend + mean * FAR)
            near = _solve(a_near, mean, half)
            root = (near * near + 1).sqrt()
            u = near + (a - a_near)
        else:
            u = value.asinh()
            near = u.clamp(-FAR, FAR)
            root = (near * near + 1).sqrt()
            a = mean * near + half * (root - 1) + (u - near)
        inside = u == near
        slope = torch.where(inside, mean + half * near / root, 1)
        cosh_u, cosh_a = u.cosh(), a.cosh()
        mapped, steepness = (
            (u.sinh(), cosh_u / (cosh_a * slope)) if self.inverse else (a.sinh(), cosh_a * slope / cosh_u)
        )
        return mapped, steepness.log(), near, inside, root, slope, cosh_u, cosh_a


def _solve(a: Tensor, mean: Tensor, half: Tensor) -> Tensor:
    """The u at which mean · u + half · (√(u² + 1) − 1) is a.

    Squared, it is a quadratic equation, solved in the form in which nothing cancels.
    """
    c, product = a + half, mean.square() - half.square()
    root = half * (c.square() + product).sqrt()
    alike = c * half > 0
    return torch.where(alike, a * (a + 2 * half) / torch.where(alike, mean * c + root, 1), (mean * c - root) / product)
