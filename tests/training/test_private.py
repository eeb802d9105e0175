"""DP-SGD: is each row clipped by itself, is the noise as large as it says, and does the accountant's ε hold?"""

import math
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from flowlab.training.private import Privacy, fit_privately, noisy_gradients, planned, row_gradients

needs_opacus = pytest.mark.skipif(find_spec("opacus") is None, reason="needs Opacus, the extra `private`")


class Squares(nn.Module):
    """A small network's squared error on one row (features,) with its target ()."""

    def __init__(self, features: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(5, features, generator=generator))
        self.bias = nn.Parameter(torch.zeros(5))
        self.last = nn.Parameter(torch.randn(5, generator=generator))
        self.fixed = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, row: Tensor, target: Tensor) -> Tensor:
        return (self.last @ torch.tanh(self.first @ row + self.bias) - self.fixed * target).square()


def batch(rows: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, generator=generator), scale * torch.randn(rows, generator=generator)


def one_row(loss: nn.Module, *row: Tensor) -> Tensor:
    """The flat gradient of one row's loss, by autograd."""
    trained = [p for p in loss.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(*row), trained)])


def optimizer_of(loss: nn.Module, noise: float, clip: float = 0.7, expected: float = 1.0):  # type: ignore[no-untyped-def]
    from opacus.optimizers import DPOptimizer

    return DPOptimizer(
        torch.optim.Adam([p for p in loss.parameters() if p.requires_grad]),
        noise_multiplier=noise,
        max_grad_norm=clip,
        expected_batch_size=expected,
        generator=torch.Generator().manual_seed(0),
        secure_mode=True,
    )


def summed(loss: nn.Module, *parts: tuple[Tensor, Tensor], noise: float = 0.0, clip: float = 0.7) -> Tensor:
    noisy_gradients(optimizer_of(loss, noise, clip), loss, parts)
    return torch.cat([p.grad.flatten() for p in loss.parameters() if p.requires_grad])


def test_row_gradients_are_those_of_one_row_loops():
    loss, rows = Squares(), batch(7)
    found = row_gradients(loss, rows)
    assert set(found) == {"first", "bias", "last"}
    for i, row in enumerate(zip(*rows, strict=True)):
        torch.testing.assert_close(torch.cat([g[i].flatten() for g in found.values()]), one_row(loss, *row))


@needs_opacus
@pytest.mark.parametrize("parts", [1, 3])
def test_each_row_is_clipped_by_itself(parts: int):
    loss, rows, clip = Squares(), batch(12, scale=3.0), 12.0
    each = [one_row(loss, *row) for row in zip(*rows, strict=True)]
    norms = torch.stack([g.norm() for g in each])
    assert norms.min() < clip < norms.max()  # some are clipped and some are not
    expected = sum(g * (clip / g.norm()).clamp(max=1) for g in each)
    split = list(zip(*(part.tensor_split(parts) for part in rows), strict=True))
    torch.testing.assert_close(summed(loss, *split, clip=clip), expected, rtol=1e-4, atol=1e-5)


@needs_opacus
def test_one_row_moves_the_sum_by_at_most_the_clipping_norm():
    loss, (x, y) = Squares(), batch(10)
    whole = summed(loss, (x, y))
    for scale in (1.0, 1e6, 1e20, math.nan, math.inf):
        replaced = summed(loss, (torch.cat([x[:9], x[9:] * 1e3]), torch.cat([y[:9], torch.tensor([scale])])))
        assert (whole - replaced).norm() <= 2 * 0.7 + 1e-4
        assert (replaced - summed(loss, (x[:9], y[:9]))).norm() <= 0.7 + 1e-4
    nan = torch.cat([y[:9], torch.tensor([math.nan])])
    torch.testing.assert_close(summed(loss, (x, nan)), summed(loss, (x[:9], y[:9])))


@needs_opacus
@pytest.mark.parametrize("rows", [0, 4])
def test_noise_has_the_deviation_that_it_says(rows: int):
    class Wide(Squares):
        def __init__(self) -> None:
            super().__init__(4000)

        def forward(self, row: Tensor, target: Tensor) -> Tensor:
            return 0 * self.first.sum() + 0 * self.bias.sum() + 0 * self.last.sum() + 0 * target

    loss = Wide()
    batches = [(torch.zeros(rows, 4000), torch.zeros(rows))] if rows else []
    noisy_gradients(optimizer_of(loss, noise=1.3, clip=0.5, expected=4.0), loss, batches)
    noise = loss.first.grad.flatten().numpy()
    deviation = 1.3 * 0.5 / 4
    assert noise.std() == pytest.approx(deviation, rel=4 / np.sqrt(2 * len(noise)))
    assert stats.kstest(noise / deviation, "norm").pvalue > 1e-3


def delta_of(mu: float, epsilon: float) -> float:
    """δ of normal noise whose means differ by mu: Balle & Wang 2018, "Improving the Gaussian mechanism", theorem 8."""
    low, high = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    return float(stats.norm.cdf(low) - math.exp(epsilon) * stats.norm.cdf(high))


@needs_opacus
@pytest.mark.parametrize("epsilon", [0.5, 3.0])
@pytest.mark.parametrize("steps", [1, 50])
def test_the_accountants_epsilon_holds(epsilon: float, steps: int):
    """Without sampling the exact δ is known."""
    plan = planned(epsilon, 1e-5, sample_rate=1.0, steps=steps, clipping_norm=1.0)
    assert 0.9 * epsilon < plan.spent <= epsilon
    mu = math.sqrt(steps) / plan.noise_multiplier
    assert delta_of(mu, plan.spent) <= 1e-5
    sampled = planned(epsilon, 1e-5, sample_rate=0.05, steps=steps, clipping_norm=1.0)
    assert sampled.spent <= epsilon
    assert sampled.noise_multiplier < plan.noise_multiplier
    counted = planned(epsilon, 1e-5, sample_rate=1.0, steps=steps, clipping_norm=1.0, counted=0.2)
    assert counted.noise_multiplier > plan.noise_multiplier
    mu = math.hypot(math.sqrt(steps) / counted.noise_multiplier, 1 / counted.counts_noise)
    assert delta_of(mu, counted.spent) <= 1e-5
    assert counted.spent <= epsilon


@needs_opacus
def test_rows_are_taken_each_by_itself_and_steps_are_counted():
    loss, (x, y), sizes, taken = Squares(), batch(200), [], torch.zeros(200)

    def rows(index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        sizes.append(len(index))
        taken[index] += 1
        return x[index], y[index]

    plan = Privacy(1.0, 1.0, 1e-5, 0.0, 1.0, sample_rate=0.1, steps=100)
    before = loss.first.detach().clone()
    fit_privately(loss, 200, rows, plan, 0.01, noise=torch.Generator().manual_seed(0))
    assert np.mean(sizes) == pytest.approx(20, abs=4 * math.sqrt(18 / 100))
    assert np.std(sizes) == pytest.approx(math.sqrt(18), rel=0.3)  # binomial: not of one size
    assert taken.min() > 0
    assert not torch.equal(before, loss.first)
    assert loss.fixed == 1
    assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in loss.parameters())


@needs_opacus
def test_noise_is_the_systems_own():
    ends = []
    for _ in range(2):
        loss, rows = Squares(), batch(20)
        torch.manual_seed(0)
        plan = Privacy(1.0, 1.0, 1e-5, 1.0, 1.0, sample_rate=0.5, steps=2)
        fit_privately(loss, 20, lambda index, _, rows=rows: (rows[0][index], rows[1][index]), plan, 0.01)
        ends.append(loss.first.detach())
    assert not torch.equal(*ends)


def test_without_opacus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants.utils", None)
    with pytest.raises(ImportError, match=r"flowlab\[private\]"):
        planned(1.0, 1e-5, 0.1, 10, 1.0)


@needs_opacus
def test_a_budget_that_no_noise_meets():
    with pytest.raises(ValueError, match="take a larger epsilon"):
        planned(1e-6, 1e-9, 1.0, 10_000, 1.0)
