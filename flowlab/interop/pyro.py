"""`FlowGuide`: a flow as the guide of a Pyro model; `PyroFlow`: a flow inside of one.

Needs Pyro: pip install pyro-ppl.
"""

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

try:
    import pyro
    import pyro.distributions as dist
    from pyro import poutine
    from pyro.distributions.torch_distribution import TorchDistributionMixin
    from pyro.infer.autoguide import AutoContinuous
    from pyro.infer.autoguide.initialization import init_to_median
    from pyro.poutine.util import site_is_subsample
except ImportError as error:
    raise ImportError("flowlab.interop.pyro needs Pyro: pip install pyro-ppl") from error

from flowlab import presets
from flowlab.distribution import Density, FlowDistribution
from flowlab.flow import Flow
from flowlab.mixture import FlowMixture
from flowlab.posteriors import FlowPosterior, fit_posterior
from flowlab.posteriors.space import Space
from flowlab.posteriors.target import Target, about_dtype

# Pyro keeps what acts on a model, and whether arguments are validated, once for all threads: models run one at a time.
_ONE_MODEL = threading.RLock()
ELSEWHERE = (-0.7, 0.9)  # where, in unconstrained space, supports are compared


class FlowGuide(AutoContinuous):
    """An autoguide with a flow over all continuous latent sites of a Pyro model, each reached through its support.

    It works with `pyro.infer.SVI` and `Predictive` like Pyro's own. `fit` trains it by flowlab's recipe instead, and
    `posterior` gives flowlab's diagnostics of either. Under SVI gradients from a single draw leave means a third of a
    standard deviation off; many draws in each step and a falling rate do better:
    `Trace_ELBO(num_particles=64, vectorize_particles=True)`, where the model lets draws be a batch, and
    `ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1 / steps)})`.

    The model gets its sites in the floating-point type in which it draws them itself, or in double precision where it
    fails with those, as on data in double precision; flow and log-density are in double precision whatever the model
    is. `fit` and `posterior` need all rows in each call: a model that draws some of them, by `pyro.plate(...,
    subsample_size=...)`, is for SVI. Supports must not depend on other sites.

    Args:
        model: The Pyro model.
        flow: A flow as wide as the unconstrained latent variables, or a function of that width; four affine couplings
            and a linear layer (`presets.glow`) when None. It is made at the first call.
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
        start = _Start(init_loc_fn)
        super().__init__(model, init_loc_fn=start)
        # In a tuple, so that nothing is registered twice. Pyro keeps the model with its rule for starts inside, which
        # draws.
        self._given = (flow, model, start)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        flow, _, start = self._given
        try:
            super()._setup_prototype(*args, **kwargs)
        except RuntimeError as error:
            if not about_dtype(error):
                raise
            start.dtype = torch.float64
            super()._setup_prototype(*args, **kwargs)
        self._check_supports(*args, **kwargs)
        if flow is None:
            flow = presets.glow(self.latent_dim, layers=4, hidden=(64, 64), generator=torch.Generator().manual_seed(0))
        elif not isinstance(flow, Flow):
            flow = flow(self.latent_dim)
        if flow.features != self.latent_dim or flow.context_features:
            raise ValueError(
                f"the model has {self.latent_dim} unconstrained latent numbers: flow must have as many features "
                f"and no context, not {flow.features} and {flow.context_features}"
            )
        self.flow: Flow | FlowMixture = flow

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[Any, Tensor]]:
        for site, value in super()._unpack_latent(latent):
            yield site, value.to(site["value"].dtype)

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
        """The model's log-joint as flowlab wants it: named batches (n, *shape) to (n,).

        The model runs under `torch.vmap` or, where that cannot be, once for each draw.

        Raises:
            ValueError: The log-density is a different one in every call: the message says why.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        dtypes = {name: site["value"].dtype for name, site in self.prototype_trace.iter_stochastic_nodes()}

        def one(sites: dict[str, Tensor]) -> Tensor:
            trace = self._run({name: value.to(dtypes[name]) for name, value in sites.items()}, args, kwargs)
            self._check_sites(trace, set(dtypes))
            trace.compute_log_prob()
            terms = [site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample"]
            # Terms in single precision are many rows each; their sum keeps what they have.
            return torch.stack([torch.as_tensor(term, dtype=torch.float64).sum() for term in terms]).sum()

        def each(sites: dict[str, Tensor]) -> Tensor:
            count = len(next(iter(sites.values())))
            return torch.stack([one({name: value[i] for name, value in sites.items()}) for i in range(count)])

        start = {name: site["value"] for name, site in self.prototype_trace.iter_stochastic_nodes()}
        self._check_constant(self._run(start, args, kwargs), one, start)
        function = _together_or(each, torch.vmap(one), {name: torch.stack([x, x]) for name, x in start.items()})

        def log_density(sites: dict[str, Tensor]) -> Tensor:
            # Pyro's handlers work under vmap where neither the model nor the validation of arguments looks at values.
            with _ONE_MODEL, pyro.validation_enabled(False):
                return function(sites)

        return log_density

    def _run(self, sites: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        """The trace of the model with its latent sites at given values."""
        conditioned = poutine.condition(self._given[1], data=sites)
        with _ONE_MODEL:
            return poutine.block(poutine.trace(conditioned).get_trace)(*args, **kwargs)

    def _check_sites(self, trace: Any, known: set[str]) -> None:
        """Looks whether all that a trace draws are sites of the guide, or plates' rows."""
        for name, site in trace.iter_stochastic_nodes():
            if name not in known and not site_is_subsample(site):
                raise ValueError(
                    f"the model has site {name!r} in some calls alone: its sites must be the same in every call"
                )

    def _check_constant(self, trace: Any, log_density: Callable[[Any], Tensor], sites: dict[str, Tensor]) -> None:
        """Looks whether the model, given its latent sites, still draws something."""
        self._check_sites(trace, set(sites))
        for name, site in trace.iter_stochastic_nodes():
            fn = site["fn"]
            if fn.subsample_size is not None and fn.subsample_size < fn.size:
                raise ValueError(
                    f"plate {name!r} draws {fn.subsample_size} of {fn.size} rows anew in every call, so that the "
                    "log-density is another one each time: leave subsample_size out, so that all rows count, or train "
                    "the guide by pyro.infer.SVI"
                )
        with _ONE_MODEL:
            found = {float(log_density(sites).detach()) for _ in range(10)}
        if len({value for value in found if value == value}) > 1:
            raise ValueError(
                f"the model's log-density is another one in every call with the same values, {min(found):.6g} or "
                f"{max(found):.6g}: something in it is drawn that is no site of the guide, such as dropout, a "
                "hidden site or a random choice of rows. Leave that out, or train the guide by SVI"
            )

    def _check_supports(self, *args: Any, **kwargs: Any) -> None:
        """Looks whether supports and shapes are the same wherever the other sites are."""
        prototype = dict(self.prototype_trace.iter_stochastic_nodes())
        space = self.space()
        for z in ELSEWHERE:
            value, _ = space.constrain(torch.full((space.features,), z, dtype=torch.float64))
            assert isinstance(value, dict)
            with _ONE_MODEL, pyro.validation_enabled(False):
                trace = self._run(
                    {name: x.to(prototype[name]["value"].dtype) for name, x in value.items()}, args, kwargs
                )
            self._check_sites(trace, set(prototype))
            for name, site in prototype.items():
                if name not in trace.nodes:
                    raise ValueError(
                        f"the model has site {name!r} in some calls alone: its sites must be the same in every call"
                    )
                supports = [_described(s["fn"].support) for s in (site, trace.nodes[name])]
                if supports[0] != supports[1]:
                    raise ValueError(
                        f"the support of site {name!r} depends on other sites: {_named(supports[0])} here, "
                        f"{_named(supports[1])} there. A flow needs one that stays: where it is Uniform(0, a), "
                        "say, sample a share of a in Uniform(0, 1), and multiply"
                    )

    def fit(
        self,
        *args: Any,
        random_state: int = 0,
        steps: int = 1000,
        dtype: torch.dtype = torch.float64,
        progress: bool = False,
        **kwargs: Any,
    ) -> FlowPosterior:
        """Train by `flowlab.fit_posterior` on the model with these arguments; the guide then draws from the result.

        Args:
            *args: The model's arguments.
            random_state: As in `fit_posterior`, and so are `steps` and `progress`.
            steps: Steps of training.
            dtype: As in `fit_posterior`; the model gets its sites in its own floating-point type all the same.
            progress: Show progress bars.
            **kwargs: Further arguments of the model.
        """
        log_joint = self.log_joint(*args, **kwargs)
        supports = {block.name: (block.shape, block.constraint) for block in self.space().blocks or []}
        options: Any = {"steps": steps, "random_state": random_state, "dtype": dtype, "progress": progress}
        fitted = fit_posterior(log_joint, supports=supports, **options)
        self.flow = fitted.flow
        return fitted

    def posterior(self, *args: Any, **kwargs: Any) -> FlowPosterior:
        """A copy of the guide as it is now as a `FlowPosterior` of the model with these arguments.

        It is in double precision, and has diagnostics, a summary and resampling.
        """
        log_joint = self.log_joint(*args, **kwargs)
        space = self.space()
        return FlowPosterior(copy.deepcopy(self.flow).double(), space, Target(log_joint, space)).train(False)


class _Start:
    """A rule for where sites start whose values are of a given floating-point type, or of their own."""

    def __init__(self, rule: Callable[..., Any]) -> None:
        self.rule, self.dtype = rule, None

    dtype: torch.dtype | None

    def __call__(self, site: Any) -> Any:
        value = self.rule(site)
        return value if self.dtype is None or not value.is_floating_point() else value.to(self.dtype)


def _together_or(
    each: Callable[[dict[str, Tensor]], Tensor],
    together: Callable[[dict[str, Tensor]], Tensor],
    trial: dict[str, Tensor],
) -> Callable[[dict[str, Tensor]], Tensor]:
    """The way in which a model runs for many draws: all together or, with a warning, one by one."""
    try:
        with _ONE_MODEL, pyro.validation_enabled(False):
            together(trial)
    except RuntimeError as error:
        if isinstance(error, torch.linalg.LinAlgError):
            return together
        each(trial)  # an error of the model itself is raised here
        warnings.warn(
            "the model runs once for each draw, which takes long: under torch.vmap it fails "
            f"({str(error).strip().splitlines()[0]})",
            stacklevel=4,
        )
        return each
    return together


def _described(constraint: Any) -> list[Any]:
    """A constraint's kind and numbers, and those inside of it."""
    if isinstance(constraint, Tensor):
        return [constraint.detach().tolist()]
    if isinstance(constraint, list | tuple):
        return [part for one in constraint for part in _described(one)]
    if not isinstance(constraint, constraints.Constraint):
        return [constraint]
    return [type(constraint).__name__, *(part for value in vars(constraint).values() for part in _described(value))]


def _named(described: list[Any]) -> str:
    name, *numbers = described
    return f"{name}({', '.join(f'{x:.4g}' if isinstance(x, float) else str(x) for x in numbers)})"


class PyroFlow(FlowDistribution, TorchDistributionMixin):  # type: ignore[override]
    """A flow, given a context, as a Pyro distribution: for `pyro.sample`, with `to_event`, `mask` and plates.

    Draws bring their density along.
    """

    def __init__(self, flow: Density, context: Tensor | None = None, batch_shape: Any = None) -> None:
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
