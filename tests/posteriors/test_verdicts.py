"""No wrong fit is called good: too narrow ones, spikes, twin modes, tails, improper densities.

benchmarks/verdicts.py has many more.
"""

import math
import warnings

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Gamma, HalfCauchy, Independent, MixtureSameFamily, Normal, constraints
from torch.nn.functional import logsigmoid

import flowlab
from flowlab.posteriors import FlowPosterior, fit_posterior
from flowlab.posteriors.diagnostics import diagnose
from flowlab.posteriors.space import Space
from flowlab.posteriors.sparing import sparing
from flowlab.posteriors.survey import draw_survey
from flowlab.posteriors.target import Target

QUIET = {"progress": False}


def two(features: int, at: float, width: float, share: float) -> MixtureSameFamily:
    """A standard normal, and beside it, along the first axis, one of another width."""
    centres = torch.zeros(2, features, dtype=torch.float64)
    centres[1, 0] = at
    widths = torch.tensor([1.0, width], dtype=torch.float64).unsqueeze(1).expand(2, features)
    return MixtureSameFamily(Categorical(torch.tensor([1 - share, share])), Independent(Normal(centres, widths), 1))


def standard(features: int) -> flowlab.Flow:
    return flowlab.Flow(flowlab.bases.Gaussian(features).double(), [])


def errors(posterior: FlowPosterior, mean: Tensor, sd: Tensor) -> tuple[float, float]:
    x = posterior.sample((100_000,), torch.Generator().manual_seed(1))
    return float(((x.mean(0) - mean) / sd).abs().max()), float((x.std(0) / sd).log().abs().max())


# Features, place, width and share of the second part.
PARTS = {
    "a wider part": (2, 0.0, 10.0, 0.05),
    "a rare wider part": (1, 0.0, 10.0, 0.01),
    "a spike": (2, 0.0, 0.01, 0.5),
    "a narrow twin": (2, 8.0, 0.2, 0.5),
    "a twin half as wide in ten dimensions": (10, 8.0, 0.5, 0.5),
    "a narrow twin on the line": (1, 20.0, 0.1, 0.5),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_plain_draws_never_reach_is_found_and_fitted(name):
    features, _, _, _ = PARTS[name]
    truth = two(*PARTS[name])
    posterior = fit_posterior(truth.log_prob, features=features, **QUIET)
    found = posterior.diagnostics()
    assert found.verdict == "good"
    assert max(errors(posterior, truth.mean, truth.stddev)) < 0.1
    assert found.log_evidence.value == pytest.approx(0.0, abs=0.05)


@pytest.mark.parametrize("name", [name for name in PARTS if "dimensions" not in name])
def test_a_fit_of_one_part_alone_is_not_good(name):
    """All weights of plain draws are equal, or nearly: what is missing lies elsewhere."""
    features, _, _, _ = PARTS[name]
    target = Target(two(*PARTS[name]).log_prob, Space(features))
    for seed in range(3):
        found = diagnose(standard(features), target, 10_000, torch.Generator().manual_seed(seed))
        assert found.verdict != "good"
        assert found.reasons


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_resampling_repairs_what_a_survey_sees(share):
    """A fit of the narrow part alone, and a posterior of which a part is ten times as wide: 5 % of it, or half."""
    truth = two(2, 0.0, 10.0, share)
    posterior = FlowPosterior(standard(2), Space(2)).attach(truth.log_prob)
    found = posterior.diagnostics()
    assert found.verdict == "usable after resampling"
    assert found.uncovered > 0.8 * share
    x = posterior.resample(20_000)
    assert float((x.std(0) / truth.stddev).log().abs().max()) < 0.05


@pytest.mark.parametrize(
    "log_prob",
    [
        lambda z: -2 / 3 * torch.log1p(z.abs()).sum(-1),
        lambda z: -0.25 * (z.shape[1] + 0.5) * torch.log1p(z.square().sum(-1)),
        lambda z: logsigmoid(z).sum(-1),
    ],
)
def test_mass_without_end_is_told_from_wide_fits(log_prob):
    for features in (1, 2):
        fit = standard(features)
        found = diagnose(fit, Target(log_prob, Space(features)), 10_000, torch.Generator().manual_seed(0))
        assert found.verdict == "do not trust"
        assert "improper prior" in found.reasons[0]
        wide = draw_survey(fit, Target(log_prob, Space(features)), 3000, torch.Generator().manual_seed(1))
        assert wide.far > 0.1


@pytest.mark.slow
def test_a_fit_without_an_integral_warns():
    with pytest.warns(UserWarning, match=r"not to be trusted: .*improper prior"):
        posterior = fit_posterior(lambda z: -2 / 3 * torch.log1p(z.abs()).sum(-1), features=1, **QUIET)
    assert posterior.diagnostics().verdict == "do not trust"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_posterior(Independent(Normal(torch.zeros(3).double(), 1.0), 1).log_prob, features=3, **QUIET)


def test_an_exact_fit_stays_good_at_every_size():
    for features in (1, 2, 5, 10, 50):
        target = Target(Independent(Normal(torch.zeros(features).double(), 1.0), 1).log_prob, Space(features))
        found = diagnose(standard(features), target, 10_000, torch.Generator().manual_seed(0))
        assert found.verdict == "good"
        assert found.shift < 1e-6
        assert ("unchecked" in " ".join(found.reasons)) == (features > 1)


def test_rounding_errors_far_out_are_no_mass():
    """Differences of lgamma are exact near the fit, and rounding noise of any size where its arguments are huge."""

    def log_prob(z: Tensor) -> Tensor:
        size = (z + 10).exp()
        noise = torch.lgamma(size + 3) - torch.lgamma(size) - 3 * (z + 10)
        return (noise - z.square() / 2).sum(-1)

    found = diagnose(standard(1), Target(log_prob, Space(1)), 10_000, torch.Generator().manual_seed(0))
    assert found.verdict == "good"


def test_a_flow_with_a_base_of_its_own_is_surveyed_as_well():
    base = flowlab.bases.StudentT(2).double()
    truth = two(2, 0.0, 10.0, 0.05)
    found = diagnose(flowlab.Flow(base, []), Target(truth.log_prob, Space(2)), 10_000, torch.Generator().manual_seed(0))
    assert found.verdict != "good"
    assert found.shift > 0.1


def test_nothing_unknown_is_printed_as_a_number():
    found = diagnose(
        standard(2), Target(two(2, 0.0, 1.0, 0.5).log_prob, Space(2)), 2000, torch.Generator().manual_seed(0)
    )
    text = str(found)
    assert "nan" not in text
    assert "KL -0.000" not in text
    assert "starts differ" not in text


def test_quick_log_densities_get_one_thread_and_slow_ones_all():
    before = torch.get_num_threads()
    weight = torch.randn(2, 10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    quick = Target(lambda z: -z.square().sum(-1), Space(2))
    slow = Target(lambda z: -(z @ weight).tanh().square().sum(-1), Space(2))
    torch.set_num_threads(2)
    try:
        for target, count in ((quick, 1), (slow, 2)):
            with sparing(target):
                assert torch.get_num_threads() == count
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("prior", [100.0, 1000.0])
def test_a_separable_regression_is_as_wide_as_its_prior(prior):
    """One slope, log-concave: flat from about zero on. Its moments by quadrature."""
    x = torch.tensor([2.0, 1.0, 1.0, 2.0], dtype=torch.float64)

    def log_prob(z: Tensor) -> Tensor:
        return logsigmoid(x * z).sum(-1) + Normal(0.0, prior).log_prob(z).sum(-1)

    grid = torch.linspace(-0.5 * prior, 9 * prior, 1_000_001, dtype=torch.float64).unsqueeze(1)
    weights = log_prob(grid).softmax(0).unsqueeze(1)
    mean = (weights * grid).sum(0)
    sd = (weights * (grid - mean).square()).sum(0).sqrt()
    posterior = fit_posterior(log_prob, features=1, **QUIET)
    assert posterior.diagnostics().verdict == "good"
    assert max(errors(posterior, mean, sd)) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("prior", [Gamma(0.05, 1.0), HalfCauchy(1.0)])
def test_verdicts_on_positive_parameters_bear_out(prior):
    """Mass at the bound, and a tail without moments: quantiles are right if good, or once resampled if so advised."""
    posterior = fit_posterior(lambda p: prior.log_prob(p["x"]), supports={"x": ((), constraints.positive)}, **QUIET)
    found = posterior.diagnostics()
    assert found.verdict != "do not trust"
    x = posterior.sample((100_000,))["x"] if found.verdict == "good" else posterior.resample(10_000)["x"]
    truth = prior.sample((100_000,))
    for level in (0.25, 0.5, 0.75, 0.95):
        assert float((truth <= x.quantile(level)).double().mean()) == pytest.approx(level, abs=0.03)
    assert math.isfinite(found.divergence)
