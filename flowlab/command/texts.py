"""Parse columns of strings as numbers, times and booleans.

Every function takes the cells that are not missing, and returns None where one of them is of another kind. How numbers
and days are written is inferred from the cells; where they leave two ways open, `Unclear` is raised.
"""

import re
from collections.abc import Callable, Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

TRUE, FALSE = ("true", "yes", "t", "y", "1", "1.0"), ("false", "no", "f", "n", "0", "0.0")
NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?$"
WHOLE = r"^[+-]?\d+$"
INFINITE = r"(?i)^[+-]?inf(?:inity)?$"
CODE = r"^[+-]?0\d+$"  # a number would lose its zeros
MONEY = r"(?:R?\$|[€£¥₹]|USD|EUR|GBP|CHF|JPY|CNY|CAD|AUD|SEK|NOK|DKK|PLN|BRL|INR|kr\.?|zł)"
AMOUNT = rf"^\(?[+-]?\s?{MONEY}?\s?[+-]?\d+(?:[ ,.'’\x{{a0}}\x{{202f}}]\d{{3}})*(?:[.,]\d+)?\s?(?:%|{MONEY})?\)?$"
ISO = r"^\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?)?"
ZONE = r"(?:Z|[+-]\d{2}(?::?\d{2})?)$"
DAYS = r"^\d{4}-\d{2}-\d{2}$"
CLOCK = r"^\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?$"
SPAN = r"^-?\d+ days?(?: ,?[+-]?\d{2}:\d{2}:\d{2}(?:\.\d{1,9})?)?$"
ISO_SPAN = r"^[+-]?P(?:\d+W)?(?:\d+D)?(?:T(?:\d+H)?(?:\d+M)?(?:\d+(?:\.\d{1,9})?S)?)?$"
DATE = (
    r"^(?:\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}[./-]\d{1,2}[./-]\d{1,2}"
    r"|\d{1,2}[ .-]+[A-Za-z]{3,9}\.?[ -]\d{2,4}|[A-Za-z]{3,9}\.? \d{1,2},? \d{4})"
    r"(?:[ T]\d{1,2}:\d{2}(?::\d{2})?(?: ?[AaPp][Mm])?)?$"
)
DAY_FORMATS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d"),
    *(
        "%d.%m.%Y",
        "%d.%m.%y",
        "%d/%m/%Y",
        "%m/%d/%Y",
        "%d/%m/%y",
        "%m/%d/%y",
        "%d-%m-%Y",
        "%m-%d-%Y",
        "%d-%m-%y",
        "%m-%d-%y",
    ),
    *("%d %b %Y", "%d %B %Y", "%d. %B %Y", "%d-%b-%Y", "%d-%b-%y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y"),
)
CLOCK_FORMATS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", "T%H:%M:%S")
LOOK = 200  # cells in which formats of days are tried before all are


class Unclear(ValueError):
    """Cells can be read by several formats, and mean different days by each.

    Args:
        example: The first of the cells.
        formats: Two of the formats.
    """

    def __init__(self, example: str, formats: tuple[str, str]) -> None:
        super().__init__(f"{example!r} and all other cells are days by {formats[0]} and by {formats[1]}")
        self.formats = formats


def like(words: pa.Array, pattern: str) -> bool:
    """Whether all cells match a pattern."""
    return bool(pc.all(pc.match_substring_regex(words, pattern)).as_py())


def truth(words: pa.Array, more: bool = False) -> pd.Series | None:
    """Parse true and false; with `more` also yes and no, 1 and 0."""
    lower = pc.utf8_lower(words)
    yes, no = (TRUE, FALSE) if more else (TRUE[:1], FALSE[:1])
    if not pc.all(pc.is_in(lower, pa.array([*yes, *no]))).as_py():
        return None
    return pd.Series(pc.is_in(lower, pa.array(yes)).to_numpy(zero_copy_only=False), dtype=bool)


def numbers(words: pa.Array, decimal: str = ".") -> pd.Series | None:
    """Parse numbers as programs write them: int64 where all are whole and fit, else float64."""
    if decimal == ",":
        if pc.any(pc.match_substring(words, ".")).as_py():
            return None
        words = pc.replace_substring(words, ",", ".")
    finite = pc.match_substring_regex(words, NUMBER)
    if not pc.all(pc.or_(finite, pc.match_substring_regex(words, INFINITE))).as_py():
        return None
    words = pc.replace_substring_regex(words, r"^\+", "")
    if like(words, WHOLE):
        try:
            return pd.Series(words.cast(pa.int64()).to_numpy())
        except pa.ArrowInvalid:  # it does not hold them
            pass
    return pd.Series(pc.utf8_lower(words).cast(pa.float64()).to_numpy())


def amounts(words: pa.Array, decimal: str | None = None) -> pd.Series | None:
    """Parse numbers as people write them: "$1,658.18", "15 %", "1 234,50", "(3.00)"."""
    if not like(words, AMOUNT):
        return None
    negative = pc.match_substring_regex(words, r"^\(.*\)$|-")
    bare = pc.replace_substring_regex(words, r"[^0-9.,]", "")
    found = numbers(_ungrouped(bare, decimal), ".")
    return None if found is None else found.where(~pd.Series(negative.to_numpy(zero_copy_only=False)), -found)


def _ungrouped(words: pa.Array, decimal: str | None) -> pa.Array:
    """Remove the marks between thousands, and make the decimal mark a point.

    A decimal mark that is not given is inferred from the cells.
    """
    if decimal is None:
        both = words.filter(pc.and_(pc.match_substring(words, "."), pc.match_substring(words, ",")))
        if len(both):
            decimal = "." if like(both, r"^[^.]*\.[^.,]*$") else ","
        else:  # groups have three digits, fractions rarely: a comma before three digits stands between thousands
            groups = pc.or_(
                pc.match_substring_regex(words, r"^[1-9]\d{0,2}(?:,\d{3})*$"),
                pc.match_substring_regex(words, r"^[^,]*$"),
            )
            decimal = "." if pc.all(groups).as_py() else ","
    group = "," if decimal == "." else "."
    grouped = pc.match_substring_regex(words, rf"^\d{{1,3}}(?:\{group}\d{{3}})+(?:\{decimal}\d*)?$")
    plain = pc.if_else(grouped, pc.replace_substring(words, group, ""), words)
    return plain if decimal == "." else pc.replace_substring(plain, ",", ".")


def times(words: pa.Array) -> pd.Series | None:
    """Parse ISO days and times, in the unit that their fractions need; times with a zone become UTC."""
    zoned = like(words, ISO + ZONE)
    if not zoned and not like(words, ISO + "$"):
        return None
    unit = _unit(words)
    try:
        found = words.cast(pa.timestamp(unit, "UTC" if zoned else None))
    except pa.ArrowInvalid:  # no such day, or one that the unit does not reach
        return None
    return pa.chunked_array([found]).to_pandas()


def days(words: pa.Array, form: str | None = None) -> pd.Series | None:
    """Parse days and times as people write them, or by a format.

    Raises:
        Unclear: Another format fits as well, and gives other days.
    """
    if form is not None:
        return _by_format(words, form)
    if (iso := times(words)) is not None:
        return iso
    few, fits = words.slice(0, LOOK), []
    for candidate in [day + clock for clock in CLOCK_FORMATS for day in DAY_FORMATS]:
        if _by_format(few, candidate) is not None and (found := _by_format(words, candidate)) is not None:
            fits.append((found, candidate))
    if not fits:
        return None
    for other, candidate in fits[1:]:
        if not other.equals(fits[0][0]):
            raise Unclear(words[0].as_py(), (fits[0][1], candidate))
    return fits[0][0]


def _by_format(words: pa.Array, form: str) -> pd.Series | None:
    try:
        found = pd.to_datetime(pd.Series(words.to_pylist(), dtype=object), format=form)
    except ValueError:
        return None
    whole = not (found.dt.microsecond.any() or found.dt.nanosecond.any())
    zone = "" if found.dt.tz is None else f", {found.dt.tz}"
    return found.astype(f"datetime64[s{zone}]") if whole else found


def spans(words: pa.Array, more: bool = False) -> pd.Series | None:
    """Parse durations as pandas and ISO 8601 write them; with `more` also times of day, as time since midnight."""
    known = [pc.match_substring_regex(words, pattern) for pattern in (SPAN, ISO_SPAN, CLOCK)[: 3 if more else 2]]
    each = known[2] if more else pa.array([False] * len(words))
    for fits in known[:2]:
        each = pc.or_(each, fits)
    if not pc.all(each).as_py():
        return None
    texts = words.to_pylist()
    if more:
        texts = [text if text.count(":") != 1 else f"{text}:00" for text in texts]
    try:
        found = pd.Series(pd.to_timedelta(texts))
    except ValueError:
        return None
    return found.astype(f"timedelta64[{_unit(words)}]")


def _unit(words: pa.Array) -> str:
    """Find the coarsest unit that holds the longest fraction of a second."""
    fraction = pc.extract_regex(words, r"\.(?P<digits>\d+)")
    digits = (
        0
        if fraction.null_count == len(fraction)
        else int(pc.max(pc.utf8_length(fraction.field("digits"))).as_py() or 0)
    )
    return "s" if digits == 0 else "ms" if digits <= 3 else "us" if digits <= 6 else "ns"


def first_unlike(words: Sequence[str], read: Callable[[pa.Array], object]) -> int:
    """Find the first cell that a function cannot parse, by bisection, since the function takes whole columns."""
    low, high = 0, len(words)
    while high - low > 1:
        middle = (low + high) // 2
        if read(pa.array(words[low:middle], pa.string())) is None:
            high = middle
        else:
            low = middle
    return low


def looks(words: pa.Array) -> tuple[str, str] | None:
    """Say what strings could be parsed as, for hints: a description, and the name of a kind or an empty text."""
    if like(words, CODE.replace("0", "", 1)):  # plain digits: there is a reason why they are strings
        return None
    for pattern, what, kind in (
        (ISO, "times, some with a zone and some without, or days that do not exist,", ""),
        (DATE, "days", "date"),
        (CLOCK, "times of day", "duration"),
        (AMOUNT, "amounts", "number"),
    ):
        if like(words, pattern):
            return what, kind
    return None


def strange(words: pa.Array) -> tuple[int, list[str]] | None:
    """Count the cells that are numbers, and list the others if few: they may stand for missing cells."""
    plain = pc.match_substring_regex(words, NUMBER)
    rest = pc.unique(words.filter(pc.invert(plain))).to_pylist()
    count = int(pc.sum(plain).as_py() or 0)
    return (count, rest) if 0 < len(rest) <= 3 and count >= 0.8 * len(words) else None


def is_code(words: pa.Array) -> bool:
    """Whether some cell is a whole number with leading zeros, such as a postal code."""
    return bool(pc.any(pc.match_substring_regex(words, CODE)).as_py())


def iso_days(words: pa.Array) -> bool:
    """Whether cells are days without a time."""
    return re.fullmatch(DAYS, words[0].as_py()) is not None and like(words, DAYS)
