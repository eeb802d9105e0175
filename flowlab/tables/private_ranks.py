"""The distribution of each number of a table from noisy counts: what a private fit's ranks are made of.

All columns' counts are one release of the Gaussian mechanism (Dwork & Roth 2014, "The algorithmic foundations of
differential privacy", appendix A): a row is in one cell of each column, so that it changes the vector of all counts by
√columns at most. All that is done with the noisy counts spends nothing.
"""

import math

import numpy as np
import torch
from torch import Tensor

from flowlab.tables.codec.columns import Variable
from flowlab.tables.frames.cells import Array
from flowlab.tables.mixed.marginal_cdf import MarginalCDF, learn_marginal_cdf
from flowlab.training.private import system_generator

CELLS = 1024  # of a range, a power of two
EVEN = 0.05  # share of all ranks that is spread evenly over the range, whatever the counts are
CLEAR = 3.0  # standard deviations of the noise by which the halves of a part must differ to count as different
POINTS = 1024  # of a range, from which its ranks are learnt


def noisy_ranks(
    variables: list[Variable], matrix: Tensor, noise: float, generator: torch.Generator | None = None
) -> list[MarginalCDF]:
    """The distribution of each number, from noisy counts of its declared range's cells.

    Args:
        variables: The variables of a table; the numbers among them have a range.
        matrix: Rows (n, variables), all within the ranges.
        noise: Noise multiplier: the standard deviation of the noise in units of what one row changes.
        generator: Source of the noise; the operating system's when None, which no seed can take away.
    """
    generator = system_generator() if generator is None else generator
    numbers = [i for i, variable in enumerate(variables) if not variable.classes]
    counts = torch.stack([cell_counts(variables[i], matrix[:, i]) for i in numbers])
    deviation = noise * math.sqrt(len(numbers))
    ranks = []
    for i, noisy in zip(numbers, with_noise(counts, deviation, generator).numpy(), strict=True):
        shares = (1 - EVEN) * denoised_shares(noisy, deviation) + EVEN / CELLS
        ranks.append(ranks_of(variables[i], shares))
    return ranks


def with_noise(counts: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Counts with normal noise, rounded; sums of four draws, as the digits of a single one would give it away."""
    drawn = torch.randn(4, *counts.shape, generator=generator, dtype=torch.float64).sum(0) / 2
    return (counts + deviation * drawn).round()


def cell_counts(variable: Variable, values: Tensor) -> Tensor:
    """How many values (n,) are in each of the equally wide cells of a range."""
    lower, width = edges(variable)
    cells = ((values - lower) / width * CELLS).long().clamp(0, CELLS - 1)  # the upper end is in the last one
    return torch.bincount(cells, minlength=CELLS).double()


def edges(variable: Variable) -> tuple[float, float]:
    """Where the cells of a range begin, and the width of all: a grid's points lie in the middle of steps."""
    return variable.lower - variable.resolution / 2, variable.upper - variable.lower + variable.resolution


def denoised_shares(noisy: Array, deviation: float) -> Array:
    """The shares (cells,) of a range's cells by their noisy counts (cells,).

    From the whole range down, the halves of a part have shares by their counts where these differ by more than noise
    does, else even ones: thresholded Haar wavelets (Donoho & Johnstone 1994).
    """
    shares = np.ones(1)
    while len(shares) < len(noisy):
        halves = noisy.reshape(2 * len(shares), -1).sum(1).reshape(-1, 2)
        clear = np.abs(halves[:, 0] - halves[:, 1]) > CLEAR * deviation * math.sqrt(len(noisy) / len(shares))
        positive = halves.clip(min=0)
        first = np.where(clear, positive[:, 0] / positive.sum(1).clip(min=1e-300), 0.5)
        shares = (shares[:, None] * np.stack([first, 1 - first], 1)).ravel()
    return shares


def ranks_of(variable: Variable, shares: Array) -> MarginalCDF:
    """The distribution with shares (cells,) of a range's cells; on a grid of few points each is an atom."""
    lower, width = edges(variable)
    ends, through = lower + width * np.arange(len(shares) + 1) / len(shares), np.r_[0.0, shares.cumsum()]
    step, weight = variable.resolution, None
    if step and width / step <= POINTS:
        points = variable.lower + step * np.arange(round(width / step))
        mass = np.diff(np.interp(np.r_[points - step / 2, variable.upper + step / 2], ends, through))
        points, weight = points.repeat(2), torch.from_numpy(mass.repeat(2))  # what is repeated becomes an atom
    else:
        points = np.interp((np.arange(POINTS) + 0.5) / POINTS * through[-1], through, ends)
        points = points.clip(variable.lower, variable.upper)
    return learn_marginal_cdf(
        torch.from_numpy(points),
        resolution=step,
        lower=variable.lower,
        upper=variable.upper,
        weight=weight,
        spanning=torch.tensor([variable.lower, variable.upper], dtype=torch.float64),
    )
