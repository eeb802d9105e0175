"""Parse rules from text."""

import keyword
import re
from typing import Any

from flowlab.tables.schema.expressions import PLAIN_NAME, QUOTED_NAME, unquote
from flowlab.tables.schema.rules.combinations import TITLE, FixedCombinations
from flowlab.tables.schema.rules.difference import LessThan
from flowlab.tables.schema.rules.formulas import Derived, Predicate
from flowlab.tables.schema.rules.rule import Rule

NAME = rf"(?:{PLAIN_NAME}|{QUOTED_NAME})"


def parse_rule(text: str) -> Rule:
    """Parse a rule: "low <= high", "total = price * quantity", or a condition on rows.

    Example:
        >>> parse_rule("start <= end")
        LessThan(low='start', high='end', strict=False)
        >>> parse_rule("total = price * quantity")
        Derived(name='total', expression='price * quantity')
        >>> parse_rule("fixed combinations of city, `home country`")
        FixedCombinations(names=['city', 'home country'])
        >>> parse_rule("x > 0 or y > 0")
        Predicate(expression='x > 0 or y > 0')
    """
    text = text.strip()
    if match := re.fullmatch(rf"{TITLE}\s+({NAME}(?:\s*,\s*{NAME})+)", text):
        return FixedCombinations([unquote(name) for name in re.findall(NAME, match[1])])
    match = re.fullmatch(rf"({NAME})\s*(<=?|>=?)\s*({NAME})", text)
    if match and not any(keyword.iskeyword(match[k]) for k in (1, 3)):
        low, high = (unquote(match[k]) for k in ((1, 3) if match[2][0] == "<" else (3, 1)))
        return LessThan(low, high, strict=len(match[2]) == 1)
    match = re.fullmatch(rf"({NAME})\s*=(?!=)\s*(.+)", text, flags=re.DOTALL)
    return Derived(unquote(match[1]), match[2]) if match else Predicate(text)


def read_rules(rules: Any) -> list[Rule | str]:
    """A user's rules as a list of rules and strings; a single one becomes a list of one.

    Raises:
        ValueError: An item is neither.
    """
    listed = [rules] if isinstance(rules, str | Rule) else [] if rules is None else rules
    if not isinstance(listed, list | tuple | set | frozenset):
        raise ValueError(
            f"rules must be a list of strings and rules such as flowlab.FixedCombinations, got {rules!r:.80}"
        )
    for rule in listed:
        if not isinstance(rule, str | Rule):
            raise ValueError(f"a rule must be a string or one of flowlab's rules, got {rule!r:.80}")
    return list(listed)
