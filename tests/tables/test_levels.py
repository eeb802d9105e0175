"""Levels that training did not have: their probability is Good-Turing's, and no other cell of the row suffers."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import flowlab
from flowlab import FlowClassifier, FlowDensity, FlowOutlier, FlowRegressor, Member
from flowlab.tables.schema import Schema

OPTIONS = {"members": [Member("mixed", steps=60, hidden=(16,))], "random_state": 0, "n_jobs": 1}


def words(n: int, seed: int) -> pd.DataFrame:
    """Words of which many occur once, some missing; a number that depends on them, and a constant."""
    rng = np.random.default_rng(seed)
    rank = rng.zipf(1.6, n).clip(max=10**6)
    tag = pd.Series([f"t{k}" for k in rng.zipf(1.8, n).clip(max=10**6)]).where(rng.random(n) < 0.5)
    word = [f"w{k}" for k in rank]
    return pd.DataFrame({"word": word, "x": rng.normal(np.log(rank)), "tag": tag, "unit": "kg"})


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return words(600, 0)


@pytest.fixture(scope="module")
def model(table) -> FlowDensity:
    return FlowDensity(schema={"word": "categorical", "tag": "categorical"}, **OPTIONS).fit(table)


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def test_the_mass_of_the_unseen_is_the_share_of_levels_that_occur_once(table):
    schema = Schema.infer(table, {"word": "categorical", "tag": "categorical"})
    for name in ("word", "tag"):
        counts = table[name].value_counts()
        assert schema[name].unseen == ((counts == 1).sum() + 0.5) / (counts.sum() + 1)
    assert schema["unit"].kind == "constant"
    assert schema["unit"].unseen == 0.5 / 601
    assert schema["x"].unseen == 0
    share = np.mean([not level for level in words(20_000, 1)["word"].isin(table["word"])])
    assert share == pytest.approx(schema["word"].unseen, rel=0.25)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("declared", [False, True])
def test_the_probabilities_of_all_outcomes_sum_to_one(missing, declared):
    rng = np.random.default_rng(0)
    cells = pd.Series(rng.choice(list("aaaabbbccd"), 60)).where(rng.random(60) < (0.6 if missing else 1.1))
    cells[0] = "once"
    outcomes = [*cells.dropna().unique(), "anything else", *([None] if missing else [])]
    if declared:
        levels = pd.CategoricalDtype([*"abcdefg", "once"])
        cells, outcomes = cells.astype(levels), [*outcomes, *"efg"]
    model = FlowDensity(**OPTIONS).fit(pd.DataFrame({"c": cells}))
    p = np.exp(quietly(model.score_samples, pd.DataFrame({"c": outcomes})))
    assert p.sum() == pytest.approx(1)
    there = 1 - p[outcomes.index(None)] if missing else 1.0
    new = p[[i for i, level in enumerate(outcomes) if level in ("anything else", *"efg")]]
    assert new.sum() == pytest.approx(there * model.schema_["c"].unseen)
    assert np.ptp(new) < 1e-12


def test_rows_with_new_levels_score_what_their_other_cells_and_the_mass_say(model):
    rows = words(2000, 2)
    with pytest.warns(UserWarning, match="column 'word': .* rows have levels that training did not have .*'w"):
        scores = model.score_samples(rows)
    assert np.isfinite(scores).all()
    assert scores.mean() == pytest.approx(model.validation_score_, abs=0.3)
    one, mass = rows.iloc[[0]].assign(word="new"), {column.name: column.unseen for column in model.schema_}
    unknown = quietly(model.score_samples, one.assign(word=None))  # in a column that was complete
    assert quietly(model.score_samples, one) - unknown == pytest.approx(np.log(mass["word"]))
    other = quietly(model.score_samples, one.assign(unit="lb")) - quietly(model.score_samples, one)
    assert other == pytest.approx(np.log(mass["unit"]) - np.log1p(-mass["unit"]))
    density = quietly(model.score_samples, rows, measure="density")
    assert np.isfinite(density).all()
    assert np.isfinite(quietly(model.score_samples, rows, missing="unknown")).all()


@pytest.mark.slow
def test_what_follows_from_scores_takes_new_levels(model, table):
    rows = words(2000, 3)
    assert (quietly(model.anomaly_p_value, rows) <= 0.1).mean() == pytest.approx(0.1, abs=0.06)
    drawn = model.sample(1500, random_state=0)
    assert set(drawn["word"]) <= set(table["word"])
    drawn.loc[drawn.index % 3 == 0, "word"] = "new"
    noise = quietly(model.pit, drawn, random_state=0)
    assert stats.kstest(noise[:, 0], "uniform").pvalue > 0.001
    noise = quietly(model.to_noise, rows)
    assert np.isfinite(noise).all()
    outlier = FlowOutlier(clone_of(model)).fit(table)
    assert np.isfinite(quietly(outlier.score_samples, rows)).all()


def clone_of(model: FlowDensity) -> FlowDensity:
    return FlowDensity(**model.get_params())


def test_levels_that_only_held_out_rows_have_are_new_to_the_fold():
    """Every row's level is its own: each is new to its fold, and none says anything of the other column."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"key": [f"k{i}" for i in range(300)], "x": rng.normal(size=300)})
    model = FlowDensity(schema={"key": "categorical"}, **OPTIONS).fit(frame)
    mass = np.log(model.schema_["key"].unseen)
    assert len(model._model.held_out) == 300
    assert model.validation_score_ == pytest.approx(mass + stats.norm.logpdf(frame["x"]).mean(), abs=0.15)
    rows = pd.DataFrame({"key": "other", "x": rng.normal(size=300)})
    assert quietly(model.score, rows) == pytest.approx(mass + stats.norm.logpdf(rows["x"]).mean(), abs=0.15)


def test_closed_sets_booleans_and_old_files_have_no_other_levels(table):
    rng = np.random.default_rng(0)
    frame = table.assign(
        flag=rng.random(600) < 0.5, closed=rng.choice(["u", "v"], 600), shut=rng.choice(["p", "q"], 600)
    )
    schema = {"word": "categorical", "tag": "categorical", "closed": {"categories": ["u", "v"]}, "shut": {"unseen": 0}}
    model = FlowDensity(schema=schema, **OPTIONS).fit(frame)
    assert model.schema_["closed"].unseen == model.schema_["shut"].unseen == model.schema_["flag"].unseen == 0
    for name in ("closed", "shut"):
        row = frame.iloc[[0]].assign(**{name: "w"})
        with pytest.warns(UserWarning, match=f"column '{name}': 1 rows .* score -inf"):
            assert np.isneginf(model.score_samples(row)).all()
        with pytest.raises(flowlab.ConditionError, match=f"column '{name}' has a level in row 0"):
            model.impute(row.assign(x=np.nan))
    early = Schema.from_json({**model.schema_.to_json(), "columns": [without(c) for c in model.schema_]})
    assert all(column.unseen == 0 for column in early)


def without(column) -> dict:
    return {key: value for key, value in column.to_json().items() if key != "unseen"}


def test_an_edited_schema_keeps_open_sets_open(table):
    schema = Schema.infer(table, {"word": "categorical", "tag": "categorical"})
    again = Schema.infer(table, Schema.from_json(schema.to_json()))
    assert [column.unseen for column in again] == [column.unseen for column in schema]
    schema["tag"].unseen = 0.25
    assert Schema.infer(table, schema)["tag"].unseen == 0.25
    numbers = Schema.infer(pd.DataFrame({"n": [1, 2, 3] * 20}))
    numbers["n"].kind = "categorical"
    assert Schema.infer(pd.DataFrame({"n": [1, 2, 3] * 20}), numbers)["n"].unseen == 0.5 / 61
    for wrong in (1, -0.1):
        with pytest.raises(ValueError, match="column 'tag': unseen must be a probability below 1"):
            Schema.infer(table, {"tag": {"kind": "categorical", "unseen": wrong}, "word": "categorical"})
    hostile = schema.to_json()
    hostile["columns"][0]["unseen"] = 1.5
    with pytest.raises(ValueError, match="column 'word': the probability of unseen levels is none"):
        Schema.from_json(hostile)


def test_rules_close_the_sets_that_they_make(table):
    frame = table.assign(country=["Italy", "Norway"] * 300, city=["Rome", "Oslo"] * 300)
    fixed = flowlab.FixedCombinations(["city", "country"])
    model = FlowDensity(rules=[fixed], schema={"word": "categorical", "tag": "categorical"}, **OPTIONS).fit(frame)
    assert model.schema_["city, country"].unseen == 0
    assert np.isneginf(model.score_samples(frame.iloc[[0]].assign(city="Oslo")))[0]


def test_a_new_level_and_its_new_recoding_go_together():
    frame = pd.DataFrame(
        {"city": ["Rome", "Oslo", "Bern"] * 50, "code": ["IT", "NO", "CH"] * 50, "x": np.arange(150.0)}
    )
    model = FlowDensity(**OPTIONS).fit(frame)
    assert model.schema_["code"].kind == "duplicate"
    rows = frame.iloc[[0, 0, 0]].assign(city=["Wien", "Wien", "Rome"], code=["AT", "IT", "AT"])
    assert np.isneginf(quietly(model.score_samples, rows)).tolist() == [False, False, True]


def test_observed_new_levels_stay_and_are_unknown(model):
    rows = words(40, 4).assign(word="new")
    rows.loc[::2, "x"] = np.nan
    with pytest.warns(UserWarning, match="column 'word': .* stay as they are"):
        done = model.impute(rows, random_state=0)
    assert (done["word"] == "new").all()
    assert done["x"].notna().all()
    pd.testing.assert_series_equal(done["x"][1::2], rows["x"][1::2])


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.sample(2, given={"word": "new"}),
        lambda model: model.sample(given=pd.DataFrame({"word": ["w1", "new"]})),
        lambda model: model.conditional("x", {"word": "new"}),
    ],
    ids=["sample", "table", "conditional"],
)
def test_conditions_on_new_levels_are_refused(model, ask):
    with pytest.raises(ValueError, match="column 'word' cannot be 'new': its levels are"):
        ask(model)


@pytest.mark.slow
def test_new_levels_of_features_are_unknown_to_predictions(table):
    x = table[["word", "tag", "unit"]]
    density = FlowDensity(schema={"word": "categorical", "tag": "categorical"}, **OPTIONS)
    regressor = FlowRegressor(density).fit(x, table["x"])
    new = x.iloc[:5].assign(word="new")
    with pytest.warns(UserWarning, match="column 'word': 5 rows .* count as unknown"):
        found = regressor.predict(new)
    np.testing.assert_allclose(found, quietly(regressor.predict, new.assign(word=None)))
    assert np.isfinite(quietly(regressor.score_samples, new)).all()
    classifier = FlowClassifier(density).fit(x, table["x"] > 1)
    assert classifier.density_.schema_["target"].unseen == 0
    np.testing.assert_allclose(quietly(classifier.predict_proba, new).sum(1), 1)
    lower = quietly(classifier.score_samples, new) - quietly(classifier.score_samples, new.assign(word=None))
    mass = classifier.density_.schema_["word"].unseen
    np.testing.assert_allclose(lower, np.log(mass))


def test_files_keep_the_mass(model, tmp_path):
    model.save(tmp_path / "m.flow")
    rows = words(100, 5)
    again = quietly(FlowDensity.load(tmp_path / "m.flow").score_samples, rows)
    np.testing.assert_array_equal(again, quietly(model.score_samples, rows))
