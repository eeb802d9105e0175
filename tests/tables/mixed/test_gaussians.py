"""The Gaussian mixture of numbers beside networks: exact conditionals, sums of one, close relations, files."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

import flowlab
from flowlab import FlowDensity, Member
from flowlab.files import FileError
from flowlab.tables.ensemble.mixtures import learn_gaussians
from flowlab.tables.mixed.column_mixture import ColumnMixture
from flowlab.tables.mixed.distributions import uniform_from
from flowlab.tables.mixed.gaussian_flow import GaussianFlow
from flowlab.tables.mixed.gaussians import GaussianDistribution, Gaussians, component_log_probs
from flowlab.tables.mixed.heads import Cells
from helpers import seeded


def gaussians(variables: int = 4, components: int = 3) -> Gaussians:
    """A random mixture."""
    out, generator = Gaussians(range(variables), components), seeded(0)
    factor = torch.randn(components, variables, variables, dtype=torch.float64, generator=generator)
    out.covariance.copy_(factor @ factor.mT + 0.1 * torch.eye(variables))
    out.mean.copy_(torch.randn(components, variables, dtype=torch.float64, generator=generator))
    out.log_weight.copy_(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log())
    return out


def marginal(mixture: Gaussians, kept: list[int]) -> MixtureSameFamily:
    """The mixture's density of some variables, by torch.distributions."""
    parts = MultivariateNormal(mixture.mean[:, kept], mixture.covariance[:, kept][:, :, kept])
    return MixtureSameFamily(Categorical(logits=mixture.log_weight), parts)


@pytest.mark.parametrize("missing", [[], [1], [0, 3]])
def test_conditionals_multiply_to_the_density_of_what_is_there(missing):
    mixture, order = gaussians(), [2, 0, 3, 1]
    z = torch.randn(4, 50, dtype=torch.float64, generator=seeded(1))
    there = torch.ones(4, 50, dtype=torch.bool)
    there[missing, 10:] = False  # two patterns
    said = mixture.conditionals(z, there, order)
    terms = (said[0] + Normal(said[1], said[2].clamp(min=1e-9)).log_prob(z[order].unsqueeze(1))).logsumexp(1)
    total = torch.where(there[order], terms, 0).sum(0)
    kept = [j for j in range(4) if j not in missing]
    torch.testing.assert_close(total[10:], marginal(mixture, kept).log_prob(z[kept, 10:].T))
    torch.testing.assert_close(total[:10], marginal(mixture, [0, 1, 2, 3]).log_prob(z[:, :10].T))


@pytest.mark.parametrize("known", [[], [1], [3, 0], [0, 1, 3]])
def test_one_variable_is_known_given_any_others(known):
    mixture, place = gaussians(), 2
    z = torch.randn(4, 20, dtype=torch.float64, generator=seeded(2))
    there = torch.zeros(4, 20, dtype=torch.bool)
    there[known] = True
    log_weight, mean, sd = mixture.conditional(place, z, there)
    found = (log_weight + Normal(mean, sd).log_prob(z[place])).logsumexp(0)
    whole = marginal(mixture, [*known, place]).log_prob(z[[*known, place]].T)
    torch.testing.assert_close(found, whole - marginal(mixture, known).log_prob(z[known].T) if known else whole)


def test_intervals_have_the_probability_between_their_ends_and_draws_follow_it():
    mixture = gaussians()
    z = torch.randn(4, 1, dtype=torch.float64, generator=seeded(3)).expand(-1, 20_000)
    there = torch.ones_like(z, dtype=torch.bool)
    nothing = torch.zeros(20_000, dtype=torch.float64)
    number = GaussianDistribution(mixture.conditional(2, z, there), other=None)  # type: ignore[arg-type]  # not asked
    rank = number.draw(uniform_from(seeded(4), z.device))
    assert stats.kstest(number.cdf(rank).numpy(), "uniform").pvalue > 0.01
    between = number.draw_between(nothing + 0.3, nothing + 0.9, uniform_from(seeded(5), z.device))
    low, high = number.cdf(nothing + 0.3)[0], number.cdf(nothing + 0.9)[0]
    assert stats.kstest(((number.cdf(between) - low) / (high - low)).numpy(), "uniform").pvalue > 0.01
    ends = torch.linspace(0, 1, 21, dtype=torch.float64)
    quantiles = torch.special.ndtri(ends).clamp(-1000, 1000)
    cells = Cells(ends[:-1], ends.diff(), quantiles[:-1], quantiles[1:], torch.zeros(20, dtype=torch.float64))
    mass = component_log_probs(number.said[..., :20], cells).exp().sum(0)
    assert float(mass.sum()) == pytest.approx(1)
    torch.testing.assert_close(mass.cumsum(0), number.cdf(ends.unsqueeze(-1).expand(-1, 20_000))[1:, 0])


def test_narrow_cells_far_out_keep_their_probability():
    """Differences of levels near one would be lost."""
    z_low = torch.tensor([9.0, -9.001], dtype=torch.float64)
    z_high = torch.tensor([9.001, -9.0], dtype=torch.float64)
    cells = Cells(z_low, torch.ones_like(z_low), z_low, z_high, torch.zeros_like(z_low))
    said = torch.zeros(3, 1, 2, dtype=torch.float64)
    said[2] = 1
    found = component_log_probs(said, cells)[0]
    expected = Normal(0.0, 1.0).log_prob(torch.tensor(9.0005, dtype=torch.float64)) + math.log(0.001)
    torch.testing.assert_close(found, expected.expand(2), atol=1e-3, rtol=0)


def related(rows: int, seed: int = 0) -> pd.DataFrame:
    """A level, two numbers, their sum up to a little noise, and one that is often missing."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["a", "b"], rows)
    x, y = rng.normal(size=rows), rng.exponential(size=rows)
    often = np.where(rng.random(rows) < 0.2, np.nan, x - y + 0.1 * rng.normal(size=rows))
    return pd.DataFrame({"kind": kind, "x": x, "y": y, "z": 2 * x + y + 0.01 * rng.normal(size=rows), "often": often})


def sums(rows: int, seed: int = 0) -> pd.DataFrame:
    """Three dependent numbers, and their sum up to a little noise, all with three decimals."""
    rng, factor = np.random.default_rng(seed), np.array([[1.0, -0.5, 0.8], [0.3, 1.2, 0.1]])
    parts = rng.normal(size=(rows, 2)) @ factor + 0.5 * rng.normal(size=(rows, 3))
    table = pd.DataFrame(parts, columns=["a", "b", "c"])
    return table.assign(total=parts.sum(1) + 0.01 * rng.normal(size=rows)).round(3)


@pytest.fixture(scope="module")
def model() -> FlowDensity:
    return FlowDensity(effort="fast", random_state=0, n_jobs=1).fit(related(4000))


@pytest.fixture(scope="module")
def flow(model: FlowDensity) -> GaussianFlow:
    member = model.flow_.flows[0]
    assert isinstance(member, ColumnMixture)
    assert isinstance(member.flow, GaussianFlow)
    return member.flow


@pytest.mark.slow
def test_a_relation_is_followed_that_networks_alone_miss(model):
    train, test = sums(3000), sums(1000, seed=1)
    scores = []
    for components in (0, 16):
        member = Member("mixed", "none", steps=150, trees=5, gaussians=components)
        scores.append(FlowDensity(members=[member], random_state=0, n_jobs=1).fit(train).score_samples(test))
    gain = scores[1] - scores[0]
    assert gain.mean() > 0.2
    assert gain.std() / math.sqrt(len(gain)) < gain.mean() / 4
    rows = model.sample(2000, random_state=0)
    assert (rows["z"] - 2 * rows["x"] - rows["y"]).abs().median() < 0.1


@pytest.mark.slow
def test_densities_sum_to_one_given_anything(model, flow):
    """Of z, and of being missing, given cells before it that are known or not."""
    row = torch.from_numpy(model.table_.encode(related(1, seed=2)))
    columns = list(model.table_.names)
    z, often = columns.index("z"), columns.index("often")
    grid = torch.linspace(-12, 16, 28_001, dtype=torch.float64)
    rows = row.repeat(len(grid), 1)
    for before in ([True, True, True], [False, True, False], [False, False, False]):  # often is not known
        known = torch.tensor([*before, True, False]).expand(rows.shape).clone()
        rows[:, z] = grid
        rest = known.clone()
        rest[:, z] = False
        with torch.no_grad():
            density = (flow.log_prob(rows, known=known) - flow.log_prob(rows, known=rest)).exp()
        assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=4e-3)
    rows[:, z], rows[:, often] = row[0, z], grid
    gone = rows[:1].clone()
    gone[0, often] = math.nan
    with torch.no_grad():
        there = torch.trapezoid((flow.log_prob(rows)).exp(), grid)
        known = torch.ones_like(gone, dtype=torch.bool)
        known[0, often] = False
        assert float(there + flow.log_prob(gone).exp()[0]) == pytest.approx(
            float(flow.log_prob(gone, known=known).exp()[0]), rel=2e-3
        )


def test_noise_of_held_out_rows_is_nearly_normal_and_draws_follow_conditions(model):
    noise = model.pit(related(2000, seed=3), random_state=0)
    assert stats.kstest(np.asarray(noise)[:, 3], "uniform").statistic < 0.06
    rows = model.sample(400, given={"x": 1.0, "y": 0.7}, random_state=0)
    assert rows["z"].median() == pytest.approx(2.7, abs=0.03)
    said = model.conditional("x", {"y": 1.0, "z": 2.0}, n=1000, random_state=0)
    assert float(said["mean"].iloc[0]) == pytest.approx(0.5, abs=0.1)


def test_files_and_copies_keep_the_gaussians(model, tmp_path):
    model.save(tmp_path / "model.flow")
    rows = related(50, seed=4)
    again = flowlab.load(tmp_path / "model.flow")
    np.testing.assert_array_equal(again.score_samples(rows), model.score_samples(rows))
    pd.testing.assert_frame_equal(again.sample(30, random_state=0), model.sample(30, random_state=0))


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("covariance", -1.0, "Gaussian mixture"),
        ("covariance", math.nan, "finite|Gaussian mixture"),
        ("log_weight", 0.5, "Gaussian mixture"),
        ("mean", math.inf, "finite|Gaussian mixture"),
        ("share", 1.5, "shares"),
        ("share", 0.5, "shares"),  # of a level, too
    ],
)
def test_files_whose_gaussians_are_none_are_refused(name, value, why, model, tmp_path):
    path = tmp_path / "model.flow"
    model.save(path)
    with safe_open(path, "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    key = next(key for key in tensors if key.endswith(f".{name}"))
    tensors[key] = torch.full_like(tensors[key], value)
    save_file(tensors, path, metadata)
    with pytest.raises(FileError, match=why):
        flowlab.load(path)


def test_no_rows_and_variables_that_are_none(flow):
    nothing = torch.zeros(0, flow.features, dtype=torch.float64)
    assert flow.log_prob(nothing).shape == (0,)
    assert flow.sample((0,)).shape == (0, flow.features)
    assert flow.to_normal(nothing).shape == nothing.shape
    with pytest.raises(ValueError, match="differ"):
        Gaussians([1, 1], 2)
    with pytest.raises(ValueError, match="numbers"):
        GaussianFlow(flow.flow, Gaussians([0, 1], 2))  # 0 is a level


def test_tables_with_few_rows_or_numbers_have_none():
    rows = torch.randn(200, 3, dtype=torch.float64, generator=seeded(6))
    assert learn_gaussians(rows, [0, 1, 2], 8, seed=0).components == 6
    assert learn_gaussians(rows[:20], [0, 1, 2], 8, seed=0) is None
    assert learn_gaussians(rows[:, :1], [0], 8, seed=0) is None
    assert learn_gaussians(rows, [0, 1, 2], 0, seed=0) is None
    rows[:150, 1] = math.nan
    assert learn_gaussians(rows, [0, 1, 2], 8, seed=0).variables == [0, 2]
    assert learn_gaussians(rows[:0], [0, 1, 2], 8, seed=0) is None
