"""Pairs of columns of synthetic rows: their joint tables, and how strongly they depend on one another."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from flowlab.report import metrics, panels
from flowlab.report.evidence import Evidence
from flowlab.report.page import Content, Picture, Table
from flowlab.report.sections.section import Section
from flowlab.report.verdict import Check, interval, limit_words, rate

MOST_PAIRS = 10  # that are listed
OVERLAP_SLACK = 0.02  # how much less than real rows pairs may overlap and still be close
DEPENDENCE_SLACK = 0.03  # the same of the difference of dependence


class Similarity(NamedTuple):
    """What pairs of columns of one table look like beside those of another.

    Attributes:
        overlap: Mean of `overlaps` over pairs.
        overlaps: Overlap of the joint tables of each two columns.
        dependence: Dependence of each two columns in the first table.
        dependence_other: The same in the second.
    """

    overlap: float
    overlaps: pd.DataFrame
    dependence: pd.DataFrame
    dependence_other: pd.DataFrame

    @property
    def dependence_gap(self) -> float:
        """Mean absolute difference of the two tables' dependence, over pairs of columns."""
        pairs = np.triu_indices(len(self.dependence), 1)
        gap = np.abs(self.dependence.to_numpy() - self.dependence_other.to_numpy())[pairs]
        return float(gap.mean()) if len(gap) else float("nan")


def similarity(real: pd.DataFrame, other: pd.DataFrame) -> Similarity:
    """Compare pairs of columns of two tables."""
    overlap, overlaps = metrics.pair_similarity(real, other)
    return Similarity(overlap, overlaps, metrics.dependence(real), metrics.dependence(other, like=real))


@dataclass(frozen=True)
class Pairs(Section):
    """Similarity of pairs of columns, and its noise floor."""

    synthetic: Similarity
    floor: list[Similarity]

    anchor = "pairs"
    title = "Pairs of columns"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Pairs | None":
        """Compare pairs, where there are two columns."""
        if evidence.real.shape[1] < 2:
            return None
        return cls(*evidence.with_noise_floor(similarity))

    def judge(self) -> list[Check]:
        """Rate the overlap of joint tables, and the difference of dependence."""
        overlap, overlaps = self.synthetic.overlap, [one.overlap for one in self.floor]
        words = (
            f"Joint tables of two columns overlap by {overlap:.1%} on average, those of real rows by "
            f"{np.mean(overlaps):.1%}."
        )
        off = [1 - value for value in overlaps]
        status, ends = rate(1 - overlap, off, OVERLAP_SLACK), limit_words(off, OVERLAP_SLACK, shape="1 − {}")
        floor = interval(overlaps)
        joint = Check("Pairs of columns", self.anchor, f"{overlap:.3f}", floor, "higher", status, words, ends)

        gap, gaps = self.synthetic.dependence_gap, [one.dependence_gap for one in self.floor]
        words = f"Dependence of two columns is off by {gap:.3f} on average, between real rows by {np.mean(gaps):.3f}."
        status, ends = rate(gap, gaps, DEPENDENCE_SLACK), limit_words(gaps, DEPENDENCE_SLACK)
        return [joint, Check("Dependence", self.anchor, f"{gap:.3f}", interval(gaps), "lower", status, words, ends)]

    def draw(self) -> Content:
        """Draw the dependence of real and synthetic rows as maps; list the pairs furthest below real ones."""
        real, synthetic = self.synthetic.dependence, self.synthetic.dependence_other
        gap = float(np.nanmean([one.dependence_gap for one in self.floor]))
        # The scale ends at the largest difference, but at no less than one that means something: noise must not stand
        # out.
        most = max(float(np.abs((synthetic - real).to_numpy()).max()), 4 * gap, 0.05)
        maps = [
            panels.heat_map(real, "real"),
            panels.heat_map(synthetic, "synthetic"),
            panels.heat_map(synthetic - real, "synthetic − real", -most, most, "RdBu_r"),
        ]
        unnamed = "" if len(real) <= panels.NAMED else " Columns are in the order of the table."
        text = (
            f"Joint tables of two columns overlap by {self.synthetic.overlap:.3f} on average (1 − total variation; "
            f"higher is better, 1 is perfect); those of real rows by {interval([one.overlap for one in self.floor])}. "
            "The maps show how strongly columns depend on one another: Cramér's V of numbers cut at their deciles, 0 "
            "for unrelated columns, 1 where one decides the other. The third map should be white; its scale ends at "
            f"±{most:.2f}, and differences between real rows are {gap:.3f} on average.{unnamed}"
        )
        head = ["pair", "overlap", "noise floor", "dependence, real", "dependence, synthetic"]
        table = Table(head, self._worst(), "The pairs whose overlap is furthest below that of real rows.")
        pictures = [Picture(panels.svg(map_, f"map{i}", map_.axes[0].get_title())) for i, map_ in enumerate(maps)]
        return Content([text], [table], pictures, small=True)

    def _worst(self) -> list[list[Any]]:
        own = self.synthetic
        names = [str(name) for name in own.dependence.columns]
        a, b = np.triu_indices(len(names), 1)
        floor = np.mean([one.overlaps.to_numpy() for one in self.floor], axis=0)
        below = floor - own.overlaps.to_numpy()
        columns = (own.overlaps.to_numpy(), floor, own.dependence.to_numpy(), own.dependence_other.to_numpy())
        worst = np.argsort(-below[a, b], kind="stable")[:MOST_PAIRS]
        return [[f"{names[a[k]]} × {names[b[k]]}", *(float(values[a[k], b[k]]) for values in columns)] for k in worst]
