"""Dirty files: text in other encodings and shapes, Parquet of every kind, paths that are no files, models of others."""

import bz2
import gzip
import io
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

import flowlab
from dirty.case import Case, ShellError, Step, asked, command, shell, whole_table

ROWS = "1.5,a\n2.25,b\n0.5,a\n" * 20
TABLE = f"x,d\n{ROWS}"
CLEAN = whole_table().to_csv(index=False).encode()


def parquet(**columns):
    """Columns as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), sink)
    return sink.getvalue()


PLAIN = parquet(x=[1.5, 2.25, 0.5] * 20, d=["a", "b", "a"] * 20)


def schema(*fails, name="t.csv", options="", **more):
    """`flowlab schema` of a file."""
    return shell(f"schema {name}{options}", *fails, **more)


def read(says="read", name="t.csv", options="", has="categorical", **files):
    """A file that is read: its column d is found to be of a kind."""
    return shell(f"schema {name}{options}", says=says, check=lambda done: has in done.out, **files)


def in_folder(line, make, *fails, says=""):
    """A command in a folder that `make` prepares."""

    def run():
        make()
        return command(line, {})

    return Step(run, says, None, fails, ShellError, f"flowlab {line}")


TEXT = [
    Case("Text files", "an empty file", shell=schema("t.csv cannot be read as a table: it is empty", t_csv="")),
    Case("Text files", "blank lines alone", shell=schema("t.csv", "empty", t_csv="\n\n\n")),
    Case(
        "Text files",
        "names alone",
        shell=shell("fit t.csv -o m.flow", "at least two rows, the table has 0", t_csv="x,d\n"),
    ),
    Case(
        "Text files",
        "latin-1 that is not named",
        shell=schema("byte 0xfc in line 2", "--encoding cp1252", t_csv="x,d\n1,Zürich\n2,a\n".encode("latin-1")),
    ),
    Case(
        "Text files",
        "latin-1, named",
        shell=read(options=" --encoding latin-1", t_csv=("x,d\n" + "1,Zürich\n2,a\n" * 20).encode("latin-1")),
    ),
    Case(
        "Text files",
        "an encoding that is none",
        shell=schema("--encoding 'klingon' is unknown", "utf-16", options=" --encoding klingon", t_csv=TABLE),
    ),
    Case(
        "Text files",
        "UTF-8 with a byte-order mark",
        shell=read("the mark is no part of the first name", has="\nx ", t_csv=TABLE.encode("utf-8-sig")),
    ),
    Case("Text files", "UTF-16 with a byte-order mark", shell=read(t_csv=TABLE.encode("utf-16"))),
    Case(
        "Text files",
        "UTF-16 without a mark",
        shell=schema("t.csv", "--encoding utf-16-le", t_csv=TABLE.encode("utf-16-le")),
    ),
    Case("Text files", "NUL bytes", shell=read("characters like others", t_csv="x,d\n" + "1.5,a\0b\n2.5,c\n" * 20)),
    Case(
        "Text files",
        "a picture called .csv",
        shell=schema("t.csv", "no text in UTF-8", t_csv=b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    ),
    Case(
        "Text files",
        "a row too short",
        shell=schema("row 3: Expected 2 columns, got 1", "--sep", t_csv="x,d\n1,a\n2\n3,a\n"),
    ),
    Case(
        "Text files",
        "a row too long",
        shell=schema("row 3: Expected 2 columns, got 3", "--sep", t_csv="x,d\n1,a\n2,b,c\n3,a\n"),
    ),
    Case(
        "Text files",
        "a quotation mark that is never closed",
        shell=schema(
            "t.csv cannot be read as a table",
            "the quotation mark in line 2 is never closed",
            t_csv='x,d\n1,"a\n2,b\n' + ROWS,
        ),
    ),
    Case(
        "Text files",
        "a quotation mark in the last rows that is never closed",
        shell=schema("the quotation mark in line 62 is never closed", t_csv=TABLE + '1,"a\n2,b\n'),
    ),
    Case(
        "Text files",
        "inches: a quotation mark within a cell",
        shell=read("a character like others", t_csv=TABLE + '1,5"\n2,b\n'),
    ),
    Case("Text files", "Windows' line ends", shell=read(t_csv=TABLE.replace("\n", "\r\n"))),
    Case("Text files", "old Macintosh's line ends", shell=read(t_csv=TABLE.replace("\n", "\r"))),
    Case("Text files", "no line end at the end", shell=read(t_csv=TABLE.rstrip())),
    Case(
        "Text files",
        "semicolons",
        shell=schema(says="found, with a note", warns="columns are separated by ';'", t_csv=TABLE.replace(",", ";")),
    ),
    Case(
        "Text files",
        "semicolons and decimal commas",
        shell=schema(
            says="found, with notes",
            warns="numbers have decimal commas",
            t_csv=TABLE.replace(",", ";").replace(".", ","),
        ),
    ),
    Case(
        "Text files",
        "bars",
        shell=schema(says="found, with a note", warns="columns are separated by '|'", t_csv=TABLE.replace(",", "|")),
    ),
    Case(
        "Text files",
        "tabs in a file called .csv",
        shell=schema(says="found, with a note", warns="columns are separated by '\\t'", t_csv=TABLE.replace(",", "\t")),
    ),
    Case(
        "Text files",
        "a separator of two characters",
        shell=schema("--sep must be one character", options=" --sep ::", t_csv=TABLE),
    ),
    Case(
        "Text files",
        "one mark for both columns and fractions",
        shell=schema("--sep and --decimal are both ','", options=" --sep , --decimal ,", t_csv=TABLE),
    ),
    Case(
        "Text files",
        "comments before the names",
        shell=schema("Expected 1 columns, got 2", "row 2", t_csv="# made by hand\n" + TABLE),
    ),
    Case("Text files", "packed as .gz", shell=read(name="t.csv.gz", t_csv_gz=gzip.compress(TABLE.encode()))),
    Case(
        "Text files",
        "packed, with a broken end",
        shell=schema(
            "t.csv.gz cannot be read as a .csv.gz file", name="t.csv.gz", t_csv_gz=gzip.compress(TABLE.encode())[:-9]
        ),
    ),
    Case(
        "Text files",
        "not packed, called .gz",
        shell=schema("t.csv.gz cannot be read as a .csv.gz file", name="t.csv.gz", t_csv_gz=TABLE),
    ),
    Case(
        "Text files",
        "packed as .bz2, called .gz",
        shell=schema(
            "t.csv.gz cannot be read as a .csv.gz file", name="t.csv.gz", t_csv_gz=bz2.compress(TABLE.encode())
        ),
    ),
    Case(
        "Text files",
        "packed, called .csv",
        shell=schema("t.csv is no text: it begins like a .gz file", t_csv=gzip.compress(TABLE.encode())),
    ),
    Case(
        "Text files",
        "a spreadsheet",
        shell=schema("t.xlsx must end in one of", ".csv", name="t.xlsx", t_xlsx=b"PK\3\4"),
    ),
    Case("Text files", "a file without a suffix", shell=schema("table must end in one of", name="table", table=TABLE)),
    Case("Text files", "a suffix in capitals", shell=read(name="T.CSV", T_CSV=TABLE)),
]

PARQUET = [
    Case("Parquet files", "plain columns", shell=read(name="t.parquet", t_parquet=PLAIN)),
    Case(
        "Parquet files",
        "an empty file",
        shell=schema("t.parquet cannot be read as a .parquet file", name="t.parquet", t_parquet=b""),
    ),
    Case(
        "Parquet files",
        "cut off",
        shell=schema("t.parquet cannot be read as a .parquet file", name="t.parquet", t_parquet=PLAIN[:-40]),
    ),
    Case(
        "Parquet files",
        "text, called .parquet",
        shell=schema("t.parquet cannot be read as a .parquet file", name="t.parquet", t_parquet=TABLE),
    ),
    Case(
        "Parquet files",
        "Parquet, called .csv",
        shell=schema("t.csv is no text: it begins like a .parquet file", t_csv=PLAIN),
    ),
    Case(
        "Parquet files", "no columns", shell=schema("t.parquet has no columns", name="t.parquet", t_parquet=parquet())
    ),
    Case(
        "Parquet files",
        "no rows",
        shell=shell("fit t.parquet -o m.flow", "at least two rows", t_parquet=parquet(d=pa.array([], pa.float64()))),
    ),
    Case(
        "Parquet files",
        "lists",
        shell=schema("column 'd' is of type list", "--exclude d", name="t.parquet", t_parquet=parquet(d=[[1], [2]])),
    ),
    Case(
        "Parquet files",
        "structs",
        shell=schema(
            "column 'd' is of type struct", "--exclude d", name="t.parquet", t_parquet=parquet(d=[{"a": 1}, {"a": 2}])
        ),
    ),
    Case(
        "Parquet files",
        "maps",
        shell=schema(
            "column 'd' is of type map",
            "--exclude d",
            name="t.parquet",
            t_parquet=parquet(d=pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))),
        ),
    ),
    Case(
        "Parquet files",
        "bytes",
        shell=schema(
            "column 'd' is of type binary", "--exclude d", name="t.parquet", t_parquet=parquet(d=[b"a", b"b"])
        ),
    ),
    Case(
        "Parquet files",
        "lists that are left out, as asked",
        shell=read(
            "the others",
            name="t.parquet",
            options=" --exclude d",
            has="left out as asked",
            t_parquet=parquet(x=[1.5, 2.5], d=[[1], [2]]),
        ),
    ),
    Case(
        "Parquet files",
        "dates",
        shell=read(
            "times of whole days",
            name="t.parquet",
            has="datetime",
            t_parquet=parquet(d=pa.array([1, 2, 9] * 20, pa.date32())),
        ),
    ),
    Case(
        "Parquet files",
        "times of day",
        shell=schema(
            "column 'd' holds times of day",
            "--dtype d=duration",
            name="t.parquet",
            t_parquet=parquet(d=pa.array([1, 2] * 9, pa.time32("s"))),
        ),
    ),
    Case(
        "Parquet files",
        "decimals",
        shell=read(
            "numbers",
            name="t.parquet",
            has="continuous",
            t_parquet=parquet(d=pa.array([Decimal("1.10"), Decimal("2.25"), None] * 20, pa.decimal128(20, 2))),
        ),
    ),
    Case(
        "Parquet files",
        "decimals of more digits than floats have",
        shell=schema(
            "column 'd' holds decimals of more than 15 digits",
            "--dtype d=number rounds it",
            name="t.parquet",
            t_parquet=parquet(d=pa.array([10**17 + 1, 7], pa.int64()).cast(pa.decimal128(20, 0))),
        ),
    ),
    Case(
        "Parquet files",
        "dictionaries",
        shell=read(name="t.parquet", t_parquet=parquet(d=pa.array(["a", "b", None] * 20).dictionary_encode())),
    ),
    Case(
        "Parquet files",
        "NaN beside null",
        shell=read(
            "both are missing",
            name="t.parquet",
            has="continuous",
            t_parquet=parquet(d=[1.5, None, float("nan"), 2.5] * 9),
        ),
    ),
    Case(
        "Parquet files",
        "unsigned integers beyond 64 signed bits",
        shell=shell(
            "fit t.parquet -o m.flow",
            "column 'd' holds integers above 2**53",
            "--dtype d=text",
            t_parquet=parquet(d=pa.array([2**64 - 1, 2**64 - 2, 7], pa.uint64())),
        ),
    ),
    Case(
        "Parquet files",
        "two columns of one name",
        shell=schema(
            "several columns have the same name 'd'",
            "rename",
            name="t.parquet",
            t_parquet=(
                lambda sink: (
                    pyarrow.parquet.write_table(pa.Table.from_arrays([pa.array([1, 2])] * 2, ["d", "d"]), sink),
                    sink.getvalue(),
                )[1]
            )(io.BytesIO()),
        ),
    ),
    Case(
        "Parquet files",
        "pandas' index beside the columns",
        shell=read(
            "left out",
            name="t.parquet",
            has="categorical",
            t_parquet=(
                lambda sink: (
                    pd.DataFrame({"d": ["a", "b"] * 9}, index=np.arange(18) * 2).to_parquet(sink),
                    sink.getvalue(),
                )[1]
            )(io.BytesIO()),
        ),
    ),
    Case(
        "Parquet files",
        "times in nanoseconds beyond their type",
        shell=shell(
            "fit t.parquet -o m.flow",
            "column 'd' holds times at the very end",
            t_parquet=parquet(d=pa.array([2**63 - 1, 0], pa.timestamp("ns"))),
        ),
    ),
]

PATHS = [
    Case("Paths", "no such file", shell=schema("no file none.csv", name="none.csv")),
    Case(
        "Paths",
        "a folder",
        shell=in_folder("schema d.csv", lambda: Path("d.csv").mkdir(), "d.csv is a folder, not a file"),
    ),
    Case(
        "Paths",
        "a broken link",
        shell=in_folder("schema l.csv", lambda: Path("l.csv").symlink_to("nowhere"), "no file l.csv"),
    ),
    Case("Paths", "no folder to write to", shell=shell("fit t.csv -o no/such/m.flow", "no such folder", t_csv=TABLE)),
    Case(
        "Paths",
        "a folder to write to",
        shell=in_folder("sample whole.flow -o d.csv", lambda: Path("d.csv").mkdir(), "d.csv", "folder"),
    ),
    Case(
        "Paths",
        "one file to read and to write",
        shell=shell("score whole.flow t.csv -o t.csv", "t.csv is read", "--force", t_csv=CLEAN),
    ),
    Case(
        "Paths",
        "one file to read and to write, by another path",
        shell=shell("score whole.flow t.csv -o ./t.csv", "is read", "--force", t_csv=CLEAN),
    ),
    Case(
        "Paths",
        "one file to read and to write, by force",
        shell=shell(
            "score whole.flow t.csv -o t.csv --force",
            says="the table is overwritten",
            check=lambda done: list(done.rows("t.csv")) == ["log_prob"],
            t_csv=CLEAN,
        ),
    ),
    Case(
        "Paths",
        "the model as output",
        shell=shell("sample whole.flow -o whole.flow", "whole.flow must end in one of", ".csv"),
    ),
    Case(
        "Paths",
        "an output of another kind",
        shell=shell("sample whole.flow -o rows.xlsx", "rows.xlsx must end in one of", ".csv"),
    ),
    Case(
        "Paths",
        "a table in place of a model",
        shell=shell("sample t.csv -o out.csv", "t.csv", "not a flowlab file", t_csv=TABLE),
    ),
    Case(
        "Paths",
        "a model in place of a table",
        shell=shell("score whole.flow whole.flow -o out.csv", "whole.flow must end in one of"),
    ),
    Case(
        "Paths",
        "an empty model file",
        asked(
            lambda m: flowlab.load(Path("e.flow").write_bytes(b"") or "e.flow"), "e.flow", error=flowlab.files.FileError
        ),
        shell("sample e.flow -o out.csv", "e.flow", "not a flowlab file", e_flow=b""),
    ),
    Case(
        "Paths",
        "a model file that is cut off",
        asked(
            lambda m: (
                m.save("c.flow"),
                Path("c.flow").write_bytes(Path("c.flow").read_bytes()[:-100]),
                flowlab.load("c.flow"),
            ),
            "c.flow",
            error=flowlab.files.FileError,
        ),
    ),
    Case(
        "Paths",
        "a model of flows in place of one of tables",
        shell=in_folder(
            "sample f.flow -o out.csv",
            lambda: flowlab.save(flowlab.presets.real_nvp(2), "f.flow"),
            "f.flow holds a Flow",
            "flowlab fit",
        ),
    ),
    Case(
        "Paths",
        "a column named log_prob to keep",
        shell=shell(
            "score whole.flow t.csv -o out.csv --keep all",
            "--keep: the table has a column log_prob of its own",
            t_csv=whole_table().assign(log_prob=1).to_csv(index=False).encode(),
        ),
    ),
    Case(
        "Paths",
        "a column to keep that is not there",
        shell=shell(
            "score whole.flow t.csv -o out.csv --keep id",
            "no column 'id' in t.csv, asked for by --keep",
            "there are 'x'",
            t_csv=CLEAN,
        ),
    ),
    Case(
        "Paths",
        "a schema file that is none",
        shell=shell("fit t.csv -o m.flow --schema s.json", "s.json", t_csv=TABLE, s_json="{}"),
    ),
    Case("Paths", "a name that begins with a minus", shell=shell("schema -- -t.csv", "no file -t.csv")),
]

CASES = [*TEXT, *PARQUET, *PATHS]
