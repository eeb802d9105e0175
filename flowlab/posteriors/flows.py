"""The flows that `fit_posterior` trains last: built around Gaussians, one for each mode, and equal to them at first."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from flowlab.flow import Flow
from flowlab.layers import Affine, Coupling, Layer, LULinear, RationalQuadraticSpline, SinhArcsinh
from flowlab.layers.coupling import alternating_couplings
from flowlab.mixture import FlowMixture
from flowlab.posteriors.gaussians import mean_sd_correlation, pool_gaussians, whitening_of
from flowlab.posteriors.target import Target

LIGHT = 0.01  # share of the mass below which a mode keeps its Gaussian
BETWEEN, BETWEEN_DRAWS = 5, 500  # Gaussians on the line between two, and draws for the evidence bound of each


def grow_flows(
    q: Flow | FlowMixture, flow: Flow | None, target: Target, generator: torch.Generator
) -> Flow | FlowMixture:
    """Put a flow, the identity at first, in front of the whitening of every Gaussian.

    Gaussians that belong to one mode, such as the pieces of a funnel, are pooled into one flow. A mode that holds
    hardly any mass keeps its Gaussian. The user's own `flow`, where there is one, goes to the heaviest mode.
    """
    if isinstance(q, Flow):
        return flow_around(q, flow, generator)
    members, groups = list(q), group_by_mode(list(q), target, generator)
    weights = [float(q.weights[group].sum()) for group in groups]
    heaviest = weights.index(max(weights))
    grown = []
    for i, group in enumerate(groups):
        member = pool_gaussians([members[j] for j in group], q.weights[group])
        own = flow if i == heaviest else None
        grown.append(member if weights[i] < LIGHT else flow_around(member, own, generator))
    return FlowMixture(grown, weights) if len(grown) > 1 else grown[0]


def flow_around(member: Flow, flow: Flow | None, generator: torch.Generator) -> Flow:
    """A flow in the coordinates that a Gaussian whitens: the user's, or affine couplings and tails of any weight."""
    whitening = whitening_of(member)
    if flow is not None:
        return Flow(flow.base, [*flow, whitening])
    features = member.features
    if features == 1:  # an affine map of one number would still be Gaussian
        layers: list[Layer] = [Coupling(1, RationalQuadraticSpline(16, 8.0), generator=generator) for _ in range(2)]
    else:
        options: dict[str, Any] = {"hidden": (64, 64), "activation": "silu", "generator": generator}
        layers = alternating_couplings(features, Affine(2.0), 4, **options)
        layers.insert(2, LULinear(features))
    tails = Coupling(features, SinhArcsinh(), [True] * features, hidden=())  # transforms each feature on its own
    return Flow(member.base, [*(layer.double() for layer in [*layers, LULinear(features), tails]), whitening])


def group_by_mode(members: Sequence[Flow], target: Target, generator: torch.Generator) -> list[list[int]]:
    """Indices of Gaussians, grouped by the mode that they belong to."""
    groups: list[list[int]] = []
    for i, member in enumerate(members):
        near = [group for group in groups if any(_one_mode(members[j], member, target, generator) for j in group)]
        groups = [group for group in groups if group not in near] + [[*(j for group in near for j in group), i]]
    return groups


@torch.no_grad()
def _one_mode(a: Flow, b: Flow, target: Target, generator: torch.Generator) -> bool:
    """Whether two Gaussians belong to one mode: the evidence bound has no valley along the Gaussians between them.

    The log-density itself may have a valley there: the neck of a funnel has a mode of its own, but hardly any mass.
    """
    (first, first_sd, first_factor), (last, last_sd, last_factor) = mean_sd_correlation(a), mean_sd_correlation(b)
    noise = torch.empty(BETWEEN_DRAWS, a.features, dtype=torch.float64).normal_(generator=generator)
    bounds = []
    for t in torch.linspace(0, 1, BETWEEN).tolist():
        mean, factor = first.lerp(last, t), F.normalize(first_factor.lerp(last_factor, t), dim=1)
        scale_tril = first_sd.log().lerp(last_sd.log(), t).exp().unsqueeze(1) * factor
        bounds.append(float(target(mean + noise @ scale_tril.T).mean() + scale_tril.diagonal().log().sum()))
    return min(bounds[1:-1]) > min(bounds[0], bounds[-1])
