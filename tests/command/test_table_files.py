"""Columns and files of tables: guessed, as asked, refused with advice; and the words of the shell."""

import gzip
from datetime import date, time
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowlab.command.reading import frame_of
from flowlab.command.words import in_shell, names_of, split
from flowlab.tables.frames.read_write import Format, read_file, write_table
from helpers import text_file


def read(path, *, known=None, asked=None, **form):
    return frame_of(read_file(path, Format(**form)), known=known, asked=asked)


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
        ("a\n1,5\n2,5\n", "utf-8", {"decimal": ","}, [1.5, 2.5]),
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
        (b'a,b\n"x,2\n3,4\n', "the quotation mark in line 2 is never closed"),
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


def test_words_of_the_shell():
    assert names_of(["a, b", '"c,d"', ""]) == ["a", "b", "c,d"]
    assert split("a='x, y',b=it's,c=1", ",") == ["a='x, y'", "b=it's", "c=1"]
    said = in_shell("column 'a b' is of type period: convert it with .dt.to_timestamp(), or schema={'a b': 'excluded'}")
    assert said == "column 'a b' is of type period: convert it in the file, or --exclude 'a b'"
    assert in_shell("column 'n' holds integers: make it a string if it is one") == (
        "column 'n' holds integers: read it with --dtype n=text if it is one"
    )
    assert in_shell('is off. Fit with members=["mixed"] for this') == "is off. Fit with --members mixed for this"
    assert in_shell('fit with members=["copula", "broad"], or').startswith("fit with --members autoregressive,mixture,")
    assert in_shell("column 'a,b' is bad: leave it out with schema={'a,b': 'excluded'}").endswith("--exclude '\"a,b\"'")
    both = "\n".join(f"Leave it out with schema={{{n!r}: 'excluded'}}, or not" for n in ("a", "b c"))
    assert in_shell(both).splitlines()[-1] == "All of them are left out with --exclude a,'b c'"


@pytest.mark.parametrize("cell", ["a\rb", "\r", "a\r\nb", "\n", "a\n\rb", '"\r"', ",\r", "\ta"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz"])
def test_cells_with_line_breaks_come_back_as_they_were(tmp_path, cell, ending):
    frame = pd.DataFrame({"c": [cell, "x", cell], "n": [1, 2, 3], "d": ["y", cell, "z"]})
    write_table(frame, tmp_path / f"t.{ending}")
    back = read_file(tmp_path / f"t.{ending}").table.to_pydict()
    assert back == {"c": frame["c"].tolist(), "n": ["1", "2", "3"], "d": frame["d"].tolist()}
