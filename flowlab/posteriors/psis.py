"""Pareto-smoothed importance sampling.

Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling", JMLR 25(72).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

KHAT = 0.7  # weighted means are reliable below it (Vehtari et al. 2024)
# The largest share of the weights that a draw may have for k-hat not to matter: nearly equal weights have a tail, too.
HEAVY = 0.01


class Smoothed(NamedTuple):
    """Smoothed importance weights.

    Attributes:
        log_weights: Normalised log-weights (n,).
        khat: Pareto k-hat, the shape of the weights' tail.
        log_mean: Log of the mean of the weights before normalisation.
    """

    log_weights: Tensor
    khat: float
    log_mean: float

    @property
    def ess(self) -> float:
        """The effective sample size as a share of the draws: 1 / (n Σ w²)."""
        return float((-(2 * self.log_weights).logsumexp(0)).exp()) / len(self.log_weights)

    @property
    def reliable(self) -> bool:
        """Whether weighted means can be relied on: k-hat is below 0.7, or no draw has much of the weight."""
        return self.khat < KHAT or (math.isfinite(self.khat) and float(self.log_weights.max()) < math.log(HEAVY))


def smooth(log_weights: Tensor) -> Smoothed:
    """Replace the largest importance weights by quantiles of the generalised Pareto distribution fitted to them.

    Args:
        log_weights: Log importance weights (n,), up to a constant; −inf counts as a weight of zero.

    Returns:
        Normalised log-weights in the same order, and k-hat: below 0.7 weighted means are reliable, above 1 the weights
        may not even have a mean. k-hat is −inf where all weights are equal, and inf where fewer than 25 are finite.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> exponential = torch.empty(20_000).exponential_(generator=generator)
        >>> abs(smooth(0.5 * exponential).khat - 0.5) < 0.1
        True
    """
    log_w = torch.where(torch.isfinite(log_weights), log_weights, -math.inf).double()
    finite = int(torch.isfinite(log_w).sum())
    if finite == 0:
        return Smoothed(log_w, math.inf, -math.inf)
    top = log_w.max()
    log_w = log_w - top
    n = len(log_w)
    tail = int(min(0.2 * n, 3 * math.sqrt(n)))
    khat = math.inf
    if finite >= max(tail + 1, 25):
        values, order = log_w.sort()
        cut = values[-tail - 1]
        excess = values[-tail:].exp() - cut.exp()
        khat = -math.inf
        if float(excess[-1]) > 1e-12:
            khat, sigma = fit_pareto(excess.clamp(min=1e-300))
            share = (torch.arange(tail, dtype=torch.float64, device=log_w.device) + 0.5) / tail
            smoothed = pareto_quantile(share, khat, sigma) + cut.exp()
            log_w = log_w.clone()
            log_w[order[-tail:]] = smoothed.log().clamp(max=0.0)  # none above the largest raw weight
    total = log_w.logsumexp(0)
    return Smoothed(log_w - total, khat, float(total + top) - math.log(n))


def fit_pareto(x: Tensor) -> tuple[float, float]:
    """Fit shape and scale of a generalised Pareto distribution to sorted exceedances x (n,), n ≥ 5.

    Zhang & Stephens 2009, "A new and efficient estimation method for the generalized Pareto distribution": the
    posterior mean on a grid, with the weak prior towards 0.5 of Vehtari et al. 2024, appendix G.
    """
    n = len(x)
    grid = 30 + int(math.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    steps = torch.arange(1, grid + 1, dtype=x.dtype, device=x.device) - 0.5
    b = 1 / x[-1] + (1 - (grid / steps).sqrt()) / (3 * quartile)
    k = torch.log1p(-b.unsqueeze(1) * x).mean(1)
    log_likelihood = n * ((-b / k).log() - k - 1)
    weight = log_likelihood.softmax(0)
    best = (weight * b).sum()
    shape = float(torch.log1p(-best * x).mean())
    scale = -shape / float(best)
    return (n * shape + 10 * 0.5) / (n + 10), scale


def pareto_quantile(share: Tensor, shape: float, scale: float) -> Tensor:
    """Quantiles at probabilities `share` of the generalised Pareto distribution with location zero."""
    if abs(shape) < 1e-12:
        return -scale * torch.log1p(-share)
    return scale * torch.expm1(-shape * torch.log1p(-share)) / shape
