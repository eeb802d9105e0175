"""Metrics of synthetic rows: known answers, noise floors, odd columns."""

import datetime
import warnings
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from flowlab.report import metrics
from flowlab.tables.frames import nearness
from flowlab.tables.frames.aligned import align, kind


def mixed(rows: int, seed: int, shift: float = 0.0) -> pd.DataFrame:
    """Related columns of several kinds, with missing cells."""
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, size=rows)
    frame = pd.DataFrame(
        {
            "x": x,
            "count": pd.array(rng.poisson(np.exp(x / 2)), dtype="Int64"),
            "group": pd.Categorical(np.where(x + rng.normal(size=rows) > 0, "high", "low"), ["low", "high", "never"]),
            "flag": rng.random(rows) < 0.3,
            "when": pd.Timestamp("2024-01-01", tz="Europe/Rome") + pd.to_timedelta(rng.integers(0, 9999, rows), "h"),
            "text": rng.choice(["a", "b", "c"], rows),
        }
    )
    lost = rng.random(rows) < 0.2
    frame.loc[lost, ["count", "text"]] = None
    return frame


def odd(rows: int, seed: int) -> pd.DataFrame:
    """Columns that other libraries stumble over."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(0, 5, rows)
    day = datetime.date(2024, 1, 1)
    objects = {
        "none": [None] * rows,
        "lists": [[int(i)] for i in whole],
        "decimals": [Decimal(int(i)) / 7 for i in whole],
        "dates": [day + datetime.timedelta(int(i)) for i in whole],
        "several": [("a", 1, 2.5, None, True)[i] for i in whole],
    }
    columns = {name: pd.Series(values, dtype=object) for name, values in objects.items()}
    columns |= {
        "infinite": pd.Series(np.where(rng.random(rows) < 0.1, np.inf, rng.normal(size=rows))),
        "huge": pd.Series(rng.normal(size=rows) * 1e300),
        "nothing": pd.Series(np.full(rows, np.nan)),
        "constant": pd.Series(np.ones(rows)),
        "maybe": pd.Series(pd.array(rng.choice([True, False, None], rows), dtype="boolean")),
        "small": pd.Series(pd.array(rng.normal(size=rows), dtype="Float32")),
        "duration": pd.Series(pd.to_timedelta(whole, "D")),
        "names": pd.Series([f"user {i}" for i in rng.integers(0, 10**6, rows)]),
        "arrow": pd.Series(whole).astype("int64[pyarrow]"),
        "arrow times": pd.Series(pd.Timestamp("2024-01-01") + pd.to_timedelta(whole, "h")).astype(
            "timestamp[ns][pyarrow]"
        ),
        "period": pd.Series(pd.period_range("2000-01", periods=rows, freq="D")),
        "complex": pd.Series(whole + 1j),
        7: pd.Series(whole),
    }
    return pd.DataFrame(columns)


def test_classifier_tells_what_differs_and_nothing_else():
    assert abs(metrics.classifier_auc(mixed(600, 0), mixed(600, 1)) - 0.5) < 0.08
    assert metrics.classifier_auc(mixed(300, 0), mixed(500, 1, shift=6.0)) > 0.98
    with pytest.raises(ValueError, match="at least 10 rows"):
        metrics.classifier_auc(mixed(300, 0), mixed(9, 1))


def test_classifier_is_reproducible():
    a, b = mixed(100, 0), mixed(150, 1)
    assert metrics.classifier_auc(a, b, seed=3) == metrics.classifier_auc(a, b, seed=3)


def test_column_distances_by_hand():
    real = pd.DataFrame({"c": ["x", "x", "y", None], "n": [1.0, 2.0, 3.0, 4.0], "gone": [1.0, 2.0, 3.0, 4.0]})
    synthetic = pd.DataFrame({"c": ["x", "y", "z", "z"], "n": [3.0, 4.0, 5.0, 6.0], "gone": [np.nan] * 4})
    found = metrics.column_distances(real, synthetic)
    # Shares 2/3, 1/3, 0 against 1/4, 1/4, 1/2.
    assert found["distance"].tolist() == pytest.approx([0.5, 0.5, 1.0])
    assert found["measure"].tolist() == ["TV", "KS", "KS"]
    assert found["missing_real"].tolist() == [0.25, 0, 0]
    assert found["missing_synthetic"].tolist() == [0, 0, 1]


def test_pair_similarity_by_hand():
    real = pd.DataFrame({"a": ["x", "x", "y", "y"], "b": [0, 0, 1, 1], "c": [True, False, True, False]})
    synthetic = real.assign(b=[0, 1, 0, 1])
    mean, matrix = metrics.pair_similarity(real, synthetic)
    assert matrix.loc["a", "b"] == 0.5
    assert matrix.loc["a", "c"] == 1.0
    assert matrix.loc["b", "c"] == pytest.approx(0.5)
    assert mean == pytest.approx(2 / 3)
    assert metrics.pair_similarity(real, real)[0] == 1.0


def test_pair_similarity_counts_missing_cells_as_a_value():
    real = pd.DataFrame({"a": [1.0, 2.0, np.nan, np.nan], "b": ["x"] * 4})
    assert metrics.pair_similarity(real, real.assign(a=[1.0, 2.0, 1.0, 2.0]))[1].loc["a", "b"] == pytest.approx(0.5)


def test_rare_categories_are_pooled():
    real = pd.DataFrame({"a": [f"level {i}" for i in range(30)] * 2, "b": 1})
    cells, size = align(real)[0].cells()
    assert size == 22
    assert np.bincount(cells[0]).tolist() == [0, *[2] * 20, 20]


def test_dependence_is_one_zero_and_symmetric():
    rng = np.random.default_rng(0)
    x = rng.normal(size=4000)
    table = pd.DataFrame({"x": x, "square": x**2, "sign": np.where(x > 0, "+", "-"), "noise": rng.normal(size=4000)})
    found = metrics.dependence(table)
    assert found.loc["x", "sign"] > 0.95  # one cell straddles zero
    assert found.loc["x", "square"] > 0.6  # no monotone relation
    assert found.loc["x", "noise"] < 0.05
    assert np.allclose(found, found.T)
    assert (np.diag(found) == 1).all()


def test_train_on_synthetic():
    train, test = mixed(800, 0), mixed(400, 1)
    found = metrics.train_on_synthetic(train, test, mixed(800, 2), "group")
    assert found.measure == "ROC-AUC"
    assert found.ratio == pytest.approx(1.0, abs=0.06)
    broken = train.assign(group=train["group"].sample(frac=1, random_state=0).to_numpy())
    assert metrics.train_on_synthetic(train, test, broken, "group").ratio < 0.85
    number = metrics.train_on_synthetic(train, test, mixed(800, 2), "x")
    assert number.measure == "R²"
    assert number.real > 0.15
    with pytest.raises(ValueError, match="cannot predict 'nowhere'"):
        metrics.train_on_synthetic(train, test, train, "nowhere")


def test_scores_of_several_classes_one_of_which_is_never_drawn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=600)
    table = pd.DataFrame({"x": x, "band": pd.cut(x, [-9, -1, 0, 9], labels=["a", "b", "c"])})
    train, test = table[:400], table[400:]
    found = metrics.train_on_synthetic(train, test, train[train["band"] != "a"], "band")
    assert found.real > 0.99
    assert 0.6 < found.synthetic < 0.9


def test_chosen_targets():
    assert metrics.choose_target(mixed(500, 0)) == "group"
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    assert (
        metrics.choose_target(
            pd.DataFrame({"noise": rng.normal(size=300), "y": x + 0.1 * rng.normal(size=300), "x": x})
        )
        in "xy"
    )
    rare = pd.DataFrame({"rare": x > 2.5, "x": x, "constant": 1})
    assert metrics.choose_target(rare) == "x"


def test_missing_patterns_and_rates():
    real = pd.DataFrame({"a": [1, None, 3, None], "b": [None, 1, None, None]})
    synthetic = real.assign(b=[None, None, 1, 1])
    assert metrics.missing_pattern_distance(real, real) == 0
    # Patterns -b, a-, -b, ab against -b, ab, --, a-.
    assert metrics.missing_pattern_distance(real, synthetic) == pytest.approx(0.25)
    assert metrics.missing_rates(real, synthetic).to_numpy().tolist() == [[0.5, 0.5], [0.75, 0.5]]


def test_copies_are_found():
    train, held_out = mixed(300, 0), mixed(300, 1)
    copied = nearness.privacy(train, held_out, train.sample(200, random_state=0))
    assert copied.copies == 1
    assert copied.copies_held_out == 0
    assert copied.nearer_to_train == 1
    assert copied.distance == 0


def test_new_rows_are_as_near_to_either():
    shares = []
    for seed in range(8):
        train, held_out, new = (mixed(200, 3 * seed + k) for k in range(3))
        found = nearness.privacy(train, held_out, new)
        shares.append((found.nearer_to_train - 0.5) / found.standard_error)
    assert max(np.abs(shares)) < 3.5
    assert 0.4 < np.std(shares) < 1.8  # the standard error is one


def test_discrete_tables_have_natural_duplicates():
    tables = [pd.DataFrame(np.random.default_rng(seed).integers(0, 2, (400, 3))) for seed in range(3)]
    found = nearness.privacy(*tables)
    assert found.copies == found.copies_held_out == 1
    assert found.nearer_to_train == pytest.approx(0.5, abs=0.1)


def test_validity():
    real = pd.DataFrame({"c": pd.Categorical(["x", "y"], ["x", "y", "declared"]), "n": [1, 5], "f": [0.5, 1.5]})
    synthetic = pd.DataFrame({"c": ["declared", "?"], "n": [2.5, 7.0], "f": [0.6, np.nan]})
    found = metrics.validity(real, synthetic)
    assert found.loc["c", "unknown_categories"] == 0.5
    assert found.loc["n", ["fractions", "out_of_range"]].tolist() == [0.5, 0.5]
    assert np.isnan(found.loc["f", "fractions"])
    assert found.loc["f", "out_of_range"] == 0
    assert found["same_dtype"].tolist() == [False, False, True]


def test_noise_floor_compares_disjoint_rows():
    rows = pd.DataFrame({"x": np.arange(101)})
    parts = metrics.real_against_real(lambda a, b: (a, b), rows, size=30, repeats=4)
    assert len(parts) == 4
    for a, b in parts:
        assert len(a) == len(b) == 30
        assert not set(a["x"]) & set(b["x"])
    assert len(metrics.real_against_real(lambda a, b: a, rows, size=80)[0]) == 50


def test_odd_columns_pass_without_a_warning():
    a, b, c = odd(60, 0), odd(60, 1), odd(60, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distances = metrics.column_distances(a, b)
        assert np.isfinite(distances["distance"]).all()
        assert metrics.column_distances(a, a)["distance"].max() == 0
        assert metrics.pair_similarity(a, a)[0] == pytest.approx(1.0)
        assert np.isfinite(metrics.dependence(a)).all(axis=None)
        assert 0 <= metrics.classifier_auc(a, b) <= 1
        assert metrics.missing_pattern_distance(a, a) == 0
        assert nearness.privacy(c, a, c).copies == 1
        metrics.train_on_synthetic(c, a, b, metrics.choose_target(a))
        assert metrics.validity(a, b)["same_dtype"].all()


def test_kinds():
    frame = odd(60, 0)
    kinds = {name: kind(frame[name]) for name in frame}
    assert {name for name, k in kinds.items() if k == "time"} == {"dates", "arrow times"}
    assert {name for name, k in kinds.items() if k == "duration"} == {"duration"}
    numbers = {"decimals", "infinite", "huge", "nothing", "constant", "small", "arrow", 7}
    assert {name for name, k in kinds.items() if k == "number"} == numbers


def test_tables_that_do_not_fit():
    with pytest.raises(ValueError, match="no column 'b'"):
        metrics.column_distances(pd.DataFrame({"a": [1], "b": [2]}), pd.DataFrame({"a": [1]}))
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(ValueError, match="same name"):
        metrics.column_distances(twice, twice)
