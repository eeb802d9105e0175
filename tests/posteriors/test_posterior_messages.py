"""What `fit_posterior` says of arguments and log-densities that do not fit, and of points without a density."""

import math

import pytest
import torch
from torch.distributions import (
    HalfCauchy,
    Normal,
    constraints,
)

from flowlab.posteriors import PosteriorError, fit_posterior, pathfinder
from flowlab.posteriors.space import Space
from flowlab.posteriors.target import Target

QUIET = {"progress": False}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: -z.square().sum(), r"shape \(3,\).*torch.vmap"),
        (lambda z: -z.square(), r"not \(3, 2\)"),
        (lambda z: -z.detach().square().sum(-1), "no gradient"),
        (lambda z: 0.0, "not a float"),
        (lambda z: (z > 0).sum(-1), "tensor of torch.int64"),
        (lambda z: z @ torch.ones(2, dtype=torch.float32), "dtype=…"),
    ],
)
def test_a_log_density_that_does_not_fit_is_told_why(function, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit_posterior(function, features=2, **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "features=… for"),
        ({"features": 2, "supports": {"a": ((), constraints.real)}}, "features=… for"),
        ({"features": 0}, "positive whole number"),
        ({"features": True}, "positive whole number"),
        ({"features": 2, "draws": 0}, "draws must be positive and whole, not 0"),
        ({"features": 2, "draws": 2.5}, "draws must be positive and whole, not 2.5"),
        ({"features": 2, "steps": math.inf}, "steps must be positive and whole, not inf"),
        ({"features": 2, "steps": "many"}, "steps must be positive and whole, not 'many'"),
        ({"features": 2, "learning_rate": -1.0}, "learning_rate must be positive and finite"),
        ({"features": 2, "learning_rate": math.nan}, "learning_rate must be positive and finite"),
        ({"features": 2, "random_state": None}, "random_state must be a whole number, not None"),
        ({"features": 2, "flow": "nsf"}, "flow must be a flowlab.Flow, not a str"),
        ({"features": 2, "dtype": torch.int64}, "floating-point type"),
        ({"supports": [("a", (), constraints.real)]}, "must be a dict"),
        ({"supports": {"a": ((-1,), constraints.real)}}, "must be"),
        ({"supports": {"a": ((0,), constraints.real)}}, "without elements"),
        ({"supports": {"a": ((1,), constraints.simplex)}}, "single point"),
        ({"supports": {"a": ((2, 3), constraints.positive_definite)}}, "two equal sizes"),
        ({"supports": {"a": constraints.real}}, "must be"),
        ({"supports": {"a": ((), constraints.boolean)}}, "no bijector"),
        ({"supports": {"a": ((), constraints.simplex)}}, "no bijector"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fit_posterior(lambda z: -z.square().sum(-1), **options, **QUIET)


@pytest.mark.parametrize("features", [2, 3, 6])
def test_a_function_of_a_single_draw_is_noticed(features):
    with pytest.raises(ValueError, match="wrap a function of a single draw"):
        fit_posterior(lambda z: -((z[0] - 1) ** 2) - z[1] ** 2, features=features, **QUIET)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: Normal(0, 1).log_prob(z).sum(-1) + torch.where(z[:, 0] > 0, 0.0, math.nan), "within ±1 of zero"),
        (lambda z: torch.where(z[:, 0] > 2, -math.inf, z.sum(-1)), "within ±3 of zero"),
        (lambda z: z.square().sum(-1), "Has log_prob a bound"),
    ],
)
def test_a_log_density_that_cannot_be_fitted_is_told_why(function, message):
    with pytest.raises(PosteriorError, match=message):
        fit_posterior(function, features=2, **QUIET)


@pytest.mark.slow
def test_improper_densities_are_refused_or_not_trusted():
    with pytest.raises(PosteriorError, match="proper"):
        fit_posterior(lambda p: -p["s"].log(), supports={"s": ((), constraints.positive)}, **QUIET)
    for function in (lambda z: z.sum(-1), lambda z: z.square().sum(-1)):
        found = fit_posterior(function, features=1, steps=100, **QUIET).diagnostics()
        assert found.verdict == "do not trust"
    assert any("improper" in reason for reason in found.reasons)


def test_an_error_of_the_model_says_with_what_it_was_called():
    with pytest.raises(RuntimeError) as caught:
        fit_posterior(lambda p: p["a"] + torch.zeros(7), supports={"a": ((), constraints.real)}, **QUIET)
    assert "batch of 3 draws: a (3,)" in caught.value.__notes__[0]


def test_a_density_unbounded_in_a_corner_is_no_crash():
    """Eight schools, centred: the density is unbounded at a tau of zero, where the Hessian has no Cholesky factor."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
    sd = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)

    def log_prob(z: torch.Tensor) -> torch.Tensor:
        mu, log_tau, theta = z[:, 0], z[:, 1], z[:, 2:]
        groups = Normal(mu.unsqueeze(1), log_tau.exp().unsqueeze(1)).log_prob(theta).sum(-1)
        prior = Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(5.0).log_prob(log_tau.exp()) + log_tau
        return prior + groups + Normal(theta, sd).log_prob(y).sum(-1)

    generator = torch.Generator().manual_seed(0)
    target = Target(log_prob, Space(10))
    found = pathfinder.find(target, pathfinder.finite_starts(target, 16, 1.0, generator), generator)
    assert found
    assert all(bool(torch.isfinite(g.scale_tril).all()) for g in found)


def test_single_precision_models_say_so_by_dtype():
    weight = torch.tensor([1.0, 2.0])
    posterior = fit_posterior(
        lambda z: -(z @ weight).square() - z.square().sum(-1), features=2, dtype=torch.float32, **QUIET
    )
    assert posterior.diagnostics(4000).verdict == "good"


def test_points_without_a_density_are_counted_and_too_many_are_an_error():
    def hole(radius: float):
        def log_prob(z: torch.Tensor) -> torch.Tensor:
            value = Normal(0.0, 1.0).log_prob(z).sum(-1)
            return torch.where((z - 1).norm(dim=-1) < radius, math.nan, value)

        return log_prob

    few = fit_posterior(hole(0.2), features=2, **QUIET)
    found = few.diagnostics()
    assert 0.0005 < found.non_finite < 0.01
    assert found.verdict != "do not trust"
    with pytest.raises(PosteriorError, match=r"not finite at .*%"):
        fit_posterior(hole(1.0), features=2, steps=20, **QUIET)
    with pytest.raises(PosteriorError, match="starting points"):
        fit_posterior(lambda z: z.sum(-1) * math.nan, features=2, **QUIET)
    with pytest.raises(PosteriorError, match="without a finite gradient"):
        fit_posterior(lambda z: (0 * z).sqrt().sum(-1) - z.square().sum(-1), features=2, **QUIET)
