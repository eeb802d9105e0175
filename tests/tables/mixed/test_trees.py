"""Trees and their mixture with networks: probabilities that sum to one, draws that follow them, checks of files."""

import copy
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats

import flowlab
from flowlab import FlowDensity, Member
from flowlab.files import FileError
from flowlab.tables.mixed.column_mixture import ColumnMixture
from flowlab.tables.mixed.distributions import uniform_from
from helpers import seeded


def table(n: int = 700, seed: int = 0) -> pd.DataFrame:
    """A level, a count that may be missing, a flag and a number, each depending on those before it by steps."""
    rng = np.random.default_rng(seed)
    city = rng.choice(["Rome", "Oslo", "Lima"], n, p=[0.5, 0.3, 0.2])
    count = rng.binomial(4, np.select([city == "Rome", city == "Oslo"], [0.2, 0.8], 0.5)).astype(float)
    count[rng.random(n) < 0.3 * (city == "Lima")] = np.nan
    flag = (np.nan_to_num(count, nan=4) > 2) ^ (rng.random(n) < 0.1)
    x = np.where(flag, 5.0, 0.0) + rng.normal(size=n)
    return pd.DataFrame({"city": city, "count": count, "flag": flag, "x": x})


@pytest.fixture(scope="module")
def model() -> FlowDensity:
    members = [Member("mixed", "none", rank=k, steps=60) for k in range(2)]
    return FlowDensity(members=members, random_state=0, n_jobs=1, validation=0.1).fit(table(2200))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "all"])
def mixture(model: FlowDensity, request) -> ColumnMixture:
    """A member with networks and trees, in a random order; and the same with everything that it may have."""
    member = model.flow_.flows[-1]
    assert isinstance(member, ColumnMixture)
    assert (member.weights[member.in_order()[1:], 1:].sum(1) > 0.01).all()  # else trees would not be tested
    return with_everything(member) if request.param else member


def with_everything(member: ColumnMixture) -> ColumnMixture:
    """A member that trusts trees alone after the first level of each class, and sharpens its numbers."""
    other = ColumnMixture(member.flow, member.forest, rare=True, sharpened=True)
    other.weights.copy_(member.weights)
    order, start = member.in_order(), 0
    for variable, outcomes in enumerate(member.forest.outcomes):
        if outcomes:
            other.misjudged[start, order[order.index(variable) + 1 :]] = True
        start += outcomes
    numbers = [j for j in order[1:] if not member.classes[j]]
    assert numbers
    other.sharpness[numbers] = 1.7
    other.rare_weights[:] = torch.tensor([0.0, 0.2, 0.3, 0.5], dtype=torch.float64)
    return other


def all_cells(model: FlowDensity) -> pd.DataFrame:
    """Every combination of levels, counts (missing included) and flags."""
    counts = [np.nan, *range(8)]
    rows = itertools.product(["Rome", "Oslo", "Lima"], counts, [False, True])
    return pd.DataFrame(rows, columns=["city", "count", "flag"])


def test_probabilities_and_densities_of_everything_sum_to_one(model, mixture):
    cells = all_cells(model)
    grid = np.linspace(-9, 14, 701)
    rows = cells.loc[cells.index.repeat(len(grid))].reset_index(drop=True).assign(x=np.tile(grid, len(cells)))
    matrix, possible = model.table_.encode_all(rows)
    assert possible.all()
    with torch.no_grad():
        density = mixture.log_prob(torch.from_numpy(matrix)).exp().numpy().reshape(len(cells), len(grid))
    assert np.trapezoid(density, grid, axis=1).sum() == pytest.approx(1, abs=3e-3)


def test_draws_follow_the_density(model, mixture):
    drawn = mixture.sample((6000,), generator=seeded())
    frame = model.table_.decode(drawn.numpy())
    # Which cells are drawn how often: against their probability, x integrated out by the density of known cells.
    order = [model.table_.variables[j].name for j in mixture.in_order()]
    noise = mixture.to_normal(drawn, generator=seeded(1)).numpy()
    for name, column in zip(model.table_.names, noise.T, strict=True):
        assert stats.kstest(column, "norm").pvalue > 1e-3, (name, order)
    assert frame["x"].between(table(2200)["x"].min(), table(2200)["x"].max()).all()


@torch.no_grad()
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 0.7), (0.9, 0.97), (0.0, 0.02)])
def test_numbers_are_drawn_between_limits_as_they_are_distributed(model, mixture, low, high):
    variable = [name.name for name in model.table_.variables].index("x")
    rows = torch.from_numpy(model.table_.encode_all(table(1500, seed=2))[0])
    before = torch.zeros_like(rows, dtype=torch.bool)
    before[:, mixture.in_order()[: mixture.in_order().index(variable)]] = True
    number = mixture.number(variable, mixture.observe(rows, before))
    ends = [torch.full((len(rows),), end, dtype=torch.float64) for end in (low, high)]
    drawn = number.draw_between(*ends, uniform_from(seeded(), rows.device))
    first, at, last = (number.cdf(rank) for rank in (ends[0], drawn, ends[1]))
    some = last - first > 1e-9
    level = (at - first)[some] / (last - first)[some]
    assert stats.kstest(level.numpy(), "uniform").pvalue > 1e-3


def test_noise_of_held_out_rows_is_nearly_normal(model):
    noise = model.to_noise(table(1500, seed=5), random_state=0)
    assert np.abs(noise.mean(0)).max() < 0.15
    assert np.abs(noise.std(0) - 1).max() < 0.15


def test_no_number_comes_back_that_is_no_repeated_one(model):
    assert not np.isin(model.sample(3000, random_state=0)["x"], table(2200)["x"]).any()


def test_trees_find_steps_that_few_training_steps_of_networks_miss():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3000))
    frame = pd.DataFrame({"a": a, "b": b, "parity": (np.floor(5 * a) + np.floor(5 * b)) % 2})
    train, test = frame[:2400], frame[2400:]
    scores = []
    for trees in (0, 10):
        member = Member("mixed", "none", steps=60, trees=trees)
        fitted = FlowDensity(members=[member], random_state=0, n_jobs=1).fit(train)
        scores.append(fitted.score_samples(test).mean())
    assert scores[1] > scores[0] + 0.2
    assert scores[1] > -0.4  # the truth: 0


def test_what_is_missing_is_told_by_other_columns(model):
    rows = model.sample(6000, random_state=0)
    gone = rows["count"].isna().groupby(rows["city"]).mean()
    assert gone["Lima"] == pytest.approx(0.3, abs=0.06)
    assert gone["Rome"] < 0.02


def test_draws_under_conditions_agree_with_free_draws(model):
    free = model.sample(20_000, random_state=0)
    for name, level in (("flag", True), ("city", "Lima")):
        given = model.sample(3000, random_state=1, given={name: level})
        kept = free[free[name] == level]
        assert stats.ks_2samp(given["x"], kept["x"]).statistic < 0.06, name
        assert given["count"].mean() == pytest.approx(kept["count"].mean(), abs=0.15)


@pytest.fixture(scope="module")
def frauds() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """36 of 6,000 rows that are apart from all others, by 3 in each number; draws given that, and free ones with it."""
    rng = np.random.default_rng(0)
    fraud = np.zeros(6000, dtype=bool)
    fraud[rng.choice(6000, 36, replace=False)] = True
    frame = pd.DataFrame({"a": rng.normal(3.0 * fraud, 1), "b": rng.normal(-3.0 * fraud, 1), "fraud": fraud})
    model = FlowDensity(random_state=0).fit(frame)
    with pytest.warns(UserWarning, match="training rows"):
        given = model.sample(2000, random_state=0, given={"fraud": True})
    free = model.sample(60_000, random_state=0)
    return frame[fraud], given, free[free["fraud"]]


@pytest.mark.slow
def test_rare_groups_are_drawn_as_they_are(frauds):
    real, *drawn = frauds
    for rows in drawn:
        for name in ("a", "b"):
            assert rows[name].mean() == pytest.approx(real[name].mean(), abs=2 * real[name].std() / 6), name


@pytest.mark.slow
def test_rare_levels_that_differ_have_weights_of_their_own():
    rng = np.random.default_rng(0)
    apart = np.where(np.arange(3000) < 40, rng.choice(["like", "unlike"], 3000), "usual")
    x = rng.normal(np.where(apart == "unlike", 4.0, 0.0), 1)
    train = pd.DataFrame({"kind": apart, "x": x, "y": rng.normal(x)}).sample(frac=1, random_state=0)
    members = [Member("mixed", "none", rank=k, steps=60) for k in range(2)]
    model = FlowDensity(members=members, random_state=0, n_jobs=1).fit(train)
    levels = model.table_.codec.schema["kind"].categories
    for member in model.flow_:
        assert member.in_order()[0] == 0  # before what it tells of, in random orders too
        assert [bool(of[1]) for of in member.misjudged] == [level == "unlike" for level in levels]
        assert member.rare_weights[1, 0] < 0.5


def test_files_and_copies_keep_everything(model, tmp_path):
    model.save(tmp_path / "model.flow")
    again = flowlab.load(tmp_path / "model.flow")
    rows = table(200, seed=3)
    for other in (again, copy.deepcopy(model)):
        np.testing.assert_array_equal(other.score_samples(rows), model.score_samples(rows))
        pd.testing.assert_frame_equal(other.sample(50, random_state=1), model.sample(50, random_state=1))


def test_no_rows_and_one_row(mixture):
    nothing = mixture.sample((0,))
    assert nothing.shape == (0, mixture.features)
    assert mixture.log_prob(nothing).shape == (0,)
    one = mixture.sample((), generator=seeded())
    assert torch.isfinite(mixture.log_prob(one))


def _cycle(tensors, prefix):
    inner = (tensors[f"{prefix}feature"] >= 0).nonzero()[-1]
    tensors[f"{prefix}right"][inner] = 0


def _set(name, value, where=0):
    def change(tensors, prefix):
        tensors[f"{prefix}{name}"].view(-1)[where] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _cycle,
        _set("feature", 99),
        _set("feature", -7),
        _set("feature", 1, -1),
        _set("right", 2**30),
        _set("roots", 5),
        _set("size", 1000),
        _set("code", 9999),
        _set("code", -5),
        _set("share", 3.0),
        _set("share", math.nan),
        _set("bandwidth", 0.0),
        _set("threshold", math.inf),
        _set("gone", -1.0),
        _set("frequency", 0.9),
        _set("scores", math.nan),
    ],
    ids=lambda change: getattr(change, "__name__", ""),
)
def test_files_whose_trees_are_none_are_refused(change, model, tmp_path):
    path = tmp_path / "model.flow"
    model.save(path)
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors, "flows.0.forest.")
    save_file(tensors, path, metadata)
    with pytest.raises(FileError):
        flowlab.load(path)


def test_rows_of_a_forest_of_one_tree_do_not_share_their_place():
    members = [Member("mixed", "none", steps=30, trees=1, gaussians=0)]
    frame = table(300)
    model = FlowDensity(members=members, effort="fast", random_state=0, n_jobs=1).fit(frame)
    alone = np.concatenate([model.score_samples(frame.iloc[[i]]) for i in range(20)])
    assert np.allclose(model.score_samples(frame.iloc[:20]), alone)


def test_files_with_everything_are_checked(model, tmp_path):
    rare = with_everything(model.flow_.flows[-1])
    path = tmp_path / "member.flow"
    flowlab.save(rare, path)
    rows = rare.sample((50,), generator=seeded())
    assert torch.equal(flowlab.load(path).log_prob(rows), rare.log_prob(rows))
    wrong = {"rare_weights": (math.nan, 3.0), "misjudged": (True,), "sharpness": (math.nan, 0.5, 2.0, math.inf)}
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    for name, value in [(name, value) for name, values in wrong.items() for value in values]:
        broken = torch.full_like(tensors[name], value)  # also of variables before a level, and of classes
        save_file(tensors | {name: broken}, path, metadata)
        with pytest.raises(FileError):
            flowlab.load(path)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 0.0], [-1.0, 1.0, 1.0, 0.0], [math.nan, 0.0, 1.0, 0.0]])
def test_weights_that_are_none_are_refused(weights, model, tmp_path):
    path = tmp_path / "model.flow"
    model.save(path)
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["flows.0.weights"][0] = torch.tensor(weights, dtype=torch.float64)
    save_file(tensors, path, metadata)
    with pytest.raises(FileError):
        flowlab.load(path)
