"""Classifier, regressor and outlier detector: scikit-learn's checks, closed forms, real tables."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split
from sklearn.utils.estimator_checks import check_classifiers_train, check_regressors_train, parametrize_with_checks

from flowlab import FlowClassifier, FlowDensity, FlowOutlier, FlowRegressor, Member, datasets
from flowlab.runtime import threads
from flowlab.tables import supervised
from flowlab.tables.query import predictive
from flowlab.tables.query.predictive import Predictive

SPLINE = Member("spline", "none", layers=1, hidden=(8,), steps=5)


def small(steps: int = 60, **options) -> FlowDensity:
    member = Member("mixed", "none", steps=steps, hidden=(32,), learning_rate=2e-2, dropout=0.0)
    return FlowDensity(members=[member], random_state=0, **options)


def known_differences(estimator) -> dict[str, str]:
    """What scikit-learn checks and these do not promise."""
    if isinstance(estimator, FlowOutlier):
        held_out = "the threshold comes from held-out rows: of those trained on, fewer are outliers"
        return {
            "check_estimators_pickle": "densities of complete numbers take no missing cells",
            "check_outliers_train": held_out,
            "check_outliers_fit_predict": held_out,
            "check_sample_weight_equivalence_on_dense_data": "held-out rows differ",
        }
    few = "three steps teach nothing: the next test takes more"
    return {
        "check_sample_weight_equivalence_on_dense_data": "in batches a weight of two is not bit for bit a row twice",
        "check_classifiers_train": few,
        "check_regressors_train": few,
    }


@parametrize_with_checks(
    [
        FlowClassifier(small(3, validation=0.0)),
        FlowRegressor(small(3, validation=0.0)),
        FlowOutlier(FlowDensity(effort="fast", members=[SPLINE], random_state=0), contamination=0.1),
    ],
    expected_failed_checks=known_differences,
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
def test_scikit_learns_checks_of_what_is_learnt():
    check_classifiers_train("FlowClassifier", FlowClassifier(small(validation=0.0)))
    check_regressors_train("FlowRegressor", FlowRegressor(small(validation=0.0)))


def two_groups(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Gaussians of unlike spread, so that the best boundary is no line; the posterior is known."""
    y = rng.random(n) < 0.3
    return np.where(y[:, None], rng.normal(1.0, 0.5, (n, 2)), rng.normal(0.0, 1.5, (n, 2))), y


def true_posterior(x: np.ndarray) -> np.ndarray:
    log_a = np.log(0.7) + stats.norm(0, 1.5).logpdf(x).sum(1)
    log_b = np.log(0.3) + stats.norm(1, 0.5).logpdf(x).sum(1)
    return 1 / (1 + np.exp(log_a - log_b))


@pytest.fixture(scope="module")
def classifier() -> FlowClassifier:
    x, y = two_groups(3_000, np.random.default_rng(0))
    return FlowClassifier(FlowDensity(effort="fast", random_state=0)).fit(x, np.where(y, "b", "a"))


def test_posterior_probabilities_are_those_of_the_truth(classifier):
    x, y = two_groups(3_000, np.random.default_rng(1))
    found, truth = classifier.predict_proba(x)[:, 1], true_posterior(x)
    assert np.abs(found - truth).mean() < 0.04
    # Both are scored on the same rows: the difference is the expected divergence, in nats.
    lost = np.where(y, np.log(truth / found), np.log((1 - truth) / (1 - found)))
    assert lost.mean() < 0.02
    assert classifier.classes_.tolist() == ["a", "b"]
    assert (classifier.predict(x) == np.where(found > 0.5, "b", "a")).all()
    np.testing.assert_allclose(np.exp(classifier.predict_log_proba(x)).sum(1), 1)


def test_what_is_unlike_all_rows_has_a_low_score(classifier):
    x, _ = two_groups(500, np.random.default_rng(2))
    assert classifier.score_samples([[9.0, -9.0]])[0] < classifier.score_samples(x).min()
    truth = np.logaddexp(
        np.log(0.7) + stats.norm(0, 1.5).logpdf(x).sum(1), np.log(0.3) + stats.norm(1, 0.5).logpdf(x).sum(1)
    )
    assert abs((classifier.score_samples(x) - truth).mean()) < 0.05


def test_a_missing_feature_is_integrated_out(classifier):
    found = classifier.predict_proba([[1.0, np.nan]])[0, 1]
    a, b = 0.7 * stats.norm(0, 1.5).pdf(1.0), 0.3 * stats.norm(1, 0.5).pdf(1.0)
    assert found == pytest.approx(b / (a + b), abs=0.06)


def test_classes_from_a_real_table_with_levels_and_unseen_ones():
    table = datasets.load("diamonds").sample(2_700, random_state=0).reset_index(drop=True)
    x, y = table[["carat", "price", "cut", "color"]], table["clarity"].isin(["IF", "VVS1", "VVS2"])
    train, test, y_train, y_test = train_test_split(x, y, random_state=0)
    model = FlowClassifier(FlowDensity(effort="fast", random_state=0)).fit(train, y_train)
    probability = model.predict_proba(test)[np.arange(len(test)), y_test.astype(int)]
    base = DummyClassifier().fit(train, y_train).predict_proba(test)[np.arange(len(test)), y_test.astype(int)]
    assert np.log(probability).mean() > np.log(base).mean() + 0.1
    odd = test.iloc[:2].copy()
    odd["cut"] = ["Unheard of", odd["cut"].iloc[1]]
    found = model.predict_proba(odd)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_allclose(found[1], model.predict_proba(test.iloc[1:2])[0])


@pytest.fixture(scope="module")
def wave() -> tuple[FlowRegressor, np.ndarray]:
    """y given x is normal around sin(2x), its spread grows with |x|; one more column is noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4_000, 2))
    y = rng.normal(np.sin(2 * x[:, 0]), 0.1 + 0.3 * np.abs(x[:, 0]))
    return FlowRegressor(FlowDensity(effort="fast", random_state=0)).fit(x, y), np.random.default_rng(1).normal(
        size=(2_000, 2)
    )


@pytest.mark.slow
def test_conditional_distributions_are_those_of_the_truth(wave):
    model, x = wave
    spread = 0.1 + 0.3 * np.abs(x[:, 0])
    truth = stats.norm(np.sin(2 * x[:, 0]), spread)
    y = truth.rvs(random_state=np.random.default_rng(2))
    assert np.mean(((model.predict(x) - truth.mean()) / spread) ** 2) ** 0.5 < 0.3
    assert (truth.logpdf(y) - model.log_prob(x, y)).mean() < 0.1
    low, high = model.predict_interval(x, 0.9).T
    assert np.mean((low <= y) & (y <= high)) == pytest.approx(0.9, abs=0.03)
    below = (y[:, None] <= model.predict_quantiles(x, [0.1, 0.5, 0.8])).mean(0)
    np.testing.assert_allclose(below, [0.1, 0.5, 0.8], atol=0.05)
    # The score of a normal distribution is known (Gneiting & Raftery 2007, equation 21).
    z = (y - truth.mean()) / spread
    best = spread * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert best.mean() < model.crps(x, y).mean() < 1.05 * best.mean()


def test_the_density_of_a_target_integrates_to_one(wave):
    model, x = wave
    y = np.linspace(-6, 6, 2_001)
    density = np.exp(model.log_prob(np.repeat(x[:1], len(y), 0), y))
    assert integrate.trapezoid(density, y) == pytest.approx(1, abs=0.01)


def test_scores_of_known_distributions():
    uniform = Predictive(np.array([0.0, 1.0]), np.array([[0.0, 1.0]]), np.array([[0.0, 1.0]]))
    assert uniform.mean() == pytest.approx([0.5])
    assert uniform.sd() == pytest.approx([12**-0.5])
    assert uniform.crps([0.5]) == pytest.approx([1 / 12])
    assert uniform.crps([2.0]) == pytest.approx([1 + 1 / 3])
    coin = Predictive(np.array([0.0, 1.0]), np.array([[0.0, 0.25]]), np.array([[0.25, 1.0]]))
    assert coin.mean() == pytest.approx([0.75])
    assert coin.quantiles([0.1, 0.25, 0.3, 0.9])[0].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert coin.crps([1.0]) == pytest.approx([0.25**2])
    sure = Predictive(np.array([2.0, 3.0]), np.array([[0.0, 1.0]]), np.array([[1.0, 1.0]]))
    assert sure.crps([5.0]) == pytest.approx([3.0])


def test_integers_as_targets_have_probabilities():
    rng = np.random.default_rng(0)
    x = rng.normal(size=2_000)
    y = rng.poisson(np.exp(0.7 * x))
    model = FlowRegressor(FlowDensity(effort="fast", random_state=0)).fit(pd.DataFrame({"x": x}), y)
    new = pd.DataFrame({"x": np.repeat([-0.5, 1.0], 30)})
    values = np.tile(np.arange(30), 2)
    total = np.exp(model.log_prob(new, values)).reshape(2, 30).sum(1)
    np.testing.assert_allclose(total, 1, atol=0.02)
    np.testing.assert_allclose(model.predict(new.iloc[[0, 30]]), np.exp([-0.35, 0.7]), rtol=0.2)
    assert (model.predict_quantiles(new) % 1 == 0).all()


@pytest.mark.parametrize("kind", ["Int64", "UInt8", "int64[pyarrow]"])
def test_nullable_integers_as_targets_are_integers(kind):
    """scikit-learn makes floats of them."""
    y, x = np.random.default_rng(0).poisson(3, size=60), np.random.default_rng(1).normal(size=(60, 1))
    plain, nullable = (
        FlowRegressor(small(2, validation=0.0)).fit(x, target) for target in (y, pd.Series(y, dtype=kind))
    )
    np.testing.assert_array_equal(nullable.log_prob(x, y), plain.log_prob(x, y))
    assert nullable.density_.table_.codec.schema["target"].kind == "integer"


@pytest.mark.parametrize("kind", ["boolean", "bool[pyarrow]", "Int64", "category"])
def test_classes_of_nullable_types_keep_their_kind(kind):
    x = np.random.default_rng(1).normal(size=(60, 1))
    y = x[:, 0] > 0
    target = pd.Series(y.astype(int) if kind == "Int64" else y).astype(kind)
    model = FlowClassifier(small(2, validation=0.0)).fit(x, target)
    assert model.classes_.tolist() == ([0, 1] if kind == "Int64" else [False, True])
    assert model.classes_.dtype.kind != "f"
    with pytest.raises(ValueError, match=r"NaN|missing|NA"):
        FlowClassifier(small(2)).fit(x, target.where(target.index > 0))


@pytest.fixture(scope="module")
def prices():
    """A regressor of diamonds' prices, with the rows that it was fitted to and others."""
    table = datasets.load("diamonds").sample(2_700, random_state=1).reset_index(drop=True)
    x, y = table[["carat", "cut", "color", "clarity", "depth"]], table["price"]
    train, test, y_train, y_test = train_test_split(x, y, random_state=0)
    return FlowRegressor(FlowDensity(random_state=0)).fit(train, y_train), train, test, y_train, y_test


@pytest.mark.slow
def test_on_a_real_table_it_predicts_better_than_a_line(prices):
    model, train, test, y_train, y_test = prices
    coded = [pd.get_dummies(part, dtype=float) for part in (train, test)]
    line = LinearRegression().fit(coded[0], y_train)
    assert model.score(test, y_test) > line.score(coded[1], y_test)


@pytest.mark.slow
def test_on_a_real_table_it_covers_what_it_says(prices):
    model, _, test, _, y_test = prices
    low, high = model.predict_interval(test, 0.8).T
    assert np.mean((low <= y_test) & (y_test <= high)) == pytest.approx(0.8, abs=0.08)


@pytest.mark.slow
def test_outliers_by_calibrated_p_values():
    rng = np.random.default_rng(0)
    curve = lambda n: np.column_stack([a := rng.normal(size=n), a**2 + 0.1 * rng.normal(size=n)])  # noqa: E731
    model = FlowOutlier(FlowDensity(effort="fast", random_state=0), contamination=0.05).fit(curve(2_500))
    fresh = curve(4_000)
    assert np.mean(model.predict(fresh) == -1) == pytest.approx(0.05, abs=0.025)
    for level in (0.05, 0.2):
        assert np.mean(model.p_value(fresh) <= level) == pytest.approx(level, abs=0.03)
    assert ((model.decision_function(fresh) < 0) == (model.predict(fresh) == -1)).all()
    # A hole that trees cut along the axes do not see.
    hole = np.column_stack([np.zeros(50), np.linspace(1, 2, 50)])
    forest = IsolationForest(random_state=0, contamination=0.05).fit(curve(2_500))
    assert np.mean(model.predict(hole) == -1) == 1 > np.mean(forest.predict(hole) == -1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FlowClassifier(small(5)).fit([[0.0], [1.0], [2.0]], [1, 1, 1]), "one class"),
        (lambda: FlowRegressor(small(5)).fit([[0.0], [1.0], [2.0]], [1.0, 1.0, 1.0]), "same value"),
        (lambda: FlowRegressor(small(5)).fit([[0.0], [1.0]], [1.0, 2.0, 3.0]), "2 rows and y has 3"),
        (lambda: FlowRegressor(small(5)).fit(pd.DataFrame({"target": [0.0, 1.0]}), [1.0, 2.0]), "'target'"),
        (lambda: FlowRegressor(small(5, rules=["x > 0"])).fit([[0.0], [1.0]], [1.0, 2.0]), "rules must be left out"),
        (lambda: FlowOutlier(contamination=0.7).fit([[0.0], [1.0]]), "contamination"),
        (lambda: FlowOutlier(FlowDensity(validation=0, members=["copula"])).fit(np.eye(30)), "held out"),
    ],
)
def test_bad_input_is_told_why(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_questions_are_told_why(wave):
    model, x = wave
    with pytest.raises(ValueError, match=r"coverage must lie between 0 and 1, not 1\.5"):
        model.predict_interval(x[:3], 1.5)
    with pytest.raises(ValueError, match="X has 3 rows and y has 1"):
        model.crps(x[:3], [0.0])


def test_predictions_hold_threads(monkeypatch):
    seen: list[int] = []

    def spied(module, name: str) -> None:
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (seen.append(torch.get_num_threads()), own(*a, **k))[1])

    for module, name in (
        (supervised, "class_probabilities"),
        (supervised, "joint_log_prob"),
        (predictive, "member_shares"),
    ):
        spied(module, name)
    x = np.random.default_rng(0).normal(size=(60, 2))
    classifier = FlowClassifier(small(3, validation=0.0)).fit(x, x[:, 0] > 0)
    regressor = FlowRegressor(small(3, validation=0.0)).fit(x, x[:, 1])
    with threads(2):
        for answer in (classifier.predict, classifier.score_samples, regressor.predict):
            answer(x)
            assert torch.get_num_threads() == 2
    assert seen == [1] * 3
