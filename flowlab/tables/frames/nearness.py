"""Copies of rows, and distances to the nearest one: are the rows of one table new beside those of others?"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.tables.frames.aligned import Column, align, matrix

Floats = NDArray[np.float32]

DISTANCES = 2_000_000  # distances held in memory at a time


class Privacy(NamedTuple):
    """Whether synthetic rows are new rows. No guarantee: a measurement on these rows.

    Attributes:
        copies: Share of synthetic rows that equal a training row in all cells; lower is better, down to
            `copies_held_out`.
        copies_held_out: Share of held-out rows that equal a training row: what nature does by itself, the floor of
            `copies`.
        nearer_to_train: Share of synthetic rows whose nearest real row is a training row rather than one of as many
            held-out rows (ties are shared out). 0.5 is expected of new rows; more means that rows were remembered.
        standard_error: Of `nearer_to_train`, if it does not matter which real rows were trained on.
        distance: Median distance of synthetic rows to the nearest training row, 0 to 1; should be about
            `distance_held_out`.
        distance_held_out: The same of held-out rows, to as many training rows.
    """

    copies: float
    copies_held_out: float
    nearer_to_train: float
    standard_error: float
    distance: float
    distance_held_out: float


def privacy(
    train: pd.DataFrame, held_out: pd.DataFrame, synthetic: pd.DataFrame, most: int = 5000, seed: int = 0
) -> Privacy:
    """Measure copies of training rows and distances to the closest record, each beside what held-out rows give.

    The distance of two rows is Gower's, with ranks: the mean over columns of the difference in rank among the training
    rows (numbers, times), 0 or 1 (equal or different categories), 1 (one of two cells is missing), 0 (both are).

    Args:
        train: The rows that the model was fitted to.
        held_out: Real rows that it has not seen.
        synthetic: Synthetic rows.
        most: Rows of each table for distances; random ones of longer tables. Copies are looked for among all.
        seed: Decides those.
    """
    columns = align(train, held_out, synthetic)
    rows = [matrix(columns, table)[0] + 0.0 for table in range(3)]  # + 0.0 makes zeros of minus zeros
    seen = {row.tobytes() for row in rows[0]}
    copies = [float(np.mean([row.tobytes() in seen for row in table])) if len(table) else np.nan for table in rows]
    size = min(len(train), len(held_out), most)
    if not size or not len(synthetic):
        return Privacy(copies[2], copies[1], *[float("nan")] * 4)
    places = np.column_stack([_places(column) for column in columns])
    ends = np.cumsum([len(table) for table in rows])
    near = [
        _draw(part, n, seed + i) for i, (part, n) in enumerate(zip(np.split(places, ends[:-1]), (size, size, most)))
    ]
    pool = np.concatenate(near[:2])
    weight, distance = np.zeros(2 * size), []
    for chunk in _distances(near[2], pool):
        nearest = chunk == chunk.min(axis=1, keepdims=True)
        weight += (nearest / nearest.sum(axis=1, keepdims=True)).sum(axis=0)
        distance.append(chunk[:, :size].min(axis=1))
    weight /= len(near[2])
    # Exactly the standard deviation over all ways to call half of the real rows the training ones.
    error = np.sqrt(((weight - weight.mean()) ** 2).sum() * 2 * size / max(2 * size - 1, 1)) / 2
    natural = np.concatenate([chunk.min(axis=1) for chunk in _distances(near[1], near[0])])
    medians = float(np.median(np.concatenate(distance))), float(np.median(natural))
    return Privacy(copies[2], copies[1], float(weight[:size].sum()), float(error), *medians)


def _draw(rows: Floats, size: int, seed: int) -> Floats:
    return rows if len(rows) <= size else np.random.default_rng(seed).choice(rows, size, replace=False)


def _places(column: Column) -> Floats:
    """Put all tables' values on a scale (ranks, or whole numbers) where two cells are min(1, |difference|) apart."""
    values = np.concatenate(column.values)
    missing = np.isnan(values)
    if column.kind == "category":
        return np.where(missing, -1.0, values).astype(np.float32)
    first = np.sort(column.values[0][~np.isnan(column.values[0])])
    sides = [np.searchsorted(first, values, side=side) for side in ("left", "right")]
    return np.where(missing, 2.0, (sides[0] + sides[1]) / (2 * max(len(first), 1))).astype(np.float32)


def _distances(rows: Floats, others: Floats) -> Iterator[Floats]:
    """Yield Gower distances (some rows, all others), a chunk of rows at a time."""
    step = max(DISTANCES // len(others), 1)
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        total = np.zeros((len(chunk), len(others)), dtype=np.float32)
        for j in range(rows.shape[1]):
            apart = np.abs(chunk[:, j, None] - others[:, j])
            total += np.minimum(apart, 1, out=apart)
        yield total / rows.shape[1]
