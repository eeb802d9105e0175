"""Amortised posteriors: conjugate models at new contexts, supports, encoders, single contexts, types and messages."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.distributions import Gamma, MultivariateNormal, Normal, Poisson, constraints

import flowlab
from flowlab import presets
from flowlab.posteriors import AmortizedPosterior, PosteriorError, fit_posterior

QUIET = {"progress": False}
ROWS, WEIGHTS, NOISE, COUNTS = 8, 3, 0.5, 5
X = torch.randn(ROWS, WEIGHTS, generator=torch.Generator().manual_seed(0)).double()


def log_joint(w: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A regression on fixed inputs: contexts are the targets y (n, ROWS)."""
    x = X.to(w.dtype)
    return Normal(0.0, 1.0).log_prob(w).sum(-1) + Normal(w @ x.T, NOISE).log_prob(y).sum(-1)


def targets(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n, WEIGHTS, generator=generator).double()
    return w @ X.T + NOISE * torch.randn(n, ROWS, generator=generator).double()


def counts(n: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return Poisson(Gamma(2.0, 0.5).sample((n, 1))).sample((COUNTS,)).squeeze(-1).T.double()


def log_counts(p: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    rate = p["rate"]
    return Gamma(2.0, 0.5).log_prob(rate) + Poisson(rate.unsqueeze(-1)).log_prob(y).sum(-1)


@pytest.fixture(scope="module")
def regression() -> AmortizedPosterior:
    return fit_posterior(log_joint, context=targets(400, 1), features=WEIGHTS, steps=300, **QUIET)


@pytest.fixture(scope="module")
def poisson() -> AmortizedPosterior:
    supports = {"rate": ((), constraints.positive)}
    return fit_posterior(log_counts, context=counts(600, 1), supports=supports, steps=400, **QUIET)


# ---- known truths -----------------------------------------------------------------------------------------------


def test_a_regression_has_its_exact_posterior_and_evidence_at_new_contexts(regression):
    y = targets(6, seed=2)
    precision = torch.eye(WEIGHTS).double() + X.T @ X / NOISE**2
    covariance = torch.linalg.inv(precision)
    mean, sd = y @ X @ covariance / NOISE**2, covariance.diagonal().sqrt()
    draws = regression.sample((20_000,), y, torch.Generator().manual_seed(0))
    assert draws.shape == (20_000, 6, WEIGHTS)
    assert float(((draws.mean(0) - mean) / sd).abs().max()) < 0.35
    assert float((draws.std(0) / sd).log().abs().max()) < 0.1
    correlation = torch.corrcoef(draws[:, 0].T) - covariance / sd / sd[:, None]
    assert float(correlation.abs().max()) < 0.05
    evidence = MultivariateNormal(torch.zeros(ROWS).double(), X @ X.T + NOISE**2 * torch.eye(ROWS).double()).log_prob(y)
    for found, bound, exact in zip(regression.diagnostics(y), regression.elbo(y), evidence.tolist(), strict=True):
        assert found.verdict != "do not trust"
        assert found.ess > 0.8
        assert abs(found.log_evidence.value - exact) < 0.005 + 4 * found.log_evidence.standard_error
        assert exact - 0.15 < bound.value < exact + 4 * bound.standard_error
        assert 0 < bound.standard_error < 0.01


@pytest.mark.slow
def test_a_bounded_parameter_has_its_exact_posterior_and_evidence_at_new_contexts(poisson):
    y = counts(6, seed=2)
    total = y.sum(-1)
    exact = Gamma(2 + total, torch.tensor(0.5 + COUNTS).double())
    evidence = (
        2 * math.log(0.5) + torch.lgamma(2 + total) - (2 + total) * math.log(0.5 + COUNTS) - torch.lgamma(y + 1).sum(-1)
    )
    rate = poisson.sample((20_000,), y, torch.Generator().manual_seed(0))["rate"]
    assert rate.shape == (20_000, 6)
    assert bool((rate > 0).all())
    assert float(((rate.mean(0) - exact.mean) / exact.stddev).abs().max()) < 0.25
    assert float((rate.std(0) / exact.stddev).log().abs().max()) < 0.1
    for found, truth in zip(poisson.diagnostics(y, 4000), evidence.tolist(), strict=True):
        assert found.verdict != "do not trust"
        assert abs(found.log_evidence.value - truth) < 0.005 + 4 * found.log_evidence.standard_error
    density = poisson.log_prob({"rate": rate[:50]}, y).detach().exp()
    assert float((density / exact.log_prob(rate[:50]).exp()).log().abs().mean()) < 0.15
    outside = poisson.log_prob({"rate": torch.tensor(-1.0).double()}, y[0])
    assert float(outside.detach()) == -math.inf


def test_a_context_unlike_any_other_is_not_to_be_trusted(regression):
    strange = 30 * targets(1, seed=3)[0]
    assert regression.diagnostics(strange).verdict == "do not trust"


def test_one_contexts_posterior_is_a_fitted_posterior(poisson):
    y = torch.tensor([4.0, 3.0, 5.0, 2.0, 4.0]).double()
    at = poisson.at(y)
    x, log_q = at.rsample_and_log_prob((5,), torch.Generator().manual_seed(0))
    again, same = poisson.rsample_and_log_prob((5,), y, torch.Generator().manual_seed(0))
    assert torch.allclose(x["rate"], again["rate"])
    assert torch.allclose(log_q, same)
    assert torch.allclose(at.log_prob(x), poisson.log_prob(x, y))
    exact = Gamma(2 + float(y.sum()), 0.5 + COUNTS)
    table = at.summary(4000, resample=True)
    assert table.loc["rate", "mean"] == pytest.approx(float(exact.mean), abs=0.15 * float(exact.stddev))
    assert poisson.elbo(y).value == pytest.approx(at.elbo().value)
    with pytest.raises(ValueError, match=r"single one, of shape \(width,\), not \(2, 5\)"):
        poisson.at(counts(2, 0))


def test_history_and_reports(regression):
    assert regression.history[-1]["elbo"] > regression.history[0]["elbo"]
    assert {record["stage"] for record in regression.history} == {"amortized"}
    assert "k-hat" in str(regression.diagnostics(targets(1, 0)[0], 2000))
    assert "z[0]" in repr(regression)


# ---- encoders and flows of one's own ------------------------------------------------------------------------------


def test_an_encoder_and_a_flow_of_ones_own_are_trained_and_never_inverted(monkeypatch):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(ROWS, 16), nn.SiLU(), nn.Linear(16, 4))
    flow = presets.planar(WEIGHTS, context_features=4, layers=2, hidden=(8,))
    before = encoder[0].weight.detach().clone()

    def refuse(*_: object) -> None:
        raise AssertionError("inverted")

    for layer in flow:
        monkeypatch.setattr(layer, "inverse", refuse)
    options = {"features": WEIGHTS, "encoder": encoder, "flow": flow, "steps": 30}
    posterior = fit_posterior(log_joint, context=targets(100, 1), **options, **QUIET)
    assert posterior.encoder is encoder
    assert not torch.equal(before.double(), encoder[0].weight)
    assert posterior.sample((2,), targets(3, 2)).shape == (2, 3, WEIGHTS)


def test_a_posterior_built_by_hand_is_trained_from_where_it_is(generator):
    torch.manual_seed(0)
    q = AmortizedPosterior(nn.Linear(ROWS, 8), presets.real_nvp(WEIGHTS, context_features=8, layers=2, hidden=(16,)))
    y = targets(200, 1).float()
    history = q.fit(log_joint, y, steps=60, generator=generator, **QUIET)
    assert history.records[-1]["validation"] < history.records[0]["validation"] - 1
    assert q.flow.dtype == torch.float32
    assert q.diagnostics(y[0], 2000).verdict in ("good", "usable after resampling", "do not trust")


@pytest.mark.parametrize("objective", [flowlab.ReverseKL, flowlab.IWAE])
def test_its_draws_and_densities_are_those_that_objectives_want(objective, generator):
    supports = {"rate": ((), constraints.positive)}
    q = AmortizedPosterior(None, presets.nsf(1, context_features=COUNTS, layers=1, hidden=(8,)), supports=supports)
    y = counts(7, 0).float()
    losses = objective(log_counts, 32, generator=generator)(q, None, y)
    assert losses.shape == (7,)
    losses.mean().backward()
    assert all(p.grad is not None for p in q.parameters())


# ---- shapes, types, messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_types_empty_batches_and_copies(dtype):
    torch.manual_seed(0)
    q = AmortizedPosterior(nn.Linear(ROWS, 4), presets.iaf(WEIGHTS, context_features=4, layers=1, hidden=(8,))).to(
        dtype
    )
    for batch in [(), (4,), (0,), (2, 3)]:
        y = torch.zeros(*batch, ROWS)  # contexts of another type are converted
        z, log_q = q.rsample_and_log_prob((5,), y)
        assert z.shape == (5, *batch, WEIGHTS)
        assert z.dtype == dtype
        assert log_q.shape == (5, *batch)
        assert torch.allclose(q.log_prob(z, y), log_q, atol=1e-4)
    twin = copy.deepcopy(q)
    twin.load_state_dict(q.state_dict())
    y = targets(3, 0)
    a, b = (p.sample((2,), y, torch.Generator().manual_seed(0)) for p in (q, twin))
    assert torch.equal(a, b)


def test_two_runs_with_one_seed_give_the_same_bits_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    found = [fit_posterior(log_joint, context=targets(70, 1), features=WEIGHTS, steps=5, **QUIET) for _ in range(2)]
    assert torch.equal(*(q.sample((5,), targets(2, 2), torch.Generator().manual_seed(0)) for q in found))
    assert torch.equal(before, torch.get_rng_state())


def test_a_fit_in_single_precision():
    options = {"features": WEIGHTS, "dtype": torch.float32, "steps": 20}
    q = fit_posterior(log_joint, context=targets(70, 1).float(), **options, **QUIET)
    assert q.sample((2,), targets(3, 2)).dtype == torch.float32
    assert q.elbo(targets(1, 2)[0], 500).standard_error > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"context": torch.zeros(5)}, ValueError, r"context must have shape \(n, width\).*not \(5,\)"),
        ({"context": torch.zeros(1, 5)}, ValueError, "2 or more data sets"),
        ({"context": [[0.0]]}, TypeError, "context must be a torch.Tensor, not list"),
        ({"context": torch.tensor([[0.0], [math.nan]])}, ValueError, "not finite, the first in row 1, column 0"),
        ({"context": None, "encoder": nn.Linear(8, 3)}, ValueError, "encoder needs a context"),
        ({"flow": presets.maf(3, context_features=2)}, ValueError, "context_features=8.*not 3 and 2"),
        ({"flow": presets.maf(3)}, ValueError, "context_features=8.*not 3 and 0"),
        ({"features": None}, ValueError, "features=… for"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, error, message):
    chosen = {"features": WEIGHTS, "context": targets(10, 0), **options}
    with pytest.raises(error, match=message):
        fit_posterior(log_joint, **chosen, **QUIET)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z, y: -z.square().sum(), r"3 draws for each of 2 contexts .*shape \(3, 2\)"),
        (lambda z, y: -z.square(), r"not \(3, 2, 3\)"),
        (lambda z, y: -z.detach().square().sum(-1), "no gradient"),
        (lambda z, y: 0.0, "not a float"),
        (3, "must be a function of draws and contexts, not int"),
    ],
)
def test_a_log_density_that_does_not_fit_is_told_why(function, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fit_posterior(function, context=targets(10, 0), features=WEIGHTS, **QUIET)


def test_posteriors_that_cannot_be_are_told_why():
    flow = presets.maf(2, context_features=3, layers=1)
    with pytest.raises(TypeError, match="encoder must be"):
        AmortizedPosterior(lambda c: c, flow)
    with pytest.raises(TypeError, match="flow must be a Flow"):
        AmortizedPosterior(None, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="must take a context"):
        AmortizedPosterior(None, presets.maf(2, layers=1))
    with pytest.raises(ValueError, match="must have 1 features, as supports"):
        AmortizedPosterior(None, flow, supports={"tau": ((), constraints.positive)})
    q = AmortizedPosterior(nn.Linear(5, 2), flow)
    with pytest.raises(ValueError, match=r"encoder must return \(n, 3\).*not \(4, 2\)"):
        q.sample((), torch.zeros(4, 5))
    with pytest.raises(PosteriorError, match="attach"):
        q.diagnostics(torch.zeros(5))
    with pytest.raises(PosteriorError, match="no posterior was found for any of 10 contexts"):
        fit_posterior(lambda z, y: z.sum(-1) * math.nan, context=targets(10, 0), features=WEIGHTS, **QUIET)


def test_searches_that_end_nowhere_are_an_error_of_the_posterior(monkeypatch):
    monkeypatch.setattr("flowlab.posteriors.amortized.pathfinder.find", lambda *_: [])
    with pytest.raises(PosteriorError, match="no posterior was found for any of 16 contexts"):
        fit_posterior(lambda z, c: -(z - c).square().sum(-1), features=2, context=torch.randn(20, 2), progress=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda c: c.numpy(), TypeError, "context must be a torch.Tensor, not ndarray"),
        (lambda c: c[0], ValueError, r"context must have shape \(n, width\)"),
        (lambda c: c[:0], ValueError, r"context must have shape \(n, width\)"),
        (lambda c: c[:, :1], ValueError, r"encoder does not take contexts of shape"),
    ],
)
def test_contexts_that_do_not_fit_are_named(make, error, message):
    flow = flowlab.presets.iaf(2, context_features=3, layers=1, hidden=4)
    q = AmortizedPosterior(torch.nn.Linear(2, 3), flow)
    context = torch.randn(6, 2)
    with pytest.raises(error, match=message):
        q.fit(lambda z, c: -z.square().sum(-1), make(context), steps=2, progress=False)
    assert q.sample(5, context).shape == (5, 6, 2)
    q.fit(lambda z, c: -z.square().sum(-1), context.requires_grad_() * 2, steps=2, progress=False)
