"""Flows as `torch.distributions` knows distributions, and Kullback-Leibler divergences between distributions.

`Density` says what a model must have for it: `Flow` and `FlowMixture` have it, and neither is imported here.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints, register_kl

SAMPLES = 1024  # what torch.distributions.kl_divergence draws

Value = TypeVar("Value", float, Tensor)


class Density(Protocol):
    """A density of rows that can be drawn from, perhaps given a context: what `Flow` and `FlowMixture` have in common.

    Shapes are torch's: x is (*batch, features), a context (*batch, context_features); draws are (*shape,
    *context_batch, features). Log-densities are nats.

    Attributes:
        features: Width of the data.
        context_features: Width of the context, 0 for none.
    """

    features: int
    context_features: int

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the data."""
        ...

    @property
    def has_rsample(self) -> bool:
        """Whether samples carry gradients of all parameters."""
        ...

    @property
    def support(self) -> constraints.Constraint:
        """Where the data lie."""
        ...

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density (*batch,)."""
        ...

    def sample(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws without a gradient."""
        ...

    def rsample(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws, differentiable in the parameters."""
        ...

    def rsample_and_log_prob(
        self, shape: int | Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities, both differentiable."""
        ...


class FlowDistribution(Distribution):
    """A flow or a mixture, given a context, as torch.distributions knows distributions.

    The batch_shape is the context's batch.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        flow: Density,
        context: Tensor | None = None,
        batch_shape: Size | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.flow, self.context = flow, context
        if batch_shape is None:
            batch_shape = Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, Size((flow.features,)), validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.flow.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        return self.flow.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowDistribution":
        batch_shape = Size(batch_shape)
        context = None if self.context is None else self.context.expand(*batch_shape, -1)
        return FlowDistribution(self.flow, context, batch_shape, validate_args=self._validate_args)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.flow.rsample(self._shape(sample_shape), self.context)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.flow.sample(self._shape(sample_shape), self.context)

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draws and their log-densities in one pass."""
        return self.flow.rsample_and_log_prob(self._shape(sample_shape), self.context)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.flow.log_prob(value, self.context)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    def _shape(self, sample_shape: Any) -> tuple[int, ...]:
        """Without a context the batch is drawn like further samples; with one, `Flow` appends it."""
        return (*Size(sample_shape), *(() if self.context is not None else self.batch_shape))

    def __repr__(self) -> str:
        return f"FlowDistribution(batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"


class Estimate(NamedTuple, Generic[Value]):
    """A number found by simulation, or a tensor of them, and its standard error."""

    value: Value
    standard_error: Value

    def __str__(self: "Estimate[Any]") -> str:
        return " ± ".join(f"{part:.3f}" if isinstance(part, float) else str(part) for part in self)


def kl_divergence(
    p: Distribution, q: Distribution, samples: int = SAMPLES, generator: torch.Generator | None = None
) -> Estimate[Tensor]:
    """KL(p ‖ q) = E_p[log p(x) − log q(x)] in nats, as a mean over draws from p, with its standard error.

    The value is differentiable in the parameters of q, and, where p has `rsample`, in those of p.
    `torch.distributions.kl_divergence` gives the same value, from 1,024 draws of torch's global generator, wherever p
    or q is what `Flow.distribution` returns.

    Args:
        p: The distribution to draw from.
        q: The other one, with p's event_shape; batch shapes broadcast.
        samples: Number of draws, at least 2.
        generator: Source of the draws of a flow; other distributions draw from torch's global generator.

    Returns:
        Value and standard error, each of p's and q's common batch_shape.

    Raises:
        ValueError: The event shapes differ, or there are fewer than two draws.

    Example:
        >>> import torch, flowlab
        >>> p = flowlab.presets.maf(2, layers=1).distribution()
        >>> normal = torch.distributions.Normal(torch.ones(2), 1.0)
        >>> q = torch.distributions.Independent(normal, 1)
        >>> value, error = flowlab.kl_divergence(p, q, samples=10_000)
        >>> bool(abs(value - 1) < 5 * error)
        True
    """
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"p has event_shape {tuple(p.event_shape)}, q {tuple(q.event_shape)}: "
            "torch.distributions.Independent turns the last dimensions of a batch into an event"
        )
    if samples < 2:
        raise ValueError(f"a standard error needs at least 2 samples, not {samples}")
    batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    if p.batch_shape != batch:
        p = p.expand(batch)
    x, log_p = _draw(p, samples, generator)
    terms = log_p - q.log_prob(x)
    return Estimate(terms.mean(0), terms.detach().std(0) / samples**0.5)


def _draw(p: Distribution, samples: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Draws and their log-densities, with a gradient where there can be one."""
    if isinstance(p, FlowDistribution) and p.has_rsample:
        return p.flow.rsample_and_log_prob(p._shape((samples,)), p.context, generator)
    if isinstance(p, FlowDistribution):
        x = p.flow.sample(p._shape((samples,)), p.context, generator)
    else:
        x = p.rsample((samples,)) if p.has_rsample else p.sample((samples,))
    return x, p.log_prob(x)


@register_kl(FlowDistribution, FlowDistribution)
@register_kl(FlowDistribution, Distribution)
@register_kl(Distribution, FlowDistribution)
def _simulated(p: Distribution, q: Distribution) -> Tensor:
    return kl_divergence(p, q).value
