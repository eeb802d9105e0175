"""New rows from a fitted `FlowDensity`: as they come, under conditions, and for the cells that are missing."""

import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from flowlab.flow import CHUNK
from flowlab.mixture import FlowMixture
from flowlab.runtime import threads_for
from flowlab.tables.codec.table import WholeTable
from flowlab.tables.frames import cells
from flowlab.tables.frames.arrow import kind_of, like
from flowlab.tables.frames.validation import read_rows, seed_from
from flowlab.tables.query.conditions import (
    ConditionError,
    Conditions,
    class_probabilities,
    draw,
    fill,
    inside,
    is_lone,
    read_conditions,
    read_given,
    read_ranges,
)
from flowlab.tables.schema.relations import Columns

if TYPE_CHECKING:
    from flowlab.tables.density import FlowDensity

RARE_SHARE, RARE_ROWS = 0.02, 100  # of training rows, both below which a level is rare
ROUNDS = 100  # of draws before a row of conditions counts as too improbable
ROUNDS_WITHIN = 20  # of these, in which rows must also lie within what training spans
LEAST = 0.001  # share of draws that are kept, below which nothing more is tried
SUPPORT_DRAWS, SUPPORT_ROUNDS = 2_000, 10  # draws at once, and how often, by which the support's probability is found
SUPPORT_ERROR = 0.002  # nats of standard error that are enough
NEAR = 0.05  # share of draws that shall lie within the training rows' range, which is widened where fewer do
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class Synthesis:
    """The methods of `FlowDensity` that draw."""

    def sample(  # type: ignore[misc]
        self: "FlowDensity", n_samples: int | None = None, random_state: int | None = None, *, given: Any = None
    ) -> Any:
        """New rows: a table with the columns and types of the one fitted to, of the same library; else an array.

        Numbers lie within the range that training rows span (in a table of very many numbers beside few rows: nearly so).

        Args:
            n_samples: Number of rows, 1 when None; a table of conditions says it itself.
            random_state: An int makes the draw reproducible; None draws a seed.
            given: Conditions: for each column a value, a pair (low, high) with None for an open end, or several values in a list, set, array,
                Series or the like; None is a missing cell. Or a table with some of the columns, for one new row per row of it. Models of complete numbers that are not "mixed" take intervals, and
                values that repeat, by throwing other rows away.

        Returns:
            The rows. Under conditions, `rows.attrs["acceptance"]` of a pandas DataFrame is the share of draws that was kept.

        Raises:
            ConditionError: A condition has (next to) no probability; the message says which.
            ValueError: A condition names no column, or a value that the column cannot have.
            RuntimeError: Nearly all draws lie outside what the columns' types can hold, or break a rule.

        Example:
            >>> import flowlab
            >>> diamonds = flowlab.datasets.load("diamonds")[["carat", "cut", "price"]].iloc[:600]
            >>> model = flowlab.FlowDensity(effort="fast", random_state=0).fit(diamonds)
            >>> rows = model.sample(50, random_state=1, given={"cut": "Ideal", "carat": (0.5, 0.8)})
            >>> bool((rows["cut"] == "Ideal").all() and rows["carat"].between(0.5, 0.8).all())
            True
        """
        check_is_fitted(self)
        whole = isinstance(n_samples, Integral) and not isinstance(n_samples, bool)
        if n_samples is not None and not (whole and n_samples >= 1):
            raise ValueError(f"n_samples must be a whole number of at least 1, not {n_samples!r}")
        generator = torch.Generator(self.device).manual_seed(seed_from(random_state))
        given = read_given(given)
        if isinstance(given, pd.DataFrame):
            if n_samples not in (None, len(given)):
                raise ValueError(f"given has {len(given)} rows, for as many new ones: leave n_samples out, or None")
            return like(self._kind, self._sample_rows(given, generator), fresh=True)
        count = 1 if n_samples is None else n_samples
        if not given:
            rows, _ = self._keep(count, lambda n: (self._draw(n, generator), n), {})
            return like(self._kind, rows, fresh=True)
        conditions = None if self.table_ is None else read_conditions(self.table_, given)
        if conditions is not None:
            self._warn_of_rare_levels(conditions)

        def propose(n: int) -> tuple[NDArray[np.float64], float]:
            if conditions is None:
                return self._draw(n, generator), n
            matrix, acceptance = draw(self._mixture, conditions, n, generator)
            return matrix.cpu().numpy(), len(matrix) / acceptance

        rows, acceptance = self._keep(count, propose, given)
        if isinstance(rows, pd.DataFrame):
            rows.attrs["acceptance"] = acceptance
        return like(self._kind, rows, fresh=True)

    @property
    def _mixture(self: "FlowDensity") -> FlowMixture:  # type: ignore[misc]
        if self.flow_ is None:
            raise ValueError("every column is constant: there is nothing to draw")
        return self.flow_

    def _draw(self: "FlowDensity", count: int, generator: torch.Generator) -> NDArray[np.float64]:  # type: ignore[misc]
        if self.flow_ is None:
            return np.empty((count, 0))
        return self.flow_.sample((count,), generator=generator).cpu().double().numpy()

    def _draw_supported(self: "FlowDensity", count: int, generator: torch.Generator) -> torch.Tensor:  # type: ignore[misc]
        """Draws (count, modelled columns) from the density itself, wherever it has rows: also beyond what training spans."""
        found: list[torch.Tensor] = []
        missing, tried = count, 0
        while missing > 0:
            rows = self._mixture.sample((max(missing, SUPPORT_DRAWS) if found else count,), generator=generator)
            tried += len(rows)
            if self.columns_ is not None and self.columns_.bounded:
                table = self.columns_.decode(rows.cpu().double().numpy())
                rows = rows[torch.from_numpy(self.columns_.supported(table)).to(rows.device)]
            found.append(rows)
            missing -= len(rows)
            if missing > 0 and tried > CHUNK and count - missing < LEAST * tried:
                raise RuntimeError(f"only {count - missing} of {tried} draws lie within the supports of the columns")
        return torch.cat(found)[:count]

    def _warn_of_rare_levels(self: "FlowDensity", conditions: Conditions) -> None:  # type: ignore[misc]
        """Warns of conditions on levels that so few training rows had that the model takes such rows to be much like all others."""
        assert self.table_ is not None
        nothing = torch.full((1, self._mixture.features), math.nan, dtype=torch.float64, device=self.device)
        for j, value in conditions.values.items():
            if not self.table_.units[j].classes or math.isnan(value) or self.n_rows_ is None:
                continue
            share = float(class_probabilities(self._mixture, nothing, ~torch.isnan(nothing), j)[0, int(value)])
            if share < RARE_SHARE and share * self.n_rows_ < RARE_ROWS:
                warnings.warn(
                    f"{conditions.words[j]}: about {share * self.n_rows_:.0f} of {self.n_rows_:,} training rows are so, too few to learn all that "
                    "sets them apart: rows drawn under this condition lean towards the others",
                    stacklevel=3,
                )

    def _keep(  # type: ignore[misc]
        self: "FlowDensity", n: int, propose: Any, given: Mapping[Any, Any]
    ) -> tuple[Any, float]:
        """Rows that are allowed, from a function that proposes a number of them and says how many it tried; and the share kept."""
        found, accepted, proposed, tried = [], 0, 0, 0.0
        while True:
            share = max(accepted / proposed, LEAST) if proposed else 1.0
            wanted = min(math.ceil((n - accepted) / share), 4 * CHUNK)
            if proposed or self.table_ is None or self.table_.rejects:
                wanted += 1 + wanted // 50  # a few will be rejected
            with threads_for(wanted * self.n_features_in_):
                matrix, attempts = propose(wanted)
                rows = self._allowed(matrix, given)
            found.append(rows)
            accepted, proposed, tried = accepted + len(rows), proposed + len(matrix), tried + attempts
            if accepted >= n or (tried >= CHUNK and accepted < LEAST * tried):
                break
        if accepted < n:
            why = (
                self.table_.why_rejected()
                if self.table_
                else f"within the columns' supports, the training rows' range and the types {self._dtypes}: where columns exclude one another, "
                'as the flags of one category do, fit with FlowDensity(members=["mixed"])'
            )
            if self.table_ is None and given:
                raise ConditionError(
                    f"the conditions {given} have next to no probability: {accepted} of {tried:.0f} draws kept them"
                )
            raise RuntimeError(
                f"only {accepted} of {tried:.0f} draws keep {why}" + (f", given {given}" if given else "")
            )
        if self.table_ is None:
            return self._restore(np.concatenate(found)[:n]), accepted / tried
        rows = pd.concat(found, ignore_index=True).iloc[:n]
        return (rows.to_numpy() if self.table_.array else rows), accepted / tried

    def _allowed(self: "FlowDensity", matrix: NDArray[np.float64], given: Mapping[Any, Any]) -> Any:  # type: ignore[misc]
        if self.table_ is None:
            table, asked = self.columns_.decode(matrix), read_ranges(self.columns_, given)
            kept = self._storable(table) & self.columns_.supported(table) & inside(table, asked)
            return table[kept & (self.columns_.excess(table, asked) <= self._reach)]
        rows = self.table_.decode(matrix[self.table_.codec.fits(matrix)])
        kept = self.table_.acceptable(rows) if self.table_.rejects else np.ones(len(rows), dtype=bool)
        for name, wish in given.items():
            if isinstance(wish, tuple):  # times are drawn by the day: their ends are sorted out here
                kept &= within(rows[name], wish)
        return rows if kept.all() else rows[kept]

    def _sample_rows(self: "FlowDensity", given: pd.DataFrame, generator: torch.Generator) -> pd.DataFrame:  # type: ignore[misc]
        table = self._whole("rows of conditions need")
        x = np.full((len(given), len(table.units)), np.nan)
        known = np.zeros_like(x, dtype=bool)
        for name in given.columns:
            place = table.place(name)
            x[:, place], known[:, place] = table.codec.encode_cells(name, given[name]), True
        rows = table.decode(self._fill_keeping(table, x, known, True, generator))
        rows.index = given.index
        return rows

    def _fill_keeping(  # type: ignore[misc]
        self: "FlowDensity",
        table: WholeTable,
        x: NDArray[np.float64],
        known: NDArray[np.bool_],
        missing: bool,
        generator: torch.Generator,
    ) -> NDArray[np.float64]:
        """As `_fill`, drawn anew where a row breaks a rule, or where a column made of others leaves its support.

        Rows that leave what training spans are drawn anew, too, but not for ever: their known cells may lie beyond.

        Raises:
            ConditionError: The known cells of a row leave (nearly) nothing else; the message names the row.
        """
        out = x.copy()
        left = np.arange(len(x))
        for turn in range(ROUNDS):
            seen = turn < ROUNDS_WITHIN
            out[left] = self._fill(x[left], known[left], missing, generator)
            fine = table.codec.fits(out[left], seen)
            if table.rejects and fine.any():
                rows = table.decode(out[left][fine])
                fine[fine] = table.acceptable(rows) if seen else table.unbroken(rows)
            left = left[~fine]
            if not len(left):
                return out
        raise ConditionError(
            f"{len(left)} of {len(x)} rows keep {table.why_rejected() or 'the supports of their columns'} in none of {ROUNDS} draws, given their "
            f"known cells; the first is row {left[0]}"
        )

    def _fill(  # type: ignore[misc]
        self: "FlowDensity",
        x: NDArray[np.float64],
        known: NDArray[np.bool_],
        missing: bool,
        generator: torch.Generator,
        units: Sequence[int] | None = None,
    ) -> NDArray[np.float64]:
        with threads_for(min(len(x), CHUNK) * x.shape[1]):
            parts = [
                fill(self._mixture, rows.to(self.device), which.to(self.device), missing, generator, units)
                for rows, which in zip(
                    torch.from_numpy(x).split(CHUNK), torch.from_numpy(known).split(CHUNK), strict=True
                )
            ]
        return torch.cat(parts).cpu().numpy()

    def impute(self: "FlowDensity", X: Any, n: int = 1, random_state: int | None = None) -> Any:  # type: ignore[misc]
        """Rows with their missing cells drawn from what the other cells of the row say of them; observed cells are untouched.

        Args:
            X: Rows with missing cells, and with all columns.
            n: How many such tables: several show how uncertain the cells are (multiple imputation).
            random_state: An int makes the draws reproducible.

        Returns:
            A table of X's kind; a list of n of them for n above 1. A column keeps its type, unless that cannot hold what was drawn: a category gets
            further levels, and a column of nothing but missing cells the type that it had in training.

        Raises:
            ConditionError: The observed cells of a row cannot occur together, or break a rule.
        """
        table = self._whole("imputation needs")
        if not (isinstance(n, Integral) and n >= 1):
            raise ValueError(f"n must be a whole number of at least 1, not {n!r}")
        kind, rows = kind_of(X), read_rows(X)
        frame = table.frame(rows)
        full = rows if isinstance(rows, pd.DataFrame) else frame
        generator = torch.Generator(self.device).manual_seed(seed_from(random_state))
        holes = frame.isna().to_numpy().any(axis=1)
        broken = holes & ~table.unbroken(frame)
        if broken.any():
            raise ConditionError(
                f"row {cells.label(frame.index, int(broken.argmax()))!r} breaks the rules {', '.join(map(str, table.rules))}: correct it, or drop it"
            )
        matrix, _ = table.encode_all(frame[holes])
        done = []
        for _ in range(n):
            out = full.copy()
            if holes.any():
                drawn = table.decode(self._fill_keeping(table, matrix, ~np.isnan(matrix), False, generator))
                for name in drawn.columns:
                    out[name] = cells.filled(out[name], np.flatnonzero(holes), drawn[name])
            done.append(out.to_numpy() if table.array else like(kind, out))
        return done[0] if n == 1 else done

    def conditional(  # type: ignore[misc]
        self: "FlowDensity", column: Any, given: Any, n: int = 500, random_state: int | None = None
    ) -> Any:
        """What other cells say of one column: the probability of each level, or mean, standard deviation and quantiles of a number or time.

        Args:
            column: The column.
            given: Rows with some of the other columns, as a table or a dict of one row; their missing cells count as not known.
            n: Draws per row.
            random_state: Seed of the draws.

        Returns:
            One row per row of `given`, as a table of the library whose table was fitted.
        """
        table = self._whole("conditional distributions need")
        rows = read_given(given)
        if not isinstance(rows, pd.DataFrame):
            several = [name for name, wish in rows.items() if not is_lone(wish)]
            if several:
                raise ValueError(
                    f"column {several[0]!r}: conditional wants one value of each given column, not several"
                )
            rows = pd.DataFrame({name: [value] for name, value in rows.items()}, index=[0])
        library = None if self._kind is None else self._kind.untyped()
        if column in rows.columns:
            rows = rows.drop(columns=column)
        x = np.full((len(rows), len(table.units)), np.nan)
        for name in rows.columns:
            there = rows[name].notna().to_numpy()
            if there.any():
                x[np.ix_(there, range(x.shape[1])[table.place(name)])] = table.codec.encode_cells(
                    name, rows[name][there]
                )
        place = table.place(column)
        units, known = list(range(x.shape[1])[place]), ~np.isnan(x)
        kind = table.codec.schema[column]
        if table.units[units[0]].classes:
            shares = class_probabilities(
                self._mixture, torch.from_numpy(x).to(self.device), torch.from_numpy(known).to(self.device), units[0]
            )
            return like(library, pd.DataFrame(shares.cpu().numpy(), columns=kind.categories, index=rows.index))
        generator = torch.Generator(self.device).manual_seed(seed_from(random_state))
        drawn = self._fill(np.repeat(x, n, axis=0), np.repeat(known, n, axis=0), False, generator, units)[:, place]
        values = table.decode_part(column, drawn)
        grouped = values.groupby(np.repeat(np.arange(len(rows)), n))
        out = {"mean": grouped.mean(), "sd": grouped.std()}
        out |= {f"{level:.0%}": grouped.quantile(level) for level in QUANTILES}
        return like(library, pd.DataFrame(out).set_axis(rows.index))

    def _whole(self: "FlowDensity", what: str) -> WholeTable:  # type: ignore[misc]
        check_is_fitted(self)
        if self.table_ is None:
            raise ValueError(
                f"{what} a density of any columns given others, which the densities fitted to this table of complete numbers do not "
                'have: fit with FlowDensity(members=["mixed"])'
            )
        return self.table_


@torch.no_grad()
def measure_support(flow: FlowMixture, columns: Columns, seed: int) -> tuple[float, float]:
    """What a density of numbers lacks to be one on the columns' supports, and to draw rows like those seen.

    Args:
        flow: The density of the modelled columns, everywhere.
        columns: The columns, with their supports and ranges.
        seed: Of the draws that both are estimated from.

    Returns:
        The log of the probability of the supports, nats; and the reach of draws: how far beyond the training rows' range they may lie, in widths
        of it. That is 0 unless fewer than one draw in twenty lies within.
    """
    generator = torch.Generator().manual_seed(seed)
    excess: list[NDArray[np.float64]] = []
    kept = tried = 0
    for _ in range(SUPPORT_ROUNDS):
        table = columns.decode(flow.sample((SUPPORT_DRAWS,), generator=generator).double().numpy())
        good = np.isfinite(table).all(axis=1) & columns.supported(table)
        excess.append(columns.excess(table[good]))
        kept, tried = kept + int(good.sum()), tried + SUPPORT_DRAWS
        if kept and math.sqrt((tried - kept) / (kept * tried)) <= SUPPORT_ERROR:
            break
    reach = np.quantile(np.concatenate(excess), NEAR) if kept else 0.0
    return math.log(max(kept, 1) / tried), float(reach)


def within(values: pd.Series, ends: tuple[Any, Any]) -> NDArray[np.bool_]:
    """Which cells lie in a closed interval, None being an open end; other columns than times are drawn there already."""
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
