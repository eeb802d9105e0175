"""`Flow.distribution`, supports, floating-point types and the presets."""

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    Independent,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    constraints,
    kl_divergence,
    transforms,
)

import flowlab
from constructors import EVERY_PRESET, PRESETS, context_for, perturb, preset, rows, skewed
from flowlab import Flow, presets
from flowlab.bases import Gaussian, GaussianMixture, StudentT, Uniform
from flowlab.interop.torch import LayerTransform
from flowlab.layers import (
    Affine,
    Autoregressive,
    Coupling,
    ElementwiseAffine,
    LULinear,
    Marginal,
    Permutation,
    Planar,
    Radial,
    Whitening,
)
from helpers import seeded

# torch.distributions --------------------------------------------------------------------------------------------------


def test_distribution_without_context(flow: Flow) -> None:
    q = flow.distribution()
    assert isinstance(q, torch.distributions.Distribution)
    assert (q.batch_shape, q.event_shape) == ((), (3,))
    assert q.has_rsample
    assert q.support is constraints.real_vector
    assert q.sample().shape == (3,)
    assert q.sample((2, 5)).shape == (2, 5, 3)
    assert not q.sample((4,)).requires_grad
    assert q.rsample((4,)).requires_grad
    x, log_prob = q.rsample_and_log_prob((7,))
    torch.testing.assert_close(q.log_prob(x), log_prob)
    torch.testing.assert_close(q.log_prob(x), flow.log_prob(x))
    assert "batch_shape=()" in repr(q)
    assert "event_shape=(3,)" in repr(q)


def test_distribution_with_context(conditional: Flow) -> None:
    context = rows(4, 2)
    q = conditional.distribution(context)
    assert (q.batch_shape, q.event_shape) == ((4,), (3,))
    x = q.sample((6,))
    assert x.shape == (6, 4, 3)
    torch.testing.assert_close(q.log_prob(x), conditional.log_prob(x, context))
    assert q.log_prob(rows(3)).shape == (4,)


@pytest.mark.parametrize("context", [None, rows(2), rows(4, 2)], ids=["none", "one", "batch"])
def test_distribution_expands(context: Tensor | None) -> None:
    flow = preset("real_nvp", 3, context_features=0 if context is None else 2)
    q = flow.distribution(context).expand((5, 4))
    assert q.batch_shape == (5, 4)
    assert q.event_shape == (3,)
    x = q.sample((2,))
    assert x.shape == (2, 5, 4, 3)
    assert len(x.unique(dim=2).unique(dim=1).flatten()) == x.numel()  # independent draws, not copies
    log_prob = q.log_prob(x)
    assert log_prob.shape == (2, 5, 4)
    torch.testing.assert_close(log_prob, flow.log_prob(x, context))
    assert q.log_prob(rows(3)).shape == (5, 4)
    drawn, log_prob = q.rsample_and_log_prob((2,))
    torch.testing.assert_close(q.log_prob(drawn), log_prob)


def test_distribution_validates(flow: Flow) -> None:
    q = flowlab.flow.FlowDistribution(flow, validate_args=True)
    with pytest.raises(ValueError, match="event_shape"):
        q.log_prob(rows(5, 2))
    with pytest.raises(ValueError, match="to be within the support"):
        q.log_prob(torch.full((3,), math.nan, dtype=torch.float64))
    circular = flowlab.flow.FlowDistribution(preset("circular_nsf", 2), validate_args=True)
    with pytest.raises(ValueError, match="to be within the support"):
        circular.log_prob(torch.tensor([0.0, 4.0], dtype=torch.float64))
    assert torch.isfinite(circular.log_prob(torch.tensor([0.0, 3.0], dtype=torch.float64)))
    lenient = flowlab.flow.FlowDistribution(flow, validate_args=False)
    assert lenient.log_prob(torch.full((3,), math.nan, dtype=torch.float64)).isnan()


def test_independent(conditional: Flow) -> None:
    q = Independent(conditional.distribution(rows(4, 2)), 1)
    assert (q.batch_shape, q.event_shape) == ((), (4, 3))
    x = q.rsample((6,))
    assert x.shape == (6, 4, 3)
    torch.testing.assert_close(q.log_prob(x), conditional.log_prob(x, rows(4, 2)).sum(-1))
    assert q.has_rsample
    assert bool(q.support.check(x).all())


def test_mixture_same_family(conditional: Flow) -> None:
    context, logits = rows(4, 2), torch.tensor([0.1, -1.0, 2.0, 0.0], dtype=torch.float64)
    q = MixtureSameFamily(Categorical(logits=logits), conditional.distribution(context))
    assert (q.batch_shape, q.event_shape) == ((), (3,))
    x = q.sample((6,))
    assert x.shape == (6, 3)
    terms = conditional.log_prob(x.unsqueeze(-2), context) + logits.log_softmax(0)
    torch.testing.assert_close(q.log_prob(x), terms.logsumexp(-1))


def test_distribution_trains_the_flow(conditional: Flow) -> None:
    """An evidence bound written with torch.distributions alone reaches every parameter."""
    q = conditional.distribution(rows(4, 2))
    x = q.rsample((10,))
    (q.log_prob(x) - torch.distributions.Normal(1.0, 2.0).log_prob(x).sum(-1)).mean().backward()
    for parameter in conditional.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_transformed_distribution(conditional: Flow) -> None:
    """Elementwise and vector transforms on top of a flow."""
    q = conditional.distribution(rows(4, 2))
    affine = AffineTransform(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), 0.5)
    p = TransformedDistribution(q, [affine, transforms.ExpTransform()])
    assert (p.batch_shape, p.event_shape) == ((4,), (3,))
    assert p.has_rsample
    assert p.support.event_dim == 1
    x = p.rsample((6,))
    assert bool(p.support.check(x).all())
    by_hand = q.log_prob((x.log() - affine.loc) / 0.5) - 3 * math.log(0.5) - x.log().sum(-1)
    torch.testing.assert_close(p.log_prob(x), by_hand)
    twisted = TransformedDistribution(q, [LayerTransform(Permutation(3, [2, 0, 1]))])
    torch.testing.assert_close(twisted.log_prob(x), q.log_prob(x[..., [1, 2, 0]]))
    assert p.expand((5, 4)).log_prob(x[:5]).shape == (5, 4)


def test_what_gaussian_process_libraries_ask_for(flow: Flow) -> None:
    """GPyTorch and BoTorch ask priors and posteriors for these; moments without a formula are refused, not guessed."""
    q = flow.distribution()
    assert q.support is constraints.real_vector
    assert q.has_rsample
    assert q.arg_constraints == {}
    assert q.expand(torch.Size([2])).batch_shape == (2,)
    assert q.expand([2]).rsample(torch.Size([4])).shape == (4, 2, 3)
    for moment in ("mean", "variance", "stddev", "mode"):
        with pytest.raises(NotImplementedError):
            getattr(q, moment)
    twin = copy.deepcopy(q)
    x = q.sample((5,))
    assert torch.equal(twin.log_prob(x), q.log_prob(x))
    assert twin.flow is not flow


# Divergences ----------------------------------------------------------------------------------------------------------


def normal(loc: float, scale: float = 1.0, features: int = 3) -> Independent:
    return Independent(Normal(torch.full((features,), loc, dtype=torch.float64), scale), 1)


def affine_flow(loc: float, scale: float) -> Flow:
    """N(loc, scale²) in three dimensions, as a flow."""
    layer = ElementwiseAffine(3)
    with torch.no_grad():
        layer.parameters_.value.copy_(torch.tensor([loc] * 3 + [30 * math.atanh(math.log(scale) / 30)] * 3))
    return Flow(Gaussian(3), [layer]).double()


def test_kl_divergence_is_the_closed_form_within_its_error() -> None:
    p, q = affine_flow(0.5, 0.8), affine_flow(-0.2, 1.5)
    exact = kl_divergence(normal(0.5, 0.8), normal(-0.2, 1.5))
    pairs = [
        (p.distribution(), q.distribution()),
        (p.distribution(), normal(-0.2, 1.5)),
        (normal(0.5, 0.8), q.distribution()),
    ]
    for pair in pairs:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            value, error = flowlab.kl_divergence(*pair, samples=20_000)
            torch.manual_seed(0)
            registered = kl_divergence(*pair)
        assert value.shape == error.shape == ()
        assert 0 < error < 0.02
        assert abs(value - exact) < 4 * error
        assert abs(registered - exact) < 4 * error * (20_000 / 1024) ** 0.5
    one, two = (flowlab.kl_divergence(p.distribution(), normal(0.0), 50, seeded()) for _ in range(2))
    assert torch.equal(one.value, two.value)
    itself = flowlab.kl_divergence(p.distribution(), p.distribution(), 10)
    assert itself.value.abs() < 1e-12


def test_the_standard_error_is_the_spread_of_estimates() -> None:
    p, q = affine_flow(0.5, 0.8).distribution(), normal(0.0)
    found = [flowlab.kl_divergence(p, q, 100, seeded(i)) for i in range(300)]
    spread = torch.stack([estimate.value for estimate in found]).std()
    told = torch.stack([estimate.standard_error for estimate in found]).mean()
    assert abs(told / spread - 1) < 0.15


def test_kl_divergence_broadcasts_batches(conditional: Flow) -> None:
    q = conditional.distribution(rows(4, 2))
    wide = Independent(Normal(torch.zeros(5, 1, 3, dtype=torch.float64), 1.0), 1)
    assert kl_divergence(q, wide).shape == kl_divergence(wide, q).shape == (5, 4)
    assert kl_divergence(normal(0.0), q).shape == kl_divergence(q, normal(0.0)).shape == (4,)
    both = Independent(q, 1)
    assert kl_divergence(both, Independent(q.expand((4,)), 1)).shape == ()


def test_kl_divergence_has_both_gradients() -> None:
    """By rsample in p, and directly in q; the gradient of the closed form is met."""
    flow, loc = affine_flow(0.5, 0.8), torch.zeros(3, dtype=torch.float64, requires_grad=True)
    value = flowlab.kl_divergence(flow.distribution(), Independent(Normal(loc, 1.0), 1), 50_000, seeded()).value
    by_flow, by_loc = torch.autograd.grad(value, [flow.layers[0].parameters_.value, loc])
    torch.testing.assert_close(by_flow[:3], torch.full((3,), 0.5).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(by_flow[3:], torch.full((3,), 0.8**2 - 1).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(by_loc, torch.full((3,), -0.5).double(), rtol=0, atol=0.02)


def test_kl_divergence_refuses() -> None:
    q = affine_flow(0.0, 1.0).distribution()
    with pytest.raises(ValueError, match=r"event_shape \(3,\), q \(\): torch.distributions.Independent"):
        kl_divergence(q, Normal(torch.zeros(3), 1.0))
    with pytest.raises(ValueError, match="at least 2 samples, not 1"):
        flowlab.kl_divergence(q, q, 1)


# Supports, types, presets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("autoregressive", [False, True])
def test_circular_support(autoregressive: bool) -> None:
    flow = perturb(presets.circular_nsf(2, layers=2, hidden=(8,), autoregressive=autoregressive))
    x = flow.sample((1000,), generator=seeded())
    assert bool(flow.support.check(x).all())
    assert not bool(flow.support.check(torch.tensor([0.0, 3.2])))
    assert torch.isfinite(flow.log_prob(x)).all()


def test_supports() -> None:
    box = Uniform(2, low=0.0, high=1.0)
    outside = torch.tensor([0.5, 1.5])
    assert not bool(Flow(box, []).support.check(outside))
    assert not bool(Flow(box, [Permutation(2, [1, 0])]).support.check(outside))
    # What moves the box has no support that it could name, and claims none.
    for layer in (LULinear(2), Coupling(2, Affine()), ElementwiseAffine(2), Radial(2)):
        assert bool(Flow(box, [layer]).support.check(outside))


def test_uniform_noise_in_a_spline_keeps_its_box() -> None:
    """A spline on [-5, 5] maps the box onto itself: the support that the flow states is where its draws are."""
    flow = perturb(Flow(Uniform(2, low=-5.0, high=5.0), [Coupling(2, flowlab.layers.RationalQuadraticSpline())]))
    x = flow.sample((2000,), generator=seeded())
    assert bool(flow.support.check(x).all())


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 1.0), (-20.0, 20.0)], ids=str)
def test_stated_support_holds_the_draws(box: tuple[float, float]) -> None:
    """Where a spline's box is not the base's, the flow must not claim a support that its draws leave."""
    layers = [Coupling(2, flowlab.layers.RationalQuadraticSpline(), mask) for mask in ([True, False], [False, True])]
    flow = perturb(Flow(Uniform(2, low=box[0], high=box[1]), layers), scale=1.0)
    x = flow.sample((2000,), generator=seeded())
    assert bool(flow.support.check(x).all())


def test_mixed_precision() -> None:
    """With double-precision preprocessing before single-precision layers, data are double and parameters single."""
    whitening = Whitening(2).double()
    marginal = Marginal(2).double()
    flow = perturb(Flow(Gaussian(2), [Coupling(2, hidden=(8,)), LULinear(2), whitening, marginal]))
    x = skewed(2) * torch.tensor([1e-3, 1e6]) + torch.tensor([1.0, 1e9])
    flow.initialise(x)
    assert flow.dtype == torch.float64
    log_prob = flow.log_prob(x)
    assert torch.isfinite(log_prob).all()
    assert flow.to_noise(x).dtype == torch.float32
    assert flow.sample((3,)).dtype == torch.float64
    noise = flow.base.sample((50,), seeded())
    assert flow.from_noise(noise).dtype == torch.float64
    torch.testing.assert_close(flow.to_noise(flow.from_noise(noise)), noise, rtol=1e-3, atol=1e-3)
    exact = copy.deepcopy(flow).double()
    torch.testing.assert_close(log_prob.double(), exact.log_prob(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r"x is torch.float32, this flow takes torch.float64"):
        flow.log_prob(x.float())
    with pytest.raises(ValueError, match=r"z is torch.float64, this flow takes torch.float32"):
        flow.from_noise(noise.double())
    drawn, log_prob = flow.rsample_and_log_prob((20,), generator=seeded())
    torch.testing.assert_close(flow.log_prob(drawn).double(), log_prob.double(), rtol=1e-3, atol=1e-3)
    for gradient in torch.autograd.grad(flow.log_prob(x).sum(), list(flow.parameters())):
        assert gradient.dtype == torch.float32
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_context_takes_the_type_of_the_layer(dtype: torch.dtype) -> None:
    flow = preset("maf", 2, context_features=2).to(dtype)
    context = rows(5, 2)
    x = rows(5, 2).to(dtype)
    torch.testing.assert_close(flow.log_prob(x, context.float()), flow.log_prob(x, context), rtol=1e-5, atol=1e-5)
    assert flow.log_prob(x, context).dtype == dtype


@pytest.mark.parametrize("context_features", [0, 2])
@pytest.mark.parametrize("features", [1, 2, 5])
@EVERY_PRESET
def test_presets_check(name: str, features: int, context_features: int) -> None:
    flow = preset(name, features, context_features=context_features)
    assert (flow.features, flow.context_features) == (features, context_features)
    context = context_for(context_features, ())
    flowlab.check_flow(flow, context, draws=4000, generator=seeded())


@EVERY_PRESET
def test_presets(name: str) -> None:
    flow = preset(name, 3, perturbed=False)
    assert flow.fast == PRESETS[name][1]
    z = flow.base.sample((20,), seeded())
    torch.testing.assert_close(flow.log_prob(z).detach(), flow.base.log_prob(z), rtol=1e-6, atol=1e-6)
    twin = preset(name, 3, perturbed=False)
    for a, b in zip(flow.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
    before = torch.random.get_rng_state()
    preset(name, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    deeper = preset(name, 3, layers=4)
    assert sum(p.numel() for p in deeper.parameters()) > sum(p.numel() for p in flow.parameters())


@EVERY_PRESET
def test_presets_mix_all_features(name: str) -> None:
    """Masks and orders take turns: after three layers every feature depends on every feature of the noise."""
    flow = preset(name, 4, layers=3)
    z = flow.base.sample((30,), seeded())
    matrix = torch.func.vmap(torch.func.jacrev(flow.from_noise))(z)
    assert bool((matrix.abs().amax(0) > 1e-6).all())


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (
            Flow(Gaussian(2), [Coupling(2, hidden=(8,)), Permutation(2)]),
            [
                "2 features",
                "context 0",
                "34 parameters",
                "fast: both",
                "Gaussian(2)",
                "0: Coupling",
                "Affine",
                "1: Permutation",
            ],
        ),
        (
            Flow(StudentT(3), [Autoregressive(3, context_features=4)]),
            ["3 features", "context 4", "fast: density", "StudentT"],
        ),
        (Flow(GaussianMixture(2, 3), [Planar(2)]), ["fast: sampling", "GaussianMixture", "0: Planar"]),
        (Flow(Gaussian(2), [Planar(2), Autoregressive(2)]), ["fast: neither"]),
        (Flow(Gaussian(1), [LULinear(1)]), ["4 parameters"]),
    ],
    ids=["coupling", "context", "mixture", "neither", "LU"],
)
def test_repr(flow: Flow, expected: list[str]) -> None:
    for part in expected:
        assert part in repr(flow)
