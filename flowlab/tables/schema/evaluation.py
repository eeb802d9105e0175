"""Evaluate an expression's tree on all rows of a table at once.

A value is unknown if it depends on a missing cell, or on arithmetic without a result, such as division by zero; `and`,
`or` and `not` follow three-valued logic. Booleans count as 0 and 1 where numbers are expected, and integers never
overflow.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import add, eq, ge, gt, le, lt, ne, sub
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.tables.frames import cells
from flowlab.tables.schema.expressions import ARITHMETIC, Column, Constant, Expression, Node, shorten
from flowlab.tables.schema.values import Data, Rows, Values, as_times, exactly, of_column, of_constant, whole_numbers

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = dict(
    zip(["<", "<=", ">", ">=", "==", "!="], (lt, le, gt, ge, eq, ne))
)
FLOATS: dict[str, Callable[[Data], Data]] = dict(
    zip(
        ["sqrt", "exp", "log", "log1p", "log10", "expm1", "sin", "cos", "tan"],
        (np.sqrt, np.exp, np.log, np.log1p, np.log10, np.expm1, np.sin, np.cos, np.tan),
    )
)
SIGNS: dict[str, Callable[[Data], Data]] = {"abs": np.abs, "negative": np.negative, "positive": np.positive}


def evaluate(expression: Expression, df: pd.DataFrame) -> Values:
    """An expression's value in each row.

    Raises:
        ValueError: A column is not in the table, or an operation does not apply to its type. The message names the rule
            and the columns.

    Example:
        >>> from flowlab.tables.schema.expressions import read
        >>> df = pd.DataFrame({"a": [200, 100], "b": [100, None]}).astype({"a": "uint8"})
        >>> result = evaluate(read("a + b > 255"), df)
        >>> result.data.tolist(), result.known.tolist()
        ([True, False], [True, False])
    """
    lacking = [name for name in expression.names if name not in df.columns]
    if lacking:
        raise ValueError(
            f"the rule {shorten(expression.text)!r} names column {lacking[0]!r}, which is not in the table"
        )
    try:
        with np.errstate(all="ignore"):
            result = _value(expression.node, df)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"the rule {shorten(expression.text)!r} cannot be computed from columns {expression.names}: {error}"
        ) from error
    shape = (len(df),)
    return replace(result, data=np.broadcast_to(result.data, shape), known=np.broadcast_to(result.known, shape))


def to_floats(values: Values, name: Any) -> NDArray[np.float64]:
    """Numbers or Booleans as float64, NaN where unknown.

    Raises:
        ValueError: They are neither numbers nor Booleans.
    """
    if values.kind == "nothing":
        return np.full(len(values.data), np.nan)
    if values.kind not in ("number", "boolean") or values.levels is not None:
        raise ValueError(f"column {name!r}: expected numbers, got {values.kind}")
    data = np.where(values.known, values.data, 0)
    return np.where(values.known, data.astype(np.float64), np.nan)


def _value(node: Node, df: pd.DataFrame) -> Values:
    if isinstance(node, Column):
        return of_column(df[node.name], node.name)
    if isinstance(node, Constant):
        return of_constant(node.value)
    if node.name == "in":
        assert isinstance(node.arguments[1], Constant)
        return _among(_value(node.arguments[0], df), node.arguments[1].value)
    arguments = [_value(argument, df) for argument in node.arguments]
    if node.name in ("and", "or"):
        return reduce(lambda a, b: _both(node.name, a, b), arguments)
    if node.name in COMPARISONS:
        return compare(node.name, *arguments)
    if node.name in ARITHMETIC:
        return arithmetic(node.name, *arguments)
    return call(node.name, arguments)


def _alike(a: Values, b: Values) -> tuple[Data, Data]:
    """The numbers of both operands in types that numpy compares exactly."""
    x, y = (v.data.astype(np.int64) if v.kind == "boolean" else v.data for v in (a, b))
    if {x.dtype.kind, y.dtype.kind} == {"i", "f"}:
        whole = x if x.dtype.kind == "i" else y
        if len(whole) and max(abs(int(whole.min())), abs(int(whole.max()))) > cells.EXACT:
            return x.astype(object), y.astype(object)
    return x, y


def _family(values: Values) -> str:
    return "number" if values.kind == "boolean" else values.kind


def _unknown(a: Values, b: Values, what: str) -> Values:
    data = np.zeros(np.broadcast_shapes(a.data.shape, b.data.shape), dtype=bool)
    return Values("nothing", data, data, what)


def _join(a: Values, sign: str, b: Values) -> str:
    text = f"{a.what} {sign} {b.what}"
    return text if len(text) <= 120 else text[:120] + "…"


def compare(sign: str, a: Values, b: Values) -> Values:
    """One of < <= > >= == !=."""
    a, b = as_times(a, b), as_times(b, a)
    what = _join(a, sign, b)
    if "nothing" in (a.kind, b.kind):
        return _unknown(a, b, what)
    known = a.known & b.known
    equality = sign in ("==", "!=")
    if not equality and (a.levels is not None or b.levels is not None):
        x, y = _ranks(a, b)
    elif equality and "mixed" in (a.kind, b.kind):
        x, y = a.data.astype(object), b.data.astype(object)
    elif _family(a) != _family(b):
        advice = _advice(a, b)
        raise ValueError(f"{a}, {b}: {sign} needs two of a kind{advice}")
    elif a.kind == "mixed":
        raise ValueError(f"{a}, which have no order")
    elif a.kind == "datetime" and (a.zone is None) != (b.zone is None):
        raise ValueError(f"{(a, b)[a.zone is None].what} has a time zone, {(b, a)[a.zone is None].what} has none")
    elif _family(a) == "number":
        x, y = _alike(a, b)
    else:
        x, y = a.data, b.data
    return Values("boolean", np.asarray(COMPARISONS[sign](x, y), dtype=bool), known, what)


def _advice(a: Values, b: Values) -> str:
    kinds = {_family(a), _family(b)}
    if kinds == {"number", "text"}:
        return ": put numbers that are text in quotes, or convert the column with pd.to_numeric"
    return ": convert the column with pd.to_datetime or pd.to_timedelta" if "text" in kinds else ""


def _ranks(a: Values, b: Values) -> tuple[Data, Data]:
    """Both operands as positions in the order of a categorical dtype's levels."""
    of = a if a.levels is not None else b
    other = b if of is a else a
    assert of.levels is not None
    assert of.codes is not None
    if not of.ordered or (other.levels is not None and not other.ordered):
        unordered = other if of.ordered else of
        raise ValueError(f"{unordered.what} has levels without an order: make it .cat.as_ordered(), or use == or in")
    if other.levels is not None:
        if list(other.levels) != list(of.levels):
            raise ValueError(f"{a.what} and {b.what} have levels in different orders")
        codes = other.codes
    else:
        code_of = {(type(level) is bool, level): k for k, level in enumerate(of.levels)}
        positions = [code_of.get((type(value) is bool, value), -1) for value in other.data.tolist()]
        if not other.constant:
            raise ValueError(
                f"{of.what} is an ordered category, {other.what} is none: compare it with one of its levels"
            )
        if positions[0] < 0:
            raise ValueError(f"{of.what} has no level {other.what}; there are {', '.join(map(repr, of.levels[:20]))}")
        codes = np.array(positions)
    assert codes is not None
    return (of.codes, codes) if of is a else (codes, of.codes)


def _among(values: Values, wanted: Sequence[Any]) -> Values:
    """Which values are in a list of constants."""
    matches = [compare("==", values, of_constant(value)) for value in wanted]
    what = f"{values.what} in …"
    if values.kind == "nothing" or not matches:
        return Values("boolean", np.zeros_like(values.known), values.known, what)
    return Values("boolean", np.logical_or.reduce([part.data for part in matches]), values.known, what)


def _truth(values: Values) -> Values:
    if values.kind not in ("boolean", "nothing"):
        raise ValueError(f"{values}, neither true nor false: compare it with something")
    return values


def _both(name: str, a: Values, b: Values) -> Values:
    """`and` and `or`: known as soon as one operand decides."""
    a, b = _truth(a), _truth(b)
    decides = name == "or"
    certain = (a.known & (a.data == decides)) | (b.known & (b.data == decides))
    known = certain | (a.known & b.known)
    return Values("boolean", certain if decides else ~certain, known, _join(a, name, b))


def arithmetic(sign: str, a: Values, b: Values) -> Values:
    """One of + - * / // % **."""
    a, b = (as_times(a, b), as_times(b, a)) if sign in "+-" else (a, b)
    what = _join(a, sign, b)
    if "nothing" in (a.kind, b.kind):
        return _unknown(a, b, what)
    known = a.known & b.known
    kinds = (_family(a), _family(b))
    if a.levels is not None or b.levels is not None:
        of = a if a.levels is not None else b
        raise ValueError(f"{of.what} is a category, with which nothing can be computed: convert it with .astype(...)")
    if kinds == ("number", "number"):
        return _of_numbers(sign, a, b, known, what)
    if kinds == ("text", "text") and sign == "+":
        return Values("text", a.data + b.data, known, what)
    if "datetime" in kinds or "timedelta" in kinds:
        return _of_times(sign, a, b, known, what)
    raise ValueError(f"{a}, {b}: {sign} is not for them")


def _of_numbers(sign: str, a: Values, b: Values, known: Rows, what: str) -> Values:
    x, y = (v.data.astype(np.int64) if v.kind == "boolean" else v.data for v in (a, b))
    if sign in ("/", "//", "%"):
        known = known & (y != 0).astype(bool)
        y = np.where(y == 0, np.ones((), dtype=y.dtype) if y.dtype != object else 1, y)
    if sign == "**":
        known = known & ~((x == 0) & (y < 0)).astype(bool)
    whole = x.dtype.kind != "f" and y.dtype.kind != "f"
    x, y = np.broadcast_arrays(x, y)
    if whole:  # unknown cells must not cause an overflow
        x, y = np.where(known, x, 1), np.where(known, y, 1)
    if sign == "/" and whole and object not in (x.dtype, y.dtype):
        whole = max(np.abs(x).max(initial=0), np.abs(y).max(initial=0)) > cells.EXACT
    if sign == "/" and whole:
        data = (x.astype(object) / y.astype(object)).astype(np.float64)
    elif whole and not (sign == "**" and (y < 0).any()):
        data = exactly(ARITHMETIC[sign], x, y)
    else:
        data = ARITHMETIC[sign](x.astype(np.float64), y.astype(np.float64))
    if data.dtype.kind == "f":
        known = known & ~np.isnan(data)
    return Values("number", data, known, what)


def _of_times(sign: str, a: Values, b: Values, known: Rows, what: str) -> Values:
    kinds = (_family(a), _family(b))
    if sign in "+-" and kinds in (("timedelta", "timedelta"), ("datetime", "timedelta")):
        return Values(a.kind, exactly(ARITHMETIC[sign], a.data, b.data), known, what, zone=a.zone)
    if sign == "+" and kinds == ("timedelta", "datetime"):
        return Values("datetime", exactly(add, a.data, b.data), known, what, zone=b.zone)
    if sign == "-" and kinds == ("datetime", "datetime"):
        if (a.zone is None) != (b.zone is None):
            raise ValueError(f"{(a, b)[a.zone is None].what} has a time zone, {(b, a)[a.zone is None].what} has none")
        return Values("timedelta", exactly(sub, a.data, b.data), known, what)
    if (sign == "*" and set(kinds) == {"timedelta", "number"}) or (
        sign == "/" and kinds[0] == "timedelta" and kinds[1] in ("timedelta", "number")
    ):
        result = _of_numbers(sign, replace(a, kind="number"), replace(b, kind="number"), known, what)
        return (
            result if kinds == ("timedelta", "timedelta") else replace(result, kind="timedelta", data=_rounded(result))
        )
    raise ValueError(f"{a}, {b}: {sign} is not for them")


def _rounded(values: Values) -> Data:
    """Times rounded to whole nanoseconds."""
    if values.data.dtype.kind != "f":
        return values.data
    data = np.where(values.known, values.data, 0.0)
    if not np.isfinite(data).all():
        raise ValueError(f"{values.what} becomes too large")
    return whole_numbers([round(v) for v in data.tolist()])


def call(name: str, arguments: list[Values]) -> Values:
    """A function, `not`, or a sign."""
    a = arguments[0]
    what = f"{name}({a.what})"
    if name in ("isna", "notna"):
        return Values("boolean", a.known == (name == "notna"), np.ones_like(a.known), what)
    if name == "not":
        return replace(_truth(a), data=~a.data.astype(bool), what=what)
    if name in ("min", "max"):
        return reduce(lambda x, y: _extreme(name, x, y), arguments)
    if a.kind == "nothing":
        return replace(a, what=what)
    times = a.kind == "timedelta" and name in ("abs", "negative", "positive")
    if not times and (_family(a) != "number" or a.levels is not None):
        raise ValueError(f"{a}: {name} is for numbers")
    data = a.data.astype(np.int64) if a.kind == "boolean" else a.data
    if name in ("abs", "negative", "positive"):
        if data.dtype.kind == "i" and (data == -(2**63)).any():
            data = data.astype(object)
        data = SIGNS[name](data)
        return Values("timedelta" if times else "number", data, a.known, what)
    if name in ("floor", "ceil", "round"):
        digits = int(arguments[1].data[0]) if len(arguments) == 2 else 0
        return Values("number", _to_whole(name, data, digits), a.known, what)
    data = FLOATS[name](data.astype(np.float64))
    known = a.known & ~np.isnan(data) & ~np.isneginf(data)  # log(0) has no value
    return Values("number", data, known, what)


def _to_whole(name: str, data: Data, digits: int) -> Data:
    if data.dtype.kind == "f":
        return np.round(data, digits) if name == "round" else np.floor(data) if name == "floor" else np.ceil(data)
    return whole_numbers([round(int(v), digits) for v in data.tolist()]) if digits < 0 else data


def _extreme(name: str, a: Values, b: Values) -> Values:
    """The minimum or maximum of two values."""
    a, b = as_times(a, b), as_times(b, a)
    first = compare("<" if name == "min" else ">", a, b)
    if first.kind == "nothing":
        return first
    x, y = _alike(a, b) if _family(a) == "number" else (a.data, b.data)
    if "f" in (x.dtype.kind, y.dtype.kind):
        x, y = x.astype(np.float64), y.astype(np.float64)
    data = np.where(first.data, x, y)
    return Values(
        _family(a), data, first.known, f"{name}({a.what}, {b.what})", zone=a.zone if a.zone is not None else b.zone
    )
