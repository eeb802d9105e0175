"""Parts of amortised posteriors: a target with contexts, layers with their context fixed, and standardised contexts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowlab.flow import CHUNK
from flowlab.layers import Layer
from flowlab.layers.linear import mean_and_scale
from flowlab.posteriors.space import Value
from flowlab.posteriors.target import LogDensity, Target, at, piecewise
from flowlab.registry import register


class ContextTarget(LogDensity):
    """The unnormalised log-posterior of unconstrained draws, each given its context.

    It includes the log-determinant of the map to the user's space.

    Args:
        log_prob: The user's function of draws (draws, n, features), or a dict of named ones (draws, n, *shape), and
            contexts (n, context_features) to (draws, n) nats.
        space: The parameters.
        dtype: Floating-point type in which `log_prob` is called.

    Attributes:
        evaluations: Points at which the function was evaluated so far.
    """

    takes, argument, unnamed, each = "draws and contexts", "first argument", "z", "each draw"
    advice = "sum over other axes with .sum(-1)"

    def __call__(self, z: Tensor, context: Tensor) -> Tensor:
        """Log-density (draws, n) of z (draws, n, features), given contexts (n, context_features).

        It is differentiable once, in z.
        """
        target = self._target(context)
        # A target evaluates no more than CHUNK rows at once, and each part must have all contexts.
        parts = [target(part) for part in z.split(max(CHUNK // max(len(context), 1), 1))]
        self.evaluations += target.evaluations
        return torch.cat(parts)

    def at(self, context: Tensor) -> Target:
        """The log-posterior given one context (context_features,)."""
        return self._target(context.unsqueeze(0))

    def check(self, z: Tensor, context: Tensor) -> None:
        """Call the user's function with z (draws, n, features) and contexts (n, context_features); check the result.

        Raises:
            TypeError: It is not a tensor of floating-point numbers.
            ValueError: It has the wrong shape, or no gradient leads back to the draws.
        """
        self.check_call(z, context, batch=f"{z.shape[0]} draws for each of {z.shape[1]} contexts")

    def _target(self, context: Tensor) -> Target:
        """The log-posterior of rows, each given the context of its index modulo n."""
        context = context.to(self.dtype)
        n = len(context)

        def log_prob(value: Value) -> Tensor:
            pairs = _by_context(value, n)
            some = pairs if isinstance(pairs, Tensor) else next(iter(pairs.values()))

            def function(place: tuple[slice, ...]) -> Tensor:
                return self.function(at(pairs, place), context[place[1]])

            return piecewise(function, some.shape[:2], some).flatten()

        return Target(log_prob, self.space, self.dtype)


def _by_context(value: Value, n: int) -> Value:
    """Rows (draws · n, …) as (draws, n, …)."""
    if isinstance(value, Tensor):
        return value.unflatten(0, (-1, n))
    return {name: x.unflatten(0, (-1, n)) for name, x in value.items()}


@register
class Given(Layer):
    """A conditional layer with its context fixed: a layer without a context.

    Args:
        layer: The layer.
        context: Its context (context_features,).
    """

    context: Tensor

    def __init__(self, layer: Layer, context: Tensor | Sequence[float]) -> None:
        super().__init__()
        self.layer, self.features = layer, layer.features
        self.register_buffer("context", torch.as_tensor(context))
        if self.context.shape != (layer.context_features,):
            raise ValueError(
                f"the layer takes a context of width {layer.context_features}, not {tuple(self.context.shape)}"
            )

    @property
    def fast(self) -> Any:  # type: ignore[override]
        return self.layer.fast

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer(z, self.context.expand(*z.shape[:-1], -1))

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer.inverse(x, self.context.expand(*x.shape[:-1], -1))


@register
class Standardise(nn.Module):
    """Shifts and scales contexts to mean zero and standard deviation one over those of the fit, given by `of`.

    Args:
        features: Width of a context.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    @classmethod
    def of(cls, context: Tensor) -> "Standardise":
        """That of contexts (n, features)."""
        made = cls(context.shape[-1])
        made.mean, made.scale = mean_and_scale(context)
        return made

    def forward(self, context: Tensor) -> Tensor:
        return (context - self.mean) / self.scale
