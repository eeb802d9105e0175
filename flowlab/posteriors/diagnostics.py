"""How good is an approximate posterior? Importance weights, a search for modes it misses, and a verdict in plain words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowlab.distribution import Estimate
from flowlab.flow import Flow
from flowlab.layers.scalar.normal import LOG_SQRT_2PI
from flowlab.mixture import FlowMixture
from flowlab.posteriors import pathfinder
from flowlab.posteriors.psis import Smoothed, smooth
from flowlab.posteriors.survey import UNDER, Survey, moments, survey, weigh
from flowlab.posteriors.target import WORST_SHARE, Target

CLOSE = 0.2  # nats between evidence and bound that plain draws may lack
SHIFT = 0.1  # standard deviations by which weighting may move a mean, or nats a log standard deviation
MISSED = 0.01  # share of the mass that may lie where the fit has less than a twentieth of its due
SCAN, SCANNED = (
    3_000,
    10.0,
)  # points at which a search for modes looks before it climbs, and how far out, in the fit's widths
UNEVEN = 0.03  # by which the posterior's share below a quantile of the fit may differ from the fit's
ERRORS = 2.0  # standard errors that a shift must stay below its limit; heavy tails make them look smaller than they are
AGAIN = 5  # times as many draws for a second survey, where the first cannot tell
UNCHECKED = "unchecked: modes much narrower than the fit that lie away from it"
AGREE = 0.05  # nats between two estimates of the evidence, besides four standard errors


@dataclass
class Diagnostics:
    """What importance sampling says of an approximate posterior; everything in nats or shares.

    Attributes:
        khat: Shape of the tail of the importance weights, with a defensive base; 0.7 and less is reliable, and so is more where no draw is heavy.
        ess: Effective sample size of the plain draws, as a share.
        elbo: Evidence lower bound.
        log_evidence: Log of the evidence, by importance sampling.
        shift: Largest change, in standard deviations, that weighting makes to a mean, or in nats to a log standard deviation, with two standard errors.
        modes: Number of modes in the fit.
        missed: Estimated share of the posterior's mass at modes which the fit does not cover, as far as a search found them.
        restart_gap: Nats between the best of the optimiser's starts and their median.
        evidence_gap: Nats between two estimates of the log-evidence, with plain draws and with the defensive base.
        non_finite: Share of draws at which the log-density is not finite.
        draws: Draws behind the figures.
        uncovered: Share of the posterior where it has more than twenty times the fit's density, as far as draws from much wider and narrower
            copies of the fit see it.
        heaviest: Largest share of the weights that one draw has. The shape of their tail, k-hat, says something from 1 % on.
        quantile_shift: Largest change that weighting makes to the share of the posterior below a quantile of the fit, with two standard errors.
        reasons: Why the verdict is not better, in plain words.
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
        """KL(fit, posterior), the evidence less its bound."""
        return self.log_evidence.value - self.elbo.value

    def __str__(self) -> str:
        starts = "" if math.isnan(self.restart_gap) else f", starts differ by {self.restart_gap:.1f} nats"
        divergence = round(self.divergence, 3) + 0.0  # no minus before a zero
        lines = [
            f"{self.verdict}{': ' if self.reasons else ''}{'; '.join(self.reasons)}",
            f"  k-hat {self.khat:.2f} (largest weight {self.heaviest:.2%}), effective draws {self.ess:.1%}, ELBO {self.elbo}, log-evidence {self.log_evidence} nats",
            f"  KL {divergence:.3f} nats, weighting moves moments by {self.shift:.3f} sd, quantiles by {self.quantile_shift:.1%} of the draws",
            f"  {self.modes} mode{'s' if self.modes > 1 else ''} fitted, {max(self.missed, self.uncovered):.1%} of the mass seen elsewhere{starts}",
        ]
        return "\n".join(lines)


def diagnose(
    flow: Flow | FlowMixture, target: Target, n: int, generator: torch.Generator, restart_gap: float = math.nan
) -> Diagnostics:
    """Look at a fitted flow from all sides; it is in double precision."""
    _, log_w = weigh(flow, target, n, generator)
    wide = survey(flow, target, n, generator)
    if _undecided(wide):
        wide = survey(flow, target, AGAIN * n, generator)
    plain, defensive = smooth(log_w), wide.weights
    finite = torch.isfinite(log_w)
    share = float(finite.double().mean())
    elbo = log_w[finite].mean() if share > 0 else torch.tensor(-math.inf)
    errors = [_log_mean_error(weights, n) for weights in (plain, defensive)]
    best = int(errors[1] < errors[0] or wide.uncovered > MISSED)
    evidence = Estimate((plain, defensive)[best].log_mean, errors[best])
    gap = Estimate(abs(plain.log_mean - defensive.log_mean), math.hypot(*errors))
    missing = missed(flow, target, evidence.value, wide, generator, max(n, SCAN)) if share > 0 else []
    found = Diagnostics(
        khat=defensive.khat,
        ess=plain.ess,
        elbo=Estimate(float(elbo), float(log_w[finite].std()) / math.sqrt(max(int(finite.sum()), 1))),
        log_evidence=evidence,
        shift=wide.moment_shift(ERRORS),
        modes=len(flow.flows) if isinstance(flow, FlowMixture) else 1,
        missed=min(sum(mass for _, mass in missing), 1.0),
        restart_gap=restart_gap,
        evidence_gap=gap,
        non_finite=1 - share,
        draws=n,
        uncovered=wide.uncovered,
        quantile_shift=wide.quantile_shift(ERRORS),
        heaviest=float(defensive.log_weights.max().exp()),
    )
    _judge(found, wide)
    return found


def _undecided(wide: Survey) -> bool:
    """Whether a shift of moments or quantiles is on one side of its limit or on the other, by twice its standard errors."""
    shifts = ((wide.moment_shift, SHIFT), (wide.quantile_shift, UNEVEN))
    return any(shift(-2 * ERRORS) <= limit < shift(2 * ERRORS) for shift, limit in shifts)


def missed(
    flow: Flow | FlowMixture,
    target: Target,
    log_evidence: float,
    wide: Survey,
    generator: torch.Generator,
    scan: int = SCAN,
) -> list[tuple[pathfinder.Gaussian, float]]:
    """Modes that the fit does not cover, each with the share of the posterior's mass that lies there, the heaviest first.

    Ascents start far out, in the fit's own units and in those of unconstrained space, and at what a survey saw and the fit does not cover. The mass of a mode
    counts where the fit's density is less than a twentieth of the posterior's, and is estimated by importance sampling from a Gaussian at the mode.
    """
    d = flow.features
    with torch.no_grad():
        draws = flow.rsample((1000,), generator=generator)
    mean, scale_tril = moments(draws)
    starts = _wide(mean, scale_tril, 60, (3.0, 10.0, 30.0, 100.0, 300.0), generator)
    raw = (
        draws.new_empty(18, d).uniform_(-1, 1, generator=generator)
        * draws.new_tensor([3.0, 10.0, 100.0]).repeat(6)[:, None]
    )
    # A narrow mode may lie among these, far from any ascent.
    radii = (draws.new_empty(scan).uniform_(generator=generator) * math.log(SCANNED)).exp().tolist()
    seen = _wide(mean, scale_tril, scan, radii, generator)
    with torch.no_grad():
        promising = (target(seen) - flow.log_prob(seen)).topk(8).indices
    starts = torch.cat([draws[:4], starts, raw, seen[promising], wide.z[_promising(wide)]])
    ends, heights = pathfinder.ascend(target, starts, mean, scale_tril, steps=40, tolerance=1e-2)
    anchors = ends[:4]  # the modes that the fit's own draws belong to
    with torch.no_grad():
        excess = heights - flow.log_prob(ends) - log_evidence
    far = (torch.isfinite(heights) & (excess > UNDER)).nonzero().squeeze(1)
    if len(far) == 0:
        return []
    order = far[heights[far].argsort(descending=True)]
    ends = ends[_distinct(torch.linalg.solve_triangular(scale_tril, ends[order].T, upper=False).T, order)][:8]
    candidates = pathfinder.separate(
        target, pathfinder.find(target, ends, generator, steps=10, climb=False), share=1e-6
    )
    candidates = [c for c in candidates if all(pathfinder.valley(target, c.mode, known) for known in anchors)]
    masses = [(c, _missed_mass(flow, target, c, log_evidence, generator)) for c in candidates]
    return sorted(((c, mass) for c, mass in masses if mass > MISSED), key=lambda pair: -pair[1])


def _promising(wide: Survey, each: int = 4) -> Tensor:
    """Draws of a survey that lie where the fit has too little: the densest, those of the most mass, and those that lack most."""
    excess = torch.where(torch.isfinite(wide.log_p), wide.excess, -math.inf)
    short = torch.where(excess > UNDER, 0.0, -math.inf)
    by = (wide.log_p + short, wide.shares[0].log() + short, excess)
    return torch.cat([value.topk(min(each, len(excess))).indices for value in by]).unique()


def _wide(mean: Tensor, scale_tril: Tensor, n: int, radii: Sequence[float], generator: torch.Generator) -> Tensor:
    """Points (n, features) on spheres of several radii, in units of a standard normal point's, in whitened coordinates."""
    d = len(mean)
    directions = torch.nn.functional.normalize(mean.new_empty(n, d).normal_(generator=generator), dim=-1)
    lengths = mean.new_tensor(radii).repeat(n // len(radii)).unsqueeze(-1) * math.sqrt(d)
    return mean + (lengths * directions) @ scale_tril.T


@torch.no_grad()
def _missed_mass(
    flow: Flow | FlowMixture, target: Target, at: pathfinder.Gaussian, log_evidence: float, generator: torch.Generator
) -> float:
    noise = at.mean.new_empty(1000, len(at.mean)).normal_(generator=generator)
    z = at.mean + noise @ at.scale_tril.T
    log_g = -noise.square().sum(-1) / 2 - at.scale_tril.diagonal().log().sum() - len(at.mean) * LOG_SQRT_2PI
    log_p = target(z) - log_evidence
    uncovered = log_p - flow.log_prob(z) > UNDER
    weights = torch.where(uncovered, log_p - log_g, -math.inf)
    return math.exp(min(smooth(weights).log_mean, 50.0)) if bool(uncovered.any()) else 0.0


def _distinct(points: Tensor, order: Tensor) -> Tensor:
    """Of points (n, d) in falling order those not within a tenth of a unit of an earlier one, as their entries of `order`."""
    kept: list[int] = []
    for i in range(len(points)):
        if all(float((points[i] - points[j]).norm()) > 0.1 for j in kept):
            kept.append(i)
    return order[kept]


def _log_mean_error(weights: Smoothed, n: int) -> float:
    """Standard error of the log of the weights' mean, by the delta method."""
    return math.sqrt(max(1 / weights.ess - 1, 0.0) / n) if weights.ess > 0 else math.inf


def _judge(found: Diagnostics, wide: Survey) -> None:
    """Fill in the verdict and its reasons."""
    broken = wide.failings()
    if found.missed > MISSED:
        broken.append(f"about {found.missed:.0%} of the posterior lies at modes that the fit misses")
    if found.evidence_gap.value > AGREE + 4 * found.evidence_gap.standard_error and found.uncovered <= MISSED:
        broken.append(f"two estimates of the log-evidence differ by {found.evidence_gap} nats")
    if found.non_finite > WORST_SHARE:
        broken.append(f"the log-density is not finite at {found.non_finite:.1%} of the draws")
    if not math.isfinite(found.log_evidence.value):
        broken.append("the log-evidence is not finite")
    if broken:
        found.verdict, found.reasons = "do not trust", broken
        return
    if found.divergence > CLOSE:
        found.reasons.append(f"plain draws differ from the posterior by {found.divergence:.2f} nats")
    if found.uncovered > MISSED:
        found.reasons.append(f"{found.uncovered:.0%} of the posterior lies where plain draws hardly come")
    if found.shift > SHIFT:
        tail = "" if math.isfinite(found.shift) else ", which a tail decides that has no finite moments: use quantiles"
        found.reasons.append(f"weighting moves a mean or log sd by {found.shift:.2f}{tail}")
    if found.quantile_shift > UNEVEN:
        found.reasons.append(f"weighting moves {found.quantile_shift:.0%} of the draws across a quantile")
    found.verdict = "usable after resampling" if found.reasons else "good"
    if not found.reasons and wide.z.shape[1] > 1:
        found.reasons.append(UNCHECKED)
