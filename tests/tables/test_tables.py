"""Whole tables through `FlowDensity`: what comes back, what is refused, and whether the probabilities are right."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import flowlab
from flowlab import FlowDensity
from flowlab.tables.query.conditions import ConditionError
from helpers import small_density


def mixed_table(n: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    size = rng.normal(10, 2, n)
    group = rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2])
    count = rng.poisson(3, n) + 2 * (group == "b")
    frame = pd.DataFrame(
        {
            "size": size,
            "price": np.round(size * 3 + rng.normal(0, 1, n), 2),
            "group": group,
            "count": count,
            "flag": rng.random(n) < 0.3,
            "rate": np.where(rng.random(n) < 0.4, 0.0, rng.gamma(2, 1, n)),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, n), unit="D"),
            "level": pd.Categorical(rng.choice(["low", "mid", "high"], n), ["low", "mid", "high"], ordered=True),
            "score": pd.array(rng.integers(0, 10, n), dtype="Int8"),
            "constant": 7,
        }
    )
    frame.loc[rng.random(n) < 0.2, "price"] = np.nan
    frame.loc[rng.random(n) < 0.1, "group"] = None
    frame.loc[frame["flag"], "score"] = pd.NA
    return frame


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return mixed_table()


@pytest.fixture(scope="module")
def fitted(table) -> FlowDensity:
    return small_density().fit(table)


def test_samples_are_tables_like_the_one_fitted_to(fitted, table):
    rows = fitted.sample(300, random_state=1)
    assert list(rows.columns) == list(table.columns)
    assert rows.dtypes.equals(table.dtypes)
    assert set(rows["group"].dropna()) <= {"a", "b", "c"}
    assert (rows["constant"] == 7).all()
    assert (rows["count"] >= 0).all()
    assert (rows["rate"] >= 0).all()
    assert 0.25 < (rows["rate"] == 0).mean() < 0.55
    np.testing.assert_array_equal(rows["price"].dropna(), rows["price"].dropna().round(2))
    for name in ("price", "group", "score"):
        assert rows[name].isna().mean() == pytest.approx(table[name].isna().mean(), abs=0.12)
    assert not rows[["size", "count", "flag", "rate", "day", "level"]].isna().any().any()
    assert rows["day"].between(table["day"].min(), table["day"].max()).all()


def test_every_row_has_a_likelihood_and_impossible_ones_none(fitted, table):
    assert np.isfinite(fitted.score_samples(table)).all()
    for name, value in (("count", -1), ("rate", -0.1), ("constant", 8)):
        strange = table.iloc[:1].copy()
        strange[name] = [value]
        assert fitted.score_samples(strange) == -np.inf, name


def test_missing_cells_are_outcomes_or_unknown(fitted, table):
    rows = table[table["price"].isna()].iloc[:20]
    outcome, unknown = fitted.score_samples(rows), fitted.score_samples(rows, missing="unknown")
    assert unknown.mean() > outcome.mean()
    complete = table.dropna().iloc[:20]
    np.testing.assert_allclose(fitted.score_samples(complete), fitted.score_samples(complete, missing="unknown"))


def test_no_row_is_less_likely_for_leaving_a_cell_out(fitted, table):
    rows = table[table["price"].isna()].iloc[:20]
    assert (fitted.score_samples(rows, missing="unknown") > fitted.score_samples(rows)).all()


@pytest.mark.parametrize(
    "given",
    [
        {"group": "b"},
        {"group": ["a", "c"], "size": (9, 11)},
        {"count": 3, "level": ("mid", None)},
        {"day": ("2024-02-01", "2024-03-15"), "flag": True},
        {"price": None},
        {"rate": 0.0, "score": {1, 2}},
    ],
    ids=str,
)
def test_conditions_are_kept(fitted, given):
    rows = fitted.sample(40, random_state=1, given=given)
    assert len(rows) == 40
    assert 0 < rows.attrs["acceptance"] <= 1
    for name, wish in given.items():
        values = rows[name]
        if wish is None:
            assert values.isna().all()
        elif isinstance(wish, tuple):
            low, high = (pd.Timestamp(w) if isinstance(w, str) and name == "day" else w for w in wish)
            assert (values >= low).all()
            assert high is None or (values <= high).all()
        elif isinstance(wish, list | set):
            assert values.isin(list(wish)).all()
        else:
            assert (values == wish).all()


def test_a_table_of_conditions_gives_a_row_for_each(fitted):
    given = pd.DataFrame({"group": ["a", "b", None, "c"], "count": [1, 4, 2, 3]}, index=[7, 8, 9, 10])
    rows = fitted.sample(given=given, random_state=0)
    assert rows.index.tolist() == [7, 8, 9, 10]
    assert rows["count"].tolist() == [1, 4, 2, 3]
    assert rows["group"].fillna("none").tolist() == ["a", "b", "none", "c"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"nothing": 1}, ValueError, "no column 'nothing'"),
        ({"group": "z"}, ValueError, "'group' cannot be 'z'"),
        ({"count": 2.5}, ValueError, "'count' cannot be 2.5"),
        ({"rate": (3, 1)}, ValueError, "'rate'.*empty"),
        ({"size": (1000, 1001)}, (ConditionError, RuntimeError), "size"),
        ({"group": []}, ValueError, "'group'.*empty"),
        ({"size": None}, ValueError, "'size' cannot be missing"),
        ({"group": ("a", "b")}, ValueError, "without an order"),
        ({"constant": 8}, ValueError, "'constant' cannot be 8: it is always 7"),
    ],
    ids=str,
)
def test_bad_conditions_are_named(fitted, given, error, message):
    with pytest.raises(error, match=message):
        fitted.sample(5, random_state=0, given=given)


def test_imputation_leaves_observed_cells_alone(fitted, table):
    filled = fitted.impute(table, random_state=0)
    assert not filled.isna().any().any()
    assert filled.dtypes.equals(table.dtypes)
    assert filled.index.equals(table.index)
    pd.testing.assert_frame_equal(filled.where(table.notna()), table, check_dtype=False, check_exact=True)
    holes = table.mask(table["count"] == 3)  # whole numbers with holes have become floats
    assert not fitted.impute(holes, random_state=0).isna().any().any()
    again = fitted.impute(table, n=2, random_state=1)
    assert len(again) == 2
    assert not again[0].equals(again[1])


@pytest.mark.parametrize("effort", ["default", "fast"])
def test_conditionals_are_those_of_a_known_distribution(effort):
    rng = np.random.default_rng(0)
    n = 4000
    group = rng.choice(["a", "b"], n, p=[0.7, 0.3])
    x = rng.normal(np.where(group == "a", -1.0, 1.0), 1.0)
    y = rng.normal(2 * x, 0.5)
    frame = pd.DataFrame({"y": y, "group": group, "x": x})
    model = FlowDensity(effort=effort, random_state=0).fit(frame)
    at = pd.DataFrame({"x": [-1.0, 0.0, 1.0]})
    truth = 0.7 * stats.norm.pdf(at["x"], -1) / (0.7 * stats.norm.pdf(at["x"], -1) + 0.3 * stats.norm.pdf(at["x"], 1))
    np.testing.assert_allclose(model.conditional("group", at)["a"], truth, atol=0.1)
    found = model.conditional("y", at, n=2000, random_state=0)
    np.testing.assert_allclose(found["mean"], 2 * at["x"], atol=0.25)
    np.testing.assert_allclose(found["sd"], 0.5, atol=0.2)
    rows = model.sample(2000, random_state=1, given={"group": "b"})
    assert rows["x"].mean() == pytest.approx(1, abs=0.15)
    truth_log_prob = np.log(np.where(group == "a", 0.7, 0.3)) + stats.norm.logpdf(x, np.where(group == "a", -1, 1))
    truth_log_prob += stats.norm.logpdf(y, 2 * x, 0.5)
    assert model.validation_score_ == pytest.approx(truth_log_prob.mean(), abs=0.15)


def test_rules_hold_in_samples_and_rows_that_break_them_have_no_likelihood():
    rng = np.random.default_rng(0)
    n = 500
    low = rng.integers(0, 50, n)
    city = rng.choice(["Rome", "Oslo", "Bergen"], n)
    frame = pd.DataFrame(
        {
            "low": low,
            "high": low + rng.integers(0, 9, n),
            "city": city,
            "country": pd.Series(city).map({"Rome": "Italy", "Oslo": "Norway", "Bergen": "Norway"}),
            "a": np.round(rng.random(n), 2),
            "b": np.round(rng.random(n), 2),
        }
    )
    frame["total"] = (frame["a"] * frame["b"]).round(4)
    rules = ["low <= high", flowlab.FixedCombinations(["city", "country"]), "total = a * b", "a + b > 0.1"]
    model = small_density(rules=rules).fit(frame)
    rows = model.sample(300, random_state=0)
    assert (rows["low"] <= rows["high"]).all()
    assert set(zip(rows["city"], rows["country"], strict=True)) <= set(zip(city, frame["country"], strict=True))
    np.testing.assert_allclose(rows["total"], rows["a"] * rows["b"], atol=1e-4)
    assert (rows["a"] + rows["b"] > 0.1).all()
    assert rows.dtypes.equals(frame.dtypes)
    bad = frame.iloc[:3].copy()
    bad.loc[0, "high"] = bad.loc[0, "low"] - 1
    bad.loc[1, "country"] = "Italy" if bad.loc[1, "country"] != "Italy" else "Norway"
    found = model.score_samples(bad)
    assert (found[:2] == -np.inf).all()
    assert np.isfinite(found[2])


def test_files_keep_everything(fitted, table, tmp_path):
    fitted.save(tmp_path / "m.flow")
    loaded = FlowDensity.load(tmp_path / "m.flow")
    np.testing.assert_array_equal(loaded.score_samples(table), fitted.score_samples(table))
    pd.testing.assert_frame_equal(loaded.sample(20, random_state=3), fitted.sample(20, random_state=3))
    assert repr(loaded.schema_) == repr(fitted.schema_)
    assert loaded.summary() == fitted.summary()


def test_one_seed_decides_everything(table):
    one, two = (small_density(steps=20).fit(table) for _ in range(2))
    np.testing.assert_array_equal(one.score_samples(table), two.score_samples(table))


def test_arrays_with_missing_cells_come_back_as_arrays():
    x = np.random.default_rng(0).normal(size=(200, 3))
    x[::5, 1] = np.nan
    model = small_density(steps=20).fit(x)
    rows = model.sample(100, random_state=0)
    assert isinstance(rows, np.ndarray)
    assert 0 < np.isnan(rows[:, 1]).mean() < 0.5
    assert not np.isnan(rows[:, [0, 2]]).any()
    assert np.isfinite(model.score_samples(x)).all()
    assert not np.isnan(model.impute(x)).any()


def test_conditions_on_arrays():
    x = np.random.default_rng(0).normal(size=(200, 2))
    rows = small_density(steps=20).fit(x).sample(30, random_state=0, given={"x0": (-0.5, 0.5)})
    assert isinstance(rows, np.ndarray)
    assert (np.abs(rows[:, 0]) <= 0.5).all()


def test_the_conditional_of_a_flag_sums_to_one(fitted):
    found = fitted.conditional("flag", {"group": "a"})
    assert found.shape == (1, 2)
    assert found.to_numpy().sum() == pytest.approx(1)


def test_declared_supports_are_respected():
    x = pd.DataFrame(
        {"share": np.random.default_rng(0).beta(0.5, 0.5, 500), "y": np.random.default_rng(1).normal(size=500)}
    )
    model = small_density(schema={"share": {"lower": 0, "upper": 1}}).fit(x)
    rows = model.sample(1000, random_state=0)
    assert rows["share"].between(0, 1).all()
    outside = pd.DataFrame({"share": [-0.001, 1.001, 0.5], "y": [0.0, 0.0, 0.0]})
    assert np.isneginf(model.score_samples(outside)).tolist() == [True, True, False]


def test_an_edited_schema_counts_beside_rules():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"low": rng.random(200), "share": rng.random(200)})
    frame["high"] = frame["low"] + rng.random(200)
    schema = flowlab.Schema.infer(frame)
    schema["share"].upper = 1.5
    model = small_density(steps=5, schema=schema, rules=["low <= high"]).fit(frame)
    assert model.schema_["share"].upper == 1.5
    outside = frame.iloc[:2].assign(share=[1.2, 1.6])
    assert np.isneginf(model.score_samples(outside)).tolist() == [False, True]


def test_weights_count_in_whole_tables(table):
    weight = np.where(table["flag"], 0.0, 1.0)
    model = small_density(steps=20).fit(table, sample_weight=weight)
    rows = model.sample(100, random_state=0)
    assert not rows["flag"].any()


def test_sizes_rows_and_columns_at_the_edge():
    tiny = pd.DataFrame({"a": ["x", "y"], "b": [1.0, np.nan]})
    assert len(small_density(steps=5).fit(tiny).sample(5, random_state=0)) == 5
    one = pd.DataFrame({"a": list("xyzx") * 10})
    rows = small_density(steps=5).fit(one).sample(200, random_state=0)
    assert (rows["a"] == "x").mean() == pytest.approx(0.5, abs=0.15)
    constant = pd.DataFrame({"a": ["x"] * 5, "b": [1] * 5})
    assert small_density(steps=5).fit(constant).sample(3).equals(constant.iloc[:3])


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (pd.DataFrame({"id": [f"u{i}" for i in range(100)], "x": range(100)}), {}, "'id' looks like an identifier"),
        (pd.DataFrame({"a": [np.inf, 1.0, np.nan], "b": [1, 2, 3]}), {}, "'a'.*inf"),
        (pd.DataFrame({"a": ["x", "y"] * 9}), {"schema": {"b": "integer"}}, "'b'"),
        (pd.DataFrame({"a": ["x", "y"] * 9}), {"schema": {"a": "integer"}}, "'a'"),
        (pd.DataFrame({"a": ["x", "y"] * 9}), {"rules": ["a < b"]}, "'b'"),
    ],
    ids=["id", "infinity", "schema of no column", "kind that cannot be", "rule of no column"],
)
def test_what_cannot_be_is_refused_by_name(frame, options, message):
    with pytest.raises(ValueError, match=message):
        small_density(**options).fit(frame)


def test_members_for_numbers_alone_refuse_other_tables():
    frame = pd.DataFrame({"a": ["x", "y"] * 20, "b": range(40)})
    with pytest.raises(ValueError, match=r"mixture model tables of complete numbers alone, and columns \['a'\] hold"):
        FlowDensity(members=["mixture", "mixed"]).fit(frame)


@pytest.fixture(scope="module")
def numbers() -> FlowDensity:
    """Of a Gaussian pair, its first column's whole part, and a constant."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=3000)
    table = pd.DataFrame({"a": a, "b": 0.8 * a + 0.6 * rng.normal(size=3000), "n": rng.poisson(2, 3000), "one": 1.0})
    return FlowDensity(members=["copula"], random_state=0).fit(table)


def test_complete_numbers_are_drawn_under_conditions_by_rejection(numbers):
    rows = numbers.sample(1500, random_state=1, given={"a": (0.5, None), "n": [1, 2], "one": 1})
    assert len(rows) == 1500
    assert (rows["a"] >= 0.5).all()
    assert rows["n"].isin([1, 2]).all()
    share = stats.norm.sf(0.5) * (stats.poisson.pmf(1, 2) + stats.poisson.pmf(2, 2))
    assert rows.attrs["acceptance"] == pytest.approx(share, abs=0.03)
    plain = numbers.sample(40_000, random_state=2)
    kept = plain[(plain["a"] >= 0.5) & plain["n"].isin([1, 2])]
    assert stats.ks_2samp(rows["b"], kept["b"]).pvalue > 0.001
    assert len(numbers.sample(3, random_state=0, given={"a": (2.5, 2.6)})) == 3  # one draw in 650


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"a": 0.5}, ValueError, "'a' holds numbers that do not repeat.*or leave members out"),
        ({"n": 1.5}, ValueError, "'n' cannot be 1.5"),
        ({"one": 2}, ValueError, "'one' cannot be 2"),
        ({"n": None}, ValueError, "'n' cannot be missing"),
        ({"n": "many"}, ValueError, "'n': expected numbers, got text"),
        ({"a": (2, 1)}, ValueError, r"interval \(2, 1\) is empty"),
        ({"z": 1}, ValueError, "no column 'z'; there are 'a', 'b'"),
        ({"a": (50, 60)}, ConditionError, "next to no probability: 0 of"),
        (pd.DataFrame({"a": [1.0]}), ValueError, r"rows of conditions need.*leave members out"),
    ],
    ids=str,
)
def test_bad_conditions_on_complete_numbers_are_named(numbers, given, error, message):
    with pytest.raises(error, match=message):
        numbers.sample(given=given, random_state=0)


def test_what_needs_conditional_densities_says_which_model_has_them(numbers):
    for ask in (lambda: numbers.impute(pd.DataFrame()), lambda: numbers.conditional("a", {"b": 1.0})):
        with pytest.raises(ValueError, match=r"density of any columns given others.*leave members out"):
            ask()
