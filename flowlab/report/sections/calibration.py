"""Calibration: the model's own tests of fit."""

from dataclasses import dataclass

import pandas as pd

from flowlab.report.evidence import Evidence
from flowlab.report.page import Content, Table
from flowlab.report.sections.section import Section
from flowlab.report.verdict import FAIR, GOOD, UNKNOWN, Check

SEEN = 0.01  # corrected p-value below which a test sees a difference
EXPLAINED = (
    "“column …” looks at the noise of one column by itself. “radius” looks at how far from the origin each row's "
    "noise lies, all columns together: too far means that the model is too narrow, or has missed rows far out; too "
    "near, that it is too wide. “energy” compares the noise of whole rows with fresh noise, and sees dependence "
    "between columns that the model has missed."
)


@dataclass(frozen=True)
class Calibration(Section):
    """Tests of fit on rows that were held out while fitting: statistic and p_value of each."""

    tests: pd.DataFrame

    anchor = "calibration"
    title = "Calibration"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Calibration":
        """Take the tests that the model kept."""
        return cls(evidence.model.calibration_)

    def judge(self) -> list[Check]:
        """Look at the smallest p-value, times the number of tests."""
        name, better, tests = "Calibration", f"{SEEN} or more", self.tests
        if not len(tests):
            words = "There is no test of fit, for want of held-out rows."
            return [Check(name, self.anchor, "–", "–", better, UNKNOWN, words)]
        smallest = min(float(tests["p_value"].min()) * len(tests), 1.0)
        if smallest < SEEN:
            status, furthest = FAIR, tests["p_value"].idxmin()
            words = f"Tests of fit on the model's own held-out rows see that it is not exact ({furthest})."
        else:
            status, words = GOOD, "Tests of fit on the model's own held-out rows find nothing."
        value = f"p = {smallest:.3f}" if smallest >= 0.0005 else "p < 0.0005"
        floor = f"smallest of {len(tests)}, corrected"
        return [Check(name, self.anchor, value, floor, better, status, words, f"from {SEEN}")]

    def draw(self) -> Content:
        """List the tests."""
        tests = self.tests
        if not len(tests):
            return Content(["There are no held-out rows of the model's own to test the fit with."])
        text = (
            "Rows that were held out while fitting, turned into noise by the model: tests of whether that noise is "
            f"what it should be. A p-value below {SEEN} means that the test sees a difference; of many tests, one in "
            f"a hundred does so by chance. The overview has the smallest of them times their number, {len(tests)}, "
            f"and at most 1 (Bonferroni's correction): that is below {SEEN} by chance once in a hundred pages."
        )
        rows = [[name, float(row["statistic"]), float(row["p_value"])] for name, row in tests.iterrows()]
        return Content([text, EXPLAINED], [Table(["test", "statistic", "p-value"], rows)])
