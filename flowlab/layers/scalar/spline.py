"""Rational-quadratic splines (Durkan et al. 2019, "Neural spline flows"), on a box and on the circle."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowlab.arguments import real, settle, whole
from flowlab.kernels import scalar_map
from flowlab.layers.scalar.scalar_map import ScalarMap
from flowlab.layers.scalar.spline_kernel import SplineKernel


def spline(value: Tensor, params: Tensor, kernel: SplineKernel) -> tuple[Tensor, Tensor]:
    """Splines at values (*s) with parameters (count, *s)."""
    return kernel.plain(value, params) if kernel.bins == 1 else scalar_map(value, params, kernel)


class OnBox(ScalarMap):
    """What splines on [-bound, bound] with slope one at its ends have in common."""

    bins: int
    bound: float

    @property
    def box(self) -> tuple[float, float]:
        return -self.bound, self.bound

    @property
    def count(self) -> int:
        return 3 * self.bins - 1


@dataclass(frozen=True)
class RationalQuadraticSpline(OnBox):
    """A monotone rational-quadratic spline on [-bound, bound], the identity outside.

    Slopes at the knots lie within [slope, 1 / slope], so that neither direction can blow up. The
    parametrisation is that of zuko's `MonotonicRQSTransform`.

    Attributes:
        bins: Number of bins.
        bound: Half-width of the box.
        slope: Smallest slope at a knot.
    """

    bins: int = 8
    bound: float = 5.0
    slope: float = 1e-3

    def __post_init__(self) -> None:
        settle(self, bins=whole("bins", self.bins), bound=real("bound", self.bound, 0))
        settle(self, slope=real("slope", self.slope, 0, 1))

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return spline(z, params, self._kernel(inverse=False))

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return spline(x, params, self._kernel(inverse=True))

    def kernel(self, inverse: bool) -> SplineKernel | None:
        return None if self.bins == 1 else self._kernel(inverse)

    def _kernel(self, inverse: bool) -> SplineKernel:
        return SplineKernel(self.bins, self.bound, self.slope, periodic=False, inverse=inverse)


def wrap(angle: Tensor) -> Tensor:
    """The angle in [-π, π)."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


@dataclass(frozen=True)
class CircularSpline(ScalarMap):
    """A smooth invertible map of the circle [-π, π) onto itself: a periodic spline followed by a rotation.

    Rezende et al. 2020, "Normalizing flows on tori and spheres", section 2.1. Any real number is taken as
    an angle; results are in [-π, π).

    Attributes:
        bins: Number of bins.
        slope: Smallest slope at a knot.
    """

    bins: int = 8
    slope: float = 1e-3

    periodic: ClassVar[bool] = True
    box: ClassVar[tuple[float, float]] = (-math.pi, math.pi)

    def __post_init__(self) -> None:
        settle(self, bins=whole("bins", self.bins), slope=real("slope", self.slope, 0, 1))

    @property
    def count(self) -> int:
        return 3 * self.bins + 1

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        mapped, log_slope = self._map(wrap(z), params, inverse=False)
        return wrap(mapped + params[-1]), log_slope

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        mapped, log_slope = self._map(wrap(x - params[-1]), params, inverse=True)
        return wrap(mapped), log_slope

    def _map(self, angle: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return spline(angle, params[:-1], SplineKernel(self.bins, math.pi, self.slope, True, inverse))
