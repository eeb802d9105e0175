"""What single layers promise beyond what every layer must do (test_layers.py)."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import flowlab
from constructors import LAYERS, context_for, noise_for, perturb, skewed
from flowlab import check_layer
from flowlab.layers import (
    ActNorm,
    Autoregressive,
    Coupling,
    ElementwiseAffine,
    Householder,
    Layer,
    LULinear,
    Marginal,
    Permutation,
    Whitening,
)
from flowlab.layers.layer import awaits_data
from flowlab.layers.linear import reflect
from helpers import assert_close, jacobian


def test_permutation_reorders_as_documented() -> None:
    x, log_det = Permutation(3, [2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))
    assert x.tolist() == [12.0, 10.0, 11.0]  # data feature i is noise feature permutation[i]
    assert log_det == 0


@pytest.mark.parametrize("mask", [None, [True, False, False, True], [False, False, False, True]], ids=str)
def test_coupling_changes_what_its_mask_says(mask: list[bool] | None) -> None:
    layer = perturb(Coupling(4, mask=mask, hidden=(8,)).double(), scale=0.5)
    z = noise_for(LAYERS["planar"], 4)
    changed = torch.tensor([False, True, False, True] if mask is None else mask)
    for function in (layer.forward, layer.inverse):
        moved = function(z)[0] - z
        assert torch.equal(moved[:, ~changed], torch.zeros_like(moved[:, ~changed]))
        assert bool((moved[:, changed] != 0).all())


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("fast", ["density", "sampling"])
@pytest.mark.parametrize("order", [None, [2, 0, 3, 1]], ids=["own order", "shuffled"])
def test_autoregressive_sees_every_earlier_feature(order: list[int] | None, fast: str, residual: bool) -> None:
    """The Jacobian has a zero for each later feature, and none for an earlier one."""
    options = {"hidden": (16, 16), "residual": residual, "activation": "tanh"}
    layer = perturb(Autoregressive(4, None, order, fast, **options).double(), scale=0.5)
    turn = torch.tensor(list(range(4)) if order is None else order).argsort()
    later = turn[None, :] > turn[:, None]
    for function in (layer.forward, layer.inverse):
        matrix = jacobian(lambda v: function(v)[0], noise_for(LAYERS["planar"], 4))  # noqa: B023
        assert torch.equal(matrix[:, later], torch.zeros_like(matrix[:, later]))
        assert bool((matrix[:, ~later].abs().amax(0) > 1e-6).all())
    conditional = perturb(Autoregressive(4, None, order, fast, context_features=1, **options).double(), scale=0.5)
    z, context = noise_for(LAYERS["planar"], 4), context_for(1)
    for function in (conditional.forward, conditional.inverse):
        moved = function(z, context)[0] - function(z, context + 1)[0]
        assert bool((moved.abs() > 1e-6).any(0).all())  # the first feature, too


@pytest.mark.parametrize("name", ["planar", "radial", "sylvester", "sylvester, one direction"])
@pytest.mark.parametrize("scale", [3.0, 30.0])
def test_residual_layers_are_invertible_whatever_their_parameters(name: str, scale: float) -> None:
    for seed in range(10):
        layer = LAYERS[name](3, perturbed=False)
        perturb(layer, torch.Generator().manual_seed(seed), scale)
        z = 3 * noise_for(LAYERS[name], 3, (100,))
        x, log_det = layer(z)
        back, log_det_back = layer.inverse(x)
        assert torch.isfinite(log_det).all()
        # Slopes near 1e-3, in one direction after the other, leave little of z's digits, but all of x's.
        again, log_det_again = layer(back)
        assert_close(again, x, 1e-9)
        assert_close(log_det_back, -log_det_again, 1e-6)
        if scale < 10:
            assert_close(back, z, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_radial_at_its_centre(dtype: torch.dtype) -> None:
    layer = flowlab.layers.Radial(3).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(0.5)  # the centre, and what sets radius and strength
    centre = torch.full((1, 3), 0.5, dtype=dtype)
    for function in (layer.forward, layer.inverse):
        mapped, log_det = function(centre)
        assert_close(mapped, centre, 1e-12)
        assert log_det.abs() > 0.1
        beside = function(centre + 1e-6)[1]
        assert_close(log_det, beside, 1e-4)
        for gradient in torch.autograd.grad(function(centre)[1].sum(), list(layer.parameters())):
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("build", [ActNorm, Whitening, Marginal])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_fitted_noise_is_standard(build: Callable[[int], Layer], scale: float) -> None:
    x = scale * (skewed(4, rows=2000)[:, [0, 2, 3]] + 100)
    layer = build(3).double()
    layer.initialise(x)
    z, _ = layer.inverse(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(z.std(0), torch.ones(3).double(), rtol=0, atol=0.05)
    if build is Whitening:
        torch.testing.assert_close(torch.cov(z.T), torch.eye(3).double(), rtol=0, atol=0.01)


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
def test_awkward_columns(build: Callable[[int], Layer], columns: Callable[[Tensor], Tensor]) -> None:
    x = columns(noise_for(LAYERS["planar"], 1, (300,)))
    layer = build(2).double()
    layer.initialise(x)
    wide = torch.cat([x, x + 1, -1e3 * x])
    z, log_det = layer.inverse(wide)
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_det).all()
    back, log_det_back = layer(z)
    torch.testing.assert_close(back, wide, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_det_back, -log_det, rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_alone(generator: torch.Generator) -> None:
    layer = perturb(Coupling(2, hidden=(32,), dropout=0.5, generator=generator).double())
    z = noise_for(LAYERS["planar"], 2)
    layer.eval()
    assert torch.equal(layer(z)[0], layer(z)[0])
    layer.train()
    assert not torch.equal(layer(z)[0], layer(z)[0])


@pytest.mark.parametrize(
    "mistake",
    [
        lambda z, log_det: (z, log_det + 0.01),
        lambda z, log_det: (z + 0.01, log_det),
        lambda z, log_det: (1.01 * z, log_det),
        lambda z, log_det: (z, -log_det),
        lambda z, log_det: (z, log_det.unsqueeze(-1)),
        lambda z, log_det: (z * math.nan, log_det),
    ],
    ids=["log-det off", "shifted", "scaled", "wrong sign", "wrong shape", "NaN"],
)
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_check_layer_finds_mistakes(mistake: Callable, direction: str) -> None:
    class Wrong(Coupling):
        pass

    correct = getattr(Coupling, direction)
    setattr(Wrong, direction, lambda self, value, context=None: mistake(*correct(self, value, context)))
    flowlab.check_layer(perturb(Coupling(2, hidden=(8,))))
    with pytest.raises(AssertionError):
        flowlab.check_layer(perturb(Wrong(2, hidden=(8,)), scale=0.5))


def test_linear_layers_of_given_numbers(generator):
    """They come back finished, in the floating-point type of what they are given, and `fit` leaves them as they are."""
    mean, log_scale = torch.tensor([1.0, -2.0]).double(), torch.tensor([40.0, -3.0]).double()
    scale_tril = torch.tensor([[2.0, 0.0], [0.5, 0.1]]).double()
    lower, upper = torch.tensor([[1.0, 0.0], [0.4, 1.0]]).double(), torch.tensor([[2.0, -1.0], [0.0, 0.3]]).double()
    vectors = torch.randn(4, 2, generator=generator).double()
    z = torch.randn(6, 2, generator=generator).double()
    for layer, expected in (
        (Whitening.from_moments(mean, scale_tril), mean + z @ scale_tril.T),
        (ElementwiseAffine.from_moments(mean, log_scale), mean + z * log_scale.exp()),
        (ActNorm.from_moments(mean, log_scale), mean + z * log_scale.exp()),
        (LULinear.from_factors(lower, upper, mean), mean + z @ (lower @ upper).T),
        (Householder.from_vectors(vectors), z @ reflect(vectors).T),
    ):
        torch.testing.assert_close(layer(z)[0].detach(), expected, rtol=1e-12, atol=1e-12)
        check_layer(layer, z)
        assert not awaits_data(layer)
    assert awaits_data(ActNorm(2))
