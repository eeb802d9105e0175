"""Held-out log-likelihood of the model and of its baselines."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from flowlab.report import log_likelihood
from flowlab.report.evidence import MOST_BASELINE, Evidence
from flowlab.report.page import Content, Table
from flowlab.report.sections.section import Section
from flowlab.report.verdict import FAIR, GOOD, POOR, Check


@dataclass(frozen=True)
class LogLikelihood(Section):
    """The comparison of methods (`flowlab.report.log_likelihood.comparison`), and the number of rows that it is on."""

    methods: pd.DataFrame
    rows: int

    anchor = "likelihood"
    title = "Log-likelihood of held-out rows"

    @classmethod
    def compute(cls, evidence: Evidence) -> "LogLikelihood":
        """Score held-out rows by every method."""
        scores = log_likelihood.log_likelihoods(evidence.model, evidence.baseline_train, evidence.test, evidence.seed)
        return cls(log_likelihood.comparison(scores), len(evidence.test))

    def judge(self) -> list[Check]:
        """Compare the model with the best baseline."""
        model, baselines = self.methods.iloc[0], self.methods.iloc[1:]
        best = baselines["mean"].idxmax()
        gain, error = float(baselines.loc[best, "gain"]), float(baselines.loc[best, "gain_error"])
        impossible = int(model["impossible"])
        if impossible:
            status, words = POOR, f"The model gives {impossible} of the held-out rows probability zero."
        elif gain > 2 * error:
            status = GOOD
            words = (
                f"The model is better than the best baseline: held-out rows are {gain:.2f} ± {error:.2f} nats likelier "
                f"than under “{best}”."
            )
        elif gain > -2 * error:
            status = FAIR
            words = (
                f"The model is no better than the best baseline: held-out rows are about as likely under “{best}” "
                f"({gain:+.2f} ± {error:.2f} nats)."
            )
        else:
            status = POOR
            words = (
                f"The model is worse than the best baseline: held-out rows are {-gain:.2f} ± {error:.2f} nats likelier "
                f"under “{best}”."
            )
        value = f"{model['mean']:.3f} ± {model['standard_error']:.3f}"
        floor, ends = f"{best} {baselines.loc[best, 'mean']:.3f}", "gain beyond 2 standard errors"
        return [Check("Log-likelihood", self.anchor, value, floor, "higher", status, words, ends)]

    def draw(self) -> Content:
        """List the methods."""
        rows: list[list[Any]] = []
        for name, row in self.methods.iterrows():
            gain = "" if name == "model" else f"{row['gain']:+.3f} ± {row['gain_error']:.3f}"
            ahead = "" if name == "model" else f"{row['ahead']:.0%}"
            mean = f"{row['mean']:.3f} ± {row['standard_error']:.3f}"
            rows.append([name, mean, gain, ahead, int(row["impossible"])])
        joint = (
            " “Gaussian” and “Gaussian mixture” are joint densities of the complete columns of numbers, with the other "
            "columns independent."
        )
        note = (
            "Every method has the same reference measure. “independent columns” are smoothed distributions of each "
            f"column by itself.{joint if len(rows) > 2 else ''} Baselines learn from at most {MOST_BASELINE:,} "
            "training rows. Rows of probability zero are left out of means."
        )
        text = (
            f"Mean log-likelihood of {self.rows:,} rows that the model has not seen, in nats per row ± standard error: "
            "higher is better. The gain is the mean of row-by-row differences, and so is known more precisely than "
            "either mean."
        )
        head = ["method", "nats per row", "model's gain", "model ahead", "impossible rows"]
        return Content([text], [Table(head, rows, note)])
