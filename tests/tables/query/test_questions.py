"""What users ask of a fitted density, against answers that are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from flowlab import FlowDensity, Member
from flowlab.tables.ensemble.calibration import goodness_of_fit
from flowlab.tables.ensemble.ensemble import fit_ensemble
from flowlab.tables.query import questions
from flowlab.tables.query.scoring import scored_draws

CORRELATION = 0.8


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    a = rng.normal(size=3000)
    return np.column_stack(
        [a, CORRELATION * a + np.sqrt(1 - CORRELATION**2) * rng.normal(size=3000), rng.normal(size=3000)]
    )


@pytest.fixture(scope="module")
def model(rows) -> FlowDensity:
    members = ["copula", Member("mixture", "none", components=4)]
    return FlowDensity(members=members, random_state=0).fit(pd.DataFrame(rows, columns=["a", "b", "c"]))


def frame(x: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(x, columns=["a", "b", "c"])


def fresh(n: int, seed: int = 7) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    return frame(
        np.column_stack([a, CORRELATION * a + np.sqrt(1 - CORRELATION**2) * rng.normal(size=n), rng.normal(size=n)])
    )


def test_noise_and_pit_of_new_rows(model):
    z, u = model.to_noise(fresh(2000), random_state=0), model.pit(fresh(2000), random_state=0)
    assert z.shape == u.shape == (2000, 3)
    assert np.allclose(stats.norm.cdf(z), u)
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(z.T) - np.eye(3)).max() < 0.1
    assert np.array_equal(z, model.to_noise(fresh(2000), random_state=0))


def test_p_values_are_valid_and_have_power(model):
    p = model.anomaly_p_value(fresh(4000))
    for level in (0.02, 0.1, 0.5):
        assert (p <= level).mean() == pytest.approx(level, abs=0.04 + level / 5)
    far = frame(np.full((3, 3), [4.0, -4.0, 0.0]))
    assert (model.anomaly_p_value(far) < 0.01).all()
    assert np.allclose(model.anomaly_score(far), -model.score_samples(far))
    unchecked = FlowDensity(members=["copula"], validation=0, random_state=0).fit(np.asarray(fresh(50)))
    with pytest.raises(ValueError, match="no rows were held out"):
        unchecked.anomaly_p_value(np.asarray(fresh(5)))


def test_highest_density_region_holds_what_it_should(model):
    for level in (0.5, 0.95):
        threshold = model.highest_density_threshold(level, random_state=0)
        assert (model.score_samples(fresh(4000)) >= threshold).mean() == pytest.approx(level, abs=0.03)
    with pytest.raises(ValueError, match="level must lie between"):
        model.highest_density_threshold(1.0)


@pytest.mark.slow
def test_entropy_divergence_and_information_of_a_gaussian(model, rows):
    truth = stats.multivariate_normal(cov=[[1, CORRELATION, 0], [CORRELATION, 1, 0], [0, 0, 1]]).entropy()
    value, error = model.entropy(20_000, random_state=0)
    assert 0 < error < 0.02
    assert value == pytest.approx(truth, abs=0.1)
    information, error = model.mutual_information(["a"], ["b"], 3000, random_state=0)
    assert information == pytest.approx(-np.log(1 - CORRELATION**2) / 2, abs=0.06 + 3 * error)
    nothing, error = model.mutual_information(["a", "b"], ["c"], 3000, random_state=0)
    assert abs(nothing) < 0.06 + 3 * error
    # KL(N(0, S) ‖ N(m, S)) = m' S⁻¹ m / 2, here for a shift of c alone.
    moved = FlowDensity(members=["copula"], random_state=0).fit(frame(rows + np.array([0.0, 0.0, 1.0])))
    value, error = model.divergence(moved, 20_000, random_state=0)
    assert value == pytest.approx(0.5, abs=0.1)
    assert model.divergence(model, 1000, random_state=0).value == 0


SHARES = np.array([[0.4, 0.1], [0.1, 0.4]])  # of two flags together


@pytest.fixture(scope="module")
def mixed() -> FlowDensity:
    """Of a Gaussian pair and, independent of it, two flags and holes that say which flag it is."""
    rng = np.random.default_rng(0)
    table = fresh(3000)[["a", "b"]]
    cell = rng.choice(4, size=len(table), p=SHARES.ravel())
    table["left"], table["right"] = pd.Categorical.from_codes(cell // 2, ["no", "yes"]), cell % 2 == 1
    table["hole"] = np.where(table["right"], np.nan, rng.normal(size=len(table)))
    members = [Member("mixed", steps=700, hidden=(32,), dropout=0.1)]
    return FlowDensity(members=members, random_state=0).fit(table)


@pytest.mark.slow
def test_information_and_entropy_of_whole_tables(mixed):
    gaussian = -np.log(1 - CORRELATION**2) / 2
    flags = (SHARES * np.log(SHARES / np.outer(SHARES.sum(1), SHARES.sum(0)))).sum()
    right = np.log(2)  # nats in a fair flag, and in the holes that repeat it
    for a, b, truth in (
        (["a"], ["b"], gaussian),
        (["left"], ["right"], flags),
        (["right"], ["hole"], right),
        (["a", "left"], ["right", "b"], gaussian + flags),
        (["a", "b"], ["left", "right", "hole"], 0.0),
    ):
        information, error = mixed.mutual_information(a, b, 4000, random_state=0)
        assert 0 <= error < 0.02
        assert information == pytest.approx(truth, abs=0.04 + 3 * error)
    pair = stats.multivariate_normal(cov=[[1, CORRELATION], [CORRELATION, 1]]).entropy()
    truth = pair - (SHARES * np.log(SHARES)).sum() + 0.5 * stats.norm.entropy()
    value, error = mixed.entropy(random_state=0)
    assert value == pytest.approx(truth, abs=0.05 + 3 * error)
    with pytest.raises(ValueError, match="no column 'z'"):
        mixed.mutual_information(["z"], ["a"])


def test_divergence_of_whole_tables_is_that_of_their_shares():
    def fitted(share: float) -> FlowDensity:
        flag = np.arange(2000) < 2000 * share
        table = pd.DataFrame({"flag": flag, "other": np.tile(["x", "y"], 1000)})
        return FlowDensity(members=[Member("mixed", steps=60, hidden=(8,))], random_state=0).fit(table)

    value, error = fitted(0.5).divergence(fitted(0.2), random_state=0)
    assert value == pytest.approx((np.log(0.5 / 0.2) + np.log(0.5 / 0.8)) / 2, abs=0.03 + 3 * error)


def test_bad_groups_of_columns(model):
    for a, b, message in (
        (["a"], ["z"], "columns_b: there is no column 'z'; there are 'a', 'b', 'c'"),
        ("ab", ["c"], "columns_a: there is no column 'ab'"),
        (0, ["c"], "columns_a: there is no column 0"),
        ([["a"]], ["c"], r"there is no column \['a'\]"),
        (["y", "a", None], ["c"], "there is no column 'y', None"),
        (["a"], ["a"], "two groups"),
        ([], ["a"], "two groups"),
    ):
        with pytest.raises(ValueError, match=message):
            model.mutual_information(a, b)


NUMERIC, WHOLE = ["copula"], [Member("mixed", steps=20, hidden=(8,))]


@pytest.mark.parametrize("members", [NUMERIC, WHOLE])
@pytest.mark.parametrize("labels", [["xy", "x", "y"], [2, 0, 1], [10, 20, 30], None])
def test_a_text_is_one_column_and_whole_numbers_are_labels(members, labels):
    x = np.asarray(fresh(60))
    table = x if labels is None else pd.DataFrame(x, columns=labels)
    model = FlowDensity(members=members, validation=0, random_state=0).fit(table)
    one, two, three = labels or [0, 1, 2]
    for group in (two, [two], (two,), {two}, np.array([two]), pd.Index([two]), [two, two]):
        assert questions.variables(model._model, group, "columns_a") == [1]
    assert questions.variables(model._model, [three, one], "columns_a") == [2, 0]
    with pytest.raises(ValueError, match="columns_b: there is no column 7"):
        model.mutual_information(one, 7)
    if labels is None:
        assert questions.variables(model._model, "x1", "columns_a") == [1]
        with pytest.raises(ValueError, match=r"columns_a: there is no column -1; .* or their positions 0 to 2"):
            model.mutual_information(-1, 1)


@pytest.mark.slow
def test_information_of_two_columns_named_alone(mixed):
    alone = mixed.mutual_information("a", "right", 300, random_state=0)
    assert alone == mixed.mutual_information(["a"], ["right"], 300, random_state=0)


@pytest.mark.parametrize("members", [NUMERIC, WHOLE])
def test_columns_beside_the_model_are_named(members):
    table = fresh(200).assign(fixed=1.0)
    model = FlowDensity(members=members, validation=0, random_state=0).fit(table)
    with pytest.raises(ValueError, match="columns_b: column 'fixed' is not among the modelled ones, 'a', 'b', 'c'"):
        model.mutual_information("a", ["b", "fixed"])


def test_rows_that_cannot_occur_have_no_noise():
    table = fresh(200).assign(fixed=1.0, twice=lambda t: 2 * t["a"])
    model = FlowDensity(members=NUMERIC, random_state=0).fit(table)
    rows = table.iloc[:4].copy()
    rows.loc[1, "fixed"] = 2.0
    rows.loc[3, "twice"] += 1.0
    assert np.isneginf(model.score_samples(rows)).tolist() == [False, True, False, True]
    for found in (model.to_noise(rows, 0), model.pit(rows, 0)):
        assert np.isnan(found).all(axis=1).tolist() == [False, True, False, True]
        assert not np.isnan(found[[0, 2]]).any()
    assert np.isnan(model.to_noise(rows.iloc[[1]], 0)).all()


def test_rows_of_whole_tables_that_cannot_occur_have_no_noise():
    table = fresh(200)[["a"]].assign(level=["x", "y"] * 100)
    closed = {"level": {"categories": ["x", "y"]}}
    model = FlowDensity(members=WHOLE, rules=["a < 5"], schema=closed, random_state=0).fit(table)
    rows = pd.DataFrame({"a": [0.0, 9.0, 0.1, 0.2], "level": ["x", "x", "never", "y"]})
    assert np.isnan(model.to_noise(rows, 0)).all(axis=1).tolist() == [False, True, True, False]
    assert np.isnan(model.pit(rows, 0)).all(axis=1).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("count", "message"), [(1, "at least 2, not 1"), (-5, "at least 2"), ("many", "'many'"), (2.5, "whole number")]
)
def test_numbers_of_draws_are_whole_and_two_at_least(model, count, message):
    for ask in (
        lambda: model.entropy(count),
        lambda: model.divergence(model, count),
        lambda: model.highest_density_threshold(0.9, count),
        lambda: model.mutual_information("a", "b", count),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_a_bar_counts_draws_where_the_model_shows_progress(model, monkeypatch):
    shown: list[bool] = []
    real = questions.progress_bar

    def bar(total: int, progress: bool, *names: str):
        shown.append(progress)
        found = real(total, False, *names)
        monkeypatch.setattr(found, "update", lambda n: counted.append(n))
        return found

    monkeypatch.setattr(questions, "progress_bar", bar)
    monkeypatch.setattr(questions, "BLOCK", 40)
    for ask in (model.entropy, lambda n: model.highest_density_threshold(0.5, n)):
        for progress in (False, True):
            counted: list[int] = []
            monkeypatch.setattr(model, "progress", progress)
            ask(100)
            assert (shown.pop(), counted) == (progress, [40, 40, 20])


def test_draws_in_blocks_differ_from_block_to_block(model, monkeypatch):
    monkeypatch.setattr(questions, "BLOCK", 50)
    generator = torch.Generator().manual_seed(0)
    with questions.blocks(model._model, 100, False) as sizes:
        rows, log_prob = scored_draws(model._model, sizes, generator)
    assert rows.shape == (100, 3)
    assert len(np.unique(rows[:, 0])) == len(np.unique(log_prob)) == 100


def test_small_densities_train_where_the_model_does(model, monkeypatch):
    seen: list[str] = []

    def watched(*args, device, **options):
        seen.append(device)
        return fit_ensemble(*args, device=device, **options)

    monkeypatch.setattr(questions, "fit_ensemble", watched)
    monkeypatch.setattr(questions, "TO_LEARN", 200)
    model.mutual_information("a", "b", 100, random_state=0)
    assert seen == [str(model._model.device)] * 3


def test_a_fitted_model_says_so(model):
    assert repr(FlowDensity(effort="fast")) == "FlowDensity(effort='fast')"
    text = repr(model)
    assert "\nfitted: 3 columns, 2 members, -" in text
    assert text.endswith(" nats per held-out row")
    assert "Member(kind='mixture', preprocessing='none', components=4)" in text
    assert "held-out row" not in repr(FlowDensity(members=NUMERIC, validation=0).fit(fresh(50)))


def test_goodness_of_fit_sees_what_is_wrong_and_only_that():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 2))
    assert (goodness_of_fit(z, ["a", "b"])["p_value"] > 0.01).all()
    shifted = goodness_of_fit(z + np.array([0.2, 0.0]), ["a", "b"])
    assert shifted.loc["column a", "p_value"] < 0.001
    assert shifted.loc["column b", "p_value"] > 0.01
    assert goodness_of_fit(1.3 * z, ["a", "b"]).loc["radius", "p_value"] < 0.001
    z[:, 1] = z[:, 0]  # right margins, wrong together
    together = goodness_of_fit(z, ["a", "b"])
    assert (together.loc[["column a", "column b"], "p_value"] > 0.001).all()
    assert together.loc["energy", "p_value"] < 0.02
    assert len(goodness_of_fit(np.zeros((0, 2)), ["a", "b"])) == 0


def test_a_fitted_model_says_how_well_it_fits(model):
    assert set(model.calibration_.index) == {"column a", "column b", "column c", "radius", "energy"}
    assert (model.calibration_["p_value"] > 0.001).all()
    text = model.summary()
    assert "radius" in text
    assert "  copula (" in text
