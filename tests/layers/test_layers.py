"""What every layer must do, over the table of tests/constructors.py."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import flowlab
from constructors import LAYERS, Entry, context_for, distance, flow_of, noise_for
from flowlab.layers import (
    ActNorm,
    Layer,
    Marginal,
    Permutation,
    Whitening,
)
from helpers import jacobian

FEATURES = (1, 2, 3, 7)
# Absolute and relative error of a few layers' worth of rounding, at moderate values.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])


def cases(features: tuple[int, ...] = FEATURES, contexts: tuple[int, ...] = (0, 2)) -> pytest.MarkDecorator:
    """Parametrise a test by the entries of the table, features, and context_features for layers that take a context."""
    return pytest.mark.parametrize(
        ("entry", "features", "context_features"),
        [
            pytest.param(entry, f, c, id=f"{name}; {f}; context {c}")
            for name, entry in LAYERS.items()
            for f in features
            for c in contexts
            if entry.takes_context or c == 0
        ],
    )


def both_directions(layer: Layer, z: Tensor, context: Tensor | None = None) -> list[tuple[Callable, Tensor]]:
    """Each direction of a layer with values of its own side: noise, and the data that it becomes."""
    with torch.no_grad():
        x, _ = layer(z, context)
    return [(layer.forward, z), (layer.inverse, x)]


def assert_close(value: Tensor, expected: Tensor, tolerance: float) -> None:
    assert value.shape == expected.shape
    torch.testing.assert_close(value.double(), expected.double(), rtol=tolerance, atol=tolerance)


def assert_same(entry: Entry, value: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal values of a layer, on the circle where its values are angles."""
    assert value.shape == expected.shape
    apart = distance(entry, value.double(), expected.double())
    assert bool((apart <= tolerance * (1 + expected.abs().double())).all()), f"apart by {apart.max():.3g}"


@DTYPES
@cases()
def test_round_trip(entry: Entry, features: int, context_features: int, dtype: torch.dtype) -> None:
    layer = entry(features, context_features, dtype=dtype)
    z, context = noise_for(entry, features, dtype=dtype), context_for(context_features, dtype=dtype)
    x, log_det = layer(z, context)
    back, log_det_back = layer.inverse(x, context)
    assert x.dtype == log_det.dtype == back.dtype == log_det_back.dtype == dtype
    assert log_det.shape == log_det_back.shape == z.shape[:-1]
    assert_same(entry, back, z, TOLERANCE[dtype])
    assert_close(log_det_back, -log_det, 5 * TOLERANCE[dtype])
    # And starting from the data side.
    x = noise_for(entry, features, dtype=dtype, seed=4)
    z, log_det = layer.inverse(x, context)
    again, log_det_again = layer(z, context)
    assert_same(entry, again, x, TOLERANCE[dtype])
    assert_close(log_det_again, -log_det, 5 * TOLERANCE[dtype])


@cases()
def test_log_det_is_that_of_autograds_jacobian(entry: Entry, features: int, context_features: int) -> None:
    layer, z, context = entry(features, context_features), noise_for(entry, features), context_for(context_features)
    for function, value in both_directions(layer, z, context):
        matrix = jacobian(lambda v: function(v, context)[0], value)  # noqa: B023
        assert_close(function(value, context)[1], torch.linalg.slogdet(matrix).logabsdet, 1e-8)


@cases()
def test_single_precision_agrees_with_double(entry: Entry, features: int, context_features: int) -> None:
    double = entry(features, context_features)
    single = copy.deepcopy(double).to(torch.float32)
    context = context_for(context_features)
    for function, value in both_directions(double, noise_for(entry, features), context):
        expected, expected_log_det = function(value, context)
        got, got_log_det = getattr(single, function.__name__)(
            value.float(), None if context is None else context.float()
        )
        assert got.dtype == got_log_det.dtype == torch.float32
        assert_same(entry, got, expected, 1e-4)
        assert_close(got_log_det, expected_log_det, 1e-4)


@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3)], ids=str)
@cases(features=(1, 3))
def test_batch_shapes(entry: Entry, features: int, context_features: int, batch: tuple[int, ...]) -> None:
    layer, z, context = (
        entry(features, context_features),
        noise_for(entry, features, batch),
        context_for(context_features, batch),
    )
    for function, value in both_directions(layer, z, context):
        mapped, log_det = function(value, context)
        assert mapped.shape == value.shape
        assert log_det.shape == batch
        for index in torch.cartesian_prod(*map(torch.arange, batch)).view(-1, len(batch)).tolist() if batch else []:
            row = None if context is None else context[tuple(index)]
            alone, alone_log_det = function(value[tuple(index)], row)
            assert_same(entry, mapped[tuple(index)], alone, 1e-10)
            assert_close(log_det[tuple(index)], alone_log_det, 1e-10)


@cases(features=(3,), contexts=(0,))
def test_strided_values(entry: Entry, features: int, context_features: int) -> None:
    """Views of other tensors give the same numbers, and are left alone."""
    layer, z = entry(features, context_features), noise_for(entry, features, (4, 5))
    for function in (layer.forward, layer.inverse):
        expected = function(z)
        wide = torch.stack([z, z + 1], -1)
        for view in (z.mT.contiguous().mT, wide[..., 0], z.transpose(0, 1).contiguous().transpose(0, 1)):
            before = view.clone()
            mapped, log_det = function(view)
            assert_same(entry, mapped, expected[0], 1e-12)
            assert_close(log_det, expected[1], 1e-12)
            assert torch.equal(view, before)
        repeated, log_det = function(z[:1, :1].expand(4, 5, -1))
        assert_same(entry, repeated, expected[0][:1, :1].expand(4, 5, -1), 1e-12)
        assert_close(log_det, expected[1][:1, :1].expand(4, 5), 1e-12)


# Near zero, moderate, at the splines' bound and at their inner knots as built (bins=4), and far and farther out.
HARD = [1e-6, 1e-3, 1.0, 2.5, 5.0, math.pi / 2, math.pi, 30.0, 1e3, 1e6]


@DTYPES
@pytest.mark.parametrize("perturbed", [False, True], ids=["as built", "perturbed"])
@cases(features=(1, 3))
def test_values_and_gradients_are_finite(
    entry: Entry, features: int, context_features: int, perturbed: bool, dtype: torch.dtype
) -> None:
    layer = entry(features, context_features, dtype=dtype, perturbed=perturbed)
    values = torch.tensor([sign * value for value in HARD for sign in (1, -1)] + [0.0], dtype=dtype)
    rows = torch.cat([values[:, None].expand(-1, features), torch.eye(features, dtype=dtype) * 1e6])
    context = context_for(context_features, (len(rows),), dtype)
    for function in (layer.forward, layer.inverse):
        value = rows.clone().requires_grad_()
        mapped, log_det = function(value, context)
        assert torch.isfinite(mapped).all()
        assert torch.isfinite(log_det).all()
        for result in (mapped.sum(), log_det.sum()):
            if not result.requires_grad:
                continue
            inputs = [value, *layer.parameters()]
            for gradient in torch.autograd.grad(result, inputs, retain_graph=True, allow_unused=True):
                assert gradient is None or torch.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])
def test_fitted_marginal_at_its_knots(dtype: torch.dtype) -> None:
    layer = LAYERS["marginal, fitted"](4, dtype=dtype)
    for function, value in ((layer.inverse, layer.knots_x), (layer.forward, layer.knots_z)):
        matrix = jacobian(lambda v: function(v)[0], value)  # noqa: B023
        log_det = function(value)[1]
        assert torch.isfinite(log_det).all()
        assert_close(torch.linalg.slogdet(matrix).logabsdet, log_det, TOLERANCE[dtype])


@pytest.mark.parametrize("features", [1, 2, 3])
def test_fitted_marginal_has_a_continuous_slope(features: int) -> None:
    """At the knots, where the tails begin, and where they go over into straight lines."""
    layer = LAYERS["marginal, fitted"](features)
    z = torch.arange(-40, 40, 1e-3, dtype=torch.float64)
    for j in range(features):
        rows = torch.zeros(len(z), features, dtype=torch.float64)
        rows[:, j] = z
        assert layer(rows)[1].diff().abs().max() < 0.1


@pytest.mark.parametrize("name", [name for name, entry in LAYERS.items() if entry.identity is not None])
def test_identity_as_built(name: str) -> None:
    entry = LAYERS[name]
    for features in FEATURES:
        for context_features in (0, 2) if entry.takes_context else (0,):
            layer = entry(features, context_features, perturbed=False)
            value = noise_for(entry, features, (64,)).clamp(-3, 3)
            context = context_for(context_features, (64,))
            for function in (layer.forward, layer.inverse):
                mapped, log_det = function(value, context)
                assert distance(entry, mapped, value).max() <= entry.identity
                assert log_det.abs().max() <= entry.identity * features


@cases(features=(2,))
def test_perturbed_is_not_the_identity(entry: Entry, features: int, context_features: int) -> None:
    """Without this the other tests might check nothing."""
    layer, z, context = entry(features, context_features), noise_for(entry, features), context_for(context_features)
    for function in (layer.forward, layer.inverse):
        moved = distance(entry, function(z, context)[0], z).amax(0) > 1e-2
        fixed = isinstance(layer, Permutation | ActNorm | Whitening | Marginal) and entry.identity is not None
        assert moved.any() or fixed or isinstance(layer, Permutation)
        if context is not None:
            assert not torch.allclose(function(z, context)[0], function(z, -context)[0])


@cases(features=(2,))
def test_save_and_load(entry: Entry, features: int, context_features: int, tmp_path: Path) -> None:
    layer, z, context = entry(features, context_features), noise_for(entry, features), context_for(context_features)
    flowlab.save(layer, tmp_path / "layer.flow")
    loaded = flowlab.load(tmp_path / "layer.flow")
    assert type(loaded) is type(layer)
    for function, value in both_directions(layer, z, context):
        for got, expected in zip(
            getattr(loaded, function.__name__)(value, context), function(value, context), strict=True
        ):
            assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"]
)
@cases(features=(3,))
def test_copies_after_use(entry: Entry, features: int, context_features: int, duplicate: Callable) -> None:
    layer, z, context = entry(features, context_features), noise_for(entry, features), context_for(context_features)
    value = z.clone().requires_grad_()
    for function in (layer.forward, layer.inverse):
        mapped, log_det = function(value, context)
        (mapped.sum() + log_det.sum()).backward()
    twin = duplicate(layer)
    before = (layer(z, context), layer.inverse(z, context))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(1.0)  # the copy shares nothing with the original
    for got, expected in zip((twin(z, context), twin.inverse(z, context)), before, strict=True):
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@cases(features=(1, 3))
def test_vmap_and_jacrev(entry: Entry, features: int, context_features: int) -> None:
    layer, z = entry(features, context_features), noise_for(entry, features, (6,))
    context = context_for(context_features, (6,))
    for function, value in both_directions(layer, z, context):
        inputs = (value,) if context is None else (value, context)
        mapped, log_det = torch.func.vmap(function)(*inputs)
        expected, expected_log_det = function(value, context)
        assert_same(entry, mapped, expected, 1e-9)
        assert_close(log_det, expected_log_det, 1e-9)
        matrix = torch.func.vmap(torch.func.jacrev(lambda *given: function(*given)[0]))(*inputs)  # noqa: B023
        assert_close(matrix, jacobian(lambda v: function(v, context)[0], value), 1e-8)  # noqa: B023


# Tracing all steps of a numerical inverse takes a while: the mixture has one feature, and is in one kind of layer.
# Residual networks are compiled with the affine map alone.
COMPILED = [
    name
    for name, entry in LAYERS.items()
    if not (entry.numeric and any(part in name for part in ("residual", "autoregressive", "steps")))
    if "residual" not in name or "affine" in name
]


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_without_graph_breaks(name: str) -> None:
    entry = LAYERS[name]
    features = 1 if name.endswith("mixture") else 2
    layer, z = entry(features), noise_for(entry, features)
    for function, value in both_directions(layer, z):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        mapped, log_det = compiled(value)
        expected, expected_log_det = function(value)
        assert_same(entry, mapped, expected, 1e-9)
        assert_close(log_det, expected_log_det, 1e-9)


def integral(flow: flowlab.Flow, count: int, circular: bool) -> float:
    """∫ p(x) dx by the midpoint rule: even steps on the circle, else steps that grow like sinh with the distance."""
    middle = torch.arange(count, dtype=torch.float64) + 0.5
    if circular:
        axes = [-math.pi + 2 * math.pi / count * middle] * flow.features
        steps = [torch.full_like(middle, 2 * math.pi / count)] * flow.features
    else:
        t = 16 * (2 * middle / count - 1)
        low, centre, high = flow.sample((1001,), generator=torch.Generator().manual_seed(5)).quantile(
            torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), 0
        )
        axes = [c + s * t.sinh() for c, s in zip(centre, high - low, strict=True)]
        steps = [s * t.cosh() * 32 / count for s in high - low]
    points = torch.cartesian_prod(*axes).view(-1, flow.features)
    volumes = torch.cartesian_prod(*steps).view(-1, flow.features).prod(-1)
    with torch.no_grad():
        return float((flow.log_prob(points).exp() * volumes).sum())


@pytest.mark.parametrize("features", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_density_integrates_to_one(name: str, features: int) -> None:
    entry = LAYERS[name]
    total = integral(flow_of(entry, entry(features)), {1: 20_000, 2: 700}[features], entry.circular)
    assert total == pytest.approx(1, abs=1e-3)


@cases(features=(1, 3))
def test_one_pass_density_is_that_of_the_samples(
    entry: Entry, features: int, context_features: int, generator: torch.Generator
) -> None:
    flow = flow_of(entry, entry(features, context_features))
    context = context_for(context_features, (4,))
    x, log_prob = flow.rsample_and_log_prob((25,), context, generator=generator)
    assert x.shape[:-1] == log_prob.shape == ((25,) if context is None else (25, 4))
    assert_close(log_prob, flow.log_prob(x, context), 1e-8)


@pytest.mark.parametrize("name", [name for name, entry in LAYERS.items() if entry.identity == 1e-6])
def test_untrained_flow_is_its_base(name: str) -> None:
    entry = LAYERS[name]
    flow = flow_of(entry, entry(3, perturbed=False))
    value = noise_for(entry, 3, (50,))
    assert_close(flow.log_prob(value), flow.base.log_prob(value), 1e-6)
    assert_same(
        entry,
        flow.sample((50,), generator=torch.Generator().manual_seed(0)),
        flow.base.sample((50,), torch.Generator().manual_seed(0)),
        1e-6,
    )
