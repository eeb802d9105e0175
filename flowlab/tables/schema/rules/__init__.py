"""Rules between columns that samples must keep.

`forward` replaces what a rule decides by what it leaves open, `backward` puts it back.

rule = parse_rule("low <= high")            # or LessThan("low", "high")
rows = df[~rule.broken(df)]                 # rows of the data that break the rule are the caller's to drop
modelled = rule.forward(rows)               # `high - low`, at least 0, in place of `high`
assert rule.backward(modelled).equals(rows)

The first table that `forward` sees is learnt from (`learn` does it alone). A rule with a missing cell in it cannot be
judged: it is not broken.
"""

from flowlab.tables.schema.rules.combinations import FixedCombinations
from flowlab.tables.schema.rules.difference import LessThan
from flowlab.tables.schema.rules.formulas import Derived, Predicate
from flowlab.tables.schema.rules.rule import Rule
from flowlab.tables.schema.rules.text import parse_rule, read_rules

__all__ = ["Derived", "FixedCombinations", "LessThan", "Predicate", "Rule", "parse_rule", "read_rules"]
