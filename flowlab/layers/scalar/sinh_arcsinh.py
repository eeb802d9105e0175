"""The sinh-arcsinh scalar map: tails of any weight, on each side its own."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

FAR = 12.0  # |arcsinh z| beyond which, at |z| = 81,000, x is proportional to z: nothing overflows


@dataclass(frozen=True)
class SinhArcsinh:
    """x = sinh(a(arcsinh z)), where a bends at zero from one slope, the tail weight on the left, to another, that on the right.

    Jones & Pewsey 2009, "Sinh-arcsinh distributions", equation 2, with two slopes in place of one and a shift:
    a(u) = (r + l)/2 · u + (r − l)/2 · (√(u² + 1) − 1). Under normal noise a tail weight of 1 leaves a tail normal, 2 makes it
    exponential, more makes it heavier still, and less makes it lighter. Both directions are formulas.

    Attributes:
        heaviest: Largest tail weight; the smallest is its reciprocal.

    Example:
        >>> import torch, flowlab
        >>> z = torch.tensor([-3.0, 0.0, 3.0])
        >>> left, right = torch.zeros(3), torch.ones(3)  # logarithms of the tail weights, but for a soft clamp
        >>> x, log_slope = flowlab.layers.SinhArcsinh().forward(z, torch.stack([left, right]))
        >>> bool(x[2] > 10), bool(x[0] > -3.0)
        (True, True)
    """

    heaviest: float = 3.0

    periodic: ClassVar[bool] = False
    box: ClassVar[None] = None
    count: ClassVar[int] = 2

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        mean, half = self._slopes(params)
        u = z.asinh()
        near = u.clamp(-FAR, FAR)
        root = (near * near + 1).sqrt()
        a = mean * near + half * (root - 1) + (u - near)
        return a.sinh(), _log_slope(u, near, a, mean + half * near / root)

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        mean, half = self._slopes(params)
        a = x.asinh()
        bend = half * (math.sqrt(FAR**2 + 1) - 1)
        inner = torch.minimum(torch.maximum(a, bend - mean * FAR), bend + mean * FAR)
        # mean · u + half · √(u² + 1) = c, squared, is quadratic in u: its root, in the form in which nothing cancels.
        c, product = inner + half, mean.square() - half.square()
        root = half * (c.square() + product).sqrt()
        alike = c * half > 0
        near = torch.where(
            alike,
            inner * (inner + 2 * half) / torch.where(alike, mean * c + root, 1),
            (mean * c - root) / product,
        )
        u = near + (a - inner)
        return u.sinh(), -_log_slope(u, near, a, mean + half * near / (near * near + 1).sqrt())

    def _slopes(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and half the difference of the two tail weights."""
        bound = math.log(self.heaviest)
        left, right = (bound * (params / bound).tanh()).exp()
        return (right + left) / 2, (right - left) / 2


def _log_slope(u: Tensor, near: Tensor, a: Tensor, slope: Tensor) -> Tensor:
    """log dx/dz, where `slope` is that of a(u) for the near part of u."""
    return _log_cosh(a) - _log_cosh(u) + torch.where(u == near, slope, 1).log()


def _log_cosh(x: Tensor) -> Tensor:
    size = x.abs()
    return size + F.softplus(-2 * size) - math.log(2)
