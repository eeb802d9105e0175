"""Flows of numbers as a density of rows: cells, measure, supports, and which members are fitted beside them."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from flowlab import FlowDensity, Member
from flowlab.bases import Gaussian
from flowlab.flow import Flow
from flowlab.mixture import FlowMixture
from flowlab.tables.codec.table import Table
from flowlab.tables.ensemble.joint_density import JointDensity, Numbers
from flowlab.tables.mixed.conditional_density import ConditionalDensity


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """A count, tenths of which one value in forty has hundredths, zeros among numbers, and plain numbers."""
    rng = np.random.default_rng(0)
    n = 2000
    tenths = np.round(rng.normal(size=n), 1)
    tenths[::40] = np.round(tenths[::40] + 0.03, 2)
    amount = np.where(rng.random(n) < 0.3, 0.0, rng.gamma(2.0, size=n))
    table = {"count": rng.poisson(4, n), "tenths": tenths, "amount": amount, "x": rng.normal(size=n)}
    return pd.DataFrame(table)


def numbers_of(frame: pd.DataFrame) -> tuple[Numbers, torch.Tensor]:
    table, _ = Table.learn(frame, None, None)
    matrix = table.encode(frame)
    return Numbers.of(table, matrix), torch.from_numpy(matrix)


def normal(features: int) -> FlowMixture:
    return FlowMixture([Flow(Gaussian(features).double(), [])])


def test_values_spread_over_their_cells_come_back(frame):
    numbers, matrix = numbers_of(frame)
    spread = numbers.cells.spread(matrix, torch.Generator().manual_seed(0))
    whole = [0, 3]  # hundredths come back as the tenths that they lie nearest to
    torch.testing.assert_close(numbers.cells.quantized(spread)[:, whole], matrix[:, whole], atol=0, rtol=0)
    zero = matrix[:, 2] == 0
    assert (numbers.cells.quantized(spread)[zero, 2] == 0).all()
    assert (spread[zero, 2] != 0).any()
    assert (spread[:, 3] == matrix[:, 3]).all()
    assert ((spread[:, 0] - matrix[:, 0]).abs() <= 0.5).all()


def test_probabilities_of_a_grid_sum_to_one_with_values_off_its_coarse_step(frame):
    numbers, _ = numbers_of(frame[["tenths"]])
    density = numbers.density(normal(1))
    assert float(density.cells.steps[0]) == pytest.approx(0.1)
    hundredths = torch.arange(-800, 801, dtype=torch.float64).unsqueeze(-1) / 100
    share = (np.abs(frame["tenths"] * 10 - np.round(frame["tenths"] * 10)) < 1e-6).mean()
    mass = density.log_prob(hundredths).exp()
    tied = torch.arange(-800, 801) % 10 == 0
    assert float(mass[tied].sum()) == pytest.approx(share, abs=1e-3)
    # Between tenths a tenth of the places is taken by these: what is left has nine tenths of its share.
    assert float(mass[~tied].sum()) == pytest.approx(0.9 * (1 - share), abs=1e-3)


def test_a_grid_finer_than_a_millionth_of_the_spread_counts_as_continuous():
    rng = np.random.default_rng(0)
    values = rng.normal(scale=1e8, size=1000).astype(np.int64)
    values[:2] = 7
    numbers, matrix = numbers_of(pd.DataFrame({"v": values}))
    assert numbers.cells.steps.tolist() == [0]
    spread = numbers.cells.spread(matrix, torch.Generator().manual_seed(0))
    assert (spread[:2] != matrix[:2]).all()  # repeated, and therefore of a probability
    assert (spread[2:] == matrix[2:]).all()
    model = FlowDensity(members=["copula", "mixture", Member("mixed", steps=30)], random_state=0).fit(values[:, None])
    joint, conditional = (member.log_prob(matrix[2:]) for member in list(model.flow_)[:2])
    assert abs(float((joint - conditional).mean())) < 1  # both are densities: a factor of 1e8 is eighteen nats


def test_draws_and_scores_keep_supports_and_mass(frame):
    numbers, _ = numbers_of(frame[["count", "amount"]])
    density = numbers.measured(normal(2), seed=0)
    rows = density.sample((2000,), generator=torch.Generator().manual_seed(0))
    assert (rows >= 0).all()
    assert (rows[:, 0] == rows[:, 0].round()).all()
    # A count of at least zero from its cell's lower end, and an amount of at least zero.
    inside = math.log(0.5 * (1 - 0.5 * (1 + math.erf(-0.5 / math.sqrt(2)))))
    assert float(density.log_mass) == pytest.approx(inside, abs=0.02)
    assert density.log_prob(torch.tensor([[-1.0, 1.0], [1.0, -0.5]], dtype=torch.float64)).tolist() == [-math.inf] * 2
    assert density.sample((0,)).shape == (0, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("log_mass", torch.tensor(math.nan)),
        ("log_mass", torch.tensor(1.0)),
        ("low", torch.tensor([math.nan, 0.0])),
        ("high", torch.tensor([-math.inf, 0.0])),
        ("cells.steps", torch.tensor([-1.0, 0.0])),
        ("cells.widths", torch.tensor([0.0, -1.0])),
        ("cells.log_tied", torch.tensor([math.inf, 0.0])),
        ("cells.values", torch.tensor([math.nan])),
    ],
    ids=str,
)
def test_tensors_of_files_are_checked(frame, name, value):
    density = numbers_of(frame[["count", "amount"]])[0].density(normal(2))
    state = density.state_dict()
    assert state[name].shape == value.shape
    with pytest.raises(ValueError, match="numbers"):
        density.load_state_dict(state | {name: value.double()})


@pytest.mark.slow
def test_a_second_conditional_member_waits_for_what_the_first_is_worth():
    rng = np.random.default_rng(0)
    mixed = [Member("mixed", steps=30, hidden=(8,), trees=2, rank=rank) for rank in range(2)]
    gaussian = pd.DataFrame(rng.normal(size=(400, 2)) @ rng.normal(size=(2, 4)) + 1e-3 * rng.normal(size=(400, 4)))
    little = FlowDensity(members=["mixture", *mixed], random_state=0).fit(gaussian)
    assert little.members_["score"].isna().tolist() == [False, False, True]
    assert "little weight" in little.reports_[-1].reason
    assert little.reports_[-1].converged
    steps = pd.DataFrame({"a": (a := rng.integers(0, 5, 400)), "b": a * 2 % 5, "c": rng.integers(0, 3, 400)})
    much = FlowDensity(members=["copula", *mixed], random_state=0).fit(steps)
    assert much.members_["score"].notna().all()


def test_with_little_time_a_conditional_member_comes_first():
    x = np.random.default_rng(0).normal(size=(300, 2))
    model = FlowDensity(effort="fast", time_limit=1e-3, random_state=0, n_jobs=1).fit(x)
    trained = [report.member.kind for report in model.reports_ if report.member.trained and report.weight]
    assert trained == ["mixed"]
    assert isinstance(model.flow_.flows[0], JointDensity)
    assert isinstance(model.flow_.flows[-1], ConditionalDensity)
    assert model.conditional("x1", {"x0": 0.3}, n=50, random_state=0).shape == (1, 7)
