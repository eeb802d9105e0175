"""What the command line makes of the files that people have: guessed, as asked, and by a fitted model's types."""

import gzip
import io
from datetime import date, time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shell import run

import flowlab
from flowlab.command.tables import Reading
from flowlab.command.words import in_shell, names_of, split
from flowlab.tables.io import Format, read_file, write_table
from flowlab.tables.reading import frame_of

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


def text_file(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def read(path, *, known=None, asked=None, **form):
    return frame_of(read_file(path, Format(**form)), known=known, asked=asked)


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


CELLS = {  # cells of a column -> the type that they are read as, and a word of the note on it
    ("1", "2", "3"): ("int64", ""),
    ("+1", "-2", "3"): ("int64", ""),
    ("1", "", "3"): ("Int64", ""),
    ("1", "NA", "n/a"): ("Int64", "count as missing"),
    ("1.5", "nan", "2"): ("float64", "count as missing"),
    ("1e3", ".5", "2."): ("float64", ""),
    (" 1", "2 ", "3"): ("int64", ""),
    ("99999999999999999999", "1", "2"): ("str", "more digits"),
    ("00501", "02116", "94105"): ("str", "lose their zeros"),
    ("NA", "ZA", "DE"): ("str", "--missing NA makes them missing"),
    ("None", "Some", ""): ("str", "--missing None"),
    ("true", "False", "TRUE"): ("bool", ""),
    ("true", "", "false"): ("boolean", ""),
    ("2020-01-31", "2020-02-01", "9999-12-31"): ("datetime64[s]", ""),
    ("2020-01-31", "", "NaN"): ("datetime64[s]", "count as missing"),
    ("2020-01-31 10:00", "2020-01-31 10:00:05", "2020-01-31"): ("datetime64[s]", ""),
    ("2020-01-31T10:00:00.5", "2020-01-31", "2020-01-31"): ("datetime64[ms]", ""),
    ("2020-01-31T10:00Z", "2020-01-31 10:00+02:00", "2020-01-31 10:00-0500"): ("datetime64[s, UTC]", ""),
    ("2020-02-30", "2020-02-01", "2020-02-02"): ("str", "days that do not exist"),
    ("2020-01-31T10:00Z", "2020-01-31 10:00", "2020-01-31"): ("str", "some without"),
    ("1 days 02:00:00", "0 days", "-1 days +23:00:00"): ("timedelta64[s]", ""),
    ("P1DT2H", "PT5M", "PT0.25S"): ("timedelta64[ms]", ""),
    ("31.03.2020", "1.4.2020", "2.4.2020"): ("str", "--dtype 'a b'=date"),
    ("03/31/2020", "04/01/2020", "04/02/2020"): ("str", "--dtype 'a b'=date"),
    ("03/04/2020", "01/01/2020", "02/01/2020"): ("str", "--dtype 'a b'=%d/%m/%Y or --dtype 'a b'=%m/%d/%Y"),
    ("3 Mar 2020", "4 Apr 2020", "5 May 2020"): ("str", "--dtype 'a b'=date"),
    ("$1,658.18", "$5.00", "$7"): ("str", "--dtype 'a b'=number"),
    ("15%", "3 %", "100%"): ("str", "--dtype 'a b'=number"),
    ("1,234", "5,678,901", "7"): ("str", "--dtype 'a b'=number"),
    ("€ 5", "-€6.5", "7 EUR"): ("str", "--dtype 'a b'=number"),
    ("9:30", "10:00", "23:59:59"): ("str", "--dtype 'a b'=duration"),
    ("1", "2", "3", "4", "?"): ("str", "--missing '?' makes these missing"),
    ("a", "b", "c"): ("str", ""),
    ("KLM 45", "BAW 12", "DLH 7"): ("str", ""),
}


@pytest.mark.parametrize(("cells", "expected"), CELLS.items(), ids=[" ".join(cells)[:24] for cells in CELLS])
def test_what_cells_are_taken_for(tmp_path, cells, expected):
    frame = pd.DataFrame({"a b": cells, "x": range(len(cells))}, dtype=object)
    frame.to_csv(tmp_path / "t.csv", index=False)
    found, notes = read(tmp_path / "t.csv")
    dtype, note = expected
    assert str(found["a b"].dtype) == str(pd.Series(["x"]).dtype if dtype == "str" else dtype)
    assert note in " ".join(notes)
    assert bool(note) == bool(notes)
    if dtype == "str":
        assert found["a b"].fillna("").tolist() == list(cells)


@pytest.mark.parametrize(
    ("cells", "kind", "expected"),
    [
        (["$1,658.18", "($3.00)", ""], "number", [1658.18, -3.0, None]),
        (["1.234,50", "7", "3,5"], "number", [1234.5, 7.0, 3.5]),
        (["15%", "3 %", "NA"], "number", [15, 3, None]),
        (["00501", "2", "3"], "number", [501, 2, 3]),
        (["99999999999999999999", "2", "3"], "number", [1e20, 2.0, 3.0]),
        (["yes", "no", "Y"], "boolean", [True, False, True]),
        (["0", "1", ""], "boolean", [False, True, None]),
        (["31.03.2020", "1.4.2020", ""], "date", [pd.Timestamp("2020-03-31"), pd.Timestamp("2020-04-01"), None]),
        (["03/04/2020", "01/01/2020", ""], "%m/%d/%Y", [pd.Timestamp("2020-03-04"), pd.Timestamp("2020-01-01"), None]),
        (["9:30", "10:00:30", ""], "duration", [pd.Timedelta(hours=9.5), pd.Timedelta(seconds=36030), None]),
        (["1", "NA", "3"], "text", ["1", "NA", "3"]),
    ],
)
def test_columns_are_read_as_asked(tmp_path, cells, kind, expected):
    pd.DataFrame({"a": cells, "b": range(3)}).to_csv(tmp_path / "t.csv", index=False)
    found, notes = read(tmp_path / "t.csv", asked={"a": kind})
    assert [None if pd.isna(v) else v for v in found["a"]] == expected
    assert notes == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("number", "column 'a' of .* cannot be read as numbers: 'x' in row 2 is none"),
        ("boolean", "true or false: '03/04/2020' in row 1"),
        ("date", "days or times"),
        ("%d.%m.%Y", "days or times by the format %d.%m.%Y: '03/04/2020' in row 1"),
        ("duration", "durations"),
    ],
)
def test_what_cannot_be_read_as_asked_is_named(tmp_path, kind, message):
    first = "5" if kind == "number" else "03/04/2020"
    text_file(tmp_path / "t.csv", f"a,b\n{first},1\nx,2\n")
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "t.csv", asked={"a": kind})


def test_days_that_can_be_read_in_two_ways_are_not_guessed(tmp_path):
    text_file(tmp_path / "t.csv", "a,b\n03/04/2020,1\n05/06/2020,2\n")
    with pytest.raises(ValueError, match="say which with --dtype a=%d/%m/%Y or --dtype a=%m/%d/%Y"):
        read(tmp_path / "t.csv", asked={"a": "date"})


@pytest.mark.parametrize(
    ("text", "encoding", "form", "expected"),
    [
        ("a;b\n1,5;x\n2;y\n", "utf-8", {}, [1.5, 2.0]),
        ("a;b\n1.5;x\n2;y\n", "utf-8", {}, [1.5, 2.0]),
        ("a\tb\n1,5\tx\n2\ty\n", "utf-8", {}, [1.5, 2.0]),
        ("a|b\n1|x\n2|y\n", "utf-8", {}, [1, 2]),
        ('a,b\n"1,5",x\n"2,25",y\n', "utf-8", {}, [1.5, 2.25]),
        ("a:b\n1:x\n2:y\n", "utf-8", {"sep": ":"}, [1, 2]),
        ("a;b\n1,234;x\n2,345;y\n", "utf-8", {"decimal": ","}, [1.234, 2.345]),
        ("a,b\r\n1,ö\r\n2,y\r\n", "utf-8-sig", {}, [1, 2]),
        ("a,b\n1,ö\n2,y\n", "utf-16", {}, [1, 2]),
        ("a,b\n1,ö\n2,y\n", "utf-16-le", {"encoding": "utf-16-le"}, [1, 2]),
        ("a,b\n1,ö\n2,y\n", "cp1252", {"encoding": "cp1252"}, [1, 2]),
        ("a,b\n-999,ö\n2,-999\n", "utf-8", {"missing": ("-999",)}, [None, 2]),
        ("a,b\n-999.0,ö\n2,-999\n", "utf-8", {"missing": ("-999",)}, [None, 2]),
        ('a,b\n1,\'x\n2,"y\nz"\n', "utf-8", {}, [1, 2]),
    ],
)
def test_files_of_text(tmp_path, text, encoding, form, expected):
    found, _ = read(text_file(tmp_path / "t.csv", text, encoding), **form)
    assert [None if pd.isna(v) else v for v in found["a"]] == expected
    if "ö" in text:
        assert found["b"].iloc[0] == "ö"
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode(encoding)))
    pd.testing.assert_frame_equal(read(tmp_path / "t.csv.gz", **form)[0], found)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a,b\n1,\xfc\n", "byte 0xfc in line 2. Name its encoding: with --encoding cp1252 .* reads '1,ü'"),
        ("a,b\n1,2\n".encode("utf-16-le"), "--encoding utf-16-le"),
        (b"", "it is empty"),
        (b"a,b\n1,2\n3\n", "row 3: Expected 2 columns, got 1.*--sep names another"),
        (b"a;b\n1;2\n3;4;5\n", "Expected 2 columns, got 3"),
        (b"a,a\n1,2\n", "several columns have the same name 'a'"),
        (b'a,b\n"x,2\n3,4\n', "Expected 2 columns"),
        (b"a,b\n1,\x00\xff\n", "no text in UTF-8"),
    ],
)
def test_files_that_cannot_be_read_say_what_to_do(tmp_path, data, message):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "t.csv")


def test_files_that_are_no_tables(tmp_path):
    for name in ("t.parquet", "t.csv.gz", "t.csv.zst", "t.csv.xz"):
        (tmp_path / name).write_bytes(b"no such thing")
        with pytest.raises(ValueError, match=f"{name} cannot be read as a"):
            read_file(tmp_path / name)
    with pytest.raises(ValueError, match="must end in one of"):
        read_file(tmp_path / "t.xlsx")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_file(tmp_path / "d.csv")


def test_a_cell_of_ten_megabytes_and_a_header_without_names(tmp_path):
    text_file(tmp_path / "t.csv", f",b\n{'x' * 10_000_000},1\ny,2\n")
    found, _ = read(tmp_path / "t.csv")
    assert found.columns.tolist() == ["Unnamed: 0", "b"]
    assert len(found.iloc[0, 0]) == 10_000_000


def test_parquet_columns_of_every_type(tmp_path):
    table = pa.table(
        {
            "day": pa.array([date(2024, 1, 1), None, date(2024, 1, 3)]),
            "money": pa.array([Decimal("1.10"), None, Decimal("2.20")], pa.decimal128(10, 2)),
            "lasts": pa.array([1, 2, None], pa.duration("s")),
            "category": pa.array(["a", "b", None]).dictionary_encode(),
            "large": pa.array(["a", "NA", None], pa.large_string()),
            "nan": pa.array([1.0, np.nan, None]),
            "half": pa.array(np.array([1, 2, 3], dtype="float16")),
            "__index_level_0__": pa.array([5, 6, 7]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    found, _ = read(tmp_path / "t.parquet")
    assert [str(t) for t in found.dtypes][:3] == ["datetime64[s]", "float64", "timedelta64[s]"]
    assert isinstance(found["category"].dtype, pd.CategoricalDtype)
    assert found["large"].tolist()[:2] == ["a", "NA"]
    assert found["nan"].isna().tolist() == [False, True, True]
    assert "__index_level_0__" not in found
    odd = {
        "t": pa.array([time(9, 30), None]),
        "wide": pa.array([Decimal("12345678901234567.5"), None]),
        "list": pa.array([[1], None]),
        "bytes": pa.array([b"x", None]),
    }
    for name, message in {
        "t": "--dtype t=duration",
        "wide": "--dtype wide=number rounds it",
        "list": "--exclude list",
        "bytes": "--exclude bytes",
    }.items():
        pq.write_table(pa.table({name: odd[name], "x": [1, 2]}), tmp_path / "odd.parquet")
        with pytest.raises(ValueError, match=f"column '{name}'") as stop:
            read(tmp_path / "odd.parquet")
        assert message in in_shell(str(stop.value))
    pq.write_table(pa.table({name: odd[name] for name in ("t", "wide")}), tmp_path / "odd.parquet")
    found, _ = read(tmp_path / "odd.parquet", asked={"t": "duration", "wide": "number"})
    assert found["t"].iloc[0] == pd.Timedelta(hours=9.5)
    assert found["wide"].iloc[0] == 12345678901234567.5


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
    options = ("--text", "code", "--dtype", "day=date", "--exclude", "id", "-o", tmp_path / "s.json")
    code, out, _ = run(monkeypatch, capsys, "schema", table, *options)
    assert code == 0
    assert "id      excluded" in out
    arguments = ("fit", table, "-o", tmp_path / "m.flow", "--schema", tmp_path / "s.json", "--effort", "fast")
    assert run(monkeypatch, capsys, *arguments, "--time-limit", 1, "--quiet")[:2] == (0, "")
    model = flowlab.load(tmp_path / "m.flow")
    assert {c.name: c.kind for c in model.schema_} == {"zip": "categorical", "code": "categorical", "day": "datetime"}
    assert set(model.sample(20, random_state=0)["code"]) == {"1", "2"}


def test_an_excluded_column_leaves_numbers_to_the_model_of_numbers(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 2)), columns=["a", "b"]).assign(user=[f"u{i}" for i in range(60)])
    frame.to_csv(tmp_path / "t.csv", index=False)
    arguments = ("fit", "-", "-o", tmp_path / "m.flow", "--exclude", "user", "--effort", "fast", "--time-limit", 1)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "t.csv").read_bytes())))
    assert run(monkeypatch, capsys, *arguments, "-q")[0] == 0
    assert flowlab.load(tmp_path / "m.flow").table_ is None
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
        assert run(monkeypatch, capsys, *arguments)[0] == 0
        assert np.isfinite(pd.read_csv(tmp_path / "s.csv")["log_prob"]).all()
    assert pd.read_csv(tmp_path / "rows.csv").shape == (9, 2)
    if library != "array":
        assert pa.types.is_decimal(pq.read_table(tmp_path / "rows.parquet").schema.field("x0").type)


def test_words_of_the_shell():
    assert names_of(["a, b", '"c,d"', ""]) == ["a", "b", "c,d"]
    assert split("a='x, y',b=it's,c=1", ",") == ["a='x, y'", "b=it's", "c=1"]
    said = in_shell("column 'a b' is of type period: convert it with .dt.to_timestamp(), or schema={'a b': 'excluded'}")
    assert said == "column 'a b' is of type period: convert it in the file, or --exclude 'a b'"
    assert in_shell("column 'n' holds integers: make it a string if it is one") == (
        "column 'n' holds integers: read it with --dtype n=text if it is one"
    )
    assert in_shell('imputation needs FlowDensity(members=["mixed"])') == "imputation needs fit with --members mixed"
