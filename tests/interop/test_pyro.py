"""Flows as guides of Pyro models."""

import pytest
import torch

pyro = pytest.importorskip("pyro")

import pyro.distributions as dist  # noqa: E402
from pyro.infer import SVI, Predictive, Trace_ELBO  # noqa: E402

import flowlab  # noqa: E402
from flowlab.interop.pyro import FlowGuide, PyroFlow  # noqa: E402

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def clean():
    with torch.random.fork_rng():
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        yield
        pyro.clear_param_store()


def eight_schools() -> None:
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0).double(), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0).double()))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(8).double(), 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta, SIGMA), obs=Y)


def by_quadrature(
    scale: torch.Tensor,
    prior: dist.Distribution,
    sd: torch.Tensor,
    design: torch.Tensor,
    noise: torch.Tensor,
    y: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact means and standard deviations of coefficients b ~ N(0, sd²) and of a scale, given y ~ N(design b, noise²).

    Given the scale everything is Gaussian; the scale is summed over a geometric grid (n,), each point with its own
    design (n, rows, k) and noise (n, rows).
    """
    covariance = torch.diag_embed(noise.square()) + design * sd.square() @ design.mT
    evidence = dist.MultivariateNormal(torch.zeros(len(y)).double(), covariance).log_prob(y)
    weight = (evidence + prior.log_prob(scale) + scale.log()).softmax(0).unsqueeze(1)
    inner = torch.linalg.inv(torch.diag(sd**-2) + design.mT / noise.square().unsqueeze(1) @ design)
    mean = (inner @ (design.mT @ (y / noise.square()).unsqueeze(2))).squeeze(2)
    mean = torch.cat([mean, scale.unsqueeze(1)], 1)
    square = mean.square()
    square[:, :-1] += inner.diagonal(dim1=1, dim2=2)
    mean, square = (weight * mean).sum(0), (weight * square).sum(0)
    return mean, (square - mean.square()).sqrt()


@pytest.mark.slow
def test_eight_schools_by_the_recipe():
    """Every mean within a tenth of its standard deviation."""
    guide = FlowGuide(eight_schools)
    guide.fit(steps=300)
    posterior = guide.posterior()
    assert posterior.diagnostics(4000).verdict == "good"
    tau = torch.logspace(-4, 3, 4000, dtype=torch.float64)
    design = torch.cat([torch.ones(len(tau), 8, 1), tau.view(-1, 1, 1) * torch.eye(8)], 2)
    sd = torch.tensor([5.0] + 8 * [1.0], dtype=torch.float64)
    mean, sd = by_quadrature(tau, dist.HalfCauchy(torch.tensor(5.0).double()), sd, design, SIGMA.expand(len(tau), 8), Y)
    assert (float(mean[0]), float(mean[-1])) == pytest.approx((4.41, 3.60), abs=0.1)  # posteriordb's reference draws
    table = posterior.summary(20_000)
    assert set(table.index) == {"mu", "tau", *(f"theta[{i}]" for i in range(8))}
    found = torch.tensor([table.loc[name, "mean"] for name in ("mu", *(f"theta[{i}]" for i in range(8)), "tau")])
    assert float(((found - mean) / sd).abs().max()) < 0.1
    assert set(guide()) >= {"mu", "tau", "theta"}


def regression(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    weight = pyro.sample("weight", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("rows", len(x)):
        # Works with particles side by side too, where weight has a batch of its own.
        return pyro.sample("y", dist.Normal((x * weight).sum(-1), scale), obs=y)


@pytest.mark.slow
def test_a_regression_with_a_positive_scale_under_svi_and_predictive():
    """Means within a tenth of their standard deviations, by the settings that the class recommends."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator)
    y = x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(60, generator=generator)
    guide = FlowGuide(
        regression, flow=lambda d: flowlab.presets.real_nvp(d, layers=4, hidden=(16,), generator=generator)
    )
    steps = 800
    optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1 / steps)})
    svi = SVI(regression, guide, optimizer, Trace_ELBO(num_particles=64, vectorize_particles=True))
    for _ in range(steps):
        svi.step(x, y)
    scale = torch.logspace(-1, 1, 2000, dtype=torch.float64)
    design = x.double().expand(len(scale), 60, 2)
    prior = dist.HalfNormal(torch.tensor(2.0).double())
    mean, sd = by_quadrature(
        scale, prior, torch.full((2,), 10.0).double(), design, scale.unsqueeze(1).expand(-1, 60), y.double()
    )
    posterior = guide.posterior(x, y)
    table = posterior.summary(20_000)
    rows = ["weight[0]", "weight[1]", "scale"]
    assert float(((torch.tensor(list(table.loc[rows, "mean"])) - mean) / sd).abs().max()) < 0.1
    assert float((torch.tensor(list(table.loc[rows, "sd"])) / sd).log().abs().max()) < 0.1
    found = posterior.diagnostics(4000)
    assert found.verdict == "good"
    assert found.log_evidence.standard_error < 0.1
    drawn = Predictive(regression, guide=guide, num_samples=50)(x)
    assert drawn["y"].shape == (50, 60)
    assert bool((drawn["scale"] > 0).all()) if "scale" in drawn else True


def test_flows_are_distributions_inside_a_model():
    flow = flowlab.presets.maf(2, layers=1)
    conditional = flowlab.presets.maf(2, layers=1, context_features=3)
    context = torch.randn(4, 3)

    def model() -> torch.Tensor:
        pyro.sample("z", PyroFlow(flow))
        with pyro.plate("rows", 4):
            return pyro.sample("x", PyroFlow(conditional, context))

    trace = pyro.poutine.trace(model).get_trace()
    z, x = trace.nodes["z"]["value"], trace.nodes["x"]["value"]
    assert x.shape == (4, 2)
    exact = flow.log_prob(z) + conditional.log_prob(x, context).sum()
    assert torch.allclose(trace.log_prob_sum(), exact, atol=1e-5)


def test_a_flow_of_the_wrong_width_is_named():
    guide = FlowGuide(eight_schools, flow=flowlab.presets.maf(3))
    with pytest.raises(ValueError, match="10 unconstrained latent numbers"):
        guide()


X = torch.linspace(-1, 1, 20).unsqueeze(1)
OBSERVED = 2 * X[:, 0] + 0.3 * torch.randn(20, generator=torch.Generator().manual_seed(0))


def by_matrix(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", dist.Normal(x @ weight, sigma), obs=y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_regression_by_a_matrix_product_in_either_precision(dtype):
    x, y = X.to(dtype), OBSERVED.to(dtype)
    guide = FlowGuide(by_matrix)
    posterior = guide.fit(x, y, steps=50)
    assert posterior.diagnostics(1000).verdict == "good"
    assert posterior.flow.dtype == torch.float64
    assert guide.posterior(x, y).diagnostics(1000).verdict == "good"
    # Given sigma all is Gaussian: the mean follows from the draws of sigma.
    drawn = posterior.sample((4000,), generator=torch.Generator().manual_seed(0))
    square = x.double().square().sum()
    exact = (x[:, 0] * y).double().sum() / (square + drawn["sigma"].square())
    assert float(drawn["weight"].mean()) == pytest.approx(float(exact.mean()), abs=0.03)
    assert {value.dtype for value in guide(x, y).values()} == {dtype}
    if dtype == torch.float32:
        assert Predictive(by_matrix, guide=guide, num_samples=4)(x)["y"].dtype == dtype


def test_dtype_is_the_training_s_and_not_the_model_s():
    posterior = FlowGuide(by_matrix).fit(X, OBSERVED, steps=20, dtype=torch.float32)
    assert posterior.target.dtype == torch.float32


def test_networks_of_torch_in_the_model():
    class Net(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = pyro.nn.PyroModule[torch.nn.Linear](1, 1)
            self.inner.weight = pyro.nn.PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
            self.outer = torch.nn.Linear(1, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> None:
            mean = self.outer(self.inner(x)).squeeze(-1)
            with pyro.plate("rows", len(x)):
                pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    for dtype in (torch.float32, torch.float64):
        posterior = FlowGuide(Net().to(dtype)).fit(X.to(dtype), OBSERVED.to(dtype), steps=20)
        assert posterior.diagnostics(1000).verdict == "good"


def subsampled(x: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x), subsample_size=2) as i:
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[i])


def test_plates_that_draw_rows_are_for_svi():
    x = torch.tensor([0.5, -1.0, 2.0, 0.3])
    guide = FlowGuide(subsampled)
    for call in (lambda: guide.fit(x, steps=20), lambda: guide.posterior(x)):
        with pytest.raises(ValueError, match=r"plate 'rows' draws 2 of 4 rows anew .* leave subsample_size out"):
            call()
    svi = SVI(subsampled, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step(x))) for _ in range(3))

    def chosen(x: torch.Tensor, rows: torch.Tensor) -> None:  # always the same
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x), subsample=rows) as i:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[i])

    posterior = FlowGuide(chosen).fit(x, torch.tensor([0, 2]), steps=20)
    assert float(posterior.summary(4000).loc["mu", "mean"]) == pytest.approx(2 * 2.5 / 5, abs=0.03)


def with_a_share() -> None:
    top = pyro.sample("top", dist.Gamma(3.0, 1.0))
    height = pyro.sample("height", dist.Uniform(0.0, top))
    pyro.sample("y", dist.Normal(height, 0.1), obs=torch.tensor(0.5))


def with_noise_of_its_own() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu + torch.randn(()), 1.0), obs=torch.tensor(0.5))


def with_a_hidden_choice() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    kind = pyro.sample("kind", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(mu + kind, 1.0), obs=torch.tensor(0.5))


def with_a_site_at_times() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    if mu > 0:
        pyro.sample("nu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.tensor(0.5))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_a_share, r"support of site 'height' depends on other sites: .*sample a share"),
        (with_noise_of_its_own, "is another one in every call with the same values"),
        (pyro.poutine.block(with_a_hidden_choice, hide=["kind"]), "is another one in every call with the same values"),
        (with_a_hidden_choice, "cannot handle discrete sample site 'kind'"),
        (with_a_site_at_times, r"'nu'.* sites must be the same in every call"),
    ],
)
def test_models_without_one_log_density_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        FlowGuide(model).fit(steps=20)


def test_control_flow_on_values_runs_draw_by_draw_with_a_warning():
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0 if mu > 0 else 2.0), obs=torch.tensor(0.5))

    guide = FlowGuide(model)
    with pytest.warns(UserWarning, match="the model runs once for each draw"):
        log_joint = guide.log_joint()
    found = log_joint({"mu": torch.tensor([-1.0, 1.0], dtype=torch.float64)})
    exact = [
        dist.Normal(0.0, 1.0).log_prob(torch.tensor(mu)) + dist.Normal(mu, sd).log_prob(torch.tensor(0.5))
        for mu, sd in ((-1.0, 2.0), (1.0, 1.0))
    ]
    assert found.tolist() == pytest.approx([float(value) for value in exact], abs=1e-6)
