"""The objective of a `VAE` in training: the negative evidence lower bound, with KL warm-up and free bits."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowlab.arguments import real, whole
from flowlab.training.objectives import Drawing, Moment


@dataclass(eq=False)
class NegativeBound(Drawing):
    """An objective for `flowlab.fit`: each row's negative bound, nats.

    In evaluation mode it is the bound itself, without warm-up and free bits, and with the same draws every time, so
    that only the model differs between two evaluations.

    Attributes:
        draws: Draws of z for each row.
        kl_warmup: Steps over which the KL term's weight rises from zero to one.
        free_bits: Nats below which the KL term is constant.
        generator: Source of the draws in training; that of the fit when None.
        taken: Training steps outside of a fit so far.
    """

    draws: int = 1
    kl_warmup: int = 0
    free_bits: float = 0.0
    generator: torch.Generator | None = field(default=None, repr=False)
    taken: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.draws, self.kl_warmup = whole("draws", self.draws), whole("kl_warmup", self.kl_warmup, 0)
        if real("free_bits", self.free_bits) < 0:
            raise ValueError(f"free_bits must not be negative, as {self.free_bits} is")

    def loss(self, model: Any, x: Tensor, context: Any, at: Moment) -> Tensor:
        """The negative bound (n,) of a `VAE` for each row."""
        if not model.training:
            fixed = torch.Generator(x.device).manual_seed(0)
            return -model.elbo(x, draws=self.draws, generator=fixed)
        beta = min(at.step / self.kl_warmup, 1.0) if self.kl_warmup else 1.0
        return -model.elbo(x, draws=self.draws, beta=beta, free_bits=self.free_bits, generator=at.generator)
