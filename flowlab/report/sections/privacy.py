"""Privacy: whether synthetic rows are new rows."""

from dataclasses import dataclass
from typing import Any

from flowlab.report.evidence import Evidence, at_most
from flowlab.report.inputs import scores
from flowlab.report.page import Content, Table
from flowlab.report.sections.section import Section
from flowlab.report.verdict import FAIR, GOOD, POOR, Check
from flowlab.tables.ensemble.calibration import MEMORISED, Membership, membership
from flowlab.tables.frames import nearness
from flowlab.tables.query.memorization import copies_error

MOST_NEAR = 0.55  # share of synthetic rows nearer to training rows that is still only slightly high
SCORED = 2000  # rows of each kind whose log-likelihoods are compared


@dataclass(frozen=True)
class Privacy(Section):
    """Copies and distances, and how well scores tell training rows (None without them), among so many other rows."""

    measured: nearness.Privacy | None
    membership: Membership | None
    test_rows: int
    synthetic_rows: int

    anchor = "privacy"
    title = "Privacy: are the rows new?"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Privacy":
        """Look for copies, and measure distances, if the training rows are at hand."""
        train, test, synthetic = evidence.train, evidence.test, evidence.synthetic
        if not evidence.at_hand:
            return cls(None, None, len(test), len(synthetic))
        measured = nearness.privacy(train, test, synthetic, seed=evidence.seed)
        both = (scores(evidence.model, at_most(rows, SCORED, evidence.seed)) for rows in (train, test))
        return cls(measured, membership(*both), len(test), len(synthetic))

    def judge(self) -> list[Check]:
        """Rate copies, nearest rows, and what scores tell."""
        if self.measured is None or self.membership is None:
            return []
        return [self._copies(self.measured), self._nearest(self.measured), self._member(self.membership)]

    def _copies(self, p: nearness.Privacy) -> Check:
        """Rate the share of copies beside that of held-out rows, which is known to three standard errors."""
        rows, test_rows = self.synthetic_rows, self.test_rows
        error = copies_error(p, rows, test_rows)
        copied = p.copies > p.copies_held_out + 3 * error
        words = f"{p.copies:.2%} of synthetic rows equal a training row, of held-out rows {p.copies_held_out:.2%}"
        words += ": rows were copied." if copied else "."
        status = POOR if copied else GOOD
        value, floor, ends = f"{p.copies:.2%}", f"{p.copies_held_out:.2%}", f"to {p.copies_held_out + 3 * error:.2%}"
        return Check("Copies", self.anchor, value, floor, "like held-out rows", status, words, ends)

    def _nearest(self, p: nearness.Privacy) -> Check:
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

    def _member(self, found: Membership) -> Check:
        """Rate how often a training row is known by its higher score: of the model itself, not of its rows."""
        z = (found.auc - 0.5) / found.standard_error if found.standard_error > 0 else 0.0
        status = POOR if found.memorised else GOOD if z <= 3 else FAIR
        meaning = {
            GOOD: "no more than chance explains",
            FAIR: "so that the model, other than its rows, says something of who is in it",
            POOR: "so that the model knows its training rows: treat it like them",
        }[status]
        words = f"The model's scores tell a training row from a held-out one in {found} of pairs, {meaning}."
        ends = f"to {0.5 + 3 * found.standard_error:.3f}, slightly high to {MEMORISED:.3f}"
        return Check("Membership by score", self.anchor, str(found), "0.5", "0.5 or less", status, words, ends)

    def draw(self) -> Content:
        """Show copies and distances beside those of held-out rows."""
        p = self.measured
        if p is None or self.membership is None:
            text = (
                "The rows that the model was fitted to were not at hand. Whether synthetic rows are copies of them, or "
                "too near to them, was not looked at."
            )
            return Content([text])
        text = (
            "Were training rows remembered? Distances are Gower's, with ranks: 0 for equal rows, 1 for rows that "
            "differ in everything. Tables of few values have copies by nature, hence the comparison with held-out "
            "rows. Scores are the model's own log-likelihoods: a fit knows its training rows a little. A sharper test, "
            "with a reference density, is FlowDensity.memorization. These are measurements, no guarantee."
        )
        nearer = f"{p.nearer_to_train:.3f} ± {p.standard_error:.3f}"
        like = "like held-out rows"
        rows: list[list[Any]] = [
            ["rows equal to a training row", f"{p.copies:.2%}", f"{p.copies_held_out:.2%}", like],
            ["nearer to training than to held-out rows", nearer, "0.5", "0.5 or less"],
            ["a training row's score is higher than a held-out row's", str(self.membership), "0.5", "0.5 or less"],
            ["median distance to the nearest training row", p.distance, p.distance_held_out, like],
        ]
        head = ["measured", "synthetic rows", "held-out rows (noise floor)", "expected"]
        return Content([text], [Table(head, rows)])
