"""What the sections of a report look at: a fitted model, and real and synthetic rows, few enough to take minutes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from flowlab.report.metrics import disjoint_parts

T = TypeVar("T")
MOST_COMPARED = 5000  # rows of each table that metrics compare; more would only take longer
MOST_LEARNT = 10_000  # training and synthetic rows that are kept
MOST_BASELINE = 20_000  # training rows that the baselines of log-likelihood learn from
REPEATS = 5  # pairs of real tables behind a noise floor


@dataclass(frozen=True)
class Evidence:
    """A model and the rows that say how good it is; `Evidence.gather` makes one.

    Attributes:
        model: The fitted model.
        train: Rows that it was fitted to.
        baseline_train: The same, more of them: what the baselines of log-likelihood learn from.
        test: Rows that it has not seen.
        synthetic: Rows that it drew.
        real: Held-out rows to compare `drawn` with.
        drawn: As many synthetic rows.
        real_pairs: Pairs of disjoint tables of real rows, about as large as `real`: what a noise floor is measured on.
        at_hand: Whether `train` are the training rows, rather than held-out rows in their place.
        target: The column that trees predict; None for one that they choose.
        seed: Decides which rows are looked at, folds and noise floors.
        bar: A progress bar, of trees fitted.
    """

    model: Any
    train: pd.DataFrame
    baseline_train: pd.DataFrame
    test: pd.DataFrame
    synthetic: pd.DataFrame
    real: pd.DataFrame
    drawn: pd.DataFrame
    real_pairs: list[tuple[pd.DataFrame, pd.DataFrame]]
    at_hand: bool
    target: Any
    seed: int
    bar: Any

    @classmethod
    def gather(
        cls,
        model: Any,
        train: pd.DataFrame,
        test: pd.DataFrame,
        synthetic: pd.DataFrame,
        *,
        at_hand: bool,
        target: Any,
        seed: int,
        bar: Any,
    ) -> "Evidence":
        """Cut tables of the same columns to the rows that are looked at, and pair real rows with one another."""
        test = at_most(test, MOST_COMPARED, seed)
        baseline_train = at_most(train, MOST_BASELINE, seed)
        train, synthetic = at_most(train, MOST_LEARNT, seed), at_most(synthetic, MOST_LEARNT, seed)
        size = min(len(test), len(synthetic), MOST_COMPARED)
        real_rows = pd.concat([train, test], ignore_index=True)
        return cls(
            model=model,
            train=train,
            baseline_train=baseline_train,
            test=test,
            synthetic=synthetic,
            real=at_most(test, size, seed),
            drawn=at_most(synthetic, size, seed),
            real_pairs=disjoint_parts(real_rows, size, REPEATS, seed),
            at_hand=at_hand,
            target=target,
            seed=seed,
            bar=bar,
        )

    @property
    def floor_rows(self) -> int:
        """Number of rows in each table of a pair of real ones."""
        return len(self.real_pairs[0][0])

    def with_noise_floor(self, metric: Callable[[pd.DataFrame, pd.DataFrame], T]) -> tuple[T, list[T]]:
        """Compute a metric of synthetic against real rows, and its noise floor: the same of real against real rows."""
        floor = [metric(one, other) for one, other in self.real_pairs]
        return metric(self.real, self.drawn), floor


def at_most(table: pd.DataFrame, rows: int, seed: int) -> pd.DataFrame:
    """Draw rows from a table that has more of them."""
    return table if len(table) <= rows else table.sample(rows, random_state=seed)
