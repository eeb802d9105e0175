"""`AmortizedPosterior`: one conditional flow as the posterior for every context, new ones included."""

import copy
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowlab import files
from flowlab.arguments import whole
from flowlab.bases import Base, Gaussian
from flowlab.distribution import Estimate
from flowlab.flow import Flow
from flowlab.layers import Affine, Coupling, ElementwiseAffine, Layer, LULinear, RationalQuadraticSpline, Whitening
from flowlab.layers.coupling import alternating_couplings
from flowlab.posteriors import pathfinder
from flowlab.posteriors.contexts import ContextTarget, Given, Standardise
from flowlab.posteriors.diagnostics import Diagnostics
from flowlab.posteriors.gaussians import CHECK_DRAWS
from flowlab.posteriors.posterior import FlowPosterior, history_from_json, history_to_json
from flowlab.posteriors.space import Space, Supports, Value
from flowlab.posteriors.stages import FlowTraining
from flowlab.posteriors.target import PosteriorError, check_finite
from flowlab.training import Callback, History, fit
from flowlab.training.objectives import StickingTheLanding

SCOUTS = 16  # contexts whose posteriors are searched for before training
STARTS = 4  # of the search for each of them
BATCH = 64  # contexts in a step


class AmortizedPosterior(nn.Module):
    """A conditional flow whose context is an encoding of data: a posterior for any data without another fit.

    Its methods are a `Flow`'s, with a context for each draw. Points are in the user's space, tensors (*batch,
    features) or, with `supports`, dicts of tensors (*batch, *shape); densities are those of that space, in nats. `at`
    returns the posterior given one context as a `FlowPosterior`, with its resampling, summaries and plots.
    `fit_posterior(log_prob, context=…)` makes it. Kingma & Welling 2014 call encoder and flow the recognition model.
    How far it falls short of a posterior fitted to one context alone is the amortisation gap (Cremer et al. 2018,
    "Inference suboptimality in variational autoencoders", equation 7); `diagnostics` shows the divergence for each
    context.

    `save` writes a file that `flowlab.load` reads, without the log-density, if the encoder is made of modules that
    files may hold: those of `flowlab.torch_networks` (linear layers, convolutions, activations, …) and classes of
    yours that `flowlab.files.register` admits. `flow` alone can be saved in any case, and so can what `at` returns.

    Args:
        encoder: Network from contexts (n, width) to the flow's context (n, context_features); the identity when None.
        flow: The conditional distribution of the unconstrained vector. Its sampling direction should be fast; `fit`
            does not invert it where its density is slow.
        supports: For each name its shape and torch constraint, as in `fit_posterior`; unconstrained and without names
            when None.
        target: The log-density that it was fitted to.

    Attributes:
        history: ELBO along the fit: dicts of stage, step and elbo (nats, mean over contexts).

    Raises:
        TypeError: `flow` is not a Flow, or `encoder` not a module.
        ValueError: The flow has no context, or not as many features as `supports` needs.

    Example:
        >>> import torch, flowlab
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.SiLU(), torch.nn.Linear(16, 4))
        >>> q = AmortizedPosterior(encoder, flowlab.presets.iaf(2, context_features=4, layers=2, hidden=(16,)))
        >>> q.sample((10,), torch.zeros(3, 5)).shape
        torch.Size([10, 3, 2])
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "posterior.flow"
        >>> q.save(path)
        >>> flowlab.load(path).log_prob(torch.zeros(2), torch.zeros(5)) == q.log_prob(torch.zeros(2), torch.zeros(5))
        tensor(True)
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        flow: Flow,
        *,
        supports: Supports | None = None,
        target: ContextTarget | None = None,
    ) -> None:
        super().__init__()
        if encoder is not None and not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder must be a torch.nn.Module or None, not {type(encoder).__name__}")
        if not isinstance(flow, Flow):
            raise TypeError(f"flow must be a Flow, not {type(flow).__name__}")
        if not flow.context_features:
            raise ValueError("flow must take a context: build it with context_features=…, the width of the encoding")
        self.space = Space(flow.features) if supports is None else Space(supports=supports)
        if flow.features != self.space.features:
            raise ValueError(
                f"flow must have {self.space.features} features, as supports need unconstrained, not {flow.features}"
            )
        self.encoder, self.flow, self.target = encoder, flow, target
        self.history: list[dict[str, Any]] = []

    # ---- as a flow ------------------------------------------------------------------------------------------------

    def rsample_and_log_prob(
        self, shape: int | Sequence[int], context: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Value, Tensor]:
        """Draws and their log-densities (*shape, *context_batch) in nats, in one pass, both differentiable."""
        z, log_q = self.flow.rsample_and_log_prob(shape, self.encode(context), generator)
        value, log_det = self.space.constrain(z)
        return value, log_q - log_det

    def rsample(self, shape: int | Sequence[int], context: Tensor, generator: torch.Generator | None = None) -> Value:
        """Draws (*shape, *context_batch, features), or a dict of (*shape, *context_batch, *own shape).

        They are differentiable in the parameters of flow and encoder.
        """
        return self.space.constrain(self.flow.rsample(shape, self.encode(context), generator))[0]

    @torch.no_grad()
    def sample(self, shape: int | Sequence[int], context: Tensor, generator: torch.Generator | None = None) -> Value:
        """Draws without a gradient."""
        return self.rsample(shape, context, generator)

    def log_prob(self, value: Value, context: Tensor) -> Tensor:
        """Log-density (*batch,) in nats of points in the user's space, given contexts whose batch broadcasts.

        Outside of the support it is −inf.
        """
        z, log_det = self.space.unconstrain(value)
        inside = ~torch.isnan(z).any(-1)
        z = torch.where(inside.unsqueeze(-1), z, 0).to(self.flow.dtype)
        return torch.where(inside, self.flow.log_prob(z, self.encode(context)) - log_det, -torch.inf)

    def encode(self, context: Tensor) -> Tensor:
        """The flow's context (*batch, flow.context_features) for contexts (*batch, width) of any floating-point type.

        Raises:
            TypeError: `context` is not a tensor.
            ValueError: The encoder does not take the context, or returns another width than the flow needs.
        """
        if not isinstance(context, Tensor):
            raise TypeError(f"context must be a torch.Tensor, not {type(context).__name__}; use torch.as_tensor")
        if context.ndim == 0:
            raise ValueError("context must have shape (*batch, width), not ()")
        context = context.to(self.flow.dtype)
        if self.encoder is None:
            return context
        encoded = _encoded(self.encoder, context.reshape(context.shape[:-1].numel(), context.shape[-1]))
        if encoded.ndim != 2 or encoded.shape[1] != self.flow.context_features:
            raise ValueError(
                f"encoder must return (n, {self.flow.context_features}), the flow's context, not {tuple(encoded.shape)}"
            )
        return encoded.view(*context.shape[:-1], self.flow.context_features)

    def forward(self, shape: int | Sequence[int], context: Tensor) -> Value:
        """The same as `rsample`."""
        return self.rsample(shape, context)

    # ---- one context at a time --------------------------------------------------------------------------------------

    def at(self, context: Tensor) -> FlowPosterior:
        """The posterior given one context (width,), a copy in double precision of what it is now."""
        if not isinstance(context, Tensor) or context.ndim != 1:
            shape = tuple(context.shape) if isinstance(context, Tensor) else type(context).__name__
            raise ValueError(f"context must be a single one, of shape (width,), not {shape}")
        encoded = self.encode(context).detach().double()
        flow = copy.deepcopy(self.flow).double()
        layers = [Given(layer, encoded) if layer.context_features else layer for layer in flow]
        target = None if self.target is None else self.target.at(context)
        return FlowPosterior(Flow(flow.base, layers), self.space, target).train(False)

    def elbo(self, context: Tensor, n: int = 10_000, random_state: int = 0) -> Estimate[float] | list[Estimate[float]]:
        """The evidence lower bound with its standard error, in nats, from n draws.

        For one context (width,), or as a list for each of (contexts, width).
        """
        return self._each(context, lambda posterior: posterior.elbo(n, random_state))

    def diagnostics(self, context: Tensor, n: int = 10_000, random_state: int = 0) -> Diagnostics | list[Diagnostics]:
        """How good the posterior is, as in `FlowPosterior.diagnostics`, in about a second for each context.

        For one context (width,), or as a list for each of (contexts, width). It is needed most for contexts unlike
        those of the fit.
        """
        return self._each(context, lambda posterior: posterior.diagnostics(n, random_state))

    def fit(
        self,
        log_prob: Callable[..., Tensor],
        context: Tensor,
        *,
        steps: int = 1000,
        draws: int = 256,
        learning_rate: float = 1e-2,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> History:
        """Train flow and encoder in place by sticking the landing, with a cosine learning-rate schedule.

        Training starts from their present parameters; `fit_posterior(log_prob, context=…)` first searches for
        posteriors.

        Args:
            log_prob: As in `fit_posterior`: draws (draws, n, features), or a dict of tensors (draws, n, *shape), and
                contexts (n, width) to (draws, n) nats. It is called in the flow's floating-point type.
            context: Contexts (n, width); a tenth of them is held out and decides which parameters are kept.
            steps: Steps, rounded up to whole passes over the contexts.
            draws: Draws in each step, shared out among 64 contexts.
            learning_rate: Peak learning rate.
            generator: Source of everything.
            **options: Of `flowlab.fit`.

        Returns:
            The history; its losses are negative bounds in nats, averaged over contexts.
        """
        steps, draws = whole("steps", steps), whole("draws", draws)
        if not isinstance(context, Tensor):
            raise TypeError(f"context must be a torch.Tensor, not {type(context).__name__}; use torch.as_tensor")
        if context.ndim != 2 or not len(context):
            raise ValueError(f"context must have shape (n, width), not {tuple(context.shape)}")
        context = context.detach().to(self.flow.dtype)
        if not isinstance(log_prob, ContextTarget):
            self.attach(log_prob, self.flow.dtype)
        else:
            self.target = log_prob
        assert self.target is not None
        batch = min(whole("batch_size", options.pop("batch_size", BATCH)), len(context))
        per_epoch = max(math.ceil(round(0.9 * len(context)) / batch), 1)
        epochs = math.ceil(steps / per_epoch)
        chosen: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch,
            "learning_rate": learning_rate,
            "schedule": "cosine",
        }
        chosen |= {"patience": steps, "weight_decay": 0.0, "ema": 0.0, "clip": math.inf, **options}
        objective = StickingTheLanding(self.target, max(draws // batch, 1))
        encoded: Any = _Encoded(self, context.shape[-1])
        found = fit(encoded, context=context, objective=objective, generator=generator, **chosen)
        self.history += [{"stage": "amortized", "step": r["step"], "elbo": -r["train"]} for r in found.records]
        return found

    def attach(self, log_prob: Callable[..., Tensor], dtype: torch.dtype = torch.float64) -> "AmortizedPosterior":
        """Set the log-density that it is diagnosed by, called as in `fit_posterior`; returns the posterior."""
        self.target = ContextTarget(log_prob, self.space, dtype)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the posterior, without its log-density, to a file that `flowlab.load` reads; then `attach` sets it."""
        files.save(self, path)

    def _to_file(self) -> tuple[dict[str, Any], nn.Module]:
        header = {
            "kind": "AmortizedPosterior",
            "space": self.space.describe(),
            "history": history_to_json(self.history),
        }
        return header, nn.Sequential(*([] if self.encoder is None else [self.encoder]), self.flow)

    @classmethod
    def _from_file(cls, header: dict[str, Any], module: Any) -> "AmortizedPosterior":
        if not isinstance(module, nn.Sequential) or len(module) not in (1, 2):
            raise ValueError("an amortised posterior is an encoder, if any, and a flow")
        *encoder, flow = module
        posterior = cls(encoder[0] if encoder else None, flow)  # type: ignore[arg-type]
        posterior.space = Space.from_description(header["space"], flow.features)  # type: ignore[arg-type]
        posterior.history = history_from_json(header["history"])
        return posterior.train(False)

    def _each(self, context: Tensor, ask: Callable[[FlowPosterior], Any]) -> Any:
        if self.target is None:
            raise PosteriorError("this posterior does not know its log-density: give it by .attach(log_prob)")
        if isinstance(context, Tensor) and context.ndim == 2:
            return [ask(self.at(one)) for one in context]
        return ask(self.at(context))

    def extra_repr(self) -> str:
        return ", ".join(self.space.labels[:6]) + (", …" if len(self.space.labels) > 6 else "")


class _Encoded(nn.Module):
    """Encoder and flow as one conditional flow given the data, in unconstrained space, for `fit` and objectives."""

    def __init__(self, posterior: AmortizedPosterior, context_features: int) -> None:
        super().__init__()
        self.posterior, self.features, self.context_features = posterior, posterior.flow.features, context_features

    @property
    def fast(self) -> str:
        return self.posterior.flow.fast

    @property
    def base(self) -> Base:
        return self.posterior.flow.base

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior.flow(z, self.posterior.encode(context))

    def log_prob(self, z: Tensor, context: Tensor) -> Tensor:
        return self.posterior.flow.log_prob(z, self.posterior.encode(context))

    def rsample(self, shape: int | Sequence[int], context: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.posterior.flow.rsample(shape, self.posterior.encode(context), generator)


def _encoded(encoder: nn.Module, rows: Tensor) -> Tensor:
    """The encoder's output for contexts (n, width); a failure says that it does not take them."""
    try:
        return encoder(rows)
    except RuntimeError as error:
        raise ValueError(f"encoder does not take contexts of shape {tuple(rows.shape)}: {error}") from error


def fit_amortized(
    log_prob: Callable[..., Tensor],
    context: Tensor,
    space: Space,
    supports: Supports | None,
    flow: Flow | None,
    encoder: nn.Module | None,
    training: FlowTraining,
    *,
    dtype: torch.dtype,
    generator: torch.Generator,
    progress: bool,
    callback: Callback | None,
    kept: Path | None,
) -> AmortizedPosterior:
    """`fit_posterior` with contexts (n, width): look for the posteriors of some, then train one flow for all."""
    context = _checked_contexts(context, dtype)
    target = ContextTarget(log_prob, space, dtype)
    some = context[torch.randperm(len(context), generator=generator)[:SCOUTS]]
    spread = pathfinder.SPREAD
    trial = torch.empty(3, 2, space.features, dtype=torch.float64).uniform_(-spread, spread, generator=generator)
    target.check(trial, some[:2])

    encoder = Standardise.of(context) if encoder is None else encoder.to(dtype)
    with torch.no_grad():
        width = _encoded(encoder, some[:2]).shape[-1]
    if flow is not None and (flow.features, flow.context_features) != (space.features, width):
        raise ValueError(
            f"flow must have {space.features} features and context_features={width}, as the encoder returns, not "
            f"{flow.features} and {flow.context_features}"
        )
    whitening, sd = _pooled_whitening(target, some, generator)
    layers = _layers(space.features, width, sd, generator) if flow is None else list(flow)
    base = Gaussian(space.features) if flow is None else flow.base
    whole_flow = Flow(base, [*layers, whitening]).to(dtype)
    posterior = AmortizedPosterior(encoder, whole_flow, supports=supports, target=target)
    place = None if kept is None else kept / "flow"
    follow: dict[str, Any] = {"progress": progress, "callback": callback, "checkpoint": place}
    posterior.fit(target, context, generator=generator, **training._asdict(), **follow)
    _check_draws(posterior, target, some, generator)
    return posterior.train(False)


def _checked_contexts(context: Tensor, dtype: torch.dtype) -> Tensor:
    """The contexts (n, width) in a floating-point type, without their gradient.

    Raises:
        TypeError: They are not a tensor.
        ValueError: They have another shape, or values that are not finite.
    """
    if not isinstance(context, Tensor):
        raise TypeError(f"context must be a torch.Tensor, not {type(context).__name__}; use torch.as_tensor")
    if context.ndim != 2 or len(context) < 2:
        raise ValueError(
            f"context must have shape (n, width), one row for each of 2 or more data sets, not {tuple(context.shape)}"
        )
    context = context.detach().to(dtype)
    if not bool(torch.isfinite(context).all()):
        row, column = (~torch.isfinite(context)).nonzero()[0].tolist()
        raise ValueError(f"context has values that are not finite, the first in row {row}, column {column}")
    return context


def _pooled_whitening(target: ContextTarget, contexts: Tensor, generator: torch.Generator) -> tuple[Whitening, Tensor]:
    """A whitening of the pooled posteriors of some contexts, and the typical sd (features,) of one in its coordinates.

    Raises:
        PosteriorError: None of them was found.
    """
    found = []
    failure = "the search ended nowhere"
    for context in contexts:
        one = target.at(context)
        try:
            starts = pathfinder.finite_starts(one, STARTS, pathfinder.SPREAD, generator)
            found += pathfinder.find(one, starts, generator)[:1]
        except PosteriorError as error:
            failure = str(error)
        target.evaluations += one.evaluations
    if not found:
        raise PosteriorError(f"no posterior was found for any of {len(contexts)} contexts; of the last: {failure}")
    means = torch.stack([g.mean for g in found])
    within = torch.stack([g.scale_tril @ g.scale_tril.T for g in found]).mean(0)
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / len(found)
    whitening = Whitening.from_moments(means.mean(0), torch.linalg.cholesky(within + between))
    half = torch.linalg.solve_triangular(whitening.scale_tril, torch.linalg.cholesky(within), upper=False)
    return whitening, half.square().sum(-1).sqrt()


def _layers(features: int, context_features: int, scale: Tensor, generator: torch.Generator) -> list[Layer]:
    """Couplings and a full affine map, then a shift and scale of every parameter by the context; at first N(0, scale²).

    The last layer's shift and log-scale are linear in the context, so that posterior means that are linear in it are
    learnt at once.
    """
    options: dict[str, Any] = {"context_features": context_features, "hidden": (64, 64), "generator": generator}
    layers: list[Layer]
    if features == 1:  # an affine map of one number would still be Gaussian
        layers = [Coupling(1, RationalQuadraticSpline(8, 8.0), activation="silu", **options)]
    else:
        layers = alternating_couplings(features, Affine(2.0), 4, activation="silu", **options)
        layers.append(LULinear(features))
    shift = ElementwiseAffine(features, **options)
    with torch.no_grad():
        shift.parameters_.value[features:].copy_(shift.raw(scale.log()))
    return [*layers, shift, ElementwiseAffine(features, **options | {"hidden": ()})]


@torch.no_grad()
def _check_draws(
    posterior: AmortizedPosterior, target: ContextTarget, contexts: Tensor, generator: torch.Generator
) -> None:
    """Check that the log-density is finite at draws given some of the contexts."""
    z = posterior.flow.rsample((CHECK_DRAWS // len(contexts),), posterior.encode(contexts), generator)
    check_finite(target(z, contexts))
