"""Codecs read from files are tried on made-up cells, so that inconsistent ones fail at loading."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.hints import check_arguments, fits, hints_of, shown
from flowlab.tables.codec.codec import Codec
from flowlab.tables.codec.columns import (
    Variable,
    decode_column,
    derived_numbers,
    encode_column,
    from_numbers,
    possible_cells,
)
from flowlab.tables.frames import cells
from flowlab.tables.frames.cells import NULLS
from flowlab.tables.schema.column import LEVELLED, ColumnSchema
from flowlab.tables.schema.grid import on_grid
from flowlab.tables.schema.levels import take_levels
from flowlab.tables.schema.stored import LABEL, check_dtype, check_dtypes, column_from


def try_codec(codec: Codec) -> None:
    """Decode and encode made-up cells of every column, and raise whatever that raises.

    The cells are made up: every level, numbers within their bounds, and a missing one where there can be some.
    """
    done: dict[Any, pd.Series] = {}
    for column in codec.schema:
        if column.modelled:
            variables = codec.variables[codec._places[column.name]]
            block = np.column_stack([_trial(variable) for variable in variables])
            block[-1] = np.nan if column.nullable else block[0]
            done[column.name] = decode_column(column, variables, block)
            possible_cells(column, variables, encode_column(column, done[column.name]), done[column.name])
            if column.kind in LEVELLED:
                take_levels(column, column.categories, np.arange(len(column.categories)))
        elif column.kind == "constant":
            code = 0 if column.value is not None else -1
            done[column.name] = take_levels(column, [column.value], np.full(3, code))
        elif column.kind == "duplicate":
            done[column.name] = codec._repeat(column, _known(done, column.duplicate_of, column))
        elif column.kind == "derived":
            _try_derived(column, done)
            continue
        if column.kind in ("constant", "duplicate"):
            codec._agrees(column, done)  # which looks up columns by name alone


def _trial(variable: Variable) -> NDArray[np.float64]:
    """Three cells that a variable can have."""
    if variable.classes:
        return np.array([0.0, variable.classes - 1.0, 0.0])
    low = variable.lower if math.isfinite(variable.lower) else variable.upper if math.isfinite(variable.upper) else 0.0
    return np.full(3, float(on_grid(np.array(low), variable.resolution)) if variable.resolution else low)


def _known(done: Mapping[Any, pd.Series], name: Any, column: ColumnSchema) -> pd.Series:
    if name not in done:
        raise ValueError(f"column {shown(column.name)} is made of {shown(name)}, which does not come before it")
    return done[name]


def _try_derived(column: ColumnSchema, done: dict[Any, pd.Series]) -> None:
    """The same for a derived column; a made-up value outside its dtype's range is replaced by zero."""
    if len(column.sources) != len(column.weights):
        raise ValueError(
            f"column {shown(column.name)} has {len(column.sources)} sources and {len(column.weights)} weights"
        )
    if type(column.value) not in (int, float):
        raise ValueError(f"column {shown(column.name)} has no intercept")
    for source in column.sources:
        cells.numbers(_known(done, source, column), source)
    derived_numbers(column, done)
    done[column.name] = from_numbers(column, np.zeros(3))


def check_rule(rule: Any) -> None:
    """Raise a ValueError if what a rule has learnt has another type than the rule learns."""
    known = {f.name: getattr(rule, f.name) for f in fields(rule)}
    check_arguments(type(rule).__name__, known, hints_of(type(rule)))
    if not fits([*rule.columns(), *rule.overrides(), *rule.order], list[LABEL]):
        raise ValueError("the columns of a rule are no names")
    if known.get("null", "None") not in NULLS:
        raise ValueError(f"null cannot be {shown(known['null'])}")
    if known.get("dtype"):
        check_dtype(known["dtype"])


def check_combinations(codec: Codec, rule: Any) -> None:
    """Raise a ValueError unless a rule's combinations match the levels of its column."""
    check_dtypes([column_from(schema) for schema in rule.schemas])
    rows = [json.loads(text) for text in rule.combinations]
    if not fits(rows, list[list[LABEL | None]]) or {len(row) for row in rows} | {len(rule.schemas)} != {
        len(rule.names)
    }:
        raise ValueError(f"the combinations of {shown(rule.name)} are not of its columns")
    if rule.name in codec.schema and not set(codec.schema[rule.name].categories) <= set(rule.combinations):
        raise ValueError(f"the levels of {shown(rule.name)} are none of its combinations")


def check_ends(ends: Any, dtypes: Mapping[Any, str]) -> None:
    """Raise a ValueError unless these are first and last times of columns, with time zones as the columns' dtypes."""
    if not fits(ends, list[tuple[LABEL, str, str]]) or len(ends) > len(dtypes):
        raise ValueError("the ends of times are not names with two times each")
    for name, *stamps in ends:
        for stamp in map(pd.Timestamp, stamps):
            zoned = name in dtypes and cells.zone_of(cells.dtype_of(dtypes[name])) is not None
            if stamp is pd.NaT or (name in dtypes and (stamp.tz is not None) != zoned):
                raise ValueError(f"column {shown(name)}: an end of its times has another time zone than the column")
