"""Log-likelihood of held-out rows, of a model and of simple baselines under the same reference measure: nats per row.

The measure: a category, a missing cell and a value of a column on a grid have probabilities, other
numbers have densities in the data's units. Where a model gives densities for columns on a grid too, so do the
baselines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from flowlab.report import baselines
from flowlab.report.inputs import scores
from flowlab.tables.frames.aligned import Array
from flowlab.tables.mixed.marginal_cdf import learn_marginal_cdf

DRAWS = 16  # points of a grid cell over which a baseline's density is averaged


@dataclass
class Variable:
    """One variable that a model gives the density of, in training and test rows.

    Attributes:
        train: Its values, NaN where a cell is missing.
        test: The same of the test rows.
        classes: Whether it is the code of a level rather than a number.
        nullable: Whether a missing cell is an outcome, with a probability; otherwise it is unknown, and does not count.
        resolution: Width of the cells of a number on a grid, 0 for none.
        atoms: Repeated values of a number on no grid, which have a probability.
        lower: Lower end of the support.
        upper: Upper end of the support.
        unseen: Probability of a level that training did not have; 0 where it is not known.
    """

    train: Array
    test: Array
    classes: bool = False
    nullable: bool = False
    resolution: float = 0.0
    atoms: tuple[float, ...] = ()
    lower: float = -np.inf
    upper: float = np.inf
    unseen: float = 0.0

    @property
    def joint(self) -> bool:
        """Whether it can be part of a Gaussian: a complete number that is spread over more than a cell."""
        complete = bool(np.isfinite(self.train).all() and np.isfinite(self.test).all())
        return (
            complete and not self.classes and not self.atoms and float(self.train.std()) > max(self.resolution, 1e-300)
        )


def variables(model: Any, train: pd.DataFrame, test: pd.DataFrame) -> list[Variable]:
    """List the variables that the model gives the density of, with their values in both tables."""
    table = model.table_
    x, y = table.encode(train[table.unbroken(train)]), table.encode_all(test)[0]
    # Densities of numbers are spread over the cells of the grid on which nearly all values are.
    numeric = model.columns_ is not None
    found, column = [], -1
    for j, variable in enumerate(table.variables):
        first = variable.column != column  # variables of a column are missing together: that counts once
        column = variable.column
        own = {"lower": variable.lower, "upper": variable.upper, "unseen": variable.unseen}
        nullable = variable.nullable and first
        step = variable.step if numeric else variable.resolution
        atoms = () if step else variable.atoms
        found.append(Variable(x[:, j], y[:, j], variable.classes > 0, nullable, step, atoms, **own))
    return found


def log_likelihoods(model: Any, train: pd.DataFrame, test: pd.DataFrame, seed: int = 0) -> dict[str, Array]:
    """Compute the log-likelihood (test rows,) of every method that applies, in nats: the model's, then the baselines'.

    "independent columns": smoothed marginal distributions, learnt as the model learns its own. "Gaussian" and
    "Gaussian mixture": of all columns that are numbers without missing cells and spread over more than a cell of their
    grid; the other columns are independent. They learn from values spread uniformly over cells; the mean density over
    16 points of a cell gives its probability.

    Args:
        model: A fitted `FlowDensity`.
        train: The rows that it was fitted to.
        test: Rows that it has not seen.
        seed: Decides the points, and the mixture.
    """
    parts = variables(model, train, test)
    rng = np.random.default_rng(seed)
    alone = np.column_stack([np.zeros(len(test)), *(marginal(part) for part in parts)])
    found = {"model": scores(model, test), "independent columns": alone.sum(axis=1)}
    joint = [part for part in parts if part.joint]
    if joint:
        rest = sum(marginal(part) for part in parts if not part.joint)
        x, y = np.column_stack([part.train for part in joint]), np.column_stack([part.test for part in joint])
        cell = np.array([part.resolution for part in joint])
        scale = sum(np.log(part.resolution) for part in joint if part.resolution)
        for name, baseline in (("Gaussian", baselines.gaussian), ("Gaussian mixture", baselines.mixture)):
            found[name] = rest + scale + over_cells(baseline, x, y, cell, rng)
    possible = model.table_.unbroken(test)  # where a rule is broken there is nothing to be scored
    return {name: np.where(possible, score, -np.inf) for name, score in found.items()}


def comparison(found: dict[str, Array]) -> pd.DataFrame:
    """Compute means and standard errors, and the first method's gain over each other one, paired by rows.

    Returns:
        A row per method: mean and its standard_error (nats per row), gain (the first method's mean minus this one's)
        and gain_error, ahead (share of rows where the first method is ahead), and impossible (rows of probability
        zero, which are left out of the other columns: with any of them the true mean is -inf).
    """
    ours = next(iter(found.values()))
    rows = []
    for values in found.values():
        finite = np.isfinite(values)
        both = finite & np.isfinite(ours)
        gain = ours[both] - values[both]
        ahead = float((gain > 0).mean()) if len(gain) else float("nan")
        rows.append((*_mean(values[finite]), *_mean(gain), ahead, int((~finite).sum())))
    names = ["mean", "standard_error", "gain", "gain_error", "ahead", "impossible"]
    return pd.DataFrame(rows, list(found), names)


def _mean(values: Array) -> tuple[float, float]:
    if len(values) < 2:
        return float("nan"), float("nan")
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def over_cells(
    baseline: Callable[[Array, Array], Array], x: Array, y: Array, width: Array, rng: np.random.Generator
) -> Array:
    """Average a baseline's density over the cell that each test row stands for, and take the log.

    Args:
        baseline: Takes training and test rows, and returns the log-densities of the latter.
        x: Training rows (n, columns); the baseline learns from values spread over their cells.
        y: Test rows (m, columns).
        width: Width of each column's cells, 0 for a column without a grid.
        rng: Draws the points.
    """
    draws = DRAWS if width.any() else 1
    points = y + (rng.random((draws, *y.shape)) - 0.5) * width
    spread = x + (rng.random(x.shape) - 0.5) * width
    scores = baseline(spread, points.reshape(-1, y.shape[1])).reshape(draws, len(y))
    return np.logaddexp.reduce(scores, axis=0) - np.log(draws)


def marginal(part: Variable) -> Array:
    """Compute the test values' log-probability or log-density under the smoothed distribution of training values."""
    absent, absent_test = np.isnan(part.train), np.isnan(part.test)
    known = part.train[~absent]
    if part.classes:
        levels, codes = np.unique(np.concatenate([known, part.test[~absent_test]]), return_inverse=True)
        counts = np.bincount(codes[: len(known)], minlength=len(levels))
        seen, total = counts > 0, len(known) + 0.5 * (counts > 0).sum()  # half a row more for each level
        unseen = part.unseen or 0.5 / (total + 0.5)  # and, where nothing is known of them, for all that were not seen
        log_p = np.zeros(len(part.test))
        log_p[~absent_test] = np.log(np.where(seen, (1 - unseen) * (counts + 0.5) / total, unseen))[codes[len(known) :]]
    else:
        lower, upper = (float(end) if np.isfinite(end) else None for end in (part.lower, part.upper))
        values = torch.from_numpy(known)
        marginal = learn_marginal_cdf(values, resolution=part.resolution, atoms=part.atoms, lower=lower, upper=upper)
        cell = marginal.cell(torch.from_numpy(np.where(absent_test, 0.0, part.test)))
        width = cell.width.numpy()
        log_p = np.log(np.where(width > 0, width, 1.0)) + cell.log_slope.numpy()
    log_p = np.where(absent_test, 0.0, log_p)
    if not part.nullable:
        return log_p
    share = (absent.sum() + 0.5) / (len(absent) + 1)
    return np.where(absent_test, np.log(share), log_p + np.log1p(-share))
