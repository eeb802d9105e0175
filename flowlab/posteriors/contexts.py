"""What amortised posteriors are made of: a target that takes contexts, layers given a context, standardised contexts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowlab.flow import CHUNK
from flowlab.layers import Layer
from flowlab.layers.linear import mean_and_scale
from flowlab.posteriors.space import Space, Value
from flowlab.posteriors.target import Target, at, piecewise
from flowlab.registry import register


class ContextTarget:
    """The unnormalised log-posterior of unconstrained draws, each given its context, with the log-determinant of getting to the user's space.

    Args:
        log_prob: The user's function of draws (draws, n, features), or a dict of named ones (draws, n, *shape), and contexts (n,
            context_features) to (draws, n) nats.
        space: The parameters.
        dtype: Floating-point type in which `log_prob` is called.
    """

    def __init__(self, log_prob: Callable[..., Tensor], space: Space, dtype: torch.dtype = torch.float64) -> None:
        if not callable(log_prob):
            raise TypeError(f"log_prob must be a function of draws and contexts, not {type(log_prob).__name__}")
        self.function, self.space, self.dtype = log_prob, space, dtype
        self.evaluations = 0

    def __call__(self, z: Tensor, context: Tensor) -> Tensor:
        """Log-density (draws, n) of z (draws, n, features), given contexts (n, context_features); differentiable once, in z."""
        target = self._target(context)
        # A target looks at no more than CHUNK rows at once: each part's contexts must be whole.
        parts = [target(part) for part in z.split(max(CHUNK // max(len(context), 1), 1))]
        self.evaluations += target.evaluations
        return torch.cat(parts)

    def at(self, context: Tensor) -> Target:
        """The log-posterior given one context (context_features,)."""
        return self._target(context.unsqueeze(0))

    def check(self, z: Tensor, context: Tensor) -> None:
        """Call the user's function with z (draws, n, features) and contexts (n, context_features), and say what is wrong with the result."""
        with torch.enable_grad():
            value, _ = self.space.constrain(z.to(self.dtype).requires_grad_())
            found = self.function(value, context.to(self.dtype))
        shapes = {"z": z} if isinstance(value, Tensor) else value
        given = ", ".join(f"{name} {tuple(x.shape)}" for name, x in shapes.items())
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise TypeError(f"log_prob must return a tensor of floating-point numbers, not {kind}")
        if found.shape != z.shape[:-1]:
            raise ValueError(
                f"log_prob was called with {z.shape[0]} draws for each of {z.shape[1]} contexts ({given}, context {tuple(context.shape)}) "
                f"and must return shape {tuple(z.shape[:-1])}, one number for each draw, not {tuple(found.shape)}: sum over other axes with .sum(-1)"
            )
        if not found.requires_grad:
            raise ValueError(
                "the result of log_prob has no gradient with respect to its first argument: compute it with torch operations"
            )

    def _target(self, context: Tensor) -> Target:
        context = context.to(self.dtype)
        n = len(context)

        def rows(value: Value) -> Tensor:
            """Rows in the order of (draws, n)."""
            pairs = (
                value.unflatten(0, (-1, n))
                if isinstance(value, Tensor)
                else {name: x.unflatten(0, (-1, n)) for name, x in value.items()}
            )
            some = pairs if isinstance(pairs, Tensor) else next(iter(pairs.values()))

            def function(place: tuple[slice, ...]) -> Tensor:
                return self.function(at(pairs, place), context[place[1]])

            return piecewise(function, some.shape[:2], some).flatten()

        return Target(rows, self.space, self.dtype)


@register
class Given(Layer):
    """A layer whose context is fixed.

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


class Standardise(nn.Module):
    """Contexts with mean zero and standard deviation one over those of the fit."""

    mean: Tensor
    scale: Tensor

    def __init__(self, context: Tensor) -> None:
        super().__init__()
        mean, scale = mean_and_scale(context)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, context: Tensor) -> Tensor:
        return (context - self.mean) / self.scale
