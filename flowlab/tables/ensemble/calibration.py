"""Tests of fit on held-out rows, and of how well scores tell training rows from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

MEMORISED = 0.9  # share of pairs of rows told apart from which a density counts as one of its training rows, not of new


@dataclass(frozen=True)
class Membership:
    """How well log-likelihoods tell the rows that a density was trained on from others.

    Attributes:
        train: Mean log-likelihood of training rows, nats.
        held_out: The same of rows that were held out.
        auc: Probability that a training row has a higher one than a held-out row; 0.5 if nothing tells them apart.
        standard_error: Of `auc`.
    """

    train: float
    held_out: float
    auc: float
    standard_error: float

    @property
    def memorised(self) -> bool:
        """Whether training rows are known as such: in nine of ten pairs, beyond chance."""
        return self.auc > MEMORISED and self.auc - 3 * self.standard_error > 0.5

    def __str__(self) -> str:
        return f"{self.auc:.3f} ± {self.standard_error:.3f}"


def membership(train: Array, held_out: Array) -> Membership:
    """Measure how well log-likelihoods, or any other scores, tell training rows from held-out ones.

    The error is that of DeLong, DeLong & Clarke-Pearson 1988, "Comparing the areas under two or more correlated
    receiver operating characteristic curves".

    Args:
        train: Scores (n,) of training rows, n at least 2; -inf is the lowest score.
        held_out: Scores (m,) of rows that were not trained on, m at least 2.

    Example:
        >>> found = membership(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.0, -np.inf]))
        >>> found.auc, round(found.standard_error, 3)
        (0.875, 0.125)
    """
    below = stats.rankdata(np.concatenate([train, held_out]))
    # Of each row the share of the other kind's that it is above, or for held-out rows below; ties count half.
    above = (below[: len(train)] - stats.rankdata(train)) / len(held_out)
    under = 1 - (below[len(train) :] - stats.rankdata(held_out)) / len(train)
    error = np.sqrt(above.var(ddof=1) / len(train) + under.var(ddof=1) / len(held_out))
    return Membership(float(train.mean()), float(held_out.mean()), float(above.mean()), float(error))


def goodness_of_fit(noise: Array, names: Sequence[str]) -> pd.DataFrame:
    """Test whether the noise of held-out rows is standard normal, as it is under the true density.

    Kolmogorov-Smirnov tests of each column and of the radius (whose square is chi-squared distributed), and an energy
    test of all columns together against fresh standard normal noise (Székely & Rizzo 2013), with 200 permutations of at
    most 300 rows.

    Args:
        noise: Noise of the held-out rows (n, features); no rows give an empty table.
        names: The names of the features.

    Returns:
        One row per test: `statistic` and `p_value`.
    """
    rows: list[tuple[str, float, float]] = []
    if len(noise) >= 8:
        for name, column in zip(names, noise.T, strict=True):
            test = stats.kstest(column, "norm")
            rows.append((f"column {name}", float(test.statistic), float(test.pvalue)))
        test = stats.kstest((noise**2).sum(1), "chi2", args=(noise.shape[1],))
        rows.append(("radius", float(test.statistic), float(test.pvalue)))
        rows.append(("energy", *_energy_test(noise)))
    return pd.DataFrame(rows, columns=["test", "statistic", "p_value"]).set_index("test")


def _energy_test(noise: Array, most: int = 300, permutations: int = 200) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    x = noise[rng.permutation(len(noise))[:most]]
    both = np.concatenate([x, rng.standard_normal(x.shape)])
    distance = np.sqrt(np.maximum(((both[:, None] - both[None]) ** 2).sum(-1), 0))

    orders = np.array([np.arange(len(both)), *(rng.permutation(len(both)) for _ in range(permutations))])
    # Twice the mean distance between the halves minus those within them: a quadratic form in signs, +1 and -1 by half.
    sign = np.where(orders.argsort(1) < len(x), 1.0, -1.0)
    energy = -((sign @ distance) * sign).sum(1) / len(x) ** 2
    return float(energy[0]), float((1 + (energy[1:] >= energy[0]).sum()) / (1 + permutations))
