"""Sequential trees as a synthesizer (CART: Reiter 2005, and R's package synthpop).

Each column has one decision tree on the columns before it, and draws the value of a random training row in the leaf
that the row so far falls in. Nothing but real values comes out, missing cells included.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

Array = np.ndarray
Draw = Callable[[int, np.random.Generator], pd.DataFrame]
Column = Callable[[Array, np.random.Generator], Array]


def fitted(train: pd.DataFrame, leaf: int, seed: int) -> Draw:
    """Fit a tree to each column but the first, in their order, whose leaves hold at least `leaf` rows.

    Returns:
        A function of a number of rows and a generator that draws a table.
    """
    cells = np.column_stack([numbers(column) for _, column in train.items()])
    classes = [column.dtype == "category" or column.dtype.kind == "b" for _, column in train.items()]
    columns = [fitted_column(cells[:, :j], cells[:, j], classes[: j + 1], leaf, seed) for j in range(1, len(classes))]

    def draw(n: int, rng: np.random.Generator) -> pd.DataFrame:
        rows = rng.integers(len(train), size=(n, 1))  # the training row that each cell is taken from
        for j, column in enumerate(columns, start=1):
            drawn = np.take_along_axis(cells[:, :j], rows, axis=0)
            rows = np.column_stack([rows, column(drawn, rng)])
        return pd.DataFrame({name: train[name].array.take(rows[:, j]) for j, name in enumerate(train)})

    return draw


def numbers(column: pd.Series) -> Array:
    """Numbers and times (seconds) as they are, NaN where missing; categories as codes from 1, 0 where missing."""
    if column.dtype == "category":
        return column.cat.codes.to_numpy(dtype=float) + 1
    if column.dtype.kind == "M":
        return (column - pd.Timestamp(0)).dt.total_seconds().to_numpy(dtype=float)
    return column.to_numpy(dtype=float)


def fitted_column(before: Array, own: Array, classes: list[bool], leaf: int, seed: int) -> Column:
    """One column's tree on the columns `before`; the last of `classes` is its own.

    Returns:
        A function of rows so far that draws for each a training row: one of those in its leaf.
    """
    response = responses(own, classes[-1])
    scales = {k: ordered(before[:, k].astype(int), response) for k, is_class in enumerate(classes[:-1]) if is_class}

    def scaled(rows: Array) -> Array:
        rows = rows.copy()
        for k, scale in scales.items():
            rows[:, k] = scale[rows[:, k].astype(int)]
        return rows

    kind, target = (DecisionTreeClassifier, own) if classes[-1] else (DecisionTreeRegressor, response)
    tree = kind(min_samples_leaf=leaf, random_state=seed).fit(scaled(before), target)
    leaves = tree.apply(scaled(before))
    order = np.argsort(leaves, kind="stable")

    def draw(rows: Array, rng: np.random.Generator) -> Array:
        reached = tree.apply(scaled(rows))
        first, end = (np.searchsorted(leaves[order], reached, side=side) for side in ("left", "right"))
        return order[rng.integers(first, end)]

    return draw


def responses(own: Array, is_class: bool) -> Array:
    """What splits are to tell apart, a column each: the classes, or the number and whether it is missing.

    Numbers are standardised, the missing ones at their mean, so that both matter alike.
    """
    if is_class:
        return (own[:, None] == np.unique(own)).astype(float)
    missing = np.isnan(own)
    number = np.where(missing, np.nanmean(own), own)
    both = np.column_stack([number, missing] if missing.any() else [number]).astype(float)
    return (both - both.mean(0)) / np.maximum(both.std(0), np.finfo(float).tiny)


def ordered(levels: Array, response: Array) -> Array:
    """Place the levels of a predictor on a line, so that few splits tell their mean responses apart.

    Of one response, or of two classes, that is the order of the means; of more, the order along the first principal
    component of the levels' means (Coppersmith, Hong and Hosking 1999).
    """
    counts = np.bincount(levels)
    sums = np.column_stack([np.bincount(levels, weights=values) for values in response.T])
    means = sums / np.maximum(counts, 1)[:, None] - response.mean(0)
    axis = np.linalg.svd(np.sqrt(counts)[:, None] * means, full_matrices=False)[2][0]
    return means @ axis
