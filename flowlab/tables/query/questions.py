"""Entropy and mutual information of a fitted density, in nats, as means of exact log-densities of draws."""

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowlab.distribution import Estimate
from flowlab.flow import CHUNK
from flowlab.runtime import progress_bar, threads_for
from flowlab.tables.ensemble.ensemble import fit_ensemble
from flowlab.tables.ensemble.member import recipe
from flowlab.tables.fitted import Fitted
from flowlab.tables.mixed.column_mixture import ColumnMixture
from flowlab.tables.query.conditional import fill, joint_log_prob
from flowlab.tables.query.scoring import draw, scored_draws

Array = NDArray[np.float64]
LogDensity = Callable[[list[int]], Array]  # of some variables, at fixed rows
TO_LEARN = 10_000  # draws that small densities are fitted to at least
BLOCK = 4096  # draws at a time: large for speed, small enough for a bar to move


def mean_of(values: Array) -> Estimate[float]:
    """The mean of independent values, with its standard error."""
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def entropy(fitted: Fitted, n_samples: int, seed: int, progress: bool) -> Estimate[float]:
    """See `FlowDensity.entropy`."""
    rows, log_prob = log_density_of_draws(fitted, n_samples, seed, progress)
    if not fitted.conditional:
        log_prob = log_prob + fitted.table.log_width(fitted.table.quantized(rows))
    return mean_of(-log_prob)


def log_density_of_draws(fitted: Fitted, n_samples: int, seed: int, progress: bool) -> tuple[Array, Array]:
    """Draws of the matrix, before quantisation, and the mixture's log-densities of them."""
    fitted.density()
    generator = torch.Generator(fitted.device).manual_seed(seed)
    with blocks(fitted, n_samples, progress) as sizes:
        return scored_draws(fitted, sizes, generator)


def information(fitted: Fitted, a: list[int], b: list[int], log_density: LogDensity, n_samples: int) -> Estimate[float]:
    """Mutual information between two groups of variables, from the log-density of any group at fixed rows."""
    with threads_for(min(n_samples, BLOCK) * len(fitted.table.names)):
        return mean_of(log_density(a + b) - log_density(a) - log_density(b))


def known_log_density(fitted: Fitted, drawn: list[int], n_samples: int, seed: int, progress: bool) -> LogDensity:
    """The log-density of any of the drawn variables at draws of them, from a mixture of mixed flows."""
    if any(isinstance(member, ColumnMixture) for member in fitted.density()):
        return small_log_density(fitted, n_samples, seed, progress)
    mixture, generator = fitted.density(), torch.Generator(fitted.device).manual_seed(seed)

    def known(of: list[int], chunk: torch.Tensor) -> torch.Tensor:
        return torch.tensor([j in of for j in range(mixture.features)], device=fitted.device).expand_as(chunk)

    shape = (min(n_samples, BLOCK), mixture.features)
    empty = torch.full(shape, np.nan, dtype=torch.float64, device=fitted.device)
    with blocks(fitted, n_samples, progress) as sizes:
        parts = [
            fill(mixture, x, known([], x), generator=generator, variables=drawn) for x in (empty[:n] for n in sizes)
        ]
    rows = torch.cat(parts)

    @torch.no_grad()
    def log_density(of: list[int]) -> Array:
        parts = [joint_log_prob(mixture, x, known(of, x)).logsumexp(0) for x in rows.split(CHUNK)]
        return torch.cat(parts).cpu().numpy()

    return log_density


def small_log_density(fitted: Fitted, n_samples: int, seed: int, progress: bool) -> LogDensity:
    """The log-density of any variables at draws; of fewer than all from mixed flows of these alone.

    Trees know a variable given all those before it: the density of a few variables is not theirs, and networks beside
    them are trained for too few steps. The mixed flows are fitted to other draws.
    """
    mixture, generator = fitted.density(), torch.Generator(fitted.device).manual_seed(seed)
    with blocks(fitted, n_samples + max(n_samples, TO_LEARN), progress) as sizes:
        drawn = np.concatenate([draw(fitted, size, generator) for size in sizes])
    rows, training, variables = drawn[:n_samples], drawn[n_samples:], fitted.table.variables

    def log_density(of: list[int]) -> Array:
        if len(of) == len(variables):
            with torch.no_grad():
                return mixture.log_prob(torch.from_numpy(rows).to(fitted.device)).cpu().numpy()
        columns = sorted({variables[j].column for j in of})
        chosen = sorted(of)
        kept = [replace(variables[j], column=columns.index(variables[j].column)) for j in chosen]
        part = torch.from_numpy(np.ascontiguousarray(training[:, chosen]))
        ensemble = fit_ensemble(
            part,
            torch.ones(len(part), dtype=torch.float64),
            recipe("fast", len(part), len(kept), mixed=True),
            np.random.default_rng(seed),
            folds=1,
            n_jobs=1,
            device=str(fitted.device),
            variables=kept,
        )
        with torch.no_grad():
            return ensemble.flow.log_prob(torch.from_numpy(rows[:, chosen])).numpy()

    return log_density


def fitted_log_density(fitted: Fitted, small: Any, n_samples: int, seed: int, progress: bool) -> LogDensity:
    """The log-density of any variables at draws; of fewer than all from densities fitted to other draws.

    Args:
        fitted: A density of complete numbers.
        small: An estimator for densities of fewer variables.
        n_samples: Draws to score, and as many to fit to.
        seed: Seed of the draws.
        progress: Show a bar.
    """
    training = log_density_of_draws(fitted, n_samples, seed, progress)[0]
    rows, joint = log_density_of_draws(fitted, n_samples, seed + 1, progress)

    def log_density(of: list[int]) -> Array:
        if len(of) == rows.shape[1]:
            return joint
        return np.asarray(small.fit(training[:, of]).score_samples(rows[:, of], measure="density"))

    return log_density


def two_groups(fitted: Fitted, columns_a: Any, columns_b: Any) -> tuple[list[int], list[int]]:
    """The modelled variables of two groups of columns.

    Raises:
        ValueError: A column is not modelled, or the groups are empty or overlap.
    """
    a, b = variables(fitted, columns_a, "columns_a"), variables(fitted, columns_b, "columns_b")
    if not a or not b or set(a) & set(b):
        raise ValueError("columns_a and columns_b must be two groups with at least one column each and none in common")
    return a, b


def variables(fitted: Fitted, group: Any, argument: str) -> list[int]:
    """The variables of a modelled column, or of a list of them.

    Raises:
        ValueError: A column is not in the table, or not modelled.
    """
    table, schema = fitted.table, fitted.table.schema
    labels = table.names
    places = {label: j for j, label in enumerate(labels)}
    places |= {j: j for j in range(len(labels))} if table.array else {}
    wanted = _as_columns(group, places)
    positions = list(dict.fromkeys(_place(label, places) for label in wanted))
    if -1 in positions:
        unknown = [label for label in wanted if _place(label, places) < 0]
        raise ValueError(
            f"{argument}: there is no column {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, labels))}"
            + (f", or their positions 0 to {len(labels) - 1}" if table.array else "")
        )
    every = range(len(table.variables))
    kept = [j for j, label in enumerate(labels) if label in schema and schema[label].modelled]
    modelled = {j: list(every[table.place(labels[j])]) for j in kept}
    outside = [repr(labels[place]) for place in positions if place not in modelled]
    if outside:
        raise ValueError(
            f"{argument}: column {', '.join(outside)} is not among the modelled ones, "
            f"{', '.join(repr(labels[j]) for j in modelled) or 'of which there are none'}: it is constant, or follows "
            "from others"
        )
    return [variable for place in positions for variable in modelled[place]]


@contextmanager
def blocks(fitted: Fitted, n_samples: int, progress: bool) -> Iterator[Iterator[int]]:
    """Sizes of blocks of draws, with a progress bar if wanted, under a suitable number of threads."""
    count = number_of_draws(n_samples)
    sizes = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
    with threads_for(sizes[0] * len(fitted.table.names)), progress_bar(count, progress, "draws", "row") as bar:

        def each() -> Iterator[int]:
            for size in sizes:
                yield size
                bar.update(size)

        yield each()


def number_of_draws(n_samples: Any) -> int:
    """The number of draws as an int of at least 2."""
    try:
        count = operator.index(n_samples)
    except TypeError:
        raise ValueError(f"n_samples must be a whole number of draws, not {n_samples!r}") from None
    if count < 2:
        raise ValueError(f"n_samples must be at least 2, not {count}")
    return count


def _as_columns(group: Any, places: dict[Any, int]) -> list[Any]:
    """A group of columns as a list: a single label is one column, any other iterable is several."""
    alone = isinstance(group, str | bytes) or not np.iterable(group)
    return [group] if alone or _place(group, places) >= 0 else list(group)


def _place(label: Any, places: dict[Any, int]) -> int:
    """A column's position, -1 if it is unknown; labels other than strings and integers also match by their text."""
    try:
        return places[label] if label in places else places.get(str(label), -1)
    except TypeError:  # unhashable, such as a list: no label
        return -1
