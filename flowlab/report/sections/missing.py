"""Missing cells: how many there are, and which are missing together."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowlab.report import metrics
from flowlab.report.evidence import Evidence
from flowlab.report.page import Content, Table
from flowlab.report.sections.section import Section
from flowlab.report.verdict import Check, interval, limit_words, rate

SLACK = 0.03  # how much further than real rows patterns may be apart and still be close


@dataclass(frozen=True)
class Missing(Section):
    """Distance of the patterns of missing cells, its noise floor, and each column's shares in so many rows."""

    patterns: float
    floor: list[float]
    rates: pd.DataFrame
    test_rows: int
    synthetic_rows: int

    anchor = "missing"
    title = "Missing cells"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Missing":
        """Compare patterns and shares."""
        patterns, floor = evidence.with_noise_floor(metrics.missing_pattern_distance)
        rates = metrics.missing_rates(evidence.test, evidence.synthetic)
        return cls(patterns, floor, rates, len(evidence.test), len(evidence.synthetic))

    def judge(self) -> list[Check]:
        """Rate the distance of patterns, if any cell is missing."""
        if not self.rates.to_numpy().any():
            return []
        words = (
            f"Patterns of missing cells are {self.patterns:.3f} apart, those of real rows {np.mean(self.floor):.3f}."
        )
        status, ends = rate(self.patterns, self.floor, SLACK), limit_words(self.floor, SLACK)
        value, floor = f"{self.patterns:.3f}", interval(self.floor)
        return [Check("Missing cells", self.anchor, value, floor, "lower", status, words, ends)]

    def draw(self) -> Content:
        """List the columns that have missing cells."""
        some = self.rates[(self.rates > 0).any(axis=1)]
        if not len(some):
            return Content(["No cell is missing, neither in the real rows nor in the synthetic ones."])
        text = (
            f"Total variation of which cells are missing together: {self.patterns:.3f} (lower is better, 0 is "
            f"perfect); between real rows {interval(self.floor)}. The shares of missing cells should be like those of "
            "the real rows, give or take two standard errors."
        )
        rows = []
        for name, real, synthetic in zip(some.index, some["real"], some["synthetic"]):
            error = np.sqrt(real * (1 - real) * (1 / self.test_rows + 1 / self.synthetic_rows))
            rows.append([name, f"{real:.2%}", f"{synthetic:.2%}", f"{error:.2%}"])
        return Content([text], [Table(["column", "missing, real", "missing, synthetic", "standard error"], rows)])
