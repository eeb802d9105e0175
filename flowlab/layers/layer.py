"""The contract of every layer. Read this first."""

from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn
from torch.distributions import constraints

Fast = Literal["both", "density", "sampling"]


class Layer(nn.Module):
    """One invertible map between noise and data, with the log-determinant of each direction.

    `forward` goes from noise to data, `inverse` from data to noise. Each takes (*batch, features), and a context
    (*batch, context_features) where `context_features > 0`, and returns the mapped tensor and
    log|det| of its own direction, (*batch,), in nats. A subclass writes the two methods; it need
    not check shapes, `Flow` does that once.

    A layer that learns from data before training (`ActNorm`, `Whitening`, `Marginal`) overrides `initialise` and notes
    in a boolean buffer `initialised` that it was called; `fit` calls it where it was not.

    Attributes:
        features: Width of noise and data.
        context_features: Width of the context, 0 for none.
        fast: Which direction is one cheap pass: "density" is `inverse`, "sampling" is `forward`.

    Example:
        >>> import torch, flowlab
        >>> class Shift(flowlab.layers.Layer):
        ...     def __init__(self, features):
        ...         super().__init__()
        ...         self.features = features
        ...         self.shift = torch.nn.Parameter(torch.zeros(features))
        ...     def forward(self, z, context=None):
        ...         return z + self.shift, z.new_zeros(z.shape[:-1])
        ...     def inverse(self, x, context=None):
        ...         return x - self.shift, x.new_zeros(x.shape[:-1])
        >>> flowlab.check_layer(Shift(3))
    """

    features: int
    context_features: int = 0
    fast: Fast = "both"

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data: x (*batch, features) and log|det dx/dz| (*batch,)."""
        raise NotImplementedError

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise: z (*batch, features) and log|det dz/dx| (*batch,)."""
        raise NotImplementedError

    def initialise(self, x: Tensor) -> None:
        """Learn from data: rows x (n, features) on this layer's data side."""

    def support(self, noise: constraints.Constraint) -> constraints.Constraint:
        """Where this layer's data lie when its noise lies in `noise`."""
        return constraints.real_vector

    def extra_repr(self) -> str:
        return str(self.features)


def fast_of_all(parts: Iterable[str]) -> str:
    """Which direction is cheap where each of several parts has a cheap one: the parts' own, "both", or "neither"."""
    kinds = set(parts) - {"both"}
    return "both" if not kinds else kinds.pop() if len(kinds) == 1 else "neither"


def awaits_data(layer: nn.Module) -> bool:
    """Whether a layer learns from data and has not done so yet, by its buffer `initialised`."""
    initialised = layer._buffers.get("initialised")
    return initialised is not None and not bool(initialised)


def flat(x: Tensor) -> Tensor:
    """(*batch, width) as rows (n, width)."""
    return x.reshape(-1, x.shape[-1])


def zero_log_det(x: Tensor) -> Tensor:
    """The log-determinant (*batch,) of a map that keeps volume."""
    return x.new_zeros(x.shape[:-1])
