"""Posteriors: targets with known evidence and moments, modes, verdicts, supports and files."""

import json
import math
import sys

import pytest
import torch
from torch.distributions import (
    Beta,
    Categorical,
    Dirichlet,
    Gamma,
    Independent,
    LKJCholesky,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    Wishart,
    constraints,
)

import flowlab
from flowlab.posteriors import FlowPosterior, PosteriorError, fit_posterior, pathfinder
from flowlab.posteriors.diagnostics import missed_modes
from flowlab.posteriors.psis import smooth
from flowlab.posteriors.space import Space
from flowlab.posteriors.survey import Defensive, draw_survey
from flowlab.posteriors.target import Target

QUIET = {"progress": False}


def correlated(features: int) -> MultivariateNormal:
    generator = torch.Generator().manual_seed(features)
    factor = torch.randn(features, features, generator=generator).double() / features**0.5
    scale = torch.logspace(-2, 2, features, dtype=torch.float64)
    covariance = scale[:, None] * (factor @ factor.T + 0.05 * torch.eye(features)) * scale
    return MultivariateNormal(torch.randn(features, generator=generator) * scale, covariance)


def modes(centres: list[list[float]], weights: list[float] | None = None, scale: float = 1.0) -> MixtureSameFamily:
    where = torch.tensor(centres, dtype=torch.float64)
    shares = torch.ones(len(where)) if weights is None else torch.tensor(weights)
    return MixtureSameFamily(Categorical(shares.double()), Independent(Normal(where, torch.full_like(where, scale)), 1))


def funnel(z: torch.Tensor) -> torch.Tensor:
    width = (z[:, :1] / 2).exp()  # becomes zero far out, which Normal would refuse if it were asked to
    return Normal(0.0, 3.0).log_prob(z[:, 0]) + Normal(0.0, width).log_prob(z[:, 1:]).sum(-1)


# ---- fits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("features", "bar"), [(50, 0.05), (300, 0.5)])
def test_correlated_gaussians_with_scales_over_four_orders(features, bar):
    truth = correlated(features)
    posterior = fit_posterior(lambda z: truth.log_prob(z) + 7.0, features=features, **QUIET)
    found = posterior.diagnostics()
    assert found.verdict == "good"
    assert abs(found.elbo.value - 7.0) < bar
    assert abs(found.log_evidence.value - 7.0) < 0.05
    x = posterior.sample((20_000,), torch.Generator().manual_seed(0))
    assert float(((x.mean(0) - truth.mean) / truth.stddev).abs().max()) < 0.05


def test_a_curved_posterior_gets_a_flow_and_is_good():
    def banana(z: torch.Tensor) -> torch.Tensor:
        return Normal(0.0, 1.0).log_prob(z[:, 0]) + Normal(z[:, 0].square(), 0.7).log_prob(z[:, 1])

    posterior = fit_posterior(banana, features=2, steps=600, **QUIET)
    found = posterior.diagnostics()
    assert {record["stage"] for record in posterior.history} == {"affine", "flow"}
    assert found.verdict == "good"
    assert abs(found.log_evidence.value) < 0.05
    assert found.divergence < 0.05
    assert posterior.summary().loc["z[1]", "mean"] == pytest.approx(1.0, abs=0.1)


def test_one_parameter_with_a_skewed_density():
    supports = {"rate": ((), constraints.positive)}
    posterior = fit_posterior(lambda p: Gamma(1.2, 1.0).log_prob(p["rate"]), supports=supports, steps=300, **QUIET)
    found = posterior.diagnostics()
    assert found.verdict == "good"
    assert abs(found.log_evidence.value) < 0.05
    grid = torch.linspace(0.05, 6, 50, dtype=torch.float64)
    assert float((posterior.log_prob({"rate": grid}).detach() - Gamma(1.2, 1.0).log_prob(grid)).abs().max()) < 0.4


def test_heavy_tails_are_weighted_by_the_defensive_base():
    tails = StudentT(torch.tensor(5.0, dtype=torch.float64))
    posterior = fit_posterior(lambda z: tails.log_prob(z).sum(-1), features=2, steps=200, **QUIET)
    found = posterior.diagnostics()
    assert found.khat < 0.7 or found.ess > 0.98
    assert abs(found.log_evidence.value) < 0.05


MODES = {
    "two": ([[0.0, 0.0], [10.0, 0.0]], None),
    "two in ten dimensions": ([[5.0] * 10, [-5.0] * 10], [0.3, 0.7]),
    "two far apart": ([[0.0] * 5, [100.0] * 5], None),
    "four": ([[5.0, 5.0], [-5.0, 5.0], [5.0, -5.0], [-5.0, -5.0]], [0.1, 0.2, 0.3, 0.4]),
    "four in a row": ([[-15.0], [-5.0], [5.0], [15.0]], None),
}


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("seed", [0, 1])
def test_separate_modes_are_found_with_their_weights(name, seed):
    centres, weights = MODES[name]
    truth = modes(centres, weights)
    posterior = fit_posterior(truth.log_prob, features=len(centres[0]), random_state=seed, **QUIET)
    found = posterior.diagnostics()
    assert found.verdict == "good"
    assert abs(found.log_evidence.value) < 0.05
    assert found.modes == len(centres)
    x = posterior.sample((20_000,), torch.Generator().manual_seed(0))
    nearest = torch.cdist(x, torch.tensor(centres, dtype=torch.float64)).argmin(1)
    shares = torch.bincount(nearest, minlength=len(centres)) / len(x)
    wanted = torch.tensor(weights or [1 / len(centres)] * len(centres))
    assert float((shares - wanted).abs().max()) < 0.03


@pytest.mark.parametrize("name", MODES)
def test_a_fit_that_misses_a_mode_is_not_to_be_trusted(name):
    """Hand the diagnostics a perfect fit of one mode alone: weights look perfect, and the verdict must not."""
    centres, weights = MODES[name]
    truth = modes(centres, weights)
    features = len(centres[0])
    one = modes(centres[:1])
    posterior = fit_posterior(lambda z: one.log_prob(z), features=features, **QUIET)
    posterior.attach(truth.log_prob)
    for seed in range(3):
        found = posterior.diagnostics(random_state=seed)
        assert found.ess > 0.9
        assert found.verdict == "do not trust"
        assert "misses" in " ".join(found.reasons)


def test_two_runs_with_one_seed_give_the_same_bits_and_leave_the_global_state_alone(monkeypatch):
    # torch.compile turns it off for the whole process, and other tests may have compiled something.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    before = torch.get_rng_state()
    posteriors = [fit_posterior(funnel, features=2, steps=20, random_state=3, **QUIET) for _ in range(2)]
    draws = [p.sample((5,), torch.Generator().manual_seed(0)) for p in posteriors]
    assert torch.equal(*draws)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.distributions.Distribution._validate_args


def test_a_flow_of_the_users_own_is_trained_in_place_and_its_frozen_parameters_stay():
    flow = flowlab.presets.nsf(2, layers=2, hidden=(16,), generator=torch.Generator().manual_seed(0))
    flow.layers[0].requires_grad_(False)
    before = [p.clone() for p in flow.parameters()]
    posterior = fit_posterior(modes([[1.0, 2.0]]).log_prob, features=2, flow=flow, steps=40, **QUIET)
    moved = [not torch.equal(a, b.to(a)) for a, b in zip(before, flow.parameters(), strict=True)]
    fixed = [not p.requires_grad for p in flow.parameters()]
    assert any(moved)
    assert not any(m and f for m, f in zip(moved, fixed, strict=True))
    assert posterior.diagnostics(4000).verdict == "good"
    with pytest.raises(ValueError, match="2 features"):
        fit_posterior(modes([[1.0, 2.0]]).log_prob, features=2, flow=flowlab.presets.maf(3), **QUIET)


# ---- supports ---------------------------------------------------------------------------------------------------

SUPPORTS = {
    "mu": ((2,), constraints.real),
    "tau": ((), constraints.positive),
    "p": ((3,), constraints.simplex),
    "share": ((2,), constraints.interval(1.0, 3.0)),
    "L": ((2, 2), constraints.corr_cholesky),
}


def log_prior(p: dict[str, torch.Tensor]) -> torch.Tensor:
    return (
        Normal(1.0, 2.0).log_prob(p["mu"]).sum(-1)
        + LogNormal(0.0, 1.0).log_prob(p["tau"])
        + Dirichlet(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)).log_prob(p["p"])
        + (Beta(2.0, 2.0).log_prob((p["share"] - 1) / 2) - math.log(2)).sum(-1)
        + LKJCholesky(2, torch.tensor(2.0, dtype=torch.float64)).log_prob(p["L"])
    )


@pytest.fixture(scope="module")
def named() -> FlowPosterior:
    return fit_posterior(log_prior, supports=SUPPORTS, steps=300, **QUIET)


def test_named_parameters_come_back_in_their_supports_with_known_moments(named):
    found = named.diagnostics()
    assert found.verdict != "do not trust"
    assert abs(found.log_evidence.value) < 0.05
    x = named.sample((1000,))
    for name, (shape, constraint) in SUPPORTS.items():
        assert x[name].shape == (1000, *shape)
        assert bool(constraint.check(x[name]).all())
    table = named.summary(20_000)
    assert list(table.index) == named.space.labels
    assert table.loc["mu[0]", "mean"] == pytest.approx(1.0, abs=0.1)
    assert table.loc["mu[0]", "sd"] == pytest.approx(2.0, abs=0.1)
    assert table.loc["tau", "50%"] == pytest.approx(1.0, abs=0.1)
    assert table.loc["p[2]", "mean"] == pytest.approx(4 / 9, abs=0.02)
    assert table.loc["share[1]", "mean"] == pytest.approx(2.0, abs=0.03)


def test_densities_are_those_of_the_users_space(named):
    """One number against quadrature: the marginal of a posterior over one bounded number integrates to one."""
    x, log_q = named.rsample_and_log_prob((200,), torch.Generator().manual_seed(0))
    assert torch.allclose(named.log_prob(x), log_q, atol=1e-8)
    assert float((log_q - log_prior(x)).detach().std()) < 0.5
    outside = {name: value.detach().clone() for name, value in x.items()}
    outside["tau"][0] = -1.0
    assert float(named.log_prob(outside)[0].detach()) == -math.inf
    alone = fit_posterior(
        lambda p: Beta(2.0, 5.0).log_prob(p["x"]), supports={"x": ((), constraints.unit_interval)}, steps=50, **QUIET
    )
    grid = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    assert float(alone.log_prob({"x": grid}).exp().mean()) == pytest.approx(1.0, abs=0.01)


def test_the_space_goes_back_and_forth_and_into_json(generator):
    space = Space(supports=SUPPORTS)
    z = torch.randn(7, space.features, generator=generator, dtype=torch.float64)
    x, log_det = space.constrain(z)
    back, again = space.unconstrain(x)
    assert torch.allclose(back, z, atol=1e-6)
    assert torch.allclose(again, log_det, atol=1e-6)
    copy = Space.from_description(space.describe())
    assert copy.labels == space.labels
    assert torch.equal(copy.columns(copy.constrain(z)[0]), space.columns(x))
    assert space.labels[-4:] == ["L[0,0]", "L[0,1]", "L[1,0]", "L[1,1]"]


@pytest.mark.parametrize("constraint", [constraints.lower_cholesky, constraints.positive_definite])
def test_matrices_have_the_log_determinant_of_their_lower_entries(constraint, generator):
    space = Space(supports={"S": ((2, 3, 3), constraint)})
    assert space.features == 12
    row, column = torch.tril_indices(3, 3)
    z = torch.randn(12, generator=generator, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda z: space.constrain(z)[0]["S"][..., row, column].flatten())(z)
    value, log_det = space.constrain(z)
    assert bool(constraint.check(value["S"]).all())
    assert float(log_det) == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-9)
    back, again = space.unconstrain(value)
    assert torch.allclose(back, z, atol=1e-9)
    assert torch.allclose(again, log_det)
    assert Space.from_description(space.describe()).labels == space.labels
    outside = -value["S"]
    assert bool(torch.isnan(space.unconstrain({"S": outside})[0]).all())


@pytest.mark.slow
def test_a_covariance_has_its_wishart_distribution_and_evidence():
    truth = Wishart(torch.tensor(7.0).double(), torch.eye(2).double())
    posterior = fit_posterior(
        lambda p: truth.log_prob(p["S"]), supports={"S": ((2, 2), constraints.positive_definite)}, steps=30, **QUIET
    )
    assert abs(posterior.diagnostics().log_evidence.value) < 0.02
    assert torch.allclose(posterior.resample(20_000)["S"].mean(0), truth.mean, atol=0.15)


def test_bounds_of_each_element_survive_a_file():
    space = Space(supports={"a": ((2,), constraints.interval(torch.zeros(2), torch.tensor([1.0, 2.0])))})
    again = Space.from_description(json.loads(json.dumps(space.describe())))
    z = torch.ones(2, dtype=torch.float64)
    assert torch.allclose(again.constrain(z)[0]["a"], space.constrain(z)[0]["a"])
    assert float(again.constrain(z + 50)[0]["a"][1]) == pytest.approx(2.0)


def test_a_posterior_survives_a_file(named, tmp_path):
    named.save(tmp_path / "q.flow")
    loaded = flowlab.load(tmp_path / "q.flow")
    assert isinstance(loaded, FlowPosterior)
    x, again = (q.sample((5,), torch.Generator().manual_seed(1)) for q in (named, loaded))
    assert all(torch.equal(x[name], again[name]) for name in x)
    with pytest.raises(PosteriorError, match="attach"):
        loaded.diagnostics()
    assert (loaded.restart_gap, loaded.prefit_seconds) == (named.restart_gap, named.prefit_seconds)
    assert loaded.history == named.history
    assert loaded.plot_elbo().axes
    assert "nan" not in str(FlowPosterior(loaded.flow, loaded.space).attach(log_prior).diagnostics(1000))
    assert loaded.attach(log_prior).elbo(2000).value == pytest.approx(named.elbo(2000).value, abs=1e-9)


# ---- correction and reports -------------------------------------------------------------------------------------


def test_constant_parts_of_a_parameter_leave_the_verdict_alone():
    """The first row of a correlation matrix's factor is (1, 0): its weighted standard deviation is rounding error."""
    prior = torch.distributions.LKJCholesky(2, torch.tensor(2.0).double())

    def log_prob(p):
        return prior.log_prob(p["L"]) + Normal(1.5 * p["L"][:, 1, 0], 1.0).log_prob(p["z"])

    posterior = fit_posterior(
        log_prob, supports={"L": ((2, 2), constraints.corr_cholesky), "z": ((), constraints.real)}, **QUIET
    )
    found = posterior.diagnostics()
    assert found.shift < 0.1
    assert found.verdict == "good"


def test_a_far_tail_of_a_parameter_is_no_reason_to_mistrust_good_weights():
    """A log-normal with a kurtosis of thousands: the standard deviations of two sets of draws differ by chance."""
    posterior = fit_posterior(
        lambda p: torch.distributions.LogNormal(0.0, 1.5).log_prob(p["x"]),
        supports={"x": ((), constraints.positive)},
        **QUIET,
    )
    for seed in range(5):
        found = posterior.diagnostics(random_state=seed)
        assert found.ess > 0.99
        assert found.verdict == "good"


def test_resampling_corrects_a_fit_that_is_too_narrow(named):
    posterior = fit_posterior(Independent(Normal(torch.zeros(2).double(), 0.8), 1).log_prob, features=2, **QUIET)
    posterior.attach(Independent(Normal(torch.zeros(2).double(), 1.0), 1).log_prob)
    found = posterior.diagnostics()
    assert found.verdict == "usable after resampling"
    assert found.log_evidence.value == pytest.approx(0.0, abs=0.03)
    assert float(posterior.sample((4000,), torch.Generator().manual_seed(0)).std()) == pytest.approx(0.8, abs=0.03)
    assert float(posterior.resample(4000).std()) == pytest.approx(1.0, abs=0.04)
    assert posterior.summary(4000, resample=True).loc["z[0]", "sd"] == pytest.approx(1.0, abs=0.06)


def test_resampling_refuses_where_weights_are_worthless():
    posterior = fit_posterior(Independent(Normal(torch.zeros(5).double(), 0.1), 1).log_prob, features=5, **QUIET)
    posterior.attach(Independent(Normal(torch.full((5,), 5.0).double(), 0.1), 1).log_prob)
    assert posterior.diagnostics().verdict == "do not trust"
    with pytest.raises(PosteriorError, match="k-hat"):
        posterior.resample(100)


def test_reports(named):
    text = str(named.diagnostics(2000))
    assert "k-hat" in text
    assert "nats" in text
    assert len(named.plot_pairs(["tau", "mu[0]"], n=50).axes) == 4
    assert named.plot_elbo().axes
    with pytest.raises(ValueError, match="no parameter sigma"):
        named.plot_pairs(["sigma"])
    import matplotlib.pyplot as plt

    plt.close("all")


# Any ArviZ before 1, the last for Python 3.11, warns on import of what will come.
@pytest.mark.filterwarnings("ignore:\\s*ArviZ is undergoing:FutureWarning")
def test_arviz_gets_the_draws_and_summarises_them_alike(named):
    arviz = pytest.importorskip("arviz", reason="pip install flowlab[arviz]")
    data = named.to_arviz(4000, random_state=1)
    assert dict(data.posterior.sizes)["draw"] == 4000
    x = named.sample((4000,), torch.Generator().manual_seed(1))
    for name, value in x.items():
        assert torch.equal(torch.as_tensor(data.posterior[name].values[0].copy()), value)
    ours = named.summary(4000, random_state=1)
    table = arviz.summary(data, kind="stats", round_to=8)
    assert len(table) == len(ours)
    for name in ("mu[0]", "tau", "p[2]", "share[1]", "L[1, 0]"):
        assert float(table.loc[name, "mean"]) == pytest.approx(ours.loc[name.replace(", ", ","), "mean"], abs=1e-6)
        assert float(table.loc[name, "sd"]) == pytest.approx(ours.loc[name.replace(", ", ","), "sd"], rel=1e-3)


def test_arviz_is_asked_for_by_name(named, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match="pip install arviz"):
        named.to_arviz(10)


# Shapes and log-weights by arviz-stats 0.8.0's psislw for log-weights -k log((i + 0.5) / n) + 0.1 sin i, where
# i = 7919 j mod n.
@pytest.mark.parametrize(
    ("k", "khat", "largest"),
    [(0.3, 0.35026679116256465, -4.986368162665054), (0.8, 0.7355047665042496, -2.419877710793651)],
)
def test_pareto_smoothing_agrees_with_arviz(k, khat, largest):
    n = 1000
    i = (torch.arange(n) * 7919 % n).double()
    found = smooth(-k * ((i + 0.5) / n).log() + 0.1 * i.sin())
    assert found.khat == pytest.approx(khat, abs=1e-10)
    assert float(found.log_weights.max()) == pytest.approx(largest, abs=1e-10)
    assert float(found.log_weights.exp().sum()) == pytest.approx(1.0)


def test_pareto_smoothing_of_weights_without_a_tail():
    assert smooth(torch.zeros(1000)).khat == -math.inf
    assert smooth(torch.zeros(1000)).ess == pytest.approx(1.0)
    assert smooth(torch.full((100,), -math.inf)).khat == math.inf
    weights = torch.zeros(1000)
    weights[:10] = -math.inf
    assert float(smooth(weights).log_weights[0]) == -math.inf


@pytest.mark.parametrize("features", [1, 2, 5])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_defensive_base_has_its_density_and_covers_all_scales(features, scale, generator):
    """Importance weights from it to round and to lopsided normal distributions of any scale have mean one."""
    base = Defensive(features)
    z = base.rsample((100_000,), generator)
    round_ = Normal(0.0, scale).log_prob(z).sum(-1)
    lopsided = Normal(0.0, scale).log_prob(z[:, 0]) + Normal(0.0, 1.0).log_prob(z[:, 1:]).sum(-1)
    for log_p in (round_, lopsided):
        weights = (log_p - base.log_prob(z)).exp()
        assert float(weights.mean()) == pytest.approx(1.0, abs=4 * float(weights.std()) / math.sqrt(len(z)) + 1e-3)
        assert float(weights.sum().square() / weights.square().sum()) > 50


def test_pathfinder_finds_an_exact_gaussian_and_the_search_its_missing_twin(generator):
    truth = correlated(5)
    target = Target(truth.log_prob, Space(5))
    found = pathfinder.find(target, pathfinder.finite_starts(target, 4, 1.0, generator), generator)[0]
    assert abs(found.elbo) < 1e-6
    assert torch.allclose(found.scale_tril @ found.scale_tril.T, truth.covariance_matrix, rtol=1e-4, atol=1e-6)
    both = modes([[0.0, 0.0], [20.0, 0.0]], [0.9, 0.1])
    flow = flowlab.Flow(flowlab.bases.Gaussian(2).double(), [])
    target = Target(both.log_prob, Space(2))
    ((mode, mass),) = missed_modes(flow, target, math.log(0.9), draw_survey(flow, target, 3000, generator), generator)
    assert torch.allclose(mode.mode, torch.tensor([20.0, 0.0], dtype=torch.float64), atol=0.01)
    assert mass == pytest.approx(0.1 / 0.9, rel=0.1)
