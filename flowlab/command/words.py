"""Errors and notes in the words of a shell, since the library's advice names arguments and functions of Python."""

import ast
import re
import shlex
from collections.abc import Iterable

COLUMN = re.compile(r"column ('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+)")
SCHEMA = re.compile(r"schema=(\{[^{}]*\})")
READ = r"(?:convert|read) (?:it |them )?with "
PHRASES = (  # what the library says -> what to do in a shell; NAME is the column that was named before
    (rf"(?:{READ})?pd\.to_datetime(?:\([^()]*\))?", "read it with --dtype NAME=date"),
    (rf"(?:{READ})?pd\.to_timedelta(?:\([^()]*\))?", "read it with --dtype NAME=duration"),
    (rf"(?:{READ})?pd\.to_numeric(?:\([^()]*\))?", "read it with --dtype NAME=number"),
    (rf"(?:{READ})?\.astype\((?:float|int)\)", "read it with --dtype NAME=number"),
    (rf"(?:{READ})?\.astype\((?:str|\"category\")\)", "read it with --dtype NAME=text"),
    (rf"{READ}\.[\w.]+\([^()]*\)", "convert it in the file"),
    (r"drop those rows, or make the cells missing$", "drop those rows, or read them as missing: --missing inf,-inf"),
    (r", \.dt\.as_unit\('s'\)", ""),
    (r"make it a string if", "read it with --dtype NAME=text if"),
    (r"cast it to fewer, or to floats", "--dtype NAME=number rounds it"),
    (r"it with members=\[\"mixed\"\]", "it with --members mixed"),
    (r"it with members=\[[^\]]*\]", "it with --members autoregressive,mixture,copula,broad"),
    (r"leave members out, or name \"mixed\" among them", "leave --members out, or name mixed among them"),
    (r"model\.score_samples", "flowlab score"),
    (r"model\.sample\b", "flowlab sample"),
)


def in_shell(message: str) -> str:
    """Translate a message of the library: options in place of arguments.

    Example:
        >>> in_shell("column 'day' holds text: convert it with pd.to_datetime(...), or use schema={'day': 'excluded'}")
        "column 'day' holds text: read it with --dtype day=date, or use --exclude day"
    """
    lines = [_line(line) for line in message.split("\n")]
    left_out = [name for line in lines for name in re.findall(r"Leave it out with --exclude ('[^']*'|\S+), or", line)]
    if len(left_out) > 1:
        lines.append(f"All of them are left out with --exclude {','.join(left_out)}")
    return "\n".join(lines)


def _line(line: str) -> str:
    line = SCHEMA.sub(_option, line)
    for pattern, said in PHRASES:
        while match := re.search(pattern, line):
            line = (
                line[: match.start()] + said.replace("NAME", _named_before(line, match.start())) + line[match.end() :]
            )
    return line


def _option(match: re.Match[str]) -> str:
    """Translate schema={...} into options."""
    try:
        given = ast.literal_eval(match[1])
    except (ValueError, SyntaxError):
        return match[0]
    if not given or not all(isinstance(kind, str) for kind in given.values()):
        return match[0]
    return " ".join(
        f"--exclude {name_word(name)}" if kind == "excluded" else f"--dtype {name_word(name)}={kind}"
        for name, kind in given.items()
    )


def _named_before(line: str, place: int) -> str:
    """Find the last column that a line names before a place."""
    named = COLUMN.findall(line[:place])
    if named:
        return name_word(ast.literal_eval(named[-1]))
    row = re.match(r"\s*(\S+(?: \S+)*)  ", line)  # of a printed schema
    return name_word(row[1]) if row else "COLUMN"


def word(text: object) -> str:
    """Quote a text as one word of a shell."""
    return shlex.quote(str(text))


def name_word(name: object) -> str:
    """Quote a column's name as one word of a shell, as options that take lists of names read it.

    Example:
        >>> print(name_word("zip"), name_word("unit price"), name_word("a,b"))
        zip 'unit price' '"a,b"'
    """
    text = str(name)
    if re.search(r"[,=|:]|^[\"']|^\s|\s$", text):
        text = '"' + text.replace('"', '""') + '"'
    return word(text)


def names_of(lists: Iterable[str]) -> list[str]:
    """Parse names from lists separated by commas; a name in quotation marks may hold commas.

    Example:
        >>> names_of(["a, b", '"c,d"'])
        ['a', 'b', 'c,d']
    """
    return [unquoted(part) for text in lists for part in split(text, ",") if part.strip()]


def split(text: str, mark: str, limit: int = -1) -> list[str]:
    """Split a text at the marks that stand outside quotation marks.

    Example:
        >>> split('city="Rome, Italy",x=1', ",")
        ['city="Rome, Italy"', 'x=1']
    """
    masked, parts, start = _masked(text), [], 0
    places = [k for k, letter in enumerate(masked) if letter == mark]
    for place in places if limit < 0 else places[:limit]:
        parts.append(text[start:place])
        start = place + 1
    return [*parts, text[start:]]


def _masked(text: str) -> str:
    """Blank the parts in quotation marks, where they are all that stands between two marks; the length stays."""
    quoted = r"""((?:^|[,=|:])\s*)("(?:[^"]|"")*"|'(?:[^']|'')*')(?=\s*(?:$|[,=|:]))"""
    return re.sub(quoted, lambda match: match[1] + "\0" * len(match[2]), text)


def unquoted(text: str) -> str:
    """Remove a part's quotation marks; two of them in a row inside stand for one."""
    text = text.strip()
    if is_quoted(text):
        return text[1:-1].replace(text[0] * 2, text[0])
    return text


def is_quoted(text: str) -> bool:
    """Whether a part stands in quotation marks."""
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
