"""nflows, both ways: converted flows give nflows' numbers, its transforms are layers, flows are its distributions."""

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("nflows", reason="pip install flowlab[nflows]")

from nflows import distributions, transforms
from nflows.distributions.uniform import BoxUniform
from nflows.flows import Flow as Theirs
from nflows.flows import MaskedAutoregressiveFlow, SimpleRealNVP
from nflows.nn.nets import MLP, ResidualNet
from nflows.transforms.normalization import BatchNorm
from nflows.transforms.orthogonal import HouseholderSequence

import flowlab
from flowlab import Flow, bases, check_flow, check_layer, layers
from flowlab.interop.nflows import ConversionError, convert, from_nflows, to_nflows
from flowlab.layers import Autoregressive, Coupling

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.triangular_solve"),
    pytest.mark.filterwarnings("ignore:torch.qr"),
    pytest.mark.filterwarnings("ignore:Use PointwiseAffineTransform"),
]
FEATURES, CONTEXT = 4, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def net(context: int | None = None, **options: Any) -> Callable[[int, int], nn.Module]:
    return lambda inputs, outputs: ResidualNet(inputs, outputs, 24, context_features=context, **options)


def chain(*parts: Any, features: int = FEATURES, base: Any = None) -> Theirs:
    base = distributions.StandardNormal([features]) if base is None else base
    return Theirs(transforms.CompositeTransform(list(parts)), base)


def masks(count: int) -> list[Tensor]:
    return [(torch.arange(FEATURES) + i) % 2 for i in range(count)]


def spline_coupling(mask: Tensor, context: int | None = None, **options: Any) -> nn.Module:
    return transforms.PiecewiseRationalQuadraticCouplingTransform(
        mask, net(context), num_bins=5, tails="linear", tail_bound=3.0, **options
    )


def autoregressive(context: int | None = None, **options: Any) -> nn.Module:
    return transforms.MaskedAffineAutoregressiveTransform(FEATURES, 24, context_features=context, **options)


def spline_autoregressive(context: int | None = None, **options: Any) -> nn.Module:
    return transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
        FEATURES, 24, context_features=context, num_bins=6, tails="linear", tail_bound=3.0, **options
    )


def pointwise() -> nn.Module:
    return transforms.PointwiseAffineTransform(shift=torch.tensor([0.1, -0.2, 0.3, 0.0]), scale=torch.tensor(0.7))


MODELS: dict[str, Callable[[], Theirs]] = {
    "RealNVP": lambda: SimpleRealNVP(FEATURES, 24, num_layers=3, num_blocks_per_layer=2),
    "RealNVP, batch norm between": lambda: SimpleRealNVP(
        FEATURES, 24, num_layers=2, num_blocks_per_layer=1, batch_norm_between_layers=True
    ),
    "NICE": lambda: SimpleRealNVP(FEATURES, 24, num_layers=3, num_blocks_per_layer=1, use_volume_preserving=True),
    "affine coupling, context": lambda: chain(
        *(transforms.AffineCouplingTransform(m, net(CONTEXT, activation=torch.tanh)) for m in masks(3))
    ),
    "spline coupling": lambda: chain(*(spline_coupling(m) for m in masks(3))),
    "spline coupling, context, unconditional": lambda: chain(
        *(spline_coupling(m, CONTEXT, apply_unconditional_transform=True) for m in masks(2))
    ),
    "MAF": lambda: MaskedAutoregressiveFlow(FEATURES, 24, num_layers=3, num_blocks_per_layer=2),
    "MAF, plain blocks, random masks": lambda: MaskedAutoregressiveFlow(
        FEATURES,
        24,
        num_layers=2,
        num_blocks_per_layer=2,
        use_residual_blocks=False,
        use_random_masks=True,
        use_random_permutations=True,
        batch_norm_between_layers=True,
    ),
    "MAF, context": lambda: chain(
        autoregressive(CONTEXT, activation=F.elu),
        transforms.ReversePermutation(FEATURES),
        autoregressive(CONTEXT, use_residual_blocks=False, dropout_probability=0.1),
    ),
    "spline autoregressive": lambda: chain(*(spline_autoregressive() for _ in range(3))),
    "spline autoregressive, context": lambda: chain(*(spline_autoregressive(CONTEXT) for _ in range(2))),
    "elementwise spline": lambda: chain(
        transforms.PiecewiseRationalQuadraticCDF([FEATURES], num_bins=4, tails="linear", tail_bound=2.0)
    ),
    "NSF with LU": lambda: chain(
        *(
            p
            for m in masks(2)
            for p in (transforms.RandomPermutation(FEATURES), transforms.LULinear(FEATURES), spline_coupling(m))
        )
    ),
    "Glow": lambda: chain(
        *(
            p
            for m in masks(2)
            for p in (
                transforms.ActNorm(FEATURES),
                transforms.LULinear(FEATURES),
                transforms.AffineCouplingTransform(m, net()),
            )
        )
    ),
    "linear maps": lambda: chain(
        transforms.QRLinear(FEATURES, 2),
        pointwise(),
        transforms.SVDLinear(FEATURES, 4),
        transforms.IdentityTransform(),
        HouseholderSequence(FEATURES, 2),
        transforms.LULinear(FEATURES, identity_init=False),
    ),
    "inverses in compositions": lambda: chain(
        transforms.InverseTransform(transforms.CompositeTransform([autoregressive(), transforms.LULinear(FEATURES)])),
        transforms.CompositeTransform([transforms.InverseTransform(spline_coupling(masks(1)[0])), BatchNorm(FEATURES)]),
    ),
    "learnable base": lambda: chain(autoregressive(), base=distributions.DiagonalNormal([FEATURES])),
    "base of a context": lambda: chain(
        pointwise(),
        transforms.LULinear(FEATURES),
        base=distributions.ConditionalDiagonalNormal([FEATURES], nn.Linear(CONTEXT, 2 * FEATURES)),
    ),
    "base of a context, network": lambda: chain(
        autoregressive(CONTEXT),
        base=distributions.ConditionalDiagonalNormal([FEATURES], MLP([CONTEXT], [2 * FEATURES], [8, 9])),
    ),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def rows(count: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Skewed, correlated rows and their contexts."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.empty(count, FEATURES, dtype=torch.float64).normal_(generator=generator)
    context = torch.empty(count, CONTEXT, dtype=torch.float64).normal_(generator=generator)
    x = torch.stack(
        [z[:, 0], z[:, 1] + 0.5 * z[:, 0] ** 2 - 0.5, z[:, 2] * (z[:, 1] / 2).exp(), z[:, 3] + context[:, 0]], 1
    )
    return (x / 1.5).to(dtype), context.to(dtype)


def needs_context(model: nn.Module) -> bool:
    return any(
        getattr(m, "context_features", None) or hasattr(m, "context_layer") for m in model.modules()
    ) or isinstance(model._distribution, distributions.ConditionalDiagonalNormal)


def trained(name: str, dtype: torch.dtype, steps: int = 30) -> Theirs:
    """A model of nflows after a few steps of training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().to(dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        x, context = rows(256, dtype)
        for _ in range(steps):
            optimizer.zero_grad()
            (-model.log_prob(x, context if needs_context(model) else None).mean()).backward()
            optimizer.step()
    return model.eval()


def compare(flow: Flow, model: Theirs, dtype: torch.dtype) -> None:
    x, context = rows(200, dtype, seed=1)
    given = context if needs_context(model) else None
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    with torch.no_grad():
        torch.testing.assert_close(flow.log_prob(x, given), model.log_prob(x, given).to(dtype), **close)
        z = torch.empty(200, FEATURES, dtype=dtype).normal_(generator=torch.Generator().manual_seed(2))
        noise = model.transform_to_noise(x, given)
        drawn = model._transform.inverse(z, given)[0]
        if isinstance(model._distribution, distributions.ConditionalDiagonalNormal):
            mean, log_std = model._distribution._compute_params(given)
            noise, drawn = (noise - mean) / log_std.exp(), model._transform.inverse(mean + log_std.exp() * z, given)[0]
        elif isinstance(model._distribution, distributions.DiagonalNormal):
            return
        torch.testing.assert_close(flow.to_noise(x, given), noise, **close)
        torch.testing.assert_close(flow.from_noise(z, given), drawn, **close)


@EVERY_DTYPE
@EVERY_MODEL
def test_converted_flows_give_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    model = trained(name, dtype)
    flow = convert(model)
    assert flow.dtype == dtype
    assert flow.context_features == (CONTEXT if needs_context(model) else 0)
    compare(flow, model, dtype)


@EVERY_MODEL
def test_converted_flows_are_flows(name: str, tmp_path: Any) -> None:
    """They pass the checks, are saved and loaded, copied, change their type, train, and leave the model as it was."""
    model = trained(name, torch.float64)
    before = copy.deepcopy(model.state_dict())
    given = rows(50, torch.float64)[1] if needs_context(model) else None
    flow = convert(model)
    generator = torch.Generator().manual_seed(0)
    check_flow(flow, draws=4000, generator=generator)
    flowlab.save(flow, tmp_path / "converted.flow")
    for other in (flowlab.load(tmp_path / "converted.flow"), copy.deepcopy(flow), flow.float().double()):
        x, _ = rows(50, torch.float64, seed=3)
        torch.testing.assert_close(other.log_prob(x, given), model.log_prob(x, given), rtol=1e-5, atol=1e-5)
    drawn = flow.rsample((5,), None if given is None else given[:2], generator=generator)
    drawn.sum().backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in flow.parameters())
    x, context = rows(256, torch.float64)
    given = context if flow.context_features else None
    flowlab.fit(flow, x, given, epochs=2, progress=False, generator=generator)
    assert bool(flow.log_prob(x, given).isfinite().all())
    assert all(bool((value == before[key]).all()) for key, value in model.state_dict().items())


def test_layers_are_couplings_and_autoregressive_layers() -> None:
    kinds = {type(layer) for layer in convert(trained("inverses in compositions", torch.float64, steps=1))}
    assert any(issubclass(kind, layers.ElementwiseAffine) for kind in kinds)
    assert isinstance(next(iter(convert(trained("spline coupling", torch.float64, steps=1)))), Coupling)
    maf = convert(trained("MAF", torch.float64, steps=1))
    assert isinstance(next(iter(maf)), Autoregressive)
    assert maf.fast == "density"


def test_large_inputs_are_not_tamed() -> None:
    """flowlab's own conditioners squeeze what lies beyond 100; a converted one must not."""
    model = trained("MAF, context", torch.float64, steps=1)
    x, context = rows(50, torch.float64)
    torch.testing.assert_close(
        convert(model).log_prob(x, 1e4 * context), model.log_prob(x, 1e4 * context), rtol=1e-10, atol=1e-10
    )


def test_what_was_cached_or_not_initialised() -> None:
    model = chain(transforms.LULinear(FEATURES, using_cache=True), transforms.ActNorm(FEATURES)).eval()
    x, _ = rows(50, torch.float32)
    model.log_prob(x)
    flow = convert(model)
    torch.testing.assert_close(flow.log_prob(x), model.log_prob(x).float())
    assert not flow.layers[0].initialised  # `fit` will do it


def test_gradients_are_the_same() -> None:
    """Of the log-density in the weights of an autoregressive model, and of a draw in one of them."""
    model = trained("MAF", torch.float64)
    flow = convert(model)
    x, _ = rows(50, torch.float64)
    flow.log_prob(x).sum().backward()
    model.zero_grad()
    model.log_prob(x).sum().backward()
    theirs = model._transform._transforms[1].autoregressive_net.initial_layer.weight
    ours = flow.layers[-2].network.linears[0].weight
    torch.testing.assert_close(ours.grad, theirs.grad)
    ours.grad = theirs.grad = None
    flow.from_noise(x)[:, 2].sum().backward()
    model._transform.inverse(x)[0][:, 2].sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("name", ["spline coupling, context, unconditional", "MAF, context"])
def test_converted_flows_compile_and_transform(name: str) -> None:
    """As a whole graph, and under torch.func: Jacobians of the slow direction."""
    flow = convert(trained(name, torch.float64, steps=2))
    x, context = rows(6, torch.float64)
    for function in (flow.log_prob, flow.from_noise):
        compiled = torch.compile(function, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, context), function(x, context))
    jacobian = torch.func.vmap(torch.func.jacrev(flow.from_noise))(x, context)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, flow(x, context)[1])


def test_a_box_as_base(monkeypatch: pytest.MonkeyPatch) -> None:
    spline = transforms.PiecewiseRationalQuadraticCDF([FEATURES], tails="linear", tail_bound=1.0)
    model = chain(spline, base=BoxUniform(-torch.ones(FEATURES), torch.ones(FEATURES)))
    # nflows asks its base for a context, which this one, a distribution of torch's, does not take.
    own = BoxUniform.log_prob
    monkeypatch.setattr(BoxUniform, "log_prob", lambda self, value, context=None: own(self, value))
    flow = convert(model)
    x = rows(50, torch.float32)[0].tanh()
    torch.testing.assert_close(flow.log_prob(x), model.log_prob(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConversionError, match="sides of unlike lengths"):
        convert(chain(spline, base=BoxUniform(-torch.ones(FEATURES), torch.arange(1.0, FEATURES + 1))))


class Own(transforms.AffineCouplingTransform):
    def _scale_and_shift(self, params: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift = super()._scale_and_shift(params)
        return scale * 2, shift


REFUSED: dict[str, tuple[Callable[[], Theirs], str]] = {
    "unknown": (
        lambda: chain(pointwise(), transforms.LeakyReLU()),
        r"transform 1 \(LeakyReLU\) has no counterpart.*wrap=True",
    ),
    "nested": (
        lambda: chain(transforms.CompositeTransform([pointwise(), transforms.InverseTransform(transforms.LogTanh())])),
        r"transform 0\.1 \(LogTanh\)",
    ),
    "cubic": (lambda: chain(transforms.PiecewiseCubicCDF([FEATURES])), "PiecewiseCubicCDF"),
    "no tails": (lambda: chain(transforms.PiecewiseRationalQuadraticCDF([FEATURES])), "tails=None"),
    "own network": (
        lambda: chain(transforms.AffineCouplingTransform(masks(1)[0], lambda i, o: nn.Linear(i, o))),
        r"its network \(Linear\)",
    ),
    "subclass": (lambda: chain(Own(masks(1)[0], net())), r"transform 0 \(Own\)"),
    "batch norm": (lambda: chain(autoregressive(use_batch_norm=True)), "batch normalisation inside"),
    "activation": (lambda: chain(autoregressive(activation=lambda x: x)), "activation <lambda>"),
    "odd reflections": (lambda: chain(HouseholderSequence(FEATURES, 3)), "3 reflections"),
    "base": (
        lambda: chain(base=distributions.ConditionalIndependentBernoulli([FEATURES])),
        "ConditionalIndependentBernoulli",
    ),
    "image": (lambda: chain(base=distributions.StandardNormal([3, 8, 8])), "over vectors"),
    "encoder": (lambda: chain(base=distributions.ConditionalDiagonalNormal([FEATURES])), "context_encoder"),
    "embedding": (
        lambda: Theirs(autoregressive(CONTEXT), distributions.StandardNormal([FEATURES]), nn.Linear(9, CONTEXT)),
        "embedding_net",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_named(name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises(ConversionError, match=message):
        convert(build())


def test_what_is_no_flow_is_named() -> None:
    with pytest.raises(TypeError, match="LULinear: use from_nflows"):
        convert(transforms.LULinear(3))
    with pytest.raises(TypeError, match="Linear"):
        from_nflows(nn.Linear(3, 3), 3)
    with pytest.raises(TypeError, match="Linear"):
        to_nflows(nn.Linear(3, 3))


def test_a_model_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("RealNVP", torch.float64, steps=1)
    monkeypatch.setattr(
        transforms.AffineCouplingTransform,
        "_scale_and_shift",
        lambda self, params: (
            torch.full_like(params[:, : self.num_transform_features], 3.0),
            params[:, self.num_transform_features :],
        ),
    )
    with pytest.raises(ConversionError, match="is off by a share"):
        convert(model)


def test_wrapping_keeps_the_rest() -> None:
    model = chain(transforms.LeakyReLU(0.5), spline_coupling(masks(1)[0], CONTEXT), Own(masks(1)[0], net(CONTEXT)))
    flow = convert(model, wrap=True)
    x, context = rows(50, torch.float32)
    torch.testing.assert_close(flow.log_prob(x, context), model.log_prob(x, context).float(), rtol=1e-5, atol=1e-5)
    assert [type(layer).__name__ for layer in flow] == ["NflowsLayer", "ConvertedCoupling", "NflowsLayer"]
    with pytest.raises(TypeError, match="NflowsLayer"):
        flowlab.save(flow, "nowhere.flow")


# Wrapping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "context"),
    [
        (lambda: transforms.CompositeTransform([spline_coupling(masks(1)[0]), transforms.LULinear(FEATURES)]), 0),
        (lambda: spline_coupling(masks(1)[0], CONTEXT), CONTEXT),
        (lambda: autoregressive(CONTEXT), CONTEXT),
        (lambda: transforms.InverseTransform(autoregressive()), 0),
        (transforms.LeakyReLU, 0),
        (lambda: transforms.CompositeCDFTransform(transforms.Sigmoid(), transforms.PiecewiseLinearCDF([FEATURES])), 0),
    ],
    ids=["composite", "coupling", "autoregressive", "inverse", "elementwise", "cdf"],
)
def test_transforms_are_layers(build: Callable[[], nn.Module], context: int) -> None:
    torch.manual_seed(0)
    transform = build()
    for parameter in transform.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    layer = from_nflows(transform.float(), FEATURES, context)
    near = torch.randn(16, FEATURES)  # nflows' Sigmoid clamps what is further out
    check_layer(layer, near, generator=torch.Generator().manual_seed(0))
    flow = Flow(bases.Gaussian(FEATURES), [layer])
    x, given = rows(6, torch.float32)
    given = given if context else None
    shaped = flow.log_prob(x.view(2, 3, FEATURES), None if given is None else given.view(2, 3, CONTEXT))
    model = Theirs(transform, distributions.StandardNormal([FEATURES]))
    torch.testing.assert_close(shaped.flatten(), model.log_prob(x, given).float())
    broadcast = flow.log_prob(x.view(2, 3, FEATURES), None if given is None else given[0])
    assert broadcast.shape == (2, 3)
    assert flow.fast == {"autoregressive": "density"}.get(type(transform).__name__, layer.fast)


@pytest.mark.parametrize("context_features", [0, CONTEXT])
def test_flows_are_distributions_of_nflows(context_features: int) -> None:
    generator = torch.Generator().manual_seed(0)
    flow = flowlab.presets.nsf(FEATURES, context_features=context_features, layers=2, hidden=(8,), generator=generator)
    theirs = to_nflows(flow)
    assert isinstance(theirs, distributions.Distribution)
    assert dict(theirs.named_parameters()).keys() == {f"flow.{name}" for name, _ in flow.named_parameters()}
    x, context = rows(6, torch.float32)
    given = context if context_features else None
    torch.testing.assert_close(theirs.log_prob(x, given), flow.log_prob(x, given))
    torch.testing.assert_close(theirs.transform_to_noise(x, given), flow.to_noise(x, given))
    lead = (6,) if context_features else ()
    for size in (None, 2, 3, 7):
        assert theirs.sample(7, context=given, batch_size=size).shape == (*lead, 7, FEATURES)
    drawn, log_prob = theirs.sample_and_log_prob(7, context=given)
    assert drawn.shape == (*lead, 7, FEATURES)
    assert log_prob.shape == (*lead, 7)
    again = flow.log_prob(drawn, None if given is None else given.unsqueeze(1))
    torch.testing.assert_close(log_prob, again, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="Number of input items"):
        theirs.log_prob(x, torch.zeros(5, CONTEXT))
    for count in (0, -1, 2.5):
        for draw in (theirs.sample, theirs.sample_and_log_prob):
            with pytest.raises(TypeError, match="positive integer"):
                draw(count, context=given)


def test_a_context_that_a_flow_does_not_take_counts_draws() -> None:
    """As in nflows, whose own tests ask for it; rows and contexts may be arrays there."""
    model = Theirs(pointwise(), distributions.StandardNormal([FEATURES]))
    ours, context = to_nflows(convert(model)), torch.zeros(6, CONTEXT)
    x, _ = rows(6, torch.float32)
    for theirs in (model, ours):
        assert theirs.log_prob(x.numpy(), context.numpy()).shape == (6,)
        assert theirs.sample(5, context).shape == (6, 5, FEATURES)
        drawn, log_prob = theirs.sample_and_log_prob(5, context)
        torch.testing.assert_close(log_prob.flatten(), theirs.log_prob(drawn.flatten(0, 1)))
        assert theirs.transform_to_noise(x, torch.zeros(9, CONTEXT)).shape == x.shape
    torch.testing.assert_close(ours.log_prob(x, context), model.log_prob(x, context))


@pytest.mark.parametrize("name", ["Glow", "spline coupling, context, unconditional", "MAF, context", "linear maps"])
def test_layers_are_transforms_of_nflows(name: str) -> None:
    """Converted layers in nflows' compositions, inverses and flows give its numbers and pass its tests."""
    model = trained(name, torch.float64)
    own = [to_nflows(layer) for layer in reversed(list(convert(model)))]
    composed = transforms.CompositeTransform(own)
    x, context = rows(20, torch.float64)
    for ours, theirs in ((composed, model._transform), (composed.inverse, model._transform.inverse)):
        for found, expected in zip(ours(x, context), theirs(x, context if needs_context(model) else None)):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    there_and_back = transforms.CompositeTransform([transforms.InverseTransform(composed), composed])
    again, log_det = there_and_back(x, context)
    torch.testing.assert_close(again, x, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), rtol=0, atol=1e-8)
    jacobian = torch.autograd.functional.jacobian(lambda row: composed(row, context[:1])[0], x[:1])[0, :, 0]
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, composed(x[:1], context[:1])[1][0])
    flow = Theirs(composed, distributions.StandardNormal([FEATURES]).double())
    torch.testing.assert_close(flow.log_prob(x, context), model.log_prob(x, context if needs_context(model) else None))


def test_a_flow_is_the_base_of_one_of_nflows() -> None:
    """With transforms of nflows on top, and there and back: the wrapped transform in a flow in a distribution."""
    transform = transforms.LULinear(FEATURES, identity_init=False)
    flow = flowlab.presets.real_nvp(FEATURES, layers=2, hidden=(8,), generator=torch.Generator().manual_seed(0))
    stacked = Theirs(transform, to_nflows(flow))
    x, _ = rows(6, torch.float32)
    same = to_nflows(Flow(flow.base, [*flow, from_nflows(transform, FEATURES)]))
    torch.testing.assert_close(stacked.log_prob(x), same.log_prob(x))
    assert stacked.sample(5).shape == (5, FEATURES)
    with pytest.raises(TypeError, match="mixture"):
        to_nflows(flowlab.FlowMixture([flow])).transform_to_noise(x)


def test_a_converted_flow_loads_without_nflows(tmp_path: Any) -> None:
    path = tmp_path / "converted.flow"
    flow = convert(trained("NSF with LU", torch.float32, steps=1))
    flowlab.save(flow, path)
    program = f"""
import sys
sys.modules["nflows"] = sys.modules["zuko"] = None
import torch, flowlab
print(float(flowlab.load({str(path)!r}).log_prob(torch.zeros(4))))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(float(flow.log_prob(torch.zeros(FEATURES)).detach()), abs=1e-5)
