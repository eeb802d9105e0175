"""`Flow` and the presets: shapes, the checks at the door, torch.distributions, types, copies and files."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from constructors import context_for, perturb, skewed
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, constraints

import flowlab
from flowlab import Flow, presets
from flowlab.bases import Gaussian, GaussianMixture, StudentT, Uniform
from flowlab.layers import (
    ActNorm,
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

PRESETS: dict[str, tuple[Callable[..., Flow], str]] = {
    "planar": (presets.planar, "sampling"),
    "radial": (presets.radial, "both"),
    "sylvester": (presets.sylvester, "sampling"),
    "nice": (presets.nice, "both"),
    "real_nvp": (presets.real_nvp, "both"),
    "glow": (presets.glow, "both"),
    "maf": (presets.maf, "density"),
    "iaf": (presets.iaf, "sampling"),
    "nsf": (presets.nsf, "both"),
    "nsf, autoregressive": (
        lambda features, **options: presets.nsf(features, autoregressive=True, **options),
        "density",
    ),
    "circular_nsf": (presets.circular_nsf, "both"),
    "circular_nsf, autoregressive": (
        lambda features, **options: presets.circular_nsf(features, autoregressive=True, **options),
        "density",
    ),
}
EVERY_PRESET = pytest.mark.parametrize("name", PRESETS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def preset(name: str, features: int, *, perturbed: bool = True, **options: Any) -> Flow:
    flow = PRESETS[name][0](features, hidden=(8,), generator=seeded(), **{"layers": 2, **options}).double()
    return perturb(flow) if perturbed else flow


@pytest.fixture
def flow() -> Flow:
    return preset("real_nvp", 3)


@pytest.fixture
def conditional() -> Flow:
    return preset("real_nvp", 3, context_features=2)


def rows(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.float64).normal_(generator=seeded(4))


# Shapes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3)], ids=str)
def test_shapes_without_context(flow: Flow, batch: tuple[int, ...]) -> None:
    x = rows(*batch, 3)
    assert flow.log_prob(x).shape == batch
    assert flow.to_noise(x).shape == flow.from_noise(x).shape == x.shape
    assert flow.sample(batch).shape == flow.rsample(batch).shape == x.shape
    drawn, log_prob = flow.rsample_and_log_prob(batch)
    assert drawn.shape == x.shape
    assert log_prob.shape == batch
    assert [result.shape for result in flow(x)] == [x.shape, batch]
    assert [result.shape for result in flow.inverse(x)] == [x.shape, batch]


BROADCASTS = [
    # batch of x, batch of the context, batch of the result
    ((), (), ()),
    ((5,), (), (5,)),
    ((), (5,), (5,)),
    ((5,), (5,), (5,)),
    ((0,), (), (0,)),
    ((0,), (0,), (0,)),
    ((2, 5), (5,), (2, 5)),
    ((5,), (2, 5), (2, 5)),
    ((2, 1), (1, 5), (2, 5)),
]


@pytest.mark.parametrize(("batch", "context_batch", "together"), BROADCASTS, ids=str)
@EVERY_PRESET
def test_log_prob_broadcasts_with_the_context(
    name: str, batch: tuple[int, ...], context_batch: tuple[int, ...], together: tuple[int, ...]
) -> None:
    flow = preset(name, 2, layers=1, context_features=2)
    x, context = rows(*batch, 2), rows(*context_batch, 2)
    log_prob = flow.log_prob(x, context)
    assert log_prob.shape == together
    assert flow.to_noise(x, context).shape == flow.from_noise(x, context).shape == (*together, 2)
    expected = flow.log_prob(x.expand(*together, 2).clone(), context.expand(*together, 2).clone())
    torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("context_batch", [(), (4,), (0,), (2, 3)], ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (6, 1)], ids=str)
def test_samples_are_shape_then_context_batch(
    conditional: Flow, shape: tuple[int, ...], context_batch: tuple[int, ...]
) -> None:
    context = rows(*context_batch, 2)
    x, log_prob = conditional.rsample_and_log_prob(shape, context, seeded())
    assert x.shape == (*shape, *context_batch, 3)
    assert log_prob.shape == (*shape, *context_batch)
    for draw in (conditional.sample, conditional.rsample):
        assert torch.equal(draw(shape, context, seeded()), x)
    torch.testing.assert_close(log_prob, conditional.log_prob(x, context), rtol=1e-9, atol=1e-9)


def test_a_row_has_its_own_context(conditional: Flow) -> None:
    x, context = rows(5, 3), rows(5, 2)
    together = conditional.log_prob(x, context)
    for i in range(5):
        torch.testing.assert_close(together[i], conditional.log_prob(x[i], context[i]), rtol=1e-12, atol=1e-12)
        assert (together[i] - conditional.log_prob(x[i], context[(i + 1) % 5])).abs() > 1e-6


def test_draws(flow: Flow) -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(flow.sample((4,), generator=seeded(1)), flow.sample((4,), generator=seeded(1)))
    assert not torch.equal(flow.sample((4,), generator=seeded(1)), flow.sample((4,), generator=seeded(2)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not flow.sample((4,)).requires_grad
    assert flow.rsample((4,)).requires_grad
    noise = flow.base.sample((4,), seeded(1))
    assert torch.equal(flow.from_noise(noise), flow.sample((4,), generator=seeded(1)))


def test_log_prob_is_the_change_of_variables() -> None:
    """Two layers by hand: x = e⁻¹ (2 z) + 3 has density N(3, 2/e)."""
    scale, shift = ElementwiseAffine(1, bound=10.0), ElementwiseAffine(1, bound=10.0)
    flow = Flow(Gaussian(1), [scale, shift]).double()
    with torch.no_grad():
        scale.parameters_.value.copy_(torch.tensor([0.0, 10 * math.atanh(math.log(2) / 10)]))
        shift.parameters_.value.copy_(torch.tensor([3.0, 10 * math.atanh(-0.1)]))
    x = torch.linspace(-2, 8, 11, dtype=torch.float64)
    expected = torch.distributions.Normal(3.0, 2 / math.e).log_prob(x)
    torch.testing.assert_close(flow.log_prob(x.unsqueeze(-1)).detach(), expected)
    torch.testing.assert_close(flow.from_noise(torch.ones(1).double()).item(), 3 + 2 / math.e)


def test_no_layers() -> None:
    flow, x = Flow(StudentT(2), []), torch.ones(5, 2)
    assert torch.equal(flow.log_prob(x), flow.base.log_prob(x))
    assert torch.equal(flow.from_noise(x), x)
    assert flow.fast == "both"


# The door --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(5, 2).double(), ValueError, r"x must have shape \(\*batch, 3\), not \(5, 2\)"),
        (torch.zeros(3, 1).double(), ValueError, r"x must have shape \(\*batch, 3\), not \(3, 1\)"),
        (torch.tensor(1.0).double(), ValueError, r"x must have shape \(\*batch, 3\), not \(\)"),
        (torch.zeros(5, 3), ValueError, r"x is torch.float32, this flow takes torch.float64"),
        (torch.zeros(5, 3, dtype=torch.long), ValueError, r"x is torch.int64, this flow takes torch.float64"),
        ([[0.0, 0.0, 0.0]], TypeError, r"x must be a torch.Tensor, not list"),
        (None, TypeError, r"x must be a torch.Tensor, not NoneType"),
    ],
    ids=["narrow", "transposed", "scalar", "float32", "integers", "list", "None"],
)
def test_door_refuses_data(flow: Flow, x: Any, error: type[Exception], message: str) -> None:
    for method in (flow.log_prob, flow.to_noise, flow.inverse):
        with pytest.raises(error, match=message):
            method(x)
    for method in (flow.from_noise, flow.forward):
        with pytest.raises(error, match=message.replace("x ", "z ", 1)):
            method(x)


@pytest.mark.parametrize(
    ("context", "error", "message"),
    [
        (None, ValueError, r"needs a context of shape \(\*batch, 2\)"),
        (torch.zeros(5, 3).double(), ValueError, r"context must have shape \(\*batch, 2\), not \(5, 3\)"),
        (torch.tensor(1.0).double(), ValueError, r"context must have shape \(\*batch, 2\), not \(\)"),
        (
            torch.zeros(4, 2).double(),
            ValueError,
            r"the batch of x \(5, 3\) and of the context \(4, 2\) do not broadcast",
        ),
        ([[0.0, 0.0]], TypeError, r"context must be a torch.Tensor, not list"),
    ],
    ids=["missing", "wide", "scalar", "batch", "list"],
)
def test_door_refuses_contexts(conditional: Flow, context: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        conditional.log_prob(rows(5, 3), context)
    if "broadcast" not in message:
        for draw in (conditional.sample, conditional.rsample, conditional.rsample_and_log_prob):
            with pytest.raises(error, match=message):
                draw((5,), context)


def test_door_refuses_a_superfluous_context(flow: Flow) -> None:
    for call in (lambda c: flow.log_prob(rows(5, 3), c), lambda c: flow.sample((5,), c)):
        with pytest.raises(ValueError, match="takes no context: build it with context_features"):
            call(rows(5, 2))


def test_widths_must_agree() -> None:
    with pytest.raises(ValueError, match=r"layer 1 \(LULinear\) has 2 features, the base has 3"):
        Flow(Gaussian(3), [LULinear(3), LULinear(2)])
    with pytest.raises(ValueError, match=r"layer 2 \(Planar\) has context_features=2, an earlier one 1"):
        Flow(Gaussian(3), [Planar(3, context_features=1), LULinear(3), Planar(3, context_features=2)])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Coupling(3, mask=[True, False]), "mask must have 3 entries"),
        (lambda: Coupling(2, mask=[False, False]), "at least one of them True"),
        (lambda: Coupling(2, activation="step"), "activation must be one of relu"),
        (lambda: Coupling(2, hidden=(8, 4), residual=True), "equal hidden widths"),
        (lambda: Autoregressive(3, order=[0, 1, 1]), "order must be a permutation"),
        (lambda: Autoregressive(3, fast="both"), 'fast must be "density" or "sampling"'),
        (lambda: Permutation(3, [0, 1, 3]), "permutation must be one of 0"),
        (lambda: flowlab.layers.Householder(3, 3), "positive even number"),
        (lambda: flowlab.layers.Sylvester(3, 4), "directions must be between 1 and features = 3"),
    ],
)
def test_layers_refuse_arguments(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# torch.distributions ---------------------------------------------------------------------------------------------------


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


# Supports, types, presets ----------------------------------------------------------------------------------------------


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
    """Double-precision preprocessing on the data side of single-precision layers: data are double, parameters single."""
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


# Parameters, copies, files ---------------------------------------------------------------------------------------------


def test_frozen_parameters(flow: Flow) -> None:
    first = flow.layers[0]
    first.requires_grad_(False)
    flow.log_prob(rows(5, 3)).sum().backward()
    assert all(p.grad is None for p in first.parameters())
    assert all(p.grad is not None for p in flow.layers[1].parameters())
    trained = sum(p.numel() for p in flow.layers[1].parameters())
    assert f" {trained:,} parameters" in repr(flow)
    flow.requires_grad_(False)
    assert not flow.log_prob(rows(5, 3)).requires_grad
    x = rows(5, 3).requires_grad_()
    assert torch.autograd.grad(flow.log_prob(x).sum(), x)[0].abs().sum() > 0


def eventful() -> Flow:
    """A flow with every kind of state: flags, permutations, masks, orders, fitted numbers, a trained base."""
    flow = Flow(
        StudentT(4),
        [
            Coupling(4, hidden=(8,), mask=[True, False, False, True], generator=seeded(1)),
            Permutation(4, generator=seeded(2)),
            Autoregressive(4, order=[2, 0, 3, 1], hidden=(8,), generator=seeded(3)),
            ActNorm(4),
            Whitening(4),
            Marginal(4),
        ],
    ).double()
    flow.initialise(skewed(4))
    return perturb(flow)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda flow: pickle.loads(pickle.dumps(flow))], ids=["deepcopy", "pickle"]
)
def test_copies_after_use(duplicate: Callable[[Flow], Flow]) -> None:
    flow, x = eventful(), skewed(4)[:50]
    flow.log_prob(x).sum().backward()
    flow.rsample((3,)).sum().backward()
    twin = duplicate(flow)
    before = flow.log_prob(x).detach()
    perturb(flow)
    assert torch.equal(twin.log_prob(x), before)
    assert not torch.equal(flow.log_prob(x), before)


def test_state_dict_round_trip() -> None:
    """Everything that decides the numbers is in the state: a differently built flow takes it over."""
    flow, x = eventful(), skewed(4)[:50]
    other = Flow(
        StudentT(4),
        [
            Coupling(4, hidden=(8,), mask=[True, True, False, False]),
            Permutation(4, generator=seeded(9)),
            Autoregressive(4, hidden=(8,)),
            ActNorm(4),
            Whitening(4),
            Marginal(4),
        ],
    ).double()
    assert not torch.allclose(other.log_prob(x), flow.log_prob(x))
    other.load_state_dict(flow.state_dict())
    torch.testing.assert_close(other.log_prob(x), flow.log_prob(x), rtol=1e-12, atol=1e-12)
    assert [bool(layer.initialised) for layer in other.layers[3:]] == [True, True, True]
    torch.testing.assert_close(
        other.sample((5,), generator=seeded()), flow.sample((5,), generator=seeded()), rtol=1e-9, atol=1e-9
    )


def test_save_and_load(tmp_path: Path) -> None:
    flow, x = eventful(), skewed(4)[:50]
    flowlab.save(flow, tmp_path / "model.flow")
    loaded = flowlab.load(tmp_path / "model.flow")
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    assert repr(loaded) == repr(flow)
    assert bool(loaded.layers[3].initialised)


def test_a_loaded_flow_does_not_need_its_file(tmp_path: Path) -> None:
    """Tensors are copies, not windows into a file that somebody may overwrite."""
    path = tmp_path / "model.flow"
    flow, x = eventful(), skewed(4)[:50]
    flowlab.save(flow, path)
    loaded = flowlab.load(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\0" * size)
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))


def test_mixed_precision_survives_a_file(tmp_path: Path) -> None:
    flow = perturb(Flow(Gaussian(2), [Coupling(2, hidden=(8,)), Whitening(2).double()]))
    flow.initialise(skewed(2))
    flowlab.save(flow, tmp_path / "model.flow")
    loaded = flowlab.load(tmp_path / "model.flow")
    assert [p.dtype for p in loaded.state_dict().values()] == [p.dtype for p in flow.state_dict().values()]
    assert torch.equal(loaded.log_prob(skewed(2)), flow.log_prob(skewed(2)))


# Initialisation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [ActNorm, Whitening, Marginal])
def test_initialise_once(build: Callable[[int], flowlab.layers.Layer]) -> None:
    flow = Flow(Gaussian(3), [build(3)]).double()
    x = skewed(3)
    assert not bool(flow.layers[0].initialised)
    before = flow.log_prob(x).detach()
    assert torch.equal(flow.log_prob(x).detach(), before)  # using a flow does not initialise it
    flow.initialise(x)
    assert bool(flow.layers[0].initialised)
    after = flow.log_prob(x).detach()
    assert after.mean() > before.mean()
    flow.initialise(100 * x)
    assert torch.equal(flow.log_prob(x).detach(), after)


@pytest.mark.parametrize("build", [ActNorm, Whitening, Marginal])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_fitted_noise_is_standard(build: Callable[[int], flowlab.layers.Layer], scale: float) -> None:
    x = scale * (skewed(4, rows=2000)[:, [0, 2, 3]] + 100)
    layer = build(3).double()
    layer.initialise(x)
    z, _ = layer.inverse(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(z.std(0), torch.ones(3).double(), rtol=0, atol=0.05)
    if build is Whitening:
        torch.testing.assert_close(torch.cov(z.T), torch.eye(3).double(), rtol=0, atol=0.01)


def test_initialise_passes_data_down_the_chain() -> None:
    """Each layer learns from the data as the layers beyond it leave them."""
    inner, outer = ActNorm(2), Whitening(2)
    flow = Flow(Gaussian(2), [inner, LULinear(2), outer]).double()
    with torch.no_grad():
        flow.layers[1].upper[0, 1] = 3.0
    x = skewed(2)[:, :1] + rows(400, 2)
    flow.initialise(x)
    z = flow.to_noise(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(2).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", [ActNorm, Whitening, Marginal])
@pytest.mark.parametrize(
    "columns",
    [
        lambda x: torch.cat([x, torch.full_like(x, 7.0)], 1),
        lambda x: torch.cat([x, x], 1),
        lambda x: torch.cat([x, x.round()], 1),
        lambda x: torch.cat([x, (x > 0).double()], 1),
        lambda x: torch.cat([x, 1e9 + x], 1),
        lambda x: torch.cat([x, x], 1)[:2],
        lambda x: torch.cat([x, x], 1)[:1],
        lambda x: torch.cat([x, torch.where(x > 3, x, 0.0)], 1),
    ],
    ids=["constant", "collinear", "rounded", "two values", "far off", "two rows", "one row", "nearly constant"],
)
def test_awkward_columns(build: Callable[[int], flowlab.layers.Layer], columns: Callable[[Tensor], Tensor]) -> None:
    x = columns(rows(300, 1))
    layer = build(2).double()
    layer.initialise(x)
    wide = torch.cat([x, x + 1, -1e3 * x])
    z, log_det = layer.inverse(wide)
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_det).all()
    back, log_det_back = layer(z)
    torch.testing.assert_close(back, wide, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-4, atol=1e-4)


# Compiling a whole flow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["real_nvp", "maf", "planar", "circular_nsf"])
def test_compiled_flow(name: str) -> None:
    flow = preset(name, 2, context_features=1)
    x, context = flow.base.sample((6,), seeded()), rows(6, 1)
    for method in (flow.log_prob, flow.from_noise):
        torch._dynamo.reset()
        compiled = torch.compile(method, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, context), method(x, context), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["real_nvp", "maf", "circular_nsf"])
@pytest.mark.parametrize("method", ["log_prob", "from_noise"])
def test_exported_flow(name: str, method: str) -> None:
    """torch.export takes both directions, with a batch of any size."""

    class Exported(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = preset(name, 2, context_features=1)

        def forward(self, x: Tensor, context: Tensor) -> Tensor:
            return getattr(self.flow, method)(x, context)

    model, batch = Exported(), torch.export.Dim("batch", min=2)
    draw = model.flow.base.sample
    program = torch.export.export(model, (draw((6,)), rows(6, 1)), dynamic_shapes=({0: batch}, {0: batch}))
    x, context = draw((9,), seeded()), rows(9, 1)
    torch.testing.assert_close(program.module()(x, context), model(x, context), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["real_nvp", "iaf", "nsf"])
def test_functional_transforms_of_a_flow(name: str) -> None:
    """Per-row gradients of log_prob in the data, and in the parameters by functional_call."""
    flow, x = preset(name, 2), rows(5, 2)
    scores = torch.func.vmap(torch.func.grad(flow.log_prob))(x)
    value = x.clone().requires_grad_()
    torch.testing.assert_close(scores, torch.autograd.grad(flow.log_prob(value).sum(), value)[0])

    def log_prob(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(flow, parameters, (row,))[1]

    parameters = {name: p.detach() for name, p in flow.named_parameters()}
    per_row = torch.func.vmap(torch.func.grad(log_prob), in_dims=(None, 0))(parameters, x)
    log_det = flow(x)[1].sum()
    expected = torch.autograd.grad(log_det, list(flow.parameters()), allow_unused=True)
    for (key, gradient), wanted in zip(per_row.items(), expected, strict=True):
        wanted = torch.zeros_like(parameters[key]) if wanted is None else wanted
        torch.testing.assert_close(gradient.sum(0), wanted)
