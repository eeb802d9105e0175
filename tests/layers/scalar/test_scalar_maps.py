"""Scalar maps: round trips, slopes and gradients over random shapes and parameters."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flowlab.layers import (
    Additive,
    Affine,
    CircularSpline,
    MixtureCDF,
    RationalQuadraticSpline,
    ScalarMap,
    SinhArcsinh,
)
from helpers import normal

SCALARS: dict[str, ScalarMap] = {
    "additive": Additive(),
    "affine": Affine(),
    "affine, tight": Affine(bound=0.5),
    "affine, wide": Affine(bound=30.0),
    "spline": RationalQuadraticSpline(),
    "spline, one bin": RationalQuadraticSpline(bins=1, bound=2.0),
    "spline, many bins": RationalQuadraticSpline(bins=16, slope=1e-2),
    "circular": CircularSpline(),
    "circular, one bin": CircularSpline(bins=1),
    "mixture": MixtureCDF(),
    "mixture, one component": MixtureCDF(components=1),
    "sinh-arcsinh": SinhArcsinh(),
    "sinh-arcsinh, heavy": SinhArcsinh(heaviest=10.0),
}
EVERY = pytest.mark.parametrize("scalar", SCALARS.values(), ids=SCALARS)
SPLINES = pytest.mark.parametrize(
    "scalar", [SCALARS[name] for name in ("spline", "spline, one bin", "spline, many bins")]
)


def start(scalar: ScalarMap, *shape: int) -> Tensor:
    """Where parameters start: zeros, or what the map asks for."""
    initial = scalar.initial()
    if initial is None:
        return torch.zeros(scalar.count, *shape, dtype=torch.float64)
    return initial.double().view(-1, *[1] * len(shape)).expand(-1, *shape)


@st.composite
def values_and_seed(draw: st.DrawFn, bound: float = 50.0) -> tuple[Tensor, int, float]:
    """Values of a random shape, and a seed and a spread for the parameters."""
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    count = math.prod(shape)
    value = st.floats(-bound, bound) | st.sampled_from([0.0, -0.0, 5.0, -5.0, 2.0, -2.0, math.pi, -math.pi, 2.5])
    values = draw(st.lists(value, min_size=count, max_size=count))
    return (
        torch.tensor(values, dtype=torch.float64).view(shape),
        draw(st.integers(0, 10**6)),
        draw(st.sampled_from([0.0, 0.1, 1.0, 5.0])),
    )


def around(scalar: ScalarMap, difference: Tensor) -> Tensor:
    """A difference, on the circle for periodic maps."""
    return torch.remainder(difference + math.pi, 2 * math.pi) - math.pi if scalar.periodic else difference


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@EVERY
@given(drawn=values_and_seed())
def test_round_trip(scalar: ScalarMap, direction: str, drawn: tuple[Tensor, int, float]) -> None:
    value, seed, spread = drawn
    params = start(scalar, *value.shape) + normal(scalar.count, *value.shape, seed=seed, scale=spread)
    there, back = (
        getattr(scalar, name) for name in (direction, {"forward": "inverse", "inverse": "forward"}[direction])
    )
    mapped, log_slope = there(value, params)
    again, log_slope_back = back(mapped, params)
    assert mapped.shape == log_slope.shape == again.shape == log_slope_back.shape == value.shape
    assert torch.isfinite(mapped).all()
    # The rounding of `mapped` comes back multiplied by the slope of the way back; where that is beyond all
    # digits (in the gap between two far components), nothing is left to compare.
    rounding = 1e-12 * (1 + mapped.abs()) * log_slope_back.exp()
    error = around(scalar, again - value).abs()
    assert bool((error <= rounding + 1e-10 * (1 + value.abs())).all())
    clear = rounding < 1e-9
    torch.testing.assert_close(log_slope_back[clear], -log_slope[clear], rtol=1e-6, atol=1e-6)


@EVERY
@given(drawn=values_and_seed())
def test_slope_is_that_of_autograd(scalar: ScalarMap, drawn: tuple[Tensor, int, float]) -> None:
    value, seed, spread = drawn
    params = start(scalar, *value.shape) + normal(scalar.count, *value.shape, seed=seed, scale=spread)
    for function in (scalar.forward, scalar.inverse):
        value = value.detach().requires_grad_()
        mapped, log_slope = function(value, params)
        (slope,) = torch.autograd.grad(mapped.sum(), value)
        usual = log_slope.abs() < 300  # the slope itself neither over- nor underflows
        torch.testing.assert_close(slope[usual].log(), log_slope[usual].detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bins", [1, 3])
def test_the_end_of_the_circle_has_a_slope(bins: int) -> None:
    scalar = CircularSpline(bins)
    for function in (scalar.forward, scalar.inverse):
        value = torch.tensor([-math.pi, math.pi], dtype=torch.float64, requires_grad=True)
        mapped, _ = function(value, start(scalar, 2))
        (slope,) = torch.autograd.grad(mapped.sum(), value)
        torch.testing.assert_close(slope, torch.ones_like(slope))


@EVERY
@pytest.mark.parametrize("name", ["forward", "inverse"])
def test_increasing_with_the_slope_of_finite_differences(scalar: ScalarMap, name: str) -> None:
    half, step = (3.0 if scalar.periodic else 8.0), 1e-6
    for seed in range(5):
        params = start(scalar, 1) + normal(scalar.count, 1, seed=seed)
        if scalar.periodic:
            params[-1] = 0.0  # no rotation: nothing jumps from π to -π within (-3, 3), as ±π stay where they are
        value = torch.linspace(-half, half, 997, dtype=torch.float64)
        low, middle, high = (
            getattr(scalar, name)(value + shift, params.expand(-1, len(value))) for shift in (-step, 0.0, step)
        )
        assert bool((middle[0].diff() > 0).all())
        # A slope is continuous but bends at knots, hence not to more digits than these.
        torch.testing.assert_close(((high[0] - low[0]) / (2 * step)).log(), middle[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in SCALARS if not name.startswith("mixture")])
@given(drawn=values_and_seed(bound=1e3))
def test_zero_parameters_are_the_identity(name: str, drawn: tuple[Tensor, int, float]) -> None:
    scalar, value = SCALARS[name], drawn[0]
    for function in (scalar.forward, scalar.inverse):
        mapped, log_slope = function(value, torch.zeros(scalar.count, *value.shape, dtype=torch.float64))
        assert bool((around(scalar, mapped - value).abs() <= 1e-12 * (1 + value.abs())).all())
        torch.testing.assert_close(log_slope, torch.zeros_like(value), rtol=0, atol=1e-12)


def test_mixture_starts_near_the_identity() -> None:
    scalar, value = MixtureCDF(), torch.linspace(-3, 3, 301, dtype=torch.float64)
    for function in (scalar.forward, scalar.inverse):
        mapped, log_slope = function(value, start(scalar, 301))
        assert (mapped - value).abs().max() < 0.05
        assert log_slope.abs().max() < 0.1


@EVERY
def test_gradients(scalar: ScalarMap) -> None:
    """Of both results, in both directions, in the value and the parameters, against finite differences."""
    value = torch.tensor([-7.0, -2.7, -0.31, 0.0, 1.234, 2.9], dtype=torch.float64)
    params = (start(scalar, 6) + normal(scalar.count, 6, scale=0.5)).requires_grad_()
    for function in (scalar.forward, scalar.inverse):
        assert torch.autograd.gradcheck(function, (value.clone().requires_grad_(), params))


@EVERY
def test_float32_agrees_with_float64(scalar: ScalarMap) -> None:
    value = torch.linspace(-7, 7, 203, dtype=torch.float64)
    params = start(scalar, 203) + normal(scalar.count, 203, scale=0.5)
    value, params = value.float().double(), params.float().double()
    for function in (scalar.forward, scalar.inverse):
        got, expected = function(value.float(), params.float()), function(value, params)
        assert got[0].dtype == got[1].dtype == torch.float32
        error = around(scalar, got[0].double() - expected[0]).abs()
        assert bool((error < 1e-4 * (expected[0].abs() / 100).clamp(min=1)).all())
        torch.testing.assert_close(got[1].double(), expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bound", [0.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_affine_log_scale_is_bounded(bound: float, dtype: torch.dtype) -> None:
    value = torch.full((4,), 2.0, dtype=dtype)
    params = torch.stack([torch.ones(4), torch.tensor([-1e30, -50.0, 50.0, 1e30])]).to(dtype)
    for function in (Affine(bound).forward, Affine(bound).inverse):
        mapped, log_slope = function(value, params)
        assert torch.isfinite(mapped).all()
        torch.testing.assert_close(log_slope.abs(), torch.full_like(value, bound))


@pytest.mark.parametrize("bound", [0.5, 3.0, 6.9, 30.0])
def test_affine_log_scale_is_exact_to_rounding(bound: float) -> None:
    """Small log-scales keep their digits in single precision, however wide the bound."""
    raw = torch.linspace(-2, 2, 4001)
    value, params = torch.ones_like(raw), torch.stack([torch.zeros_like(raw), raw])
    for function in (Affine(bound).forward, Affine(bound).inverse):
        mapped, log_slope = function(value, params)
        exact = function(value.double(), params.double())
        assert (log_slope - exact[1]).abs().max() < 1e-6
        assert ((mapped - exact[0]) / exact[0]).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@SPLINES
@pytest.mark.parametrize("far", [5.0, 17.0, 1e6, 1e30])
def test_spline_batch_of_tails(scalar: RationalQuadraticSpline, far: float, dtype: torch.dtype) -> None:
    params = normal(scalar.count, 4, scale=3).to(dtype).requires_grad_()
    value = torch.tensor([far, -far, 2 * far, -3 * far], dtype=dtype, requires_grad=True)
    for function in (scalar.forward, scalar.inverse):
        mapped, log_slope = function(value, params)
        assert torch.equal(mapped, value)
        assert torch.equal(log_slope, torch.zeros_like(value))
        to_value, to_params = torch.autograd.grad((mapped + log_slope).sum(), (value, params))
        assert torch.equal(to_value, torch.ones_like(value))
        assert torch.equal(to_params, torch.zeros_like(params))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [2, 5, 8])
def test_spline_at_its_knots(bins: int, dtype: torch.dtype) -> None:
    scalar = RationalQuadraticSpline(bins)
    for seed in range(20):
        slopes = 2 * normal(bins - 1, seed=seed)
        own = 2 * normal(bins, seed=seed + 100)
        even = torch.zeros(bins, dtype=torch.float64)
        knots = torch.linspace(-5, 5, bins + 1, dtype=torch.float64)[1:-1]
        log_slopes = slopes / (1 + (slopes / math.log(1e3)).abs())
        # Even widths make the knots of the noise side known, even heights those of the data side.
        for function, params, sign in (
            (scalar.forward, torch.cat([even, own, slopes]), 1),
            (scalar.inverse, torch.cat([own, even, slopes]), -1),
        ):
            value = knots.to(dtype).requires_grad_()
            mapped, log_slope = function(value, params.to(dtype)[:, None].expand(-1, bins - 1))
            (slope,) = torch.autograd.grad(mapped.sum(), value)
            tolerance = 1e-10 if dtype == torch.float64 else 1e-3
            torch.testing.assert_close(log_slope.double(), sign * log_slopes, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(slope.log().double(), sign * log_slopes, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["spline", "circular"])
def test_spline_slopes_next_to_knots(name: str, dtype: torch.dtype) -> None:
    """A few units in the last place beside a knot, autograd's slope is the one that is returned."""
    scalar = SCALARS[name]
    bound = math.pi if scalar.periodic else 5.0
    value = torch.linspace(-bound, bound, 9, dtype=dtype)[1:-1]
    beside = [value]
    for towards in (-math.inf, math.inf):
        moved = value
        for _ in range(4):
            moved = torch.nextafter(moved, torch.full_like(value, towards))
            beside.append(moved)
    value = torch.cat(beside).requires_grad_()
    for seed in range(20):
        params = normal(scalar.count, 1, seed=seed).to(dtype)
        if scalar.periodic:
            params[-1] = 0
        for function, even in ((scalar.forward, slice(0, 8)), (scalar.inverse, slice(8, 16))):
            given = params.clone()
            given[even] = 0
            mapped, log_slope = function(value, given.expand(-1, len(value)))
            (slope,) = torch.autograd.grad(mapped.sum(), value)
            torch.testing.assert_close(slope.log(), log_slope.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scalar", [SCALARS["spline"], SCALARS["circular"]], ids=["spline", "circular"])
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 10.0, 1e3, 1e6]))
def test_spline_slopes_are_bounded(scalar: ScalarMap, seed: int, spread: float) -> None:
    value = torch.linspace(-5, 5, 101, dtype=torch.float64)
    params = normal(scalar.count, 1, seed=seed, scale=spread).expand(-1, 101)
    for function in (scalar.forward, scalar.inverse):
        mapped, log_slope = function(value, params)
        assert torch.isfinite(mapped).all()
        # A chord is within 1e±3 (times the number of bins), a knot's slope within 1e±3, and
        # a rational quadratic's slope within 4 max² / min of these.
        assert log_slope.abs().max() < 3 * math.log(1e3 * 8) + math.log(4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(angle=st.floats(-1e3, 1e3), seed=st.integers(0, 1000))
def test_circular_spline_stays_on_the_circle(dtype: torch.dtype, angle: float, seed: int) -> None:
    scalar = CircularSpline(4)
    params = normal(scalar.count, 3, seed=seed).to(dtype)
    value = torch.tensor([angle, math.pi, -math.pi], dtype=dtype)
    for function in (scalar.forward, scalar.inverse):
        mapped, log_slope = function(value, params)
        assert bool((mapped.abs() <= torch.tensor(math.pi, dtype=dtype)).all())
        turned, turned_log_slope = function(value + 2 * math.pi, params)
        tolerance = 1e-9 if dtype == torch.float64 else 2e-2  # the spacing of float32 at 1000, times a slope
        assert around(scalar, turned - mapped).abs().max() < tolerance
        torch.testing.assert_close(turned_log_slope, log_slope, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("bins", [1, 2, 5])
def test_circular_spline_is_smooth_across_the_seam(bins: int) -> None:
    scalar, params = CircularSpline(bins), normal(3 * bins + 1, 2)[:, :1].expand(-1, 2)
    value = torch.tensor([-math.pi + 1e-9, math.pi - 1e-9], dtype=torch.float64)
    for function, seam in ((scalar.forward, value), (scalar.inverse, scalar.forward(value, params)[0])):
        mapped, log_slope = function(seam, params)
        assert around(scalar, mapped[0] - mapped[1]).abs() < 1e-6
        assert float(log_slope[0]) == pytest.approx(float(log_slope[1]), abs=1e-6)
