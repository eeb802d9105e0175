"""Scalar maps: round trips, slopes and gradients over random shapes and parameters, and far tails against mpmath."""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flowlab
from flowlab.layers import (
    Additive,
    Affine,
    CircularSpline,
    MixtureCDF,
    Planar,
    RationalQuadraticSpline,
    ScalarMap,
    SinhArcsinh,
    Sylvester,
)
from flowlab.layers.root import solve
from flowlab.layers.scalar.normal import inverse_log_cdf, log_cdf_and_hazard

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


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.empty(*shape, dtype=torch.float64).normal_(generator=generator)


def start(scalar: ScalarMap, *shape: int) -> Tensor:
    """Where parameters start: zeros, or what the map asks for."""
    if not hasattr(scalar, "initial"):
        return torch.zeros(scalar.count, *shape, dtype=torch.float64)
    return scalar.initial().double().view(-1, *[1] * len(shape)).expand(-1, *shape)


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


# Normal distribution ---------------------------------------------------------------------------------------------------


def exact_log_cdf(u: float) -> mpmath.mpf:
    return mpmath.log(mpmath.erfc(-mpmath.mpf(u) / mpmath.sqrt(2)) / 2)


def exact_log_pdf(u: float) -> mpmath.mpf:
    return -(mpmath.mpf(u) ** 2) / 2 - mpmath.log(2 * mpmath.pi) / 2


def exact_inverse_log_cdf(log_p: mpmath.mpf, guess: float) -> mpmath.mpf:
    z = mpmath.mpf(guess)
    for _ in range(8):
        log_cdf = exact_log_cdf(z)
        z -= (log_cdf - log_p) * mpmath.exp(log_cdf - exact_log_pdf(z))
    return z


POINTS = [
    -1e4,
    -1234.5,
    -300.0,
    -40.0,
    -38.5,
    -12.0,
    -5.0,
    -1.0,
    -1e-3,
    -1e-9,
    0.0,
    1e-9,
    1e-3,
    0.5,
    1.0,
    5.0,
    9.0,
    30.0,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("u", POINTS)
def test_log_cdf_and_hazard(u: float, dtype: torch.dtype) -> None:
    value = torch.tensor(u, dtype=dtype)
    log_cdf, log_hazard = log_cdf_and_hazard(value)
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    with mpmath.workdps(60):
        expected = exact_log_cdf(float(value))
        expected_hazard = exact_log_pdf(float(value)) - expected
    # Above zero, log Φ has as many decimals as Φ itself, which is all that sums of probabilities need.
    assert float(log_cdf) == pytest.approx(float(expected), rel=tolerance, abs=torch.finfo(dtype).eps)
    assert float(log_hazard) == pytest.approx(float(expected_hazard), rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "log_p", [-1e8, -1e4, -700.0, -90.0, -20.0, -8.001, -8.0, -7.999, -3.0, -2.001, -2.0, -1.999, -1.0, -0.6931, -0.3]
)
def test_inverse_log_cdf(log_p: float, dtype: torch.dtype) -> None:
    value = torch.tensor(log_p, dtype=dtype)
    z = inverse_log_cdf(value)
    with mpmath.workdps(60):
        expected = exact_inverse_log_cdf(mpmath.mpf(float(value)), float(z))
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    assert float(z) == pytest.approx(float(expected), rel=tolerance, abs=tolerance)


def test_gradients_of_the_normal_distribution() -> None:
    u = torch.tensor([-1e3, -50.0, -8.0, -1.0, -0.1, 0.0, 0.1, 1.0, 6.0], dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(log_cdf_and_hazard, (u,))
    log_p = torch.tensor([-1e3, -30.0, -8.0, -2.5, -1.0, -0.5], dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(inverse_log_cdf, (log_p,))


@pytest.mark.parametrize("seed", range(4))
def test_mixture_far_out_against_mpmath(seed: int) -> None:
    """z = Φ⁻¹(Σ π Φ((x - μ) / σ)) and log dz/dx with 60 digits, hundreds of standard deviations from every component."""
    scalar = MixtureCDF(components=3)
    params = normal(scalar.count, 1, seed=seed)
    log_weights = params[:3, 0].log_softmax(0) + math.log1p(-scalar.floor)
    means = torch.cat([params[3:6, 0], torch.zeros(1, dtype=torch.float64)])
    bounded = params[6:, 0] / (1 + params[6:, 0].abs() / scalar.log_scale_bound)
    log_scales = torch.cat([bounded, torch.zeros(1, dtype=torch.float64)])
    log_weights = torch.cat([log_weights, torch.tensor([math.log(scalar.floor)], dtype=torch.float64)])
    for x in (-1e4, -300.0, -37.0, -9.0, -1.0, 0.0, 0.7, 8.0, 40.0, 500.0, 1e4):
        z, log_slope = (float(v) for v in scalar.inverse(torch.tensor([x], dtype=torch.float64), params))
        with mpmath.workdps(60):
            side = -1 if z > 0 else 1  # the nearer tail
            tail, pdf = mpmath.mpf(0), mpmath.mpf(0)
            for log_weight, mean, log_scale in zip(*map(Tensor.tolist, (log_weights, means, log_scales)), strict=True):
                u = (mpmath.mpf(x) - mean) * mpmath.exp(-mpmath.mpf(log_scale))
                tail += mpmath.exp(log_weight + exact_log_cdf(side * u))
                pdf += mpmath.exp(log_weight + exact_log_pdf(u) - log_scale)
            expected = side * exact_inverse_log_cdf(mpmath.log(tail), side * z)
            expected_log_slope = mpmath.log(pdf) - exact_log_pdf(expected)
        assert z == pytest.approx(float(expected), rel=1e-12, abs=1e-12)
        assert log_slope == pytest.approx(float(expected_log_slope), rel=1e-9, abs=1e-9)


# Numerical inverses ----------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([1.0, 10.0, 100.0, 1e4]),
    z=st.floats(-30, 30) | st.sampled_from([0.0, 1e-300, -1e-12, 1e3]),
)
def test_mixture_inverts_whatever_its_parameters(seed: int, spread: float, z: float) -> None:
    """Also with components so far apart that the map is flat between them: x must be finite, and no worse than rounding."""
    scalar = MixtureCDF(components=4)
    params = normal(scalar.count, 1, seed=seed, scale=spread)
    noise = torch.tensor([z], dtype=torch.float64)
    x, log_slope = scalar.forward(noise, params)
    assert torch.isfinite(x).all()
    assert torch.isfinite(log_slope).all()
    # The two neighbours of x, some units in the last place away, lie on either side of z.
    room = 1e-13 * (x.abs() + 1e-3)
    below, above = scalar.inverse(x - room, params)[0], scalar.inverse(x + room, params)[0]
    assert float(below) <= z + 1e-12 * (1 + abs(z))
    assert float(above) >= z - 1e-12 * (1 + abs(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apart", [10.0, 1e3, 1e6])
def test_mixture_with_far_components(apart: float, dtype: torch.dtype) -> None:
    """Two modes far from zero leave the values of z between them to the fixed component: 1 draw in 1000."""
    scalar = MixtureCDF(components=2)
    params = torch.tensor([0.0, 0.0, -apart, apart, 0.0, 0.0], dtype=dtype)[:, None].expand(-1, 1001)
    z = torch.linspace(-1e-3, 1e-3, 1001, dtype=dtype)
    x, _ = scalar.forward(z, params)
    torch.testing.assert_close(scalar.inverse(x, params)[0], z, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("spread", [1.0, 100.0, 1e5])
def test_mixture_is_finite_where_single_precision_cannot_tell_neighbours_apart(spread: float) -> None:
    """With means at 1e5 and scales of 1e-3, two neighbouring floats are many standard deviations apart."""
    scalar = MixtureCDF(components=4)
    params = normal(scalar.count, 5000, scale=spread).float().requires_grad_()
    z = normal(5000, seed=1).float().requires_grad_()
    x, log_slope = scalar.forward(z, params)
    assert torch.isfinite(x).all()
    assert torch.isfinite(log_slope).all()
    for gradient in torch.autograd.grad(x.sum(), (z, params)):
        assert torch.isfinite(gradient).all()


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
def test_numeric_inverses_are_the_same_under_vmap(seed: int, spread: float) -> None:
    scalar = MixtureCDF(components=4)
    params, z = normal(scalar.count, 20, seed=seed, scale=spread), normal(20, seed=seed + 1)
    x, log_slope = scalar.forward(z, params)
    mapped, mapped_log_slope = torch.func.vmap(scalar.forward, in_dims=(0, 1))(z, params)
    reliable = log_slope < 20  # elsewhere many x have this z, to all digits
    torch.testing.assert_close(mapped[reliable], x[reliable], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mapped_log_slope[reliable], log_slope[reliable], rtol=1e-6, atol=1e-6)
    again = scalar.inverse(mapped, params)[0]
    assert bool(((again - z).abs() <= 1e-13 * (1 + mapped.abs()) * (-log_slope).exp() + 1e-12).all())


def cubic(x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    return x**3 + slope * x, (3 * x**2 + slope).log()


def test_solve_finds_roots_with_the_implicit_gradient() -> None:
    def root(target: Tensor, slope: Tensor) -> Tensor:
        return solve(lambda x: cubic(x, slope), target, torch.full_like(target, -100), torch.full_like(target, 100))

    target = torch.tensor([-1e5, -3.0, 0.0, 1e-9, 4.0, 1e3], dtype=torch.float64, requires_grad=True)
    slope = torch.tensor([0.1, 1.0, 2.0, 1e-3, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(cubic(root(target, slope), slope)[0], target, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(root, (target, slope), rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", [0, 1], ids=["at the lower end", "at the upper end"])
def test_solve_with_the_root_at_an_end(end: int, dtype: torch.dtype) -> None:
    root = torch.tensor([-3.0, 0.0, 1e-4, 2.0, 1e4], dtype=dtype)
    ends = [root, root + 1] if end == 0 else [root - 1, root]
    target, _ = cubic(root, torch.ones_like(root))
    found = solve(lambda x: cubic(x, torch.ones_like(x)), target, *ends)
    torch.testing.assert_close(found, root)


def nan_mixture() -> Tensor:
    return MixtureCDF().forward(torch.zeros(3), torch.full((MixtureCDF().count, 3), math.nan))[0]


def nan_planar() -> Tensor:
    return poisoned(Planar(2)).inverse(torch.zeros(3, 2))[0]


def nan_sylvester() -> Tensor:
    return poisoned(Sylvester(2)).inverse(torch.zeros(3, 2))[0]


def poisoned(layer: flowlab.layers.Layer) -> flowlab.layers.Layer:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(math.nan)
    return layer


@pytest.mark.parametrize("attempt", [nan_mixture, nan_planar, nan_sylvester])
def test_no_convergence_is_an_error(attempt: Callable[[], Tensor]) -> None:
    with pytest.raises(flowlab.ConvergenceError, match="are the layer's parameters finite"):
        attempt()
