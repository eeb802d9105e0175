"""The contract of scalar maps: invertible functions of one number, whose parameters a network predicts."""

from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from flowlab.kernels import Kernel, scalar_map


@runtime_checkable
class ScalarMap(Protocol):
    """A monotone map of single numbers, with `count` parameters each.

    `forward` (noise to data) and `inverse` (data to noise) take values of any shape (*s) and parameters
    (count, *s) – parameters first, because a softmax over a small last axis is slow – and return the mapped
    values and the elementwise log-derivative of their own direction, both (*s). Zero parameters mean
    the identity. A map whose gradient is degenerate there has `initial()`, parameters (count,) near the identity to
    start from. A map with a hand-written gradient has
    `kernel(inverse)`, the `flowlab.kernels.Kernel` of a direction. Implementations are frozen dataclasses: their fields are what a saved file keeps.

    Attributes:
        count: Parameters per value.
        periodic: Whether values are angles in [-π, π); conditioners then see cosine and sine.
        box: The interval that the map takes onto itself, and beyond which it is the identity; None for none.
    """

    periodic: ClassVar[bool]

    @property
    def box(self) -> tuple[float, float] | None: ...

    @property
    def count(self) -> int: ...

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]: ...

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]: ...


class Explicit:
    """A scalar map on the whole line both of whose directions are formulas, each with a kernel."""

    periodic: ClassVar[bool] = False
    box: ClassVar[None] = None

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return scalar_map(z, params, self.kernel(inverse=False))

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return scalar_map(x, params, self.kernel(inverse=True))

    def kernel(self, inverse: bool) -> Kernel:
        raise NotImplementedError
