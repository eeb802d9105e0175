"""Train on synthetic rows, test on real ones."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flowlab.report import metrics
from flowlab.report.evidence import Evidence, at_most
from flowlab.report.page import Content, Table
from flowlab.report.sections.section import Section
from flowlab.report.verdict import UNKNOWN, Check, interval, limit_words, rate

REPEATS = 3  # pairs of real tables behind the noise floor
SLACK = 0.1  # how much lower than for real rows the ratio may be and still be close
TRIFLE = 0.002  # loss that nobody minds


@dataclass(frozen=True)
class Transfer(Section):
    """Scores of trees (None without a column to predict), and the ratios of real rows to as many other real rows."""

    scores: metrics.Transfer | None
    floor: list[float]

    anchor = "transfer"
    title = "Train on synthetic, test on real"

    @classmethod
    def steps(cls, columns: int) -> int:
        """Count two fits for each comparison."""
        return 2 * (REPEATS + 1) if columns > 1 else 0

    @classmethod
    def compute(cls, evidence: Evidence) -> "Transfer":
        """Fit trees to real and to synthetic rows, as many of each."""
        train, test, seed = evidence.train, evidence.test, evidence.seed
        if train.shape[1] < 2:
            return cls(None, [])
        target = metrics.choose_target(train) if evidence.target is None else evidence.target
        if not test[target].notna().any():
            return cls(None, [])

        def score(real: pd.DataFrame, other: pd.DataFrame) -> metrics.Transfer:
            found = metrics.train_on_synthetic(real, test, other, target, seed)
            evidence.bar.update(2)
            return found

        size = min(len(train), len(evidence.synthetic))
        scores = score(at_most(train, size, seed), at_most(evidence.synthetic, size, seed))
        floor = metrics.real_against_real(score, train, repeats=REPEATS, seed=seed)
        return cls(scores, [one.ratio for one in floor])

    def judge(self) -> list[Check]:
        """Rate how far the ratio of the scores is below 1."""
        name, better, scores = "Train on synthetic", "1", self.scores
        if scores is None or not np.isfinite(scores.ratio):
            words = "There is no column that real rows teach to predict."
            return [Check(name, self.anchor, "–", "–", better, UNKNOWN, words)]
        noise = [abs(ratio - 1) for ratio in self.floor]
        status = rate(max(1 - scores.ratio - TRIFLE, 0.0), noise, SLACK)
        ends = limit_words([off + TRIFLE for off in noise], SLACK, shape="1 − {}")
        words = (
            f"Trees that learn {scores.target} from synthetic rows reach {scores.ratio:.1%} of the {scores.measure} of "
            "those that learn from real ones."
        )
        return [Check(name, self.anchor, f"{scores.ratio:.3f}", interval(self.floor), better, status, words, ends)]

    def draw(self) -> Content:
        """Show the scores."""
        if self.scores is None:
            return Content(["There is no column to predict from others."])
        target, measure, real, synthetic, ratio = self.scores
        text = (
            f"Gradient-boosted trees learn to predict “{target}” from the other columns, from synthetic or from real "
            f"rows (as many), and are tested on real rows that neither has seen: {measure}; higher is better. A ratio "
            "of 1 means that synthetic rows teach as much."
        )
        rows: list[list[Any]] = [
            [f"{measure}, trained on real rows", real],
            [f"{measure}, trained on synthetic rows", synthetic],
            ["ratio", ratio],
            ["ratio of two halves of the real rows (noise floor)", interval(self.floor)],
        ]
        return Content([text], [Table(["measured", "score"], rows)])
