"""Conversion of polars DataFrames and pyarrow Tables to and from pandas, which the rest of flowlab works with.

table_format = format_of(X)          # None for anything else
frame = to_pandas(X)                 # a pandas DataFrame; any other X unchanged
like(table_format, frame)            # a table of X's library, with X's types

polars is imported only to build its tables. Tables of both libraries are read as arrow tables, whose schema represents
the types of both.
"""

import base64
from dataclasses import dataclass
from decimal import Decimal, localcontext
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from flowlab.hints import fits

DIGITS = 15  # of a decimal, that float64 keeps in any case
NO_ARROW = ("Int128", "UInt128", "Object", "Unknown")  # types of polars that arrow does not have


@dataclass(frozen=True)
class TableFormat:
    """The library of a table and the types of its columns.

    Attributes:
        library: "polars" or "pyarrow".
        schema: The columns' types, as arrow has them; None leaves them open.
        nan: Columns of floats whose missing cells are NaN; those of others are null.
    """

    library: str
    schema: pa.Schema | None
    nan: tuple[str, ...] = ()

    def untyped(self) -> "TableFormat":
        """The same library, with the columns' types left open."""
        return TableFormat(self.library, None)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        schema = None if self.schema is None else base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return {"library": self.library, "schema": schema, "nan": list(self.nan)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TableFormat":
        """The format that `to_json` wrote down."""
        if not isinstance(data, dict) or data.get("library") not in ("polars", "pyarrow"):
            raise ValueError("a table is of polars or of pyarrow")
        text = data["schema"]
        if not fits(text, str | None) or not fits(data["nan"], list[str]):
            raise ValueError("the types of a table are none")
        schema = None if text is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
        return cls(data["library"], schema, tuple(data["nan"]))


def format_of(X: Any) -> TableFormat | None:
    """The format of a polars DataFrame or pyarrow Table; None for anything else.

    Example:
        >>> format_of(pa.table({"n": [1, None]})).schema.field("n").type
        DataType(int64)
        >>> format_of(pd.DataFrame({"n": [1, 2]})) is None
        True
    """
    library = _library(X)
    if library is None:
        return None
    table = _arrow(X, library)
    nan = [f.name for f, cells in zip(table.schema, table.columns) if pa.types.is_floating(f.type) and _any_nan(cells)]
    return TableFormat(library, table.schema, tuple(nan))


def to_pandas(X: Any) -> Any:
    """A polars DataFrame or pyarrow Table as a pandas DataFrame, without loss; anything else unchanged.

    Numbers and booleans get numpy's types, or pandas' nullable ones where cells are missing. Dictionaries, categoricals
    and enums become categories in their order, dates become times of whole seconds, decimals floats. Columns that no
    model takes (lists, bytes, …) keep their arrow type, so that they can be excluded.

    Raises:
        TypeError: It is another object of one of these libraries, such as a LazyFrame.
        ValueError: A column cannot be kept; the message names it.

    Example:
        >>> to_pandas(pa.table({"n": [1, None], "city": ["Rome", "Oslo"]})).dtypes["n"]
        Int64Dtype()
    """
    library = _library(X)
    if library is None:
        return X
    table = _arrow(X, library)
    columns = {}
    for j, field in enumerate(table.schema):
        try:
            columns[j] = _series(table.column(j), field)
        except (pa.ArrowException, TypeError, NotImplementedError) as error:
            raise ValueError(f"column {field.name!r} of type {field.type} cannot be read: {error}") from error
    frame = pd.DataFrame(columns, index=range(table.num_rows))
    frame.columns = pd.Index(table.column_names)
    return frame


def like(table_format: TableFormat | None, frame: Any, fresh: bool = False) -> Any:
    """A pandas DataFrame in a table format, without its index; unchanged for None, and where it is no DataFrame.

    Args:
        table_format: Where it has a schema, every column must be among its fields.
        frame: The table.
        fresh: Whether the rows are new ones: pandas' metadata on the index of the original table is then dropped.

    Raises:
        ValueError: A cell is none that the column's type can hold; the message names the column.
    """
    if table_format is None or not isinstance(frame, pd.DataFrame):
        return frame
    if table_format.schema is None:
        table = pa.Table.from_pandas(frame.set_axis(frame.columns.map(str), axis=1), preserve_index=False)
        return _given_back(table.replace_schema_metadata(None), table_format.library)
    arrays, fields = [], []
    for j, name in enumerate(frame.columns):
        field = table_format.schema.field(str(name))
        try:
            arrays.append(_cells(frame.iloc[:, j], field.type, field.name in table_format.nan))
        except pa.ArrowException as error:
            raise ValueError(f"column {name!r} cannot be of type {field.type}: {error}") from error
        fields.append(field)
    metadata = {k: v for k, v in (table_format.schema.metadata or {}).items() if not (fresh and k == b"pandas")}
    return _given_back(pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata or None)), table_format.library)


def _library(X: Any) -> str | None:
    """The library of a table, found without an import; None for anything else."""
    library = type(X).__module__.partition(".")[0]
    if library not in ("polars", "pyarrow"):
        return None
    name = type(X).__name__
    wanted = {"polars": "DataFrame", "pyarrow": "Table"}[library]
    if name != wanted:
        way = "collect() it first" if name == "LazyFrame" else f"make it a {library} {wanted}"
        raise TypeError(f"expected a table, got a {library} {name}: {way}")
    return library


def _arrow(X: Any, library: str) -> pa.Table:
    if library == "pyarrow":
        return X
    for name, dtype in X.schema.items():
        if str(dtype) in NO_ARROW:
            way = "cast it to Int64" if "128" in str(dtype) else "cast it to another type, or drop it"
            raise ValueError(f"column {name!r} is of type {dtype}, which cannot be read: {way}")
    return X.to_arrow()


def _given_back(table: pa.Table, library: str) -> Any:
    return import_module("polars").from_arrow(table) if library == "polars" else table


def _any_nan(cells: pa.ChunkedArray) -> bool:
    return bool(pc.any(pc.is_nan(cells.cast(pa.float64()))).as_py())


def _series(cells: pa.ChunkedArray, field: pa.Field) -> pd.Series:
    """Cells as a pandas column."""
    kind, name = field.type, field.name
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        if not cells.null_count:
            return pd.Series(cells.to_numpy())
        missing = cells.is_null().to_numpy()
        filled = cells.fill_null(False if pa.types.is_boolean(kind) else 0).to_numpy()
        masked = pd.arrays.BooleanArray if pa.types.is_boolean(kind) else pd.arrays.IntegerArray
        return pd.Series(masked(filled, missing))
    if pa.types.is_floating(kind):
        if cells.null_count and _any_nan(cells):
            raise ValueError(
                f"column {name!r} holds both NaN and null, and pandas has one of them: make NaN null, or drop those "
                "rows"
            )
        return pd.Series(cells.to_numpy())
    if pa.types.is_decimal(kind):
        found = [np.nan if v is None else v for v in cells.to_pylist()]
        if any(abs(v.scaleb(kind.scale)) >= 10**DIGITS for v in found if isinstance(v, Decimal)):
            raise ValueError(
                f"column {name!r} holds decimals of more than {DIGITS} digits, which float64 has not: cast it to "
                "fewer, or to floats"
            )
        return pd.Series([float(v) for v in found], dtype=np.float64)
    if pa.types.is_date(kind):
        return cells.cast(pa.timestamp("s" if pa.types.is_date32(kind) else "ms")).to_pandas()
    if pa.types.is_dictionary(kind):
        return _categories(cells, field)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if text or pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_null(kind):
        return cells.to_pandas()
    return pd.Series(pd.array(cells, dtype=pd.ArrowDtype(kind)))


def _categories(cells: pa.ChunkedArray, field: pa.Field) -> pd.Series:
    """A dictionary's cells as categories."""
    kind = field.type
    chunks = cells.unify_dictionaries().chunks
    levels = chunks[0].dictionary if chunks else pa.array([], kind.value_type)
    index = pd.Index(_series(pa.chunked_array([levels]), pa.field(field.name, kind.value_type)))
    parts = [chunk.indices.cast(pa.int64()).fill_null(-1).to_numpy() for chunk in chunks]
    codes = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    try:
        return pd.Series(pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(index, kind.ordered)))
    except ValueError as error:
        raise ValueError(f"column {field.name!r}: its categories cannot be kept: {error}") from error


def _cells(values: pd.Series, kind: pa.DataType, nan: bool) -> pa.Array | pa.ChunkedArray:
    """The inverse of `_series`."""
    if pa.types.is_dictionary(kind):
        codes = values.cat.codes.to_numpy()
        levels = _cells(pd.Series(values.cat.categories), kind.value_type, False)
        levels = levels.combine_chunks() if isinstance(levels, pa.ChunkedArray) else levels
        indices = pa.array(codes, mask=codes < 0).cast(kind.index_type)
        return pa.DictionaryArray.from_arrays(indices, levels, ordered=kind.ordered)
    if pa.types.is_floating(kind):
        x = values.to_numpy(dtype=kind.to_pandas_dtype(), na_value=np.nan)
        return pa.array(x, kind, mask=None if nan else np.isnan(x))
    if pa.types.is_decimal(kind):
        with localcontext() as context:
            context.prec = 80
            step = Decimal(1).scaleb(-kind.scale)
            found = [None if np.isnan(v) else Decimal(v).quantize(step) for v in values.to_numpy(dtype=np.float64)]
        return pa.array(found, kind)
    if pa.types.is_null(kind):
        return pa.nulls(len(values))
    cells = pa.array(values, from_pandas=True)
    return cells if cells.type == kind else cells.cast(kind)
