"""Rules between columns that samples must keep.

`forward` replaces the columns that a rule determines with what it leaves open, `backward` restores them.

rule = parse_rule("low <= high")            # or LessThan("low", "high")
rows = df[~rule.broken(df)]                 # the caller drops rows that break the rule
modelled = rule.forward(rows)               # `high - low`, at least 0, replaces `high`
assert rule.backward(modelled).equals(rows)

A rule learns from the first table passed to `forward`, or from the one passed to `learn`. A row in which a cell that
the rule needs is missing is undecided and does not break it.
"""

from flowlab.tables.schema.rules.combinations import FixedCombinations
from flowlab.tables.schema.rules.difference import LessThan
from flowlab.tables.schema.rules.formulas import Derived, Predicate
from flowlab.tables.schema.rules.rule import Rule
from flowlab.tables.schema.rules.text import parse_rule, read_rules

__all__ = ["Derived", "FixedCombinations", "LessThan", "Predicate", "Rule", "parse_rule", "read_rules"]
