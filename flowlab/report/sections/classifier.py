"""The classifier two-sample test."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from flowlab.report import metrics
from flowlab.report.evidence import REPEATS, Evidence
from flowlab.report.page import Content, Table
from flowlab.report.sections.section import Section
from flowlab.report.verdict import FAIR, GOOD, POOR, Check, interval, limit_words, rate

SLACK = 0.1  # how much further from 0.5 than real rows an AUC may be and still be close


@dataclass(frozen=True)
class Classifier(Section):
    """ROC-AUC of trees that tell synthetic rows from real ones, and its noise floor."""

    auc: float
    floor: list[float]

    anchor = "classifier"
    title = "Classifier two-sample test"

    @classmethod
    def steps(cls, columns: int) -> int:
        """Count a classifier for each fold of each comparison."""
        return metrics.FOLDS * (REPEATS + 1)

    @classmethod
    def compute(cls, evidence: Evidence) -> "Classifier":
        """Fit the classifiers."""

        def auc(real: pd.DataFrame, other: pd.DataFrame) -> float:
            found = metrics.classifier_auc(real, other)
            evidence.bar.update(metrics.FOLDS)
            return found

        return cls(*evidence.with_noise_floor(auc))

    def judge(self) -> list[Check]:
        """Rate how far the AUC is from 0.5."""
        off = [abs(auc - 0.5) for auc in self.floor]
        status = rate(abs(self.auc - 0.5), off, SLACK)
        words = {
            GOOD: "A classifier cannot tell synthetic rows from real ones better than real rows from each other",
            FAIR: "A classifier tells synthetic rows from real ones a little better than chance",
            POOR: "A classifier tells synthetic rows from real ones",
        }[status]
        words, ends = f"{words} (AUC {self.auc:.2f}).", limit_words(off, SLACK, shape="0.5 ± {}")
        return [Check("Classifier", self.anchor, f"{self.auc:.3f}", interval(self.floor), "0.5", status, words, ends)]

    def draw(self) -> Content:
        """Show both."""
        text = (
            "Gradient-boosted trees try to tell synthetic rows from real ones that the model has not seen (ROC-AUC, "
            "five-fold cross-validated). Nearer to 0.5 is better; 1 means that every synthetic row gives itself away. "
            "It is the hardest test here: it sees what columns do together."
        )
        rows: list[list[Any]] = [
            ["synthetic against real", self.auc],
            ["real against real (noise floor)", interval(self.floor)],
        ]
        return Content([text], [Table(["rows", "AUC"], rows)])
