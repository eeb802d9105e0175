"""Reading and writing of CSV, TSV and Parquet files, plain or compressed, with the cells as they are.

file = read_file("table.csv", Format(decimal=","))       # every cell as its text, or as its Parquet type
frame, notes = frame_of(file)                            # a DataFrame: command/reading.py says what the cells mean
write_table(frame, "out.parquet")
"""

import bz2
import codecs
import csv
import gzip
import io
import lzma
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from flowlab.tables.frames.arrow import to_pandas
from flowlab.writing import written_whole

TEXT = {".csv": ",", ".tsv": "\t"}
READABLE = (*TEXT, ".parquet")
PACKED = (".gz", ".bz2", ".xz", ".zst")
SEPARATORS = (",", ";", "\t", "|")
MARKS = {  # what a file of an encoding may begin with; the longer ones first
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
STARTS = {  # what files begin with that are no text -> their ending
    b"\x1f\x8b": ".gz",
    b"BZh9": ".bz2",
    b"\xfd7zXZ\x00": ".xz",
    b"(\xb5/\xfd": ".zst",
    b"PAR1": ".parquet",
}
BLOCK = 1 << 26  # bytes that are parsed at once: no row may be longer
# What spreadsheets take for a formula: not a number, nor a duration.
FORMULA = r"(?![+-]?\d*[.,]?\d+(?:[eE][+-]?\d+)?\s*\Z|-?\d+ days?(?: [+-]?[\d:.]+)?\s*\Z)[=+\-@\t\r\n＝＋－＠]"
SAMPLE = 2000  # rows in which a decimal comma is looked for before all are
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
COMMA = r"^\s*[+-]?\d+,\d+\s*$"
POINT = r"^\s*[+-]?\d*\.\d+\s*$"
THOUSANDS = r"^\s*[+-]?[1-9]\d{0,2}(?:,\d{3})+\s*$"


@dataclass(frozen=True)
class Format:
    """The format of a text file; fields of None are detected from the file.

    Attributes:
        sep: What stands between columns.
        decimal: What stands before a number's fraction, "." or ",".
        encoding: How characters are written as bytes.
        missing: Cells that mean that there is none, beside empty ones.
    """

    sep: str | None = None
    decimal: str | None = None
    encoding: str | None = None
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.sep is not None and len(self.sep) != 1:
            raise ValueError(f"--sep must be one character, not {self.sep!r}: in most shells a tab is $'\\t'")
        if self.decimal not in (None, ".", ","):
            raise ValueError(f'--decimal must be "." or ",", not {self.decimal!r}')
        if self.sep is not None and self.sep == self.decimal:
            raise ValueError(f"--sep and --decimal are both {self.sep!r}")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ValueError(
                    f"--encoding {self.encoding!r} is unknown; try utf-8, cp1252, latin-1 or utf-16"
                ) from None


@dataclass
class File:
    """A table as read from its file.

    Attributes:
        name: The file's name, for messages.
        table: Its cells: in text files strings, null where a cell is empty; in Parquet whatever they are.
        text: Whether it is a file of text.
        sep: What stands between columns of text.
        decimal: What stands before the fraction of numbers in text.
        missing: Cells that mean that there is none, beside empty ones.
        notes: What was assumed about the file as a whole.
    """

    name: str
    table: pa.Table
    text: bool
    sep: str = ","
    decimal: str = "."
    missing: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return self.table.column_names

    def check_columns(self, names: list[str], option: str = "") -> None:
        """Raise a ValueError that names missing columns."""
        lacking = [name for name in names if name not in self.columns]
        if lacking:
            asked = f", asked for by {option}" if option else ""
            raise ValueError(
                f"no column {', '.join(map(repr, lacking))} in {self.name}{asked}; "
                f"there are {', '.join(map(repr, self.columns))}"
            )

    def as_written(self, names: list[str]) -> pd.DataFrame:
        """Some columns as they are in the file."""
        return _exact(self.table.select(names))


def read_file(path: str | os.PathLike[str], form: Format | None = None) -> File:
    """Read a table from a .csv, .tsv or .parquet file, a packed one (.csv.gz, …), or "-" for CSV from standard input.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The suffix is another one, or the file cannot be read as such a table; the message says what to do.
    """
    form, name = form or Format(), str(path)
    if name == "-":
        return _read_text(sys.stdin.buffer.read(), "standard input", ",", form)
    suffix, packed = suffixes(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name} is a folder, not a file" if Path(path).is_dir() else f"no file {name}")
    try:
        if suffix == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as file:  # `read_table` fails for two columns of one name
                return _checked(File(name, _without_index(file.read()), False, missing=form.missing))
        data = _unpacked(Path(path).read_bytes(), packed)
    except (pa.ArrowException, OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"{name} cannot be read as a {suffix}{packed} file: {error}") from error
    return _read_text(data, name, TEXT[suffix], form)


def write_table(
    table: pd.DataFrame | pa.Table, path: str | os.PathLike[str], sep: str | None = None, safe: bool = False
) -> None:
    """Write a table to a .csv, .tsv or .parquet file, or a compressed one; no half-written file is left.

    Args:
        table: The table.
        path: Where to write.
        sep: What stands between columns of text; a comma or, in .tsv, a tab if None.
        safe: Whether to defuse formulas in files of text; see `defused`.

    Raises:
        ValueError: The suffix is another one, or a column cannot be written to such a file.
    """
    suffix, packed = suffixes(path)
    with written_whole(path) as temporary:
        if suffix == ".parquet":
            try:
                arrow = pa.Table.from_pandas(table, preserve_index=False) if isinstance(table, pd.DataFrame) else table
                pyarrow.parquet.write_table(arrow, temporary)
            except pa.ArrowException as error:
                why = error.args[-1] if error.args else error
                raise ValueError(f"{path}: Parquet cannot hold this table, a .csv file can: {why}") from error
        else:
            frame = table if isinstance(table, pd.DataFrame) else _exact(table)
            frame = defused(frame) if safe else frame
            text = frame.to_csv(sep=sep or TEXT[suffix], index=False, lineterminator="\n")
            if "\r" in text:  # Python's csv quotes cells with the characters of its own line ends alone
                text = frame.to_csv(sep=sep or TEXT[suffix], index=False, lineterminator="\r\n")
            temporary.write_bytes(_packed(text.encode("utf-8"), packed))


def defused(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts no spreadsheet takes for formulas: names and cells that look like one begin with a quote.

    That is the advice of OWASP ("CSV injection"). Numbers and durations are no texts, also where they are spelled out.

    Example:
        >>> defused(pd.DataFrame({"=a": ["=1+1", "-5", "b", "-2+3"], "n": [-1, 2, -3, 4]})).to_csv(index=False)
        "'=a,n\\n'=1+1,-1\\n-5,2\\nb,-3\\n'-2+3,4\\n"
    """

    def plain(text: object) -> object:
        return f"'{text}" if isinstance(text, str) and re.match(FORMULA, text) else text

    columns = [
        frame.iloc[:, j]
        if pd.api.types.is_numeric_dtype(dtype) or dtype.kind in "Mm"
        else frame.iloc[:, j].astype(object).map(plain)
        for j, dtype in enumerate(frame.dtypes)
    ]
    out = pd.DataFrame(dict(enumerate(columns)), index=frame.index)
    return out.set_axis([plain(name) for name in frame.columns], axis=1)


def suffixes(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The suffixes for format and compression of a file's name: (".csv", ".gz"), or (".csv", "").

    Raises:
        ValueError: It says neither CSV, TSV nor Parquet.
    """
    parts = [part.lower() for part in Path(path).suffixes]
    packed = parts[-1] if parts and parts[-1] in PACKED else ""
    suffix = parts[-2] if packed and len(parts) > 1 else parts[-1] if parts and not packed else ""
    if suffix not in READABLE or (packed and suffix == ".parquet"):
        raise ValueError(f"{path} must end in one of {', '.join(READABLE)}, or in .csv or .tsv and {', '.join(PACKED)}")
    return suffix, packed


def _unpacked(data: bytes, packed: str) -> bytes:
    if packed == ".zst":
        return pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    unpack: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.decompress,
        ".bz2": bz2.decompress,
        ".xz": lzma.decompress,
    }
    return unpack[packed](data) if packed else data


def _packed(data: bytes, packed: str) -> bytes:
    if packed == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    pack: dict[str, Callable[[bytes], bytes]] = {".gz": _gzip, ".bz2": bz2.compress, ".xz": lzma.compress}
    return pack[packed](data) if packed else data


def _exact(table: pa.Table) -> pd.DataFrame:
    """A table for writing: decimals stay decimals, whatever their digits."""
    decimals = {name for name in table.column_names if pa.types.is_decimal(table.schema.field(name).type)}
    frame = to_pandas(table.drop_columns([*decimals]))
    for name in decimals:
        column = table.column(name)
        frame[name] = pd.Series(pd.array(column, dtype=pd.ArrowDtype(column.type)), index=range(len(column)))
    return frame[table.column_names]


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the same rows make the same file


def _without_index(table: pa.Table) -> pa.Table:
    """A Parquet table without the unnamed row labels that pandas may have put there; NaN beside null is null."""
    names = table.column_names
    table = table.select([j for j in range(len(names)) if not re.fullmatch(r"__index_level_\d+__", names[j])])
    for j, column in enumerate(table.columns):
        if pa.types.is_floating(column.type) and column.null_count:
            wide = column.cast(pa.float64())
            table = table.set_column(
                j, table.field(j), pc.if_else(pc.is_nan(wide), pa.scalar(None, column.type), column)
            )
    return table.replace_schema_metadata(None)


def _read_text(data: bytes, name: str, usual: str, form: Format) -> File:
    """Parse the cells of a text file from its bytes."""
    data = _utf8(data, name, form.encoding)
    head = data[:BLOCK].decode("utf-8", errors="ignore")
    sep, notes = _separator(head, usual, form)
    table = _parsed(data, head, name, sep)
    if all(re.fullmatch(NUMBER, label.strip()) for label in table.column_names):
        notes.append(f"the first row, {', '.join(table.column_names[:3])} …, is taken for the names of columns")
    file = _checked(File(name, table, True, sep, form.decimal or ".", form.missing, notes))
    if form.decimal is None and (sep != "," or '"' in head):
        _find_decimal(file)
    return file


def _utf8(data: bytes, name: str, encoding: str | None) -> bytes:
    """Decode text to UTF-8 without a byte order mark."""
    other = next((suffix for start, suffix in STARTS.items() if data.startswith(start)), None)
    if other is not None:
        raise ValueError(f"{name} is no text: it begins like a {other} file, whose name must end so")
    if b"\x00" in data[:4] and encoding is None and not any(map(data.startswith, MARKS)):
        raise ValueError(
            f"{name} is no text in UTF-8: name its encoding, such as --encoding utf-16-le, or is it a table?"
        )
    marked = next((known for mark, known in MARKS.items() if data.startswith(mark)), None)
    if marked is not None and encoding in (None, "utf-8", "utf8"):
        encoding = marked
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        where = f"byte 0x{data[error.start]:02x} in line {data.count(bytes([10]), 0, error.start) + 1:,}"
        if encoding is not None:
            raise ValueError(
                f"{name} is not written in --encoding {encoding}: {where} is none of its characters"
            ) from None
        line = data[data.rfind(b"\n", 0, error.start) + 1 :].partition(b"\n")[0]
        shown = line.decode("cp1252", errors="replace").strip()[:60]
        raise ValueError(
            f"{name} is no text in UTF-8: {where}. Name its encoding: "
            f"with --encoding cp1252 (or latin-1) that line reads {shown!r}"
        ) from None
    return data if encoding is None else text.encode("utf-8")


def _separator(head: str, usual: str, form: Format) -> tuple[str, list[str]]:
    """The column separator, with notes: as asked for, else the only other one in the first line, else the usual."""
    if form.sep is not None:
        return form.sep, []
    first = next((line for line in head.splitlines() if line.strip()), "")
    bare = re.sub(r'"[^"]*"', "", first)
    others = [mark for mark in SEPARATORS if mark in bare]
    if not others and form.decimal == usual:
        return ";", []  # there is one column, whose commas are decimal
    if usual in others or len(others) != 1:
        return usual, []
    return others[0], [f"columns are separated by {others[0]!r} (--sep says otherwise)"]


def _parsed(data: bytes, head: str, name: str, sep: str) -> pa.Table:
    """Columns of strings, null where a cell is empty, with the names of the first row."""
    _check_quotes(data, name, sep)
    try:
        rows = csv.reader(io.StringIO(head, newline=""), delimiter=sep)
        width = len(next((row for row in rows if row), []))
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            pyarrow.csv.ReadOptions(autogenerate_column_names=True, use_threads=False, block_size=BLOCK),
            pyarrow.csv.ParseOptions(delimiter=sep, newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types={f"f{j}": pa.string() for j in range(width)},
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,  # "" is a string without characters
                null_values=[""],
            ),
        )
    except (pa.ArrowException, csv.Error) as error:
        raise ValueError(f"{name} cannot be read as a table: {_explained(str(error), sep)}") from error
    labels = [column[0].as_py() or f"Unnamed: {j}" for j, column in enumerate(table.columns)]
    return table.slice(1).rename_columns(labels)


def _check_quotes(data: bytes, name: str, sep: str) -> None:
    """Raise a ValueError for a quotation mark that is never closed: the parser would take all the rest for one cell."""
    if data.count(b'"') % 2 == 0:  # which spares nearly all files the search
        return
    start = rb'(?:\A|(?<=[\r\n%b]))"' % re.escape(sep.encode())
    for cell in re.finditer(start + rb'[^"]*(?:""[^"]*)*("|\Z)', data):
        if not cell[1]:
            line = data.count(b"\n", 0, cell.start()) + 1
            raise ValueError(
                f"{name} cannot be read as a table: the quotation mark in line {line:,} is never closed. Inside of a "
                "cell in quotation marks, such a mark is written twice"
            )


def _explained(message: str, sep: str) -> str:
    """A message for an error of pyarrow's parser, with a remedy."""
    if "straddling" in message:
        return f"a row has more than {BLOCK >> 20} MB: is a quotation mark never closed?"
    if "Empty CSV" in message:
        return "it is empty"
    message = message.removeprefix("CSV parse error: ").replace("Row #", "row ").partition("\n")[0][:300]
    if re.search(r"Expected \d+ columns?, got \d+", message):
        return (
            f"{message} – separated by {sep!r}. --sep names another separator (such as --sep ';'), "
            "--decimal ',' decimal commas; cells that hold the separator must be in quotation marks"
        )
    return message


def _checked(file: File) -> File:
    """The file, if it has columns and their names are distinct."""
    twice = sorted({name for name in file.columns if file.columns.count(name) > 1})
    if twice:
        raise ValueError(f"{file.name}: several columns have the same name {', '.join(map(repr, twice))}: rename them")
    if not file.columns:
        raise ValueError(f"{file.name} has no columns")
    return file


def _find_decimal(file: File) -> None:
    """Set the decimal mark to a comma if columns of numbers have it, none has a point, and it cannot mean thousands."""
    commas = False
    for column in file.table.columns:
        present = column.slice(0, SAMPLE).drop_null()
        if not len(present):
            continue
        if pc.any(pc.match_substring_regex(present, POINT)).as_py():
            if pc.all(pc.match_substring_regex(present, rf"^\s*{NUMBER}\s*$")).as_py():
                return
            continue
        with_comma = pc.match_substring_regex(present, COMMA)
        numbers = pc.or_(with_comma, pc.match_substring_regex(present, rf"^\s*{NUMBER}\s*$"))
        if pc.all(numbers).as_py() and pc.any(with_comma).as_py():
            commas |= not pc.all(pc.match_substring_regex(present.filter(with_comma), THOUSANDS)).as_py()
    if commas:
        file.decimal = ","
        file.notes.append("numbers have decimal commas (--decimal . says otherwise)")
