"""`--safe-csv`: what a spreadsheet would take for a formula is text, and nothing else changes."""

import csv

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.tables.frames.read_write import defused, write_table
from helpers import run

FORMULAS = [
    "=1+1",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\tx",
    "\r=1",
    "\n=1",
    "＝1+1",
    "-cmd|' /C calc'!A0",
    "+",
    "-",
    "- 5",
    "-1 days=1",
]
PLAIN = ["a", "", " =1", "'=1", "1-2", "-5", "+1.5", "-1,5", "-.5e-3", "-1 days +02:00:00", "2024-01-01", "a=b"]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_get_a_quote(text):
    assert defused(pd.DataFrame({"c": [text]}))["c"].tolist() == [f"'{text}"]


@pytest.mark.parametrize("text", PLAIN)
def test_other_texts_stay(text):
    assert defused(pd.DataFrame({"c": [text]}))["c"].tolist() == [text]


def test_columns_of_every_type_and_names():
    frame = pd.DataFrame(
        {
            "=n": [-1, 2],
            "x": [-1.5, np.nan],
            "t": pd.to_timedelta([-1, 2], "h"),
            "d": pd.to_datetime(["2024-01-01", None]),
            "b": pd.array([True, None], dtype="boolean"),
            "c": pd.Categorical(["=1", None]),
            "o": pd.Series(["@a", 3], dtype=object),
            7: ["-b", "c"],
        }
    )
    out = defused(frame)
    assert list(out.columns) == ["'=n", "x", "t", "d", "b", "c", "o", 7]
    pd.testing.assert_frame_equal(out.iloc[:, 1:5], frame.iloc[:, 1:5])
    assert out["c"].tolist()[0] == "'=1"
    assert pd.isna(out["c"].iloc[1])
    assert (out["o"].tolist(), out[7].tolist()) == (["'@a", 3], ["'-b", "c"])
    twice = defused(pd.DataFrame([["=1", 1.0]], columns=["a", "a"]))
    assert (list(twice.columns), twice.iloc[0, 0]) == (["a", "a"], "'=1")


def test_the_command_line_defuses_on_request_alone(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"=HYPERLINK()": rng.choice(["=1+1", "@x", "ok"], 60), "n": rng.integers(-9, 9, 60)})
    member = flowlab.Member("mixed", "none", steps=3, hidden=(4,), trees=2)
    model = flowlab.FlowDensity(members=[member], validation=0.0, random_state=0).fit(frame)
    model.save(tmp_path / "m.flow")
    holes = frame.head(9).assign(n=frame["n"].astype("Int64"))
    holes.loc[3, "n"] = pd.NA
    write_table(holes, tmp_path / "t.csv")
    for line in (
        ("sample", tmp_path / "m.flow", "-n", 30),
        ("impute", tmp_path / "m.flow", tmp_path / "t.csv"),
        ("score", tmp_path / "m.flow", tmp_path / "t.csv", "--keep", "all"),
    ):
        tables = []
        for options in ((), ("--safe-csv",)):
            assert run(monkeypatch, capsys, *line, "-o", tmp_path / "out.csv", *options)[0] == 0
            with open(tmp_path / "out.csv", newline="") as file:
                tables.append(list(csv.reader(file)))
        raw, safe = tables
        assert raw[0][0] == "=HYPERLINK()"
        assert not any(cell.startswith(("=", "@")) for row in safe for cell in row)
        assert any(cell.startswith("'@") for row in safe for cell in row)
        assert [
            [cell.removeprefix("'") for cell in row] for row in safe
        ] == raw  # numbers, below zero too, are the same
    code, _, errors = run(monkeypatch, capsys, *line, "-o", tmp_path / "out.parquet", "--safe-csv")
    assert code == 1
    assert "--safe-csv is for files of text" in errors
