"""Numbers come back with the decimals of the data, however far they spread."""

import numpy as np
import pandas as pd
import pytest

from flowlab import FlowDensity, Member
from flowlab.tables.codec.codec import Codec
from flowlab.tables.schema import Schema
from flowlab.tables.schema.grid import common_decimals

NUMBERS = {"members": ["copula", "broad"], "random_state": 0, "validation": 0}
WHOLE = {"members": [Member("mixed", steps=40, hidden=(16,))], "random_state": 0, "n_jobs": 1, "validation": 0}


def prices(rng: np.random.Generator, n: int, decimals: int = 2, spread: float = 4.0, most: float = 1e8) -> np.ndarray:
    """Lognormal prices, a third of which repeat others."""
    x = np.round(np.exp(rng.normal(8, spread, n)).clip(10.0**-decimals, most), decimals)
    again = rng.random(n) < 0.3
    return np.where(again, rng.choice(x[: n // 5], n), x)


def between(codec: Codec, rng: np.random.Generator, n: int = 2000) -> pd.DataFrame:
    """Rows of a matrix that has numbers anywhere in the range of training, close to zero too."""
    low, high = np.array([column.seen for column in codec.schema]).T
    share = rng.random((n, len(low))) ** rng.integers(1, 30, (n, 1))
    return codec.decode(low + share * (high - low))


def rounded(x: pd.Series, decimals: int) -> pd.Series:
    return x.astype("float64").round(decimals).astype(x.dtype)


@pytest.mark.parametrize("decimals", range(7))
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rows", [40, 2000])
def test_every_number_has_the_decimals_of_all(decimals, dtype, rows):
    rng = np.random.default_rng(decimals)
    whole = pd.DataFrame(
        {
            "prices": prices(rng, rows, 0),
            "wide": prices(rng, rows, 0, 6.0, 1e12),
            "zeros": np.where(rng.random(rows) < 0.4, 0, prices(rng, rows, 0)),
            "signed": np.round(rng.normal(size=rows) * 10.0 ** rng.integers(0, 7, rows)),
        }
    )
    frame = (whole / 10**decimals).astype(dtype)
    holes = frame.mask(rng.random(frame.shape) < 0.1)
    for table in (frame, holes):
        codec = Codec(Schema.infer(table))
        for name, x in between(codec, rng).items():
            assert (x == rounded(x, decimals)).all(), name


def test_steps_of_five_cents_and_of_sixteenths():
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(8, 4, 2000))
    frame = pd.DataFrame({"five": np.round(x * 20) / 20, "sixteenth": np.round(x * 16) / 16})
    assert [column.decimals for column in Schema.infer(frame)] == [0.05, 1 / 16]
    rows = between(Codec(Schema.infer(frame)), rng)
    assert (rows["five"] == np.round(rows["five"] * 20) / 20).all()
    assert (rows["sixteenth"] % (1 / 16) == 0).all()


@pytest.mark.parametrize("rows", [5, 30, 2000])
def test_numbers_without_decimals_are_not_rounded(rows):
    rng = np.random.default_rng(rows)
    frame = pd.DataFrame(
        {
            "noise": np.exp(rng.normal(8, 4, rows)),
            "huge": rng.uniform(1e12, 1e13, rows),  # floats of which are multiples of 2 ** -9
            "thirds of hours": rng.integers(1, 100_000, rows) / 3,
            "sum": prices(rng, rows) + rng.normal(size=rows),
            "one of many": np.append(prices(rng, rows)[1:], np.pi),
            "single": np.exp(rng.normal(3, 3, rows)).astype("float32"),
        }
    )
    assert [column.decimals for column in Schema.infer(frame)] == [0] * 6


def test_cents_of_sums_with_rounding_errors_and_of_large_amounts():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"sum": prices(rng, 2000) + prices(rng, 2000), "large": rng.uniform(1e11, 1e12, 2000).round(2)}
    )
    assert [column.decimals for column in Schema.infer(frame)] == [0.01, 0.01]
    repeated = frame["sum"][frame["sum"].duplicated()]
    codec = Codec(Schema.infer(frame))
    matrix = np.column_stack([repeated, np.full(len(repeated), 1e11)])
    assert (codec.decode(matrix)["sum"].to_numpy() == repeated).all()  # rounding errors and all


def test_seconds_of_clocks_and_durations_keep_their_decimals():
    rng = np.random.default_rng(0)
    seconds = rng.uniform(0, 86400, 500).round(3)
    frame = pd.DataFrame(
        {"at": pd.Timestamp("2024-01-31") + pd.to_timedelta(seconds, "s"), "took": pd.to_timedelta(seconds[::-1], "s")}
    )
    codec = Codec(Schema.infer(frame))
    again = codec.decode(codec.encode(frame) + 1e-5)
    pd.testing.assert_frame_equal(again, frame)


@pytest.mark.parametrize("whole", [False, True])
def test_draws_have_cents(whole, tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"price": prices(rng, 500), "amount": prices(rng, 500, most=1e12, spread=6), "x": rng.random(500)}
    )
    frame["total"] = (frame["price"] + frame["amount"]).round(2)
    frame["single"] = prices(rng, 500, spread=2).astype("float32")
    if whole:
        frame = frame.mask(rng.random(frame.shape) < 0.05).assign(c=list("uv") * 250)
    model = FlowDensity(**(WHOLE if whole else NUMBERS)).fit(frame)
    model.save(tmp_path / "m.flow")
    rows = FlowDensity.load(tmp_path / "m.flow").sample(500, random_state=0)
    for name in ("price", "amount", "total", "single"):
        x = rows[name].dropna()
        assert (x == rounded(x, 2)).all(), name
    assert (rows["x"].dropna() != rows["x"].dropna().round(6)).all()
    assert np.isfinite(model.score_samples(rows)).all()
    assert rows["price"].dropna().between(frame["price"].min(), frame["price"].max()).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("tiny", [3e-36, 1e-12, 1e-8])
def test_tiny_numbers_are_not_the_zero_of_a_coarse_step(dtype, tiny):
    frame = pd.DataFrame({"x": np.array([0.0, 1.0, 2.0, tiny, 3 * tiny], dtype=dtype)})
    codec = Codec(Schema.infer(frame))
    np.testing.assert_allclose(codec.decode(codec.encode(frame))["x"], frame["x"], rtol=1e-6)


def test_what_sums_leave_of_nothing_is_no_number():
    x = np.round(np.random.default_rng(0).normal(size=200), 2)
    x[:20] = 0.1 + 0.2 - 0.3
    assert Schema.infer(pd.DataFrame({"x": x}))["x"].decimals in (0.0, 0.01)
    assert common_decimals(x, 8 * np.finfo(float).eps * np.abs(x)) == 0.01
