"""Expressions over columns, as `DataFrame.eval` reads them, and nothing that could do more than compute."""

import ast
import re

import pandas as pd

FUNCTIONS = ("abs", "sqrt", "exp", "log", "log1p", "log10", "expm1", "sin", "cos", "tan", "floor", "ceil")
ALLOWED = (
    *(ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Name, ast.Constant, ast.List, ast.Tuple),
    *(ast.Call, ast.Load, ast.boolop, ast.operator, ast.unaryop, ast.cmpop),
)


def quote(name: object) -> str:
    """A column's name as it stands in an expression."""
    text = str(name)
    return text if text.isidentifier() else f"`{text}`"


def names_in(expression: str) -> list[str]:
    """The columns that an expression names, in the order of their appearance.

    Raises:
        ValueError: It is no expression, or does more than compute: pandas would run any method that it calls.
    """
    quoted: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        return quoted.setdefault(match[1], f"quoted_{len(quoted)}_")

    try:
        tree = ast.parse(re.sub(r"`([^`]+)`", stand_in, expression).strip(), mode="eval")
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"the rule {expression!r} cannot be read: {error}") from error
    original = {stand: name for name, stand in quoted.items()}
    called = []
    names = []
    for node in ast.walk(tree):
        if not isinstance(node, ALLOWED):
            raise ValueError(
                f"the rule {expression!r} has a {type(node).__name__}: only names, numbers, operators and {', '.join(FUNCTIONS)}"
            )
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS) or node.keywords:
                raise ValueError(
                    f"the rule {expression!r} calls {ast.unparse(node.func)}: the only functions are {', '.join(FUNCTIONS)}"
                )
            called.append(node.func)
        if isinstance(node, ast.Name) and node not in called:
            names.append((node.lineno, node.col_offset, original.get(node.id, node.id)))
    if not names:
        raise ValueError(f"the rule {expression!r} names no column")
    return list(dict.fromkeys(name for *_, name in sorted(names)))


def evaluate(expression: str, df: pd.DataFrame) -> pd.Series:
    """An expression's value in each row. Its names have been checked: pandas looks up others among Python's variables."""
    names = names_in(expression)
    try:
        return pd.Series(df[names].eval(expression, engine="python"), index=df.index)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"the rule {expression!r} cannot be computed from columns {names}: {error}") from error
