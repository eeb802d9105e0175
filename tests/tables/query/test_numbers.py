"""Every question about a table of complete numbers: joint members and members with conditional densities as one."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flowlab import FlowDensity, Member, load
from flowlab.tables.ensemble.joint_density import JointDensity
from flowlab.tables.mixed.conditional_density import ConditionalDensity

A = 0.8  # of y given x
SD = 0.6


def truth(rows: int, seed: int = 0) -> pd.DataFrame:
    """x normal, y normal given x, a count whose rate depends on y, and a sum of two of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    y = A * x + SD * rng.normal(size=rows)
    return pd.DataFrame({"x": x, "y": y, "n": rng.poisson(np.exp(0.5 * y)), "both": x + y})


@pytest.fixture(scope="module")
def model() -> FlowDensity:
    return FlowDensity(effort="fast", random_state=0).fit(truth(4000))


def test_joint_and_conditional_members_have_a_part(model):
    assert isinstance(model.flow_.flows[0], JointDensity)
    assert all(isinstance(member, ConditionalDensity) for member in list(model.flow_)[1:])
    assert 0.1 < float(model.flow_.weights[0]) < 0.99
    assert len(model.flow_.flows) > 1


def test_probabilities_of_a_grid_sum_to_one_and_densities_integrate(model):
    """The count's probabilities and the others' densities together: a sum over the one, by draws of the others."""
    rows = model.sample(400, random_state=1)
    kept = rows.loc[rows.index.repeat(20)].reset_index(drop=True)
    kept["n"] = np.tile(np.arange(20), len(rows))
    mass = np.exp(model.score_samples(kept)).reshape(-1, 20).sum(1)
    unknown = pd.DataFrame({**rows, "n": np.nan})
    ratio = np.log(mass) - model.score_samples(unknown, missing="unknown")
    assert np.median(ratio) == pytest.approx(0, abs=0.02)
    assert np.mean(ratio) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("x", [-1.5, 0.0, 1.0])
def test_draws_given_an_exact_number_have_the_known_conditional_distribution(model, x):
    rows = model.sample(600, random_state=2, given={"x": x})
    assert (rows["x"] == x).all()
    np.testing.assert_allclose(rows["both"], rows["x"] + rows["y"], atol=1e-12)
    assert rows["y"].mean() == pytest.approx(A * x, abs=0.1)
    assert stats.kstest((rows["y"] - A * x) / SD, "norm").statistic < 0.08
    assert 0.2 < rows.attrs["effective_share"] <= 1


def test_conditional_says_what_is_known(model):
    said = model.conditional("y", pd.DataFrame({"x": [-1.0, 0.0, 1.0]}), n=2000, random_state=0)
    np.testing.assert_allclose(said["mean"], [-A, 0, A], atol=0.1)
    np.testing.assert_allclose(said["sd"], SD, atol=0.08)
    np.testing.assert_allclose(said["95%"] - said["mean"], 1.645 * SD, atol=0.17)
    assert 0.1 < said.attrs["effective_share"] <= 1
    backwards = model.conditional("x", pd.DataFrame({"y": [1.0]}), n=2000, random_state=0)
    assert backwards["mean"][0] == pytest.approx(A, abs=0.1)  # both have variance 1


@pytest.mark.slow
def test_imputation_draws_from_the_conditional_distribution(model):
    frame = truth(1500, seed=3).drop(columns="both")
    holes = frame.assign(both=np.nan)
    holes.loc[::2, "y"] = np.nan
    filled = model.impute(holes, random_state=0)
    assert filled.loc[1::2, "y"].equals(frame.loc[1::2, "y"])
    drawn = filled.loc[::2]
    residual = (drawn["y"] - A * drawn["x"]) / SD
    counts = frame.loc[::2, "n"] - np.exp(0.5 * drawn["y"])  # what is left of the count given the drawn y
    assert abs(counts.mean()) < 0.15
    assert stats.kstest(residual, "norm").statistic < 0.08
    np.testing.assert_allclose(filled["both"], filled["x"] + filled["y"], atol=1e-9)


def test_unknown_cells_are_integrated_out(model):
    frame = truth(500, seed=4)
    known = pd.DataFrame({"x": frame["x"], "y": np.nan, "n": np.nan, "both": np.nan})
    scores = model.score_samples(known, missing="unknown")
    assert np.mean(scores - stats.norm.logpdf(frame["x"])) == pytest.approx(0, abs=0.05)
    assert np.abs(scores - stats.norm.logpdf(frame["x"]))[np.abs(frame["x"]) < 2].max() < 0.4


@pytest.mark.slow
def test_information_and_entropy_are_those_of_the_truth(model):
    exact = -0.5 * np.log(SD**2 / (A**2 + SD**2))
    found = model.mutual_information("x", "y", n_samples=4000, random_state=0)
    assert found.value == pytest.approx(exact, abs=0.08)
    assert model.entropy(4000, random_state=0).value == pytest.approx(-model.score(truth(4000, seed=5)), abs=0.1)


@pytest.mark.parametrize(
    "given", [{"x": (0.5, None)}, {"n": [0, 3]}, {"both": (1.0, 2.0)}, {"x": (None, 0.0), "n": 1}], ids=str
)
def test_conditions_agree_with_the_rows_that_keep_them(model, given):
    rows = model.sample(800, random_state=0, given=given)
    free = model.sample(40_000, random_state=1)
    kept = pd.Series(True, index=free.index)
    for name, wish in given.items():
        if isinstance(wish, tuple):
            low, high = (-np.inf if wish[0] is None else wish[0]), (np.inf if wish[1] is None else wish[1])
            assert rows[name].between(low, high).all()
            kept &= free[name].between(low, high)
        else:
            kept &= free[name].isin(wish if isinstance(wish, list) else [wish])
    for name in ("x", "y", "n"):
        assert stats.ks_2samp(rows[name], free.loc[kept, name]).statistic < 0.09, name


def test_rows_of_conditions_have_a_row_each(model):
    given = pd.DataFrame({"y": [-1.0, 0.0, 2.0]}, index=[4, 5, 6])
    rows = model.sample(given=given, random_state=0)
    assert rows.index.tolist() == [4, 5, 6]
    assert rows["y"].tolist() == [-1.0, 0.0, 2.0]


def test_files_keep_the_ensemble(model, tmp_path):
    model.save(tmp_path / "model.flow")
    again, frame = load(tmp_path / "model.flow"), truth(100, seed=6)
    np.testing.assert_array_equal(again.score_samples(frame), model.score_samples(frame))
    pd.testing.assert_frame_equal(again.sample(50, random_state=0), model.sample(50, random_state=0))
    asked = {"given": {"x": 1.0}, "random_state": 0}
    pd.testing.assert_frame_equal(again.sample(20, **asked), model.sample(20, **asked))


@pytest.mark.slow
def test_too_few_effective_draws_are_refused():
    """Nearly collinear columns: networks and trees are far from what Gaussians know."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 5)) + 1e-5 * rng.normal(size=(200, 5))
    model = FlowDensity(members=["mixture", Member("mixed", steps=40, trees=2)], effort="fast", random_state=0).fit(x)
    for ask in (
        lambda: model.sample(50, random_state=0, given={"x0": 0.5}),
        lambda: model.conditional("x4", {"x0": 0.5}, random_state=0),
        lambda: model.impute(np.where(np.arange(5) < 2, x[:20], np.nan), random_state=0),
    ):
        with pytest.raises(ValueError, match=r"proposals for a row are effective.*members=\[\"mixed\"\]"):
            ask()
    with pytest.warns(UserWarning, match="unknown cells are too low"):
        model.score_samples(np.where(np.arange(5) < 2, x[:20], np.nan), missing="unknown")
