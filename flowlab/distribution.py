"""Kullback-Leibler divergences by simulation: `kl_divergence`, which also stands behind torch's function of that name."""

from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, register_kl

from flowlab.flow import FlowDistribution

SAMPLES = 1024  # what torch.distributions.kl_divergence draws

Value = TypeVar("Value", float, Tensor)


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

    The value is differentiable in the parameters of q, and, where p has `rsample`, in those of p. `torch.distributions.kl_divergence` gives the same value, from 1,024 draws of
    torch's global generator, wherever p or q is what `Flow.distribution` returns.

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
