"""New rows from a fitted density: as they come, or under conditions."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from flowlab.flow import CHUNK
from flowlab.runtime import progress_bar, threads_for
from flowlab.tables.ensemble.joint_density import LEAST, JointDensity
from flowlab.tables.fitted import Fitted
from flowlab.tables.frames.validation import check_count
from flowlab.tables.mixed.column_mixture import FEWEST, RARE_ROWS, RARE_SHARE
from flowlab.tables.query import conditional
from flowlab.tables.query.conditions import (
    ConditionError,
    Conditions,
    inside,
    keeps,
    read_conditions,
    read_given,
)
from flowlab.tables.query.imputation import sample_given
from flowlab.tables.query.scoring import draw

Array = NDArray[np.float64]
Proposal = tuple[Array, float, float]  # rows of the matrix, the draws that they took, and their effective share


def sample(
    fitted: Fitted, n_samples: Any, given: Any, generator: torch.Generator, progress: bool = False
) -> pd.DataFrame | NDArray[Any]:
    """New rows, as a DataFrame or an array, with a bar if wanted; see `FlowDensity.sample`."""
    if n_samples is not None:
        check_count("n_samples", n_samples)
    given = read_given(given)
    if isinstance(given, pd.DataFrame):
        if n_samples not in (None, len(given)):
            raise ValueError(f"given has {len(given)} rows, for as many new ones: leave n_samples out, or None")
        return sample_given(fitted, given, generator)
    count, conditions = int(n_samples or 1), read_conditions(fitted.table, given)
    if fitted.joint is not None and fitted.only_joint:
        check_probable(fitted, fitted.joint, conditions)
    elif conditions.text:
        warn_of_rare_levels(fitted, conditions)

    def propose(n: int) -> Proposal:
        if not conditions.text:  # none on what is modelled
            return draw(fitted, n, generator), n, 1.0
        if fitted.joint is not None and fitted.only_joint:
            return _inside(fitted, n, conditions, generator)
        matrix, acceptance, effective = conditional.draw(fitted.density(), conditions, n, generator)
        return matrix.cpu().numpy(), len(matrix) / acceptance, effective

    with progress_bar(count, progress, "sample", "row") as bar:
        return _kept(fitted, count, propose, given, conditions, bar)


def check_probable(fitted: Fitted, joint: JointDensity, conditions: Conditions) -> None:
    """Raise a ValueError where a condition on one value has no probability, so that no draw can keep it."""
    for j, value in conditions.values.items():
        if not joint.cells.has_cell(j, value):
            raise ValueError(
                f"column {fitted.table.variables[j].name!r} holds numbers that do not repeat, and one of them, "
                f"{value:g}, has no probability under the members asked for: give an interval (low, high), or leave "
                'members out, or name "mixed" among them, which can tell what a value says of the others'
            )


def _inside(fitted: Fitted, n: int, conditions: Conditions, generator: torch.Generator) -> Proposal:
    """Those of n draws that keep conditions."""
    matrix = draw(fitted, n, generator)
    return matrix[inside(matrix, conditions)], n, 1.0


def warn_of_rare_levels(fitted: Fitted, conditions: Conditions) -> None:
    """Warn of conditions on rare levels: few rows decide what is drawn, and very few do not show what is theirs."""
    mixture, table, rows = conditional.networks_of(fitted.density()), fitted.table, fitted.rows
    nothing = torch.full((1, mixture.features), math.nan, dtype=torch.float64, device=fitted.device)
    for j, value in conditions.values.items():
        if not table.variables[j].classes or math.isnan(value) or rows is None:
            continue
        shares = conditional.class_probabilities(mixture, nothing, ~torch.isnan(nothing), j)
        share = float(shares[0, int(value)])
        if share < RARE_SHARE and share * rows < RARE_ROWS:
            few = share * rows < 2 * FEWEST
            known = "too few to learn all that sets them apart: rows drawn under this condition lean towards the others"
            warnings.warn(
                f"{conditions.text[j]}: about {share * rows:.0f} of {rows:,} training rows are so, "
                + (known if few else "and rows drawn under this condition vary around these few"),
                stacklevel=4,
            )


def _kept(
    fitted: Fitted,
    n: int,
    propose: Callable[[int], Proposal],
    given: Mapping[Any, Any],
    conditions: Conditions,
    bar: Any,
) -> pd.DataFrame | NDArray[Any]:
    """Draw n rows by rejection: rows that can occur and keep rules and conditions.

    Args:
        fitted: The model.
        n: Number of rows.
        propose: Returns at most about as many rows of the matrix as asked for, the number of draws that it took, and
            the rows' effective share.
        given: The conditions, as the user gave them.
        conditions: The same, as the model takes them.
        bar: Counts the rows.
    """
    table = fitted.table
    kept, accepted, proposed, tried, effective = [], 0, 0, 0.0, 0.0
    while True:
        share = max(accepted / proposed, LEAST) if proposed else 1.0
        wanted = min(math.ceil((n - accepted) / share), 4 * CHUNK)
        if proposed or fitted.joint is not None or table.rejects:
            wanted += 1 + wanted // 50  # some will be rejected
        with threads_for(wanted * len(table.names)):
            matrix, attempts, own = propose(wanted)
            rows = _allowed(fitted, matrix, given, conditions)
        kept.append(rows)
        accepted, proposed, tried = accepted + len(rows), proposed + wanted, tried + attempts
        effective += own * wanted
        bar.update(len(rows))
        if accepted >= n or (tried >= CHUNK and accepted < LEAST * tried):
            break
    if accepted < n:
        _refuse(fitted, f"{accepted} of {tried:.0f}", given)
    rows = pd.concat(kept, ignore_index=True).iloc[:n] if len(kept) > 1 else kept[0].iloc[:n].reset_index(drop=True)
    if table.array:
        return rows.to_numpy()
    if given:
        rows.attrs["acceptance"] = accepted / tried
        rows.attrs["effective_share"] = effective / proposed
    return rows


def _refuse(fitted: Fitted, count: str, given: Mapping[Any, Any]) -> None:
    why = fitted.table.why_rejected()
    if given and (fitted.joint is not None or not why):
        raise ConditionError(f"the conditions {given} have next to no probability: {count} draws kept them")
    if fitted.joint is not None:
        why = f"within the training rows' range{' and ' if why else ''}{why}"
    raise RuntimeError(f"only {count} draws keep {why}" + (f", given {given}" if given else ""))


def _allowed(fitted: Fitted, matrix: Array, given: Mapping[Any, Any], conditions: Conditions) -> pd.DataFrame:
    """The rows of a matrix that can occur, keep rules and conditions, and lie within the range of the training rows."""
    table = fitted.table
    if fitted.joint is not None:
        asked = {*conditions.values, *conditions.allowed}
        matrix = matrix[fitted.joint.in_range(torch.from_numpy(matrix).to(fitted.device), asked).cpu().numpy()]
    rows = table.decode(matrix[table.codec.fits(matrix, seen=not conditions.derived)])
    kept = table.acceptable(rows) if table.rejects else np.ones(len(rows), dtype=bool)
    for name, condition in given.items():
        if name in conditions.derived:
            kept &= keeps(rows[name], condition)
        elif isinstance(condition, tuple):  # times are drawn by the day: the ends are checked here
            kept &= within(rows[name], condition)
    return rows if kept.all() else rows[kept]


def within(values: pd.Series, ends: tuple[Any, Any]) -> NDArray[np.bool_]:
    """Which times lie in a closed interval, with None for an open end; other columns are drawn within it already."""
    if not pd.api.types.is_datetime64_any_dtype(values.dtype):
        return np.ones(len(values), dtype=bool)
    kept = np.ones(len(values), dtype=bool)
    for end, side in zip(ends, (values.ge, values.le), strict=True):
        if end is not None:
            stamp = pd.Timestamp(end)
            if values.dt.tz is not None and stamp.tz is None:
                stamp = stamp.tz_localize(values.dt.tz)
            kept &= side(stamp).to_numpy(dtype=bool)
    return kept
