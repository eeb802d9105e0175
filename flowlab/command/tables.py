"""Tables of the command line: read them for a fitted model, and write back what the model computed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from flowlab.command import texts
from flowlab.command.options import ReadingOptions
from flowlab.command.reading import KINDS, frame_of
from flowlab.command.words import names_of, split, unquoted
from flowlab.tables.frames.arrow import TableFormat, like
from flowlab.tables.frames.read_write import File, Format, read_file, suffixes, write_table
from flowlab.tables.schema import Schema
from flowlab.tables.schema.column import ColumnSchema
from flowlab.tables.schema.rules import Derived, FixedCombinations, LessThan
from flowlab.writing import check_writable

CALLED = {  # what --dtype takes -> how the column is read, and the kind that it is then forced to
    **{kind: (kind, None) for kind in KINDS},
    **dict.fromkeys(("str", "string"), ("text", None)),
    **dict.fromkeys(("float", "numbers"), ("number", None)),
    **dict.fromkeys(("bool",), ("boolean", None)),
    **dict.fromkeys(("datetime", "time"), ("date", None)),
    **dict.fromkeys(("timedelta",), ("duration", None)),
    **dict.fromkeys(("integer", "int"), ("number", "integer")),
    "continuous": ("number", "continuous"),
    **dict.fromkeys(("categorical", "category"), (None, "categorical")),
}


@dataclass(frozen=True)
class Reading:
    """How tables are to be read, from the options of a command.

    Attributes:
        form: Separator, decimal mark and encoding of text files, and which cells are missing.
        asked: What to read columns as, by their names.
        kinds: The kinds of columns in the schema, whatever their cells look like.
        excluded: Columns to leave out.
    """

    form: Format
    asked: dict[str, str]
    kinds: dict[str, str]
    excluded: list[str]

    @classmethod
    def of(cls, options: ReadingOptions | None = None) -> "Reading":
        """Parse the options of a command.

        Raises:
            ValueError: --dtype says nothing that is known of a column.
        """
        options = ReadingOptions() if options is None else options
        sep = {"\\t": "\t", "tab": "\t"}.get(options.sep or "", options.sep)
        form = Format(sep, options.decimal, options.encoding, tuple(names_of(options.missing or ())))
        asked, kinds = dict.fromkeys(names_of(options.text or ()), "text"), {}
        for part in (part for said in options.dtype or () for part in split(said, ",") if part.strip()):
            name, _, what = part.rpartition("=")
            name, what = unquoted(name), unquoted(what)
            how, kind = (what, None) if "%" in what else CALLED.get(what.lower(), (None, None))
            if not name or (how, kind) == (None, None):
                choices = ", ".join([*KINDS, "integer", "continuous", "categorical"])
                raise ValueError(
                    f'--dtype wants COLUMN=TYPE with {choices} or a format of days such as %d.%m.%Y, not "{part}"'
                )
            if how is not None:
                asked[name] = how
            if kind is not None:
                kinds[name] = kind
        return cls(form, asked, kinds, names_of(options.exclude or ()))

    def read(
        self, path: Path, names: Sequence[str] | None = None, schema: Schema | None = None
    ) -> tuple[pd.DataFrame, list[str]]:
        """Read a table without its excluded columns, and note what was assumed.

        Args:
            path: The file.
            names: Which of its columns; all if None.
            schema: What is known of its columns.
        """
        file = read_file(path, self.form)
        file.check_columns(self.excluded, "--exclude")
        if names is not None:
            file.check_columns(list(names), "--columns")
        file.check_columns(list(self.kinds), "--dtype")
        known = {} if schema is None else {str(column.name): column for column in schema}
        left_out = {*self.excluded, *(name for name, column in known.items() if column.kind == "excluded")}
        names = [name for name in (file.columns if names is None else names) if name not in left_out]
        if not names:
            raise ValueError(f"no column of {path} is left")
        asked = {name: how for name, how in self.asked.items() if name in names}
        file.check_columns(list(self.asked), "--dtype or --text")
        frame, notes = frame_of(file, names, asked=asked, known=known)
        return frame, [*file.notes, *notes]

    def read_for(self, model: Any, path: Path) -> tuple[pd.DataFrame, File]:
        """Read the columns of a fitted model, with its labels and types; return the file as well."""
        file = read_file(path, self.form)
        if not file.table.num_rows:
            raise ValueError(f"{path} has no rows")
        file.check_columns(self.excluded, "--exclude")
        known = columns_of(model)
        names = [str(label) for label in known]
        needed = [name for name in self.excluded if name in names]
        if needed:
            raise ValueError(
                f"--exclude: the model was fitted to column {', '.join(map(repr, needed))} too, and needs it"
            )
        file.check_columns(names)
        file.check_columns(list(self.asked), "--dtype or --text")
        asked = {name: how for name, how in self.asked.items() if name in names}
        frame, _ = frame_of(file, names, asked=asked, known={str(label): column for label, column in known.items()})
        return frame.set_axis(list(known), axis=1), file


def scores_of(model: Any, frame: pd.DataFrame) -> NDArray[np.float64]:
    """Score rows that were read for a model: the log-likelihood of each."""
    return model.score_samples(frame.to_numpy() if model.table_.array else frame)


def columns_of(model: Any) -> dict[Any, ColumnSchema]:
    """List a fitted model's columns by label, as the user sees them: with those that its rules compute."""
    schema = {column.name: column for column in model.schema_ if column.kind != "excluded"}
    for rule in model.table_.rules:
        if isinstance(rule, LessThan):
            schema[rule.high] = ColumnSchema(rule.high, "derived", rule.dtype, null=rule.null)
        elif isinstance(rule, Derived):
            schema[rule.name] = ColumnSchema(rule.name, "derived", rule.dtype, null=rule.null)
        elif isinstance(rule, FixedCombinations):
            schema |= {column["name"]: ColumnSchema(**column) for column in rule.schemas}
    return {name: schema[name] for name in model.table_.names}


def check_output(output: Path, inputs: Sequence[Path | None], force: bool, endings: Sequence[str] = ()) -> None:
    """Check that an output can be written, before the work whose result it is to hold.

    Args:
        output: The file.
        inputs: Files that are read.
        force: Whether it may overwrite one of these.
        endings: The endings that it may have; any if empty.

    Raises:
        OSError: Its folder is missing or not writable.
        ValueError: It has another ending, or is one of the files that are read.
    """
    if endings and output.suffix.lower() not in endings:
        raise ValueError(f"{output} must end in {' or '.join(endings)}")
    check_writable(output)
    for path in inputs:
        if path is not None and not force and output.exists() and path.exists() and os.path.samefile(path, output):
            same = "" if str(path) == str(output) else f" the same file as {path}, which is"
            raise ValueError(f"{output} is{same} read: name another file to write to, or --force to overwrite it")


def check_table(output: Path, safe: bool) -> None:
    """Check the ending of a table that is written, and that --safe-csv means something there."""
    if suffixes(output)[0] == ".parquet" and safe:
        raise ValueError(f"--safe-csv is for files of text, and {output} is none: leave it out")


def check_outputs(model: Path, report: Path | None, inputs: Sequence[Path | None], force: bool) -> None:
    """Check the outputs of `fit`: the model and, if one is wanted, its report."""
    check_output(model, inputs, force)
    if report is not None:
        check_output(report, inputs, force, (".html",))
        if os.path.realpath(report) == os.path.realpath(model):
            raise ValueError(f"{report} cannot be both the model and the report")


def as_pandas(model: Any, rows: Any) -> Any:
    """Turn rows that a model drew into a table that can be written."""
    if isinstance(rows, pd.DataFrame | pa.Table):
        return rows
    return pd.DataFrame(rows, columns=[str(label) for label in columns_of(model)])


def with_arrow(model: Any) -> None:
    """Make a model that was fitted to a polars DataFrame return pyarrow tables of the same types, without polars."""
    fitted = model._model
    if fitted.format is not None:
        as_arrow = TableFormat("pyarrow", fitted.format.schema, fitted.format.nan)
        model._fitted = replace(fitted, format=as_arrow)


def write_filled(
    file: File, frame: pd.DataFrame, filled: pd.DataFrame, path: Path, safe: bool = False
) -> tuple[int, int]:
    """Write all columns of a file as they are, but for the cells that a model has filled.

    Args:
        file: The file.
        frame: The model's columns as they were read.
        filled: The same columns, imputed.
        path: Where to write.
        safe: Whether to defuse formulas in files of text.

    Returns:
        How many cells were filled, and how many are still missing.
    """
    changed = {str(label): (frame[label].isna() & filled[label].notna()).to_numpy() for label in frame}
    count = sum(int(rows.sum()) for rows in changed.values())
    if file.text and path.name.lower().rpartition(".parquet")[1] == "":
        whole = file.as_written(file.columns)
        for label in frame:
            rows = changed[str(label)]
            if rows.any():
                said = _spelled(whole[str(label)], frame[label], filled[label][rows], file.decimal)
                whole[str(label)] = whole[str(label)].astype(object)
                whole.loc[rows, str(label)] = said
        left = int((whole.isna() | (whole == "")).to_numpy().sum())
        write_table(whole, path, file.sep if path.suffix.lower() == Path(file.name).suffix.lower() else None, safe)
        return count, left
    others = [name for name in file.columns if name not in changed]
    rest = frame_of(file, others)[0] if file.text else None
    arrays, fields = [], []
    for name in file.columns:
        if name in changed and (changed[name].any() or file.text):
            label = next(label for label in frame if str(label) == name)
            column = _as_before(filled[label], file, name)
        else:
            column = (
                file.table.column(name) if rest is None else pa.chunked_array([pa.array(rest[name], from_pandas=True)])
            )
        arrays.append(column)
        fields.append(pa.field(name, column.type))
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    write_table(table, path, safe=safe)
    return count, sum(column.null_count for column in table.columns)


def _as_before(values: pd.Series, file: File, name: str) -> pa.ChunkedArray:
    """Convert values to a column of a Parquet file, in the type that it has there if that can hold them."""
    if not file.text:
        schema = pa.schema([file.table.schema.field(name)])
        try:
            return like(TableFormat("pyarrow", schema), values.to_frame(name)).column(0)
        except (ValueError, TypeError, AttributeError):  # another kind of column than the model was fitted to
            if pa.types.is_dictionary(schema.field(0).type):
                return pa.chunked_array([pa.array(values, from_pandas=True).dictionary_encode()])
    return pa.chunked_array([pa.array(values, from_pandas=True)])


def _spelled(written: pd.Series, known: pd.Series, drawn: pd.Series, decimal: str) -> list[str]:
    """Write drawn values like the cells around them: the same value has the same text."""
    there = known.notna().to_numpy()
    spelling: Mapping[Any, str] = dict(zip(known[there][::-1], written[there][::-1]))
    cells = pa.array(written[there].tolist(), pa.string())
    points = bool(len(cells)) and bool(pc.any(pc.match_substring(cells, decimal)).as_py())
    if len(cells):
        days = texts.like(cells, texts.DAYS)
    else:
        days = drawn.dtype.kind == "M" and bool((drawn == drawn.dt.normalize()).all())
    return [spelling[value] if value in spelling else _text(value, decimal, points, days) for value in drawn]


def _text(value: Any, decimal: str, points: bool, days: bool) -> str:
    """Write a value as text: whole numbers without a fraction where no cell has one, days without a time."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and not points else repr(float(value)).replace(".", decimal)
    if isinstance(value, pd.Timestamp) and days:
        return str(value.date())
    return str(value)
