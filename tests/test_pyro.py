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


def test_eight_schools_by_the_recipe():
    """Means and standard deviations of posteriordb's reference draws: mu 4.41 ± 3.31, tau 3.60 ± 3.21."""
    guide = FlowGuide(eight_schools)
    guide.fit(steps=300)
    posterior = guide.posterior()
    found = posterior.diagnostics(4000)
    assert found.verdict == "good"
    table = posterior.summary(20_000)
    assert abs(table.loc["mu", "mean"] - 4.41) < 0.1 * 3.31
    assert abs(table.loc["tau", "mean"] - 3.60) < 0.1 * 3.21
    assert set(guide()) >= {"mu", "tau", "theta"}


def regression(x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
    weight = pyro.sample("weight", dist.Normal(0.0, 10.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", dist.Normal(x @ weight, scale), obs=y)


def test_a_regression_with_a_positive_scale_under_svi_and_predictive():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=generator)
    y = x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(60, generator=generator)
    guide = FlowGuide(
        regression, flow=lambda d: flowlab.presets.real_nvp(d, layers=4, hidden=(16,), generator=generator)
    )
    steps = 800
    optimizer = pyro.optim.ClippedAdam({"lr": 0.02, "lrd": 0.02 ** (1 / steps)})
    svi = SVI(regression, guide, optimizer, Trace_ELBO())
    for _ in range(steps):
        svi.step(x, y)
    exact = torch.linalg.lstsq(x, y.unsqueeze(1)).solution[:, 0]
    sd = 0.5 / 60**0.5
    posterior = guide.posterior(x, y)
    table = posterior.summary(4000)
    for i in range(2):
        assert abs(table.loc[f"weight[{i}]", "mean"] - float(exact[i])) < 0.3 * sd
    assert float(table.loc["scale", "mean"]) == pytest.approx(0.5, abs=0.1)
    assert posterior.diagnostics(4000).log_evidence.standard_error < 0.1
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
