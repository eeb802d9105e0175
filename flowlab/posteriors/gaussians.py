"""The Gaussians that `fit_posterior` starts from: flows whose only layer is a whitening, merged, pooled and mixed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowlab.bases import Gaussian
from flowlab.flow import Flow
from flowlab.layers import Layer, Whitening
from flowlab.mixture import FlowMixture
from flowlab.posteriors import pathfinder
from flowlab.posteriors.psis import smooth
from flowlab.posteriors.survey import UNCOVERED_NATS, Survey, draw_survey, weigh
from flowlab.posteriors.target import Target

CHECK_DRAWS = 3_000  # draws from which a fit decides whether it is done
SETTLED = 0.01  # a change of the mixture's weights below which another round would only redraw their Monte Carlo noise
# Effective draws per parameter of a Gaussian (its mean and covariance) above which it follows weighted draws in place
# of training.
DRAWS_PER_PARAMETER = 20


def gaussian_flow(mean: Tensor, scale_tril: Tensor, layers: Sequence[Layer] = ()) -> Flow:
    """N(mean, scale_tril scale_trilᵀ) as a flow; `layers`, if any, act in the coordinates in which it is standard."""
    return Flow(Gaussian(len(mean)).double(), [*layers, Whitening.from_moments(mean, scale_tril)])


def whitening_of(member: Flow) -> Whitening:
    """The whitening that ends a Gaussian, or a flow that was built around one."""
    layer = list(member)[-1]
    assert isinstance(layer, Whitening)
    return layer


@torch.no_grad()
def merge_affine(flow: Flow) -> Flow:
    """Collapse a flow of affine layers into the Gaussian that it is: one whitening."""
    features = flow.features
    corners = torch.cat([torch.zeros(1, features, dtype=torch.float64), torch.eye(features, dtype=torch.float64)])
    images = flow.from_noise(corners)
    return gaussian_flow(images[0], pathfinder.triangular((images[1:] - images[0]).T))


def mean_sd_correlation(member: Flow) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviations (features,) of a Gaussian, and the Cholesky factor of its correlation matrix."""
    whitening = whitening_of(member)
    sd = whitening.scale_tril.norm(dim=1)
    return whitening.mean, sd, whitening.scale_tril / sd.unsqueeze(1)


@torch.no_grad()
def pool_gaussians(members: Sequence[Flow], weights: Tensor) -> Flow:
    """The Gaussian with the mean and covariance of a mixture of Gaussians; weights (members,) need not sum to one."""
    means = torch.stack([whitening_of(member).mean for member in members])
    scales = torch.stack([whitening_of(member).scale_tril for member in members])
    root = (weights / weights.sum()).sqrt()
    mean = (root.square().unsqueeze(1) * means).sum(0)
    factors = torch.cat([scales, (means - mean).unsqueeze(2)], 2) * root.view(-1, 1, 1)
    return gaussian_flow(mean, pathfinder.triangular(torch.cat(list(factors), 1)))


class AdaptedMixture(NamedTuple):
    """Members and covers as one distribution, the log-evidence that its weights estimate, and the covers as moved."""

    q: Flow | FlowMixture
    log_evidence: float
    covers: list[Flow]


def adapt_mixture(
    members: Sequence[Flow], covers: Sequence[Flow], target: Target, generator: torch.Generator, rounds: int = 5
) -> AdaptedMixture:
    """Mix members and covers, each weighted by the posterior's mass near it, by adaptive importance sampling.

    Cappé et al. 2008, "Adaptive importance sampling in general mixture classes", algorithm 1. Without covers only the
    weights adapt. With them – Gaussians placed where a survey found uncovered mass –, every cover takes the moments of
    the weighted draws that belong to it, and so does a Gaussian member once enough effective draws do.
    """
    members, covers = list(members), list(covers)
    count = len(members) + len(covers)
    if count == 1:
        log_mean = smooth(weigh(members[0], target, CHECK_DRAWS // 4, generator)[1]).log_mean
        return AdaptedMixture(members[0], log_mean, covers)
    shares = torch.full((count,), 1 / count, dtype=torch.float64)
    for _ in range(rounds):
        mixture = FlowMixture([*members, *covers], shares)
        z, weights = _weighted_draws(mixture, bool(covers), target, generator)
        with torch.no_grad():
            belongs = (mixture.member_log_prob(z) + shares.log().unsqueeze(1)).softmax(0)
        before, shares = shares, (belongs * weights).sum(1).clamp(min=1e-6)
        shares = shares / shares.sum()
        if covers:
            own = list(belongs * weights)
            members = [_follow_draws(m, z, w, DRAWS_PER_PARAMETER) for m, w in zip(members, own, strict=False)]
            covers = [_follow_draws(c, z, w, 0) for c, w in zip(covers, own[len(members) :], strict=True)]
        elif float((shares - before).abs().max()) < SETTLED:
            break
    mixture = FlowMixture([*members, *covers], shares)
    return AdaptedMixture(mixture, smooth(weigh(mixture, target, CHECK_DRAWS, generator)[1]).log_mean, covers)


def _follow_draws(member: Flow, z: Tensor, weights: Tensor, per_parameter: float) -> Flow:
    """Move a Gaussian to the moments of weighted draws, if so many per parameter are effective; other flows stay."""
    if len(member.layers) > 1 or not float(weights.sum()) > 0:
        return member
    effective = float(weights.sum().square() / weights.square().sum())
    parameters = member.features * (member.features + 3) / 2
    if per_parameter and not effective > per_parameter * parameters:
        return member
    return match_moments(z, weights, whitening_of(member))


def _weighted_draws(
    mixture: FlowMixture, defensive: bool, target: Target, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws (n, features) and their normalised importance weights (n,), from the mixture or its defensive proposal."""
    if defensive:
        survey = draw_survey(mixture, target, 2 * CHECK_DRAWS, generator)
        return survey.z, survey.shares[0]
    z, log_w = weigh(mixture, target, CHECK_DRAWS, generator)
    return z, smooth(log_w).log_weights.exp()


def covering_gaussian(survey: Survey) -> Flow:
    """A Gaussian for the mass that a fit does not cover, with the moments of the survey's draws there."""
    weights = torch.where(survey.excess > UNCOVERED_NATS, survey.shares[0], 0)
    return match_moments(survey.z, weights, Whitening.from_moments(*survey.fit_moments))


def match_moments(z: Tensor, weights: Tensor, whitening: Whitening) -> Flow:
    """The Gaussian with the moments of draws z (n, features) that have weights (n,).

    The covariance is shrunk towards equal variances in the coordinates of the whitening, the more so the fewer
    effective draws there are; for a single draw the variance is its squared distance from the whitening's centre.
    """
    mean, scale_tril = whitening.mean, whitening.scale_tril
    d = len(mean)
    u = torch.linalg.solve_triangular(scale_tril, (z - mean).T, upper=False).T
    u = torch.where(weights.unsqueeze(1) > 0, u, 0)
    weights = (weights / weights.sum()).unsqueeze(1)
    effective = float(1 / weights.square().sum())
    centre = (weights * u).sum(0)
    spread = weights.sqrt() * (u - centre)
    level = float(spread.square().sum() + centre.square().sum() / effective) / d
    known = (effective - 1) / (effective - 1 + d)
    factors = torch.cat([math.sqrt(known) * spread, math.sqrt((1 - known) * level) * torch.eye(d, dtype=z.dtype)])
    return gaussian_flow(mean + scale_tril @ centre, pathfinder.triangular(scale_tril @ factors.T))
