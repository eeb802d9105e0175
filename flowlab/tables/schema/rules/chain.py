"""The rules of one table: ordered so that each finds its columns, and checked against each other."""

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
    """A rule for a table, from an object (copied) or text.

    "low <= high" is a condition where differences would lose values.
    """
    if not isinstance(rule, str):
        return copy.deepcopy(rule)
    parsed = parse_rule(rule)
    if isinstance(parsed, LessThan) and set(parsed.columns()) <= set(frame.columns) and parsed.lost(frame):
        return Predicate(str(parsed))
    return parsed


def check_included(rules: Sequence[Rule], said: Mapping[Any, Mapping[str, Any]]) -> None:
    """Raise a ValueError for a rule on an excluded column, which no sample would have."""
    for rule in rules:
        for name in rule.columns():
            if said.get(name, {}).get("kind") == "excluded":
                raise ValueError(f"the rule {rule.shown} names column {name!r}, which the schema excludes: drop either")


def check_chain(rules: Sequence[Rule], names: Sequence[Any], schema: Schema) -> None:
    """Raise a ValueError unless rules from a file lead from the user's columns to the modelled ones."""
    there = {str(name) for name in names}
    for rule in rules:
        lacking = [name for name in rule.columns() if str(name) not in there]
        if lacking:
            raise ValueError(f"the rule {rule.shown} names column {lacking[0]!r}, which is not in the table")
        if not there <= set(map(str, rule.order)):
            raise ValueError(f"the rule {rule.shown} has learnt from another table")
        there = there - {str(name) for name in rule.replaced()} | {str(name) for name in rule.made()}
    modelled = {str(column.name) for column in schema if column.kind != "excluded"}
    if rules and there != modelled:
        raise ValueError(f"rules and columns do not fit together: {', '.join(sorted(there ^ modelled)[:5])}")
    for rule in rules:
        rule.check_modelled(schema)


def in_order(rules: Sequence[Rule]) -> list[Rule]:
    """Order rules so that each finds its columns: later ones do not refer to columns that earlier ones replace.

    One that is there twice counts once. Where that cannot be, as for "a <= c" beside "b <= c", which both replace c, a
    "<=" is a condition.

    Raises:
        ValueError: They go in a circle.
    """
    left, done = [rule for k, rule in enumerate(rules) if rule not in rules[:k]], []
    while left:
        free = [
            rule
            for rule in left
            if not any(set(rule.replaced()) & set(other.columns()) for other in left if other is not rule)
        ]
        if not free:
            loose = [
                k
                for k, rule in enumerate(left)
                if isinstance(rule, LessThan) and all(isinstance(name, str) for name in rule.columns())
            ]
            if not loose:
                raise ValueError(f"the rules {', '.join(map(str, left))} go in a circle: drop one")
            left[loose[-1]] = Predicate(str(left[loose[-1]]))
            continue
        done += free[:1]
        left = [rule for rule in left if rule is not free[0]]
    return done
