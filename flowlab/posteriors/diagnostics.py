"""Diagnostics of an approximate posterior: importance weights, a search for modes that it misses, and a verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab.distribution import Estimate
from flowlab.flow import Flow
from flowlab.layers.scalar.normal import LOG_SQRT_2PI
from flowlab.mixture import FlowMixture
from flowlab.posteriors import pathfinder
from flowlab.posteriors.psis import Smoothed, smooth
from flowlab.posteriors.survey import UNCOVERED_NATS, Survey, draw_survey, moments, weigh
from flowlab.posteriors.target import WORST_SHARE, Target

CLOSE = 0.2  # nats between evidence and bound that plain draws may lack
SHIFT = 0.1  # standard deviations by which weighting may move a mean, or nats a log standard deviation
MISSED = 0.01  # share of the mass that may lie where the fit has less than a twentieth of the posterior's density
UNEVEN = 0.03  # by which the posterior's share below a quantile of the fit may differ from the fit's
ERRORS = 2.0  # standard errors that a shift must stay below its limit; heavy tails make them look smaller than they are
AGAIN = 5  # times as many draws for a second survey, where the first cannot tell
UNCHECKED = "unchecked: modes much narrower than the fit that lie away from it"
AGREE = 0.05  # nats between two estimates of the evidence, besides four standard errors
# A search for modes evaluates the log-density at so many points before it climbs, out to so many times the fit's width.
SCAN, SCAN_RADIUS = 3_000, 10.0


@dataclass
class Diagnostics:
    """What importance sampling says of an approximate posterior; everything in nats or shares.

    Attributes:
        khat: Pareto k-hat of the importance weights of the defensive proposal; up to 0.7 they are reliable, and above
            it where no draw is heavy.
        ess: Effective sample size of the plain draws, as a share.
        elbo: Evidence lower bound.
        log_evidence: Log of the evidence, by importance sampling.
        shift: Largest change, in standard deviations, that weighting makes to a mean, or in nats to a log standard
            deviation, with two standard errors.
        modes: Number of modes in the fit.
        missed: Estimated share of the posterior's mass at modes that the fit does not cover, as far as a search found
            them.
        restart_gap: Nats between the best of the optimiser's starts and their median.
        evidence_gap: Nats between two estimates of the log-evidence, from plain draws and from the defensive proposal.
        non_finite: Share of draws at which the log-density is not finite.
        draws: Draws behind the figures.
        uncovered: Share of the posterior where it has more than twenty times the fit's density, as far as draws from
            much wider and narrower copies of the fit see it.
        heaviest: Largest share of the weights that one draw has; k-hat counts from 1 % on.
        quantile_shift: Largest change that weighting makes to the share of the posterior below a quantile of the fit,
            with two standard errors.
        reasons: Why the verdict is not better, in plain words.
        verdict: "good", "usable after resampling" or "do not trust".
    """

    khat: float
    ess: float
    elbo: Estimate[float]
    log_evidence: Estimate[float]
    shift: float
    modes: int
    missed: float
    restart_gap: float
    evidence_gap: Estimate[float]
    non_finite: float
    draws: int
    uncovered: float = 0.0
    quantile_shift: float = 0.0
    heaviest: float = 0.0
    reasons: list[str] = field(default_factory=list)
    verdict: str = ""

    @property
    def divergence(self) -> float:
        """KL(fit, posterior), the log-evidence less its bound."""
        return self.log_evidence.value - self.elbo.value

    def __str__(self) -> str:
        starts = "" if math.isnan(self.restart_gap) else f", starts differ by {self.restart_gap:.1f} nats"
        divergence = round(self.divergence, 3) + 0.0  # no minus before a zero
        lines = [
            f"{self.verdict}{': ' if self.reasons else ''}{'; '.join(self.reasons)}",
            f"  k-hat {self.khat:.2f} (largest weight {self.heaviest:.2%}), effective draws {self.ess:.1%}, "
            f"ELBO {self.elbo}, log-evidence {self.log_evidence} nats",
            f"  KL {divergence:.3f} nats, weighting moves moments by {self.shift:.3f} sd, "
            f"quantiles by {self.quantile_shift:.1%} of the draws",
            f"  {self.modes} mode{'s' if self.modes > 1 else ''} fitted, "
            f"{max(self.missed, self.uncovered):.1%} of the mass seen elsewhere{starts}",
        ]
        return "\n".join(lines)


def diagnose(
    flow: Flow | FlowMixture, target: Target, n: int, generator: torch.Generator, restart_gap: float = math.nan
) -> Diagnostics:
    """Diagnose a flow in double precision by n of its draws, n draws of a survey, and a search for missed modes."""
    _, log_w = weigh(flow, target, n, generator)
    survey = draw_survey(flow, target, n, generator)
    if not survey.failings() and _undecided(survey):
        survey = draw_survey(flow, target, AGAIN * n, generator)
    plain, defensive = smooth(log_w), survey.weights
    finite = torch.isfinite(log_w)
    share = float(finite.double().mean())
    elbo = log_w[finite].mean() if share > 0 else torch.tensor(-math.inf)
    errors = [_log_mean_error(plain, n), _log_mean_error(defensive, len(survey.z))]
    best = int(errors[1] < errors[0] or survey.uncovered > MISSED)
    evidence = Estimate((plain, defensive)[best].log_mean, errors[best])
    gap = Estimate(abs(plain.log_mean - defensive.log_mean), math.hypot(*errors))
    missing = missed_modes(flow, target, evidence.value, survey, generator, max(n, SCAN)) if share > 0 else []
    figures = Diagnostics(
        khat=defensive.khat,
        ess=plain.ess,
        elbo=Estimate(float(elbo), float(log_w[finite].std()) / math.sqrt(max(int(finite.sum()), 1))),
        log_evidence=evidence,
        shift=survey.moment_shift(ERRORS),
        modes=len(flow.flows) if isinstance(flow, FlowMixture) else 1,
        missed=min(sum(mass for _, mass in missing), 1.0),
        restart_gap=restart_gap,
        evidence_gap=gap,
        non_finite=1 - share,
        draws=n,
        uncovered=survey.uncovered,
        quantile_shift=survey.quantile_shift(ERRORS),
        heaviest=float(defensive.log_weights.max().exp()),
    )
    verdict, reasons = _judge(figures, survey)
    return replace(figures, verdict=verdict, reasons=reasons)


def _undecided(survey: Survey) -> bool:
    """Whether twice their standard errors leave open on which side of its limit a shift of moments or quantiles is."""
    shifts = ((survey.moment_shift, SHIFT), (survey.quantile_shift, UNEVEN))
    return any(shift(-2 * ERRORS) <= limit < shift(2 * ERRORS) for shift, limit in shifts)


def missed_modes(
    flow: Flow | FlowMixture,
    target: Target,
    log_evidence: float,
    survey: Survey,
    generator: torch.Generator,
    scan: int = SCAN,
) -> list[tuple[pathfinder.Gaussian, float]]:
    """Modes that the fit does not cover, each with its share of the posterior's mass, the heaviest first.

    Gradient ascents start far out, in the fit's own units and in those of unconstrained space, and at uncovered draws
    of a survey. A mode's mass counts where the fit's density is less than a twentieth of the posterior's, and is
    estimated by importance sampling from a Gaussian at the mode.
    """
    d = flow.features
    with torch.no_grad():
        draws = flow.rsample((1000,), generator=generator)
    mean, scale_tril = moments(draws)
    starts = _on_spheres(mean, scale_tril, 60, (3.0, 10.0, 30.0, 100.0, 300.0), generator)
    cube = draws.new_empty(18, d).uniform_(-1, 1, generator=generator)
    cube = cube * draws.new_tensor([3.0, 10.0, 100.0]).repeat(6)[:, None]
    # The densest of many points: a narrow mode may lie among these, far from the path of any ascent.
    radii = (draws.new_empty(scan).uniform_(generator=generator) * math.log(SCAN_RADIUS)).exp().tolist()
    scanned = _on_spheres(mean, scale_tril, scan, radii, generator)
    with torch.no_grad():
        promising = (target(scanned) - flow.log_prob(scanned)).topk(8).indices
    starts = torch.cat([draws[:4], starts, cube, scanned[promising], survey.z[_uncovered_draws(survey)]])
    ends, heights = pathfinder.ascend(target, starts, mean, scale_tril, steps=40, tolerance=1e-2)
    anchors = ends[:4]  # the modes that the fit's own draws belong to
    with torch.no_grad():
        excess = heights - flow.log_prob(ends) - log_evidence
    far = (torch.isfinite(heights) & (excess > UNCOVERED_NATS)).nonzero().squeeze(1)
    if len(far) == 0:
        return []
    order = far[heights[far].argsort(descending=True)]
    ends = ends[_distinct(torch.linalg.solve_triangular(scale_tril, ends[order].T, upper=False).T, order)][:8]
    found = pathfinder.find(target, ends, generator, steps=10, climb=False)
    candidates = pathfinder.separate(target, found, share=1e-6)
    candidates = [c for c in candidates if all(pathfinder.valley(target, c.mode, known) for known in anchors)]
    masses = [(c, _uncovered_mass(flow, target, c, log_evidence, generator)) for c in candidates]
    return sorted(((c, mass) for c, mass in masses if mass > MISSED), key=lambda pair: -pair[1])


def _uncovered_draws(survey: Survey, each: int = 4) -> Tensor:
    """Indices of uncovered draws of a survey: the densest, the heaviest, and those with the largest excess."""
    excess = torch.where(torch.isfinite(survey.log_p), survey.excess, -math.inf)
    short = torch.where(excess > UNCOVERED_NATS, 0.0, -math.inf)
    by = (survey.log_p + short, survey.shares[0].log() + short, excess)
    return torch.cat([value.topk(min(each, len(excess))).indices for value in by]).unique()


def _on_spheres(mean: Tensor, scale_tril: Tensor, n: int, radii: Sequence[float], generator: torch.Generator) -> Tensor:
    """Points (n, features) on spheres in whitened coordinates, with radii in units of √features."""
    d = len(mean)
    directions = F.normalize(mean.new_empty(n, d).normal_(generator=generator), dim=-1)
    lengths = mean.new_tensor(radii).repeat(n // len(radii)).unsqueeze(-1) * math.sqrt(d)
    return mean + (lengths * directions) @ scale_tril.T


@torch.no_grad()
def _uncovered_mass(
    flow: Flow | FlowMixture, target: Target, at: pathfinder.Gaussian, log_evidence: float, generator: torch.Generator
) -> float:
    """Share of the posterior's mass around a mode that the fit does not cover, by draws of a Gaussian there."""
    noise = at.mean.new_empty(1000, len(at.mean)).normal_(generator=generator)
    z = at.mean + noise @ at.scale_tril.T
    log_g = -noise.square().sum(-1) / 2 - at.scale_tril.diagonal().log().sum() - len(at.mean) * LOG_SQRT_2PI
    log_p = target(z) - log_evidence
    uncovered = log_p - flow.log_prob(z) > UNCOVERED_NATS
    weights = torch.where(uncovered, log_p - log_g, -math.inf)
    return math.exp(min(smooth(weights).log_mean, 50.0)) if bool(uncovered.any()) else 0.0


def _distinct(points: Tensor, order: Tensor) -> Tensor:
    """The entries of `order` (n,) whose points (n, d) are over a tenth of a unit from every earlier one kept."""
    kept: list[int] = []
    for i in range(len(points)):
        if all(float((points[i] - points[j]).norm()) > 0.1 for j in kept):
            kept.append(i)
    return order[kept]


def _log_mean_error(weights: Smoothed, n: int) -> float:
    """Standard error of the log of the weights' mean, by the delta method."""
    return math.sqrt(max(1 / weights.ess - 1, 0.0) / n) if weights.ess > 0 else math.inf


def _judge(figures: Diagnostics, survey: Survey) -> tuple[str, list[str]]:
    """The verdict on a fit, and its reasons."""
    broken = survey.failings()
    if figures.missed > MISSED:
        broken.append(f"about {figures.missed:.0%} of the posterior lies at modes that the fit misses")
    if figures.evidence_gap.value > AGREE + 4 * figures.evidence_gap.standard_error and figures.uncovered <= MISSED:
        broken.append(f"two estimates of the log-evidence differ by {figures.evidence_gap} nats")
    if figures.non_finite > WORST_SHARE:
        broken.append(f"the log-density is not finite at {figures.non_finite:.1%} of the draws")
    if not math.isfinite(figures.log_evidence.value):
        broken.append("the log-evidence is not finite")
    if broken:
        return "do not trust", broken
    reasons = []
    if figures.divergence > CLOSE:
        reasons.append(f"plain draws differ from the posterior by {figures.divergence:.2f} nats")
    if figures.uncovered > MISSED:
        reasons.append(f"{figures.uncovered:.0%} of the posterior lies where plain draws hardly come")
    if figures.shift > SHIFT:
        tail = ", which a tail decides that has no finite moments: use quantiles"
        tail = "" if math.isfinite(figures.shift) else tail
        reasons.append(f"weighting moves a mean or log sd by {figures.shift:.2f}{tail}")
    if figures.quantile_shift > UNEVEN:
        reasons.append(f"weighting moves {figures.quantile_shift:.0%} of the draws across a quantile")
    if reasons:
        return "usable after resampling", reasons
    return "good", [UNCHECKED] if survey.z.shape[1] > 1 else []
