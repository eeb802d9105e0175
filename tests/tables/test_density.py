"""`FlowDensity` as users meet it: scikit-learn's rules, awkward columns, files, and whether the density is right."""

import copy
import io
import pickle
import re
import subprocess
import sys
import time

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import flowlab
from flowlab import FlowDensity, Member, datasets
from flowlab.files import FileError
from flowlab.tables.ensemble.families import FAMILIES
from flowlab.tables.ensemble.member import KINDS, TRAINED

SIZES = {"steps": 200, "layers": 1, "hidden": (32,), "preprocessing": "marginal", "learning_rate": 2e-3}


def quick(**options) -> FlowDensity:
    """A model of one small network; sizes of the member and arguments of the estimator."""
    sizes = {name: options.pop(name, value) for name, value in SIZES.items()}
    for name in ("components", "dropout"):
        if name in options:
            sizes[name] = options.pop(name)
    return FlowDensity(**{"members": [Member("autoregressive", **sizes)], "random_state": 0, **options})


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    a = rng.normal(size=600)
    return np.column_stack([a, np.exp(0.5 * a + 0.3 * rng.normal(size=600)), rng.standard_t(3, 600)])


@pytest.fixture(scope="module")
def fitted(x) -> FlowDensity:
    return quick().fit(x)


def refusing_missing_cells(estimator):
    """Checks that fit to missing cells, which members for complete numbers refuse."""
    if estimator.members[0].kind == "mixed":
        return {}
    return {"check_estimators_pickle": "densities of complete numbers take no missing cells"}


@parametrize_with_checks(
    [
        quick(steps=5, hidden=(8,), preprocessing="none", effort="fast"),
        FlowDensity(members=[Member("mixed", "none", steps=5, hidden=(8,), trees=2)], random_state=0, validation=0.0),
    ],
    expected_failed_checks=refusing_missing_cells,
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.slow
def test_a_fast_fit_beats_a_gaussian_and_a_mixture_on_real_data():
    frame = datasets.load("wine").drop(columns="quality").drop_duplicates()
    rng = np.random.default_rng(1)
    rows = frame.to_numpy()[rng.permutation(len(frame))]
    test, train = rows[:300], rows[300:]
    ours = FlowDensity(effort="fast", random_state=0).fit(train).score_samples(test, measure="density")
    scale = train.std(0)
    for components in (1, 4, 8):
        peer = GaussianMixture(components, reg_covar=1e-2, random_state=0).fit(train / scale)
        gain = ours - (peer.score_samples(test / scale) - np.log(scale).sum())
        assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))


@pytest.mark.slow
def test_by_default_conditional_members_are_weighed_with_simpler_densities():
    rows = datasets.load("diamonds")[["carat", "depth"]].sample(3000, random_state=0)
    train, test = rows[:2000], rows[2000:]  # smaller tables are divided several times, which takes longer
    model = FlowDensity(random_state=0, n_jobs=1).fit(train)
    for member in ("autoregressive", "mixed", "mixture", "copula", "kernel"):
        assert re.search(rf"\d% +{member} ", model.summary()), member
    gaussian = GaussianMixture(1, reg_covar=1e-6, random_state=0).fit(train)
    gain = model.score_samples(test, measure="density") - gaussian.score_samples(test)
    assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))


def test_pipeline_grid_search_clone_and_parameters(x):
    pipeline = make_pipeline(StandardScaler(), quick(steps=20))
    choices = [["copula"], [Member("mixture", "none", components=4), "broad"]]
    search = GridSearchCV(pipeline, {"flowdensity__members": choices}, cv=2).fit(x)
    assert search.best_params_["flowdensity__members"] in choices
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    model = quick(components=5)
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(effort="fast").effort == "fast"


def test_copies_pickles_and_files_score_alike(fitted, x, tmp_path):
    expected = fitted.score_samples(x)
    fitted.save(tmp_path / "m.flow")
    buffer = io.BytesIO()
    joblib.dump(fitted, buffer)
    buffer.seek(0)
    copies = [
        FlowDensity.load(tmp_path / "m.flow"),
        flowlab.load(tmp_path / "m.flow"),
        pickle.loads(pickle.dumps(fitted)),
        copy.deepcopy(fitted),
        joblib.load(buffer),
    ]
    for model in copies:
        assert np.array_equal(model.score_samples(x), expected)
        assert np.array_equal(model.sample(50, random_state=3), fitted.sample(50, random_state=3))
        assert model.summary() == fitted.summary()
        pd.testing.assert_frame_equal(model.members_, fitted.members_, check_dtype=False)
        assert np.array_equal(model.anomaly_p_value(x), fitted.anomaly_p_value(x))
    flowlab.save(fitted.flow_, tmp_path / "f.flow")
    with pytest.raises(FileError, match="holds a FlowMixture"):
        FlowDensity.load(tmp_path / "f.flow")


@pytest.mark.slow
def test_one_seed_decides_everything(x):
    first, second = quick().fit(x), quick().fit(x)
    assert np.array_equal(first.score_samples(x), second.score_samples(x))
    assert not np.array_equal(first.score_samples(x), quick(random_state=1).fit(x).score_samples(x))
    assert np.array_equal(first.sample(5, random_state=1), second.sample(5, random_state=1))
    assert not np.array_equal(first.sample(5, random_state=1), first.sample(5, random_state=2))
    assert not np.array_equal(first.sample(5), first.sample(5))


@pytest.mark.slow
def test_one_seed_decides_everything_in_another_process_too(x, fitted, tmp_path):
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np, torch, flowlab; torch.set_num_threads(1); x = np.load(sys.argv[1])\n"
        "from flowlab import Member\n"
        f"m = flowlab.FlowDensity(members=[Member('autoregressive', **{SIZES})], random_state=0).fit(x)\n"
        "np.save(sys.argv[2], m.score_samples(x))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "x.npy", tmp_path / "y.npy"], check=True)
    assert np.array_equal(np.load(tmp_path / "y.npy"), fitted.score_samples(x))


def test_fitting_and_sampling_leave_global_random_states_alone(x):
    numpy_state, torch_state = np.random.get_state()[1].copy(), flowlab.fit.__globals__["torch"].get_rng_state()
    quick(random_state=None, steps=10, dropout=0.2).fit(x).sample(3)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert bool((flowlab.fit.__globals__["torch"].get_rng_state() == torch_state).all())


@pytest.mark.slow
def test_scores_are_in_the_units_of_the_data(x):
    factor = np.array([1e-3, 1.0, 1e6])
    shifted = quick().fit(x * factor + [5.0, -3.0, 1e7])
    plain = quick().fit(x)
    moved = shifted.score_samples(x * factor + [5.0, -3.0, 1e7]) + np.log(factor).sum()
    assert np.abs(moved - plain.score_samples(x)).mean() < 0.02


def test_the_density_of_one_column_integrates_to_one():
    rng = np.random.default_rng(0)
    column = np.concatenate([rng.normal(-3, 0.5, 300), rng.exponential(2.0, 300)])[:, None]
    model = quick().fit(column)
    grid = np.linspace(-30, 60, 200_001)
    assert np.trapezoid(np.exp(model.score_samples(grid[:, None])), grid) == pytest.approx(1, abs=2e-3)
    assert model.score(column) > GaussianMixture(1).fit(column).score(column) + 0.2


def test_counts_are_dequantised_scored_as_masses_and_drawn_as_integers():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"count": rng.poisson(3.0, 2000), "price": np.round(rng.gamma(2.0, 10.0, 2000), 1)})
    model = quick(steps=300).fit(frame)
    column, price = model.columns_.columns
    assert (column.kind, column.resolution) == ("grid", 1.0)
    assert (price.kind, price.resolution) == ("grid", 0.1)
    drawn = model.sample(5000, random_state=0)
    assert drawn.dtypes.equals(frame.dtypes)
    assert np.allclose(drawn["price"] * 10, np.round(drawn["price"] * 10))
    share = (drawn["count"] == 3).mean()
    assert share == pytest.approx((frame["count"] == 3).mean(), abs=0.04)
    alone = quick(steps=300).fit(frame[["count"]])
    masses = np.exp(alone.score_samples(pd.DataFrame({"count": np.arange(-5, 40)})))
    assert masses.sum() == pytest.approx(1, abs=0.1)
    assert masses[5 + 3] == pytest.approx((frame["count"] == 3).mean(), abs=0.05)


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int64", "float32", "float64", "Int64", "Float64", "int64[pyarrow]"]
)
def test_types_survive(dtype):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": pd.Series(rng.poisson(1.0, 300)).astype(dtype), "b": rng.normal(size=300)})
    drawn = quick(steps=40).fit(frame).sample(400, random_state=0)
    assert drawn.dtypes.equals(frame.dtypes)
    assert list(drawn.columns) == ["a", "b"]
    assert drawn["a"].min() >= (0 if dtype == "uint8" else -20)


def test_arrays_keep_their_type():
    rng = np.random.default_rng(0)
    assert quick(steps=10).fit(rng.poisson(5.0, (200, 2))).sample(3).dtype == np.int64
    assert quick(steps=10).fit(rng.normal(size=(200, 2)).astype(np.float32)).sample(3).dtype == np.float32
    rounded = np.round(1000 + rng.normal(size=(200, 2)), 1).astype(np.float32)
    for single in (rounded, pd.DataFrame(rounded, columns=["a", "b"])):
        assert [c.resolution for c in quick(steps=10).fit(single).columns_.columns] == [0.1, 0.1]


def test_constant_and_derived_columns_are_exact():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=300), rng.gamma(2.0, 3.0, 300)
    frame = pd.DataFrame({"a": a, "seven": 7.0, "b": b, "copy": a, "total": 2 * a - b + 1})
    model = quick(steps=80).fit(frame)
    assert [c.kind for c in model.columns_.columns] == ["continuous", "constant", "continuous", "derived", "derived"]
    drawn = model.sample(100, random_state=0)
    assert (drawn["seven"] == 7.0).all()
    assert np.allclose(drawn["copy"], drawn["a"])
    assert np.allclose(drawn["total"], 2 * drawn["a"] - drawn["b"] + 1)
    assert np.isfinite(model.score_samples(drawn)).all()
    assert np.isfinite(model.score_samples(frame)).all()
    broken = frame.copy()
    broken.loc[0, "seven"] = 8.0
    broken.loc[1, "total"] += 1.0
    assert np.isneginf(model.score_samples(broken)).tolist()[:3] == [True, True, False]
    alone = quick(steps=80).fit(frame[["a", "b"]])
    assert np.allclose(model.score_samples(frame), alone.score_samples(frame[["a", "b"]]))


def test_a_table_of_constants():
    model = quick().fit(np.ones((30, 2)))
    assert model.flow_ is None
    assert np.array_equal(model.sample(4), np.ones((4, 2)))
    assert model.score_samples([[1.0, 1.0], [1.0, 2.0]]).tolist() == [0.0, -np.inf]


def test_atoms_among_continuous_values_keep_their_share():
    rng = np.random.default_rng(0)
    rain = np.where(rng.random(3000) < 0.6, 0.0, rng.gamma(1.0, 3.0, 3000))
    frame = pd.DataFrame({"rain": rain, "wind": rng.normal(size=3000) + (rain > 0)})
    model = quick(steps=400, layers=2, hidden=(64,)).fit(frame)
    assert model.columns_.columns[0].kind == "atoms"
    drawn = model.sample(5000, random_state=0)
    assert (drawn["rain"] == 0).mean() == pytest.approx((rain == 0).mean(), abs=0.05)
    assert np.isfinite(model.score_samples(frame)).all()


@pytest.mark.parametrize("rows", [2, 3, 5, 20])
def test_few_rows(rows):
    x = np.random.default_rng(0).normal(size=(rows, 4))
    model = quick(preprocessing="auto").fit(x)
    assert np.isfinite(model.score_samples(x)).all()
    assert np.isfinite(model.sample(50, random_state=0)).all()
    assert model.sample(50).shape == (50, 4)


@pytest.mark.slow
def test_outliers_do_not_spoil_the_rest():
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(1000, 2)) @ [[1.0, 0.9], [0.0, 0.4]]
    dirty = clean.copy()
    dirty[:3] = [[1e8, -1e8], [1e12, 0.0], [0.0, -1e5]]
    model = quick(steps=400).fit(dirty)
    assert np.isfinite(model.score_samples(dirty)).all()
    assert model.score_samples(clean[3:]).mean() > quick(steps=400).fit(clean).score_samples(clean[3:]).mean() - 0.3


def test_an_outlier_in_two_columns_does_not_make_one_the_copy_of_the_other():
    x = np.random.default_rng(0).normal(size=(300, 2))
    x[7] = 1e12
    assert [c.kind for c in quick(steps=5).fit(x).columns_.columns] == ["continuous", "continuous"]


def test_far_away_rows_score_low_but_finite(fitted, x):
    near = fitted.score_samples(x).min()
    far = fitted.score_samples(np.full((1, 3), 1e6))
    assert np.isfinite(far).all()
    assert far[0] < near


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            pd.DataFrame({"a": [1.0, np.nan, 2.0], "b": [1.0, 2.0, 3.0]}),
            r"'a'.*no number, or a missing cell",
        ),
        (pd.DataFrame({"a": [1.0, 5.0, 2.0], "b": [1.0, np.inf, 3.0]}), r"column 'b' holds 1 infinite"),
        (pd.DataFrame({"a": [1.0, 5.0], "cut": ["x", "y"]}), r"'cut'.*no number, or a missing cell"),
        (pd.DataFrame({"a": [1.0, 5.0], "flag": [True, False]}), r"'flag'.*no number, or a missing cell"),
        (pd.DataFrame({"a": pd.array([1, None, 3], "Int64")}), r"'a'.*no number, or a missing cell"),
        (pd.DataFrame({"a": [1.0, 2.0], "id": [2**60, 2**60 + 1]}), r"column 'id' holds integers above 2\*\*53"),
        (pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], columns=["a", "a"]), r"same name \['a'\]"),
        (pd.DataFrame(index=range(5)), "no columns"),
    ],
)
def test_bad_columns_are_named(frame, message):
    with pytest.raises(ValueError, match=message):
        quick().fit(frame)


def test_missing_cells_of_a_model_of_complete_numbers_are_named(fitted, x):
    with pytest.raises(ValueError, match="NaN: column 'x1' has 1 such values, the first in row 0"):
        fitted.score_samples([[1.0, np.nan, 1.0]])


def test_other_bad_input(fitted, x):
    with pytest.raises(NotFittedError):
        FlowDensity().score_samples(x)
    with pytest.raises(ValueError, match="3 features"):
        fitted.score_samples(x[:, :2])
    with pytest.raises(ValueError, match="n_samples must be a whole number of at least 1"):
        fitted.sample(0)
    with pytest.raises(ValueError, match="preprocessing must be auto"):
        FlowDensity(preprocessing="magic").fit(x)
    with pytest.raises(ValueError, match="random_state"):
        FlowDensity(random_state="x").fit(x)
    with pytest.raises(ValueError, match="minimum of 2"):
        FlowDensity().fit(x[:1])
    with pytest.raises(ValueError, match="feature names"):
        quick(steps=5).fit(pd.DataFrame(x, columns=list("abc"))).score_samples(pd.DataFrame(x, columns=list("abd")))


@pytest.mark.slow
def test_weights_count(x):
    weight = (x[:, 0] > 0).astype(float)
    model = quick().fit(x, sample_weight=weight)
    kept = quick().fit(x[weight > 0])
    assert np.allclose(model.score_samples(x[:20]), kept.score_samples(x[:20]))
    heavy = quick(steps=400).fit(x, sample_weight=1 + 9 * weight)
    assert (heavy.sample(4000, random_state=0)[:, 0] > 0).mean() == pytest.approx(10 / 11, abs=0.05)
    with pytest.raises(ValueError, match="non-zero"):
        quick().fit(x, sample_weight=np.zeros(len(x)))
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        quick().fit(x, sample_weight=-np.ones(len(x)))


# ---- the mixture of members -------------------------------------------------------------------------------------


def bananas(n: int, seed: int = 0) -> np.ndarray:
    """Two bent clusters in three columns."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n) + 4 * (rng.random(n) < 0.4)
    b = 0.5 * (a - 1) ** 2 + 0.4 * rng.normal(size=n)
    return np.column_stack([a, b, np.exp(0.4 * b / 3 + 0.5 * rng.normal(size=n))])


@pytest.mark.parametrize("rows", [60, 200, pytest.param(1000, marks=pytest.mark.slow)])
def test_small_tables_do_not_overfit(rows):
    """Never below the best of the simple models by more than noise."""
    train, test = bananas(rows), bananas(3000, seed=1)
    model = FlowDensity(effort="fast", n_jobs=1, random_state=0).fit(train)
    ours = model.score_samples(test)
    for components in (1, 2, 4):
        peer = GaussianMixture(components, reg_covar=1e-3, random_state=0).fit(train)
        gain = ours - peer.score_samples(test)
        assert gain.mean() > -2 * gain.std() / np.sqrt(len(gain))
    assert model.validation_score_ == pytest.approx(ours.mean(), abs=0.6 if rows < 500 else 0.25)


def test_the_mixture_is_at_least_as_good_as_its_members():
    x = bananas(2500)
    members = [Member("autoregressive", steps=300, hidden=(32,)), "mixture", "copula", "broad"]
    model = FlowDensity(members=members, preprocessing="marginal", n_jobs=1, random_state=0).fit(x)
    table = model.members_
    assert table["weight"].sum() == pytest.approx(1)
    assert model.validation_score_ >= table["score"].max() - 1e-6
    assert set(table["preprocessing"]) == {"marginal"}
    assert table.set_index("kind").loc["broad", "weight"] > 0  # the insurance is always kept
    assert len(model.flow_.flows[0].flow.flows) == (table["weight"] > 0).sum()
    assert "mixture (marginal)" in model.summary()
    assert model.history_["validation"].notna().all()


def test_below_two_thousand_rows_every_row_is_held_out_once():
    model = FlowDensity(members=["copula", "mixture"], preprocessing="none", random_state=0).fit(bananas(300))
    assert len(model._model.held_out) == 300
    assert len(model.flow_.flows[0].flow.flows) == 5 * (model.members_["weight"] > 0).sum()


@pytest.mark.slow
def test_processes_do_not_change_the_result():
    members = [
        Member("autoregressive", steps=60, hidden=(16,)),
        Member("autoregressive", steps=60, hidden=(16,)),
        "copula",
    ]
    x = bananas(400)
    one, two = (FlowDensity(members=members, n_jobs=jobs, random_state=0).fit(x) for jobs in (1, 2))
    assert np.array_equal(one.score_samples(x), two.score_samples(x))
    assert set(one.race_) == {"marginal", "marginal-whitening", "whitening-marginal"}
    best = max(one.race_, key=one.race_.get)
    assert (one.members_["preprocessing"] == best).all()


def test_a_time_limit_is_kept():
    started = time.perf_counter()
    members = [Member("autoregressive", steps=100_000), Member("autoregressive", steps=100_000), "copula"]
    model = FlowDensity(members=members, time_limit=6.0, n_jobs=1, random_state=0).fit(bananas(3000))
    assert time.perf_counter() - started < 12
    assert not model.converged_
    assert "time limit" in model.summary()
    # The second network had no time: it is named, and no part of the mixture.
    assert model.summary().count("no time was left for it") == 1
    assert model.members_["weight"].tolist()[-1] == 0
    assert model.members_["weight"].sum() == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "others"), [(1, ["copula"]), (2, [])])
def test_a_long_time_limit_leaves_no_member_out(jobs, others):
    members = [Member("autoregressive", steps=20, hidden=(8,))] * 3 + others
    model = FlowDensity(members=members, time_limit=500.0, n_jobs=jobs, random_state=0).fit(bananas(2500))
    assert len(model.members_) == len(members)
    assert "no time" not in model.summary()
    assert model.members_["score"].notna().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": "much"}, "effort must be fast, default, best"),
        ({"members": []}, "members is empty"),
        ({"members": ["forest"]}, "kind must be one of autoregressive"),
        ({"time_limit": -1}, "time_limit must be a positive number"),
        ({"validation": 1.5}, "validation must be a share"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FlowDensity(**options).fit(bananas(20))


ONE_COLUMN = {
    "uniform": stats.uniform(),
    "exponential": stats.expon(),
    "log-normal": stats.lognorm(1.0),
    "Cauchy": stats.cauchy(),
    "mixed": None,
}


@pytest.mark.parametrize("name", ONE_COLUMN)
def test_one_column_of_any_kind(name):
    rng = np.random.default_rng(0)
    truth = ONE_COLUMN[name]
    if truth is None:  # half zeros, half exponential: scored as a density with a narrow cell for the zeros
        x, new = (np.where(rng.random(2000) < 0.5, 0.0, rng.exponential(size=2000))[:, None] for _ in range(2))
        model = FlowDensity(effort="fast", random_state=0).fit(x)
        drawn = model.sample(3000, random_state=0)
        assert (drawn == 0).mean() == pytest.approx(0.5, abs=0.06)
        assert np.isfinite(model.score_samples(new)).all()
        return
    x, new = (truth.rvs((2000, 1), random_state=seed) for seed in (0, 1))
    model = FlowDensity(effort="fast", random_state=0).fit(x)
    gap = truth.logpdf(new).ravel() - model.score_samples(new)
    assert gap.mean() < 0.08
    assert np.isfinite(model.sample(1000, random_state=0)).all()


def test_counts_alone():
    rng = np.random.default_rng(0)
    counts = rng.poisson(4.0, (3000, 1))
    model = FlowDensity(effort="fast", random_state=0).fit(counts)
    values = np.arange(12)[:, None]
    assert np.abs(np.exp(model.score_samples(values)) - stats.poisson(4.0).pmf(values.ravel())).max() < 0.05


def test_every_kind_of_member_has_a_family_that_survives_a_file(tmp_path):
    assert set(KINDS) == set(FAMILIES)
    x = np.random.default_rng(0).normal(size=(60, 2))
    for kind in KINDS:
        small = {"steps": 5, "hidden": (8,), "components": 2} if kind in TRAINED else {}
        model = FlowDensity(members=[Member(kind, "none", **small)], random_state=0).fit(x)
        model.save(tmp_path / "m.flow")
        assert np.array_equal(FlowDensity.load(tmp_path / "m.flow").score_samples(x), model.score_samples(x)), kind
