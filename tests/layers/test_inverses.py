"""Numerical inverses of mixtures and other maps, and the normal distribution's tails that they need, against mpmath."""

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flowlab
from flowlab.layers import MixtureCDF, Planar, Sylvester
from flowlab.layers.root_finding import solve
from flowlab.layers.scalar.normal import inverse_log_cdf, log_cdf_and_hazard
from helpers import normal

# Normal distribution --------------------------------------------------------------------------------------------------


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
    """z = Φ⁻¹(Σ π Φ((x - μ) / σ)) and log dz/dx to 60 digits, hundreds of standard deviations from every component."""
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


# Numerical inverses ---------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([1.0, 10.0, 100.0, 1e4]),
    z=st.floats(-30, 30) | st.sampled_from([0.0, 1e-300, -1e-12, 1e3]),
)
def test_mixture_inverts_whatever_its_parameters(seed: int, spread: float, z: float) -> None:
    """Components so far apart that the map is flat between them: x is finite, and exact up to rounding."""
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
