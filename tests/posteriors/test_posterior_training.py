"""What trains the last stage of `fit_posterior`: when it stops, what counts as one mode, and what is done for tails."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal

from flowlab.flow import Flow
from flowlab.mixture import FlowMixture
from flowlab.posteriors import fit_posterior, flows, stages
from flowlab.posteriors.gaussians import gaussian_flow, pool_gaussians
from flowlab.posteriors.space import Space
from flowlab.posteriors.target import Target
from helpers import seeded


def gaussian(*mean: float, scale: float = 1.0) -> Flow:
    return gaussian_flow(torch.tensor(mean).double(), scale * torch.eye(len(mean)).double())


def with_a_tail(bulk: float, tail: float) -> Target:
    """A normal, a share of whose mass is three times as wide."""

    def log_prob(z: Tensor) -> Tensor:
        wide = math.log(tail) + Normal(0.0, 3.0).log_prob(z).sum(-1) if tail else torch.tensor(-math.inf)
        return torch.logaddexp(math.log1p(-tail) + Normal(0.0, bulk).log_prob(z).sum(-1), wide)

    return Target(log_prob, Space(1))


@pytest.mark.parametrize(("bulk", "tail", "close"), [(1.0, 0.0, True), (1.0, 0.003, True), (0.8, 0.003, False)])
def test_training_stops_by_nats(bulk, tail, close):
    """A few draws far out, of a tail of hardly any mass, are no reason to train on; a wrong width is."""
    for seed in range(10):
        found = stages.divergence(gaussian(0.0), with_a_tail(bulk, tail), seeded(seed))
        assert found < 0.0075 if close else found > stages.ROUNDS[1][2]


def test_a_tenth_of_the_mass_three_times_as_wide_is_not_left_out():
    found = fit_posterior(with_a_tail(1.0, 0.1), features=1, progress=False).diagnostics()
    assert found.verdict == "good"
    assert found.khat < 0.7 or found.ess > 0.98
    assert found.divergence < 0.0075


def two(apart: float, d: int = 2) -> Target:
    def log_prob(z: Tensor) -> Tensor:
        left, right = (Normal(side * apart / 2, 1.0).log_prob(z[:, 0]) for side in (-1, 1))
        return torch.logaddexp(left, right) - math.log(2) + Normal(0.0, 1.0).log_prob(z[:, 1:]).sum(-1)

    return Target(log_prob, Space(d))


def funnel(z: Tensor) -> Tensor:
    return Normal(0.0, 1.0).log_prob(z[:, 0]) + Normal(0.0, z[:, :1].exp()).log_prob(z[:, 1:]).sum(-1)


@pytest.mark.parametrize(("apart", "one"), [(0.5, True), (1.5, True), (5.0, False), (12.0, False)])
def test_two_gaussians_are_one_mode_where_their_sum_has_one(apart, one):
    members = [gaussian(-apart / 2, 0.0), gaussian(apart / 2, 0.0)]
    groups = flows.group_by_mode(members, two(apart), seeded(0))
    assert sorted(map(sorted, groups)) == ([[0, 1]] if one else [[0], [1]])


def test_pieces_of_a_funnel_make_one_flow():
    """Neck and mouth as Gaussians, whose own density has a valley between them."""
    neck, mouth = (
        gaussian_flow(torch.tensor([m, 0.0]).double(), torch.tensor([0.4, math.exp(m)]).double().diag())
        for m in (-1.0, 1.0)
    )
    target = Target(funnel, Space(2))
    assert flows.group_by_mode([neck, mouth], target, seeded(0)) == [[0, 1]]
    grown = flows.grow_flows(FlowMixture([neck, mouth], [0.5, 0.5]), None, target, seeded(0))
    assert isinstance(grown, Flow)
    draws = grown.sample((20_000,), generator=seeded(1))
    torch.testing.assert_close(draws.mean(0), torch.zeros(2).double(), rtol=0, atol=0.05)
    moments = torch.tensor([0.4**2 + 1.0, (math.exp(-2) + math.exp(2)) / 2]).double()
    torch.testing.assert_close(draws.var(0), moments, rtol=0.05, atol=0)


def test_united_gaussians_have_the_moments_of_their_mixture():
    factors = [torch.tensor([[1.0, 0.0], [0.8, 0.5]]).double(), torch.tensor([[2.0, 0.0], [-1.0, 0.3]]).double()]
    members = [
        gaussian_flow(torch.tensor(m).double(), f) for m, f in zip(([0.0, 1.0], [3.0, -2.0]), factors, strict=True)
    ]
    weights = torch.tensor([0.2, 0.6]).double()  # as in a part of a larger mixture
    draws = FlowMixture(members, weights).sample((400_000,), generator=seeded(0))
    united = list(pool_gaussians(members, weights))[-1]
    torch.testing.assert_close(united.mean, draws.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(united.scale_tril @ united.scale_tril.T, draws.T.cov(), rtol=0.02, atol=0.02)


def test_a_mode_of_hardly_any_mass_keeps_its_gaussian():
    def log_prob(z: Tensor) -> Tensor:
        parts = [
            math.log(w) + Normal(m, 1.0).log_prob(z).sum(-1) for w, m in ((0.6, -10.0), (0.396, 10.0), (0.004, 30.0))
        ]
        return torch.stack(parts).logsumexp(0)

    members = [gaussian(m, m) for m in (-10.0, 10.0, 30.0)]
    grown = flows.grow_flows(FlowMixture(members, [0.6, 0.396, 0.004]), None, Target(log_prob, Space(2)), seeded(0))
    assert isinstance(grown, FlowMixture)
    trained = [any(p.requires_grad for p in member.parameters()) for member in grown]
    assert trained == [True, True, False]
    torch.testing.assert_close(grown.weights, torch.tensor([0.6, 0.396, 0.004]).double())


def test_tails_are_trained_where_weights_are_heavy_and_only_there():
    z = torch.empty(50_000, 1, dtype=torch.float64).normal_(generator=seeded(3))
    for tail in (0.05, 0.0):
        target, flow = with_a_tail(1.0, tail), flows.flow_around(gaussian(0.0), None, seeded(0))
        truth = z * torch.where(torch.arange(len(z)) < tail * len(z), 3.0, 1.0).unsqueeze(1)
        before = flow.log_prob(truth).mean().item()
        lacking = target(truth).mean().item() - before  # KL(posterior, flow): a few steps gain a part of it
        flow, _ = stages.fit_tails(stages.Run(target, seeded(2)), flow, 0.0)
        gain = flow.log_prob(truth).mean().item() - before
        assert gain > 0.2 * lacking if tail else gain == 0.0


def test_tails_that_cost_too_much_are_given_back():
    target, flow = with_a_tail(1.0, 0.05), flows.flow_around(gaussian(0.0), None, seeded(0))
    x = torch.linspace(-9, 9, 50, dtype=torch.float64).unsqueeze(1)
    before = flow.log_prob(x).detach()
    impossible = -1.0  # nats before: whatever comes after has more
    flow, _ = stages.fit_tails(stages.Run(target, seeded(2)), flow, impossible)
    torch.testing.assert_close(flow.log_prob(x), before)


@pytest.mark.slow
def test_densities_with_kinks_whose_curvature_says_nothing():
    """A Laplace distribution has its own evidence, and a median regression that of a grid."""
    found = fit_posterior(lambda z: -z.abs().sum(-1), features=1, progress=False).diagnostics()
    assert found.verdict == "good"
    assert found.log_evidence.value == pytest.approx(math.log(2), abs=0.01)

    x = torch.linspace(-2, 2, 25, dtype=torch.float64)
    y = 1 + 2 * x + torch.empty(25, dtype=torch.float64).normal_(generator=seeded(0))

    def log_prob(z: Tensor) -> Tensor:
        return Laplace(z[:, :1] + z[:, 1:] * x, 0.8).log_prob(y).sum(-1)

    axes = torch.linspace(-1, 3, 801, dtype=torch.float64), torch.linspace(0, 4, 801, dtype=torch.float64)
    points = torch.cartesian_prod(*axes)
    values = torch.cat([log_prob(some) for some in points.split(20_000)])
    weights = values.softmax(0).unsqueeze(1)
    mean = (weights * points).sum(0)
    sd = (weights * (points - mean).square()).sum(0).sqrt()
    posterior = fit_posterior(log_prob, features=2, progress=False)
    found = posterior.diagnostics()
    assert found.verdict == "good"
    assert found.log_evidence.value == pytest.approx(float(values.logsumexp(0)) + 2 * math.log(4 / 800), abs=0.02)
    draws = posterior.sample((20_000,), seeded(1))
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.05 * float(sd.min()))
    torch.testing.assert_close(draws.std(0), sd, rtol=0.05, atol=0)
