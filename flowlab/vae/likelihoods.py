"""The likelihoods of a `VAE`: distributions of a row of data, given a decoder's outputs."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowlab.layers.scalar.normal import LOG_SQRT_2PI


class Likelihood(nn.Module):
    """The distribution of rows x (*batch, features), given a decoder's outputs (*batch, width); made to be subclassed.

    Attributes:
        takes: What rows may hold, for messages.
    """

    takes: str = "finite numbers"

    def features(self, width: int) -> int:
        """Width of the rows, given the outputs' width.

        Raises:
            ValueError: No row has outputs of this width.
        """
        return width

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        """Log-likelihood (*batch,) in nats; outputs and rows broadcast."""
        raise NotImplementedError

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected rows (*batch, features)."""
        raise NotImplementedError

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws of rows (*batch, features)."""
        raise NotImplementedError

    def fits(self, x: Tensor) -> Tensor:
        """Which entries of x (n, features) are values that a row may hold: booleans of its shape."""
        return torch.isfinite(x)


class Bernoulli(Likelihood):
    """Zeros and ones, independent given their logits.

    A grey level between them counts as a share of ones; the result is then not a normalised density.

    Example:
        >>> import torch
        >>> Bernoulli().log_prob(torch.zeros(3), torch.ones(3))
        tensor(-2.0794)
    """

    takes = "numbers from 0 to 1"

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        return (x * outputs - F.softplus(outputs)).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (torch.empty_like(outputs).uniform_(generator=generator) < outputs.sigmoid()).to(outputs.dtype)

    def fits(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x <= 1)


class Normal(Likelihood):
    """Numbers with normal noise around the outputs.

    Args:
        noise: Standard deviation of the noise in units of x: a number, "learnt" for a single trained value, at first
            1, or "decoder" for outputs of twice the width, means and then logarithms of standard deviations.

    Example:
        >>> import torch
        >>> Normal(0.5).log_prob(torch.zeros(2), torch.zeros(2))
        tensor(-0.4516)
    """

    def __init__(self, noise: float | Literal["learnt", "decoder"] = "learnt") -> None:
        super().__init__()
        named = noise in ("learnt", "decoder") if isinstance(noise, str) else 0 < noise < math.inf
        if not named:
            raise ValueError(f'noise must be a positive number, "learnt" or "decoder", not {noise!r}')
        self.noise = noise
        if noise == "learnt":
            self.log_noise = nn.Parameter(torch.zeros(()))

    def features(self, width: int) -> int:
        if self.noise != "decoder":
            return width
        if width % 2:
            raise ValueError(
                f'with noise="decoder" the decoder must return means and log-sds, an even width, not {width}'
            )
        return width // 2

    def _mean_and_log_sd(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.noise == "decoder":
            mean, log_sd = outputs.chunk(2, -1)
            return mean, log_sd
        return outputs, self.log_noise if self.noise == "learnt" else outputs.new_tensor(self.noise).log()

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        mean, log_sd = self._mean_and_log_sd(outputs)
        return (-((x - mean) * (-log_sd).exp()).square() / 2 - log_sd - LOG_SQRT_2PI).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        return self._mean_and_log_sd(outputs)[0]

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        mean, log_sd = self._mean_and_log_sd(outputs)
        return mean + log_sd.exp() * torch.empty_like(mean).normal_(generator=generator)

    def extra_repr(self) -> str:
        return f"noise={self.noise!r}"


class Categorical(Likelihood):
    """Whole numbers below `classes` in every feature, as floating-point numbers.

    Outputs are logits: those of the first feature, then those of the second, and so on.

    Example:
        >>> import torch
        >>> Categorical(4).log_prob(torch.zeros(2 * 4), torch.tensor([3.0, 0.0]))
        tensor(-2.7726)
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        if not isinstance(classes, int) or classes < 2:
            raise ValueError(f'likelihood "categorical" needs classes, a whole number from 2, not {classes!r}')
        self.classes = classes
        self.takes = f"whole numbers from 0 to {classes - 1}"

    def features(self, width: int) -> int:
        if width % self.classes:
            raise ValueError(
                f"the decoder must return {self.classes} logits for each feature, "
                f"a multiple of {self.classes} numbers, not {width}"
            )
        return width // self.classes

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs.unflatten(-1, (-1, self.classes))

    def log_prob(self, outputs: Tensor, x: Tensor) -> Tensor:
        logits = self._logits(outputs).log_softmax(-1)
        which = x.long().expand(torch.broadcast_shapes(x.shape, logits.shape[:-1])).unsqueeze(-1)
        return logits.expand(*which.shape[:-1], -1).gather(-1, which).squeeze(-1).sum(-1)

    def mean(self, outputs: Tensor) -> Tensor:
        """Expected numbers (*batch, features), for classes that are grey levels or counts."""
        levels = torch.arange(self.classes, dtype=outputs.dtype, device=outputs.device)
        return self._logits(outputs).softmax(-1) @ levels

    def sample(self, outputs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        logits = self._logits(outputs)
        gumbel = -torch.empty_like(logits).exponential_(generator=generator).log()
        return (logits + gumbel).argmax(-1).to(outputs.dtype)

    def fits(self, x: Tensor) -> Tensor:
        return (x >= 0) & (x < self.classes) & (x == x.round())

    def extra_repr(self) -> str:
        return f"classes={self.classes}"


def likelihood_of(likelihood: Any, noise: float | Literal["learnt", "decoder"], classes: int) -> Likelihood:
    """The likelihood that the arguments of a `VAE` name."""
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood == "bernoulli":
        return Bernoulli()
    if likelihood == "gaussian":
        return Normal(noise)
    if likelihood == "categorical":
        return Categorical(classes)
    raise ValueError(f'likelihood must be "bernoulli", "gaussian", "categorical" or a Likelihood, not {likelihood!r}')
