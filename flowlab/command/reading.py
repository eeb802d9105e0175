"""Read the columns of a file: by what their cells look like, as asked, or by the schema of a fitted model.

frame, notes = frame_of(file)                                     # guessed
frame, notes = frame_of(file, ["zip", "day"], asked={"zip": "text", "day": "%d/%m/%Y"})
frame, _ = frame_of(file, known={c.name: c for c in schema})      # by a schema's types: digits stay strings
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from flowlab.command import texts
from flowlab.command.words import name_word, word
from flowlab.tables.frames import cells
from flowlab.tables.frames.arrow import to_pandas
from flowlab.tables.frames.read_write import File
from flowlab.tables.schema.column import NUMERIC, ColumnSchema

KINDS = {  # what a column may be read as -> how that is called
    "text": "text",
    "number": "numbers",
    "boolean": "true or false",
    "date": "days or times",
    "duration": "durations",
}
# Cells that programs write where there is no number. Among words they are words: NA is Namibia, None a supplier.
NOTHING = ("", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "Null", "null", "None", "none")
FEW = 1000  # cells that are tried before all are
FAMILIES = {"b": "boolean", "i": "number", "u": "number", "f": "number", "M": "date", "m": "duration"}


def frame_of(
    file: File,
    names: Sequence[str] | None = None,
    *,
    asked: Mapping[str, str] | None = None,
    known: Mapping[str, ColumnSchema] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Read columns of a file into a DataFrame, and note what was assumed of each.

    Args:
        file: The file.
        names: Which columns; all if None.
        asked: What to read columns as: a key of `KINDS`, or the format of days such as "%d.%m.%Y".
        known: Columns of which the types are known.

    Raises:
        ValueError: A column cannot be read as asked; the message names it.
    """
    asked, known = asked or {}, known or {}
    names = file.columns if names is None else list(names)
    file.check_columns(names)
    file.check_columns(list(asked), "--dtype or --text")
    columns: dict[int, pd.Series] = {}
    notes: list[str] = []
    found: list[str]
    for j, name in enumerate(names):
        cells_ = file.table.column(name)
        if name in known and not is_empty(known[name]):
            columns[j], found = _known(cells_, file, known[name], asked.get(name)), []
        elif name in asked:
            columns[j], found = _asked(cells_, name, file, asked[name]), []
        else:
            columns[j], found = _guessed(cells_, name, file)
        notes += found
    frame = pd.DataFrame(columns, index=range(file.table.num_rows))
    frame.columns = pd.Index(names)
    return frame, notes


class _Words:
    """The cells of a column of strings that are not missing, and where they are.

    Args:
        cells_: The cells.
        missing: Cells that count as missing.
        trim: Whether to ignore spaces around cells.
    """

    def __init__(self, cells_: pa.ChunkedArray, missing: Sequence[str], trim: bool = True) -> None:
        self.all = cells_.cast(pa.string()).combine_chunks()
        words = pc.utf8_trim_whitespace(self.all) if trim else self.all
        there = pc.invert(pc.is_in(words, pa.array(missing, pa.string())))
        self.there = pc.and_(pc.is_valid(self.all), there).to_numpy(zero_copy_only=False)
        self.words = words.filter(pa.array(self.there))

    def put(self, found: pd.Series) -> pd.Series:
        """Make a column of the values of these cells, of a nullable type where a type has no missing values."""
        if self.there.all():
            return found.reset_index(drop=True)
        dtype = {"b": "boolean", "i": "Int64", "u": "UInt64"}.get(found.dtype.kind, found.dtype)
        place = np.full(len(self.there), -1)
        place[self.there] = np.arange(len(found))
        return pd.Series(found.astype(dtype).array.take(place, allow_fill=True))

    def text(self) -> pd.Series:
        """Make a column of strings, with missing cells where cells count as missing."""
        return pa.chunked_array([pc.if_else(pa.array(self.there), self.all, pa.scalar(None, pa.string()))]).to_pandas()


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _typed(cells_: pa.ChunkedArray, name: str, file: File) -> pd.Series:
    """Read cells of a Parquet file that are not strings."""
    kind = cells_.type
    if pa.types.is_time(kind):
        raise ValueError(
            f"column {name!r} holds times of day, which are not modelled: {_option(name)}=duration reads them as the "
            "time since midnight"
        )
    found = to_pandas(pa.table({name: cells_}))[name]
    if isinstance(found.dtype, pd.ArrowDtype):
        raise ValueError(
            f"column {name!r} is of type {kind}, which is not modelled: leave it out with --exclude {name_word(name)}"
        )
    return _without(found, file)


def _without(values: pd.Series, file: File) -> pd.Series:
    """Make the numbers missing that --missing lists."""
    wrong = [float(text) for text in file.missing if re.fullmatch(texts.NUMBER, text)]
    if not wrong or values.dtype.kind not in "iuf" or not values.isin(wrong).any():
        return values
    return (values if values.dtype.kind == "f" else values.astype("Int64")).mask(values.isin(wrong))


def _guessed(cells_: pa.ChunkedArray, name: str, file: File) -> tuple[pd.Series, list[str]]:
    """Read a column by what its cells look like, with notes for users who meant something else."""
    if not _is_text(cells_.type):
        return _typed(cells_, name, file), []
    empty = ("", *file.missing)
    read = _Words(cells_, (*NOTHING, *file.missing))
    if not file.text:
        plain = _Words(cells_, file.missing, trim=False)
        found = (
            to_pandas(pa.table({name: cells_}))[name]
            if pa.types.is_dictionary(cells_.type) and not file.missing
            else plain.text()
        )
        return found, _text_notes(plain, name, ())
    if len(read.words) and not texts.is_code(read.words):
        for way in (texts.truth, lambda words: texts.numbers(words, file.decimal), texts.times, texts.spans):
            found = None if way(read.words.slice(0, FEW)) is None else way(read.words)
            if found is not None and not (found.dtype.kind == "f" and texts.like(read.words, texts.WHOLE)):
                return _without(read.put(found), file), _gaps(read, name, empty)
    plain = _Words(cells_, empty, trim=False)
    if not len(plain.words):
        return pd.Series(np.full(len(plain.there), np.nan)), []
    return plain.text(), _text_notes(plain, name, empty)


def _gaps(read: _Words, name: str, empty: Sequence[str]) -> list[str]:
    """Note cells that are not empty and count as missing."""
    gone = pc.drop_null(pc.utf8_trim_whitespace(read.all.filter(pa.array(~read.there))))
    said = gone.filter(pc.invert(pc.is_in(gone, pa.array(empty, pa.string()))))
    if not len(said):
        return []
    kinds = ", ".join(repr(text) for text in pc.unique(said).to_pylist())
    return [f"column {name!r}: {len(said):,} cells {kinds} count as missing (--text {name_word(name)} keeps them)"]


def _text_notes(plain: _Words, name: str, empty: Sequence[str]) -> list[str]:
    """Note strings that may mean something else."""
    words = plain.words
    if not len(words):
        return []
    nothing = pc.is_in(words, pa.array(NOTHING[1:]))
    if pc.any(nothing).as_py() and not pc.all(nothing).as_py():
        said = pc.unique(words.filter(nothing)).to_pylist()
        options = " ".join(f"--missing {name_word(text)}" for text in said)
        count, shown = pc.sum(nothing).as_py(), ", ".join(map(repr, said))
        note = f"column {name!r}: {count:,} cells {shown} are kept as text; {options} makes them missing"
        rest = words.filter(pc.invert(nothing))
        return [note, *([] if texts.is_code(rest) else _looks(rest, name))]
    if texts.is_code(words) and texts.like(words, texts.WHOLE):
        example = words.filter(pc.match_substring_regex(words, texts.CODE))[0].as_py()
        return [
            f"column {name!r} is read as text, since {example!r} and the like would lose their zeros; "
            f"{_option(name)}=number reads numbers"
        ]
    if texts.like(words, texts.WHOLE) and empty:
        return [
            f"column {name!r} is read as text: its numbers have more digits than 64 bits hold; "
            f"{_option(name)}=number rounds them"
        ]
    return _looks(words, name)


def _looks(words: pa.Array, name: str) -> list[str]:
    """Note strings that could be numbers or times."""
    option, example = _option(name), words[0].as_py()
    if (found := texts.looks(words)) is not None:
        what, kind = found
        if kind == "date":
            try:
                kind = "date" if texts.days(words) is not None else ""
            except texts.Unclear as error:
                choice = " or ".join(f"{option}={word(form)}" for form in error.formats)
                return [f"column {name!r} holds days such as {example!r}, read as text; {choice} reads them as times"]
        way = f"; {option}={kind} reads them as {KINDS[kind]}" if kind else ""
        return [f"column {name!r} holds {what} such as {example!r}, read as text{way}"]
    if (mixed := texts.strange(words)) is not None:
        count, rest = mixed
        options = " ".join(f"--missing {name_word(text)}" for text in rest)
        shown = ", ".join(map(repr, rest))
        return [
            f"column {name!r} holds {count:,} numbers and {shown}, and is read as text; {options} makes these missing, "
            "and the others numbers"
        ]
    return []


def _option(name: str) -> str:
    return f"--dtype {name_word(name)}"


def _asked(cells_: pa.ChunkedArray, name: str, file: File, kind: str) -> pd.Series:
    """Read a column as one of `KINDS`, or as days of a format."""
    if not _is_text(cells_.type):
        cells_ = _spelled(cells_, name, kind)
        if isinstance(cells_, pd.Series):
            return cells_
    empty = ("", *file.missing)
    if kind == "text":
        return _Words(cells_, empty, trim=False).text()
    read = _Words(cells_, (*NOTHING, *file.missing))
    return _without(read.put(_read(read, name, file, kind)), file)


def _read(read: _Words, name: str, file: File, kind: str) -> pd.Series:
    """Parse the cells that are not missing.

    Raises:
        ValueError: A cell is no such value.
    """
    words, form = read.words, None
    if not len(words):
        return pd.Series(
            [], dtype={"boolean": "bool", "date": "datetime64[s]", "duration": "timedelta64[s]"}.get(kind, "float64")
        )
    if kind in KINDS and kind != "date":
        way = _ways(file)[kind]
        found = way(words)
    else:
        kind, form, way = "date", None if kind == "date" else kind, texts.times
        try:
            found = texts.days(words, form)
        except texts.Unclear as error:
            choice = " or ".join(f"{_option(name)}={word(each)}" for each in error.formats)
            raise ValueError(f"column {name!r}: {error}: say which with {choice}") from None
    if found is None:
        raise ValueError(f"column {name!r} of {file.name} cannot be read as {_why_not(read, kind, form, way)}")
    return found


def _why_not(read: _Words, kind: str, form: str | None, way: Callable[[pa.Array], pd.Series | None]) -> str:
    """Say what cells should be, and which is the first that is not, or what they all are instead."""
    if kind == "date" and form is None and (what := texts.looks(read.words)) is not None and not what[1]:
        return f"{KINDS[kind]}: it holds {what[0]} such as {read.words[0].as_py()!r}"
    k = texts.first_unlike(read.words.to_pylist(), way)
    row, cell = int(np.flatnonzero(read.there)[k]) + 1, read.words[k].as_py()
    by = f" by the format {form}" if form else ""
    return f"{KINDS[kind]}{by}: {cell!r} in row {row:,} is none; --missing {name_word(cell)} makes such cells missing"


def _ways(file: File) -> dict[str, Callable[[pa.Array], pd.Series | None]]:
    """Return the function that parses each kind but days."""
    decimal = file.decimal if file.text else "."

    def number(words: pa.Array) -> pd.Series | None:
        plain = texts.numbers(words, decimal)
        return plain if plain is not None else texts.amounts(words, "," if decimal == "," else None)

    return {
        "number": number,
        "boolean": lambda words: texts.truth(words, more=True),
        "duration": lambda words: texts.spans(words, more=True),
    }


def _spelled(cells_: pa.ChunkedArray, name: str, kind: str) -> pa.ChunkedArray | pd.Series:
    """Write typed cells of a Parquet file as strings, or convert them where they are of the wanted kind already."""
    arrow = cells_.type
    try:
        if kind == "duration" and pa.types.is_time(arrow):
            ticks = cells_.cast(pa.int32() if pa.types.is_time32(arrow) else pa.int64()).cast(pa.int64())
            return ticks.cast(pa.duration(arrow.unit)).to_pandas()
        if kind == "number" and pa.types.is_boolean(arrow):
            cells_ = cells_.cast(pa.int8())
        if pa.types.is_floating(arrow):  # codes that had a missing cell: 7.0 is 7
            wide = cells_.cast(pa.float64())
            if pc.all(pc.equal(wide, pc.round(wide))).as_py() and (pc.max(pc.abs(wide)).as_py() or 0) < cells.EXACT:
                cells_ = wide.cast(pa.int64())
        if pa.types.is_dictionary(arrow):
            cells_ = cells_.cast(arrow.value_type)
        if kind == "duration" and pa.types.is_duration(arrow):
            return cells_.to_pandas()
        return cells_.cast(pa.string())
    except pa.ArrowException:
        raise ValueError(
            f"column {name!r} is of type {arrow}, which cannot be read as {KINDS.get(kind, kind)}: "
            f"leave it out with --exclude {name_word(name)}"
        ) from None


def _known(cells_: pa.ChunkedArray, file: File, column: ColumnSchema, asked: str | None) -> pd.Series:
    """Read a column by a schema: as its kind, unless asked for another, and in its type where that loses nothing."""
    name, dtype, levels = str(column.name), cells.dtype_of(column.dtype), levels_of(column)
    kind = asked or kind_of(column)
    if not _is_text(cells_.type):
        exact = pa.types.is_time(cells_.type) or pa.types.is_decimal(cells_.type)
        typed = None if exact and kind in ("duration", "number") else _typed(cells_, name, file)
        if (
            typed is not None
            and _family(typed) == kind
            and not isinstance(dtype, pd.CategoricalDtype)
            and _zones_agree(typed, dtype)
        ):
            return _in_type(typed, column, dtype)
        spelled = _spelled(cells_, name, kind)
        if isinstance(spelled, pd.Series):
            return _in_type(spelled, column, dtype)
        cells_ = spelled
    if kind in ("text", "mixed"):
        strings = {v for v in levels if isinstance(v, str)}
        if file.text and "" in strings and not column.nullable:  # files of text do not tell it from a missing cell
            cells_ = pc.fill_null(cells_.cast(pa.string()), "")
        found = _Words(cells_, [*(text for text in NOTHING if text not in strings), *file.missing], trim=False)
        values = found.text()
        if kind == "mixed":
            spelling = {str(v): v for v in reversed(levels)}
            values = values.astype(object).map(lambda v: spelling.get(v, v), na_action="ignore")
    else:
        read = _Words(cells_, (*NOTHING, *file.missing))
        values = _without(read.put(_in_zone(_read(read, name, file, kind), dtype, name, file)), file)
    return _in_type(values, column, dtype)


def _in_type(values: pd.Series, column: ColumnSchema, dtype: Any) -> pd.Series:
    """Cast values to a column's type where that changes none, with the column's own marker of missing cells."""
    if isinstance(dtype, pd.CategoricalDtype):
        return _as_category(values, column)
    values = _as_dtype(values, dtype)
    return values.where(values.notna(), cells.NULLS[column.null]) if cells.is_object(values.dtype) else values


def levels_of(column: ColumnSchema) -> list[Any]:
    """List the values that a schema knows of a column."""
    return [v for v in (*column.categories, *column.declared, *column.recoding, column.value) if v is not None]


def is_empty(column: ColumnSchema) -> bool:
    """Whether every cell of a column was missing, so that its type means nothing."""
    return column.kind == "constant" and column.value is None


def kind_of(column: ColumnSchema) -> str:
    """Decide what to read a schema's column as: one of `KINDS`, or "mixed" for levels of several types."""
    dtype, types = cells.dtype_of(column.dtype), {type(v) for v in levels_of(column)}
    by_kind = {"datetime": "date", "timedelta": "duration", "boolean": "boolean", **dict.fromkeys(NUMERIC, "number")}
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = cells.dtype_of(column.levels_dtype)
    if dtype.kind in FAMILIES and not cells.is_object(dtype):
        return FAMILIES[dtype.kind]
    if column.kind in by_kind and not (column.kind == "boolean" and types == {str}):
        return by_kind[column.kind]  # Python objects, or strings that a schema was edited to read
    if not cells.is_object(dtype) or types <= {str}:
        return "text"
    return "boolean" if types == {bool} else "number" if types <= {int, float} else "mixed"


def _family(values: pd.Series) -> str:
    return (
        "text"
        if isinstance(values.dtype, pd.CategoricalDtype | pd.StringDtype)
        else FAMILIES.get(values.dtype.kind, "")
    )


def _zones_agree(values: pd.Series, dtype: Any) -> bool:
    return values.dtype.kind != "M" or (cells.zone_of(values.dtype) is None) == (cells.zone_of(dtype) is None)


def _in_zone(values: pd.Series, dtype: Any, name: str, file: File) -> pd.Series:
    """Convert times to the zone of a type; a time without a zone is local time there."""
    if values.dtype.kind != "M":
        return values
    zone = cells.zone_of(dtype)
    if zone is None and values.dt.tz is not None:
        raise ValueError(
            f"column {name!r} of {file.name} has times with a zone, such as {values.iloc[0]}, "
            "and was fitted to such without one"
        )
    if zone is None:
        return values
    if values.dt.tz is None:
        return values.dt.tz_localize(zone, ambiguous=np.ones(len(values), dtype=bool), nonexistent="shift_forward")
    return values.dt.tz_convert(zone)


def _as_dtype(values: pd.Series, dtype: Any) -> pd.Series:
    """Cast values to a type, unless that would change one."""
    strings = (
        isinstance(dtype, pd.StringDtype) or dtype.kind == "U" or (cells.is_object(dtype) and values.dtype.kind in "Mm")
    )
    if values.dtype == dtype or (strings and _family(values) != "text"):  # what was said of them goes before their type
        return values
    try:
        found = values.astype(dtype)
        if values.dtype.kind in "iufMm" and dtype.kind != "f" and not found.astype(values.dtype).equals(values):
            return values
    except (TypeError, ValueError, OverflowError, pa.ArrowException):  # what the model says of it is clearer
        return values
    return found


def _as_category(values: pd.Series, column: ColumnSchema) -> pd.Series:
    """Make a category of the schema's levels in their order, followed by levels that the schema does not have."""
    index = pd.Index(cells.take(column.declared, np.arange(len(column.declared)), column.levels_dtype))
    if not len(values.dropna()):
        return pd.Series(pd.Categorical([None] * len(values), dtype=pd.CategoricalDtype(index, column.ordered)))
    position = {v: k for k, v in enumerate(index)}
    more = [v for v in values.dropna().unique() if v not in position]
    codes = values.map({v: k for k, v in enumerate([*index, *more])}).fillna(-1).astype(np.int64)
    if more:
        index = pd.Index([*index, *more], dtype=object if index.dtype == object else None)
    return pd.Series(pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(index, column.ordered)))
