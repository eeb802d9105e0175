"""Does `memorization` know memorisers from ordinary fits, and is its test of membership one of level?"""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flowlab import FlowDensity, datasets, load
from flowlab.tables.ensemble import mixtures
from flowlab.tables.ensemble.calibration import membership
from flowlab.tables.ensemble.member import Member
from flowlab.tables.fitted import from_json, membership_from, to_json
from flowlab.tables.query.memorization import Memorization, ratio

QUICK = {"members": [Member("mixed", steps=60, trees=0, gaussians=0, hidden=(16,))], "random_state": 0}


def shuffled_diamonds() -> pd.DataFrame:
    columns = ["carat", "cut", "color", "depth", "price"]
    return datasets.load("diamonds")[columns].sample(3000, random_state=0).reset_index(drop=True)


def test_auc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    train, held_out = rng.integers(0, 9, 60).astype(float), rng.integers(0, 7, 45).astype(float)
    held_out[:4] = -np.inf
    pairs = (train[:, None] > held_out) + 0.5 * (train[:, None] == held_out)
    assert membership(train, held_out).auc == pytest.approx(pairs.mean())


def test_the_standard_error_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    found = [membership(rng.normal(0.8, 1, 80), rng.normal(0, 1, 120)) for _ in range(600)]
    auc = np.array([one.auc for one in found])
    assert auc.mean() == pytest.approx(stats.norm.cdf(0.8 / np.sqrt(2)), abs=0.01)
    assert np.mean([one.standard_error for one in found]) == pytest.approx(auc.std(), rel=0.1)


def test_rows_that_cannot_occur_count_as_never_seen():
    assert ratio(np.array([1.0, -np.inf, -np.inf]), np.array([3.0, 2.0, -np.inf])).tolist() == [-2.0, -np.inf, -np.inf]


def test_a_tiny_bandwidth_is_flagged(monkeypatch, tmp_path):
    monkeypatch.setattr(mixtures, "BANDWIDTHS", (0.01,))
    x = np.random.default_rng(0).normal(size=(300, 3))
    model = FlowDensity(members=["kernel"], preprocessing="marginal", random_state=0).fit(x[:150])
    found = model.memorization(x[:150], x[150:], random_state=0)
    assert found.memorised
    assert found.near
    assert found.likelihood.auc > 0.99
    assert found.ratio.auc > 0.99
    assert "Treat model and synthetic rows like the training rows" in repr(found)
    assert "MEMORISED" in model.summary()
    model.save(tmp_path / "m.flow")
    assert load(tmp_path / "m.flow").summary() == model.summary()


@pytest.mark.slow
def test_rows_that_come_back_are_copies():
    """A table whose rows repeat: held-out rows are copies as well, so that the fit itself does not notice."""
    rng = np.random.default_rng(0)
    few = pd.DataFrame({"a": rng.normal(size=30), "b": rng.normal(size=30), "c": rng.choice(list("xyz"), 30)})
    rows = pd.concat([few] * 8, ignore_index=True)
    model = FlowDensity(members=[Member("mixed", steps=300, trees=5, gaussians=0)], random_state=0).fit(rows)
    new = pd.DataFrame({"a": rng.normal(size=60), "b": rng.normal(size=60), "c": rng.choice(list("xyz"), 60)})
    found = model.memorization(rows, new, random_state=0)
    assert found.memorised
    assert found.copied
    assert "copies of training rows" in found.verdict


@pytest.mark.slow
def test_an_ordinary_fit_is_not_flagged_and_unseen_rows_are_not_told_apart():
    rows = shuffled_diamonds()
    model = FlowDensity(**QUICK, effort="fast").fit(rows[:600])
    found = model.memorization(rows[:600], rows[600:1400], random_state=0)
    assert not found.memorised
    assert "MEMORISED" not in model.summary()
    unseen = model.memorization(rows[1400:2000], rows[2000:], random_state=0)
    for test in (unseen.likelihood, unseen.ratio):
        assert abs(test.auc - 0.5) < 3.5 * test.standard_error
        assert 0.01 < test.standard_error < 0.03
    assert not unseen.memorised


def test_few_rows_and_wrong_columns_are_named():
    x = np.random.default_rng(0).normal(size=(100, 2))
    model = FlowDensity(members=["copula"], random_state=0).fit(x)
    with pytest.raises(ValueError, match="held_out has 30 rows"):
        model.memorization(x, x[:30])
    with pytest.raises(ValueError, match="train has 10 rows"):
        model.memorization(x[:10], x)
    with pytest.raises(ValueError, match="3 features"):
        model.memorization(x, np.zeros((50, 3)))


def test_files_without_the_record_load():
    x = np.random.default_rng(0).normal(size=(100, 2))
    model = FlowDensity(members=["copula"], random_state=0).fit(x)
    state = json.loads(json.dumps(to_json(model._model)))
    assert from_json(state, model.flow_).membership == model._model.membership
    del state["membership"]
    assert from_json(state, model.flow_).membership is None
    assert FlowDensity(members=["copula"], validation=0).fit(x)._model.membership is None
    with pytest.raises(ValueError, match="auc"):
        membership_from({"train": 1.0, "held_out": None, "auc": "high", "standard_error": 0.1})


def test_verdicts_say_what_the_numbers_say():
    same, known, sure = membership(*np.random.default_rng(0).normal(size=(2, 200))), None, None
    rng = np.random.default_rng(1)
    known, sure = (membership(rng.normal(shift, 1, 200), rng.normal(0, 1, 200)) for shift in (1.0, 4.0))

    def verdict(copies: float = 0.0, near: float = 0.5, ratio: object = same) -> tuple[bool, str]:
        found = Memorization((200, 200, 200), copies, 0.0, 0.01, near, 0.02, same, ratio)  # type: ignore[arg-type]
        return found.memorised, found.verdict

    assert verdict()[1].startswith("nothing found")
    assert verdict(ratio=known) == (False, verdict(ratio=known)[1])
    assert "with traces: scores tell" in verdict(ratio=known)[1]
    assert verdict(near=0.6)[0] is False
    assert "nearer to training rows" in verdict(near=0.6)[1]
    for sign in ({"copies": 0.1}, {"near": 0.8}, {"ratio": sure}):
        memorised, words = verdict(**sign)
        assert memorised
        assert words.startswith("memorised:")
