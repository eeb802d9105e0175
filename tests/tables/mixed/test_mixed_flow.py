"""Ranks, heads and `MixedFlow` against what probability theory says of them."""

import copy
import itertools
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import flowlab
from flowlab import FlowDensity, Member
from flowlab.mixture import FlowMixture
from flowlab.tables.mixed.heads import Cells, Histogram, HistogramAndLogistics, Logistics, quantile
from flowlab.tables.mixed.marginal_cdf import learn_marginal_cdf
from flowlab.tables.mixed.mixed_flow import MixedFlow
from flowlab.tables.query.conditional import draw
from flowlab.tables.query.conditions import ConditionError, Conditions
from helpers import seeded

HEADS = [Histogram(7), Logistics(3), HistogramAndLogistics(5, 2)]


def counts() -> torch.Tensor:
    return torch.tensor([0.0] * 40 + [1.0] * 25 + [2.0] * 10 + [4.0] * 5 + [3.0], dtype=torch.float64)


def zero_inflated() -> torch.Tensor:
    x = torch.rand(400, generator=seeded(), dtype=torch.float64) * 3
    return torch.where(torch.rand(400, generator=seeded(1)) < 0.3, 0.0, x)


def random_flow(head=None, seed: int = 0, nullable: bool = True) -> MixedFlow:
    """Two classes, a count and a zero-inflated number, with weights that make everything depend on everything."""
    flow = MixedFlow(
        [
            learn_marginal_cdf(counts(), resolution=1.0, lower=0.0, upper=5.0),
            learn_marginal_cdf(zero_inflated(), atoms=[0.0], lower=0.0, upper=3.5),
        ],
        columns=[0, 1, 2, 3],
        classes=[3, 0, 0, 2],
        nullable=[nullable, nullable, False, False],
        head=head or HistogramAndLogistics(5, 2),
        hidden=16,
        generator=seeded(seed),
    ).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=seeded(seed + 1), dtype=torch.float64))
    return flow.eval()


@pytest.mark.parametrize("resolution", [0.1, 1.0, 10.0])
def test_cells_of_a_grid_fill_the_unit_interval(resolution):
    x = torch.randint(0, 30, (300,), generator=seeded(), dtype=torch.float64) * resolution
    ranks = learn_marginal_cdf(x, resolution=resolution, lower=0.0, upper=40 * resolution)
    values = torch.arange(41, dtype=torch.float64) * resolution
    cells = ranks.cell(values)
    assert float(cells.width.sum()) == pytest.approx(1, abs=1e-9)
    assert (cells.width > 0).all()
    torch.testing.assert_close(cells.low[1:], (cells.low + cells.width)[:-1], atol=1e-9, rtol=0)
    torch.testing.assert_close(ranks.value(cells.low + cells.width / 2), values)
    assert ranks.cell(torch.tensor([-resolution], dtype=torch.float64)).log_slope == -math.inf


def test_ranks_of_a_zero_inflated_column_have_a_jump_and_a_density():
    x = zero_inflated()
    ranks = learn_marginal_cdf(x, atoms=[0.0], lower=0.0)
    assert float(ranks.cell(torch.zeros(1, dtype=torch.float64)).width) == pytest.approx(
        float((x == 0).double().mean())
    )
    grid = torch.linspace(1e-6, 60, 600_001, dtype=torch.float64)
    density = ranks.cell(grid).log_slope.exp()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(float((x > 0).double().mean()), abs=2e-3)
    ranks_of = ranks.cell(grid[1:1000]).low
    torch.testing.assert_close(ranks.value(ranks_of), grid[1:1000], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "resolution", "atoms"),
    [(counts(), 1.0, []), (zero_inflated(), 0.0, [0.0]), (zero_inflated(), 0.0, []), (zero_inflated(), 0.01, [])],
    ids=["counts", "zero-inflated", "continuous", "decimals"],
)
def test_what_networks_see_of_a_drawn_value_is_what_they_see_of_the_value(x, resolution, atoms):
    ranks = learn_marginal_cdf(x, resolution=resolution, atoms=atoms, lower=0.0, upper=7.0)
    rank = torch.rand(2000, generator=seeded(2), dtype=torch.float64)
    value, middle = ranks.value_and_middle(rank)
    assert torch.equal(value, ranks.value(rank))
    torch.testing.assert_close(middle, ranks.cell(value).middle, rtol=0, atol=1e-7)


@pytest.mark.parametrize("x", [[3.0] * 9, [1.0, 2.0], [5.0], [], [0.1] * 50 + [1e9]], ids=str)
@pytest.mark.parametrize("resolution", [0.0, 0.1])
def test_ranks_of_odd_columns(x, resolution):
    values = torch.tensor(x, dtype=torch.float64)
    ranks = learn_marginal_cdf(values, resolution=resolution)
    drawn = ranks.value(torch.rand(100, generator=seeded(), dtype=torch.float64))
    assert torch.isfinite(drawn).all()
    if len(values):
        cell = ranks.cell(values)
        assert torch.isfinite(cell.log_slope).all()
        assert ((cell.low >= 0) & (cell.low + cell.width <= 1 + 1e-9)).all()


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_heads_are_distributions_on_the_unit_interval(head, dtype):
    params = torch.randn(2, head.count, 1, generator=seeded(), dtype=dtype)
    edges = torch.linspace(0, 1, 101, dtype=torch.float64)
    low, high = edges[:-1], edges[1:]
    cells = Cells(*(part.to(dtype).expand(2, -1) for part in (low, high - low, quantile(low), quantile(high), 0 * low)))
    log_mass = head.log_prob(params.expand(-1, -1, 100), cells)
    tolerance = 2e-4 if dtype == torch.float32 else 1e-10  # single precision knows ranks next to one so well
    torch.testing.assert_close(log_mass.exp().sum(-1), torch.ones(2, dtype=dtype), atol=tolerance, rtol=0)
    cdf = head.cdf(params.expand(-1, -1, 101), edges.to(dtype).expand(2, -1))
    torch.testing.assert_close(cdf.diff(dim=-1), log_mass.exp(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_densities_of_heads_are_the_slopes_of_their_distribution_functions(head):
    params = torch.randn(1, head.count, 1, generator=seeded(3), dtype=torch.float64).expand(-1, -1, 200)
    rank = torch.linspace(0.003, 0.997, 200, dtype=torch.float64)[None]
    # At a point u the marginal density of ranks is one: log_slope 0.
    cells = Cells(rank, 0 * rank, quantile(rank), quantile(rank), 0 * rank)
    slope = (head.cdf(params, rank + 1e-6) - head.cdf(params, rank - 1e-6)) / 2e-6
    torch.testing.assert_close(head.log_prob(params, cells).exp(), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", HEADS, ids=str)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.2, 0.55)])
def test_heads_draw_what_their_distribution_functions_say(head, ends):
    n = 4000
    params = torch.randn(1, head.count, 1, generator=seeded(4), dtype=torch.float64).expand(-1, -1, n)
    low, high = (torch.full((1, n), end, dtype=torch.float64) for end in ends)
    u = head.draw(params, low, high, *torch.rand(2, 1, n, generator=seeded(5), dtype=torch.float64))
    assert (u >= ends[0]).all()
    assert (u <= ends[1]).all()
    level = (head.cdf(params, u) - head.cdf(params, low)) / (head.cdf(params, high) - head.cdf(params, low))
    assert stats.kstest(level.flatten().numpy(), "uniform").pvalue > 0.001


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_probabilities_sum_and_densities_integrate_to_one(head):
    flow = random_flow(head)
    grid = torch.linspace(1e-9, 3.5 - 1e-9, 2001, dtype=torch.float64)
    total = 0.0
    for a, b, c in itertools.product((0.0, 1.0, 2.0, math.nan), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, math.nan), (0.0, 1.0)):
        rows = torch.stack([torch.full_like(grid, a), torch.full_like(grid, b), grid, torch.full_like(grid, c)], 1)
        atom = torch.tensor([[a, b, 0.0, c]], dtype=torch.float64)
        with torch.no_grad():
            total += float(torch.trapezoid(flow.log_prob(rows).exp(), grid)) + float(flow.log_prob(atom).exp())
    assert total == pytest.approx(1, abs=5e-3)


def test_leaving_out_the_last_columns_of_the_order_sums_over_them():
    flow = random_flow()
    rows = torch.tensor([[0.0, 2.0, 1.3, 0.0], [math.nan, 4.0, 0.0, 1.0]], dtype=torch.float64)
    known = torch.tensor([True, True, True, False]).expand(2, 4)
    whole = torch.stack(
        [flow.log_prob(torch.cat([rows[:, :3], torch.full((2, 1), c)], 1).double()) for c in (0.0, 1.0)]
    )
    torch.testing.assert_close(flow.log_prob(rows, known=known), whole.logsumexp(0))


def test_impossible_rows_have_no_density():
    flow = random_flow(nullable=False)
    good = [1.0, 2.0, 1.0, 1.0]
    for place, value in ((0, 7.0), (0, -2.0), (1, 9.0), (2, -0.5), (2, 4.0)):
        row = torch.tensor([good], dtype=torch.float64)
        row[0, place] = value
        assert flow.log_prob(row) == -math.inf
    missing = torch.tensor([[math.nan, *good[1:]]], dtype=torch.float64)
    known = torch.tensor([[False, True, True, True]])
    torch.testing.assert_close(flow.log_prob(missing), flow.log_prob(missing, known=known))


def test_noise_behind_its_own_samples_is_standard_normal():
    flow = random_flow()
    noise = flow.to_normal(flow.sample((3000,), generator=seeded()), generator=seeded(1))
    for column in noise.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 0.001


def test_conditions_on_values_sets_and_intervals_draw_what_filtering_would():
    """The restricted columns lead the order, so filtering plain draws gives the same distribution."""
    flow = random_flow(nullable=False)
    mixture = FlowMixture([flow])
    plain = flow.sample((60_000,), generator=seeded()).numpy()
    conditions = Conditions(allowed={0: [(0.0, 0.0), (2.0, 2.0)], 1: [(1.0, 3.0)]}, text={0: "a", 1: "b"})
    rows, acceptance, _ = draw(mixture, conditions, 6000, seeded(1))
    rows = rows.numpy()
    kept = plain[np.isin(plain[:, 0], [0, 2]) & (plain[:, 1] >= 1) & (plain[:, 1] <= 3)]
    assert 0 < acceptance <= 1
    assert np.isin(rows[:, 0], [0, 2]).all()
    assert ((rows[:, 1] >= 1) & (rows[:, 1] <= 3)).all()
    tables = [
        np.array([((x[:, 0] == a) & (x[:, 1] == b)).sum() for a in (0, 2) for b in (1, 2, 3)]) for x in (rows, kept)
    ]
    assert stats.chi2_contingency(np.stack(tables)).pvalue > 0.001
    assert stats.ks_2samp(rows[:, 2], kept[:, 2]).pvalue > 0.001
    assert stats.chi2_contingency([np.bincount(x[:, 3].astype(int)) for x in (rows, kept)]).pvalue > 0.001


def test_conditions_on_values_weigh_the_members_of_a_mixture():
    flows = [random_flow(seed=seed, nullable=False) for seed in (0, 10)]
    mixture = FlowMixture(flows, [0.7, 0.3])
    plain = mixture.sample((60_000,), generator=seeded()).numpy()
    rows, *_ = draw(mixture, Conditions(values={0: 1.0}, text={0: "a"}), 6000, seeded(1))
    kept = plain[plain[:, 0] == 1]
    assert stats.ks_2samp(rows[:, 2].numpy(), kept[:, 2]).pvalue > 0.001
    assert (
        stats.chi2_contingency([np.bincount(x[:, 1].astype(int), minlength=5) for x in (rows.numpy(), kept)]).pvalue
        > 0.001
    )


def test_improbable_conditions_are_refused_by_name():
    flow = random_flow(nullable=False)
    with pytest.raises(ConditionError, match="price = 9"):
        draw(FlowMixture([flow]), Conditions(values={1: 9.0}, text={1: "price = 9"}), 5, seeded())


def test_files_and_copies_score_alike_in_another_process_too(tmp_path):
    flow = random_flow()
    rows = flow.sample((50,), generator=seeded())
    flowlab.save(flow, tmp_path / "m.flow")
    with torch.no_grad():
        torch.testing.assert_close(flowlab.load(tmp_path / "m.flow").log_prob(rows), flow.log_prob(rows))
        torch.testing.assert_close(copy.deepcopy(flow).log_prob(rows), flow.log_prob(rows))
        total = float(flow.log_prob(rows).sum())
    torch.save(rows, tmp_path / "rows.pt")
    code = (
        "import flowlab, torch, sys; flow = flowlab.load(sys.argv[1] + '/m.flow');"
        "print(float(flow.log_prob(torch.load(sys.argv[1] + '/rows.pt')).sum()))"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert float(found.stdout) == pytest.approx(total)


def test_gradients_stay_finite_at_the_ends():
    flow = random_flow().float()
    rows = flow.double().sample((200,), generator=seeded())
    rows = torch.cat([rows, torch.tensor([[0.0, 5.0, 3.5, 1.0], [math.nan, math.nan, 0.0, 0.0]], dtype=torch.float64)])
    cells = flow.cells(rows).float()
    network = flow.float().network.train()
    network.log_prob(cells).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_counts_far_beyond_the_data_are_improbable_not_impossible():
    x = torch.from_numpy(np.random.default_rng(0).poisson(4, 1000)).double()
    ranks = learn_marginal_cdf(x, resolution=1.0, lower=0.0)
    far = ranks.cell(torch.tensor([14.0, 20.0, 60.0, 1e4, 1e6], dtype=torch.float64))
    log_p = far.width.log() + far.log_slope
    assert torch.isfinite(log_p).all()
    assert (log_p.diff() < 0).all()
    flow = random_flow()
    for head in HEADS:
        params = torch.randn(1, head.count, 5, generator=seeded(), dtype=torch.float64)
        high = (far.low + far.width).clamp(max=1)
        cells = Cells(
            far.low[None], far.width[None], quantile(far.low)[None], quantile(high)[None], far.log_slope[None]
        )
        assert torch.isfinite(head.log_prob(params, cells)).all(), (head, flow)


def test_samples_span_what_held_out_rows_span_too():
    """A tenth of the rows is held out, among them, more often than not, some of the extremes."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {f"n{j}": rng.normal(50, 5, 2500).round(1) for j in range(6)} | {"k": rng.choice(["a", "b"], 2500)}
    )
    model = FlowDensity(members=[Member("mixed", "none", steps=20)], n_jobs=1, random_state=0).fit(frame)
    wanted = frame.drop(columns="k").agg(["min", "max"]).to_numpy().T
    for ranks, ends in zip(model.flow_.flows[0].marginals().values(), torch.tensor(wanted), strict=True):
        cell = ranks.cell(ends)
        assert ranks.seen.tolist() == pytest.approx([float(cell.low[0]), float(cell.low[1] + cell.width[1])], abs=1e-15)
    drawn = model.sample(20_000, random_state=0).drop(columns="k")
    assert (drawn.min().to_numpy() >= wanted[:, 0]).all()
    assert (drawn.max().to_numpy() <= wanted[:, 1]).all()
