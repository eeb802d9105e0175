"""Baselines, all scikit-learn's: a Gaussian, a tuned Gaussian mixture, a tuned kernel density estimate.

Each function takes training and test rows (n, columns) in the data's units and returns the test rows' log-densities in
nats, in those units. What needs choosing is chosen on a fifth of the training rows; the winner is then fitted to all
of them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

Array = NDArray[np.float64]
CHOICE_ROWS = 10_000  # rows that choosing looks at
COMPONENTS = (1, 2, 4, 8, 16, 32, 64)
REGULARISATION = (1e-6, 1e-4, 1e-2)
BANDWIDTHS = tuple(np.geomspace(0.01, 1.0, 17))


def gaussian(train: Array, test: Array) -> Array:
    """Fit one Gaussian with a full covariance."""
    return _standardised(train, test, lambda x: GaussianMixture(1, reg_covar=1e-9, random_state=0).fit(x))


def mixture(train: Array, test: Array, seed: int = 0) -> Array:
    """Fit a full-covariance Gaussian mixture.

    The number of components (up to 64) and the regularisation are chosen on validation rows.
    """

    def model(x: Array, components: int, regularisation: float) -> GaussianMixture:
        return GaussianMixture(components, reg_covar=regularisation, max_iter=200, random_state=seed).fit(x)

    def best(x: Array) -> GaussianMixture:
        fitting, validation = _choice_rows(x, seed)
        choices = [(k, r) for k in COMPONENTS if k * x.shape[1] <= len(fitting) for r in REGULARISATION]
        scores = [model(fitting, *choice).score(validation) for choice in choices]
        return model(x, *choices[int(np.argmax(scores))])

    return _standardised(train, test, best)


def kernel_density(train: Array, test: Array, seed: int = 0) -> Array:
    """Fit a Gaussian kernel density estimate to standardised columns; its bandwidth is chosen on validation rows."""

    def model(x: Array, bandwidth: float) -> KernelDensity:
        return KernelDensity(bandwidth=bandwidth).fit(x)

    def best(x: Array) -> KernelDensity:
        fitting, validation = _choice_rows(x, seed)
        scores = [model(fitting, h).score(validation[:500]) for h in BANDWIDTHS]
        return model(x, BANDWIDTHS[int(np.argmax(scores))])

    return _standardised(train, test, best)


def _standardised(train: Array, test: Array, fit: Callable[[Array], GaussianMixture | KernelDensity]) -> Array:
    """Fit in columns of unit variance, and give log-densities in the data's units."""
    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    return fit((train - mean) / scale).score_samples((test - mean) / scale) - np.log(scale).sum()


def _choice_rows(x: Array, seed: int) -> tuple[Array, Array]:
    order = np.random.default_rng(seed).permutation(len(x))[:CHOICE_ROWS]
    held = len(order) // 5
    return x[order[held:]], x[order[:held]]
