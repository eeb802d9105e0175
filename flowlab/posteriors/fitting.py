"""`fit_posterior`: from a log-density to a posterior that can be trusted, or says that it cannot."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowlab.flow import Flow
from flowlab.layers import Affine, Coupling, Layer, LULinear, RationalQuadraticSpline, SinhArcsinh
from flowlab.layers.coupling import alternating_mask
from flowlab.mixture import FlowMixture
from flowlab.posteriors import pathfinder
from flowlab.posteriors.amortized import AmortizedPosterior, fit_amortized
from flowlab.posteriors.diagnostics import MISSED, SHIFT, UNEVEN, missed
from flowlab.posteriors.gaussians import LOOK, combined, cover, merged, parts, united, whitened, whitening_of
from flowlab.posteriors.posterior import FlowPosterior
from flowlab.posteriors.psis import smooth
from flowlab.posteriors.space import Space, Supports
from flowlab.posteriors.sparing import sparing
from flowlab.posteriors.survey import OUTSIDE, Survey, survey, weigh
from flowlab.posteriors.target import WORST_SHARE, PosteriorError, Target
from flowlab.training import History, TrainingError, fit
from flowlab.training.objectives import Objective, StickingTheLanding

STARTS = 16
SPREAD = 1.0  # starts are uniform on ± this, in unconstrained space
AFFINE_STEPS, AFFINE_DRAWS, AFFINE_RATE = 150, 80, 2e-2
WIDE = 100  # features above which the rate falls as one over their number: a step adds up over a row of the matrix
NEAR, NEAR_STEPS = 0.3, 50  # share of effective draws from which on a Gaussian needs fewer steps
DONE_ESS = 0.95  # share of effective draws from which on Gaussians are enough
STEEP = (
    1e6  # nats that a Gaussian over a cliff, as exp makes one of a bound, may lack for a flow to be trained from there
)
# What a fit may have when it is made, of what the diagnostics allow a good one: a share of it for what a few heavy draws decide, and
# standard errors below it for shares below quantiles, which have no tails.
SPARE, SPARE_ERRORS = 0.7, 2.0
# Shares of the mass that Gaussians may leave out: where they look good to their own draws, and moments are off; and where a flow follows.
FAINT, MOST = 0.001, 0.8
LIGHT = 0.01  # share of the mass below which a mode keeps its Gaussian
EXACT = 0.998  # the mode is not the mean: a Gaussian found by curvature alone must be closer than one that was trained
# Training goes in rounds, of so many times `steps` and `draws`; none follows where so few nats are left, .01 being 98 % effective draws
# where all weights are near one. A later round costs more, and must be worth it.
ROUNDS = ((0.25, 0.5, 0.01), (0.6, 1.0, 0.03), (1.0, 2.0, math.inf))
TAILS_NATS = 0.05  # what they may cost
TAILS_POOL, TAILS_STEPS, TAILS_DRAWS, TAILS_RATE = 8192, 300, 256, 1e-3
ADVICE = "Where a parameter is bounded, say so in supports=…; where a computation overflows, rewrite it in logarithms"
SEARCHES = 3  # rounds in which modes that the fit misses are looked for


@overload
def fit_posterior(
    log_prob: Callable[[Any], Tensor],
    *,
    features: int | None = None,
    supports: Supports | None = None,
    context: None = None,
    encoder: None = None,
    flow: Flow | None = None,
    steps: int = 1000,
    draws: int = 256,
    learning_rate: float = 1e-2,
    dtype: torch.dtype = torch.float64,
    random_state: int = 0,
    progress: bool = True,
) -> FlowPosterior: ...


@overload
def fit_posterior(
    log_prob: Callable[[Any, Tensor], Tensor],
    *,
    features: int | None = None,
    supports: Supports | None = None,
    context: Tensor,
    encoder: nn.Module | None = None,
    flow: Flow | None = None,
    steps: int = 1000,
    draws: int = 256,
    learning_rate: float = 1e-2,
    dtype: torch.dtype = torch.float64,
    random_state: int = 0,
    progress: bool = True,
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
) -> FlowPosterior | AmortizedPosterior:
    """Approximate a posterior, known by its unnormalised log-density, as closely as it needs.

    First Gaussians along the paths of 16 optimisers, one for each mode that they find; then a full-rank affine map for each by
    150 steps of sticking the landing, or 50 where it is near already; then a search for modes not yet covered, and a survey by draws from much wider and
    narrower copies of the Gaussians: what these see and plain draws never reach gets a Gaussian that adaptive importance sampling moves there.
    Where 95 % of the draws are effective, and the survey finds moments and quantiles where they should be, it ends there. Else a flow of affine couplings and tails of any weight is trained in the
    coordinates that the affine map whitens, in up to three rounds: a second follows where more than 0.01 nats are left after the first,
    a third where more than 0.03 are. Where a survey then finds tails too light, steps on weighted draws follow. Several modes become a mixture
    of such flows, weighted by their evidence.

    With `context`, many data sets of one kind, a single flow with a context learns the posterior of each, and of new ones: see
    `AmortizedPosterior`. It is trained in the coordinates that whiten the posteriors of 16 of them, taken together.

    Args:
        log_prob: The log-density in nats, up to a constant, by torch operations: takes a batch of draws (n, features), or with `supports`
            a dict of tensors (n, *shape), and returns (n,). Where it is not finite the density counts as zero; a fit with more than 1 %
            such draws ends in an error. Densities are with respect to the parameters as given: Jacobians are flowlab's affair.
        features: Number of parameters, unconstrained and without names.
        supports: For each name its shape and torch constraint, e.g. `{"tau": ((), constraints.positive), "theta": ((8,), constraints.real)}`.
        context: Data sets (n, width), each flattened to a row. `log_prob` is then called as log_prob(z, context) with draws (draws, n,
            features), or a dict of tensors (draws, n, *shape), and contexts (n, width), and returns (draws, n).
        encoder: What a context is turned into before the flow sees it, (n, width) to (n, flow.context_features); trained along. When None,
            contexts are standardised.
        flow: A flow of your own for the last stage, over the whitened coordinates; it is trained in place, and becomes double precision: a
            second fit with it changes the first posterior. One is made when None.
        steps: Steps of the last stage: 0.25 times as many in the first round, 0.6 in the second, 1 in the third. With `context` there is one round of as many.
        draws: Draws in each of its steps, half as many in the first round, twice as many in the third; with `context` as many, shared out among 64 contexts.
        learning_rate: Its peak learning rate, which falls to zero by a cosine in each round.
        dtype: Floating-point type of the draws that `log_prob` gets.
        random_state: Seed of everything.
        progress: Show progress bars in terminals and notebooks.

    Returns:
        The posterior; ask its `diagnostics()` before using it. With `context` an `AmortizedPosterior`; ask its `diagnostics(context)`.

    Warns:
        UserWarning: The fit itself has seen that it is not to be trusted, as where the density has no integral (an improper prior).

    Raises:
        ValueError: Arguments do not fit, or `log_prob` returns the wrong shape or has no gradient.
        PosteriorError: `log_prob` is not finite at or around any start, or at more than 1 % of the fit's draws, and values are shown; or
            training does not stay finite, as where the density has no bound.

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
    space = Space(features, supports)
    if context is not None:
        options: dict[str, Any] = {"steps": steps, "draws": draws, "learning_rate": learning_rate, "dtype": dtype}
        options |= {"random_state": random_state, "progress": progress}
        return fit_amortized(log_prob, context, space, supports, flow, encoder, **options)
    if encoder is not None:
        raise ValueError("encoder needs a context: the data sets that it encodes")
    if flow is not None and (flow.features != space.features or flow.context_features):
        raise ValueError(
            f"flow must have {space.features} features and no context, not {flow.features} and {flow.context_features}"
        )
    target = Target(log_prob, space, dtype)
    generator = torch.Generator().manual_seed(int(random_state))
    points = torch.empty(3, space.features, dtype=torch.float64).uniform_(-SPREAD, SPREAD, generator=generator)
    # Of two sizes, since a function of a single draw may return as many numbers by chance.
    for batch in (points, points.repeat(2, 1)):
        target.check(batch)
    with sparing(target):
        posterior, wide = _fitted(target, flow, steps, draws, learning_rate, generator, progress, started)
    if wide is not None and (reasons := wide.failings()):
        warnings.warn(f"this fit is not to be trusted: {'; '.join(reasons)}. See diagnostics()", stacklevel=2)
    return posterior


def _fitted(
    target: Target,
    flow: Flow | None,
    steps: int,
    draws: int,
    learning_rate: float,
    generator: torch.Generator,
    progress: bool,
    started: float,
) -> tuple[FlowPosterior, Survey | None]:
    """What `fit_posterior` does once its arguments are right; the posterior, and a last survey unless the flow is the user's."""
    history: list[dict[str, Any]] = []

    def train(q: Flow | FlowMixture, stage: str, *, draws: int, **options: Any) -> None:
        """Train in place by sticking the landing."""
        try:
            found = _fit(q, StickingTheLanding(target, draws), generator, progress=progress, **options)
        except TrainingError as error:
            raise PosteriorError(
                f"training did not stay finite ({error}). Has log_prob a bound? Without one, as with an improper prior, there is "
                "no posterior; else a smaller learning_rate may help"
            ) from error
        history.extend({"stage": stage, "step": r["step"], "elbo": -r["train"]} for r in found.records)

    def affine(at: pathfinder.Gaussian) -> Flow:
        """The Gaussian that an affine map trained from this one ends at."""
        start = whitened([], at.mean, at.scale_tril)
        ess = smooth(weigh(start, target, LOOK // 4, generator)[1]).ess
        if ess > EXACT:
            return start
        trained = whitened([LULinear(target.space.features).double()], at.mean, at.scale_tril)
        steps = NEAR_STEPS if ess > NEAR else AFFINE_STEPS
        rate = AFFINE_RATE * min(1.0, WIDE / target.space.features)
        train(trained, "affine", steps=steps, draws=AFFINE_DRAWS, learning_rate=rate)
        return merged(trained)

    found = pathfinder.find(target, pathfinder.finite_starts(target, STARTS, SPREAD, generator), generator)
    if not found:
        raise PosteriorError(_no_start(target, generator))
    gap = found[0].elbo - found[len(found) // 2].elbo
    q, plain, wide, enough = _gaussians(
        [affine(at) for at in pathfinder.separate(target, found)], affine, target, generator
    )
    prefit_seconds = time.process_time() - started
    if not enough or flow is not None:
        q = _grown(q, flow, target, generator)
        for length, width, nats in ROUNDS:
            options = {"steps": max(round(length * steps), 1), "draws": max(round(width * draws), 1)}
            train(q, "flow", learning_rate=learning_rate, **options)
            if isinstance(q, FlowMixture):
                q, _ = combined(list(q), [], target, generator)
            left = _divergence(q, target, generator)
            if left <= nats:
                break
        if flow is None:  # one of the user's own may have no quick density
            q, wide = _tails_covered(q, left, target, generator, progress)
        q = q.double()
        plain = weigh(q, target, LOOK, generator)
    _check_finite(target, *plain)
    facts: dict[str, Any] = {"restart_gap": gap, "evaluations": target.evaluations, "prefit_seconds": prefit_seconds}
    posterior = FlowPosterior(q, target.space, target, history=history, **facts).train(False)
    return posterior, None if flow is not None else wide


def _gaussians(
    members: list[Flow], affine: Callable[[pathfinder.Gaussian], Flow], target: Target, generator: torch.Generator
) -> tuple[Flow | FlowMixture, tuple[Tensor, Tensor], Survey, bool]:
    """Gaussians for all modes and for what plain draws never see; their own draws, a survey, and whether it ends there."""
    covers: list[Flow] = []
    q, evidence = combined(members, covers, target, generator)
    for search in range(SEARCHES + 1):
        plain, wide = weigh(q, target, LOOK, generator), survey(q, target, LOOK, generator)
        near = smooth(plain[1]).ess > DONE_ESS
        enough = near and _agrees(wide)
        if search == SEARCHES or wide.rising:
            break
        unseen = [affine(mode) for mode, _ in missed(q, target, evidence, wide, generator)]
        if unseen:
            members = [*members, *unseen]
        elif wide.uncovered > (FAINT if near and not enough else MOST):
            covers.append(cover(wide))
        else:
            break
        q, evidence = combined(members, covers, target, generator)
    if covers and wide.far > OUTSIDE:  # however wide, the mass lies farther out: nothing to train
        return combined(members, [], target, generator)[0], plain, wide, True
    if covers and not enough and _lacking(plain[1]) > STEEP:
        return combined(members, [], target, generator)[0], plain, wide, False
    return q, plain, wide, enough


def _grown(q: Flow | FlowMixture, flow: Flow | None, target: Target, generator: torch.Generator) -> Flow | FlowMixture:
    """What is trained in place of Gaussians: flows in the coordinates in which they are standard, at first the same Gaussians.

    Gaussians that belong to one mode, such as the pieces of a funnel, make one flow; a mode of hardly any mass makes none.
    """
    if isinstance(q, Flow):
        return _flow_around(q, flow, generator)
    members, groups = list(q), _modes(list(q), target, generator)
    weights = [float(q.weights[group].sum()) for group in groups]
    heaviest = weights.index(max(weights))
    grown = []
    for i, group in enumerate(groups):
        member = united([members[j] for j in group], q.weights[group])
        own = flow if i == heaviest else None
        grown.append(member if weights[i] < LIGHT else _flow_around(member, own, generator))
    return FlowMixture(grown, weights) if len(grown) > 1 else grown[0]


def _flow_around(member: Flow, flow: Flow | None, generator: torch.Generator) -> Flow:
    """A Gaussian's whitening behind a flow that is the identity at first."""
    whitening = whitening_of(member)
    if flow is not None:
        return Flow(flow.base, [*flow, whitening])
    features = member.features
    if features == 1:  # an affine map of one number would still be Gaussian
        layers: list[Layer] = [Coupling(1, RationalQuadraticSpline(16, 8.0), generator=generator) for _ in range(2)]
    else:
        masks = [alternating_mask(features, flip=i % 2 == 1) for i in range(4)]
        options: dict[str, Any] = {"hidden": (64, 64), "activation": "silu", "generator": generator}
        layers = [Coupling(features, Affine(2.0), mask, **options) for mask in masks]
        layers.insert(2, LULinear(features))
    tails = Coupling(features, SinhArcsinh(), [True] * features, hidden=())  # each feature by itself
    return Flow(member.base, [*(layer.double() for layer in [*layers, LULinear(features), tails]), whitening])


def _modes(members: Sequence[Flow], target: Target, generator: torch.Generator) -> list[list[int]]:
    """The members' numbers, grouped by the mode that they belong to."""
    groups: list[list[int]] = []
    for i, member in enumerate(members):
        near = [group for group in groups if any(_one_mode(members[j], member, target, generator) for j in group)]
        groups = [group for group in groups if group not in near] + [[*(j for group in near for j in group), i]]
    return groups


@torch.no_grad()
def _one_mode(a: Flow, b: Flow, target: Target, generator: torch.Generator, steps: int = 5, draws: int = 500) -> bool:
    """Whether Gaussians between these two fit no worse than the worse of them: the evidence bound has no valley.

    A density may well have one, as the neck of a funnel has a mode of its own, but hardly any mass.
    """
    (first, first_width, first_factor), (last, last_width, last_factor) = parts(a), parts(b)
    noise = torch.empty(draws, a.features, dtype=torch.float64).normal_(generator=generator)
    bounds = []
    for t in torch.linspace(0, 1, steps).tolist():
        mean, factor = first.lerp(last, t), F.normalize(first_factor.lerp(last_factor, t), dim=1)
        scale_tril = first_width.log().lerp(last_width.log(), t).exp().unsqueeze(1) * factor
        bounds.append(float(target(mean + noise @ scale_tril.T).mean() + scale_tril.diagonal().log().sum()))
    return min(bounds[1:-1]) > min(bounds[0], bounds[-1])


def _agrees(wide: Survey) -> bool:
    """Whether a survey finds the posterior where the fit is, with something to spare before its verdict would be another."""
    return (
        wide.weights.reliable
        and wide.uncovered <= SPARE * MISSED
        and wide.moment_shift() <= SPARE * SHIFT
        and wide.quantile_shift(SPARE_ERRORS) <= UNEVEN
    )


def _divergence(q: Flow | FlowMixture, target: Target, generator: torch.Generator) -> float:
    """Nats between the log-evidence and its bound.

    They say when to stop, rather than effective draws, since a single heavy weight takes many of those, but hardly any nats: it lies
    far out in a tail, which further training reaches no better.
    """
    return _lacking(weigh(q, target, LOOK, generator)[1])


def _lacking(log_w: Tensor) -> float:
    """The same, of log-weights of plain draws; infinite where more of them are not than a fit may have."""
    if float(torch.isfinite(log_w).double().mean()) < 1 - WORST_SHARE:
        return math.inf
    return smooth(log_w).log_mean - float(log_w[torch.isfinite(log_w)].mean())


def _tails_covered(
    q: Flow | FlowMixture, divergence: float, target: Target, generator: torch.Generator, progress: bool
) -> tuple[Flow | FlowMixture, Survey]:
    """Where a survey finds tails too light: the same, trained on weighted draws, as data, for a few steps.

    Sticking the landing minimises KL(q, p), to which tails of the posterior hardly count; the likelihood of its draws is KL(p, q).
    The draws are the survey's, which reach farther. Few of them may be heavy: what learns these by heart, and so
    raises the divergence, is dropped. What is not covered even then gets a Gaussian of its own, under the same
    condition. Returns the last survey as well.
    """
    wide = survey(q, target, TAILS_POOL, generator)
    if _agrees(wide) or wide.far > OUTSIDE:
        return q, wide
    before = copy.deepcopy(q)
    rows = wide.z[torch.multinomial(wide.shares[0], TAILS_POOL, replacement=True, generator=generator)]

    def likelihood(flow: Flow, x: None, context: None) -> Tensor:
        return -flow.log_prob(rows[torch.randint(TAILS_POOL, (TAILS_DRAWS,), generator=generator)])

    _fit(q, likelihood, generator, steps=TAILS_STEPS, learning_rate=TAILS_RATE, progress=progress)
    after = survey(q, target, TAILS_POOL, generator)
    if after.forward < wide.forward and _divergence(q, target, generator) < divergence + TAILS_NATS:
        wide = after
    else:
        q = before
    for _ in range(SEARCHES):
        if wide.uncovered <= MISSED or wide.far > OUTSIDE:
            break
        wider, _ = combined(list(q) if isinstance(q, FlowMixture) else [q], [cover(wide)], target, generator)
        if _divergence(wider, target, generator) > divergence + TAILS_NATS:
            break
        q, wide = wider, survey(wider, target, LOOK, generator)
    return q, wide


def _fit(q: Flow | FlowMixture, objective: Objective, generator: torch.Generator, **options: Any) -> History:
    fixed = {"schedule": "cosine", "warmup": 10, "weight_decay": 0.0, "clip": math.inf, "ema": 0.0}
    return fit(q, objective=objective, generator=generator, **fixed, **options)  # type: ignore[arg-type]


def _no_start(target: Target, generator: torch.Generator) -> str:
    """Why no Gaussian around any start has a finite evidence bound, with a point that shows it."""
    for radius in (1.0, 3.0, 10.0, 100.0):
        z = torch.empty(LOOK, target.space.features, dtype=torch.float64).uniform_(-radius, radius, generator=generator)
        bad = ~torch.isfinite(target.value_and_gradient(z)[0])
        if bool(bad.any()):
            return (
                f"no Gaussian around any start has a finite evidence bound: log_prob, or its gradient, is not finite at {float(bad.double().mean()):.0%} of the points "
                f"within ±{radius:g} of zero in unconstrained space; {target.shown(z[bad][:1])}. {ADVICE}"
            )
    return "no Gaussian around any start has a finite evidence bound: log_prob has none itself, it seems. Are all priors proper?"


def _check_finite(target: Target, z: Tensor, log_w: Tensor) -> None:
    bad = ~torch.isfinite(log_w)
    share = float(bad.double().mean())
    if share > WORST_SHARE:
        raise PosteriorError(
            f"log_prob is not finite at {share:.1%} of the fit's draws, more than {WORST_SHARE:.0%}; {target.shown(z[bad][:3])}. {ADVICE}"
        )
