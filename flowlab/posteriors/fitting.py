"""`fit_posterior`: approximate the posterior behind an unnormalised log-density."""

import math
import os
import time
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch
from torch import Tensor, nn

from flowlab.flow import Flow
from flowlab.posteriors import pathfinder
from flowlab.posteriors.amortized import AmortizedPosterior, fit_amortized
from flowlab.posteriors.flows import grow_flows
from flowlab.posteriors.gaussians import CHECK_DRAWS
from flowlab.posteriors.posterior import FlowPosterior
from flowlab.posteriors.space import Space, Supports
from flowlab.posteriors.sparing import sparing
from flowlab.posteriors.stages import FlowTraining, Run, find_modes, fit_affine, fit_flow, fit_gaussians, fit_tails
from flowlab.posteriors.survey import Survey, weigh
from flowlab.posteriors.target import Target, check_finite
from flowlab.training import Callback
from flowlab.training.checkpoint import digest_of, open_folder


class FitOptions(TypedDict, total=False):
    """Keyword arguments of `fit_posterior` that do not decide what it returns."""

    features: int | None
    supports: Supports | None
    flow: Flow | None
    steps: int
    draws: int
    learning_rate: float
    dtype: torch.dtype
    random_state: int
    progress: bool
    callback: Callback | None
    checkpoint: str | os.PathLike[str] | None


@overload
def fit_posterior(
    log_prob: Callable[[Any], Tensor], *, context: None = None, encoder: None = None, **options: Unpack[FitOptions]
) -> FlowPosterior: ...


@overload
def fit_posterior(
    log_prob: Callable[[Any, Tensor], Tensor],
    *,
    context: Tensor,
    encoder: nn.Module | None = None,
    **options: Unpack[FitOptions],
) -> AmortizedPosterior: ...


def fit_posterior(
    log_prob: Callable[..., Tensor],
    *,
    features: int | None = None,
    supports: Supports | None = None,
    context: Tensor | None = None,
    encoder: nn.Module | None = None,
    flow: Flow | None = None,
    steps: int = 1000,
    draws: int = 256,
    learning_rate: float = 1e-2,
    dtype: torch.dtype = torch.float64,
    random_state: int = 0,
    progress: bool = True,
    callback: Callback | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> FlowPosterior | AmortizedPosterior:
    """Approximate the posterior behind an unnormalised log-density, in stages, and no further than the posterior needs.

    1. Search: Pathfinder from 16 random starts gives a Gaussian for each mode.
    2. Affine: each becomes the full-rank Gaussian closest to the posterior, by 150 steps of sticking the landing, or
       by 50 where it is near already. A search adds modes that they miss, and a survey by defensive importance
       sampling – draws from much wider and narrower copies of the fit – finds mass that their own draws never reach;
       it gets a Gaussian that adaptive importance sampling moves there. Where 95 % of the draws are then effective,
       and the survey confirms moments and quantiles, the fit ends here.
    3. Flow: in the coordinates that each Gaussian whitens, affine couplings with tails of any weight are trained in up
       to three rounds. A second follows where KL(fit, posterior) is above 0.01 nats after the first, a third where it
       is above 0.03. Several modes become a mixture of such flows, weighted by their evidence.
    4. Tails: where a survey finds them too light, a few steps of maximum likelihood on weighted draws follow.
    5. Verdict: the last survey says whether importance weights can be relied on; a warning is given where they cannot.

    With `context` – many data sets of one kind – a single conditional flow learns the posterior of each, and of new
    ones: see `AmortizedPosterior`. It is trained in coordinates that whiten the pooled posteriors of 16 of the data
    sets.

    Args:
        log_prob: The log-density in nats, up to a constant, by torch operations: takes a batch of draws (n, features),
            or with `supports` a dict of tensors (n, *shape), and returns (n,). The density counts as zero where it is
            not finite; a fit with more than 1 % such draws ends in an error. Densities are with respect to the
            parameters as given: flowlab adds the Jacobians.
        features: Number of parameters, unconstrained and without names.
        supports: For each name its shape and torch constraint, e.g. `{"tau": ((), constraints.positive), "theta":
            ((8,), constraints.real)}`.
        context: Data sets (n, width), each flattened to a row. `log_prob` is then called as log_prob(z, context) with
            draws (draws, n, features), or a dict of tensors (draws, n, *shape), and contexts (n, width), and returns
            (draws, n).
        encoder: Network from a context to the flow's context, (n, width) to (n, flow.context_features), trained along.
            When None, contexts are standardised.
        flow: A flow of your own for the last stage, over the whitened coordinates. It is trained in place, and becomes
            double precision: a second fit with it changes the first posterior. One is made when None.
        steps: Steps of the flow's training: 0.25 times as many in the first round, 0.6 in the second, 1 in the third.
            With `context` there is one round of as many.
        draws: Draws in each of these steps, half as many in the first round, twice as many in the third; with
            `context` as many, shared out among 64 contexts.
        learning_rate: Peak learning rate of these steps, which falls to zero by a cosine in each round.
        dtype: Floating-point type of the draws that `log_prob` gets.
        random_state: Seed of everything.
        progress: Show a progress bar, or a line every ten seconds where output goes to a file.
        callback: Called with a `TrainingState` after every evaluation in training: of an affine map, of a round of the
            flow, of the tails. Its `stop()` ends that training alone.
        checkpoint: A folder, new or empty at first, that keeps what has been trained and the state of what is in
            training. A fit that was killed, and is called again with the same arguments, searches anew, goes on from
            there and, on the same CPU, ends with the same bits. The folder is yours to remove. None for none.

    Returns:
        The posterior; ask its `diagnostics()` before using it. With `context` an `AmortizedPosterior`; ask its
        `diagnostics(context)`.

    Warns:
        UserWarning: The fit's own last survey says that it is not to be trusted, as where the density has no integral
            (an improper prior).

    Raises:
        ValueError: Arguments do not fit, `log_prob` returns the wrong shape or has no gradient, or the checkpoint is of
            another fit.
        PosteriorError: `log_prob` is not finite at or around any start, or at more than 1 % of the fit's draws, which
            the message shows; or training does not stay finite, as where the density has no bound.

    Example:
        >>> import torch
        >>> from torch.distributions import Gamma, Normal, constraints
        >>> data = torch.tensor([1.2, 0.7, 2.1, 1.6])
        >>> def log_joint(p):
        ...     likelihood = Normal(p["mu"].unsqueeze(-1), p["sigma"].unsqueeze(-1)).log_prob(data).sum(-1)
        ...     return likelihood + Normal(0.0, 10.0).log_prob(p["mu"]) + Gamma(2.0, 2.0).log_prob(p["sigma"])
        >>> supports = {"mu": ((), constraints.real), "sigma": ((), constraints.positive)}
        >>> posterior = fit_posterior(log_joint, supports=supports, steps=300, progress=False)
        >>> posterior.diagnostics().verdict
        'good'
        >>> posterior.sample((5,))["sigma"].shape
        torch.Size([5])
    """
    started = time.process_time()
    _check_options(flow, steps, draws, learning_rate, dtype, random_state)
    space = Space(features, supports)
    generator = torch.Generator().manual_seed(int(random_state))
    training = FlowTraining(steps, draws, learning_rate)
    if context is not None:
        return fit_amortized(
            log_prob,
            context,
            space,
            supports,
            flow,
            encoder,
            training,
            dtype=dtype,
            generator=generator,
            progress=progress,
            callback=callback,
            kept=None if checkpoint is None else folder_of(checkpoint, training, random_state, context=context),
        )
    if encoder is not None:
        raise ValueError("encoder needs a context: the data sets that it encodes")
    if flow is not None and (flow.features != space.features or flow.context_features):
        raise ValueError(
            f"flow must have {space.features} features and no context, not {flow.features} and {flow.context_features}"
        )
    target = Target(log_prob, space, dtype)
    spread = pathfinder.SPREAD
    points = torch.empty(3, space.features, dtype=torch.float64).uniform_(-spread, spread, generator=generator)
    # Batches of two sizes, since a function of a single draw may by chance return as many numbers as there are draws.
    for batch in (points, points.repeat(2, 1)):
        target.check(batch)
    kept = None
    if checkpoint is not None:
        values = target.value_and_gradient(points)
        kept = folder_of(checkpoint, training, random_state, log_prob=values[0], gradient=values[1])
    with sparing(target):
        posterior, survey = _fit_stages(Run(target, generator, progress, callback, kept), flow, training, started)
    if survey is not None and (reasons := survey.failings()):
        warnings.warn(f"this fit is not to be trusted: {'; '.join(reasons)}. See diagnostics()", stacklevel=2)
    return posterior


def _fit_stages(
    run: Run, flow: Flow | None, training: FlowTraining, started: float
) -> tuple[FlowPosterior, Survey | None]:
    """Search, affine maps, Gaussians, flow, tails: the posterior, and the last survey unless the flow is the user's.

    A user's flow is always trained, and never surveyed: its density direction may be slow.
    """
    modes, restart_gap = find_modes(run)
    q, z, log_w, survey, enough = fit_gaussians(run, [fit_affine(run, mode) for mode in modes])
    prefit_seconds = time.process_time() - started
    if flow is not None or not enough:
        q, kl = fit_flow(run, grow_flows(q, flow, run.target, run.generator), training)
        if flow is None:
            q, survey = fit_tails(run, q, kl)
        q = q.double()
        z, log_w = weigh(q, run.target, CHECK_DRAWS, run.generator)
    check_finite(log_w, lambda bad: f"; {run.target.describe(z[bad][:3])}")
    posterior = FlowPosterior(
        q,
        run.target.space,
        run.target,
        restart_gap=restart_gap,
        evaluations=run.target.evaluations,
        prefit_seconds=prefit_seconds,
        history=run.history,
    )
    return posterior.train(False), None if flow is not None else survey


def folder_of(checkpoint: str | os.PathLike[str], training: FlowTraining, random_state: int, **seen: Tensor) -> Path:
    """The folder that keeps a fit; which fit, options say and tensors: what the log-density is at a few points, say."""
    task = {**training._asdict(), **{name: digest_of(value) for name, value in seen.items()}}
    return open_folder(checkpoint, task, int(random_state), given=True)[0]


def _check_options(
    flow: Flow | None, steps: int, draws: int, learning_rate: float, dtype: torch.dtype, random_state: int
) -> None:
    """Raise a ValueError that names the argument that does not fit."""
    for name, number, kind in (
        ("steps", steps, Integral),
        ("draws", draws, Integral),
        ("learning_rate", learning_rate, Real),
    ):
        if not isinstance(number, kind) or not 0 < number < math.inf:
            raise ValueError(f"{name} must be positive and {'whole' if kind is Integral else 'finite'}, not {number!r}")
    if not isinstance(random_state, Integral):
        raise ValueError(f"random_state must be a whole number, not {random_state!r}")
    if flow is not None and not isinstance(flow, Flow):
        raise ValueError(f"flow must be a flowlab.Flow, not a {type(flow).__name__}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type of torch, not {dtype!r}")
