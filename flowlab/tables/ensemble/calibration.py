"""Tests of fit on held-out rows."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


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
