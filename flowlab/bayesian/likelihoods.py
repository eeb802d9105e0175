"""The likelihoods of a `BayesianModule`: of targets, given a network's outputs under draws of its weights."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab.layers.scalar.normal import LOG_SQRT_2PI

# A function of outputs (draws, n, …) and targets (n, …) that returns log-likelihoods (draws, n) in nats.
LogLikelihood = Callable[[Tensor, Tensor], Tensor]
Likelihood = Literal["gaussian", "categorical"] | LogLikelihood


def log_prob_of_targets(likelihood: Likelihood, outputs: Tensor, y: Tensor, log_noise: Tensor | None) -> Tensor:
    """Log-likelihood (draws, n) in nats of targets y (n, …) under outputs (draws, n, …).

    Args:
        likelihood: "gaussian", "categorical" or a function.
        outputs: Means, logits (draws, n, …, classes), or what the function takes.
        y: Targets.
        log_noise: Log standard deviation of the Gaussian likelihood, which broadcasts against outputs.

    Raises:
        TypeError: y is not a tensor.
        ValueError: y, or what the function returns, does not fit the outputs.
    """
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a torch.Tensor, not {type(y).__name__}; use torch.as_tensor")
    if callable(likelihood):
        value, expected = likelihood(outputs, y), outputs.shape[:2]
        if value.shape != expected:
            raise ValueError(f"likelihood must return shape {tuple(expected)}, not {tuple(value.shape)}")
        return value
    expected = outputs.shape[1:-1] if likelihood == "categorical" else outputs.shape[1:]
    if y.shape != expected:
        raise ValueError(
            f"y must have shape {tuple(expected)} for outputs {tuple(outputs.shape[1:])}, not {tuple(y.shape)}"
        )
    if likelihood == "categorical":
        if y.is_floating_point() or y.is_complex():
            raise ValueError(f"y is {y.dtype}: classes are whole numbers, convert y by .long()")
        logits = outputs.movedim(-1, 1)
        value = -F.cross_entropy(logits, y.long().expand(len(outputs), *y.shape), reduction="none")
    else:
        assert log_noise is not None
        value = -((y - outputs) * (-log_noise).exp()).square() / 2 - log_noise - LOG_SQRT_2PI
    return value.flatten(2).sum(-1) if value.ndim > 2 else value


def forgotten(outputs: Tensor, y: Tensor) -> Tensor:
    """The likelihood of a loaded `BayesianModule` whose own was a function.

    Raises:
        ValueError: Always.
    """
    raise ValueError("this model's likelihood was a function, which no file holds: set its attribute `likelihood`")


def sample_targets(
    likelihood: Likelihood, outputs: Tensor, log_noise: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """One draw of the targets for each of the outputs (draws, n, …); arguments as in `log_prob_of_targets`.

    Raises:
        ValueError: The likelihood is a function, which cannot be drawn from.
    """
    if likelihood == "gaussian":
        assert log_noise is not None
        return outputs + log_noise.exp() * torch.empty_like(outputs).normal_(generator=generator)
    if likelihood == "categorical":
        probabilities = outputs.softmax(-1).flatten(0, -2)
        return torch.multinomial(probabilities, 1, generator=generator).view(outputs.shape[:-1])
    raise ValueError("likelihood is a function: draw from it yourself, given the outputs of predict(x, n)")
