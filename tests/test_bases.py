"""Base distributions: densities against scipy and scikit-learn, draws and their gradients against closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
import sklearn.mixture
import torch
from torch import Tensor, distributions

from constructors import BASES, perturb
from flowlab.bases import Base, Gaussian, GaussianMixture, Kernels, StudentT, Uniform
from helpers import seeded

EVERY = pytest.mark.parametrize("build", BASES.values(), ids=BASES)


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("features", [1, 4])
@EVERY
def test_shapes_and_types(build: Callable, features: int, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    base = build(features).to(dtype)
    for draw in (base.sample, base.rsample):
        z = draw(shape, seeded())
        assert z.shape == (*shape, features)
        assert z.dtype == dtype
        log_prob = base.log_prob(z)
        assert log_prob.shape == shape
        assert log_prob.dtype == dtype
        assert torch.isfinite(log_prob).all()
        assert math.prod(shape) == 0 or bool(base.support.check(z).all())  # torch's check refuses empty batches


@EVERY
def test_generator_decides_the_draws(build: Callable) -> None:
    base = build(3)
    before = torch.random.get_rng_state()
    for draw in (base.sample, base.rsample):
        assert torch.equal(draw((4,), seeded(1)), draw((4,), seeded(1)))
        assert not torch.equal(draw((4,), seeded(1)), draw((4,), seeded(2)))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(3)
    first = base.sample((4,))
    torch.manual_seed(3)
    assert torch.equal(base.sample((4,)), first)


def test_generator_decides_the_initial_means() -> None:
    before = torch.random.get_rng_state()
    assert torch.equal(GaussianMixture(2, generator=seeded()).means, GaussianMixture(2, generator=seeded()).means)
    assert torch.equal(torch.random.get_rng_state(), before)


@EVERY
def test_only_rsample_carries_gradients(build: Callable) -> None:
    base = build(2)
    assert not base.sample((3,), seeded()).requires_grad
    trained = list(base.parameters())
    assert base.rsample((3,), seeded()).requires_grad == bool(trained)
    assert torch.equal(base.sample((3,), seeded()), base.rsample((3,), seeded()).detach())
    if trained:
        for gradient in torch.autograd.grad(base.rsample((3,), seeded()).square().sum(), trained, allow_unused=True):
            assert gradient is not None
            assert torch.isfinite(gradient).all()
            assert gradient.abs().sum() > 0


@EVERY
def test_density_integrates_to_one_and_matches_the_draws(build: Callable) -> None:
    base = build(1).double()
    # An even number of points puts none of them on an edge. The range holds all but 1e-6 of the mass of a Student t
    # with 5 degrees of freedom.
    t = torch.linspace(-8, 8, 200_000, dtype=torch.float64)
    x, weight = t.sinh(), t.cosh() * (t[1] - t[0])
    with torch.no_grad():
        density = base.log_prob(x.unsqueeze(-1)).exp() * weight
    assert float(density.sum()) == pytest.approx(1, abs=2e-4)
    draws = base.sample((20_000,), seeded()).squeeze(-1).numpy()
    cdf = density.cumsum(0).numpy()
    assert scipy.stats.kstest(draws, lambda v: np.interp(v, x.numpy(), cdf)).pvalue > 1e-3


# Gaussian and Student t -----------------------------------------------------------------------------------------------


def test_gaussian_density() -> None:
    z = torch.tensor([[0.0, 1.0], [-3.0, 2.5], [30.0, -1e3]], dtype=torch.float64)
    expected = torch.as_tensor(scipy.stats.norm.logpdf(z).sum(-1))
    torch.testing.assert_close(Gaussian(2).double().log_prob(z), expected)
    base = Gaussian(2, learnable=True).double()
    with torch.no_grad():
        base.loc.copy_(torch.tensor([0.5, -2.0]))
        base.log_scale.copy_(torch.tensor([1.5, -0.7]))
    expected = scipy.stats.norm.logpdf(z, base.loc.detach(), base.log_scale.detach().exp()).sum(-1)
    torch.testing.assert_close(base.log_prob(z).detach(), torch.as_tensor(expected))
    draws = base.sample((100_000,), seeded())
    torch.testing.assert_close(draws.mean(0), base.loc.detach(), rtol=0, atol=0.06)
    torch.testing.assert_close(draws.std(0), base.log_scale.detach().exp(), rtol=0.01, atol=0)


@pytest.mark.parametrize("df", [0.6, 1.0, 2.5, 10.0, 29.0, 31.0, 300.0])
def test_student_density(df: float) -> None:
    z = torch.tensor([0.0, 1e-8, 0.3, -2.0, 50.0, 1e5, -1e7, 1e30], dtype=torch.float64).unsqueeze(-1)
    base = StudentT(1, df=df).double()
    torch.testing.assert_close(base.degrees_of_freedom().detach(), torch.tensor([df]).double(), rtol=1e-6, atol=0)
    expected = scipy.stats.t.logpdf(z.numpy(), base.degrees_of_freedom().item()).sum(-1)
    torch.testing.assert_close(base.log_prob(z).detach(), torch.as_tensor(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("df", [2.0, 100.0, 1e4, 1e6])
def test_student_density_in_single_precision(df: float) -> None:
    """The normalising constant is a difference of log-gammas as large as df."""
    z = torch.tensor([0.0, 1.0, -3.0]).unsqueeze(-1)
    base = StudentT(1, df=df)
    expected = scipy.stats.t.logpdf(z.numpy(), base.degrees_of_freedom().item()).sum(-1)
    torch.testing.assert_close(base.log_prob(z).detach().double(), torch.as_tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_student_gradients_are_finite(dtype: torch.dtype) -> None:
    base = StudentT(2, df=1.0).to(dtype)
    z = torch.tensor([[0.0, 1e6], [-1e20, 1e-20], [3.0, 1e30]], dtype=dtype, requires_grad=True)
    for gradient in torch.autograd.grad(base.log_prob(z).sum(), [z, base.raw_df]):
        assert torch.isfinite(gradient).all()
    assert torch.autograd.gradcheck(
        StudentT(2, df=4.0).double().log_prob, torch.tensor([[0.3, -7.0]], dtype=torch.float64, requires_grad=True)
    )


@pytest.mark.parametrize(("df", "min_df"), [(0.4, 0.5), (1.0, 0.0), (2.0, -1.0)])
def test_student_rejects_degrees_of_freedom(df: float, min_df: float) -> None:
    with pytest.raises(ValueError, match="df must exceed min_df"):
        StudentT(1, df=df, min_df=min_df)


def assert_mean_gradient(
    base: Base, statistic: Callable[[Tensor], Tensor], closed_form: Tensor, batches: int = 50, size: int = 2000
) -> None:
    """Monte Carlo gradients of E[statistic(z)] in every parameter match the closed form within 4 standard errors."""
    parameters = list(base.parameters())
    expected = torch.autograd.grad(closed_form, parameters, allow_unused=True, retain_graph=True)
    generator = seeded()
    draws = [
        torch.autograd.grad(statistic(base.rsample((size,), generator)).mean(), parameters, allow_unused=True)
        for _ in range(batches)
    ]
    for parameter, wanted, *found in zip(parameters, expected, *draws, strict=True):
        wanted = torch.zeros_like(parameter) if wanted is None else wanted
        found = torch.stack([torch.zeros_like(parameter) if g is None else g for g in found])
        error = found.std(0) / batches**0.5
        assert bool(((found.mean(0) - wanted).abs() <= 4 * error + 1e-9).all()), (found.mean(0), wanted, error)


def test_student_gradient_of_a_draw_in_its_degrees_of_freedom() -> None:
    base = StudentT(2, df=8.0).double()
    with torch.no_grad():
        base.raw_df += torch.tensor([0.0, 4.0])
    df = base.degrees_of_freedom()
    assert_mean_gradient(base, lambda z: z.square().sum(-1), (df / (df - 2)).sum())
    absolute = 2 * df.sqrt() * (torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2)).exp() / (df - 1) / math.sqrt(math.pi)
    assert_mean_gradient(base, lambda z: z.abs().sum(-1), absolute.sum())


# Uniform --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_density(dtype: torch.dtype) -> None:
    base = Uniform(2, low=-1.0, high=2.0).to(dtype)
    z = torch.tensor([[0.0, 0.0], [-1.0, 2.0], [-1.1, 0.0], [0.0, 2.1], [1e30, 0.0]], dtype=dtype, requires_grad=True)
    log_prob = base.log_prob(z)
    inside = -2 * math.log(3)
    expected = torch.tensor([inside, inside, -math.inf, -math.inf, -math.inf], dtype=torch.float64)
    torch.testing.assert_close(
        log_prob.double().detach(), expected, rtol=1e-14 if dtype == torch.float64 else 1e-6, atol=0
    )
    (gradient,) = torch.autograd.grad(log_prob.sum(), z)
    assert torch.equal(gradient, torch.zeros_like(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_edges_are_inside(dtype: torch.dtype) -> None:
    """Also where single precision cannot hold them."""
    base = Uniform(1, low=0.1, high=0.3).to(dtype)
    edges = torch.tensor([[0.1], [0.3]], dtype=dtype)
    assert torch.isfinite(base.log_prob(edges)).all()
    assert (base.log_prob(edges + torch.tensor([[-1e-6], [1e-6]], dtype=dtype)) == -math.inf).all()


def test_uniform_density_at_infinity() -> None:
    assert Uniform(1).log_prob(torch.tensor([math.inf])) == -math.inf


def test_uniform_rejects_an_empty_box() -> None:
    with pytest.raises(ValueError, match="low must be below high"):
        Uniform(1, low=1.0, high=1.0)


# Gaussian mixture -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    generator = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0, 0.0], [4.0, -2.0, 1.0], [-3.0, 1.0, 5.0]])
    mixing = generator.normal(size=(3, 3, 3))
    kinds = generator.integers(0, 3, 600)
    return centres[kinds] + np.einsum("nij,nj->ni", mixing[kinds], generator.normal(size=(600, 3)))


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("features", [1, 3])
def test_mixture_has_the_density_of_scikit_learns(rows: np.ndarray, covariance: str, features: int) -> None:
    x = rows[:, :features]
    fitted = sklearn.mixture.GaussianMixture(3, covariance_type=covariance, random_state=0).fit(x)
    base = GaussianMixture.from_sklearn(fitted)
    everywhere = np.concatenate([x, 30 * x])
    torch.testing.assert_close(
        base.log_prob(torch.tensor(everywhere)).detach(),
        torch.tensor(fitted.score_samples(everywhere)),
        rtol=1e-9,
        atol=1e-9,
    )


def test_mixture_starts_as_unit_gaussians(generator: torch.Generator) -> None:
    base, z = GaussianMixture(2, 3, generator=generator).double(), torch.tensor([[0.3, -1.0]], dtype=torch.float64)
    terms = [scipy.stats.multivariate_normal(mean).pdf(z.numpy()) for mean in base.means.detach().numpy()]
    assert float(base.log_prob(z).detach()) == pytest.approx(math.log(np.mean(terms)))


def moments(base: GaussianMixture) -> tuple[Tensor, Tensor]:
    """E[z] and E[z zᵀ], differentiable in the parameters."""
    weights, tril = base.logits.softmax(0), base.scale_tril()
    second = tril @ tril.mT + base.means.unsqueeze(-1) * base.means.unsqueeze(-2)
    return weights @ base.means, torch.einsum("k,kij->ij", weights, second)


@pytest.mark.parametrize("features", [1, 3])
def test_mixture_draws_have_its_moments(features: int) -> None:
    base = perturb(GaussianMixture(features, 3, generator=seeded(1)).double(), scale=0.7)
    z = base.sample((100_000,), seeded())
    with torch.no_grad():
        mean, second = moments(base)
    products = z.unsqueeze(-1) * z.unsqueeze(-2)
    for draws, expected in ((z, mean), (products, second)):
        assert bool(((draws.mean(0) - expected).abs() <= 4 * draws.std(0) / len(z) ** 0.5).all())


@pytest.mark.parametrize("features", [1, 2, 3])
def test_mixture_gradient_of_a_draw(features: int) -> None:
    """Implicit reparameterization, in logits, means and scales, also where components overlap and are correlated."""
    base = perturb(GaussianMixture(features, 3, generator=seeded(1)).double(), scale=0.5)
    mean, second = moments(base)
    direction = torch.linspace(1, -0.5, features, dtype=torch.float64)
    assert_mean_gradient(base, lambda z: z @ direction, mean @ direction)
    assert_mean_gradient(base, lambda z: (z @ direction).square(), direction @ second @ direction)


def test_mixture_gradient_with_separated_components() -> None:
    """A draw moves with its own component, though the distribution function between components is flat."""
    base = GaussianMixture(1, 2).double()
    with torch.no_grad():
        base.means.copy_(torch.tensor([[-50.0], [50.0]]))
    z = base.rsample((200,), seeded())
    (gradient,) = torch.autograd.grad(z[z > 0].mean(), base.means)
    torch.testing.assert_close(gradient, torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    assert 0 < int((z > 0).sum()) < 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixture_gradient_of_a_draw_is_finite_far_apart(dtype: torch.dtype) -> None:
    base = perturb(GaussianMixture(3, 4, generator=seeded(1)), scale=5.0).to(dtype)
    z = base.rsample((5000,), seeded())
    for gradient in torch.autograd.grad(z.square().sum(), list(base.parameters())):
        assert torch.isfinite(gradient).all()


def test_entropy_of_a_mixture() -> None:
    """The mean of -log p over draws against quadrature of -p log p."""
    base = perturb(GaussianMixture(1, 3, generator=seeded(1)).double(), scale=1.0)
    x = torch.linspace(-40, 40, 100_001, dtype=torch.float64)
    with torch.no_grad():
        log_prob = base.log_prob(x.unsqueeze(-1))
        entropy = float(-(log_prob.exp() * log_prob).sum() * (x[1] - x[0]))
        surprise = -base.log_prob(base.sample((100_000,), seeded()))
    assert float(surprise.mean()) == pytest.approx(entropy, abs=4 * float(surprise.std()) / 100_000**0.5)


def test_bases_of_given_moments():
    """They come back finished, in the floating-point type of what they are given, without drawing."""
    state = torch.get_rng_state()
    means = torch.tensor([[0.0, 1.0], [3.0, -2.0]], dtype=torch.float64)
    scale_tril = torch.tensor([[[1.0, 0.0], [0.5, 2.0]], [[0.3, 0.0], [-0.1, 0.2]]], dtype=torch.float64)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    mixture = GaussianMixture.from_moments(weights.log(), means, scale_tril)
    kernels = Kernels.from_rows(means, bandwidth=0.7)
    normal = Gaussian.from_moments(means[1], torch.tensor([0.5, -0.5], dtype=torch.float64))
    assert torch.equal(torch.get_rng_state(), state)
    z = torch.tensor([[0.3, -0.4], [2.0, 1.0]], dtype=torch.float64)
    of_mixture = distributions.MixtureSameFamily(
        distributions.Categorical(weights), distributions.MultivariateNormal(means, scale_tril=scale_tril)
    )
    of_kernels = distributions.MixtureSameFamily(
        distributions.Categorical(torch.ones(2, dtype=torch.float64)),
        distributions.Independent(distributions.Normal(means, 0.7), 1),
    )
    of_normal = distributions.Independent(distributions.Normal(means[1], torch.tensor([0.5, -0.5]).double().exp()), 1)
    for base, known in ((mixture, of_mixture), (kernels, of_kernels), (normal, of_normal)):
        assert base.log_prob(z).dtype == torch.float64
        torch.testing.assert_close(base.log_prob(z).detach(), known.log_prob(z), rtol=1e-12, atol=1e-12)
