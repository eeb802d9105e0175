"""The sinh-arcsinh map's tails against formulas; what every scalar map must do is tested in test_scalar_maps.py."""

import math

import pytest
import torch
from torch.distributions import Normal

from flowlab import Flow
from flowlab.bases import Gaussian
from flowlab.layers import Coupling, SinhArcsinh


def params(left: float, right: float, heaviest: float = 3.0) -> torch.Tensor:
    """Raw parameters (2, 1) of the tail weights on the two sides."""
    bound = math.log(heaviest)
    return (torch.tensor([[left], [right]], dtype=torch.float64).log() / bound).atanh() * bound


@pytest.mark.parametrize("weight", [0.4, 0.8, 1.0, 1.7, 2.9])
def test_equal_weights_are_the_published_density(weight):
    """Jones & Pewsey 2009, with ε = 0 and δ the reciprocal of the tail weight."""
    x, delta = torch.linspace(-8, 8, 401, dtype=torch.float64), 1 / weight
    s, c = (delta * x.asinh()).sinh(), (delta * x.asinh()).cosh()
    log_density = (delta * c).log() - s.square() / 2 - (2 * math.pi * (1 + x.square())).log() / 2
    z, log_slope = SinhArcsinh().inverse(x, params(weight, weight))
    torch.testing.assert_close(Normal(0.0, 1.0).log_prob(z) + log_slope, log_density, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 2.5])
def test_far_out_each_side_is_a_power_of_the_noise(weight):
    """A weight of 2 squares the noise, whose tail is then exponential; the other side has a weight of its own."""
    for side, weights in ((1.0, (1.3, weight)), (-1.0, (weight, 1.3))):
        z = side * torch.tensor([2e3, 2e4], dtype=torch.float64)
        x, _ = SinhArcsinh().forward(z, params(*weights))
        assert float((x[1] / x[0]).log() / math.log(10)) == pytest.approx(weight, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [(3.0, 3.0), (0.34, 2.9), (1.0, 1.0)])
def test_nothing_overflows_far_out(dtype, weights):
    raw = params(*(min(w, 2.999) for w in weights)).to(dtype)
    value = torch.tensor([1e5, -1e8, 1e12, -1e20], dtype=dtype, requires_grad=True)
    for function in (SinhArcsinh().forward, SinhArcsinh().inverse):
        mapped, log_slope = function(value, raw)
        (grad,) = torch.autograd.grad(mapped.asinh().sum() + log_slope.sum(), value)
        assert bool(torch.isfinite(mapped).all() and torch.isfinite(log_slope).all() and torch.isfinite(grad).all())


def test_a_layer_of_it_learns_the_tails_of_data():
    """Columns with a normal and an exponential side: the fitted density is near the truth's."""
    generator = torch.Generator().manual_seed(0)
    z = torch.empty(4000, 2, dtype=torch.float64).normal_(generator=generator)
    truth = Flow(Gaussian(2), [Coupling(2, SinhArcsinh(), [True] * 2, hidden=())]).double()
    with torch.no_grad():
        truth.layers[0].network.last.bias.copy_(torch.cat([params(1.0, 2.0), params(0.6, 1.0)]).flatten())
    x = truth.from_noise(z).detach()
    flow = Flow(Gaussian(2), [Coupling(2, SinhArcsinh(), [True] * 2, hidden=())]).double()
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.05)
    for _ in range(300):
        optimiser.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimiser.step()
    learned = flow.layers[0].network.last.bias.detach()
    torch.testing.assert_close(learned, truth.layers[0].network.last.bias.detach(), rtol=0, atol=0.06)
