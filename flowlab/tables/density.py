"""`FlowDensity`: the scikit-learn estimator."""

import copy
import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import _check_feature_names, _check_sample_weight, check_is_fitted

from flowlab import files
from flowlab.distribution import Estimate
from flowlab.hints import check_arguments, hints_of
from flowlab.mixture import FlowMixture
from flowlab.tables import fitted, parameters
from flowlab.tables.codec.table import Table
from flowlab.tables.ensemble.ensemble import Report
from flowlab.tables.ensemble.member import Member, fold_count, recipe
from flowlab.tables.fitted import Fitted, fit_matrix
from flowlab.tables.frames.arrow import format_of, like
from flowlab.tables.frames.validation import fit_anew, read_rows, seed_from, training_frame
from flowlab.tables.query import imputation, questions, sampling, scoring
from flowlab.tables.query.conditions import is_single, read_given
from flowlab.tables.query.summary import summary
from flowlab.tables.schema import Schema, stored
from flowlab.tables.schema.relations import Columns
from flowlab.tables.schema.rules import read_rules

LEAST_HELD_OUT = 8  # rows from which some are held out

Array = NDArray[np.float64]


class FlowDensity(DensityMixin, BaseEstimator):
    """The density of a table, as a scikit-learn estimator: fit it, score rows, draw new ones. Nothing needs tuning.

    Whole tables – with categories, booleans, dates or missing cells, or with `schema` or `rules` – get a mixture of `MixedFlow`s, which know
    conditions and fill missing cells, too; docs/tables.md says what their likelihood means. What follows is about tables of complete numbers.

    polars DataFrames and pyarrow Tables go wherever pandas DataFrames do, and a model that was fitted to one gives back such tables.

    The model is a weighted mixture of unlike flows (`FlowMixture`): autoregressive ones, Gaussian mixtures, a copula, each
    behind preprocessing that is part of its density. They are fitted apart and weighed by the likelihood of held-out rows, which
    none of them was trained on (though they decide when training stops, and how many components a mixture has), so that the whole is about as good as the best of them everywhere, and better nearly everywhere. Every
    log-likelihood is in nats per row, in the units of the data.

    Columns are treated by what their values are (`columns_`, `summary()`):
    values that repeat on a decimal grid (integers, prices) are dequantised uniformly over a cell in training, scored by the density
    at the value (add log(`resolution`) for the probability of the cell), and drawn on the grid; repeated values off
    any grid become atoms with a narrow cell of their own; constant columns and exact linear combinations of other columns stay out of the
    density, come back exactly in samples, and a row that contradicts them scores -inf. So does a row beyond the bounds that a column's
    values suggest (`schema_`): the density is one within them.

    Sizes follow from rows and columns (`Member.sized`). Below 2,000 rows every row is held out once, in five folds (three with
    effort="fast" or many columns, none with both), and the mixture holds all versions of a member; from there on a share of the rows is held out.

    Args:
        effort: "fast" (one small network: seconds), "default" (four networks: minutes at most), "best" (ten larger ones).
        members: What to mix, in place of what the effort says: names of kinds, or `Member` objects.
        preprocessing: For members that leave it open: "auto" is what a short race on held-out rows finds best; or "none", "marginal" (each
            column made Gaussian), "marginal-whitening", "whitening-marginal".
        time_limit: Seconds that fitting may take, about: as many networks as can be trained in it, one at least. Results then depend on the machine.
        validation: Share of rows held out, from 2,000 rows on; 0 holds out none, and weighs members equally.
        schema: What columns are, where that is not to be guessed: a `Schema`, or for columns' names a kind ("integer", "categorical", "excluded", …) or a
            dict of fields ({"lower": 0, "upper": 1}).
        rules: Rules between columns that rows keep, as text ("low <= high", "total = a * b", any condition) or as `FixedCombinations` and the like; one, or a list.
        device: Where networks train, "cpu" or "cuda".
        n_jobs: Processes that fit members; None takes all cores for large tables, one for small ones. Each runs on one thread.
        random_state: An int makes split, weights, batches and noise reproducible; None draws a seed.
        progress: Show progress bars: of steps in one process, of members in several.

    Attributes:
        flow_: The fitted `FlowMixture` over the modelled columns, in double precision; None if every column is constant.
        members_: DataFrame of the members: kind, preprocessing, held-out log-likelihood, weight, seconds.
        reports_: The same in detail, with training curves.
        history_: DataFrame of the training curve of the network with the largest weight.
        race_: Held-out log-likelihood of each preprocessing in the race.
        schema_: The `Schema`: what each column is taken for, with the reason.
        columns_: How each column of complete numbers is treated; None for whole tables.
        table_: The `WholeTable`: columns, codec and rules; None for complete numbers.
        validation_score_: Mean log-likelihood of the held-out rows, nats; a little hopeful, since they also chose stopping and weights.
        calibration_: DataFrame of tests of fit on the held-out rows; see `goodness_of_fit`.
        converged_: Whether more training is not expected to help.
        n_features_in_: Number of columns.
        n_rows_: Number of rows fitted to; None in a model of a file that does not say it.
        feature_names_in_: Their names, if fitted to a table with string names.

    Example:
        >>> import numpy as np, flowlab
        >>> x = np.random.default_rng(0).normal(size=(300, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
        >>> model = flowlab.FlowDensity(effort="fast", random_state=0).fit(x)
        >>> model.score_samples(x).shape, model.sample(5, random_state=1).shape
        ((300,), (5, 2))
    """

    _fitted: Fitted | None = None

    def __init__(
        self,
        *,
        effort: str = "default",
        members: Sequence[Member | str] | None = None,
        preprocessing: str = "auto",
        time_limit: float | None = None,
        validation: float = 0.1,
        schema: Any = None,
        rules: Any = None,
        device: str = "cpu",
        n_jobs: int | None = None,
        random_state: int | None = None,
        progress: bool = False,
    ) -> None:
        self.effort = effort
        self.members = members
        self.preprocessing = preprocessing
        self.time_limit = time_limit
        self.validation = validation
        self.schema = schema
        self.rules = rules
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> "FlowDensity":
        """Fit to rows (n, columns): an array, or a table of pandas, polars or pyarrow.

        Args:
            X: The rows; at least two.
            y: Ignored.
            sample_weight: Non-negative weight of each row; rows of weight zero have no influence.

        Raises:
            ValueError: A column cannot be modelled; the message names it.
        """
        fit_anew(self, X, sample_weight)
        return self

    def _fit(self, X: Any, sample_weight: ArrayLike | None) -> None:
        params = self.get_params(deep=False)
        parameters.check(params)
        files.check_device(self.device)
        parameters.to_json(params)  # what cannot be saved is said before the work is done
        rng = np.random.default_rng(seed_from(self.random_state))
        table_format, X = format_of(X), read_rows(X)
        weight = None
        if sample_weight is not None:  # a row of weight zero is as good as none: nothing is learnt from it
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            used = np.flatnonzero(weight)
            if len(used) < 2:
                raise ValueError(f"sample_weight leaves {len(used)} rows with a positive weight, at least 2 are needed")
            weight, X = weight[used], X.iloc[used] if isinstance(X, pd.DataFrame) else np.asarray(X)[used]
        frame, array = training_frame(self, X)
        table, kept = Table.learn(frame, self.schema, self.rules, array)
        matrix = table.encode(frame[kept])
        if len(matrix) < LEAST_HELD_OUT and self.validation:
            warnings.warn(
                f"only {len(matrix)} rows: none is held out, and how well the model fits is not known", stacklevel=4
            )
        rows, features = matrix.shape
        members = self._chosen(table, rows, features) if features else []
        self._fitted = fit_matrix(
            table,
            matrix,
            np.ones(len(matrix)) if weight is None else weight[kept],
            members,
            rng,
            table_format,
            self.device,
            validation=self.validation,
            folds=fold_count(self.effort, rows, features, any(member.kind == "mixed" for member in members)),
            time_limit=self.time_limit,
            n_jobs=self.n_jobs,
            progress=self.progress,
        )

    def _chosen(self, table: Table, rows: int, features: int) -> list[Member]:
        """The members to fit, which all have conditional densities, or none has."""
        needed = bool(self.schema is not None or read_rules(self.rules) or not table.complete)
        members = [Member(m) if isinstance(m, str) else m for m in self.members or ()]
        if self.members is None:
            members = recipe(self.effort, rows, features, needed)
        if not members:
            raise ValueError("members is empty: name at least one, or leave it None")
        kinds = {member.kind == "mixed" for member in members}
        if len(kinds) > 1 or (needed and kinds == {False}):
            numeric = ("continuous", "integer", "derived", "constant", "duplicate")
            odd = [c.name for c in table.schema if c.missing or c.kind not in numeric]
            raise ValueError(
                f"members {', '.join(sorted({m.kind for m in members}))} do not go together with whole tables, which "
                f'"mixed" members alone model: columns {odd or [c.name for c in table.schema]} hold what is no number, '
                "or a missing cell, or have a schema or rules"
            )
        if self.preprocessing == "auto":
            return members
        return [replace(m, preprocessing=self.preprocessing) if m.preprocessing == "auto" else m for m in members]

    @property
    def _model(self) -> Fitted:
        """What the fit left behind."""
        check_is_fitted(self)
        assert self._fitted is not None
        return self._fitted

    # Scores ----------------------------------------------------------------------------------------------------------

    def score_samples(
        self,
        X: ArrayLike,
        missing: Literal["outcome", "unknown"] = "outcome",
        measure: Literal["mass", "density"] = "mass",
    ) -> Array:
        """Log-likelihood of each row (n,) in nats, in the units of the data; -inf for rows that cannot occur.

        It is the log of a product of one factor for each column: the probability of a level, of a missing cell, of a
        value on a grid (integers, prices) or of a value that repeats; the density of any other number, per unit of the
        column. What else is in the table does not change the measure of a column.

        Args:
            X: The rows.
            missing: Whether a missing cell of a column that had some in training counts as an "outcome", or as
                "unknown": the row then has the likelihood of its other cells. In other columns a missing cell is always
                unknown.
            measure: "mass" is the above; with "density" the probabilities of values on a grid, and of those that repeat
                among others, are divided by the width of their cells, to compare with estimators that know densities
                only, such as scikit-learn's mixtures.
        """
        self._model  # noqa: B018  # unfitted, it says so before rows are looked at
        return scoring.score(self._model, self._read(X), missing, measure)

    def _read(self, X: Any) -> Any:
        """Rows as a DataFrame or an array; the names of complete numbers are held to scikit-learn's rules."""
        rows = read_rows(X)
        if isinstance(rows, pd.DataFrame) and not self._model.conditional:
            known = self._model.table.names
            _check_feature_names(self, rows[known] if set(known) <= set(rows.columns) else rows, reset=False)
        return rows

    def score(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Mean log-likelihood of the rows, nats, weighted where weights (n,) are given."""
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        return float(np.average(self.score_samples(X), weights=weights))

    def to_noise(self, X: ArrayLike, random_state: int | None = None) -> Array:
        """Noise (n, modelled columns) behind the rows: standard normal if they come from the fitted density.

        Values on a grid are first spread over their cells, and the member that a row came from is drawn: another seed gives other noise.
        There is none behind a row that cannot occur, whose `score_samples` is -inf: its noise is NaN throughout.
        """
        model = self._model
        return scoring.to_noise(model, self._read(X), np.random.default_rng(seed_from(random_state)))

    def pit(self, X: ArrayLike, random_state: int | None = None) -> Array:
        """Probability integral transform of the rows (n, modelled columns): uniform on [0, 1] and independent if they come from the
        fitted density. It is the normal distribution function of `to_noise`, and NaN for a row that cannot occur.
        """
        return scoring.pit(self.to_noise(X, random_state))

    def anomaly_score(self, X: ArrayLike) -> Array:
        """How unusual each row is: its negative log-density, nats."""
        return -self.score_samples(X)

    def anomaly_p_value(self, X: ArrayLike) -> Array:
        """The share of rows like those fitted to that would look at least as unusual, from log-densities of held-out rows.

        The idea is that of conformal p-values (Bates et al. 2023, "Testing for outliers with conformal p-values"), but not their guarantee:
        no network was trained on the held-out rows, yet they decided when training stopped and what the members weigh, and in folds
        other versions of the members scored them. Of new rows from the same source, about a share α get a p-value of α or less.

        Raises:
            ValueError: No rows were held out (`validation=0`, or very few rows).
        """
        held_out = self._model.held_out
        if not len(held_out):
            raise ValueError("no rows were held out to calibrate p-values with: fit with validation above 0")
        at_most = np.searchsorted(held_out, self.score_samples(X), side="right")
        return (at_most + 1) / (len(held_out) + 1)

    # Rows ------------------------------------------------------------------------------------------------------------

    def sample(self, n_samples: int | None = None, random_state: int | None = None, *, given: Any = None) -> Any:
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
        model = self._model
        if n_samples is not None and (
            isinstance(n_samples, bool) or not isinstance(n_samples, Integral) or n_samples < 1
        ):
            raise ValueError(f"n_samples must be a whole number of at least 1, not {n_samples!r}")
        generator = torch.Generator(model.device).manual_seed(seed_from(random_state))
        given = read_given(given)
        if isinstance(given, pd.DataFrame):
            if n_samples not in (None, len(given)):
                raise ValueError(f"given has {len(given)} rows, for as many new ones: leave n_samples out, or None")
            return like(model.format, imputation.sample_given(model, given, generator), fresh=True)
        return like(model.format, sampling.sample(model, int(n_samples or 1), given, generator), fresh=True)

    def impute(self, X: Any, n: int = 1, random_state: int | None = None) -> Any:
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
        model = self._model
        model.conditionals("imputation needs")
        if not (isinstance(n, Integral) and n >= 1):
            raise ValueError(f"n must be a whole number of at least 1, not {n!r}")
        generator = torch.Generator(model.device).manual_seed(seed_from(random_state))
        done = imputation.impute(model, read_rows(X), int(n), generator)
        tables = [out.to_numpy() if model.table.array else like(format_of(X), out) for out in done]
        return tables[0] if n == 1 else tables

    def conditional(self, column: Any, given: Any, n: int = 500, random_state: int | None = None) -> Any:
        """What other cells say of one column: the probability of each level, or mean, standard deviation and quantiles of a number or time.

        Args:
            column: The column.
            given: Rows with some of the other columns, as a table or a dict of one row; their missing cells count as not known.
            n: Draws per row.
            random_state: Seed of the draws.

        Returns:
            One row per row of `given`, as a table of the library whose table was fitted.
        """
        model = self._model
        model.conditionals("conditional distributions need")
        rows = read_given(given)
        if not isinstance(rows, pd.DataFrame):
            several = [name for name, condition in rows.items() if not is_single(condition)]
            if several:
                raise ValueError(
                    f"column {several[0]!r}: conditional wants one value of each given column, not several"
                )
            rows = pd.DataFrame({name: [value] for name, value in rows.items()}, index=[0])
        generator = torch.Generator(model.device).manual_seed(seed_from(random_state))
        table_format = None if model.format is None else model.format.untyped()
        return like(table_format, imputation.distribution(model, column, rows, n, generator))

    # Information -----------------------------------------------------------------------------------------------------

    def highest_density_threshold(
        self, level: float = 0.95, n_samples: int = 10_000, random_state: int | None = None
    ) -> float:
        """The log-density above which the model's draws lie with probability `level`: the smallest such region (Hyndman 1996).

        The cost is that of drawing and scoring `n_samples` rows. With `progress` of the model, a bar counts them.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, not {level}")
        return float(np.quantile(self._scores_of_draws(self.score_samples, n_samples, random_state), 1 - level))

    def entropy(self, n_samples: int = 10_000, random_state: int | None = None) -> Estimate[float]:
        """Entropy of the modelled columns, nats, with its standard error: the expected negative of `score_samples`.

        Levels, missing cells and values on a grid count with their probabilities, other numbers with their density. The
        cost is that of drawing and scoring `n_samples` rows. With `progress` of the model, a bar counts them.
        """
        return questions.entropy(self._model, n_samples, seed_from(random_state), self.progress)

    def divergence(self, other: Any, n_samples: int = 10_000, random_state: int | None = None) -> Estimate[float]:
        """Kullback-Leibler divergence KL(this ‖ other), nats, with its standard error.

        Args:
            other: A fitted density of the same columns: anything with `score_samples`.
            n_samples: Draws from this density.
            random_state: Seed of the draws.
        """

        def difference(rows: Any) -> Array:
            return self.score_samples(rows) - np.asarray(other.score_samples(rows))

        return questions.mean_of(self._scores_of_draws(difference, n_samples, random_state))

    def mutual_information(
        self, columns_a: Any, columns_b: Any, n_samples: int = 10_000, random_state: int | None = None
    ) -> Estimate[float]:
        """Mutual information between two groups of columns under the model, nats, with the standard error of the simulation.

        I(a; b) is the mean over draws of log p(a, b) - log p(a) - log p(b). A model of whole tables has a density for every group of columns, in which
        a missing cell is an outcome. Of complete numbers, where the groups are not all columns, and for p(a) and p(b), small
        densities are fitted to draws from the model; an imperfect fit of those is not in the standard error.

        Args:
            columns_a: A column, or several as a list. A column is named as in the table, a whole number being a name like any other; of a model
                that was fitted to an array it is a position, or "x0", "x1" and so on.
            columns_b: Others.
            n_samples: Draws; of complete numbers, as many again fit the small densities.
            random_state: Seed of draws and fits.

        Raises:
            ValueError: A column is not in the model, or the groups are empty or overlap.
        """
        model, count = self._model, questions.number_of_draws(n_samples)
        a, b = (questions.variables(model, *g) for g in ((columns_a, "columns_a"), (columns_b, "columns_b")))
        if not a or not b or set(a) & set(b):
            raise ValueError(
                "columns_a and columns_b must be two groups with at least one column each and none in common"
            )
        seed = seed_from(random_state)
        if model.conditional:
            log_density = questions.known_log_density(model, a + b, count, seed, self.progress)
        else:
            own = {"device": self.device, "n_jobs": self.n_jobs, "progress": self.progress}
            small = FlowDensity(effort="fast", random_state=seed % 2**31, **own)  # type: ignore[arg-type]
            log_density = questions.fitted_log_density(model, small, count, seed, self.progress)
        return questions.information(model, a, b, log_density, count)

    def _scores_of_draws(self, score: Callable[[Any], Array], n_samples: int, random_state: int | None) -> Array:
        """What a function says of rows that the model draws, (n_samples,)."""
        model, rng = self._model, np.random.default_rng(seed_from(random_state))
        with questions.blocks(model, n_samples, self.progress) as sizes:
            found = [score(self.sample(size, int(rng.integers(2**62)))) for size in sizes]
        return np.concatenate(found)

    # What was fitted -------------------------------------------------------------------------------------------------

    @property
    def table_(self) -> Table:
        """The columns and rules, and the way between rows and the model's matrix."""
        return self._model.table

    @property
    def schema_(self) -> Schema:
        """What each column is taken for, with the reason."""
        return self._model.table.schema

    @property
    def columns_(self) -> Columns | None:
        """How each column of complete numbers is treated; None where the density is not one of these alone."""
        return None if self._model.conditional else Columns.of(self.schema_.columns)

    @property
    def flow_(self) -> FlowMixture | None:
        """The mixture over the modelled columns, in double precision; None if every column is constant."""
        return self._model.mixture

    @property
    def reports_(self) -> list[Report]:
        """What became of each member, with training curves."""
        return self._model.reports

    @property
    def race_(self) -> dict[str, float]:
        """Held-out log-likelihood of each preprocessing in the race, nats per row."""
        return self._model.race

    @property
    def calibration_(self) -> pd.DataFrame:
        """Tests of fit on the held-out rows: a statistic and a p-value each."""
        return self._model.calibration

    @property
    def validation_score_(self) -> float:
        """Mean log-likelihood of the held-out rows, nats; a little hopeful, since they chose stopping and weights."""
        return self._model.validation_score

    @property
    def n_rows_(self) -> int | None:
        """Number of rows fitted to; None in a model of a file that does not say it."""
        return self._model.rows

    @property
    def members_(self) -> pd.DataFrame:
        """One row per member: kind, preprocessing, held-out log-likelihood (nats per row), weight, seconds."""
        check_is_fitted(self)
        fields = ("score", "weight", "seconds")
        rows = [
            {"kind": r.member.kind, "preprocessing": r.member.preprocessing, **{f: getattr(r, f) for f in fields}}
            for r in self.reports_
        ]
        return pd.DataFrame(rows, columns=["kind", "preprocessing", *fields])

    @property
    def history_(self) -> pd.DataFrame:
        """The training curve of the network with the largest weight (of its first fold), nats per row; empty if there is none."""
        check_is_fitted(self)
        trained = [report for report in self.reports_ if report.history]
        best = max(trained, key=lambda report: report.weight, default=None)
        return pd.DataFrame.from_records([] if best is None else best.history).astype(float)

    @property
    def converged_(self) -> bool:
        """Whether more training is not expected to help."""
        check_is_fitted(self)
        return all(report.converged for report in self.reports_)

    def summary(self) -> str:
        """What was fitted, how well it fits rows that it has not seen, and how each column is treated, as text."""
        return summary(self._model, self.n_features_in_)

    def report(
        self,
        train: Any,
        test: Any,
        path: str | os.PathLike[str],
        *,
        target: Any = None,
        title: str | None = None,
        random_state: int = 0,
        progress: bool | None = None,
    ) -> Path:
        """Write a page that says how good the model and its rows are: one HTML file that needs nothing else.

        Held-out log-likelihood against baselines, columns and pairs of columns real and synthetic, a classifier that tries to tell them apart, what can be learnt
        from synthetic rows, missing cells, privacy, calibration. Every number stands beside what real rows would reach.

        Args:
            train: The rows that the model was fitted to; None if they are not at hand, and then copies of them cannot be found.
            test: Rows that it has not seen, twenty at least; all of this is as honest as they are unseen.
            path: Where to write, an .html file.
            target: Column that models trained on synthetic rows shall predict; chosen when None.
            title: What the page calls the table; the file's name when None.
            random_state: Seed of the synthetic rows.
            progress: Show a bar, of the classifiers that take most of the time; None does as the model's own `progress` says.

        Raises:
            TypeError, ValueError: A table is none, lacks a column, or has too few rows.
        """
        # Found by name, as the classes in files are: a density need not know its report.
        write = importlib.import_module("flowlab.report.write").write_report
        plain = copy.copy(self)
        plain._fitted = replace(self._model, format=None)  # the report knows pandas alone
        shown = self.progress if progress is None else progress
        found: Path = write(plain, train, test, path, target=target, title=title, seed=random_state, progress=shown)
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to one file; `flowlab.load` or `FlowDensity.load` reads it. A `random_state` that is no int is not kept."""
        check_is_fitted(self)
        files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | None = None) -> "FlowDensity":
        """Read a model that `save` wrote."""
        model = files.load(path, device)
        if not isinstance(model, cls):
            raise files.FileError(f"{path} holds a {type(model).__name__}, not a FlowDensity: use flowlab.load")
        return model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return self._fitted is not None

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # scikit-learn's argument
        """Its parameters, as of any estimator of scikit-learn; once fitted, a line on what to."""
        text = str(BaseEstimator.__repr__(self, N_CHAR_MAX))
        if self._fitted is None:
            return text
        members = sum(report.weight > 0 for report in self.reports_)
        score = self.validation_score_
        held_out = "" if np.isnan(score) else f", {score:.3f} nats per held-out row"
        return f"{text}\nfitted: {self.n_features_in_} columns, {members} member{'s' * (members != 1)}{held_out}"

    def _to_file(self) -> tuple[dict[str, Any], FlowMixture | None]:
        names = self.feature_names_in_.tolist() if hasattr(self, "feature_names_in_") else None
        state = {"n_features_in_": self.n_features_in_, "feature_names_in_": names, **fitted.to_json(self._model)}
        header = {"parameters": parameters.to_json(self.get_params(deep=False)), "state": state}
        return {"kind": "FlowDensity", **header}, self._model.mixture

    @classmethod
    def _from_file(cls, header: dict[str, Any], flow: FlowMixture | None) -> "FlowDensity":
        state = header["state"]
        params = parameters.from_json(header["parameters"]) if "parameters" in header else parameters.early(header)
        check_arguments("FlowDensity", params, {**hints_of(cls.__init__), "time_limit": Real | None})
        model = cls(**params)
        parameters.check(params)
        stored.read_names(model, state["n_features_in_"], state["feature_names_in_"])
        model._fitted = fitted.from_json(state, flow, model.n_features_in_)
        if flow is not None:
            model.device = str(model._fitted.device)
        return model
