"""How much of a density of numbers lies within the columns' supports, and within the range of the training rows."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from flowlab.mixture import FlowMixture
from flowlab.tables.codec.table import Table

SUPPORT_DRAWS, SUPPORT_ROUNDS = 2_000, 10  # draws at once, and how often, by which the probability is estimated
SUPPORT_ERROR = 0.002  # nats of standard error that are enough
NEAR = 0.05  # share of draws that shall lie within the training rows' range, which is widened where fewer do


@torch.no_grad()
def measure_support(flow: FlowMixture, table: Table, seed: int) -> tuple[float, float]:
    """What a density of numbers lacks to be one on the columns' supports, and to draw rows like those seen.

    Args:
        flow: The density of the modelled columns, everywhere.
        table: The columns, with their supports and ranges.
        seed: Of the draws that both are estimated from.

    Returns:
        The log of the probability of the supports, nats; and the reach of draws: how far beyond the training rows' range they may lie, in widths
        of it. That is 0 unless fewer than one draw in twenty lies within.
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
