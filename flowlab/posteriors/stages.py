"""The stages of `fit_posterior`: search by pathfinder, affine maps, Gaussians for all modes, flow, tails."""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowlab.flow import Flow
from flowlab.layers import LULinear
from flowlab.mixture import FlowMixture
from flowlab.posteriors import pathfinder
from flowlab.posteriors.diagnostics import MISSED, SHIFT, UNEVEN, missed_modes
from flowlab.posteriors.gaussians import (
    CHECK_DRAWS,
    adapt_mixture,
    covering_gaussian,
    gaussian_flow,
    merge_affine,
)
from flowlab.posteriors.psis import smooth
from flowlab.posteriors.survey import OUTSIDE, Survey, draw_survey, weigh
from flowlab.posteriors.target import ADVICE, WORST_SHARE, PosteriorError, Target
from flowlab.training import Callback, History, TrainingError, fit
from flowlab.training.following import named
from flowlab.training.objectives import Drawing, Moment, Objective, StickingTheLanding


@dataclass
class Run:
    """What all stages of one fit share.

    Attributes:
        target: The log-density.
        generator: Source of all draws.
        progress: Whether progress bars are shown.
        callback: Called with a `TrainingState` after every evaluation in training.
        kept: The folder that keeps what is trained; None for none.
        trained: How many trainings there have been.
        history: ELBO along the fit: dicts of stage, step and elbo (nats).
    """

    target: Target
    generator: torch.Generator
    progress: bool = False
    callback: Callback | None = None
    kept: Path | None = None
    trained: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class FlowTraining(NamedTuple):
    """How the user wants the flow trained: steps and draws of a round of full length, and the peak learning rate."""

    steps: int
    draws: int
    learning_rate: float


# ---- search ----------------------------------------------------------------------------------------------------------

STARTS = 16
# Half-widths of the cubes in which the share of points without a finite log-density is reported where the search fails.
PROBE_RADII = (1.0, 3.0, 10.0, 100.0)


def find_modes(run: Run) -> tuple[list[pathfinder.Gaussian], float]:
    """Search from random starts: one Gaussian for each mode, and the nats between the best start and the median one.

    Raises:
        PosteriorError: The log-density is not finite at any start, or no Gaussian around one has a finite bound.
    """
    starts = pathfinder.finite_starts(run.target, STARTS, pathfinder.SPREAD, run.generator)
    found = pathfinder.find(run.target, starts, run.generator)
    if not found:
        raise PosteriorError(_explain_no_start(run))
    restart_gap = found[0].elbo - found[len(found) // 2].elbo
    return pathfinder.separate(run.target, found), restart_gap


def _explain_no_start(run: Run) -> str:
    """Why no Gaussian around any start has a finite evidence bound, with a point that shows it."""
    none = "no Gaussian around any start has a finite evidence bound"
    for radius in PROBE_RADII:
        z = torch.empty(CHECK_DRAWS, run.target.space.features, dtype=torch.float64)
        z = z.uniform_(-radius, radius, generator=run.generator)
        bad = ~torch.isfinite(run.target.value_and_gradient(z)[0])
        if bool(bad.any()):
            return (
                f"{none}: log_prob, or its gradient, is not finite at {float(bad.double().mean()):.0%} of the points "
                f"within ±{radius:g} of zero in unconstrained space; {run.target.describe(z[bad][:1])}. {ADVICE}"
            )
    return f"{none}: log_prob has none itself, it seems. Are all priors proper?"


# ---- affine maps -----------------------------------------------------------------------------------------------------

AFFINE_STEPS, AFFINE_DRAWS, AFFINE_RATE = 150, 80, 2e-2
# Features above which the rate falls as one over their number: the steps of a row of the matrix add up.
WIDE = 100
# Share of effective draws above which a Gaussian is near the posterior, and needs fewer steps.
NEAR, NEAR_STEPS = 0.3, 50
# Share of effective draws above which a Gaussian needs no training. It is high since pathfinder's Gaussians are
# centred at modes, not means, and have the curvature there for a covariance.
EXACT = 0.998


def fit_affine(run: Run, mode: pathfinder.Gaussian) -> Flow:
    """Train a full-rank Gaussian from the one that the search found."""
    start = gaussian_flow(mode.mean, mode.scale_tril)
    ess = smooth(weigh(start, run.target, CHECK_DRAWS // 4, run.generator)[1]).ess
    if ess > EXACT:
        return start
    features = run.target.space.features
    trained = gaussian_flow(mode.mean, mode.scale_tril, [LULinear(features).double()])
    steps = NEAR_STEPS if ess > NEAR else AFFINE_STEPS
    rate = AFFINE_RATE * min(1.0, WIDE / features)
    _train(run, trained, "affine", FlowTraining(steps, AFFINE_DRAWS, rate))
    return merge_affine(trained)


# ---- Gaussians for all modes -----------------------------------------------------------------------------------------

SEARCHES = 3  # rounds in which uncovered modes and mass are searched for
DONE_ESS = 0.95  # share of effective draws above which Gaussians are enough
# Shares of the mass that Gaussians may leave uncovered: FAINT where their own draws are effective, but moments are off;
# MOST otherwise, since a flow follows.
FAINT, MOST = 0.001, 0.8
# Nats that a mixture with covers may lack for a flow to be trained from it. More are lacking where a Gaussian reaches
# over a cliff of the log-density, such as the one that exp makes of a bound.
STEEP = 1e6


class GaussianFit(NamedTuple):
    """Gaussians fitted to all modes found, their own draws with log-weights, a survey, and whether they are enough."""

    q: Flow | FlowMixture
    z: Tensor
    log_w: Tensor
    survey: Survey
    enough: bool


def fit_gaussians(run: Run, members: list[Flow]) -> GaussianFit:
    """Mix the Gaussians, and add one for each mode that they miss and for the mass that their own draws never reach.

    Missed modes are searched for by gradient ascent, and get a Gaussian that is trained as the others are. Uncovered
    mass without a mode of its own gets a Gaussian that adaptive importance sampling moves there.
    """
    target, generator = run.target, run.generator
    covers: list[Flow] = []
    q, log_evidence, covers = adapt_mixture(members, covers, target, generator)
    for search in range(SEARCHES + 1):
        (z, log_w), survey = weigh(q, target, CHECK_DRAWS, generator), draw_survey(q, target, CHECK_DRAWS, generator)
        effective = smooth(log_w).ess > DONE_ESS
        enough = effective and _agrees(survey)
        if search == SEARCHES or survey.unbounded:
            break
        unseen = [fit_affine(run, mode) for mode, _ in missed_modes(q, target, log_evidence, survey, generator)]
        if unseen:
            members = [*members, *unseen]
        elif survey.uncovered > (FAINT if effective and not enough else MOST):
            covers = [*covers, covering_gaussian(survey)]
        else:
            break
        q, log_evidence, covers = adapt_mixture(members, covers, target, generator)
    # However wide the covers have become, mass lies farther out: no flow will reach it.
    beyond_reach = bool(covers) and survey.far > OUTSIDE
    if beyond_reach or (covers and not enough and _kl_from_weights(log_w) > STEEP):
        q = adapt_mixture(members, [], target, generator).q
        enough = beyond_reach
    return GaussianFit(q, z, log_w, survey, enough)


# ---- flow ------------------------------------------------------------------------------------------------------------

# The rounds of training: multiples of the user's steps and draws, and the KL divergence in nats at or below which no
# further round follows. Where all weights are near one, 0.01 nats are 98 % effective draws; a later round costs more,
# and must be worth it.
ROUNDS = ((0.25, 0.5, 0.01), (0.6, 1.0, 0.03), (1.0, 2.0, math.inf))


def fit_flow(run: Run, q: Flow | FlowMixture, training: FlowTraining) -> tuple[Flow | FlowMixture, float]:
    """Train flows in place, in up to three rounds; returns them, with new weights, and KL(fit, posterior) in nats."""
    for length, width, nats in ROUNDS:
        steps, draws = max(round(length * training.steps), 1), max(round(width * training.draws), 1)
        _train(run, q, "flow", FlowTraining(steps, draws, training.learning_rate))
        if isinstance(q, FlowMixture):
            q = adapt_mixture(list(q), [], run.target, run.generator).q
        kl = divergence(q, run.target, run.generator)
        if kl <= nats:
            break
    return q, kl


# ---- tails -----------------------------------------------------------------------------------------------------------

TAILS_NATS = 0.05  # by which better tails may raise KL(fit, posterior)
TAILS_POOL, TAILS_STEPS, TAILS_DRAWS, TAILS_RATE = 8192, 300, 256, 1e-3


class Resampled(Drawing):
    """Negative log-likelihood of a few of some rows (n, features), drawn anew in each step."""

    generator = None

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def loss(self, model: Any, x: Any, context: Any, at: Moment) -> Tensor:
        which = torch.randint(len(self.rows), (TAILS_DRAWS,), generator=at.generator)
        losses: Tensor = -model.log_prob(self.rows[which])
        return losses


def fit_tails(run: Run, q: Flow | FlowMixture, kl: float) -> tuple[Flow | FlowMixture, Survey]:
    """Where a survey finds the tails too light, train a few steps by maximum likelihood on weighted draws.

    Sticking the landing minimises KL(q, p), which hardly notices that a tail of the posterior is missing; the
    likelihood of its draws is KL(p, q). The draws are the survey's, whose proposal reaches farther than the fit. Few
    of them may carry most of the weight: a fit that memorises these raises KL(q, p) and is dropped. Mass that is
    uncovered even then gets a Gaussian of its own, under the same condition.

    Args:
        run: The fit.
        q: The fit's flows, which may be trained in place.
        kl: Their KL(fit, posterior) in nats.

    Returns:
        The better fit, and the last survey of it.
    """
    target, generator = run.target, run.generator
    survey = draw_survey(q, target, TAILS_POOL, generator)
    if _agrees(survey) or survey.far > OUTSIDE:
        return q, survey
    before = copy.deepcopy(q)
    rows = survey.z[torch.multinomial(survey.shares[0], TAILS_POOL, replacement=True, generator=generator)]

    _minimise(run, q, Resampled(rows), "tails", steps=TAILS_STEPS, learning_rate=TAILS_RATE)
    after = draw_survey(q, target, TAILS_POOL, generator)
    if after.forward_kl < survey.forward_kl and divergence(q, target, generator) < kl + TAILS_NATS:
        survey = after
    else:
        q = before
    for _ in range(SEARCHES):
        if survey.uncovered <= MISSED or survey.far > OUTSIDE:
            break
        members = list(q) if isinstance(q, FlowMixture) else [q]
        wider = adapt_mixture(members, [covering_gaussian(survey)], target, generator).q
        if divergence(wider, target, generator) > kl + TAILS_NATS:
            break
        q, survey = wider, draw_survey(wider, target, CHECK_DRAWS, generator)
    return q, survey


# ---- when a stage is good enough -------------------------------------------------------------------------------------

# A fit ends only where it would pass the diagnostics with a margin, since these take other draws: at this share of the
# limits for what a few heavy draws may decide, and at so many standard errors below the limit for shares of draws below
# quantiles, which have no heavy tails.
MARGIN, MARGIN_ERRORS = 0.7, 2.0


def _agrees(survey: Survey) -> bool:
    """Whether a survey finds the posterior where the fit is, by a margin."""
    return (
        survey.weights.reliable
        and survey.uncovered <= MARGIN * MISSED
        and survey.moment_shift() <= MARGIN * SHIFT
        and survey.quantile_shift(MARGIN_ERRORS) <= UNEVEN
    )


def divergence(q: Flow | FlowMixture, target: Target, generator: torch.Generator) -> float:
    """KL(fit, posterior) in nats: the log-evidence less its bound.

    It decides when training stops, rather than the effective sample size: a single heavy weight far out in a tail costs
    many effective draws but hardly any nats, and more training does not reach it either.
    """
    return _kl_from_weights(weigh(q, target, CHECK_DRAWS, generator)[1])


def _kl_from_weights(log_w: Tensor) -> float:
    """`divergence`, from log-weights of the fit's own draws; infinite where too many of them are not finite."""
    if float(torch.isfinite(log_w).double().mean()) < 1 - WORST_SHARE:
        return math.inf
    return smooth(log_w).log_mean - float(log_w[torch.isfinite(log_w)].mean())


# ---- training --------------------------------------------------------------------------------------------------------


def _train(run: Run, q: Flow | FlowMixture, stage: str, training: FlowTraining) -> None:
    """Train in place by sticking the landing, and record the bounds in the run's history."""
    objective = StickingTheLanding(run.target, training.draws)
    try:
        history = _minimise(run, q, objective, stage, steps=training.steps, learning_rate=training.learning_rate)
    except TrainingError as error:
        raise PosteriorError(
            f"training did not stay finite ({error}). Has log_prob a bound? Without one, as with an improper prior, "
            "there is no posterior; else a smaller learning_rate may help"
        ) from error
    run.history.extend({"stage": stage, "step": r["step"], "elbo": -r["train"]} for r in history.records)


def _minimise(
    run: Run, q: Flow | FlowMixture, objective: Objective, stage: str, *, steps: int, learning_rate: float
) -> History:
    run.trained += 1
    return fit(
        q,  # type: ignore[arg-type]
        objective=objective,
        steps=steps,
        learning_rate=learning_rate,
        schedule="cosine",
        warmup=10,
        weight_decay=0.0,
        clip=math.inf,
        ema=0.0,
        generator=run.generator,
        progress=run.progress,
        callback=named(run.callback, stage),
        checkpoint=None if run.kept is None else run.kept / f"{run.trained:02d}-{stage.replace(' ', '-')}",
    )
