"""The demo: tables as they are, methods on one footing, and what the tests of fit say."""

from functools import partial

import numpy as np
import pandas as pd
import pytest

from flowlab import FlowDensity, demo
from flowlab.report import comparison


@pytest.mark.slow
def test_rows_to_learn_from_and_draws_keep_the_tables_grids(monkeypatch):
    monkeypatch.setattr(demo, "MOST_ROWS", 300)
    monkeypatch.setattr(comparison, "FlowDensity", partial(FlowDensity, members=["copula"]))
    frame = demo.numbers("wine", 0)[["alcohol", "ph", "total_sulfur_dioxide"]]
    tenths = frame["ph"] * 100
    assert np.allclose(tenths, tenths.round())
    rows, model = comparison.compare(frame, 0, effort="fast")
    assert [row.method for row in rows] == ["Gaussian", "KDE", "Gaussian mixture", "flowlab"]
    assert all(row.log_prob.shape == (60,) and np.isfinite(row.log_prob).all() for row in rows)
    means = [row.log_prob.mean() for row in rows]
    assert max(means) - min(means) < 2  # nats: on one footing
    drawn = model.sample(50, random_state=0)["ph"] * 100
    assert np.allclose(drawn, drawn.round())


def test_impossible_diamonds_are_left_out():
    lengths = pd.DataFrame({"x": [4.0, 0.0, 4.0], "y": [4.0, 4.0, 58.9], "z": [2.5, 2.5, 2.5]})
    assert comparison.possible("diamonds", lengths).index.tolist() == [0]
    assert comparison.possible("wine", lengths) is lengths


@pytest.mark.parametrize(("smallest", "words"), [(0.0, "The model is not exact"), (0.4, "No difference is seen")])
def test_results_say_what_the_tests_of_fit_find(smallest: float, words: str):
    tests = pd.DataFrame({"p_value": [0.7, smallest, 0.9]}, index=["column a", "radius", "energy"])
    rows = [comparison.Row(name, np.arange(3.0), 1.0) for name in ("Gaussian", "flowlab")]
    text = demo.markdown({"wine": rows}, {"wine": tests})
    seen = f"“radius” has the smallest p-value, {min(3 * smallest, 1):.3f}"
    assert f"wine: Calibration: of 3 tests of fit on held-out rows, {seen}" in text
    assert words in text
    assert "| wine | flowlab |" in text
    assert "no rows were held out" in demo.calibrated(tests[:0])
