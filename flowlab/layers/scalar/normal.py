"""The standard normal distribution function and its inverse, in logs: exact far into the tails, smooth.

torch's own `log_ndtr` has no companion for the hazard φ/Φ, and subtracting log Φ from log φ loses every digit in the
tail: at u = -1000, log φ = -500000.9 and the log-hazard is 6.9.
"""

import math
from typing import Any

import torch
from torch import Tensor

LOG_SQRT_2PI = math.log(2 * math.pi) / 2


class _LogCdf(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> tuple[Tensor, Tensor]:
        negative, positive = u.clamp(max=0), u.clamp(min=0)
        log_mills = (torch.special.erfcx(negative / -math.sqrt(2)) / 2).log()
        upper = torch.log1p(-torch.special.ndtr(-positive))
        below = u < 0
        return (
            torch.where(below, log_mills - negative.square() / 2, upper),
            torch.where(below, -log_mills, -positive.square() / 2 - upper) - LOG_SQRT_2PI,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, grad_log_cdf: Tensor, grad_log_hazard: Tensor) -> Tensor:
        u, log_hazard = ctx.saved_tensors
        hazard = log_hazard.exp()  # (log Φ)' = h and h' = -h (u + h)
        return grad_log_cdf * hazard - grad_log_hazard * (u + hazard)


def log_cdf_and_hazard(u: Tensor) -> tuple[Tensor, Tensor]:
    """log Φ(u) and log φ(u)/Φ(u), elementwise."""
    return _LogCdf.apply(u)


class _InverseLogCdf(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(log_p: Tensor) -> Tensor:
        near = torch.special.ndtri(log_p.clamp(min=-8.0).exp())
        # Far out, Φ(z) ≈ φ(z)/|z| gives a start from which Newton's method on the concave log Φ converges at once.
        square = -2 * log_p.clamp(max=-8.0) - 2 * LOG_SQRT_2PI
        z = torch.where(log_p > -8.0, near, -(square - square.log()).sqrt())
        for _ in range(3):
            log_cdf, log_hazard = _LogCdf.forward(z)
            z = torch.where(log_p < -2.0, z - (log_cdf - log_p) * (-log_hazard).exp(), z)
        return z

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return grad * (-log_cdf_and_hazard(z)[1]).exp()


def inverse_log_cdf(log_p: Tensor) -> Tensor:
    """The z with log Φ(z) = log_p, elementwise, for log_p < 0; precise where Φ(z) itself underflows."""
    return _InverseLogCdf.apply(log_p)
