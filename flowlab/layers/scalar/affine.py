"""Additive (NICE) and affine (RealNVP, MAF) scalar maps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


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
        log_scale = self._log_scale(params)
        return z * log_scale.exp() + params[0], log_scale

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        log_scale = self._log_scale(params)
        return (x - params[0]) * (-log_scale).exp(), -log_scale

    def _log_scale(self, params: Tensor) -> Tensor:
        return self.bound * torch.tanh(params[1] / self.bound)
