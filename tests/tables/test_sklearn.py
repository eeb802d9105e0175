"""The estimators within scikit-learn: pipelines, searches, cross-validation, copies, pandas output, sample weights."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from flowlab import FlowClassifier, FlowDensity, FlowOutlier, FlowRegressor, Member

ROWS = 120


def networks(steps: int = 15) -> FlowDensity:
    """One small network, on all rows."""
    member = Member("mixed", "none", steps=steps, hidden=(16,), learning_rate=2e-2, dropout=0.0, trees=0)
    return FlowDensity(members=[member], validation=0.0, random_state=0)


def copula(validation: float = 0.0) -> FlowDensity:
    return FlowDensity(members=["copula"], preprocessing="marginal", validation=validation, random_state=0)


ESTIMATORS: dict[str, BaseEstimator] = {
    "density": copula(),
    "classifier": FlowClassifier(networks()),
    "regressor": FlowRegressor(networks()),
    "outlier": FlowOutlier(copula(0.1)),
}
# Of each something to search over.
GRIDS = {
    "density": {"preprocessing": ["marginal", "none"]},
    "classifier": {"density": [networks(1), networks(40)]},
    "regressor": {"density__members": [networks(1).members, networks(40).members]},
    "outlier": {"contamination": [0.05, 0.2]},
}
EVERY = pytest.mark.parametrize("name", ESTIMATORS)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, ROWS))
    return pd.DataFrame({"a": 100 + 10 * a, "b": b, "class": np.where(a > 0, "up", "down"), "number": a + 0.1 * b})


def question(name: str, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series | None]:
    """Features, and the target of an estimator that has one."""
    return table[["a", "b"]], {"classifier": table["class"], "regressor": table["number"]}.get(name)


def kept_of(estimator: BaseEstimator, x: pd.DataFrame, y: object = None) -> float:
    """A score for outlier detectors, which have none of their own: the share of rows that they keep."""
    return float((estimator.predict(x) == 1).mean())


def scoring(name: str) -> object:
    return kept_of if name == "outlier" else None


@EVERY
def test_a_pipeline_scales_and_names_columns(name: str, table: pd.DataFrame) -> None:
    """Names arrive through a step's pandas output; a density in other units differs by the logarithm of their ratio."""
    x, y = question(name, table)
    pipeline = make_pipeline(StandardScaler(), clone(ESTIMATORS[name])).set_output(transform="pandas").fit(x, y)
    assert pipeline[-1].feature_names_in_.tolist() == ["a", "b"]
    scaled = pipeline[0].transform(x)
    assert isinstance(scaled, pd.DataFrame)
    alone = clone(ESTIMATORS[name]).fit(scaled, y)
    np.testing.assert_array_equal(pipeline.score_samples(x), alone.score_samples(scaled))
    with pytest.raises(ValueError, match="feature names"):
        pipeline[-1].score_samples(scaled.rename(columns={"a": "other"}))
    if name == "density":
        raw = clone(ESTIMATORS[name]).fit(x).score_samples(x) + np.log(pipeline[0].scale_).sum()
        np.testing.assert_allclose(alone.score_samples(scaled), raw, atol=1e-6)


@EVERY
def test_copies_are_unfitted_and_parameters_nest(name: str, table: pd.DataFrame) -> None:
    x, y = question(name, table)
    model = clone(ESTIMATORS[name])
    inner = "" if name == "density" else "density__"
    model.set_params(**{f"{inner}random_state": 5})
    copied = clone(model.fit(x, y))
    assert copied.get_params()[f"{inner}random_state"] == 5
    with pytest.raises(NotFittedError):
        copied.score_samples(x)
    np.testing.assert_array_equal(copied.fit(x, y).score_samples(x), model.score_samples(x))
    if inner:
        assert copied.density is not model.density
        assert not hasattr(model.density, "flow_")  # what was given stays unfitted


@pytest.mark.slow
@EVERY
def test_searches_find_what_scores_best(name: str, table: pd.DataFrame) -> None:
    x, y = question(name, table)
    search = GridSearchCV(clone(ESTIMATORS[name]), GRIDS[name], cv=2, scoring=scoring(name), error_score="raise")
    search.fit(x, y)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_score_ == scores.max()
    assert search.best_estimator_.score_samples(x).shape == (ROWS,)
    if name in ("classifier", "regressor"):
        assert search.best_index_ == 1  # forty steps are better than one
    if name == "outlier":
        assert search.best_params_ == {"contamination": 0.05}  # keeps more rows


@EVERY
def test_cross_validation(name: str, table: pd.DataFrame) -> None:
    """Each fold's score is that of an estimator fitted to the other rows by hand."""
    x, y = question(name, table)
    halves = np.arange(ROWS) % 2 == 0
    splits = [(np.flatnonzero(~halves), np.flatnonzero(halves))]
    (found,) = cross_val_score(ESTIMATORS[name], x, y, cv=splits, scoring=scoring(name), error_score="raise")
    train, test = splits[0]
    fitted = clone(ESTIMATORS[name]).fit(x.iloc[train], None if y is None else y.iloc[train])
    rows, target = x.iloc[test], None if y is None else y.iloc[test]
    assert found == (kept_of(fitted, rows) if name == "outlier" else fitted.score(rows, target))


def test_targets_and_probabilities_within_other_estimators(table: pd.DataFrame) -> None:
    x, y = question("classifier", table)
    probability = cross_val_predict(ESTIMATORS["classifier"], x, y, cv=2, method="predict_proba")
    np.testing.assert_allclose(probability.sum(1), 1)
    calibrated = CalibratedClassifierCV(ESTIMATORS["classifier"], cv=2).fit(x, y)
    assert calibrated.classes_.tolist() == ["down", "up"]
    x, y = question("regressor", table)
    model = TransformedTargetRegressor(clone(ESTIMATORS["regressor"]), transformer=StandardScaler()).fit(x, 1e3 * y)
    assert model.predict(x).std() > 100


def routed(name: str) -> Pipeline:
    """A pipeline that wants weights for its last step, in fitting and where it can in scoring."""
    model = clone(ESTIMATORS[name]).set_fit_request(sample_weight=True)
    if name != "outlier":
        model.set_score_request(sample_weight=True)
    return Pipeline([("scale", StandardScaler().set_fit_request(sample_weight=False)), ("model", model)])


@EVERY
def test_weights_are_routed_to_the_estimator(name: str, table: pd.DataFrame) -> None:
    x, y = question(name, table)
    weights = np.where(table["a"] > 95, 1.0, 0.01)
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = routed(name).fit(x, y, sample_weight=weights)
        (scaler, model), scaled = (step for _, step in pipeline.steps), pipeline[0].transform(x)
        plain = clone(ESTIMATORS[name]).fit(scaled, y, sample_weight=weights)
        np.testing.assert_array_equal(model.score_samples(scaled), plain.score_samples(scaled))
        assert scaler.mean_[0] == pytest.approx(x["a"].mean())
        unweighted = clone(ESTIMATORS[name]).fit(scaled, y).score_samples(scaled)
        assert np.average(model.score_samples(scaled) - unweighted, weights=weights) > 0
        grid = {f"model__{key}": values[:1] for key, values in GRIDS[name].items()}
        search = GridSearchCV(routed(name), grid, cv=2, scoring=scoring(name), error_score="raise")
        search.fit(x, y, sample_weight=weights)
        np.testing.assert_array_equal(
            search.best_estimator_.score_samples(x),
            routed(name).set_params(**search.best_params_).fit(x, y, sample_weight=weights).score_samples(x),
        )
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            GridSearchCV(ESTIMATORS[name], GRIDS[name], cv=2, scoring=scoring(name)).fit(x, y, sample_weight=weights)


def test_scores_are_weighted(table: pd.DataFrame) -> None:
    x, _ = question("density", table)
    model = clone(ESTIMATORS["density"]).fit(x)
    weights = np.arange(ROWS)
    assert model.score(x, sample_weight=weights) == pytest.approx(np.average(model.score_samples(x), weights=weights))
