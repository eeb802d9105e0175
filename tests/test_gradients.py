"""Gradient estimators against closed forms, and their variances against closed forms."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Beta, Gamma, Normal

from flowlab import bases
from flowlab.gradients import (
    ESTIMATORS,
    gradient_report,
    implicit,
    implicit_sample,
    pathwise,
    plot_report,
    score_function,
)
from helpers import load_program

N = 1_000_000

# f, mean, scale, and d/dmean, d/dscale of E f(mean + scale ε).
CLOSED = {
    "z²": (torch.square, 1.5, 0.7, (3.0, 1.4)),
    "z³": (lambda z: z**3, 1.5, 0.7, (3 * (1.5**2 + 0.7**2), 6 * 1.5 * 0.7)),
    "cos z": (torch.cos, 0.4, 1.2, (-math.sin(0.4) * math.exp(-0.72), -1.2 * math.cos(0.4) * math.exp(-0.72))),
}


def moment(k: int) -> float:
    """E ε^k of a standard normal."""
    return 0.0 if k % 2 else math.prod(range(1, k, 2))


def raw(mean: float, scale: float, k: int) -> float:
    return sum(math.comb(k, j) * mean ** (k - j) * scale**j * moment(j) for j in range(k + 1))


def closed_variances(power: int, mean: float, scale: float) -> dict[tuple[str, str], float]:
    """Variances of one draw's gradient of E z^power, by moments: polynomials in ε."""

    def expectation(coefficients: dict[int, float]) -> float:
        return sum(c * moment(k) for k, c in coefficients.items())

    def product(*polynomials: dict[int, float]) -> dict[int, float]:
        result = {0: 1.0}
        for p in polynomials:
            new: dict[int, float] = {}
            for i, a in result.items():
                for j, b in p.items():
                    new[i + j] = new.get(i + j, 0.0) + a * b
            result = new
        return result

    z, e = {0: mean, 1: scale}, {1: 1.0}
    value, slope = product(*[z] * power), product({0: float(power)}, *[z] * (power - 1))
    single = {
        ("mean", "pathwise"): slope,
        ("scale", "pathwise"): product(slope, e),
        ("mean", "score"): product(value, e, {0: 1 / scale}),
        ("scale", "score"): product(value, {0: -1 / scale, 2: 1 / scale}),
    }
    return {name: expectation(product(g, g)) - expectation(g) ** 2 for name, g in single.items()}


def normal(mean: torch.Tensor, scale: torch.Tensor) -> Normal:
    return Normal(mean, scale)


def report(f, mean: float, scale: float, exact: tuple[float, float]):
    parameters = {"mean": torch.tensor(mean).double(), "scale": torch.tensor(scale).double()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return gradient_report(f, normal, parameters, N, exact={"mean": exact[0], "scale": exact[1]})


@pytest.mark.parametrize("name", CLOSED)
def test_every_estimator_agrees_with_the_closed_form_within_four_standard_errors(name):
    table = report(*CLOSED[name])
    assert len(table) == 2 * len(ESTIMATORS)
    assert (table["error in standard errors"].abs() < 4).all()


@pytest.mark.parametrize(("name", "power"), [("z²", 2), ("z³", 3)])
def test_variances_agree_with_their_closed_forms_and_pathwise_wins_by_far(name, power):
    f, mean, scale, exact = CLOSED[name]
    table = report(f, mean, scale, exact).set_index(["parameter", "estimator"])
    for key, wanted in closed_variances(power, mean, scale).items():
        assert table.loc[key, "variance"] == pytest.approx(wanted, rel=0.05)
    assert table.loc[("mean", "score"), "variance"] > 3 * table.loc[("mean", "pathwise"), "variance"]
    assert table.loc[("mean", "score, loo"), "variance"] < table.loc[("mean", "score"), "variance"]


def test_pathwise_does_not_always_win():
    """For cos z at mean 0, scale 1 the pathwise gradient −sin z has variance (1 − e⁻²)/2 = 0.43, the score's 0.30."""
    table = report(torch.cos, 0.0, 1.0, (0.0, -math.exp(-0.5))).set_index(["parameter", "estimator"])
    path, score = (1 - math.exp(-2)) / 2, (1 + (1 - 4) * math.exp(-2)) / 2
    assert table.loc[("mean", "pathwise"), "variance"] == pytest.approx(path, rel=0.01)
    assert table.loc[("mean", "score"), "variance"] == pytest.approx(score, rel=0.01)
    assert round(path, 2) == 0.43
    assert round(score, 2) == 0.30


@pytest.mark.slow
def test_surrogates_have_the_value_of_f_and_bias_only_where_documented():
    mean = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(2.0, dtype=torch.float64)
    exact = 1.0  # of E z² in the mean
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for baseline, factor in ((None, 1.0), ("loo", 1.0), ("mean", 0.75)):
            found = []
            for _ in range(4000):
                surrogate = score_function(torch.square, Normal(mean, scale), 4, baseline)
                found.append(torch.autograd.grad(surrogate.mean(), mean)[0])
            found = torch.stack(found)
            error = found.std() / 4000**0.5
            assert float((found.mean() - factor * exact).abs()) < 4 * float(error)
        z = torch.tensor([1.0, 2.0])
    assert torch.equal(score_function(torch.square, _Fixed(z), 2).detach(), z**2)


class _Fixed:
    def __init__(self, z: torch.Tensor) -> None:
        self.z = z

    def sample(self, shape):
        return self.z

    def log_prob(self, z):
        return -z


def test_the_score_function_needs_no_derivative_of_f():
    logit = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        score_function(lambda z: (z > 0.5).double() * 3, Bernoulli(logits=logit), N, "loo").mean().backward()
    p = torch.sigmoid(logit.detach())
    assert float(logit.grad) == pytest.approx(float(3 * p * (1 - p)), abs=4 * 1.5 / N**0.5)


# Distributions of which implicit gradients of a mean are known: build(θ), θ, f, d E f / dθ.
IMPLICIT = {
    "Gamma": (lambda a: Gamma(a, torch.ones_like(a)), 2.5, torch.square, 2 * 2.5 + 1),
    "Beta": (lambda a: Beta(a, torch.full_like(a, 3.0)), 2.0, lambda z: z, 3.0 / 25.0),
}


@pytest.mark.parametrize("name", IMPLICIT)
def test_implicit_gradients_agree_with_closed_forms(name):
    build, value, f, exact = IMPLICIT[name]
    theta = torch.full((N,), value, dtype=torch.float64, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        f(implicit(lambda z: z[0], build(theta))).sum().backward()
    error = float(theta.grad.std()) / N**0.5
    assert abs(float(theta.grad.mean()) - exact) < 4 * error


def test_implicit_gradients_by_a_distribution_function_given():
    """A logistic distribution that only has a cdf: E z² = mean² + scale² π²/3."""
    n = 200_000
    mean = torch.full((n,), 0.5, dtype=torch.float64, requires_grad=True)
    scale = torch.full((n,), 0.8, dtype=torch.float64, requires_grad=True)
    u = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = (mean + scale * torch.logit(u)).detach()
    draws = implicit_sample(z, lambda z: torch.sigmoid((z - mean) / scale))
    assert torch.equal(draws.detach(), z)
    draws.square().sum().backward()
    for parameter, exact in ((mean, 1.0), (scale, 2 * 0.8 * math.pi**2 / 3)):
        error = float(parameter.grad.std()) / n**0.5
        assert abs(float(parameter.grad.mean()) - exact) < 4 * error


def test_implicit_gradients_of_a_gaussian_mixture(generator):
    """E |z|² of a mixture: weights, means and covariances all have known gradients."""
    base = bases.GaussianMixture(2, 2, generator=generator).double()
    n = 100_000
    z = base.sample((n,), generator)
    implicit_sample(z, base.conditional_cdf).square().sum(-1).mean().backward()
    weights = base.logits.detach().softmax(0)
    exact = 2 * weights.unsqueeze(1) * base.means.detach()
    assert torch.allclose(base.means.grad, exact, atol=0.05)
    second = base.means.detach().square().sum(1) + 2
    assert torch.allclose(base.logits.grad, weights * (second - (weights * second).sum()), atol=0.05)


def test_flows_are_distributions_to_all_of_them():
    from flowlab import presets

    flow = presets.real_nvp(2, layers=2, hidden=(8,), generator=torch.Generator().manual_seed(0))

    def f(z: torch.Tensor) -> torch.Tensor:
        return (z - 1).square().sum(-1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = []
        for surrogate in (pathwise(f, flow, 100_000), score_function(f, flow, 100_000, "loo")):
            flow.zero_grad()
            surrogate.mean().backward()
            found.append(flow.layers[1].network.last.bias.grad.clone())
    assert torch.allclose(*found, atol=0.06)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="no rsample"):
        pathwise(torch.square, Bernoulli(torch.tensor(0.5)))
    with pytest.raises(ValueError, match="baseline must be"):
        score_function(torch.square, Normal(0.0, 1.0), 2, "median")
    with pytest.raises(ValueError, match="two draws"):
        score_function(torch.square, Normal(0.0, 1.0), 1, "loo")
    with pytest.raises(ValueError, match="estimators must be"):
        gradient_report(torch.square, normal, {}, 10, ["magic"])
    with pytest.raises(ValueError, match="one number for each"):
        implicit_sample(torch.zeros(3), lambda z: z.sum())


def test_the_picture():
    axis = plot_report(report(torch.cos, 0.0, 1.0, (0.0, 0.0)), title="cos z")
    assert axis.get_title() == "cos z"
    import matplotlib.pyplot as plt

    plt.close("all")


def test_the_example_tells_its_story(tmp_path):
    example = load_program("examples/reparameterization_trick.py")
    with torch.random.fork_rng():
        ratios = list(example.main(50_000, tmp_path / "picture.png").values())
    assert ratios[0] > 10
    assert ratios[1] > 5
    assert ratios[2] < 1
    assert (tmp_path / "picture.png").exists()
