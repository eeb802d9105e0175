"""What the command line makes of the files that people have: by a fitted model's types, and what it writes of them."""

import io
import json
from datetime import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flowlab
from flowlab.command.given import read_given
from flowlab.command.tables import Reading, columns_of
from flowlab.tables.frames.read_write import write_table
from helpers import run, text_file

ROWS = 120


def fitted(frame) -> flowlab.FlowDensity:
    member = flowlab.Member("mixed", "none", steps=10, hidden=(8,))
    return flowlab.FlowDensity(members=[member], random_state=0).fit(frame)


def holes(values, rng, kind=None):
    """Values of which some are missing."""
    kept = [None if gone else value for value, gone in zip(list(values), rng.random(len(values)) < 0.2)]
    return kept if kind is None else pd.array(kept, dtype=kind)


def every_kind(n: int = ROWS) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    start = pd.Timestamp("2024-03-01")
    hours = pd.to_timedelta(rng.integers(0, 3000, n), "h")
    frame = pd.DataFrame(
        {
            "category": pd.Categorical(rng.choice(["a", "b", "c"], n)),
            "ordered": pd.Categorical(rng.choice(["lo", "hi"], n), categories=["lo", "mid", "hi"], ordered=True),
            "numbered": pd.Categorical(rng.choice([1, 2, 5], n)),
            "flag": rng.random(n) < 0.5,
            "flag or not": holes((rng.random(n) < 0.5).tolist(), rng, "boolean"),
            "objects": pd.Series(holes((rng.random(n) < 0.5).tolist(), rng), dtype=object),
            "count": rng.integers(0, 50, n),
            "small": rng.integers(0, 50, n).astype("uint8"),
            "count or not": holes(rng.integers(0, 50, n).tolist(), rng, "Int64"),
            "day": start + pd.to_timedelta(rng.integers(0, 300, n), "D"),
            "day or not": pd.to_datetime(holes(pd.date_range("2024-01-01", periods=n).tolist(), rng)),
            "zone": (start + hours).tz_localize("UTC").tz_convert("Europe/Berlin"),
            "time": start + pd.to_timedelta(rng.integers(0, 10**9, n), "ms"),
            "lasts": pd.to_timedelta(rng.integers(0, 10**6, n), "s"),
            "digits": rng.choice(["001", "02", "7"], n),
            "code": rng.choice(["1", "2", "3"], n),
            "country": rng.choice(["NA", "ZA", "None", "", "nan"], n),
            "text": pd.Series(holes(rng.choice(["x", "NA"], n), rng)).astype("str"),
            "quoted": rng.choice(["a,b", 'c "q"', "d\ne", " f ", "g;h"], n),
            "float": rng.normal(size=n),
            "single": rng.normal(size=n).astype("float32"),
            "price": rng.normal(100, 5, n).round(2),
            "same": "k",
            "nothing": np.nan,
        }
    )
    frame["copy"] = frame["category"].astype(str).map({"a": "A1", "b": "B1", "c": "C1"})
    frame["twice"] = frame["price"] * 2
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    fitted(every_kind()).save(folder / "every.flow")
    return folder


@pytest.fixture(scope="module")
def model(folder) -> flowlab.FlowDensity:
    return flowlab.load(folder / "every.flow")


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "csv.gz", "tsv.bz2", "csv.xz", "csv.zst"])
def test_what_a_model_drew_is_read_back_as_it_was(model, tmp_path, ending):
    drawn = model.sample(60, random_state=1)
    write_table(drawn, tmp_path / f"rows.{ending}")
    back, _ = Reading.of().read_for(model, tmp_path / f"rows.{ending}")
    pd.testing.assert_frame_equal(back, drawn)
    assert np.array_equal(model.score_samples(back), model.score_samples(drawn))


def test_sample_score_impute_in_the_shell(folder, monkeypatch, capsys):
    for arguments in (
        ("sample", folder / "every.flow", "-n", 40, "-o", folder / "n.csv"),
        ("score", folder / "every.flow", folder / "n.csv", "-o", folder / "s.csv", "--keep", "code, day"),
        ("impute", folder / "every.flow", folder / "n.csv", "-o", folder / "i.csv"),
    ):
        code, out, errors = run(monkeypatch, capsys, *arguments)
        assert (code, errors) == (0, "")
        assert "note" not in out
    scores = pd.read_csv(folder / "s.csv", dtype=str)
    assert scores.columns.tolist() == ["code", "day", "log_prob"]
    assert scores["log_prob"].astype(float).between(-1e6, 1e6).all()
    assert "cells of 40 rows filled" in out


@pytest.mark.parametrize(
    "said",
    [
        "ordered=lo:hi",
        "count=5:30",
        "zone=2024-03-05 10:00:2024-06-01",
        "lasts=0:00:4 days",
        "twice=150:250",
        "code=1|2",
    ],
)
def test_conditions_of_every_kind_hold(model, said):
    given = read_given([said], columns_of(model))
    rows = model.sample(20, random_state=0, given=given)
    ((name, wish),) = given.items()
    if name == "zone":
        wish = tuple(pd.Timestamp(end, tz="Europe/Berlin") for end in wish)
    elif name == "lasts":
        wish = tuple(map(pd.Timedelta, wish))
    assert (
        rows[name].isin(wish).all()
        if isinstance(wish, list)
        else ((rows[name] >= wish[0]) & (rows[name] <= wish[1])).all()
    )


def test_parquet_with_slightly_other_types_is_read_by_the_models(model, tmp_path):
    drawn = model.sample(60, random_state=2)
    table = pa.Table.from_pandas(drawn, preserve_index=False)
    for name, kind in {
        "count": pa.float64(),
        "small": pa.decimal128(20, 2),
        "count or not": pa.float32(),
        "day": pa.date32(),
        "day or not": pa.date64(),
        "category": pa.large_string(),
        "numbered": pa.int32(),
        "flag": pa.int8(),
        "flag or not": pa.string(),
        "code": pa.int64(),
        "time": pa.string(),
        "zone": pa.timestamp("ms", "UTC"),
        "nothing": pa.null(),
        "copy": pa.dictionary(pa.int32(), pa.string()),
    }.items():
        column = table[name]
        if name == "nothing":
            column = pa.nulls(len(table))
        elif pa.types.is_dictionary(kind):
            column = column.dictionary_encode()
        else:
            column = column.cast(kind, safe=False)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "other.parquet")
    back, _ = Reading.of().read_for(model, tmp_path / "other.parquet")
    pd.testing.assert_frame_equal(back.drop(columns="nothing"), drawn.drop(columns="nothing"))
    assert np.array_equal(model.score_samples(back), model.score_samples(drawn))


def test_new_rows_are_read_by_the_fitted_types_whatever_they_look_like(model, tmp_path):
    drawn = model.sample(3, random_state=3)
    few = drawn.astype(object).where(drawn.notna(), "")
    few["code"], few["digits"], few["country"], few["text"] = ["1", "2", "3"], ["001", "02", "7"], "NA", ["NA", "", "x"]
    few["flag"], few["flag or not"], few["count or not"] = ["true", "0", "False"], ["TRUE", "", "1.0"], ["", "NaN", "7"]
    few["price"], few["twice"] = ["$1,658.18", "12", "100"], ["3316.36", "24", "200"]
    few["day"], few["day or not"], few["lasts"] = ["31.03.2024", "1.4.2024", "2.4.2024"], "", ["2:30", "1 days", "PT1H"]
    few["zone"] = ["2024-04-01 10:00", "2024-04-01T08:00Z", "2024-04-01 10:00"]
    few.to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(
        ValueError, match=r"column 'zone' of .*few.csv cannot .* times, some with a zone and some without"
    ):
        Reading.of().read_for(model, tmp_path / "few.csv")
    few["zone"] = ["2024-04-01 10:00", "2024-04-01 11:00", "2024-04-01 12:00"]
    few.assign(extra=range(3)).to_csv(tmp_path / "few.csv", index=False)
    back, _ = Reading.of().read_for(model, tmp_path / "few.csv")
    assert back["code"].tolist() == ["1", "2", "3"]
    assert back["digits"].tolist() == ["001", "02", "7"]
    assert back["country"].tolist() == ["NA"] * 3
    assert back["text"].isna().tolist() == [False, True, False]
    assert back["flag"].tolist() == [True, False, False]
    assert back["flag or not"].isna().tolist() == [False, True, False]
    assert back["count or not"].isna().tolist() == [True, True, False]
    assert back["price"].tolist() == [1658.18, 12.0, 100.0]
    assert back["day"].tolist() == [pd.Timestamp("2024-03-31"), pd.Timestamp("2024-04-01"), pd.Timestamp("2024-04-02")]
    assert back["day or not"].isna().all()
    assert back["lasts"].dt.total_seconds().tolist() == [9000, 86400, 3600]
    assert str(back["zone"].iloc[0]) == "2024-04-01 10:00:00+02:00"
    assert back.dtypes.drop("price").equals(drawn.dtypes.drop("price"))
    few["count"] = ["many", "1", "2"]
    few.to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(ValueError, match=r"column 'count' of .* cannot be read as numbers: 'many' in row 1 is none"):
        Reading.of().read_for(model, tmp_path / "few.csv")


def test_columns_that_rules_compute_and_labels_that_are_no_strings(tmp_path):
    rng = np.random.default_rng(0)
    low = pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 99, 80), "D")
    frame = pd.DataFrame({"low": low, "a": rng.integers(1, 9, 80), "city": rng.choice(["01", "02"], 80)})
    frame["high"], frame["area"] = frame["low"] + pd.Timedelta(days=3), frame["city"] + "0"
    frame["double"] = frame["a"] * 2
    rules = ["low <= high", "double = a * 2", flowlab.FixedCombinations(["city", "area"])]
    member = flowlab.Member("mixed", "none", steps=5, hidden=(8,))
    model = flowlab.FlowDensity(members=[member], rules=rules, random_state=0).fit(frame)
    write_table(model.sample(20, random_state=0), tmp_path / "rows.csv")
    back, _ = Reading.of().read_for(model, tmp_path / "rows.csv")
    pd.testing.assert_frame_equal(back, model.sample(20, random_state=0))
    plain = flowlab.FlowDensity(members=[member], random_state=0).fit(frame[["a", "city"]].set_axis([0, 1], axis=1))
    text_file(tmp_path / "labels.csv", "0,1\n3,01\n4,02\n")
    back, _ = Reading.of().read_for(plain, tmp_path / "labels.csv")
    assert back[1].tolist() == ["01", "02"]
    assert np.isfinite(plain.score_samples(back)).all()


def test_impute_leaves_all_else_as_it_is_in_the_file(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    rows = ["id;zip;income;day;flag;note;share"]
    for i in range(150):
        cells = [f"k{i:03}", rng.choice(["00501", "94105"]), f"{rng.integers(1, 20)}.{rng.integers(100, 999)},50"]
        cells += [f"{rng.integers(1, 28):02}.03.2020", rng.choice(["yes", "no"]), '"a ; b"', f"{rng.integers(0, 99)} %"]
        rows.append(";".join("" if j in (1, 2, 3, 4) and rng.random() < 0.2 else str(c) for j, c in enumerate(cells)))
    table = text_file(tmp_path / "t.csv", "\n".join([*rows, "k;;;;;;"]) + "\n")
    options = ("--dtype", "income=number,day=date,flag=boolean", "--dtype", "share=number", "--exclude", "id,note")
    arguments = ("fit", table, "-o", tmp_path / "m.flow", *options, "--effort", "fast", "--time-limit", 1)
    code, out, errors = run(monkeypatch, capsys, *arguments)
    assert (code, errors) == (0, "")
    assert "note: columns are separated by ';'" in out
    code, out, errors = run(monkeypatch, capsys, "impute", tmp_path / "m.flow", table, "-o", tmp_path / "i.csv")
    assert (code, errors) == (0, "")
    before, after = (
        pd.read_csv(tmp_path / name, sep=";", dtype=str, keep_default_na=False) for name in ("t.csv", "i.csv")
    )
    assert after.columns.equals(before.columns)
    untouched = before != ""
    assert after.where(untouched, "").equals(before)
    filled = before.eq("") & after.ne("")
    assert filled.sum().drop(["id", "note"]).gt(0).all()
    assert f"{filled.to_numpy().sum()} cells of 151 rows filled, 1 left in columns that are not modelled" in out
    assert set(after["zip"]) == {"00501", "94105"}
    assert set(after["flag"]) == {"yes", "no"}
    run(monkeypatch, capsys, "impute", tmp_path / "m.flow", table, "-o", tmp_path / "i.parquet")
    typed = pd.read_parquet(tmp_path / "i.parquet")
    assert typed.columns.equals(before.columns)
    assert str(typed["day"].dtype).startswith("datetime64")
    assert not typed.drop(columns="note").isna().any().any()
    code, out, _ = run(
        monkeypatch, capsys, "impute", tmp_path / "m.flow", tmp_path / "i.parquet", "-o", tmp_path / "j.parquet"
    )
    assert "0 cells of 151 rows filled, 1 left" in out
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "j.parquet"), typed)


def test_fit_by_a_schema_reads_what_the_schema_says(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    rows = [
        f"{rng.choice(['00501', '94105'])},{rng.choice(['1', '2'])},{rng.integers(1, 28):02}.03.2020,{i}"
        for i in range(90)
    ]
    table = text_file(tmp_path / "t.csv", "\n".join(["zip,code,day,id", *rows]) + "\n")
    options = ("--text", "code", "--exclude", "id", "-o", tmp_path / "s.json")
    code, out, _ = run(monkeypatch, capsys, "schema", table, *options)
    assert code == 0
    assert "id      excluded" in out
    edited = json.loads((tmp_path / "s.json").read_text())
    next(column for column in edited["columns"] if column["name"] == "day")["kind"] = "datetime"
    (tmp_path / "s.json").write_text(json.dumps(edited))
    arguments = ("fit", table, "-o", tmp_path / "m.flow", "--schema", tmp_path / "s.json", "--effort", "fast")
    assert run(monkeypatch, capsys, *arguments, "--time-limit", 1, "--quiet")[:2] == (0, "")
    model = flowlab.load(tmp_path / "m.flow")
    assert {c.name: c.kind for c in model.schema_} == {"zip": "categorical", "code": "categorical", "day": "datetime"}
    rows = model.sample(20, random_state=0)
    assert set(rows["code"]) == {"1", "2"}
    assert rows["day"].dt.month.eq(3).all()


def test_an_excluded_column_leaves_numbers_to_the_model_of_numbers(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 2)), columns=["a", "b"]).assign(user=[f"u{i}" for i in range(60)])
    frame.to_csv(tmp_path / "t.csv", index=False)
    arguments = ("fit", "-", "-o", tmp_path / "m.flow", "--exclude", "user", "--effort", "fast", "--time-limit", 1)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "t.csv").read_bytes())))
    assert run(monkeypatch, capsys, *arguments, "-q")[0] == 0
    assert flowlab.load(tmp_path / "m.flow").columns_ is not None
    assert run(monkeypatch, capsys, "score", tmp_path / "m.flow", tmp_path / "t.csv", "-o", tmp_path / "s.csv")[0] == 0


@pytest.mark.parametrize("library", ["array", "polars", "pyarrow"])
def test_sample_of_models_that_were_fitted_to_other_tables(tmp_path, monkeypatch, capsys, library):
    frame = pd.DataFrame({"x0": np.random.default_rng(0).normal(size=80), "x1": ["a", "b"] * 40})
    if library == "array":
        fitted_to = np.column_stack([frame["x0"], np.arange(80) % 7])
    else:
        table = pa.table({"x0": pa.array(frame["x0"].round(2).map(str)).cast(pa.decimal128(8, 2)), "x1": frame["x1"]})
        fitted_to = table if library == "pyarrow" else pytest.importorskip("polars").from_arrow(table)
    model = flowlab.FlowDensity(members=["copula"]) if library == "array" else None
    (model.fit(fitted_to) if model else fitted(fitted_to)).save(tmp_path / "m.flow")
    for name in ("rows.csv", "rows.parquet"):
        code, _, errors = run(monkeypatch, capsys, "sample", tmp_path / "m.flow", "-n", 9, "-o", tmp_path / name)
        assert (code, errors) == (0, "")
        arguments = ("score", tmp_path / "m.flow", tmp_path / name, "-o", tmp_path / "s.csv")
        assert run(monkeypatch, capsys, *arguments)[::2] == (0, "")
        assert np.isfinite(pd.read_csv(tmp_path / "s.csv")["log_prob"]).all()
    assert pd.read_csv(tmp_path / "rows.csv").shape == (9, 2)
    if library != "array":
        assert pa.types.is_decimal(pq.read_table(tmp_path / "rows.parquet").schema.field("x0").type)


@pytest.mark.slow
def test_impute_of_parquet_keeps_its_types(model, folder, tmp_path, monkeypatch, capsys):
    rows = model.sample(20, random_state=4).drop(columns=["objects"]).assign(objects=True)
    for name in ("count", "small", "day", "category", "ordered", "flag", "float", "country"):
        rows[name] = rows[name].astype(object)
        rows.loc[::3, name] = None
    table = pa.Table.from_pandas(rows, preserve_index=False)
    for name, kind in {
        "count": pa.int16(),
        "small": pa.uint8(),
        "day": pa.date32(),
        "category": pa.dictionary(pa.int8(), pa.string()),
        "float": pa.float32(),
    }.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(rows[name].tolist()).cast(kind))
    extra = {
        "money": pa.array([Decimal("12345678901234567.50")] * 20),
        "tags": pa.array([["a"]] * 20),
        "open": pa.array([time(9)] * 20),
    }
    for name, column in extra.items():
        table = table.append_column(name, column)
    pq.write_table(table, tmp_path / "t.parquet")
    for name in ("i.parquet", "i.csv"):
        code, out, errors = run(
            monkeypatch, capsys, "impute", folder / "every.flow", tmp_path / "t.parquet", "-o", tmp_path / name
        )
        assert (code, errors) == (0, "")
        assert "cells of 20 rows filled; written" not in out  # the column "nothing" is filled with nothing
    table, filled = (pq.read_table(tmp_path / name) for name in ("t.parquet", "i.parquet"))
    assert filled.schema.types == table.schema.types
    for name in table.column_names:
        there = table[name].is_valid()
        assert filled[name].filter(there).to_pylist() == table[name].filter(there).to_pylist()
        assert name in ("nothing", "text") or filled[name].null_count == 0 or "or not" in name
    assert "12345678901234567.50" in (tmp_path / "i.csv").read_text()
