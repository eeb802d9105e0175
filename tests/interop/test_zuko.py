"""Flows converted from zuko give zuko's numbers."""

import copy
import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("zuko", reason="pip install flowlab[zuko]")

from flowlab.interop.zuko import ConversionError, convert  # isort: skip  # first, since it guards torch from zuko's import

import zuko
from zuko.flows import GF, MAF, NAF, NCSF, NICE, NSF, RealNVP
from zuko.lazy import Flow as Theirs
from zuko.lazy import UnconditionalDistribution, UnconditionalTransform
from zuko.transforms import AdditiveTransform, MonotonicAffineTransform, MonotonicRQSTransform, PermutationTransform

import flowlab
from flowlab import Flow, check_flow
from flowlab.layers import Autoregressive, Coupling

FEATURES, CONTEXT = 4, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
SMALL = {"hidden_features": (24, 24), "transforms": 2}
GRAPH = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)


def composed() -> Theirs:
    """Inverses, permutations and a learnable base, by hand."""
    first, second = MAF(FEATURES, **SMALL).transform.transforms
    order = torch.tensor([2, 0, 3, 1])
    parts = [first.inv, UnconditionalTransform(PermutationTransform, order, buffer=True), second]
    base = UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.full((FEATURES,), 0.2), torch.full((FEATURES,), 1.5)
    )
    return Theirs(parts, base)


MODELS: dict[str, Callable[[], Theirs]] = {
    "MAF": lambda: MAF(FEATURES, **SMALL),
    "MAF, context, random orders": lambda: MAF(FEATURES, CONTEXT, randperm=True, activation=nn.ELU, **SMALL),
    "MAF, two passes": lambda: MAF(FEATURES, CONTEXT, passes=2, **SMALL),
    "MAF, residual": lambda: MAF(FEATURES, CONTEXT, residual=True, activation=nn.Tanh, **SMALL),
    "MAF, residual, unlike widths": lambda: MAF(FEATURES, residual=True, hidden_features=(16, 24, 24), transforms=1),
    "MAF, no hidden layer": lambda: MAF(FEATURES, CONTEXT, hidden_features=(), transforms=2),
    "MAF, a graph": lambda: MAF(FEATURES, CONTEXT, adjacency=GRAPH, residual=True, **SMALL),
    "MAF, slope": lambda: MAF(FEATURES, univariate=functools.partial(MonotonicAffineTransform, slope=1e-2), **SMALL),
    "MAF, additive": lambda: MAF(FEATURES, univariate=AdditiveTransform, shapes=[()], **SMALL),
    "MAF, one feature": lambda: MAF(1, **SMALL),
    "NSF": lambda: NSF(FEATURES, **SMALL),
    "NSF, context, two passes": lambda: NSF(FEATURES, CONTEXT, passes=2, bins=5, slope=1e-2, **SMALL),
    "NSF, one feature, context": lambda: NSF(1, CONTEXT, **SMALL),
    "RealNVP": lambda: RealNVP(FEATURES, **SMALL),
    "RealNVP, context, normalised": lambda: RealNVP(FEATURES, CONTEXT, normalize=True, activation=nn.SiLU, **SMALL),
    "NICE, random masks": lambda: NICE(FEATURES, CONTEXT, randmask=True, **SMALL),
    "NICE, splines": lambda: NICE(
        FEATURES, univariate=functools.partial(MonotonicRQSTransform, bound=3.0), shapes=[(4,), (4,), (3,)], **SMALL
    ),
    "composed": composed,
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def rows(count: int, features: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Skewed, correlated rows and their contexts."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.empty(count, FEATURES, dtype=torch.float64).normal_(generator=generator)
    context = torch.empty(count, CONTEXT, dtype=torch.float64).normal_(generator=generator)
    x = torch.stack([z[:, 3] + context[:, 0], z[:, 1] + 0.5 * z[:, 0] ** 2, z[:, 2] * (z[:, 1] / 2).exp(), z[:, 0]], 1)
    return (x / 1.5).to(dtype)[:, :features], context.to(dtype)


def trained(name: str, dtype: torch.dtype, steps: int = 30) -> tuple[Theirs, int, bool]:
    """A model of zuko after a few steps of training, its width, and whether it takes a context."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().to(dtype)
        features = 1 if "one feature" in name else FEATURES
        x, context = rows(256, features, dtype)
        conditional = any(word in name for word in ("context", "two passes", "a graph", "no hidden", "random masks"))
        conditional = conditional or name == "MAF, residual"
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            (-model(context if conditional else None).log_prob(x).mean()).backward()
            optimizer.step()
    return model, features, conditional


@EVERY_DTYPE
@EVERY_MODEL
def test_converted_flows_give_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    model, features, conditional = trained(name, dtype)
    flow = convert(model)
    assert flow.dtype == dtype
    assert flow.context_features == (CONTEXT if conditional else 0)
    x, context = rows(200, features, dtype, seed=1)
    z = torch.empty(200, features, dtype=dtype).normal_(generator=torch.Generator().manual_seed(2))
    given = context if conditional else None
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    with torch.no_grad():
        theirs = model(given)
        torch.testing.assert_close(flow.log_prob(x, given), theirs.log_prob(x), **close)
        if flow.base.learnable:
            z = flow.base.loc + flow.base.log_scale.exp() * z
        torch.testing.assert_close(flow.to_noise(x, given), theirs.transform(x), **close)
        torch.testing.assert_close(flow.from_noise(z, given), theirs.transform.inv(z), **close)


@EVERY_MODEL
def test_converted_flows_are_flows(name: str, tmp_path: Any) -> None:
    """They pass the checks, are saved and loaded, copied, change their type, train, and leave the model as it was."""
    model, features, conditional = trained(name, torch.float64)
    before = copy.deepcopy(model.state_dict())
    flow = convert(model)
    generator = torch.Generator().manual_seed(0)
    check_flow(flow, draws=4000, generator=generator)
    flowlab.save(flow, tmp_path / "converted.flow")
    x, context = rows(200, features, torch.float64, seed=3)
    given = context if conditional else None
    for other in (flowlab.load(tmp_path / "converted.flow"), copy.deepcopy(flow), flow.float().double()):
        torch.testing.assert_close(other.log_prob(x, given), model(given).log_prob(x), rtol=1e-5, atol=1e-5)
    flow.rsample((5,), None if given is None else given[:2], generator=generator).sum().backward()
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in flow.parameters())
    flowlab.fit(flow, x, given, epochs=2, progress=False, generator=generator)
    assert bool(flow.log_prob(x, given).isfinite().all())
    assert all(bool((value == before[key]).all()) for key, value in model.state_dict().items())


def test_layers_are_couplings_and_autoregressive_layers() -> None:
    maf, nvp = convert(MAF(FEATURES, passes=2)), convert(RealNVP(FEATURES))
    assert all(isinstance(layer, Autoregressive) for layer in maf)
    assert all(isinstance(layer, Coupling) for layer in nvp)
    assert (maf.fast, nvp.fast) == ("density", "both")


def test_a_graph_needs_no_more_passes_than_its_depth() -> None:
    layer = next(iter(convert(MAF(FEATURES, adjacency=GRAPH, transforms=1))))
    assert layer.level.tolist() == [0, 1, 0, 1]


def test_importing_does_not_turn_off_torchs_validation() -> None:
    program = (
        "import torch, flowlab.interop.zuko\n"
        "try: torch.distributions.Normal(0.0, -1.0)\n"
        "except ValueError: print('raised')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "raised"


class Own(MAF):
    """A flow that computes something else than its parts."""

    def forward(self, c: Tensor | None = None) -> Any:
        flow = super().forward(c)
        flow.base = zuko.distributions.DiagNormal(torch.ones(FEATURES).double(), torch.ones(FEATURES).double())
        return flow


REFUSED: dict[str, tuple[Callable[[], Theirs], str]] = {
    "gaussianization": (lambda: GF(FEATURES), "transform 0 .*GaussianizationTransform.*no counterpart"),
    "neural": (lambda: NAF(FEATURES), r"transform 0 \(MaskedAutoregressiveTransform\): its univariate map \(MNN"),
    "circular": (lambda: NCSF(FEATURES), "base .BoxUniform."),
    "univariate": (
        lambda: MAF(FEATURES, univariate=zuko.transforms.SOSPolynomialTransform, shapes=[(2, 3), ()]),
        "transform 0 .MaskedAutoregressiveTransform.: its univariate map .SOSPolynomialTransform",
    ),
    "activation": (
        lambda: MAF(FEATURES, activation=nn.Mish),
        "transform 0 .MaskedAutoregressiveTransform.: the activation Mish",
    ),
    "in front": (
        lambda: Theirs([UnconditionalTransform(zuko.transforms.SoftclipTransform, 11.0)], MAF(FEATURES).base),
        "UnconditionalTransform of SoftclipTransform",
    ),
    "something else": (lambda: Own(FEATURES), "is off by a share"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_counterpart_is_named(name: str) -> None:
    build, message = REFUSED[name]
    with pytest.raises(ConversionError, match=message):
        convert(build())


def test_what_is_no_flow_is_named() -> None:
    with pytest.raises(TypeError, match="MaskedAutoregressiveTransform"):
        convert(MAF(FEATURES).transform.transforms[0])


def test_gradients_are_the_same() -> None:
    model, _, _ = trained("NSF", torch.float64)
    flow: Flow = convert(model)
    x, _ = rows(50, FEATURES, torch.float64)
    flow.log_prob(x).sum().backward()
    model.zero_grad()
    model().log_prob(x).sum().backward()
    theirs, ours = model.transform.transforms[0].hyper[0].weight, flow.layers[-1].network.linears[0].weight
    torch.testing.assert_close(ours.grad, theirs.grad)
    ours.grad = theirs.grad = None
    flow.from_noise(x)[:, 2].sum().backward()
    model().transform.inv(x)[:, 2].sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
