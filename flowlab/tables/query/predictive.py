"""`Predictive`: the distribution of one number given other cells, as a distribution function on a grid."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flowlab.mixture import FlowMixture
from flowlab.runtime import threads_for
from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.tables.query.conditional import member_shares

Array = NDArray[np.float64]
POINTS = 256
BLOCK = 256  # rows at once


@dataclass
class Predictive:
    """Distribution functions of n numbers on one grid: exact at its points, linear in between.

    Attributes:
        grid: Increasing values (points,), in the column's units.
        below: F just below each of them, (n, points).
        at: F at each of them, (n, points): above `below` where a value has a probability.
    """

    grid: Array
    below: Array
    at: Array

    def mean(self) -> Array:
        """Means (n,)."""
        steps, between = self._masses()
        return steps @ self.grid + between @ ((self.grid[1:] + self.grid[:-1]) / 2)

    def sd(self) -> Array:
        """Standard deviations (n,)."""
        steps, between = self._masses()
        a, b = self.grid[:-1], self.grid[1:]
        square = steps @ self.grid**2 + between @ ((a * a + a * b + b * b) / 3)
        return np.sqrt(np.maximum(square - self.mean() ** 2, 0))

    def quantiles(self, levels: ArrayLike) -> Array:
        """Quantiles (n, levels)."""
        wanted = np.atleast_1d(np.asarray(levels, dtype=float))
        out = np.empty((len(self.at), len(wanted)))
        for j, level in enumerate(wanted):
            k = (self.at < level).sum(1).clip(max=len(self.grid) - 1)
            before = np.maximum(k - 1, 0)
            rows = np.arange(len(k))
            start, end = self.at[rows, before], self.below[rows, k]
            share = np.where((level < end) & (end > start), (level - start) / np.where(end > start, end - start, 1), 1)
            out[:, j] = self.grid[before] + share.clip(0, 1) * (self.grid[k] - self.grid[before])
        return out

    def crps(self, y: ArrayLike) -> Array:
        """Continuous ranked probability scores (n,) of observed values y (n,), in the column's units: lower is better.

        The score is the integral of (F(t) − 1[t ≥ y])² (Gneiting & Raftery 2007, "Strictly proper scoring rules",
        equation 20), computed exactly for these piecewise linear F.
        """
        seen = np.asarray(y, dtype=float)[:, None]
        a, b = self.grid[:-1], self.grid[1:]
        start, end = self.at[:, :-1], self.below[:, 1:]
        cut = seen.clip(a, b)
        middle = start + (end - start) * (cut - a) / (b - a)
        left = (cut - a) * (start**2 + start * middle + middle**2) / 3
        u, v = 1 - middle, 1 - end
        right = (b - cut) * (u**2 + u * v + v**2) / 3
        outside = np.maximum(self.grid[0] - seen[:, 0], 0) + np.maximum(seen[:, 0] - self.grid[-1], 0)
        return (left + right).sum(1) + outside

    def _masses(self) -> tuple[Array, Array]:
        """Probabilities of the grid's points (n, points), and of the intervals between them (n, points - 1)."""
        return self.at - self.below, self.below[:, 1:] - self.at[:, :-1]


@torch.no_grad()
def outcome_grid(mixture: FlowMixture, variable: int, points: int = POINTS) -> Array:
    """Values that span a variable's marginal distribution, spaced by its quantiles."""
    values = []
    for flow in mixture:
        marginal = flow.marginals()[variable]
        level = torch.special.ndtr(torch.linspace(-6, 6, points, dtype=torch.float64, device=marginal.values.device))
        values.append(marginal.value(level))
    grid = torch.cat(values).unique()  # sorted
    if len(grid) > 2 * points:
        grid = grid[torch.linspace(0, len(grid) - 1, points, device=grid.device).round().long()]
    return grid.cpu().numpy()


@torch.no_grad()
def predict(mixture: FlowMixture, x: Tensor, known: Tensor, variable: int, points: int = POINTS) -> Predictive:
    """The distribution of a numeric variable that is not missing, given the known cells of rows x (n, variables).

    It is the mixture of the members' conditional distributions, weighted by their posterior probabilities.
    """
    grid = outcome_grid(mixture, variable, points)
    on = torch.from_numpy(grid).to(x.device)
    below, at = (np.empty((len(x), len(grid))) for _ in range(2))
    with threads_for(min(len(x), BLOCK) * x.shape[1]):
        for start in range(0, len(x), BLOCK):
            rows = slice(start, start + BLOCK)
            low, high = _ends(mixture, x[rows], known[rows], variable, on)
            below[rows], at[rows] = low.T.cpu().numpy(), high.T.cpu().numpy()
    below[:, 0], at[:, -1] = 0.0, 1.0  # what lies beyond the grid is less than a billionth of the marginal
    at = np.maximum(at, below)
    return Predictive(grid, below, at)


def _ends(mixture: FlowMixture, x: Tensor, known: Tensor, variable: int, grid: Tensor) -> tuple[Tensor, Tensor]:
    """F just below and at each value of the grid, (points, n), by the members' conditional distributions."""
    shares = member_shares(mixture, x, known, strict=False)
    parts = [_distribution(flow, variable, flow.observe(x, known), grid) for flow in mixture]
    low, high = (
        torch.stack([share * part[i] for share, part in zip(shares, parts, strict=True)]).sum(0) for i in range(2)
    )
    return low, high


def _distribution(flow: ConditionalDensity, variable: int, seen: Any, grid: Tensor) -> tuple[Tensor, Tensor]:
    """One member's F just below and at each value of the grid, (points, n)."""
    number, cell = flow.number(variable, seen), flow.marginals()[variable].cell(grid)
    n = len(number.missing)
    ends = (cell.low, (cell.low + cell.width).clamp(max=1))
    low, high = (number.cdf(end.unsqueeze(-1).expand(-1, n)) for end in ends)
    return low, torch.where(cell.width.unsqueeze(-1) > 0, high, low)
