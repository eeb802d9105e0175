"""Privacy: whether synthetic rows are new rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flowlab.report import metrics
from flowlab.report.evidence import Evidence
from flowlab.report.page import Content, Table
from flowlab.report.sections.section import Section
from flowlab.report.verdict import FAIR, GOOD, POOR, Check

MOST_NEAR = 0.55  # share of synthetic rows nearer to training rows that is still only slightly high


@dataclass(frozen=True)
class Privacy(Section):
    """Copies and distances (None without the training rows), among so many held-out and synthetic rows."""

    measured: metrics.Privacy | None
    test_rows: int
    synthetic_rows: int

    anchor = "privacy"
    title = "Privacy: are the rows new?"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Privacy":
        """Look for copies, and measure distances, if the training rows are at hand."""
        train, test, synthetic = evidence.train, evidence.test, evidence.synthetic
        measured = metrics.privacy(train, test, synthetic, seed=evidence.seed) if evidence.at_hand else None
        return cls(measured, len(test), len(synthetic))

    def judge(self) -> list[Check]:
        """Rate copies and nearest rows."""
        return [] if self.measured is None else [self._copies(self.measured), self._nearest(self.measured)]

    def _copies(self, p: metrics.Privacy) -> Check:
        """Rate the share of copies beside that of held-out rows, which is known to three standard errors."""
        rows, test_rows = self.synthetic_rows, self.test_rows
        # The second term keeps the error above 0 where no held-out row is a copy.
        error = np.sqrt(p.copies_held_out * (1 - p.copies_held_out) / test_rows + 1 / (rows * test_rows))
        error = np.sqrt(error**2 + p.copies * (1 - p.copies) / rows)
        copied = p.copies > p.copies_held_out + 3 * error
        words = f"{p.copies:.2%} of synthetic rows equal a training row, of held-out rows {p.copies_held_out:.2%}"
        words += ": rows were copied." if copied else "."
        status = POOR if copied else GOOD
        value, floor, ends = f"{p.copies:.2%}", f"{p.copies_held_out:.2%}", f"to {p.copies_held_out + 3 * error:.2%}"
        return Check("Copies", self.anchor, value, floor, "like held-out rows", status, words, ends)

    def _nearest(self, p: metrics.Privacy) -> Check:
        """Rate the share of synthetic rows that are nearer to training than to held-out rows."""
        z = (p.nearer_to_train - 0.5) / p.standard_error if p.standard_error > 0 else 0.0
        status = GOOD if z <= 2 else FAIR if p.nearer_to_train <= MOST_NEAR else POOR
        meaning = {
            GOOD: "as is expected of new rows; a measurement, no guarantee of privacy",
            FAIR: "a little more than is expected of new rows",
            POOR: "training rows were remembered: do not pass these rows off as anonymous",
        }[status]
        words = (
            f"{p.nearer_to_train:.1%} ± {p.standard_error:.1%} of synthetic rows are nearer to training than to "
            f"held-out rows, {meaning}."
        )
        value = f"{p.nearer_to_train:.3f} ± {p.standard_error:.3f}"
        ends = f"to {0.5 + 2 * p.standard_error:.3f}, slightly high to {MOST_NEAR:.3f}"
        return Check("Nearest rows", self.anchor, value, "0.5", "0.5 or less", status, words, ends)

    def draw(self) -> Content:
        """Show copies and distances beside those of held-out rows."""
        p = self.measured
        if p is None:
            text = (
                "The rows that the model was fitted to were not at hand. Whether synthetic rows are copies of them, or "
                "too near to them, was not looked at."
            )
            return Content([text])
        text = (
            "Were training rows remembered? Distances are Gower's, with ranks: 0 for equal rows, 1 for rows that "
            "differ in everything. Tables of few values have copies by nature, hence the comparison with held-out "
            "rows. This is a measurement on these rows, no guarantee: the model is not differentially private."
        )
        nearer = f"{p.nearer_to_train:.3f} ± {p.standard_error:.3f}"
        like = "like held-out rows"
        rows: list[list[Any]] = [
            ["rows equal to a training row", f"{p.copies:.2%}", f"{p.copies_held_out:.2%}", like],
            ["nearer to training than to held-out rows", nearer, "0.5", "0.5 or less"],
            ["median distance to the nearest training row", p.distance, p.distance_held_out, like],
        ]
        head = ["measured", "synthetic rows", "held-out rows (noise floor)", "expected"]
        return Content([text], [Table(head, rows)])
