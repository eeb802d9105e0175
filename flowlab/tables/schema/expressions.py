"""Expressions over columns, parsed into a tree of names, constants and a few operations; nothing in them is ever run.

`read("low + 1 < `unit price` and city in ['Rome']")` returns the tree that `evaluation.evaluate` computes. Python's
parser sees only a copy in which every name and string is a placeholder, so that neither can be taken for code.
"""

import ast
import keyword
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import add, floordiv, mod, mul, pow, sub, truediv
from typing import Any

FUNCTIONS = {  # minimum and maximum number of arguments
    **dict.fromkeys(("abs", "sqrt", "exp", "log", "log1p", "log10", "expm1", "sin", "cos", "tan"), (1, 1)),
    **dict.fromkeys(("floor", "ceil", "isna", "notna"), (1, 1)),
    "round": (1, 2),
    **dict.fromkeys(("min", "max"), (2, 100)),
}
MOST_CHARACTERS, MOST_NODES, MOST_DEPTH = 100_000, 10_000, 200
MOST_LETTERS = 1000  # in a name or number
MOST_INTEGER, MOST_EXPONENT = 2**64, 100  # limits on constants
PLAIN_NAME = r"[^\W\d]\w*"
QUOTED_NAME = r"`(?:[^`]|``)+`"  # a backquote in a name is doubled
TOKEN = re.compile(
    rf"(?P<space>\s+)|(?P<quoted>{QUOTED_NAME})|(?P<name>{PLAIN_NAME})"
    r"|(?P<text>'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")"
    r"|(?P<number>(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<operator>\*\*|//|<=|>=|==|!=|[-+*/%<>&|~()\[\]{},])"
)
ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)")
ESCAPES = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
WORDS = ("and", "or", "not", "in", "True", "False", "None")
LIKE_WORDS = {"&": "and", "|": "or"}  # with the loose precedence that pandas gives them: `x > 0 & y > 0`
OPERATIONS: dict[type[ast.AST], str] = {
    **dict(
        zip(
            (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow), ["+", "-", "*", "/", "//", "%", "**"]
        )
    ),
    **dict(zip((ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq), ["<", "<=", ">", ">=", "==", "!="])),
    **dict(zip((ast.And, ast.Or, ast.Not, ast.Invert), ["and", "or", "not", "not"])),
}
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = dict(
    zip(["+", "-", "*", "/", "//", "%", "**"], (add, sub, mul, truediv, floordiv, mod, pow))
)
ALLOWED = (
    "names of columns (in backquotes where they are no plain words), numbers, strings, True, False, None, comparisons, "
    "+ - * / // % **, and, or, not, &, |, ~, in and not in lists of constants, "
    f"and the functions {', '.join(FUNCTIONS)}"
)


@dataclass(frozen=True)
class Column:
    """A reference to a column."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A number, string or Boolean; to the right of `in`, a tuple of them."""

    value: Any


@dataclass(frozen=True)
class Call:
    """An operation on the values of other nodes."""

    name: str
    arguments: tuple["Node", ...]


Node = Column | Constant | Call
Known = dict[str, Node]  # placeholder -> the column or string it stands for


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: The source.
        node: The root of the tree.
        names: The columns it refers to, in order of appearance.
        needed: The columns a row must not miss to be decided: all but those only in `isna` and `notna`.
    """

    text: str
    node: Node
    names: list[str]
    needed: list[str]


def quote(name: object) -> str:
    """A column's name as written in an expression.

    Example:
        >>> quote("price"), quote("unit price"), quote("class")
        ('price', '`unit price`', '`class`')
    """
    text = str(name)
    plain = re.fullmatch(PLAIN_NAME, text) and not keyword.iskeyword(text)
    return text if plain else f"`{text.replace('`', '``')}`"


def shorten(text: str) -> str:
    """A text for a message, truncated if long."""
    return text if len(text) <= 200 else f"{text[:200]}…"


def unquote(text: str) -> str:
    """The inverse of `quote`."""
    return text[1:-1].replace("``", "`") if text.startswith("`") else text


def names_in(expression: str) -> list[str]:
    """The columns that an expression refers to, in order of appearance. Raises a ValueError as `read` does."""
    return read(expression).names


def read(text: str) -> Expression:
    """Parse an expression.

    Raises:
        ValueError: It is not an expression, uses anything that is not allowed, refers to no column, or is too large.

    Example:
        >>> read("`unit price` > 2 and city != '`'").names
        ['unit price', 'city']
    """
    if not isinstance(text, str):
        raise ValueError(f"a rule's expression must be text, got {type(text).__name__}")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"the rule {shorten(text)!r} has {len(text):,} characters, more than {MOST_CHARACTERS:,}")
    try:
        source = _Source()
        tree = ast.parse(source.rewrite(text), mode="eval").body
        _check_size(tree)
        node = _node(tree, source.nodes())
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise ValueError(f"the rule {shorten(text)!r} cannot be read: {why}. Allowed are {ALLOWED}") from error
    names = list(dict.fromkeys(_columns(node, True)))
    if not names:
        raise ValueError(f"the rule {shorten(text)!r} names no column")
    return Expression(text, node, names, list(dict.fromkeys(_columns(node, False))))


class _Source:
    """An expression's source, with a placeholder for each name and string."""

    def __init__(self) -> None:
        self.places: dict[Node, int] = {}

    def rewrite(self, text: str) -> str:
        tokens, place = [], 0
        while place < len(text):
            match = TOKEN.match(text, place)
            if match is None or match.lastgroup is None:
                raise ValueError(f"{text[place]!r} at character {place + 1} has no meaning here")
            place = match.end()
            if match.lastgroup != "space":
                tokens.append((match.lastgroup, match[0]))
        if len(tokens) > 2 * MOST_NODES:
            raise ValueError(f"it has more than {2 * MOST_NODES:,} words and signs")
        following = [*tokens[1:], ("end", "")]
        return " ".join(self._plain(*token, *after) for token, after in zip(tokens, following, strict=True))

    def _plain(self, kind: str, token: str, next_kind: str, after: str) -> str:
        """The token as Python's parser sees it."""
        if kind in ("text", "name", "quoted") and next_kind == "text" and token not in WORDS:
            raise ValueError(f"{token} stands right before the string {after}")
        if kind == "text":
            return self._place(Constant(unescape(token[1:-1])))
        if kind in ("quoted", "name", "number") and len(token) > MOST_LETTERS:
            raise ValueError(f"{token[:20]}… is longer than {MOST_LETTERS} characters")
        if kind == "quoted":
            return self._place(Column(unquote(token)))
        if kind != "name" or token in WORDS:
            return LIKE_WORDS.get(token, token)
        if after == "(":
            if token not in FUNCTIONS:
                raise ValueError(f"it calls {token}, which is none of the functions")
            return token
        if keyword.iskeyword(token):
            raise ValueError(f"{token!r} is a word of Python's: a column of that name is written `{token}`")
        return self._place(Column(token))

    def _place(self, node: "Column | Constant") -> str:
        return f"place{self.places.setdefault(node, len(self.places))}"

    def nodes(self) -> dict[str, "Node"]:
        """The columns and strings that the placeholders stand for."""
        return {f"place{k}": node for node, k in self.places.items()}


def unescape(text: str) -> str:
    """A string's characters, from the source between its quotes."""

    def character(match: re.Match[str]) -> str:
        escape = match[1]
        if escape[0] in "xuU" and len(escape) > 1:
            return chr(int(escape[1:], 16))
        if escape.isdigit():
            return chr(int(escape, 8))
        return ESCAPES.get(escape, match[0])

    return ESCAPE.sub(character, text)


def _check_size(tree: ast.AST) -> None:
    """Raise a ValueError for a tree that is too large or deep, before anything recurses into it."""
    level: list[ast.AST] = [tree]
    count = 0
    for _ in range(MOST_DEPTH):
        count += len(level)
        if count > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES:,} parts")
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MOST_DEPTH} deep")


def _node(tree: ast.AST, known: Known) -> Node:
    if isinstance(tree, ast.Name):
        if tree.id not in known:
            raise ValueError(f"the function {tree.id} is called with arguments in brackets")
        return known[tree.id]
    if isinstance(tree, ast.Constant):
        return _constant(tree.value)
    if isinstance(tree, ast.UnaryOp):
        return _unary(tree.op, _node(tree.operand, known))
    if isinstance(tree, ast.BinOp) and type(tree.op) in OPERATIONS:
        return _fold(OPERATIONS[type(tree.op)], _node(tree.left, known), _node(tree.right, known))
    if isinstance(tree, ast.BoolOp):
        return Call(OPERATIONS[type(tree.op)], tuple(_node(value, known) for value in tree.values))
    if isinstance(tree, ast.Compare):
        sides = [tree.left, *tree.comparators]
        parts = [_comparison(op, sides[k], sides[k + 1], known) for k, op in enumerate(tree.ops)]
        return parts[0] if len(parts) == 1 else Call("and", tuple(parts))
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in FUNCTIONS:
        return _function(tree, known)
    if isinstance(tree, ast.List | ast.Tuple | ast.Set):
        raise ValueError("a list of constants stands on the right of in or not in only")
    raise ValueError(f"it has a {type(tree).__name__}")


def _constant(value: Any) -> Constant:
    if isinstance(value, int) and abs(value) > MOST_INTEGER:
        raise ValueError("whole numbers go up to 2**64")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is too large")
    if value is None:
        raise ValueError("None stands beside ==, != and in lists only")
    if not isinstance(value, bool | int | float):
        raise ValueError(f"{value!r} is no number")
    return Constant(value)


def _is_number(node: Node) -> bool:
    return isinstance(node, Constant) and isinstance(node.value, bool | int | float)


def _unary(op: ast.AST, operand: Node) -> Node:
    if type(op) in OPERATIONS:
        return Call(OPERATIONS[type(op)], (operand,))
    sign = -1 if isinstance(op, ast.USub) else 1
    if isinstance(operand, Constant) and _is_number(operand):
        return Constant(sign * operand.value)
    return Call("negative" if sign < 0 else "positive", (operand,))


def _fold(name: str, left: Node, right: Node) -> Node:
    """An operation, computed at once if both operands are numbers."""
    if name == "**" and isinstance(right, Constant) and _is_number(right) and abs(right.value) > MOST_EXPONENT:
        raise ValueError(f"exponents go up to {MOST_EXPONENT}")
    if not (isinstance(left, Constant) and isinstance(right, Constant) and _is_number(left) and _is_number(right)):
        return Call(name, (left, right))
    try:
        return _constant(ARITHMETIC[name](left.value, right.value))
    except ArithmeticError as error:
        raise ValueError(f"{left.value} {name} {right.value}: {error}") from error


def _comparison(op: ast.cmpop, left: ast.AST, right: ast.AST, known: Known) -> Node:
    lists = (ast.List, ast.Tuple, ast.Set)
    if isinstance(left, lists) and not isinstance(right, lists) and isinstance(op, ast.Eq | ast.NotEq):
        left, right = right, left
    if isinstance(op, ast.In | ast.NotIn) or (isinstance(op, ast.Eq | ast.NotEq) and isinstance(right, lists)):
        # In pandas, `city == ['Rome', 'Oslo']` means the same.
        if not isinstance(right, lists):
            raise ValueError("in needs a list of constants on its right")
        elements = [_node(element, known) for element in right.elts if not _is_none(element)]  # no cell equals None
        if not all(isinstance(element, Constant) for element in elements):
            raise ValueError("a list holds constants only")
        values = tuple(element.value for element in elements if isinstance(element, Constant))
        inside = Call("in", (_node(left, known), Constant(values)))
        return inside if isinstance(op, ast.In | ast.Eq) else Call("not", (inside,))
    if type(op) not in OPERATIONS:
        raise ValueError("it has an is: write == or !=")
    if isinstance(op, ast.Eq | ast.NotEq) and (_is_none(left) or _is_none(right)):
        return Call("isna" if isinstance(op, ast.Eq) else "notna", (_node(right if _is_none(left) else left, known),))
    return Call(OPERATIONS[type(op)], (_node(left, known), _node(right, known)))


def _is_none(tree: ast.AST) -> bool:
    return isinstance(tree, ast.Constant) and tree.value is None


def _function(tree: ast.Call, known: Known) -> Node:
    name = tree.func.id  # type: ignore[attr-defined]  # an ast.Name, as the caller checked
    least, most = FUNCTIONS[name]
    if tree.keywords or not least <= len(tree.args) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise ValueError(f"{name} takes {wanted} argument{'s' * (wanted != '1')}")
    arguments = tuple(_node(argument, known) for argument in tree.args)
    if name == "round" and len(arguments) == 2:
        digits = arguments[1]
        if not (isinstance(digits, Constant) and type(digits.value) is int and abs(digits.value) <= 15):
            raise ValueError("round takes a whole number of digits from -15 to 15")
    return Call(name, arguments)


def _columns(node: Node, all_: bool) -> Iterator[str]:
    """The columns in a tree from left to right, without those in `isna` and `notna` unless `all_`."""
    if isinstance(node, Column):
        yield node.name
    elif isinstance(node, Call) and (all_ or node.name not in ("isna", "notna")):
        for argument in node.arguments:
            yield from _columns(argument, all_)
