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
from flowlab.tables.ensemble.joint_density import numbers_of
from flowlab.tables.ensemble.member import recipe
from flowlab.tables.fitted import Fitted
from flowlab.tables.mixed.mixed_flow import MixedFlow
from flowlab.tables.query.conditional import fill, joint_log_prob
from flowlab.tables.query.scoring import scored_draws

Array = NDArray[np.float64]
LogDensity = Callable[[list[int]], Array]  # of some variables, at fixed rows
TO_LEARN = 10_000  # draws that small densities are fitted to at least
BLOCK = 4096  # draws at a time: large for speed, small enough for a bar to move


def mean_of(values: Array) -> Estimate[float]:
    """The mean of independent values, with its standard error."""
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def entropy(fitted: Fitted, n_samples: int, seed: int, progress: bool) -> Estimate[float]:
    """See `FlowDensity.entropy`."""
    fitted.density()
    generator = torch.Generator(fitted.device).manual_seed(seed)
    with blocks(fitted, n_samples, progress) as sizes:
        return mean_of(-scored_draws(fitted, sizes, generator)[1])


def information(fitted: Fitted, a: list[int], b: list[int], log_density: LogDensity, n_samples: int) -> Estimate[float]:
    """Mutual information between two groups of variables, from the log-density of any group at fixed rows."""
    with threads_for(min(n_samples, BLOCK) * len(fitted.table.names)):
        return mean_of(log_density(a + b) - log_density(a) - log_density(b))


def known_log_density(fitted: Fitted, drawn: list[int], n_samples: int, seed: int, progress: bool) -> LogDensity:
    """The log-density of any of the drawn variables at draws of them."""
    if any(not isinstance(member, MixedFlow) for member in fitted.density()):
        return small_log_density(fitted, n_samples, seed, progress)
    mixture, generator = fitted.density(), torch.Generator(fitted.device).manual_seed(seed)

    def known(of: list[int], chunk: torch.Tensor) -> torch.Tensor:
        return torch.tensor([j in of for j in range(mixture.features)], device=fitted.device).expand_as(chunk)

    shape = (min(n_samples, BLOCK), mixture.features)
    empty = torch.full(shape, np.nan, dtype=torch.float64, device=fitted.device)
    with blocks(fitted, n_samples, progress) as sizes:
        parts = [
            fill(mixture, x, known([], x), generator=generator, variables=drawn)[0] for x in (empty[:n] for n in sizes)
        ]
    rows = torch.cat(parts)

    @torch.no_grad()
    def log_density(of: list[int]) -> Array:
        parts = [joint_log_prob(mixture, x, known(of, x)).logsumexp(0) for x in rows.split(CHUNK)]
        return torch.cat(parts).cpu().numpy()

    return log_density


def small_log_density(fitted: Fitted, n_samples: int, seed: int, progress: bool) -> LogDensity:
    """The log-density of any variables at draws; of fewer than all from small densities of these alone.

    Trees know a variable given all those before it, and flows of numbers that of all: the density of a few variables is
    not theirs, and networks beside trees are trained for too few steps. The small densities are fitted to other draws.
    """
    generator = torch.Generator(fitted.device).manual_seed(seed)
    with blocks(fitted, n_samples + max(n_samples, TO_LEARN), progress) as sizes:
        drawn, log_prob = scored_draws(fitted, sizes, generator)
    rows, training, variables = drawn[:n_samples], drawn[n_samples:], fitted.table.variables
    joint, rng = fitted.joint, np.random.default_rng(seed)

    def log_density(of: list[int]) -> Array:
        if len(of) == len(variables):
            return log_prob[:n_samples]
        chosen = sorted(of)
        columns = sorted({variables[j].column for j in chosen})
        kept = [replace(variables[j], column=columns.index(variables[j].column)) for j in chosen]
        part = torch.from_numpy(np.ascontiguousarray(training[:, chosen]))
        members = recipe("fast", len(part), len(kept), joint is not None)
        ensemble = fit_ensemble(
            part,
            torch.ones(len(part), dtype=torch.float64),
            [member for member in members if member.kind != "autoregressive"],  # which takes most of the time
            rng,
            folds=1,
            n_jobs=1,
            device=str(fitted.device),
            variables=kept,
            numbers=None if joint is None else numbers_of(joint, chosen),
        )
        with torch.no_grad():
            return ensemble.flow.log_prob(torch.from_numpy(rows[:, chosen])).numpy()

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
