"""Scores of rows under a fitted density, the noise behind them, and draws with their scores."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from flowlab.flow import CHUNK
from flowlab.runtime import threads_for
from flowlab.tables.fitted import Fitted
from flowlab.tables.query import conditional

Array = NDArray[np.float64]
MEASURES = ("mass", "density")


def encoded(fitted: Fitted, X: Any) -> tuple[Array, NDArray[np.bool_], Array]:
    """The matrix (n, variables) of rows, which rows can occur, and the `Codec.log_seen` of their levels.

    Levels that training did not have are named in a warning.

    Raises:
        ValueError: A cell is missing and all members are joint ones, or the columns are not those fitted to.
    """
    frame = fitted.table.frame(X)
    if fitted.only_joint and bool(frame.isna().to_numpy().any()):
        missing = frame.isna()
        name = missing.columns[missing.any().to_numpy().argmax()]
        count, row = int(missing[name].sum()), int(missing[name].to_numpy().argmax())
        raise ValueError(
            f"Input X contains NaN: column {name!r} has {count} such values, the first in row {row}. Drop or fill "
            'those rows: the members asked for model complete rows alone; "mixed" ones among them would do more'
        )
    matrix, possible = fitted.table.encode_all(frame, off_grid=fitted.joint is not None)
    fitted.table.warn_of_new_levels(frame, matrix, "are scored as levels not seen before", "score -inf", stacklevel=5)
    return matrix, possible, fitted.table.codec.log_seen(frame, matrix)


@torch.no_grad()
def score_matrix(fitted: Fitted, matrix: Array, missing: str = "outcome", measure: str = "mass") -> Array:
    """Log-likelihoods (n,) of rows that can occur, nats, but for the factors of `Codec.log_seen`.

    Args:
        fitted: The model.
        matrix: The rows (n, variables), not dequantised.
        missing, measure: As for `FlowDensity.score_samples`.
    """
    out = np.zeros(len(matrix))
    if fitted.mixture is not None:
        rows = torch.from_numpy(matrix).to(fitted.device)
        with threads_for(rows.numel()):
            chunks = [_log_prob(fitted, chunk, missing).cpu().numpy() for chunk in rows.split(CHUNK)]
        out = np.concatenate(chunks)
    return out if measure == "mass" else out - _log_width(fitted, matrix)


def _log_width(fitted: Fitted, matrix: Array) -> Array:
    """Logarithm (n,) of the volume of each row's cell, of those that have a probability."""
    total = np.zeros(len(matrix))
    if fitted.mixture is None:
        return total
    if fitted.joint is not None:
        return fitted.joint.cells.log_width(torch.from_numpy(matrix).to(fitted.device)).cpu().numpy()
    marginals = next(iter(fitted.mixture)).marginals()
    for k, marginal in marginals.items():
        known = ~np.isnan(matrix[:, k])
        x = torch.from_numpy(np.where(known, matrix[:, k], 0.0)).to(fitted.device)
        likely = known & (marginal.cell(x).width > 0).cpu().numpy()
        total += np.where(likely, fitted.table.variables[k].log_width(matrix[:, k]), 0.0)
    return total


def _log_prob(fitted: Fitted, rows: Tensor, missing: str) -> Tensor:
    mixture, unknown = fitted.density(), torch.isnan(rows)
    if missing == "outcome":
        unknown &= ~torch.tensor([variable.nullable for variable in fitted.table.variables], device=rows.device)
    partly = unknown.any(1)
    if not bool(partly.any()):
        return mixture.log_prob(rows)
    log_prob = rows.new_empty(len(rows))
    log_prob[~partly] = mixture.log_prob(rows[~partly])
    log_prob[partly] = conditional.marginal_log_prob(mixture, rows[partly], ~unknown[partly])
    return log_prob


def score(fitted: Fitted, X: Any, missing: str, measure: str) -> Array:
    """Log-likelihoods (n,) of any rows, nats: -inf for rows that cannot occur. See `FlowDensity.score_samples`."""
    for name, value, choices in (("missing", missing, ("outcome", "unknown")), ("measure", measure, MEASURES)):
        if value not in choices:
            raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, not {value!r}".replace("'", '"'))
    matrix, possible, log_seen = encoded(fitted, X)
    return np.where(possible, score_matrix(fitted, matrix, missing, measure) + log_seen, -np.inf)


def to_noise(fitted: Fitted, X: Any, rng: np.random.Generator) -> Array:
    """Standard normal noise (n, variables) behind rows, NaN for rows that cannot occur. See `FlowDensity.to_noise`."""
    matrix, possible, _ = encoded(fitted, X)
    if fitted.mixture is None:
        return matrix
    generator = torch.Generator(fitted.device).manual_seed(int(rng.integers(2**62)))
    noise = np.full_like(matrix, np.nan)
    with threads_for(min(len(matrix), CHUNK) * matrix.shape[1]):
        possible &= np.isfinite(score_matrix(fitted, matrix))
        chunks = torch.from_numpy(matrix[possible]).to(fitted.device).split(CHUNK)
        noise[possible] = torch.cat([fitted.mixture.to_noise(c, generator=generator) for c in chunks]).cpu().numpy()
    return noise


def pit(noise: Array) -> Array:
    """The probability integral transform (n, variables) of noise."""
    return np.asarray(stats.norm.cdf(noise))


def p_values(fitted: Fitted, scores: Array) -> Array:
    """The share of held-out rows whose log-likelihood is at most that of each row (n,), the row itself counted.

    Raises:
        ValueError: No rows were held out.
    """
    held_out = fitted.held_out
    if fitted.privacy is not None:
        raise ValueError("a private fit holds out no rows, whose scores would not be private: it has no p-values")
    if not len(held_out):
        raise ValueError("no rows were held out to calibrate p-values with: fit with validation above 0")
    at_most = np.searchsorted(held_out, scores, side="right")
    return np.asarray((at_most + 1) / (len(held_out) + 1))


def draw(fitted: Fitted, count: int, generator: torch.Generator) -> Array:
    """Draws (count, variables) of the matrix, also beyond the range of the training rows."""
    if fitted.mixture is None:
        return np.empty((count, 0))
    return fitted.mixture.sample((count,), generator=generator).cpu().double().numpy()


@torch.no_grad()
def scored_draws(fitted: Fitted, sizes: Iterator[int], generator: torch.Generator) -> tuple[Array, Array]:
    """Draws of the matrix, and the mixture's log-densities of them."""
    parts = []
    for size in sizes:
        rows = fitted.density().sample((size,), generator=generator)
        parts.append((rows, fitted.density().log_prob(rows)))
    drawn, log_prob = (torch.cat(blocks).cpu().numpy() for blocks in zip(*parts, strict=True))
    return drawn, log_prob
