"""Bounds, ranges and exact relations between columns hold in scores and draws, for tables of any kinds of columns."""

import numpy as np
import pandas as pd
import pytest

from flowlab import FlowDensity, Member, load

NUMBERS = {"members": ["copula", "broad"], "random_state": 0, "validation": 0}
WHOLE = {"members": [Member("mixed", steps=40, hidden=(16,))], "random_state": 0, "n_jobs": 1, "validation": 0}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_draws_of_numbers_stay_within_the_range_of_training(rng):
    n = 160
    df = pd.DataFrame({"a": rng.normal(size=n), "k": rng.integers(0, 50, n), "lat": rng.uniform(-90, 90, n).round(4)})
    rows = FlowDensity(**NUMBERS).fit(df).sample(3000, random_state=1)
    assert (rows >= df.min()).all().all()
    assert (rows <= df.max()).all().all()
    assert (rows["lat"].round(4) == rows["lat"]).all()


def test_the_range_is_widened_where_hardly_a_row_lies_within(rng):
    x = rng.normal(size=(20, 30))
    model = FlowDensity(members=["broad"], random_state=0).fit(x)
    rows = model.sample(200, random_state=0)
    assert rows.shape == (200, 30)
    joint = model._model.joint
    assert (joint.low.numpy() < x.min(0)).all()
    assert (joint.high.numpy() > x.max(0)).all()


def test_detected_bounds_hold_in_scores_and_draws(rng, tmp_path):
    df = pd.DataFrame({"price": rng.lognormal(size=400), "n": rng.poisson(2, 400), "share": rng.beta(0.5, 0.5, 400)})
    model = FlowDensity(**NUMBERS).fit(df)
    rows = model.sample(3000, random_state=0)
    assert (rows >= 0).all().all()
    assert (rows["share"] <= 1).all()
    beyond = pd.DataFrame({"price": [-0.05, 1.0, 1.0], "n": [1, -1, 1], "share": [0.5, 0.5, 1.01]})
    assert np.isneginf(model.score_samples(beyond)).all()
    assert np.isfinite(model.score_samples(df)).all()
    model.save(tmp_path / "m.flow")
    assert (load(tmp_path / "m.flow").score_samples(df) == model.score_samples(df)).all()


def test_a_bounded_density_integrates_to_one(rng):
    x = rng.exponential(size=(500, 1))
    model = FlowDensity(members=["mixture"], preprocessing="none", random_state=0).fit(x)
    assert model._model.joint.log_mass < -0.01  # Gaussians reach below zero
    grid = np.linspace(0, 40, 200_001)[:, None]
    assert np.trapezoid(np.exp(model.score_samples(grid)), grid[:, 0]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("form", ["numbers", "whole", "flags"])
def test_one_hot_groups_stay_one_hot(rng, form):
    group = rng.integers(0, 4, 400)
    df = pd.DataFrame({f"r{i}": (group == i).astype(int) for i in range(4)} | {"x": rng.normal(size=400) + group})
    flags = [f"r{i}" for i in range(4)]
    if form == "whole":
        df["c"] = list("ab") * 200
    if form == "flags":
        df[flags] = df[flags].astype(bool)
    model = FlowDensity(**(NUMBERS if form == "numbers" else WHOLE)).fit(df)
    rows = model.sample(500, random_state=0)
    assert (rows[flags].sum(axis=1) == 1).all()
    assert (rows[flags].dtypes == df[flags].dtypes).all()
    assert np.isfinite(model.score_samples(df)).all()


@pytest.mark.parametrize("whole", [False, True])
def test_shares_that_sum_to_one_stay_shares(rng, whole):
    a = np.round(rng.dirichlet([2] * 5, size=400), 2)
    a[:, 4] = np.round(1 - a[:, :4].sum(1), 2)
    df = pd.DataFrame(a[(a >= 0).all(1)], columns=list("abcde"))
    if whole:
        df["y"] = rng.choice(["u", "v"], len(df))
    model = FlowDensity(**(WHOLE if whole else NUMBERS)).fit(df)
    rows = model.sample(1000, random_state=0)
    assert model.schema_["e"].kind == "derived"
    assert rows["e"].between(0, df["e"].max()).all()
    assert np.allclose(rows[list("abcde")].sum(axis=1), 1)
    assert np.isneginf(model.score_samples(df.head(1).assign(a=0.9, b=0.9, c=0.0, d=0.0, e=-0.8)))[0]


@pytest.mark.parametrize("factor", [1.602e-19, 1e-300, 1 / 3])
@pytest.mark.parametrize("whole", [False, True])
def test_multiples_of_any_size_are_derived(rng, factor, whole):
    n = rng.integers(1, 1000, 400)
    df = pd.DataFrame({"n": n, "charge": n * factor, "x": rng.normal(size=400)})
    if whole:
        df["c"] = list("uv") * 200
    model = FlowDensity(**(WHOLE if whole else NUMBERS)).fit(df)
    rows = model.sample(200, random_state=0)
    assert model.schema_["charge"].kind == "derived"
    assert np.allclose(rows["charge"], rows["n"] * factor, rtol=1e-9, atol=0)
    assert rows["charge"].nunique() > 50


@pytest.mark.parametrize("whole", [False, True])
def test_large_integers_are_exact(rng, whole, tmp_path):
    df = pd.DataFrame({"us": 1_700_000_000_000_000 + rng.integers(0, 8, 300), "b": rng.normal(size=300)})
    if whole:
        df["c"] = list("uv") * 150
    model = FlowDensity(**(WHOLE if whole else NUMBERS)).fit(df)
    model.save(tmp_path / "m.flow")
    rows = load(tmp_path / "m.flow").sample(300, random_state=0)
    assert set(rows["us"]) == set(df["us"])
    assert rows["us"].dtype == df["us"].dtype
    given = model.sample(20, random_state=0, given={"us": (1_700_000_000_000_003, None)})["us"]
    assert given.between(1_700_000_000_000_003, df["us"].max()).all()


@pytest.mark.parametrize("whole", [False, True])
def test_decimals_of_numbers_that_hardly_repeat_survive(rng, whole):
    df = pd.DataFrame({"income": np.round(rng.lognormal(10, 0.5, 500), 2), "x": rng.normal(size=500)})
    if whole:
        df["c"] = list("uv") * 250
    income = FlowDensity(**(WHOLE if whole else NUMBERS)).fit(df).sample(300, random_state=0)["income"]
    assert (income == income.round(2)).all()


def test_small_parts_of_large_numbers_are_kept(rng):
    b = rng.integers(0, 50, 300)
    df = pd.DataFrame({"b": b, "x": rng.normal(size=300), "d": 1_000_000_000_000 * b + 3, "e": 1000.0 * b + 0.0004})
    rows = FlowDensity(**NUMBERS).fit(df).sample(200, random_state=0)
    assert (rows["d"] == 1_000_000_000_000 * rows["b"] + 3).all()
    assert np.allclose(rows["e"] - 1000.0 * rows["b"], 0.0004, atol=1e-8)


def test_half_precision_columns_have_no_infinite_draws(rng):
    a = np.clip(rng.lognormal(9, 1, 400), 0, 65000).astype(np.float16)
    rows = FlowDensity(**NUMBERS).fit(pd.DataFrame({"a": a, "b": rng.normal(size=400)})).sample(2000, random_state=0)
    assert np.isfinite(rows["a"]).all()


@pytest.mark.parametrize("value", [1e18, 1e308])
@pytest.mark.parametrize("whole", [False, True])
def test_one_huge_number_is_named(rng, value, whole):
    df = pd.DataFrame(rng.normal(size=(160, 3)), columns=list("abc"), index=[f"row {i}" for i in range(160)])
    df.loc["row 7", "b"] = value
    if whole:
        df["d"] = ["u", "v"] * 80
    with pytest.raises(ValueError, match="column 'b' holds"):
        FlowDensity(**(WHOLE if whole else NUMBERS)).fit(df)


def test_dates_of_pyarrow_and_ends_of_times(rng):
    pa = pytest.importorskip("pyarrow")
    days = pd.date_range("2020-01-01", periods=120)
    df = pd.DataFrame({"a": rng.normal(size=120), "t": pd.Series(days.date, dtype=pd.ArrowDtype(pa.date32()))})
    rows = FlowDensity(**WHOLE).fit(df).sample(30, random_state=0)
    assert rows["t"].dtype == df["t"].dtype
    assert set(rows["t"]) <= set(df["t"])
    ends = pd.DataFrame({"a": rng.normal(size=120), "t": pd.Series([pd.Timedelta.min, pd.Timedelta.max] * 60)})
    with pytest.raises(ValueError, match="column 't' holds times at the very end"):
        FlowDensity(**WHOLE).fit(ends)
