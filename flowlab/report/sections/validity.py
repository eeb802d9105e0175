"""Cells of synthetic rows that no real row has."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flowlab.report import metrics
from flowlab.report.evidence import Evidence
from flowlab.report.page import Content, Table, format_share
from flowlab.report.sections.section import Section
from flowlab.report.verdict import POOR, Check, interval, limit_words, rate

INVALID_SLACK = 0.02  # share of a column's cells that may be invalid beyond those of real rows and still be close
RANGE_SLACK = 0.005  # the same of cells beyond the extremes


@dataclass(frozen=True)
class Validity(Section):
    """Invalid cells of each column (`metrics.validity`), and their noise floor."""

    columns: pd.DataFrame
    floor: list[pd.DataFrame]

    anchor = "validity"
    title = "Cells that no real row has"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Validity":
        """Count invalid cells."""
        return cls(*evidence.with_noise_floor(metrics.validity))

    def judge(self) -> list[Check]:
        """Rate the worst column's invalid cells, and the mean share of cells beyond the extremes."""
        worst, noise = _worst(self.columns), [_worst(one) for one in self.floor]
        status, ends = rate(worst, noise, INVALID_SLACK), limit_words(noise, INVALID_SLACK, ".2%")
        words = f"At most {worst:.1%} of a column's cells are unknown categories or fractions of whole numbers."
        wrong = [name for name, same in self.columns["same_dtype"].items() if not same]
        if wrong:
            status = POOR
            words += f" Of another type than the real ones: {', '.join(map(str, wrong[:5]))}."
        floor = interval(noise, ".2%")
        valid = Check("Valid cells", self.anchor, f"{worst:.2%}", floor, "lower", status, words, ends)

        share, noise = _beyond(self.columns), [_beyond(one) for one in self.floor]
        words = (
            f"{share:.2%} of cells lie beyond the extremes of the real ones, of other real rows {np.mean(noise):.2%}."
        )
        status, ends = rate(share, noise, RANGE_SLACK), limit_words(noise, RANGE_SLACK, ".2%")
        floor = interval(noise, ".2%")
        return [valid, Check("Range", self.anchor, f"{share:.2%}", floor, "like real rows", status, words, ends)]

    def draw(self) -> Content:
        """List the columns."""
        floor = np.mean([one["out_of_range"].to_numpy(dtype=float) for one in self.floor], axis=0)
        rows: list[list[Any]] = []
        for j, (name, row) in enumerate(self.columns.iterrows()):
            dtype = row["dtype_real"] if row["same_dtype"] else f"{row['dtype_real']} → {row['dtype_synthetic']}"
            shares = [format_share(row[key]) for key in ("unknown_categories", "fractions", "out_of_range")]
            rows.append([name, *shares, format_share(floor[j]), dtype])
        text = (
            "Shares of synthetic cells that are categories unknown to the real rows, fractions where real values are "
            "whole, or beyond the real extremes; lower is better. A few cells beyond the extremes are right: the noise "
            "floor says how many real rows have, beside others."
        )
        head = ["column", "unknown categories", "fractions", "beyond extremes", "noise floor", "type"]
        return Content([text], [Table(head, rows)])


def _worst(columns: pd.DataFrame) -> float:
    """The largest share of invalid cells of a column."""
    return float(np.nanmax([0.0, *columns[["unknown_categories", "fractions"]].to_numpy().ravel()]))


def _beyond(columns: pd.DataFrame) -> float:
    """The mean share of cells beyond the extremes."""
    return float(columns["out_of_range"].fillna(0).mean())
