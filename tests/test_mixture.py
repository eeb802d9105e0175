"""`FlowMixture`: a distribution like any flow, and weights that are the best ones."""

import copy
import inspect
import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.mixture import GaussianMixture

import flowlab
from constructors import perturb
from flowlab import Flow, FlowMixture, bases, presets
from flowlab.mixture import stack
from helpers import seeded

F64 = torch.float64


def members(context_features: int = 0) -> list[Flow]:
    flows = [
        presets.maf(3, layers=1, hidden=(8,), context_features=context_features, generator=seeded(1)),
        presets.real_nvp(3, layers=2, hidden=(8,), context_features=context_features, generator=seeded(2)),
    ]
    for i, flow in enumerate(flows):
        perturb(flow, seeded(i))
    return [flow.double() for flow in flows]


@pytest.fixture
def mixture() -> FlowMixture:
    return FlowMixture(members(), [1.0, 3.0])


def test_the_density_is_the_weighted_sum(mixture):
    x = torch.randn(4, 5, 3, generator=seeded(), dtype=F64)
    first, second = (flow.log_prob(x).exp() for flow in mixture)
    torch.testing.assert_close(mixture.log_prob(x).exp(), 0.25 * first + 0.75 * second)
    assert mixture.weights.tolist() == pytest.approx([0.25, 0.75])
    assert mixture.log_prob(x[:, :0]).shape == (4, 0)


def test_draws_have_the_density(mixture):
    x = mixture.sample((20_000,), generator=seeded())
    assert x.shape == (20_000, 3)
    # Importance weights of draws from the mixture average one under either member's density.
    for flow in mixture:
        ratio = (flow.log_prob(x) - mixture.log_prob(x)).exp()
        assert float(ratio.mean()) == pytest.approx(1, abs=5 * float(ratio.std()) / math.sqrt(len(x)) + 1e-9)
    assert mixture.sample((2, 0)).shape == (2, 0, 3)
    assert torch.equal(mixture.sample((9,), generator=seeded(3)), mixture.sample((9,), generator=seeded(3)))
    first, second = mixture.sample((2, 500), generator=seeded(4))
    assert float((first.mean(0) - second.mean(0)).abs().max()) < 0.5  # members are mixed along the batch


def test_with_a_context():
    mixture = FlowMixture(members(2), [0.5, 0.5])
    context = torch.randn(4, 2, generator=seeded(), dtype=F64)
    x, log_prob = mixture.rsample_and_log_prob((6,), context, seeded())
    assert x.shape == (6, 4, 3)
    torch.testing.assert_close(log_prob, mixture.log_prob(x, context))
    assert mixture.distribution(context).batch_shape == (4,)
    assert mixture.to_noise(x, context, seeded()).shape == (6, 4, 3)


def test_samples_carry_the_members_gradients(mixture):
    mixture.rsample((50,), generator=seeded()).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for flow in mixture for p in flow.parameters())


def test_noise_behind_draws_is_standard_normal():
    x = np.random.default_rng(0).normal(size=(600, 3)) ** 3
    base = bases.GaussianMixture.from_sklearn(GaussianMixture(3, random_state=0).fit(x))
    kernels = bases.Kernels(3, 5).double()
    kernels.centres.normal_(generator=seeded())
    heavy = bases.StudentT(3, df=3.0).double()
    flows = [Flow(base, []), *members(), Flow(heavy, []), Flow(kernels, [])]
    mixture = FlowMixture(flows)
    draws = mixture.sample((8000,), generator=seeded())
    z = mixture.to_noise(draws, generator=seeded(1)).numpy()
    for column in z.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    assert stats.kstest((z**2).sum(1), "chi2", args=(3,)).pvalue > 1e-3
    # And not that of other rows.
    wrong = mixture.to_noise(1.2 * draws, generator=seeded(1)).numpy()
    assert stats.kstest((wrong**2).sum(1), "chi2", args=(3,)).pvalue < 1e-3


def test_uniform_noise_to_normal():
    base = bases.Uniform(2, low=-1.0, high=3.0)
    z = base.to_normal(base.sample((5000,), seeded())).numpy()
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3


def test_a_kernel_base_is_scikit_learns():
    from sklearn.neighbors import KernelDensity

    x = np.random.default_rng(0).normal(size=(40, 2))
    base = bases.Kernels(2, 40).double()
    base.centres.copy_(torch.from_numpy(x))
    base.log_bandwidth.fill_(math.log(0.3))
    points = np.random.default_rng(1).normal(size=(3, 7, 2))
    expected = KernelDensity(bandwidth=0.3, rtol=1e-10).fit(x).score_samples(points.reshape(-1, 2)).reshape(3, 7)
    assert np.allclose(base.log_prob(torch.from_numpy(points)).numpy(), expected, atol=1e-6)
    assert base.rsample((5, 2), seeded()).shape == (5, 2, 2)


def test_files_copies_and_moves(mixture, tmp_path):
    x = torch.randn(5, 3, generator=seeded(), dtype=F64)
    flowlab.save(mixture, tmp_path / "m.flow")
    for other in (flowlab.load(tmp_path / "m.flow"), copy.deepcopy(mixture)):
        assert torch.equal(other.log_prob(x), mixture.log_prob(x))
    other = FlowMixture(members())
    other.load_state_dict(mixture.state_dict())
    assert torch.equal(other.weights, mixture.weights)
    distribution = mixture.distribution()
    assert distribution.event_shape == (3,)
    torch.testing.assert_close(distribution.log_prob(x), mixture.log_prob(x))
    assert mixture.has_rsample
    assert "0.250 ×" in repr(mixture)


def test_bad_members_and_weights():
    flows = members()
    with pytest.raises(ValueError, match="at least one flow"):
        FlowMixture([])
    with pytest.raises(ValueError, match="must agree in features"):
        FlowMixture([flows[0], presets.maf(2).double()])
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="weights must be 2"):
            FlowMixture(flows, weights)


def test_a_member_of_weight_zero_has_no_say():
    flows = members()
    x = torch.randn(5, 3, generator=seeded(), dtype=F64)
    alone = FlowMixture(flows, [1.0, 0.0])
    torch.testing.assert_close(alone.log_prob(x), flows[0].log_prob(x))
    alone.log_prob(x).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in flows[0].parameters())
    assert alone.sample((10,), generator=seeded()).isfinite().all()


def test_stacked_weights_are_the_likeliest():
    """Draws from a known mixture: the weights come back, and no others do better."""
    truth = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    centres = torch.tensor([-3.0, 0.0, 3.0], dtype=F64)
    which = torch.multinomial(truth, 20_000, replacement=True, generator=seeded())
    x = centres[which] + torch.randn(20_000, generator=seeded(1), dtype=F64)
    log_probs = -(x - centres[:, None]).square() / 2
    found = stack(log_probs)
    assert found.tolist() == pytest.approx(truth.tolist(), abs=0.02)

    def likelihood(weights):
        return float((log_probs + weights.log()[:, None]).logsumexp(0).mean())

    for direction in torch.eye(3, dtype=F64):
        assert likelihood(found) >= likelihood(0.99 * found + 0.01 * direction) - 1e-9
    weighted = stack(torch.cat([log_probs, log_probs[:, which == 0]], 1))
    assert stack(log_probs, 1.0 + (which == 0).double()).tolist() == pytest.approx(weighted.tolist(), abs=1e-6)


def test_rows_that_no_member_knows_do_not_count():
    log_probs = torch.tensor([[0.0, -1.0, -math.inf], [-1.0, -math.inf, -math.inf]])
    assert torch.isfinite(stack(log_probs)).all()
    prior = stack(torch.tensor([[0.0, 0.0], [-50.0, -50.0]]), prior=torch.tensor([0.0, 1.0]))
    assert float(prior[1]) == pytest.approx(1 / 3, abs=1e-6)


def test_noise_broadcasts_as_a_flows_does_and_mixtures_nest():
    mixture = FlowMixture(members(2))
    x, context = torch.zeros(3, dtype=F64), torch.randn(4, 2, generator=seeded(), dtype=F64)
    assert mixture.to_noise(x, context).shape == members(2)[0].to_noise(x, context).shape == (4, 3)
    assert mixture.to_noise(torch.zeros(5, 1, 3, dtype=F64), context).shape == (5, 4, 3)
    assert mixture.to_noise(torch.zeros(0, 3, dtype=F64), context[:1]).shape == (0, 3)
    nested = FlowMixture([FlowMixture(members()), members()[0]])
    x = nested.sample((4000,), generator=seeded())
    z = nested.to_normal(x, generator=seeded(1))
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert nested.fast == "density"


def test_fit_trains_the_members_together():
    centre = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
    x = centre[torch.arange(600) % 2] + 0.3 * torch.randn(600, 2, generator=seeded())
    flows = [presets.glow(2, layers=1, hidden=4, generator=seeded(i)) for i in range(2)]
    mixture = FlowMixture([FlowMixture([flows[0]]), flows[1]])
    before = float(mixture.log_prob(x).mean().detach())
    history = flowlab.fit(mixture, x, epochs=40, generator=seeded(), progress=False)
    assert -history.best > before + 1
    assert all(bool(flow.layers[-1].initialised) for flow in flows)
    assert mixture.weights.tolist() == [0.5, 0.5]


def test_a_row_without_density_has_no_noise_and_spoils_no_other():
    box = FlowMixture([Flow(bases.Uniform(2), []), Flow(bases.Uniform(2), [])])
    z = box.to_noise(torch.tensor([[2.0, 2.0], [0.5, 0.5]]))
    assert bool(z[0].isnan().all())
    assert torch.allclose(z[1], torch.zeros(2))


def test_a_context_that_is_no_tensor_is_named():
    mixture = FlowMixture(members(2))
    for call in (lambda: mixture.sample(3, [1.0, 2.0]), lambda: members(2)[0].sample(3, [1.0, 2.0])):
        with pytest.raises(TypeError, match=r"context must be a torch.Tensor, not list"):
            call()
    with pytest.raises(ValueError, match="weights must be 2"):
        FlowMixture(members(), ["a", 1.0])


def test_a_mixture_has_the_methods_of_a_flow():
    """All but those of a single map, with a flow's arguments first."""
    public = {name for name in vars(Flow) if not name.startswith("_")}
    assert public - set(vars(FlowMixture)) == {"forward", "inverse", "from_noise"}
    for name in public & vars(FlowMixture).keys():
        own, flows = vars(FlowMixture)[name], vars(Flow)[name]
        assert isinstance(own, property) == isinstance(flows, property), name
        if not isinstance(own, property):
            expected = list(inspect.signature(flows).parameters.values())
            assert list(inspect.signature(own).parameters.values())[: len(expected)] == expected, name
