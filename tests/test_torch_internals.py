"""torch's private functions: where one is missing, its public fallback gives the same result."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

import flowlab
from flowlab import torch_internals as internals
from helpers import seeded

PRIVATE = {
    name: value
    for name, value in vars(internals).items()
    if name.startswith("_") and not name.startswith("__") and name.islower() and type(value).__name__ != "function"
}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@pytest.fixture
def public(monkeypatch) -> None:
    """A torch without any of its private functions."""
    for name, value in PRIVATE.items():
        monkeypatch.setattr(internals, name, False if isinstance(value, bool) else None)
    monkeypatch.setattr(internals, "_scan", lambda: None)


def test_this_torch_has_all_of_them():
    assert len(PRIVATE) == 17
    optional = "_linear_pointwise", "_has_exporting_flag"  # not every processor and every version has these
    assert all(value or name in optional for name, value in PRIVATE.items())


def test_no_other_module_calls_private_functions_of_torch():
    words = r"torch\._|torch\._C|_functorch|forward_ad\._|ops\.mkldnn|_backward\.grad_input|_is_exporting_flag"
    root = Path(flowlab.__file__).parent
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(words, line.split("#")[0]) and path.name != "torch_internals.py"
    ]
    assert not found


# Who looks on -------------------------------------------------------------------------------------------------------


def seen(look) -> list[bool]:
    """What a look says outside of everything, and inside of each transformation of torch.func."""
    inside: list[bool] = []

    def function(x: Tensor) -> Tensor:
        inside.append(look())
        return x.square().sum()

    x = numbers(3)
    inside.append(look())
    torch.func.grad(function)(x)
    torch.func.vmap(function)(numbers(2, 3))
    torch.func.jvp(function, (x,), (x,))
    torch.func.jacrev(function)(x)
    with forward_ad.dual_level():
        inside.append(look())
    inside.append(look())
    return inside


@pytest.mark.parametrize("look", [internals.functorch_active, internals.forward_mode_active])
def test_transformations_are_seen_without_private_functions(look, request):
    expected = seen(look)
    assert True in expected
    assert expected[0] is expected[-1] is False
    request.getfixturevalue("public")
    assert seen(look) == expected


def test_batches_of_gradients_are_seen_without_private_functions(public):
    found: list[bool] = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            found.append(internals.is_batch_of_gradients(grad))
            return 2 * grad

    x = numbers(3).requires_grad_()
    y = Watched.apply(x)
    torch.autograd.grad(y, x, torch.ones(3), retain_graph=True)
    torch.autograd.grad(y, x, torch.eye(3), is_grads_batched=True)
    assert found == [False, True]


def test_autocast_is_seen_without_private_functions(public):
    assert not internals.any_autocast_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        assert internals.any_autocast_enabled()


def test_exports_are_seen_without_private_functions(public):
    class Looks(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if internals.exporting() else x

    assert torch.equal(torch.export.export(Looks(), (torch.zeros(2),)).module()(torch.zeros(2)), torch.ones(2))
    assert not internals.exporting()


# Products, draws, steps ----------------------------------------------------------------------------------------------


def test_products_are_the_same(request):
    a, b = numbers(20, 30).float(), numbers(30, 40, seed=1).float()
    torch.testing.assert_close(internals.onednn_product(a, b), a @ b)
    enabled = internals.onednn_enabled()
    request.getfixturevalue("public")
    assert not internals.has_onednn_product()
    assert internals.onednn_enabled() == enabled
    assert torch.equal(internals.onednn_product(a, b), a @ b)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not internals.onednn_enabled()


def test_draws_of_a_gamma_are_the_same_and_the_global_generator_is_left_alone(request):
    def drawn() -> list[Tensor]:
        concentration = torch.tensor([0.3, 1.0, 7.0]).expand(50, 3).clone().requires_grad_()
        generator = seeded(3)
        values = [internals.standard_gamma(concentration, generator) for _ in range(2)]
        torch.manual_seed(5)
        values.append(internals.standard_gamma(concentration))
        (gradient,) = torch.autograd.grad(sum(value.sum() for value in values), concentration)
        return [*values, gradient, generator.get_state()]

    with torch.random.fork_rng():
        expected = drawn()
        request.getfixturevalue("public")
        state = torch.get_rng_state()
        internals.standard_gamma(torch.ones(4), seeded())
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(a, b) for a, b in zip(drawn(), expected, strict=True))


def adamw_steps(skipped: int) -> list[Tensor]:
    """Where ten steps lead, one of which is skipped."""
    weights, mean, square, steps = numbers(40), torch.zeros(40).double(), torch.zeros(40).double(), torch.zeros(())
    for i in range(10):
        skip = torch.tensor(float(i == skipped))
        steps += 1 - skip
        gradient = numbers(40, seed=i) * (torch.nan if i == skipped else 1.0)
        internals.fused_adamw_(weights, gradient, mean, square, steps, 0.01, 0.1, torch.tensor(2.0), skip)
    return [weights, mean, square, steps]


@pytest.mark.parametrize("skipped", [0, 4])
def test_steps_of_the_optimizer_are_the_same(skipped, request):
    expected = adamw_steps(skipped)
    request.getfixturevalue("public")
    torch.testing.assert_close(adamw_steps(skipped), expected)


def test_averages_and_copies_are_the_same(request):
    def moved() -> list[Tensor]:
        starts, ends = [numbers(4), numbers(5)], [numbers(4, seed=1), numbers(5, seed=2)]
        internals.many_lerp_(starts, ends, 0.3)
        internals.many_copy_(ends, starts)
        return [*starts, *ends]

    expected = moved()
    request.getfixturevalue("public")
    assert all(torch.equal(a, b) for a, b in zip(moved(), expected, strict=True))


ACTIVATIONS = {
    "relu": (torch.relu, lambda grad, x: internals.relu_backward_(grad, torch.relu(x))),
    "tanh": (torch.tanh, lambda grad, x: internals.tanh_backward_(grad, torch.tanh(x))),
    "silu": (F.silu, lambda grad, x: internals.silu_backward_(grad, x)),
    "gelu": (F.gelu, lambda grad, x: internals.gelu_backward_(grad, x)),
    "elu": (F.elu, lambda grad, x: internals.elu_backward_(grad, x)),
    "sigmoid": (
        torch.sigmoid,
        lambda grad, x: internals.sigmoid_backward(grad, torch.sigmoid(x), torch.empty_like(x)),
    ),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_of_activations_are_the_same(name, request):
    activation, backward = ACTIVATIONS[name]
    x, grad = (10 * numbers(50)).requires_grad_(), numbers(50, seed=1)
    (expected,) = torch.autograd.grad(activation(x), x, grad)
    torch.testing.assert_close(backward(grad.clone(), x.detach()), expected)
    request.getfixturevalue("public")
    torch.testing.assert_close(backward(grad.clone(), x.detach()), expected)


# All at once --------------------------------------------------------------------------------------------------------


class Scored(torch.nn.Module):
    def __init__(self, flow: flowlab.Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)


def results() -> list[Tensor]:
    """A fit, scores, draws, a search for roots in an exported program, and derivatives by torch.func."""
    flow = flowlab.presets.nsf(2, layers=2, hidden=(8,), bins=4, generator=seeded())
    x = numbers(200, 2).float()
    flowlab.fit(flow, x, epochs=3, progress=False, generator=seeded(1))
    student = flowlab.Flow(flowlab.bases.StudentT(2), [flowlab.layers.LULinear(2)])
    planar = flowlab.presets.planar(2, layers=1, generator=seeded()).double()
    with torch.no_grad():
        for parameter in planar.parameters():
            parameter.add_(0.5)
    rows = numbers(5, 2)
    found = [flow.log_prob(x), student.rsample((10,), generator=seeded(2)), planar.log_prob(rows)]
    found.append(torch.export.export(Scored(planar), (rows,)).module()(rows))
    found.append(torch.func.vmap(torch.func.grad(flow.log_prob))(x[:5]))
    jacobian = torch.autograd.functional.jacobian(flow.log_prob, x[:5], vectorize=True)
    return [value.detach() for value in (*found, jacobian)]


@pytest.mark.slow
def test_everything_works_without_private_functions(request):
    expected = results()
    request.getfixturevalue("public")
    torch.testing.assert_close(results(), expected, rtol=1e-3, atol=1e-4)
