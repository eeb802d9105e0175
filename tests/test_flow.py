"""`Flow`: shapes, the checks at the door, copies, files and compilation."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowlab
from constructors import EVERY_PRESET, perturb, preset, rows, skewed
from flowlab import Flow
from flowlab.bases import Gaussian, StudentT
from flowlab.layers import (
    ActNorm,
    Autoregressive,
    Coupling,
    ElementwiseAffine,
    LULinear,
    Marginal,
    Permutation,
    Planar,
    Whitening,
)
from helpers import seeded

# Shapes ---------------------------------------------------------------------------------------------------------------


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


# The door -------------------------------------------------------------------------------------------------------------


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
        (lambda: Permutation(3, [0, 1, 3]), "permutation must be a permutation of 0"),
        (lambda: flowlab.layers.Householder(3, 3), "positive even number"),
        (lambda: flowlab.layers.Sylvester(3, 4), "directions must be between 1 and features = 3"),
    ],
)
def test_layers_refuse_arguments(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# Parameters, copies, files --------------------------------------------------------------------------------------------


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


# Initialisation -------------------------------------------------------------------------------------------------------


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


# Compiling a whole flow -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["glow", "nsf", "maf", "radial"])
def test_no_finite_row_has_a_log_density_of_nan(name):
    """Far out, in single precision, noise overflows: the density is zero there."""
    generator = torch.Generator().manual_seed(0)
    flow = getattr(flowlab.presets, name)(3, layers=3, hidden=8, generator=generator)
    x = 1e-20 * torch.randn(200, 3, generator=generator)
    flowlab.fit(flow, x, epochs=2, generator=generator, progress=False)
    far = torch.logspace(-30, 38, 60)[:, None] * torch.tensor([[1.0, -1.0, 0.5]])
    found = flow.log_prob(torch.cat([far, torch.full((1, 3), torch.inf)]))
    assert not bool(found.isnan().any())
    assert bool((found < torch.inf).all())
    assert float(found[-1]) == -torch.inf
    assert bool(flow.log_prob(torch.tensor([[torch.nan, 0.0, 0.0]])).isnan())
