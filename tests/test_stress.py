"""Numerical stress: nothing that training or a row far out does makes a number that is none."""

import copy
import math

import pytest
import torch

import flowlab
from benchmarks.faults import stress
from constructors import EVERY_PRESET, preset
from flowlab.layers import Planar, Sylvester
from flowlab.layers.root_finding import solve
from helpers import assert_close, seeded

EVERY_TYPE = pytest.mark.parametrize("dtype", stress.TYPES, ids=stress.short)
SMALL = {"layers": 2, "hidden": (8,)}


def assert_sound(outcome: stress.Outcome) -> None:
    assert outcome.lost == 0
    assert outcome.rows > 500
    assert not outcome.faults, outcome.faults


@EVERY_PRESET
@EVERY_TYPE
def test_cauchy_columns_at_learning_rate_one_leave_finite_numbers(name, dtype):
    wild = stress.Situation("both", cauchy=True, learning_rate=1.0)
    assert_sound(stress.examine(name, dtype, wild, steps=30, **SMALL)[1])


@pytest.mark.parametrize("situation", stress.SITUATIONS, ids=lambda s: s.name)
@pytest.mark.parametrize("name", ["nsf", "glow"])
def test_every_situation_leaves_finite_numbers(name, situation):
    assert_sound(stress.examine(name, torch.float32, situation, steps=20, **SMALL)[1])


@pytest.mark.slow
@pytest.mark.parametrize("situation", stress.SITUATIONS, ids=lambda s: s.name)
@EVERY_PRESET
@EVERY_TYPE
def test_long_stress_leaves_finite_numbers(name, dtype, situation):
    assert_sound(stress.examine(name, dtype, situation, steps=60, **SMALL)[1])


def test_stress_finds_what_it_looks_for():
    flow = flowlab.presets.real_nvp(3, **SMALL, generator=seeded())
    x = stress.far_rows(torch.float32)
    assert not stress.density_faults(flow, x)

    class Lossy(flowlab.bases.Gaussian):
        def log_prob(self, z):
            return super().log_prob(z).masked_fill(z.abs().amax(-1) > 1e6, -math.inf)

    class Steep(flowlab.bases.Gaussian):
        def log_prob(self, z):
            return super().log_prob(z) + 1e-30 * (z.square().sum(-1)).sqrt()  # no gradient at the origin

    lossy = flowlab.Flow(Lossy(3), copy.deepcopy(list(flow)))
    assert stress.density_faults(lossy, x)["-inf log-density within range"] > 50
    steep = flowlab.Flow(Steep(3), copy.deepcopy(list(flow)))
    assert stress.density_faults(steep, torch.zeros(2, 3))["row with a non-finite gradient"] == 2
    with torch.no_grad():
        next(flow.parameters()).view(-1)[0] = math.nan
    assert stress.not_finite(flow) == 1


@EVERY_PRESET
@pytest.mark.parametrize("dtype", [torch.float32])
def test_one_row_beyond_range_costs_a_batch_nothing(name, dtype):
    """The largest number once made the roots of planar and Sylvester layers an error for the whole batch."""
    flow = preset(name, 3).to(dtype)
    x = torch.linspace(-3, 3, 12, dtype=dtype).view(4, 3)
    largest = torch.full((1, 3), torch.finfo(dtype).max, dtype=dtype)
    got = flow.log_prob(torch.cat([x, largest, -largest]))
    assert_close(got[:4], flow.log_prob(x), 1e-5)
    if "circular" not in name:
        assert got[4:].tolist() == [-math.inf, -math.inf]


def test_noise_far_out_is_exact_in_planar_and_sylvester_layers():
    for layer in (Planar(3, 4, generator=seeded()), Sylvester(3, generator=seeded())):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter += torch.empty_like(parameter).normal_(generator=seeded(1))
        layer.double()
        x = (
            torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
            * torch.logspace(0, 300, 31, dtype=torch.float64)[:, None]
        )
        z, _ = layer.inverse(x)
        assert bool(z.isfinite().all())
        assert_close(z[10:] / x[10:], torch.ones(21, 3, dtype=torch.float64), 1e-9)


@EVERY_TYPE
def test_roots_of_infinite_brackets(dtype):
    """They are NaN, without a derivative; the other roots are what they were."""

    def cubic(x):
        return x**3 + x, (3 * x**2 + 1).log()

    values = [10.0, math.inf, math.nan, -10.0]
    target = torch.tensor(values, dtype=dtype, requires_grad=True)
    root = solve(cubic, target, target - 10, target + 10)
    assert_close(root[[0, 3]], torch.tensor([2.0, -2.0], dtype=dtype), 1e-6)
    assert root.isnan().tolist() == [False, True, True, False]
    root[[0, 3]].sum().backward()
    assert_close(target.grad, torch.tensor([1 / 13, 0, 0, 1 / 13], dtype=dtype), 1e-5)


def test_roots_near_the_largest_number():
    large = torch.finfo(torch.float32).max / 1.5
    target = torch.tensor([large, -large])
    low, high = target - large / 3, target + large / 4  # their sum overflows
    root = solve(lambda x: (x, torch.zeros_like(x)), target, low, high)
    assert_close(root, target, 1e-6)
