"""What torch offers for modules works for every preset.

Functional calls, autocast, meta tensors, parametrizations, copies and export are here.
Compilation, shapes and pickles are tested in test_flow.py, ONNX in interop/test_onnx.py.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import flowlab
from constructors import EVERY_PRESET, PRESETS, context_for, preset, rows
from flowlab import Flow
from flowlab.networks import Linear
from helpers import seeded

BOTH_CONTEXTS = pytest.mark.parametrize("context_features", [0, 2], ids=["alone", "context"])


def noise(flow: Flow, count: int = 6) -> Tensor:
    return flow.base.sample((count,), seeded(5)).detach()


def data(flow: Flow, context: Tensor | None, count: int = 6) -> Tensor:
    with torch.no_grad():
        return flow.from_noise(noise(flow, count), context)


# torch.func -------------------------------------------------------------------------------------------------------


@BOTH_CONTEXTS
@EVERY_PRESET
def test_vmap_is_the_batch(name: str, context_features: int) -> None:
    flow = preset(name, 2, layers=1, context_features=context_features)
    context = context_for(context_features, (6,))
    given = () if context is None else (context,)
    for method, value in ((flow.log_prob, data(flow, context)), (flow.from_noise, noise(flow))):
        torch.testing.assert_close(torch.func.vmap(method)(value, *given), method(value, *given))


@EVERY_PRESET
def test_jacobians_give_the_log_determinant(name: str) -> None:
    """jacrev of the whole flow, forwards and backwards, against its own log-determinants."""
    flow = preset(name, 2, layers=1)
    z = noise(flow)
    x, log_det = flow(z)
    jacobian = torch.func.vmap(torch.func.jacrev(flow.from_noise))(z)
    torch.testing.assert_close(jacobian.det().abs().log(), log_det, rtol=1e-8, atol=1e-8)
    jacobian = torch.func.vmap(torch.func.jacrev(flow.to_noise))(x.detach())
    torch.testing.assert_close(jacobian.det().abs().log(), -log_det, rtol=1e-8, atol=1e-8)


@EVERY_PRESET
def test_functional_call(name: str) -> None:
    """Other parameters without touching the module's, also an ensemble of them at once."""
    flow, other = preset(name, 2, layers=1), preset(name, 2, layers=1, perturbed=False)
    x = data(flow, None)
    state = {key: value.clone() for key, value in flow.state_dict().items()}

    def log_det(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(flow, parameters, (x,))[1]

    torch.testing.assert_close(log_det(dict(other.named_parameters())), other(x)[1])
    stacked, _ = torch.func.stack_module_state([flow, other])
    both = torch.func.vmap(log_det)({key: value.detach() for key, value in stacked.items()})
    torch.testing.assert_close(both, torch.stack([flow(x)[1], other(x)[1]]), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(value, state[key]) for key, value in flow.state_dict().items())


# Precision and devices --------------------------------------------------------------------------------------------


@EVERY_PRESET
def test_autocast(name: str) -> None:
    """Under bfloat16 autocast a flow computes as without: log-determinants do not survive half precision."""
    flow = preset(name, 2, layers=1, context_features=2).float()
    context = rows(6, 2).float()
    x = data(flow, context)
    expected = flow.log_prob(x, context)
    (gradient,) = torch.autograd.grad(expected.sum(), next(flow.parameters()), retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = flow.log_prob(x, context)
        drawn = flow.from_noise(noise(flow), context)
        sampled, log_prob = flow.rsample_and_log_prob((3,), context)
    assert found.dtype == drawn.dtype == sampled.dtype == log_prob.dtype == torch.float32
    assert bool(torch.isfinite(found).all() and torch.isfinite(log_prob).all())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(drawn, flow.from_noise(noise(flow), context))
    (same,) = torch.autograd.grad(found.sum(), next(flow.parameters()))
    torch.testing.assert_close(same, gradient)


@EVERY_PRESET
def test_inputs_of_half_precision_are_converted_by_whoever_has_them(name: str) -> None:
    flow = preset(name, 2, layers=1).float()
    x = data(flow, None).bfloat16()
    with pytest.raises(ValueError, match=r"x is torch.bfloat16, this flow takes torch.float32: convert x"):
        flow.log_prob(x)
    assert torch.isfinite(flow.log_prob(x.float())).all()


@EVERY_PRESET
def test_meta_device(name: str) -> None:
    """Built without memory, and filled from a state: by assignment, or after to_empty."""
    flow = preset(name, 3, layers=2, context_features=2)
    context, state = rows(6, 2), flow.state_dict()
    x = data(flow, context)
    for assign in (True, False):
        with torch.device("meta"):
            outline = PRESETS[name][0](3, hidden=(8,), layers=2, context_features=2)
        assert all(tensor.is_meta for tensor in outline.state_dict().values())
        assert f"{outline.features} features" in repr(outline)
        if not assign:
            outline = outline.double().to_empty(device="cpu")
        outline.load_state_dict(state, assign=assign)
        torch.testing.assert_close(outline.log_prob(x, context), flow.log_prob(x, context), rtol=0, atol=0)
        outline.log_prob(x, context).sum().backward()


@EVERY_PRESET
def test_shapes_on_the_meta_device(name: str) -> None:
    """Data without values give densities without values: for planning memory, and for torch's own tracers."""
    with torch.device("meta"):
        flow = PRESETS[name][0](3, hidden=(8,), layers=1)
    for method, shape in ((flow.log_prob, (6,)), (flow.from_noise, (6, 3))):
        found = method(torch.empty(6, 3, device="meta"))
        assert found.is_meta
        assert found.shape == shape


@EVERY_PRESET
def test_channels_of_types(name: str) -> None:
    """A flow follows .to(dtype) both ways, with its buffers; the context follows the flow."""
    flow = preset(name, 2, layers=1, context_features=2)
    x, context = data(flow, rows(6, 2)), rows(6, 2)
    expected = flow.log_prob(x, context)
    single = copy.deepcopy(flow).to(torch.float32)
    assert {t.dtype for t in single.state_dict().values() if t.is_floating_point()} == {torch.float32}
    torch.testing.assert_close(single.log_prob(x.float(), context).double(), expected, rtol=1e-4, atol=1e-3)
    assert single.sample((2,), context).dtype == torch.float32
    torch.testing.assert_close(single.double().log_prob(x, context), expected, rtol=1e-4, atol=1e-3)


# Parametrizations and copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parametrization", [parametrizations.weight_norm, parametrizations.spectral_norm])
@EVERY_PRESET
def test_parametrizations(name: str, parametrization) -> None:
    """Weight and spectral norm on every linear layer: densities follow, gradients reach the new parameters."""
    flow = preset(name, 2, layers=1, context_features=2)
    context = rows(6, 2)
    linears = [module for module in flow.modules() if isinstance(module, Linear) and module.weight.numel()]
    assert linears
    before = flow.log_prob(data(flow, context), context).detach()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for linear in linears:
            parametrization(linear)
    flow.eval()  # spectral norm goes on iterating in training
    x = data(flow, context)
    plain = preset(name, 2, layers=1, context_features=2)
    with torch.no_grad():  # not by removing them from a copy: torch would take them from the original, too
        others = [module for module in plain.modules() if isinstance(module, Linear) and module.weight.numel()]
        for linear, other in zip(linears, others, strict=True):
            assert parametrize.is_parametrized(linear, "weight")
            other.weight.copy_(linear.weight)
    torch.testing.assert_close(flow.log_prob(x, context), plain.log_prob(x, context))
    torch.testing.assert_close(flow.from_noise(noise(flow), context), plain.from_noise(noise(flow), context))
    if parametrization is parametrizations.weight_norm:
        torch.testing.assert_close(flow.log_prob(x, context).detach(), before)
    flow.log_prob(x, context).sum().backward()
    reached = [p.grad for p in linears[-1].parametrizations.weight.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in reached)
    restored = torch.func.functional_call(flow, dict(flow.named_parameters()), (noise(flow), context))[0]
    torch.testing.assert_close(restored, flow.from_noise(noise(flow), context))


def test_training_a_parametrized_flow() -> None:
    flow = preset("maf", 2, layers=1)
    for module in flow.modules():
        if isinstance(module, Linear):
            parametrizations.weight_norm(module)
    x = rows(200, 2) * 2 + 1
    before = flow.log_prob(x).mean()
    flowlab.fit(flow, x, epochs=5, progress=False, generator=seeded())
    assert flow.log_prob(x).mean() > before


@EVERY_PRESET
def test_deepcopy(name: str) -> None:
    """After use, in the middle of a graph, and of the distribution."""
    flow = preset(name, 2, layers=1, context_features=2)
    context = rows(6, 2)
    x = data(flow, context)
    flow.log_prob(x, context).sum().backward()
    flow.rsample((2,), context).sum().backward()
    twin, q = copy.deepcopy(flow), copy.deepcopy(flow.distribution(context))
    torch.testing.assert_close(twin.log_prob(x, context), flow.log_prob(x, context), rtol=0, atol=0)
    torch.testing.assert_close(q.log_prob(x), flow.log_prob(x, context), rtol=0, atol=0)
    theirs = {parameter.data_ptr() for parameter in flow.parameters() if parameter.numel()}
    assert not theirs & {parameter.data_ptr() for parameter in twin.parameters() if parameter.numel()}


# Export -----------------------------------------------------------------------------------------------------------


class Exported(nn.Module):
    def __init__(self, flow: Flow, method: str) -> None:
        super().__init__()
        self.flow, self.method = flow, method

    def forward(self, value: Tensor) -> Tensor:
        return getattr(self.flow, self.method)(value)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("real_nvp", "maf", "circular_nsf")])
def test_export(name: str) -> None:
    """torch.export takes both directions for a batch of any size, and the program runs without the flow.

    The other presets are in test_flow.py.
    """
    flow = preset(name, 2, layers=1)
    batch = torch.export.Dim("batch", min=2)
    for method in ("log_prob", "from_noise"):
        example, value = (data(flow, None, n) if method == "log_prob" else noise(flow, n) for n in (6, 9))
        program = torch.export.export(Exported(flow, method), (example,), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(program.module()(value), getattr(flow, method)(value), rtol=1e-9, atol=1e-9)
        assert len(program.graph.nodes) < 1000


def test_gradients_of_an_exported_root_search() -> None:
    """The loop in an exported program has the implicit function's gradient, as the search itself has."""
    flow = preset("planar", 2, layers=2)
    x = data(flow, None)
    program = torch.export.export(Exported(flow, "log_prob"), (x,))
    value = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(program.module()(value).sum(), value)
    (expected,) = torch.autograd.grad(flow.log_prob(value).sum(), value)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["iaf", "sylvester"])
def test_compiled_without_graph_breaks(name: str) -> None:
    """Both directions, besides the presets in test_flow.py."""
    flow = preset(name, 2, layers=1)
    for method, value in ((flow.log_prob, data(flow, None)), (flow.from_noise, noise(flow))):
        torch._dynamo.reset()
        compiled = torch.compile(method, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(value), method(value), rtol=1e-9, atol=1e-9)
