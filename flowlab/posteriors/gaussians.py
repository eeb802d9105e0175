"""Gaussians that `fit_posterior` starts from, each a flow of a single whitening: made, merged, moved to where a posterior's mass is, and weighted."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flowlab.bases import Gaussian
from flowlab.flow import Flow
from flowlab.layers import Layer, Whitening
from flowlab.mixture import FlowMixture
from flowlab.posteriors import pathfinder
from flowlab.posteriors.psis import smooth
from flowlab.posteriors.survey import UNDER, Survey, survey, weigh
from flowlab.posteriors.target import Target

LOOK = 3_000  # draws by which a fit decides whether it is done
SETTLED = 0.01  # change of the weights below which another round would only draw their noise anew
SPEAK = 20  # draws for each of its numbers from which on a Gaussian that was trained follows weighted draws


def whitened(layers: Sequence[Layer], mean: Tensor, scale_tril: Tensor) -> Flow:
    """Layers in the coordinates that a Gaussian whitens."""
    features = len(mean)
    whitening = Whitening(features).double()
    whitening.mean.copy_(mean)
    whitening.scale_tril.copy_(scale_tril)
    whitening.initialised.fill_(True)
    return Flow(Gaussian(features).double(), [*layers, whitening])


def whitening_of(member: Flow) -> Whitening:
    """The last layer of a Gaussian, or of a flow around one."""
    layer = list(member)[-1]
    assert isinstance(layer, Whitening)
    return layer


@torch.no_grad()
def merged(flow: Flow) -> Flow:
    """A chain of a linear layer and a whitening as one whitening."""
    features = flow.features
    corners = torch.cat([torch.zeros(1, features, dtype=torch.float64), torch.eye(features, dtype=torch.float64)])
    images = flow.from_noise(corners)
    return whitened([], images[0], pathfinder.triangular((images[1:] - images[0]).T))


def parts(member: Flow) -> tuple[Tensor, Tensor, Tensor]:
    """A Gaussian's mean, standard deviations, and Cholesky factor of the correlations."""
    whitening = whitening_of(member)
    width = whitening.scale_tril.norm(dim=1)
    return whitening.mean, width, whitening.scale_tril / width.unsqueeze(1)


@torch.no_grad()
def united(members: Sequence[Flow], weights: Tensor) -> Flow:
    """The Gaussian with the moments of a mixture of Gaussians."""
    means = torch.stack([whitening_of(member).mean for member in members])
    scales = torch.stack([whitening_of(member).scale_tril for member in members])
    root = (weights / weights.sum()).sqrt()
    mean = (root.square().unsqueeze(1) * means).sum(0)
    parts = torch.cat([scales, (means - mean).unsqueeze(2)], 2) * root.view(-1, 1, 1)
    return whitened([], mean, pathfinder.triangular(torch.cat(list(parts), 1)))


def combined(
    members: Sequence[Flow], covers: list[Flow], target: Target, generator: torch.Generator, rounds: int = 5
) -> tuple[Flow | FlowMixture, float]:
    """Members and covers as one distribution, each weighted by the posterior's mass near it, and the log-evidence.

    Cappé et al. 2008, "Adaptive importance sampling in general mixture classes", algorithm 1: for the weights alone where there are no covers. These
    move, in place, to where the mass is, and so do Gaussian members for whose every number twenty draws and more speak.
    """
    if len(members) + len(covers) == 1:
        return members[0], smooth(weigh(members[0], target, LOOK // 4, generator)[1]).log_mean
    count = len(members) + len(covers)
    numbers = members[0].features * (members[0].features + 3) / 2
    members = list(members)
    shares = torch.full((count,), 1 / count, dtype=torch.float64)
    for _ in range(rounds):
        mixture = FlowMixture([*members, *covers], shares)
        if covers:
            wide = survey(mixture, target, 2 * LOOK, generator)
            z, weights = wide.z, wide.shares[0]
        else:
            z, log_w = weigh(mixture, target, LOOK, generator)
            weights = smooth(log_w).log_weights.exp()
        with torch.no_grad():
            belongs = (mixture.member_log_prob(z) + shares.log().unsqueeze(1)).softmax(0)
        before, shares = shares, (belongs * weights).sum(1).clamp(min=1e-6)
        shares = shares / shares.sum()
        if not covers and float((shares - before).abs().max()) < SETTLED:
            break
        for i, own in enumerate([*members, *covers] if covers else []):
            weight = belongs[i] * weights
            if not float(weight.sum()) > 0:
                continue
            known = float(weight.sum().square() / weight.square().sum()) > SPEAK * numbers
            if i >= len(members):
                covers[i - len(members)] = gathered(z, weight, whitening_of(own))
            elif known and len(own.layers) == 1:
                members[i] = gathered(z, weight, whitening_of(own))
    mixture = FlowMixture([*members, *covers], shares)
    return mixture, smooth(weigh(mixture, target, LOOK, generator)[1]).log_mean


def cover(wide: Survey) -> Flow:
    """A Gaussian where a fit has too little, of the moments of the draws that a survey saw there."""
    short = torch.where(wide.excess > UNDER, wide.shares[0], 0)
    return gathered(wide.z, short, whitening_of(whitened([], *wide.own_moments)))


def gathered(z: Tensor, share: Tensor, whitening: Whitening) -> Flow:
    """The Gaussian with the moments of weighted draws z (n, features).

    Few draws say little of a covariance: by as much it is drawn towards equal variances in the coordinates of the whitening; that of a
    single draw is its distance from the centre there.
    """
    mean, scale_tril = whitening.mean, whitening.scale_tril
    d = len(mean)
    u = torch.linalg.solve_triangular(scale_tril, (z - mean).T, upper=False).T
    u = torch.where(share.unsqueeze(1) > 0, u, 0)
    share = (share / share.sum()).unsqueeze(1)
    effective = float(1 / share.square().sum())
    centre = (share * u).sum(0)
    spread = share.sqrt() * (u - centre)
    level = float(spread.square().sum() + centre.square().sum() / effective) / d
    known = (effective - 1) / (effective - 1 + d)
    parts = torch.cat([math.sqrt(known) * spread, math.sqrt((1 - known) * level) * torch.eye(d, dtype=z.dtype)])
    return whitened([], mean + scale_tril @ centre, pathfinder.triangular(scale_tril @ parts.T))
