"""Columns of synthetic rows, one by one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flowlab.report import metrics, panels
from flowlab.report.evidence import Evidence
from flowlab.report.page import Content, Picture, Table
from flowlab.report.sections.section import Section
from flowlab.report.verdict import Check, interval, limit_words, rate
from flowlab.tables.frames.aligned import Array, Column, align

MOST_PICTURES = 60  # columns that get a picture
SLACK = 0.03  # how far the mean distance may be above that of real rows and still be close


@dataclass(frozen=True)
class Columns(Section):
    """Each column's distance from the real one (`metrics.column_distances`), its noise floor, and the columns."""

    distances: pd.DataFrame
    floor: Array  # (pairs of real tables, columns)
    floor_rows: int
    columns: list[Column]

    anchor = "columns"
    title = "Columns, one by one"

    @classmethod
    def compute(cls, evidence: Evidence) -> "Columns":
        """Measure the distances."""
        distances, floor = evidence.with_noise_floor(metrics.column_distances)
        between_real = np.array([one["distance"] for one in floor])
        return cls(distances, between_real, evidence.floor_rows, align(evidence.real, evidence.drawn))

    @property
    def limits(self) -> Array:
        """Distances that real rows rarely exceed: mean and three standard deviations of the noise floor, by column."""
        return self.floor.mean(axis=0) + 3 * self.floor.std(axis=0)

    def judge(self) -> list[Check]:
        """Rate the mean distance; name the column that is furthest away."""
        distance, noise = self.distances["distance"], [float(row.mean()) for row in self.floor]
        far = distance.to_numpy() > self.limits
        words = f"{int(far.sum())} of {len(far)} columns are further from the real ones than chance explains"
        words += f"; furthest is {distance.idxmax()} ({distance.max():.3f})." if far.any() else "."
        mean = float(distance.mean())
        status, ends = rate(mean, noise, SLACK), limit_words(noise, SLACK)
        return [Check("Columns", self.anchor, f"{mean:.3f}", interval(noise), "lower", status, words, ends)]

    def draw(self) -> Content:
        """List the columns, the furthest beyond its limit first, and draw them."""
        count, limits = len(self.distances), self.limits
        ratio = self.distances["distance"].to_numpy() / np.maximum(limits, 1e-6)
        more = f" The first {MOST_PICTURES} of {count} columns are drawn." if count > MOST_PICTURES else ""
        text = (
            "Distance of each column's distribution from the real one: Kolmogorov-Smirnov (KS) of numbers and times, "
            "total variation (TV) of categories; lower is better, 0 is perfect. The noise floor is what "
            f"{self.floor_rows:,} real rows score against as many others, in {len(self.floor)} tries; the limit, three "
            "standard deviations above its mean, is what they rarely exceed. Heights are shares of rows, and "
            f"histograms span 99 % of the real values.{more}"
        )
        order = np.argsort(-np.nan_to_num(ratio), kind="stable")
        rows = [self._row(j, float(limits[j]), float(ratio[j])) for j in order]
        head = ["column", "measure", "distance", "noise floor", "limit", "distance / limit", "reading"]
        pictures = [self._picture(j) for j in range(min(count, MOST_PICTURES))]
        table = Table(head, rows, "Furthest beyond its limit first.")
        return Content([text], [table], pictures, small=True, legend=True)

    def _row(self, j: int, limit: float, ratio: float) -> list[Any]:
        reading = "beyond chance" if ratio > 1 else "like real rows"
        distance, floor = float(self.distances["distance"].iloc[j]), interval(self.floor[:, j].tolist())
        return [
            self.distances.index[j],
            self.distances["measure"].iloc[j],
            distance,
            floor,
            limit,
            f"{ratio:.2f}",
            reading,
        ]

    def _picture(self, j: int) -> Picture:
        name, measure = self.distances.index[j], self.distances["measure"].iloc[j]
        distance = self.distances["distance"].iloc[j]
        title = f"{self.columns[j].name}: real and synthetic"
        picture = panels.svg(panels.column_panel(self.columns[j]), f"column{j}", title)
        caption = f"{name} · {measure} {distance:.3f} (real rows {self.floor[:, j].mean():.3f})"
        return Picture(picture, caption)
