"""The contract of scalar maps: invertible functions of one number, whose parameters a network predicts."""

from typing import ClassVar

from torch import Tensor

from flowlab.kernels import Kernel, scalar_map


class ScalarMap:
    """A monotone map of single numbers, with `count` parameters each.

    A subclass writes `count`, `forward` (noise to data) and `inverse` (data to noise). Both take values of any shape
    (*s) and parameters (count, *s) – parameters first, because a softmax over a small last axis is slow – and return
    the mapped values and the elementwise log-derivative of their own direction, both (*s). Zero parameters mean the
    identity, or else `initial` is written as well. Subclasses are frozen dataclasses: their fields are what a saved
    file keeps.

    A class that does not derive from this one but has `count`, `periodic`, `box` and the two directions is taken as
    well; it starts at zero and runs without kernels.

    Attributes:
        periodic: Whether values are angles in [-π, π); conditioners then see cosine and sine.

    Example:
        >>> import torch, flowlab
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Scaling(flowlab.layers.ScalarMap):
        ...     count = 1
        ...     def forward(self, z, params):
        ...         return z * params[0].exp(), params[0].expand_as(z)
        ...     def inverse(self, x, params):
        ...         return x * (-params[0]).exp(), -params[0].expand_as(x)
        >>> flowlab.check_layer(flowlab.layers.Coupling(2, Scaling()))
    """

    periodic: ClassVar[bool] = False

    @property
    def count(self) -> int:
        """Parameters per value."""
        raise NotImplementedError

    @property
    def box(self) -> tuple[float, float] | None:
        """The interval that the map takes onto itself, and beyond which it is the identity; None for none."""
        return None

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Noise to data: mapped values and log dx/dz."""
        raise NotImplementedError

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Data to noise: mapped values and log dz/dx."""
        raise NotImplementedError

    def initial(self) -> Tensor | None:
        """Where the parameters (count,) start, near the identity; None for zero, unless the gradient vanishes there."""
        return None

    def kernel(self, inverse: bool) -> Kernel | None:
        """One direction with a hand-written gradient; None where autograd differentiates `forward` and `inverse`."""
        return None


class Explicit(ScalarMap):
    """A scalar map on the whole line both of whose directions are formulas, each with a kernel."""

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return scalar_map(z, params, self.kernel(inverse=False))

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return scalar_map(x, params, self.kernel(inverse=True))

    def kernel(self, inverse: bool) -> Kernel:
        raise NotImplementedError(
            f"{type(self).__name__} derives from Explicit and has no kernel: write one, or derive from ScalarMap"
        )


def kernel_of(scalar: ScalarMap, inverse: bool) -> Kernel | None:
    """A map's kernel; None for a map of a class that does not derive from `ScalarMap`."""
    return scalar.kernel(inverse) if isinstance(scalar, ScalarMap) else None


def initial_parameters(scalar: ScalarMap) -> Tensor | None:
    """Where a map's parameters start, likewise; None for zero."""
    return scalar.initial() if isinstance(scalar, ScalarMap) else None
