"""`Target`, `ContextTarget` and `Space`: somebody's log-density at any points, parameters in batches that broadcast."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.distributions import Distribution, MultivariateNormal, Normal, constraints

import flowlab
from flowlab.posteriors.contexts import ContextTarget
from flowlab.posteriors.space import Space
from flowlab.posteriors.target import Target

F64 = torch.float64


def by_scale(z: torch.Tensor) -> torch.Tensor:
    """A log-density that torch refuses where its scale overflows or vanishes."""
    return Normal(0.0, (100 * z[..., 0]).exp()).log_prob(z[..., 1])


def test_points_that_torch_refuses_have_density_zero_and_their_neighbours_are_as_ever():
    target = Target(by_scale, Space(2))
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=F64) / 100
    refused = [3, 4, 31, 49]
    bad = z.clone()
    bad[refused, 0] = torch.tensor([20.0, -20.0, 20.0, -20.0], dtype=F64)  # scales of inf and 0
    value, gradient = target.value_and_gradient(bad)
    good = [i for i in range(50) if i not in refused]
    exact, slope = target.value_and_gradient(z)
    assert target.evaluations == 100
    assert bool((value[refused] == -math.inf).all())
    assert bool((gradient[refused] == 0).all())
    torch.testing.assert_close(value[good], exact[good])
    torch.testing.assert_close(gradient[good], slope[good])
    assert torch.equal(target(bad), value)
    every = target.value_and_gradient(bad[refused])
    assert bool((every[0] == -math.inf).all() and (every[1] == 0).all())


def test_matrices_without_a_cholesky_factor_have_density_zero():
    def log_prob(z: torch.Tensor) -> torch.Tensor:
        return MultivariateNormal(torch.zeros(2, dtype=F64), torch.diag_embed(z)).log_prob(torch.ones(2, dtype=F64))

    value = Target(log_prob, Space(2))(torch.tensor([[1.0, 2.0], [1.0, -1.0], [3.0, 0.5]], dtype=F64))
    assert torch.isfinite(value).tolist() == [True, False, True]


def test_the_user_s_own_errors_are_raised():
    def log_prob(z: torch.Tensor) -> torch.Tensor:
        raise ValueError("of my own")

    with pytest.raises(ValueError, match="of my own"):
        Target(log_prob, Space(2))(torch.zeros(4, 2, dtype=F64))


def test_one_refused_context_leaves_the_others():
    def log_prob(z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return Normal(0.0, context[:, 0]).log_prob(z[..., 0])

    context = torch.tensor([[1.0], [-1.0], [2.0]], dtype=F64)
    z = torch.ones(4, 3, 1, dtype=F64, requires_grad=True)
    value = ContextTarget(log_prob, Space(1))(z, context)
    assert value.shape == (4, 3)
    assert torch.isfinite(value).all(0).tolist() == [True, False, True]
    torch.testing.assert_close(value[:, 2].detach(), Normal(0.0, 2.0).log_prob(torch.ones(4, dtype=F64)))
    (gradient,) = torch.autograd.grad(value[:, 2].sum(), z)
    torch.testing.assert_close(gradient[:, 2, 0], torch.full((4,), -0.25, dtype=F64))


def test_fits_in_threads_leave_torch_s_validation_as_it_is():
    seen = []

    def log_prob(z: torch.Tensor) -> torch.Tensor:
        seen.append(Distribution._validate_args)
        return -z.square().sum(-1) / 2

    before = Distribution._validate_args
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: flowlab.fit_posterior(log_prob, features=1, random_state=i, progress=False), range(4)))
    assert Distribution._validate_args == before
    assert set(seen) == {before}


def test_batches_of_parameters_broadcast():
    space = Space(supports={"tau": ((), constraints.positive), "p": ((3,), constraints.simplex)})
    tau, p = torch.tensor([[0.5], [2.0]]), torch.tensor([0.2, 0.3, 0.5]).expand(4, 3)
    z, log_det = space.unconstrain({"tau": tau, "p": p})
    assert z.shape == (2, 4, 3)
    assert log_det.shape == (2, 4)
    value, back = space.constrain(z)
    torch.testing.assert_close(value["tau"], tau.expand(2, 4))
    torch.testing.assert_close(value["p"], p.expand(2, 4, 3))
    torch.testing.assert_close(back, log_det)
    one, _ = space.constrain(torch.zeros(3))
    assert one["tau"].shape == ()
    with pytest.raises(ValueError, match=r"do not broadcast: a dict with tau \(2,\), p \(4, 3\)"):
        space.unconstrain({"tau": tau[:, 0], "p": p})
    with pytest.raises(ValueError, match=r"tau must be a torch.Tensor, not float"):
        space.unconstrain({"tau": 1.0, "p": p})
