"""Gaussian mixtures and kernel density estimates, their sizes chosen on held-out rows."""

import copy
import math
import warnings
from collections.abc import Sequence
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor

from flowlab import bases
from flowlab.tables.mixed.gaussians import Gaussians

COMPONENTS = (1, 2, 4, 8, 16, 32, 64)
# Added to the variances of standardised columns; the least is that of the cell of an atom (`grid.ATOM_WIDTH`).
REGULARISATION = tuple(10.0**-power for power in range(1, 10))
FIRST = 1e-3  # regularisation of the first fit, and of the only one without held-out rows
# Of the Gaussian mixture beside networks.
PRESENT = 0.7  # share of rows, at least, in which a number is not missing
MOST_NUMBERS = 100
ROWS_EACH = 10  # rows for each number of a component
ITERATIONS = 60
LEAST_VARIANCE = 1e-8  # in the normal scale: relations between columns may be exact
BANDWIDTHS = tuple(np.geomspace(0.05, 1.0, 12))

Array = NDArray[np.float64]


def choose_mixture(train: Array, held_out: Array, weight: Array, most: int, seed: int) -> bases.GaussianMixture:
    """A Gaussian mixture, its components and its regularisation chosen together on held-out rows.

    Nearly collinear columns need a small regularisation, many components a large one: each number of components starts
    from the regularisation that was best for the one before.

    Args:
        train: Rows to fit to (n, features).
        held_out: Rows to choose on (m, features). If none is new, the mixture has one component.
        weight: Their weights (m,).
        most: Components at most.
        seed: Seed of the initial clusters.
    """
    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x, validation = (train - mean) / scale, (held_out - mean) / scale
    # A copy of a training row would reward a component that shrinks onto it.
    judging = ~_copies(validation, x) & (weight > 0)
    best = SklearnMixture(1, reg_covar=FIRST, warm_start=True).fit(x)
    if judging.any():
        best_score, worse, regularisation = -math.inf, 0, FIRST
        for components in COMPONENTS:
            if components > most or (components > 1 and components * (1 + x.shape[1]) > len(x)) or worse == 2:
                break
            first = SklearnMixture(components, reg_covar=regularisation, random_state=seed % 2**32, warm_start=True)
            score, mixture = _best_regularised(first.fit(x), x, validation[judging], weight[judging])
            regularisation, worse = mixture.reg_covar, worse + 1
            if score > best_score:
                best, best_score, worse = mixture, score, 0
    return rescaled(bases.GaussianMixture.from_sklearn(best), torch.from_numpy(mean), torch.from_numpy(scale))


def _best_regularised(
    mixture: SklearnMixture, x: Array, validation: Array, weight: Array
) -> tuple[float, SklearnMixture]:
    """The best of a fitted mixture, of it with another regularisation, and of that one fitted further; and its score.

    The score is the mean log-likelihood of the validation rows. All regularisations are tried without a fit, which
    would take many times as long.
    """

    def scored(mixture: SklearnMixture) -> tuple[float, SklearnMixture]:
        return float(np.average(mixture.score_samples(validation), weights=weight)), mixture

    # No eigenvalue of a covariance is beyond the largest squared norm of a row: below the rounding of that, a
    # regularisation may leave it indefinite.
    least = np.finfo(np.float64).eps * np.square(x).sum(1).max()
    values = [value for value in REGULARISATION if value > least and value != mixture.reg_covar]
    best = scored(mixture)
    other = max((scored(_regularised(mixture, value)) for value in values), key=itemgetter(0))
    if other[0] <= best[0]:
        return best
    return max(other, scored(copy.copy(other[1]).fit(x)), key=itemgetter(0))


def _copies(rows: Array, among: Array) -> NDArray[np.bool_]:
    """Which standardised rows (m, features) are among others, up to rounding."""
    known = {row.tobytes() for row in np.round(among, 9) + 0.0}  # + 0.0: zero has two signs
    return np.array([row.tobytes() in known for row in np.round(rows, 9) + 0.0], dtype=bool)


def _regularised(mixture: SklearnMixture, value: float) -> SklearnMixture:
    """The mixture with another regularisation of the same components; fitting it goes on from there."""
    other = copy.copy(mixture)
    other.reg_covar = value
    other.covariances_ = mixture.covariances_ + (value - mixture.reg_covar) * np.eye(mixture.means_.shape[1])
    other.precisions_cholesky_ = np.linalg.inv(np.linalg.cholesky(other.covariances_)).swapaxes(1, 2)
    return other


@torch.no_grad()
def rescaled(base: bases.GaussianMixture, mean: Tensor, scale: Tensor) -> bases.GaussianMixture:
    """The mixture of mean + scale · z for z from `base`."""
    return bases.GaussianMixture.from_moments(
        base.logits, mean + scale * base.means, scale[:, None] * base.scale_tril()
    )


def learn_gaussians(z: Tensor, variables: Sequence[int], most: int, seed: int) -> Gaussians | None:
    """A Gaussian mixture of numbers for `GaussianFlow`, or None where there are too few rows or numbers.

    Args:
        z: Normal quantiles of training rows' cells (n, variables), NaN for missing ones. Rows without them count.
        variables: The variables of the table that these are.
        most: Components at most.
        seed: Seed of the initial clusters.
    """
    kept = torch.isfinite(z).double().mean(0) > PRESENT if len(z) else torch.zeros(len(variables), dtype=torch.bool)
    numbers = [variable for variable, often in zip(variables, kept.tolist(), strict=True) if often]
    rows = z[:, kept]
    rows = rows[torch.isfinite(rows).all(1)]
    if not 2 <= len(numbers) <= MOST_NUMBERS or len(rows) < ROWS_EACH * len(numbers) or not most:
        return None
    components = min(most, len(rows) // (ROWS_EACH * len(numbers)))
    options = {"init_params": "k-means++", "max_iter": ITERATIONS, "random_state": seed % 2**32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # further steps gain next to nothing
        mixture = SklearnMixture(components, reg_covar=LEAST_VARIANCE, **options).fit(rows.numpy())
    gaussians = Gaussians(numbers, components)
    gaussians.log_weight.copy_(torch.from_numpy(mixture.weights_).clamp(min=1e-300).log())
    gaussians.mean.copy_(torch.from_numpy(mixture.means_))
    gaussians.covariance.copy_(torch.from_numpy(mixture.covariances_))
    return gaussians


def choose_bandwidth(train: Array, held_out: Array, weight: Array) -> bases.Kernels:
    """A kernel density estimate: a Gaussian around every row, all of one bandwidth, chosen on held-out rows."""
    from sklearn.neighbors import KernelDensity

    scores = [
        np.average(KernelDensity(bandwidth=h).fit(train).score_samples(held_out), weights=weight)
        if len(held_out)
        else -h
        for h in BANDWIDTHS
    ]
    return bases.Kernels.from_rows(torch.from_numpy(train), BANDWIDTHS[int(np.argmax(scores))])
