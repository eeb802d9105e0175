"""Rules between columns, and the rows that break them."""

from dataclasses import dataclass

import numpy as np

from flowlab.report.evidence import Evidence
from flowlab.report.page import Content, Table, format_share
from flowlab.report.sections.section import Section


@dataclass(frozen=True)
class Rules(Section):
    """Each rule, with the shares of training, held-out and synthetic rows that break it."""

    broken: list[tuple[str, list[float]]]

    anchor = "rules"
    title = "Rules between columns"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Rules | None":
        """Count the rows that break each rule, where there are rules."""
        table = evidence.model.table_
        rules = [] if table is None else table.rules
        if not rules:
            return None
        tables = evidence.train, evidence.test, evidence.synthetic
        return cls([(str(rule), [float(np.mean(rule.broken(rows))) for rows in tables]) for rule in rules])

    def draw(self) -> Content:
        """List the rules."""
        text = (
            "Shares of rows that break a rule. Real ones are left out of the fit and have no likelihood; synthetic "
            "ones keep all rules."
        )
        rows = [[rule, *map(format_share, shares)] for rule, shares in self.broken]
        return Content([text], [Table(["rule", "training rows", "held-out rows", "synthetic rows"], rows)])
