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

    Given the scale all is Gaussian; over a geometric grid of scales (n,) it is summed. Design (n, rows, k) and noise (n, rows) belong to it.
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
