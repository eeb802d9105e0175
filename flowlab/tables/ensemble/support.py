"""The probability of the columns' supports under flows of numbers, and the reach of their draws."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from flowlab.mixture import FlowMixture
from flowlab.tables.codec.table import Table

SUPPORT_DRAWS, SUPPORT_ROUNDS = 2_000, 10  # draws per round, and maximal rounds, of the estimate
SUPPORT_ERROR = 0.002  # standard error at which it stops, nats
NEAR = 0.05  # least share of draws within the training rows' range, which is widened to hold it


@torch.no_grad()
def measure_support(flow: FlowMixture, table: Table, seed: int) -> tuple[float, float]:
    """Estimate the probability of the columns' supports under a density of numbers, and the reach of its draws.

    Args:
        flow: The density of the modelled columns, everywhere.
        table: The columns, with their supports and ranges.
        seed: Seed of the draws.

    Returns:
        The log-probability of the supports, nats; and how far draws may lie beyond the range of the training rows, in
        widths of that range: 0 unless fewer than one draw in twenty lies within it.
    """
    generator = torch.Generator().manual_seed(seed)
    excess: list[NDArray[np.float64]] = []
    kept = tried = 0
    for _ in range(SUPPORT_ROUNDS):
        drawn = flow.sample((SUPPORT_DRAWS,), generator=generator).double().numpy()
        numbers = table.codec.numbers(table.quantized(drawn))
        good = np.isfinite(numbers).all(axis=1) & table.supported(numbers)
        excess.append(table.excess(numbers[good]))
        kept, tried = kept + int(good.sum()), tried + SUPPORT_DRAWS
        if kept and math.sqrt((tried - kept) / (kept * tried)) <= SUPPORT_ERROR:
            break
    reach = np.quantile(np.concatenate(excess), NEAR) if kept else 0.0
    return math.log(max(kept, 1) / tried), float(reach)
