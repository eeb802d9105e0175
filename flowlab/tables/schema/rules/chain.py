"""The rules of one table, ordered so that each finds its columns, and checked against each other."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from flowlab.tables.schema.rules.difference import LessThan
from flowlab.tables.schema.rules.formulas import Predicate
from flowlab.tables.schema.rules.rule import Rule
from flowlab.tables.schema.rules.text import parse_rule
from flowlab.tables.schema.schema import Schema


def read_rule(rule: Rule | str, frame: pd.DataFrame) -> Rule:
    """A table's rule, copied from an object or parsed from text.

    The text "low <= high" becomes a `Predicate` where the difference would lose values.
    """
    if not isinstance(rule, str):
        return copy.deepcopy(rule)
    parsed = parse_rule(rule)
    if isinstance(parsed, LessThan) and set(parsed.columns()) <= set(frame.columns) and parsed.lost(frame):
        return Predicate(str(parsed))
    return parsed


def check_included(rules: Sequence[Rule], overrides: Mapping[Any, Mapping[str, Any]]) -> None:
    """Raise a ValueError for a rule on an excluded column, which samples lack."""
    for rule in rules:
        for name in rule.columns():
            if overrides.get(name, {}).get("kind") == "excluded":
                raise ValueError(f"the rule {rule.shown} names column {name!r}, which the schema excludes: drop either")


def check_chain(rules: Sequence[Rule], names: Sequence[Any], schema: Schema) -> None:
    """Raise a ValueError unless rules from a file lead from the user's columns to the modelled ones."""
    columns = {str(name) for name in names}
    for rule in rules:
        lacking = [name for name in rule.columns() if str(name) not in columns]
        if lacking:
            raise ValueError(f"the rule {rule.shown} names column {lacking[0]!r}, which is not in the table")
        if not columns <= set(map(str, rule.order)):
            raise ValueError(f"the rule {rule.shown} has learnt from another table")
        columns = columns - {str(name) for name in rule.replaced()} | {str(name) for name in rule.made()}
    modelled = {str(column.name) for column in schema if column.kind != "excluded"}
    if rules and columns != modelled:
        raise ValueError(f"rules and columns do not fit together: {', '.join(sorted(columns ^ modelled)[:5])}")
    for rule in rules:
        rule.check_modelled(schema)


def in_order(rules: Sequence[Rule]) -> list[Rule]:
    """Order rules so that none refers to a column that an earlier one replaces; duplicates count once.

    Where no such order exists, as for "a <= c" and "b <= c", which both replace c, a "<=" becomes a `Predicate`.

    Raises:
        ValueError: The rules depend on each other in a circle.
    """
    remaining, ordered = [rule for k, rule in enumerate(rules) if rule not in rules[:k]], []
    while remaining:
        free = [
            rule
            for rule in remaining
            if not any(set(rule.replaced()) & set(other.columns()) for other in remaining if other is not rule)
        ]
        if not free:
            convertible = [
                k
                for k, rule in enumerate(remaining)
                if isinstance(rule, LessThan) and all(isinstance(name, str) for name in rule.columns())
            ]
            if not convertible:
                raise ValueError(f"the rules {', '.join(map(str, remaining))} go in a circle: drop one")
            remaining[convertible[-1]] = Predicate(str(remaining[convertible[-1]]))
            continue
        ordered += free[:1]
        remaining = [rule for rule in remaining if rule is not free[0]]
    return ordered
