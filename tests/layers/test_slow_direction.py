"""The slow direction of autoregressive layers: values, derivatives of all orders, memory, and changes to weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from constructors import SCALARS, perturb, weighted
from flowlab.layers import Affine, Autoregressive, Coupling, RationalQuadraticSpline
from helpers import assert_close, normal, seeded


class Slow(nn.Module):
    """An autoregressive layer called in its slow direction."""

    def __init__(self, fast: str = "density", features: int = 5, scalar: Any = None, **options: Any) -> None:
        super().__init__()
        layer = Autoregressive(features, scalar, fast=fast, generator=seeded(), **options)  # type: ignore[arg-type]
        self.layer = perturb(layer.double())

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(*given) if self.layer.fast == "density" else self.layer.inverse(*given)


NETWORKS: dict[str, dict[str, Any]] = {
    "narrow, context": {"hidden": (3,), "context_features": 2},
    "linear": {"hidden": ()},
    "deep, random order": {"hidden": (12, 7), "order": [3, 0, 4, 1, 2], "activation": "silu"},
    "residual, context": {"hidden": (8, 8), "residual": True, "activation": "tanh", "context_features": 1},
}


@pytest.mark.parametrize("fast", ["density", "sampling"])
@pytest.mark.parametrize(
    ("scalar", "network"), [(s, n) for s in SCALARS for n in NETWORKS if s != "mixture" or n == "narrow, context"]
)
def test_slow_direction(scalar: str, network: str, fast: str) -> None:
    """It equals a pass of the whole network per feature, which torch.func takes, in values and in all gradients."""
    slow = Slow(fast, 5, SCALARS[scalar], **NETWORKS[network])
    given = [normal(6, 5, seed=3), *[normal(6, c, seed=4) for c in [slow.layer.context_features] if c]]
    given = [x.requires_grad_() for x in given]
    names, parameters = zip(*slow.named_parameters(), strict=True)
    result, tolerance = slow(*given), 1e-6 if scalar == "mixture" else 1e-9
    got = torch.autograd.grad(weighted(result), (*given, *parameters), materialize_grads=True)

    def passes(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, inputs[len(given) :], strict=True))
        return torch.func.functional_call(slow, named, inputs[: len(given)])

    expected, pull = torch.func.vjp(passes, *given, *parameters)
    assert_close(result, expected, tolerance)
    leaves = [x.detach().requires_grad_() for x in expected]
    assert_close(got, pull(torch.autograd.grad(weighted(leaves), leaves)), tolerance)
    with torch.no_grad():
        without = slow(*given)
    assert not any(x.requires_grad for x in without)
    assert_close(without, result, tolerance)


@pytest.mark.parametrize("scalar", [Affine(), RationalQuadraticSpline()], ids=["affine", "spline"])
@pytest.mark.parametrize("fast", ["density", "sampling"])
def test_many_features_in_single_precision(fast: str, scalar: Any) -> None:
    slow, z = Slow(fast, 63, scalar, hidden=(64, 64)), normal(50, 63).float()
    with torch.no_grad():
        for parameter in slow.parameters():
            parameter.mul_(0.5)

    def results(layer: Any, z: Tensor) -> list[Tensor]:
        x, log_det = layer(z)
        return [x, log_det, *torch.autograd.grad(x.sin().sum() + log_det.sum(), layer.parameters())]

    single = results(copy.deepcopy(slow).float(), z)
    assert_close([x.double() for x in single], results(slow, z.double()), 2e-4)


def test_memory_grows_with_features_not_with_their_square() -> None:
    def kept(features: int) -> int:
        seen: dict[int, Tensor] = {}

        def note(x: Tensor) -> Tensor:
            return seen.setdefault(x.untyped_storage().data_ptr(), x)

        slow = Slow("density", features, RationalQuadraticSpline(4), hidden=(8,))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            results = slow(normal(512, features).requires_grad_())
        assert all(x.requires_grad for x in results)
        return sum(x.untyped_storage().nbytes() for x in seen.values())

    assert kept(32) < 5 * kept(8)


def right_or_an_error(gradients: Callable[..., Any], expected: Any, message: str) -> None:
    try:
        got = gradients()
    except RuntimeError as error:
        assert message in str(error)  # noqa: PT017
    else:
        assert_close(got, expected)


@pytest.mark.parametrize("also_first", [0, 1])
@pytest.mark.parametrize("what", [0, 1], ids=["mapped", "log_det"])
def test_second_derivatives_of_the_slow_direction(what: int, also_first: int) -> None:
    """Right or an error, never silently wrong; torch.func has them."""
    slow, z = Slow(hidden=(8,), activation="tanh"), normal(4, 5).requires_grad_()

    def total(v: Tensor) -> Tensor:
        return slow(v)[what].sum()

    def penalty(v: Tensor) -> Tensor:
        return torch.func.grad(total)(v).square().sum() + also_first * total(v)

    def gradients() -> Tensor:
        value = total(z)
        (grad,) = torch.autograd.grad(value, z, create_graph=True)
        return torch.autograd.grad(grad.square().sum() + also_first * value, z)[0]

    right_or_an_error(gradients, torch.func.grad(penalty)(z.detach()), "second derivative")


def test_gradients_under_functional_call() -> None:
    """They are those at the weights of the forward pass, also where the layer has others by then."""
    slow, z = Slow(hidden=(8,)), normal(4, 5).requires_grad_()
    expected = torch.autograd.grad(weighted(slow(z)), (z, *slow.parameters()))
    borrowed = {k: v.detach().clone().requires_grad_() for k, v in slow.named_parameters()}
    result = torch.func.functional_call(perturb(slow), borrowed, (z,))
    assert_close(torch.autograd.grad(weighted(result), (z, *borrowed.values())), expected)


@pytest.mark.parametrize("trained", [True, False])
def test_gradients_after_weights_were_overwritten(trained: bool) -> None:
    slow, z = Slow(hidden=(8,)).requires_grad_(trained), normal(4, 5).requires_grad_()
    expected = torch.autograd.grad(slow(z)[0].sum(), z)
    mapped, _ = slow(z)
    perturb(slow)
    right_or_an_error(lambda: torch.autograd.grad(mapped.sum(), z), expected, "modified by an inplace operation")


@pytest.mark.parametrize("kind", [Autoregressive, Coupling])
def test_dropout_is_the_same_with_and_without_a_gradient(kind: Any) -> None:
    layer, results = perturb(kind(4, hidden=(32,), dropout=0.5)).train(), []
    for enabled in (True, False):
        torch.manual_seed(0)
        with torch.set_grad_enabled(enabled):
            results.append(layer(normal(50, 4).float()))
    assert_close(*results, 1e-5)
