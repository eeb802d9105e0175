"""Cells that users name in conditions, as the numbers that the model knows them by."""

import numpy as np
import pandas as pd
import pytest

from flowlab.tables.codec.codec import Codec
from flowlab.tables.schema import Schema


@pytest.fixture(scope="module")
def conditions() -> Codec:
    frame = pd.DataFrame(
        {
            "n": [1, 2, 5],
            "s": ["a", None, "b"],
            "t": pd.to_datetime(["2024-01-01 10:00", "2024-01-05 11:00", "2024-01-05 11:00"]).tz_localize(
                "Europe/Paris"
            ),
            "d": pd.to_timedelta([1, 2, 9], unit="h"),
            "b": [True, False, True],
            "year": 2024,
        }
    )
    return Codec(Schema.infer(frame))


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("n", 3, [[3]]),
        ("n", [3, 4.0], [[3], [4]]),
        ("s", "b", [[1]]),
        ("s", ["a", None], [[0], [np.nan]]),
        ("s", None, [[np.nan]]),
        ("s", pd.Series(["a"], dtype="category"), [[0]]),
        ("t", "2024-01-03 12:00", [[2, 43200]]),
        ("t", pd.Timestamp("2024-01-03 11:00", tz="UTC"), [[2, 43200]]),
        ("d", ["3h", pd.Timedelta(hours=4)], [[10800], [14400]]),
        ("b", True, [[1]]),
        ("b", np.array([False, True]), [[0], [1]]),
    ],
    ids=str,
)
def test_cells_of_a_condition(conditions, name, values, expected):
    assert np.array_equal(conditions.encode_cells(name, values), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("m", 3, "there is no column 'm'; there are 'n', 's'"),
        ("year", 2024, r"column 'year' cannot be given: it is constant \(all values are equal\)"),
        ("n", None, "column 'n' cannot be missing"),
        ("n", 1.5, r"column 'n' cannot be 1.5: it holds numbers from 0 to inf in steps of 1"),
        ("n", "3", "column 'n': expected numbers, got text"),
        ("n", -1, "column 'n' cannot be -1"),
        ("s", "c", "column 's' cannot be 'c': its levels are 'a', 'b'"),
        ("s", 1, "column 's': its levels are strings, got numbers"),
        ("t", "tomorrow-ish", "column 't': 'tomorrow-ish' is not readable as times"),
        ("d", "soon", "column 'd': 'soon' is not readable as times"),
    ],
    ids=str,
)
def test_cells_that_cannot_be(conditions, name, values, message):
    with pytest.raises(ValueError, match=message):
        conditions.encode_cells(name, values)
