"""`FlowGuide`: a flow as the guide of a Pyro model; `PyroFlow`: a flow inside of one. Needs Pyro: pip install pyro-ppl."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import pyro
    import pyro.distributions as dist
    from pyro import poutine
    from pyro.distributions.torch_distribution import TorchDistributionMixin
    from pyro.infer.autoguide import AutoContinuous
    from pyro.infer.autoguide.initialization import init_to_median
except ImportError as error:
    raise ImportError("flowlab.interop.pyro needs Pyro: pip install pyro-ppl") from error

from flowlab import presets
from flowlab.flow import Flow, FlowDistribution
from flowlab.mixture import FlowMixture
from flowlab.posteriors import FlowPosterior, fit_posterior
from flowlab.posteriors.space import Space
from flowlab.posteriors.target import Target


class FlowGuide(AutoContinuous):
    """An autoguide with a flow over all continuous latent sites of a Pyro model, each reached through its support.

    It works with `pyro.infer.SVI` and `Predictive` like Pyro's own. `fit` trains it by flowlab's recipe instead, and
    `posterior` gives flowlab's diagnostics of either. Under SVI gradients from a single draw leave means a third of a standard deviation off; many
    draws in each step and a falling rate do better: `Trace_ELBO(num_particles=64, vectorize_particles=True)`, where the model lets draws be a batch, and
    `ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1 / steps)})`.

    Args:
        model: The Pyro model.
        flow: A flow as wide as the unconstrained latent variables, or a function of that width; four affine couplings and a linear layer
            (`presets.glow`) when None. It is made at the first call.
        init_loc_fn: Pyro's rule for where the sites start; their support and shapes come from that trace.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale).expand([len(x)]).to_event(1), obs=x)
        >>> guide = FlowGuide(model)
        >>> _ = guide.fit(torch.tensor([0.5, -1.0, 2.0]), steps=200)
        >>> guide.posterior(torch.tensor([0.5, -1.0, 2.0])).diagnostics(2000).verdict
        'good'
    """

    def __init__(
        self,
        model: Callable[..., Any],
        flow: Flow | Callable[[int], Flow] | None = None,
        init_loc_fn: Callable[..., Any] = init_to_median,
    ) -> None:
        super().__init__(model, init_loc_fn=init_loc_fn)
        # In a tuple, so that nothing is registered twice. Pyro keeps the model with its rule for starts inside, which draws.
        self._given = (flow, model)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        flow, _ = self._given
        if flow is None:
            flow = presets.glow(self.latent_dim, layers=4, hidden=(64, 64), generator=torch.Generator().manual_seed(0))
        elif not isinstance(flow, Flow):
            flow = flow(self.latent_dim)
        if flow.features != self.latent_dim or flow.context_features:
            raise ValueError(
                f"the model has {self.latent_dim} unconstrained latent numbers: flow must have as many features and no context, "
                f"not {flow.features} and {flow.context_features}"
            )
        self.flow: Flow | FlowMixture = flow

    def get_base_dist(self) -> Any:
        """Where the noise comes from."""
        return dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1)

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The flow as a distribution over the unconstrained vector."""
        return PyroFlow(self.flow)

    def space(self) -> Space:
        """The latent sites with their shapes and supports."""
        supports = {}
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            supports[name] = (site["value"].shape, site["fn"].support)
        return Space(supports=supports)

    def log_joint(self, *args: Any, **kwargs: Any) -> Callable[[dict[str, Tensor]], Tensor]:
        """The model's log-joint as flowlab wants it: named batches (n, *shape) to (n,). The model runs under `torch.vmap` or,
        where that cannot be, once for each draw."""

        def one(sites: dict[str, Tensor]) -> Tensor:
            conditioned = poutine.condition(self._given[1], data=sites)
            return torch.as_tensor(poutine.trace(conditioned).get_trace(*args, **kwargs).log_prob_sum())

        def batch(sites: dict[str, Tensor]) -> Tensor:
            count = len(next(iter(sites.values())))
            return torch.stack([one({name: value[i] for name, value in sites.items()}) for i in range(count)])

        def fast(sites: dict[str, Tensor]) -> Tensor:
            # Pyro's handlers work under vmap where neither the model nor the validation of arguments looks at values.
            try:
                with pyro.validation_enabled(False):
                    return torch.vmap(one)(sites)
            except RuntimeError:
                return batch(sites)

        return fast

    def fit(
        self, *args: Any, random_state: int = 0, steps: int = 1000, progress: bool = False, **kwargs: Any
    ) -> FlowPosterior:
        """Train by `flowlab.fit_posterior` on the model with these arguments; the guide then draws from the result."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        space = self.space()
        supports = {block.name: (block.shape, block.constraint) for block in space.blocks or []}
        log_joint = self.log_joint(*args, **kwargs)
        fitted = fit_posterior(log_joint, supports=supports, steps=steps, random_state=random_state, progress=progress)
        self.flow = fitted.flow
        return fitted

    def posterior(self, *args: Any, **kwargs: Any) -> FlowPosterior:
        """A copy of the guide as it is now, in double precision, as a `FlowPosterior` of the model with these arguments: diagnostics, summary, resampling."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        space = self.space()
        target = Target(self.log_joint(*args, **kwargs), space, self.flow.dtype)
        return FlowPosterior(copy.deepcopy(self.flow).double(), space, target).eval()


class PyroFlow(FlowDistribution, TorchDistributionMixin):  # type: ignore[override]
    """A flow, given a context, as a Pyro distribution: for `pyro.sample`, with `to_event`, `mask` and plates. Draws bring their density along."""

    def __init__(self, flow: Flow | FlowMixture, context: Tensor | None = None, batch_shape: Any = None) -> None:
        super().__init__(flow, context, batch_shape, validate_args=False)
        self.drawn: tuple[Tensor, Tensor] | None = None

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        self.drawn = self.rsample_and_log_prob(sample_shape)
        return self.drawn[0]

    def log_prob(self, value: Tensor) -> Tensor:
        if self.drawn is not None and value is self.drawn[0]:
            return self.drawn[1]
        return super().log_prob(value)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "PyroFlow":
        wider = super().expand(batch_shape)
        return PyroFlow(self.flow, wider.context, wider.batch_shape)


__all__ = ["FlowGuide", "PyroFlow"]
