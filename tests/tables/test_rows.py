"""What users pass as tables, conditions and parameters: read as meant, or refused in words that name what is wrong."""

import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from flowlab import FixedCombinations, FlowClassifier, FlowDensity, FlowOutlier, Member, Schema, load
from flowlab.tables.query.conditions import ConditionError

NUMBERS = {"members": ["copula"], "random_state": 0, "validation": 0}
WHOLE = {"members": [Member("mixed", steps=40, hidden=(16,))], "random_state": 0, "n_jobs": 1, "validation": 0}


def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "cut": rng.choice(["a", "b", "c"], 300),
            "k": rng.integers(0, 9, 300),
            "x": rng.normal(size=300),
            "y": rng.normal(size=300),
        }
    )


@pytest.fixture(scope="module")
def df() -> pd.DataFrame:
    return table()


@pytest.fixture(scope="module")
def model(df) -> FlowDensity:
    return FlowDensity(**WHOLE).fit(df)


SEVERAL = {
    "list": ["a", "b"],
    "set": {"a", "b"},
    "array": np.array(["a", "b"]),
    "objects": np.array(["a", "b"], dtype=object),
    "series": pd.Series(["a", "b"], index=[5, 7]),
    "index": pd.Index(["a", "b"]),
    "categorical": pd.Categorical(["a", "b"]),
    "unique": pd.Series(["a", "b", "a"]).unique(),
    "strings": pd.array(["a", "b"], dtype="string"),
    "keys": {"a": 1, "b": 2}.keys(),
}


@pytest.mark.parametrize("wish", SEVERAL.values(), ids=SEVERAL)
def test_conditions_of_several_values_mean_all_of_them(model, wish):
    assert set(model.sample(60, random_state=1, given={"cut": wish})["cut"]) == {"a", "b"}


@pytest.mark.parametrize("wish", [range(2, 5), np.arange(2, 5), torch.arange(2, 5), pd.Series([2, 3, 4]), (2, 4)])
def test_conditions_of_several_numbers(model, wish):
    assert set(model.sample(90, random_state=1, given={"k": wish})["k"]) == {2, 3, 4}


@pytest.mark.parametrize("wish", ["a", np.array("a"), np.str_("a")])
def test_conditions_of_one_value(model, wish):
    assert set(model.sample(5, random_state=1, given={"cut": wish})["cut"]) == {"a"}


@pytest.mark.parametrize("wish", [{"a": 1}, np.zeros((2, 2)), [], [("a", "b")], (1, 2, 3)])
def test_conditions_that_are_none(model, wish):
    with pytest.raises(ValueError, match="column 'cut'"):
        model.sample(2, given={"cut": wish})


def test_conditions_as_rows(model, df):
    assert model.sample(2, random_state=0, given=df.iloc[0][["cut"]])["cut"].tolist() == [df["cut"][0]] * 2
    assert model.sample(given=[{"cut": "a"}, {"cut": "b"}], random_state=0)["cut"].tolist() == ["a", "b"]
    assert len(model.conditional("x", {}, n=50, random_state=0)) == 1
    assert len(model.conditional("x", df.iloc[0], n=50, random_state=0)) == 1
    for wrong in (5, [1], "cut", []):
        with pytest.raises(TypeError, match="given must be a dict"):
            model.sample(2, given=wrong)
    with pytest.raises(ValueError, match="column 'cut': conditional wants one value"):
        model.conditional("x", {"cut": ["a", "b"]})


def test_conditions_on_rare_levels_are_said(df):
    rare = pd.concat([df] * 4, ignore_index=True).assign(fraud=lambda t: t.index < 12)
    model = FlowDensity(**WHOLE).fit(rare)
    assert model.n_rows_ == 1200
    with pytest.warns(UserWarning, match="fraud = True: about .* of 1,200 training rows"):
        model.sample(2, given={"fraud": True})


@pytest.mark.slow
def test_any_number_of_rows_under_improbable_conditions(model, monkeypatch):
    given = {"x": (0.5, 0.7), "y": (1.0, 1.1)}
    monkeypatch.setattr("flowlab.tables.query.conditional.CHUNK", 64)  # many turns
    rows = model.sample(110, random_state=0, given=given)
    assert len(rows) == 110
    assert rows["x"].between(0.5, 0.7).all()
    assert rows["y"].between(1.0, 1.1).all()


def test_more_rows_than_are_drawn_at_once(df, monkeypatch):
    model = FlowDensity(**NUMBERS).fit(df[["x", "y"]])
    monkeypatch.setattr("flowlab.tables.query.sampling.CHUNK", 4)
    assert len(model.sample(3000, random_state=0)) == 3000


@pytest.mark.parametrize("n", ["many", 2.5, 0, -1, True])
def test_numbers_of_rows_that_are_none(model, n):
    with pytest.raises(ValueError, match="n_samples must be a whole number"):
        model.sample(n)


def test_imputation_into_narrower_types(model, df):
    new = pd.DataFrame({"cut": pd.Categorical(["a"] * 3 + [None] * 9), "k": 1, "x": 0.5, "y": np.linspace(-1, 1, 12)})
    filled = model.impute(new, random_state=0)
    assert filled["cut"].notna().all()
    assert filled["cut"].tolist()[:3] == ["a"] * 3
    pd.testing.assert_frame_equal(filled[["k", "x", "y"]], new[["k", "x", "y"]])
    empty = pd.DataFrame({"cut": [np.nan] * 2, "k": [np.nan] * 2, "x": [0.1, 0.2], "y": [None, None]}, index=["p", "q"])
    filled = model.impute(empty, random_state=0)
    assert filled.notna().all().all()
    assert filled.index.tolist() == ["p", "q"]
    assert set(filled["cut"]) <= {"a", "b", "c"}
    assert filled["k"].dtype == "int64"
    whole = pd.DataFrame({"cut": "a", "k": 1, "x": pd.array([1, None, 2], dtype="Int64"), "y": 0.0})
    assert model.impute(whole, random_state=0)["x"].notna().all()
    with pytest.warns(UserWarning, match="key"):
        kept = model.impute(new.assign(key=range(12)), random_state=0)
    assert kept["key"].tolist() == list(range(12))


def test_imputation_keeps_rules(df):
    two = pd.DataFrame({"low": df["k"], "high": df["k"] + 3, "cut": df["cut"]})
    model = FlowDensity(rules=["low + high > 2", "low < high or cut == 'a'"], **WHOLE).fit(two)
    holes = pd.DataFrame({"low": [5, 6, 7], "high": [np.nan] * 3, "cut": ["b"] * 3})
    filled = model.impute(holes, random_state=0)
    assert (filled["low"] < filled["high"]).all()
    with pytest.raises(ConditionError, match="row 0 breaks the rules"):
        model.impute(pd.DataFrame({"low": [0], "high": [1], "cut": [None]}))


def test_arrays_with_missing_cells_of_every_kind():
    x = np.random.default_rng(0).normal(size=(60, 2))
    x[3, 0] = np.nan
    objects = x.astype(object)
    forms = [x, x.tolist(), objects, np.where(np.isnan(x), None, objects), np.where(np.isnan(x), pd.NA, objects)]
    forms += [np.where(np.isnan(x), None, objects).tolist(), np.ma.masked_invalid(x), torch.from_numpy(x)]
    expected = FlowDensity(**WHOLE).fit(x).score_samples(x)
    for form in forms[1:]:
        assert (FlowDensity(**WHOLE).fit(form).score_samples(form) == expected).all()


def test_masked_cells_are_missing():
    x = np.random.default_rng(0).normal(size=(300, 2))
    mask = np.random.default_rng(1).random(x.shape) < 0.1
    low = x[~mask].min()
    x[mask] = -9999.0
    rows = FlowDensity(**WHOLE).fit(np.ma.masked_array(x, mask=mask)).sample(300, random_state=0)
    assert np.nanmin(rows) >= low
    assert np.isnan(rows).any()


def test_tensors_of_any_sort():
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    for form in (x.bfloat16(), x.clone().requires_grad_(), x.double()):
        assert FlowDensity(**NUMBERS).fit(form).sample(2).shape == (2, 2)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[1, "a"], [2, None]], "column 1 holds 'a' in row 0"),
        ([[1, 2], [3]], "rows of one length"),
        (pd.DataFrame({"a": [1.0, 2.0], "s": pd.arrays.SparseArray([0.0, 1.0])}), "column 's'.*to_dense"),
        (
            pd.DataFrame(
                {
                    "a": [1.0, 2.0],
                    "m": pd.array([decimal.Decimal(1), decimal.Decimal(2)], pd.ArrowDtype(pa.decimal128(5, 2))),
                }
            ),
            "column 'm'.*astype",
        ),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), "same name"),
        (pd.DataFrame([[1, "b"], [3, "c"]], columns=["a", "a"]), "same name"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=[("a", 1), ("a", 2)]), "column label"),
        (pd.DataFrame([[1, 2], [3, 4]], columns=[True, False]), "column label True"),
    ],
)
def test_tables_that_are_none(rows, words):
    with pytest.raises(ValueError, match=words):
        FlowDensity(**NUMBERS).fit(rows)


def test_a_dict_is_no_table():
    with pytest.raises(TypeError, match="got a dict"):
        FlowDensity(**NUMBERS).fit({"a": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"n_jobs": 1.5}, "n_jobs"),
        ({"members": "mixed"}, "members must be a list"),
        ({"time_limit": "a"}, "time_limit"),
        ({"validation": None}, "validation"),
        ({"random_state": 10**23}, "random_state"),
        ({"schema": {"x": object()}}, "schema holds"),
    ],
)
def test_parameters_are_checked_before_any_work(df, parameters, words):
    with pytest.raises(ValueError, match=words):
        FlowDensity(**parameters).fit(df)


def test_few_rows_and_row_numbers_are_said():
    with pytest.warns(UserWarning, match="only 2 rows"):
        FlowDensity(members=["copula"], random_state=0).fit([[1.0, 2.0], [3.0, 4.5]])
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="'row' holds consecutive whole numbers"):
        FlowDensity(**NUMBERS).fit(pd.DataFrame({"row": range(60), "x": rng.normal(size=60)}))


def test_scoring_other_tables(model, df):
    with pytest.raises(ValueError, match="fitted to a table with the columns cut, k, x, y"):
        model.score_samples(df.to_numpy())
    with pytest.warns(UserWarning, match="'extra'"):
        assert (model.score_samples(df.assign(extra=1)) == model.score_samples(df)).all()
    with pytest.warns(UserWarning, match="column 'cut': 1 rows have levels .*'Great'"):
        assert np.isfinite(model.score_samples(df.head(1).assign(cut="Great")))[0]


def test_a_fit_that_fails_leaves_the_model_as_it_was(df, monkeypatch):
    for parameters, frame in ((NUMBERS, df[["x", "y"]]), (WHOLE, df)):
        model = FlowDensity(**parameters).fit(frame)
        before, schema = model.score_samples(frame), model.schema_
        with pytest.raises(ValueError, match="column 'x'"):
            model.fit(frame.assign(x=frame["x"].where(frame.index > 0, 1e308)))
        with monkeypatch.context() as patch:
            patch.setattr("flowlab.tables.fitted.goodness_of_fit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                model.fit(frame)
        assert (model.score_samples(frame) == before).all()
        assert model.schema_ is schema
    fresh = FlowDensity(**NUMBERS)
    with monkeypatch.context() as patch:
        patch.setattr("flowlab.tables.fitted.goodness_of_fit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fresh.fit(df[["x", "y"]])
    with pytest.raises(NotFittedError):
        fresh.sample(2)


def test_estimators_on_a_density_are_left_as_they_were(df):
    x, y = df[["x", "y"]], df["cut"]
    classifier = FlowClassifier(FlowDensity(**WHOLE)).fit(x, y)
    before = classifier.predict_proba(x[:5])
    with pytest.raises(ValueError, match="one class only"):
        classifier.fit(x, ["a"] * len(x))
    assert (classifier.predict_proba(x[:5]) == before).all()
    outlier = FlowOutlier(FlowDensity(**NUMBERS))
    with pytest.raises(ValueError, match="no rows are held out"):
        outlier.fit(x)
    with pytest.raises(NotFittedError):
        outlier.predict(x)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("labels", [[0.5, 1.5, 2.5, 3.0], [0, 1, 2, 3], [np.int64(1), "b", 2.5, np.float64(7.5)]])
@pytest.mark.parametrize("whole", [False, True])
def test_labels_of_any_type_survive_files(df, labels, whole, tmp_path):
    frame = df if whole else df[["k", "x", "y"]]
    frame = frame.set_axis(pd.Index(labels[: frame.shape[1]], dtype=None if labels[1] != "b" else object), axis=1)
    if labels[1] == "b":  # scikit-learn has names of one type alone
        frame = frame.rename(columns={"b": 9})
    model = FlowDensity(**(WHOLE if whole else NUMBERS)).fit(frame)
    model.save(tmp_path / "m.flow")
    loaded = load(tmp_path / "m.flow")
    assert loaded.sample(2, random_state=0).columns.tolist() == frame.columns.tolist()
    assert (loaded.score_samples(frame) == model.score_samples(frame)).all()


def parameters_of_all_kinds() -> list[dict]:
    numbers, times = (
        [("k", {"lower": np.int64(0)}), ("x", {"upper": np.float64(9), "lower": -np.inf})],
        pd.Timestamp(2019, 1, 1),
    )
    return [
        {**WHOLE, "schema": dict(numbers)},
        {**WHOLE, "schema": {"cut": {"categories": np.array(["a", "b", "c"]), "ordered": True}}},
        {**WHOLE, "schema": {"d": {"lower": times}}},
        {**WHOLE, "schema": {"d": {"lower": times.date()}}},
        {**WHOLE, "rules": [FixedCombinations(["cut", "k"]), "x < 100"]},
        {**WHOLE, "time_limit": float("inf")},
        {**WHOLE, "n_jobs": np.int64(1), "random_state": np.int64(3), "preprocessing": "none"},
    ]


@pytest.mark.parametrize("parameters", parameters_of_all_kinds(), ids=range(7))
def test_what_was_fitted_can_be_saved_and_fitted_again(df, parameters, tmp_path):
    frame = df.assign(d=pd.Timestamp("2020-01-01") + pd.to_timedelta(df["k"] * 3, "D"))
    model = FlowDensity(**parameters).fit(frame)
    model.save(tmp_path / "m.flow")
    loaded = load(tmp_path / "m.flow")
    assert (loaded.score_samples(frame) == model.score_samples(frame)).all()
    assert loaded.random_state == model.random_state
    assert clone(loaded).fit(frame).schema_ == model.schema_


def test_a_schema_given_whole_survives(df, tmp_path):
    frame = df[["k", "x"]].set_axis([0, 1], axis=1)
    for schema in (Schema.infer(frame, {0: "categorical"}), {0: "categorical"}):
        model = FlowDensity(schema=schema, **WHOLE).fit(frame)
        model.save(tmp_path / "m.flow")
        assert clone(load(tmp_path / "m.flow")).fit(frame).schema_[0].kind == "categorical"


def test_summary_without_held_out_rows(df, tmp_path):
    model = FlowDensity(**NUMBERS).fit(df[["x", "y"]])
    model.save(tmp_path / "m.flow")
    assert load(tmp_path / "m.flow").summary() == model.summary()
