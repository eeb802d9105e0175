"""Cells of a row given its other cells: draws for imputation and tables of conditions, and distributions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from flowlab.flow import CHUNK
from flowlab.runtime import threads_for
from flowlab.tables.fitted import Fitted
from flowlab.tables.frames import cells
from flowlab.tables.frames.validation import check_count
from flowlab.tables.query import conditional
from flowlab.tables.query.conditions import ConditionError, read_values

ROUNDS = 100  # of draws, after which a row of conditions counts as too improbable
ROUNDS_WITHIN = 20  # the first of them, in which rows must also lie within the range of training
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Array = NDArray[np.float64]
Known = NDArray[np.bool_]


def fill(
    fitted: Fitted,
    x: Array,
    known: Known,
    missing: bool,
    generator: torch.Generator,
) -> tuple[Array, float]:
    """Rows (n, variables) with their unknown cells drawn given the known ones, and their effective share.

    See `conditional.fill`.
    """
    mixture, device = fitted.density(), fitted.device
    with threads_for(min(len(x), CHUNK) * x.shape[1]):
        chunks = zip(torch.from_numpy(x).split(CHUNK), torch.from_numpy(known).split(CHUNK), strict=True)
        parts = [
            conditional.fill(mixture, rows.to(device), which.to(device), missing, generator) for rows, which in chunks
        ]
    drawn, effective = zip(*parts, strict=True)
    return torch.cat(drawn).cpu().numpy(), float(np.average(effective, weights=[len(rows) for rows in drawn]))


def fill_keeping(
    fitted: Fitted, x: Array, known: Known, missing: bool, generator: torch.Generator
) -> tuple[Array, float]:
    """As `fill`, but redraw rows that break a rule, or in which a derived column leaves its support.

    Rows outside the range of training are redrawn as well, for a limited number of rounds: their known cells may
    themselves lie outside.

    Raises:
        ConditionError: A row could not be completed; the message names it.
    """
    table = fitted.table
    out = x.copy()
    remaining, effective = np.arange(len(x)), 1.0
    for turn in range(ROUNDS):
        seen = turn < ROUNDS_WITHIN
        out[remaining], share = fill(fitted, x[remaining], known[remaining], missing, generator)
        effective = effective if turn else share
        fine = table.codec.fits(out[remaining], seen)
        if table.rejects and fine.any():
            rows = table.decode(out[remaining][fine])
            fine[fine] = table.acceptable(rows) if seen else table.unbroken(rows)
        remaining = remaining[~fine]
        if not len(remaining):
            return out, effective
    raise ConditionError(
        f"{len(remaining)} of {len(x)} rows keep {table.why_rejected() or 'the supports of their columns'} in none of "
        f"{ROUNDS} draws, given their known cells; the first is row {remaining[0]}"
    )


def sample_given(fitted: Fitted, given: pd.DataFrame, generator: torch.Generator) -> pd.DataFrame:
    """A new row for each row of conditions."""
    fitted.conditionals("rows of conditions need")
    table = fitted.table
    x = np.full((len(given), len(table.variables)), np.nan)
    known = np.zeros_like(x, dtype=bool)
    for name in given.columns:
        place = table.place(name)
        x[:, place], known[:, place] = table.codec.encode_cells(name, given[name]), True
    drawn, effective = fill_keeping(fitted, x, known, True, generator)
    rows = table.decode(drawn).set_axis(given.index)
    rows.attrs["effective_share"] = effective
    return rows


def impute(fitted: Fitted, rows: Any, n: int, generator: torch.Generator) -> list[pd.DataFrame]:
    """n tables in which the missing cells of rows are drawn; see `FlowDensity.impute`."""
    if fitted.mixture is not None:  # of constants alone there is nothing to ask, and all to fill
        fitted.conditionals("imputation needs")
    check_count("n", n)
    table = fitted.table
    frame = table.frame(rows)
    if lacking := [name for name in table.names if name not in frame.columns]:
        raise ValueError(f"the rows lack columns of the model: {lacking}. Where nothing is known, give missing cells")
    full = rows if isinstance(rows, pd.DataFrame) else frame
    holes = frame.isna().to_numpy().any(axis=1)
    broken = holes & ~table.unbroken(frame)
    if broken.any():
        row = cells.label(frame.index, int(broken.argmax()))
        raise ConditionError(f"row {row!r} breaks the rules {', '.join(map(str, table.rules))}: correct it, or drop it")
    matrix, _ = table.encode_all(frame[holes])
    new = table.new_levels(matrix)
    closed = new & ~table.open_levels
    if closed.any():
        row, name = int(closed.any(1).argmax()), table.variables[int(closed.any(0).argmax())].name
        raise ConditionError(
            f"column {name!r} has a level in row {cells.label(frame.index[holes], row)!r} that it cannot have: correct "
            "it, or drop the row"
        )
    fate = "count as unknown, and stay as they are"
    table.warn_of_new_levels(frame[holes], matrix, fate, fate, stacklevel=4)
    done = []
    for _ in range(n):
        out = full.copy()
        if holes.any():
            filled, effective = matrix, 1.0
            if fitted.mixture is not None:
                filled, effective = fill_keeping(fitted, matrix, ~np.isnan(matrix) & ~new, False, generator)
            drawn = table.decode(filled)
            for name in drawn.columns:
                out[name] = cells.filled(out[name], np.flatnonzero(holes), drawn[name])
            out.attrs["effective_share"] = effective
        done.append(out)
    return done


def distribution(fitted: Fitted, column: Any, given: Any, n: int, generator: torch.Generator) -> pd.DataFrame:
    """The distribution of one column given other cells; see `FlowDensity.conditional`."""
    mixture, table = fitted.conditionals("conditional distributions need"), fitted.table
    rows = read_values(given)
    rows = rows.drop(columns=column) if column in rows.columns else rows
    x = np.full((len(rows), len(table.variables)), np.nan)
    for name in rows.columns:
        observed = rows[name].notna().to_numpy()
        if observed.any():
            places = range(x.shape[1])[table.place(name)]
            x[np.ix_(observed, places)] = table.codec.encode_cells(name, rows[name][observed])
    place = table.place(column)
    variable, known = range(x.shape[1])[place][0], ~np.isnan(x)
    if table.variables[variable].classes:
        question = torch.from_numpy(x).to(fitted.device), torch.from_numpy(known).to(fitted.device)
        shares = conditional.class_probabilities(mixture, *question, variable)
        return pd.DataFrame(shares.cpu().numpy(), columns=table.schema[column].categories, index=rows.index)
    drawn, effective = draws_of(fitted, x, known, n, generator)
    grouped = table.decode_part(column, drawn[:, place]).groupby(np.repeat(np.arange(len(rows)), n))
    out = {"mean": grouped.mean(), "sd": grouped.std()}
    out |= {f"{level:.0%}": grouped.quantile(level) for level in QUANTILES}
    done = pd.DataFrame(out).set_axis(rows.index)
    done.attrs["effective_share"] = effective
    return done


def draws_of(fitted: Fitted, x: Array, known: Known, n: int, generator: torch.Generator) -> tuple[Array, float]:
    """n draws of each row (rows · n, variables) given its known cells, and their effective share."""
    mixture, conditional_part = fitted.density(), conditional.conditionals_of(fitted.density())
    part = replace(fitted, mixture=conditional_part)
    drawn, effective = fill(part, np.repeat(x, n, axis=0), np.repeat(known, n, axis=0), False, generator)
    if part.mixture is mixture or not len(x):
        return drawn, effective
    rows = torch.from_numpy(drawn).to(fitted.device).view(len(x), n, -1)
    with threads_for(drawn.size), torch.no_grad():
        log_v, effective = conditional.weighed(mixture, rows.transpose(0, 1))
    conditional.check_effective(effective)
    shares = log_v.T.softmax(1)
    chosen = torch.multinomial(shares, n, replacement=True, generator=generator).cpu().numpy()
    return drawn.reshape(len(x), n, -1)[np.arange(len(x))[:, None], chosen].reshape(len(x) * n, -1), effective
