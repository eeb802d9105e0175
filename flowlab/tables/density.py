"""`FlowDensity`: the density of a table as a scikit-learn estimator."""

import copy
import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import _check_feature_names, check_is_fitted

from flowlab import files
from flowlab.distribution import Estimate
from flowlab.hints import check_arguments, hints_of
from flowlab.mixture import FlowMixture
from flowlab.tables import fitted, parameters
from flowlab.tables.ensemble.member import Member
from flowlab.tables.fitted import fit_table
from flowlab.tables.frames.arrow import format_of, like
from flowlab.tables.frames.validation import fit_anew, read_rows, seed_from, training_frame, weighted_rows
from flowlab.tables.private import fit_private
from flowlab.tables.query import imputation, questions, sampling, scoring
from flowlab.tables.query.facts import Facts
from flowlab.tables.query.memorization import Memorization, memorization
from flowlab.tables.query.summary import headline, summary
from flowlab.tables.schema import stored
from flowlab.training import Callback

Array = NDArray[np.float64]


class FlowDensity(Facts, DensityMixin, BaseEstimator):
    """The density of a table, as a scikit-learn estimator: fit it, score rows, draw new ones. Nothing needs tuning.

    A table is an array, or a table of pandas, polars or pyarrow; a model returns tables of the library of the one that
    it was fitted to. Columns may hold numbers, categories, booleans, dates and times, and may have missing cells.

    The density is a weighted mixture (`FlowMixture`). Its members are fitted separately and weighted by the likelihood
    of held-out rows that none of them was trained on (though these rows decide when training stops, and how many
    components a Gaussian mixture has). Networks, a Gaussian mixture and decision trees, mixed column by column, know
    any columns given any others. Tables of complete numbers get joint members beside them: Gaussian mixtures, a copula,
    kernels, autoregressive flows, each behind preprocessing that is part of its density. Draws given other cells, and
    imputation, then choose among what the former propose, so that they follow the whole mixture.

    Log-likelihoods, in nats per row, have the same measure for every table; see `score_samples`. Columns are treated
    by what their values are (`schema_`, `summary()`). Values on a decimal grid (integers, prices) and values that
    repeat off any grid have probabilities, and are drawn as such. Constant columns, copies and exact linear
    combinations of other columns are kept out of the density and come back exactly in samples; a row that contradicts
    them scores -inf, as does a row beyond the bounds that a column's values suggest. Columns of row numbers are
    modelled like other integers, with a warning. What was fitted is in the properties, from `table_` to `converged_`.

    Sizes follow from rows and columns (`Member.sized`). Below 2,000 rows every row is held out once, in one to five
    folds, and the mixture holds every fold's version of a member; from there on a share of the rows is held out.

    Args:
        effort: "fast" (one or two small networks: seconds), "default" (three) or "best" (ten and more).
        members: What to mix, in place of the members that `effort` stands for: names of kinds, or `Member` objects.
        preprocessing: For members that leave it open: "auto" takes what a short race on held-out rows finds best; or
            "none", "marginal" (each column made Gaussian), "marginal-whitening", "whitening-marginal".
        time_limit: Approximate time for fitting, in seconds. As many networks are trained as fit into it, at least one;
            the result then depends on the machine.
        validation: Share of rows held out, from 2,000 rows on; 0 holds out none and weights the members equally.
        schema: What columns are, where that is not to be inferred: a `Schema`, or a dict from a column's name to a kind
            ("integer", "categorical", "excluded", …) or to fields ({"lower": 0, "upper": 1}).
        rules: Rules between columns that rows keep: text ("low <= high", "total = a * b", any condition) or objects
            such as `FixedCombinations`; one, or a list.
        device: Where networks train, "cpu" or "cuda".
        n_jobs: Processes that fit members, one thread each; None uses all cores for large tables, one for small ones.
        privacy: A budget {"epsilon": …, "delta": …} for a differentially private fit: networks alone, trained by DP-SGD
            (Opacus, the extra `private`), of columns that `schema` declares in full. See docs/tables.md.
        random_state: An int makes split, weights, batches and noise reproducible; None draws a seed.
        progress: Show a progress bar, or a line every ten seconds where output goes to a file.
        checkpoint: A folder, new or empty at first, that keeps every member that is done and the state of those in
            training. A fit that was killed, and is called again with the same rows and parameters, goes on from there
            and, on the same CPU, ends with the same bits. The folder is yours to remove. None for none.
        warm_start: Whether a second `fit`, to the same rows, trains the networks of the first further; those that do no
            better on held-out rows stay as they are.

    Example:
        >>> import numpy as np, flowlab
        >>> x = np.random.default_rng(0).normal(size=(200, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
        >>> model = flowlab.FlowDensity(effort="fast", random_state=0).fit(x)
        >>> model.score_samples(x).shape, model.sample(5, random_state=1).shape
        ((200,), (5, 2))
    """

    _last: Any = None  # the column that mixed flows have last: the target of an estimator that predicts it

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
        privacy: dict[str, float] | None = None,
        random_state: int | None = None,
        progress: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        warm_start: bool = False,
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
        self.privacy = privacy
        self.random_state = random_state
        self.progress = progress
        self.checkpoint = checkpoint
        self.warm_start = warm_start

    def fit(
        self,
        X: ArrayLike,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        callback: Callback | None = None,
    ) -> "FlowDensity":
        """Fit to rows (n, columns): an array, or a table of pandas, polars or pyarrow.

        Args:
            X: The rows; at least two.
            y: Ignored.
            sample_weight: Non-negative weight of each row; rows of weight zero have no influence.
            callback: Called with a `TrainingState` after every evaluation of a network in training; its `stop()` ends
                all training, and the members are weighed as they are.

        Raises:
            ValueError: A column cannot be modelled; the message names it.
        """
        warm = self._fitted.warm if self.warm_start and self._fitted is not None else None
        fit_anew(self, X, sample_weight, self._last, callback, warm)
        return self

    def _fit(
        self, X: Any, sample_weight: ArrayLike | None, last: Any, callback: Callback | None, warm: fitted.Warm | None
    ) -> None:
        params = self.get_params(deep=False)
        parameters.check(params)
        files.check_device(self.device)
        parameters.to_json(params)  # raises now, not after the fit, for what cannot be saved
        table_format, X = format_of(X), read_rows(X)
        X, weight = weighted_rows(X, sample_weight)
        frame, array = training_frame(self, X)
        seed = seed_from(self.random_state)
        if self.privacy is not None:
            asked, rng, plain = {**params, "callback": callback}, np.random.default_rng(seed), table_format is None
            self._fitted = fit_private(frame, array, asked, rng, weight is not None, plain and last is None)
            return
        self._fitted = fit_table(frame, array, weight, params, seed, table_format, last, callback, warm)

    # Scores ----------------------------------------------------------------------------------------------------------

    def score_samples(
        self,
        X: ArrayLike,
        missing: Literal["outcome", "unknown"] = "outcome",
        measure: Literal["mass", "density"] = "mass",
    ) -> Array:
        """Log-likelihood of each row (n,), nats; -inf for rows that cannot occur.

        It is the log of a product with one factor per modelled column: the probability of a level (of a new one, too,
        with a warning), of a missing cell, of a value on a grid (integers, prices) or that repeats; the density of any
        other number, per unit of the column. The other columns of the table do not change the measure of a column.

        Args:
            X: The rows.
            missing: Whether a missing cell of a column that had some in training counts as an "outcome", or as
                "unknown": the row then has the likelihood of its other cells. In other columns a missing cell is always
                unknown.
            measure: "mass" is the above. "density" divides the probabilities of values on a grid, and of repeated
                ones, by the widths of their cells, to compare with scikit-learn's mixtures, which know densities only.
        """
        model = self._model  # raises for an unfitted model before reading rows
        return scoring.score(model, self._read(X), missing, measure)

    def _read(self, X: Any) -> Any:
        """Rows as a DataFrame or an array; of complete numbers, names are checked by scikit-learn's rules."""
        rows = read_rows(X)
        if isinstance(rows, pd.DataFrame) and self._model.table.complete and not self._model.table.rules:
            known = self._model.table.names
            _check_feature_names(self, rows[known] if set(known) <= set(rows.columns) else rows, reset=False)
        return rows

    def score(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Mean log-likelihood of the rows, nats, weighted where weights (n,) are given."""
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        return float(np.average(self.score_samples(X), weights=weights))

    def to_noise(self, X: ArrayLike, random_state: int | None = None) -> Array:
        """Standard normal noise (n, variables) that the model maps to the rows, if these come from the fitted density.

        Cells with a probability are spread at random, and the member that a row came from is drawn: another seed gives
        other noise. Rows that cannot occur (`score_samples` is -inf) have none: their noise is NaN.
        """
        model = self._model
        return scoring.to_noise(model, self._read(X), np.random.default_rng(seed_from(random_state)))

    def pit(self, X: ArrayLike, random_state: int | None = None) -> Array:
        """Probability integral transform (n, variables) of the rows: the normal distribution function of `to_noise`.

        It is uniform on [0, 1], and independent across variables, for rows that come from the fitted density.
        """
        return scoring.pit(self.to_noise(X, random_state))

    def anomaly_score(self, X: ArrayLike) -> Array:
        """How unusual each row is (n,): its negative log-likelihood, nats."""
        return -self.score_samples(X)

    def anomaly_p_value(self, X: ArrayLike) -> Array:
        """The share of rows from the training distribution that would be at least as unusual (n,).

        It is computed from held-out rows, as conformal p-values are (Bates et al. 2023, "Testing for outliers with
        conformal p-values"), without their guarantee: these rows also chose stopping times and weights, and in folds
        they were scored by other versions of the members. Of new rows, about a share α gets a p-value of α or less.

        Raises:
            ValueError: No rows were held out (`validation=0`, or very few rows).
        """
        return scoring.p_values(self._model, self.score_samples(X))

    # Rows ------------------------------------------------------------------------------------------------------------

    def sample(self, n_samples: int | None = None, random_state: int | None = None, *, given: Any = None) -> Any:
        """New rows: a table with the columns, types and library of the one fitted to; an array if that was one.

        Numbers lie within the range of the training rows (nearly so for very many columns of numbers and few rows).

        Args:
            n_samples: Number of rows, 1 when None; with a table of conditions, leave it None.
            random_state: An int makes the draw reproducible; None draws a seed.
            given: Conditions: a dict from columns to a value (None for a missing cell), a pair (low, high) with None
                for an open end, or a list, set, array or Series of values; or a table of some of the columns, for one
                new row per row of it.

        Returns:
            The rows. Under conditions, a pandas DataFrame has the share of accepted draws in `attrs["acceptance"]`, and
            the effective share of proposals in `attrs["effective_share"]`: 1 but for tables of complete numbers.

        Raises:
            ConditionError: A condition has (next to) no probability, or too few proposals are effective.
            ValueError: A condition names an unknown column, or a value that the column cannot have.
            RuntimeError: Nearly all draws leave the range of the columns' types, or break a rule.

        Example:
            >>> import flowlab
            >>> diamonds = flowlab.datasets.load("diamonds")[["carat", "cut", "price"]].iloc[:300]
            >>> model = flowlab.FlowDensity(effort="fast", random_state=0).fit(diamonds)
            >>> rows = model.sample(50, random_state=1, given={"cut": "Ideal", "carat": (0.5, 0.8)})
            >>> bool((rows["cut"] == "Ideal").all() and rows["carat"].between(0.5, 0.8).all())
            True
        """
        model = self._model
        generator = torch.Generator(model.device).manual_seed(seed_from(random_state))
        return like(model.format, sampling.sample(model, n_samples, given, generator, self.progress), fresh=True)

    def impute(self, X: Any, n: int = 1, random_state: int | None = None) -> Any:
        """Rows with their missing cells drawn given the observed cells of the row, which stay as they are.

        Args:
            X: Rows with all columns of the model.
            n: Number of tables to draw: several show how uncertain the cells are (multiple imputation).
            random_state: An int makes the draws reproducible.

        Returns:
            A table of X's library; for n above 1 a list of n tables. A column keeps its type where that can hold the
            draws: a category may get further levels, a column of missing cells only takes its type from training.

        Raises:
            ConditionError: The observed cells of a row cannot occur together, or break a rule.
            ValueError: A column of the model is missing.
        """
        model = self._model
        generator = torch.Generator(model.device).manual_seed(seed_from(random_state))
        done = imputation.impute(model, read_rows(X), n, generator)
        tables = [out.to_numpy() if model.table.array else like(format_of(X), out) for out in done]
        return tables[0] if n == 1 else tables

    def conditional(self, column: Any, given: Any, n: int = 500, random_state: int | None = None) -> Any:
        """The distribution of one column given other cells of a row.

        Args:
            column: The column.
            given: Rows with some of the other columns, as a table, or a dict for one row; missing cells are unknown,
                and cells of the column itself are not looked at.
            n, random_state: Draws per row, and their seed.

        Returns:
            One row per row of `given`, as a table of the library fitted to: the probability of each level, or mean,
            standard deviation and quantiles of a number or time.
        """
        model = self._model
        generator = torch.Generator(model.device).manual_seed(seed_from(random_state))
        table_format = None if model.format is None else model.format.untyped()
        return like(table_format, imputation.distribution(model, column, given, n, generator))

    # Information: the cost is that of drawing and scoring n_samples rows, which `progress` counts by a bar -----------

    def highest_density_threshold(
        self, level: float = 0.95, n_samples: int = 10_000, random_state: int | None = None
    ) -> float:
        """The log-likelihood that draws exceed with probability `level`: it bounds that region (Hyndman 1996)."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, not {level}")
        return float(np.quantile(self._scores_of_draws(self.score_samples, n_samples, random_state), 1 - level))

    def entropy(self, n_samples: int = 10_000, random_state: int | None = None) -> Estimate[float]:
        """Entropy of the modelled columns as they are drawn, without new levels, nats, with its standard error."""
        return questions.entropy(self._model, n_samples, seed_from(random_state), self.progress)

    def divergence(self, other: Any, n_samples: int = 10_000, random_state: int | None = None) -> Estimate[float]:
        """Kullback-Leibler divergence KL(this ‖ other), nats, with its standard error.

        Args:
            other: A fitted density of the same columns: anything with `score_samples`.
            n_samples, random_state: Draws from this density, and their seed.
        """

        def log_ratio(rows: Any) -> Array:
            return self.score_samples(rows) - np.asarray(other.score_samples(rows))

        return questions.mean_of(self._scores_of_draws(log_ratio, n_samples, random_state))

    def mutual_information(
        self, columns_a: Any, columns_b: Any, n_samples: int = 10_000, random_state: int | None = None
    ) -> Estimate[float]:
        """Mutual information between two groups of columns under the model, nats, with its simulation error.

        I(a; b) is the mean over draws of log p(a, b) - log p(a) - log p(b). Of all columns that is the model's
        density; of fewer, small densities are fitted to draws, whose misfit the standard error does not include
        (networks without trees have these densities, too). A missing cell is an outcome.

        Args:
            columns_a: A column or a list of columns: labels, or for arrays positions or "x0", "x1", ….
            columns_b: Others.
            n_samples: Draws; as many again are drawn to fit the small densities.
            random_state: Seed of draws and fits.

        Raises:
            ValueError: A column is not in the model, or the groups are empty or overlap.
        """
        model, count = self._model, questions.number_of_draws(n_samples)
        a, b = questions.two_groups(model, columns_a, columns_b)
        seed = seed_from(random_state)
        log_density = questions.known_log_density(model, a + b, count, seed, self.progress)
        return questions.information(model, a, b, log_density, count)

    def _scores_of_draws(self, score: Callable[[Any], Array], n_samples: int, random_state: int | None) -> Array:
        """A function's values (n_samples,) at draws from the model."""
        model, rng = self._model, np.random.default_rng(seed_from(random_state))
        with questions.blocks(model, n_samples, self.progress) as sizes:
            scores = [score(self.sample(size, int(rng.integers(2**62)))) for size in sizes]
        return np.concatenate(scores)

    def memorization(
        self, train: Any, held_out: Any, *, most: int = 2000, random_state: int | None = None
    ) -> Memorization:
        """Measure whether the fit memorised its rows: copies, nearest records, and how well scores know its rows.

        Scores are the log-likelihood, and its ratio to that of small networks fitted to half of `held_out`. The result
        prints as text, ending in a verdict.

        Args:
            train: The rows fitted to, at least 20.
            held_out: Other rows of the same source, at least 40.
            most: Rows of each kind that are looked at.
            random_state: An int makes synthetic rows, halves and reference reproducible.

        Raises:
            ValueError: Too few rows, or columns other than those fitted to.
        """
        model = self._model
        seen, new = (model.table.frame(read_rows(rows)) for rows in (train, held_out))
        return memorization(model, seen, new, most, seed_from(random_state))

    # Reports and files ------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """What was fitted, how well it fits held-out rows, and how each column is treated, as text."""
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
        """Write an HTML report, in one self-contained file, on how good the model and its synthetic rows are.

        It covers held-out log-likelihood against baselines, columns and pairs of columns, a classifier that tries to
        tell real from synthetic rows, models trained on synthetic rows, missing cells, privacy and calibration. Every
        number stands beside what real rows would reach.

        Args:
            train: The training rows; None if they are not at hand: copies of them then cannot be found.
            test: Rows that the model has not seen, at least twenty.
            path: Where to write, an .html file.
            target: Column that models trained on synthetic rows predict; chosen when None.
            title: What the page calls the table; the file's name when None.
            random_state: Seed of the synthetic rows.
            progress: Show a bar; None follows the model's own `progress`.

        Raises:
            TypeError, ValueError: An argument is not a table, lacks a column, or has too few rows.
        """
        # Imported here by name: the density does not depend on its report.
        write = importlib.import_module("flowlab.report.write").write_report
        plain = copy.copy(self)
        plain._fitted = replace(self._model, format=None)  # the report knows pandas only
        bar = self.progress if progress is None else progress
        written: Path = write(plain, train, test, path, target=target, title=title, seed=random_state, progress=bar)
        return written

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to one file for `flowlab.load`; a `random_state` is kept only if it is an int."""
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
        """The parameters, as for any scikit-learn estimator; once fitted, a line on the fit."""
        text = str(BaseEstimator.__repr__(self, N_CHAR_MAX))
        return text if self._fitted is None else f"{text}\n{headline(self._fitted, self.n_features_in_)}"

    def _to_file(self) -> tuple[dict[str, Any], FlowMixture | None]:
        names = {"n_features_in_": self.n_features_in_, "feature_names_in_": stored.names_of(self)}
        state = {**names, **fitted.to_json(self._model)}
        header = {"parameters": parameters.to_json(self.get_params(deep=False)), "state": state}
        return {"kind": "FlowDensity", **header}, self._model.mixture

    @classmethod
    def _from_file(cls, header: dict[str, Any], flow: FlowMixture | None) -> "FlowDensity":
        state = header["state"]
        params = parameters.from_json(header["parameters"])
        check_arguments("FlowDensity", params, {**hints_of(cls.__init__), "time_limit": Real | None})
        model = cls(**params)
        parameters.check(params)
        stored.read_names(model, state["n_features_in_"], state["feature_names_in_"])
        model._fitted = fitted.from_json(state, flow)
        if flow is not None:
            model.device = str(model._fitted.device)
        return model
