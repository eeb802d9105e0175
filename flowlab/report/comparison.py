"""Real tables as any method can take them, and methods compared on the same rows: for the demo and the benchmarks."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from flowlab import datasets
from flowlab.report import baselines
from flowlab.report.log_likelihood import over_cells
from flowlab.tables.codec.table import Table
from flowlab.tables.density import FlowDensity
from flowlab.tables.frames.aligned import Array

TEST = 0.2  # share of rows held out
NOT_MEASURED = ["quality"]  # the tasters' grade of a wine
LONGEST = 30  # mm; the three diamonds that are longer are misprints


@dataclass
class Row:
    """One method on one table.

    Attributes:
        method: Its name.
        log_prob: Log-density of each held-out row, in nats.
        seconds: Time to fit and score.
    """

    method: str
    log_prob: Array
    seconds: float


def possible(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Drop rows that no method can be judged by: diamonds of length zero, which means a missing one, and misprints."""
    if name != "diamonds":
        return frame
    lengths = frame[["x", "y", "z"]]
    return frame[((lengths > 0) & (lengths < LONGEST)).all(axis=1)]


def distinct_numbers(name: str) -> pd.DataFrame:
    """Load the measured numeric columns of a table: distinct rows, so that none can be in training and test alike."""
    frame = possible(name, datasets.load(name).select_dtypes("number"))
    return frame.drop(columns=NOT_MEASURED, errors="ignore").drop_duplicates()


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split a table in random order into test and training rows."""
    held = round(TEST * len(frame))
    return frame.iloc[:held], frame.iloc[held:]


def compare(
    frame: pd.DataFrame, seed: int, effort: str = "default", progress: bool = False
) -> tuple[list[Row], FlowDensity]:
    """Fit every method to all but the first fifth of the rows, and score that fifth.

    flowlab gets the table as it is, and its density at a value of a column on a grid stands for the value's cell. The
    others learn from values spread over their cells, and their density is averaged over a test row's cell, which comes
    to the same.

    Args:
        frame: Numeric columns, rows in random order.
        seed: Decides fits and draws.
        effort: flowlab's.
        progress: Whether flowlab shows a bar.

    Returns:
        The methods, flowlab last, and flowlab's model.
    """
    test, train = split(frame)
    x, y = train.to_numpy(dtype=float), test.to_numpy(dtype=float)
    width = np.array([column.step for column in Table.learn(train, None, None)[0].schema])
    model = FlowDensity(effort=effort, random_state=seed, progress=progress)
    methods: list[tuple[str, Callable[[], Array]]] = [
        (name, partial(over_cells, baseline, x, y, width, np.random.default_rng(seed)))
        for name, baseline in (
            ("Gaussian", baselines.gaussian),
            ("KDE", baselines.kernel_density),
            ("Gaussian mixture", baselines.mixture),
        )
    ]
    rows = []
    for method, evaluate in [*methods, ("flowlab", lambda: model.fit(train).score_samples(test, measure="density"))]:
        started = time.perf_counter()
        log_prob = evaluate()
        rows.append(Row(method, log_prob, time.perf_counter() - started))
    return rows, model


def paired_gain(ours: Array, theirs: Array) -> tuple[float, float]:
    """Compute the mean of the row-by-row differences of two methods' log-densities, and its standard error."""
    gain = ours - theirs
    return float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(len(gain)))
