"""`FlowDensity`: the scikit-learn estimator."""

import copy
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import DensityMixin
from sklearn.utils.validation import _check_feature_names, _check_sample_weight, check_array, check_is_fitted

from flowlab import files
from flowlab.flow import CHUNK
from flowlab.hints import check_arguments, hints_of
from flowlab.mixture import FlowMixture
from flowlab.runtime import threads, threads_for
from flowlab.tables import parameters
from flowlab.tables.codec.columns import Unit
from flowlab.tables.codec.table import WholeTable, is_whole
from flowlab.tables.ensemble.ensemble import Report, check_flow, fit_ensemble
from flowlab.tables.ensemble.member import Member, fold_count, recipe
from flowlab.tables.frames import cells
from flowlab.tables.frames.arrow import Kind, kind_of
from flowlab.tables.frames.validation import TableEstimator, fit_anew, read_rows, seed_from
from flowlab.tables.query.conditions import member_log_prob
from flowlab.tables.query.questions import DensityQuestions, goodness_of_fit
from flowlab.tables.query.sampling import Synthesis, measure_support
from flowlab.tables.schema import Schema, stored
from flowlab.tables.schema.relations import Columns
from flowlab.tables.schema.rules import read_rules

MEASURES = {
    False: "probabilities of levels and of values that repeat, densities of other numbers",
    True: "densities in all columns",
}
LEAST_HELD_OUT = 8  # rows from which some are held out


class FlowDensity(DensityQuestions, Synthesis, DensityMixin, TableEstimator):
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

    table_: WholeTable | None
    columns_: Any  # a `Columns` where the columns are complete numbers
    schema_: Schema
    flow_: FlowMixture | None
    n_rows_: int | None
    _kind: Kind | None  # the sort of table that it was fitted to, unless pandas' or an array
    _log_mass: float  # log of the probability that the flow gives to the columns' supports
    _reach: float  # how far beyond the training rows' range samples of numbers may lie, in widths of it

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
        self.table_ = self.columns_ = None
        self._kind, X = kind_of(X), read_rows(X)
        weight = None
        if sample_weight is not None:  # a row of weight zero is as good as none: nothing is learnt from it
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            used = np.flatnonzero(weight)
            if len(used) < 2:
                raise ValueError(f"sample_weight leaves {len(used)} rows with a positive weight, at least 2 are needed")
            weight, X = weight[used], X.iloc[used] if isinstance(X, pd.DataFrame) else np.asarray(X)[used]
        x, units, names = self._learn(X, rng)
        weight = np.ones(len(x)) if weight is None else weight[self._rows_kept]
        if len(x) < LEAST_HELD_OUT and self.validation:
            warnings.warn(
                f"only {len(x)} rows: none is held out, and how well the model fits is not known", stacklevel=3
            )
        rows, self.n_rows_ = torch.from_numpy(x), len(x)
        self.flow_, self.reports_, self.race_ = None, [], {}
        held_out, held_weight, noise = torch.zeros(0), torch.ones(0), torch.zeros(0, 1)
        self._log_mass, self._reach = 0.0, 0.0
        if rows.shape[1]:
            with threads(1):  # members run side by side; what is left are many small operations
                fitted = fit_ensemble(
                    rows,
                    torch.from_numpy(weight),
                    self._chosen(*rows.shape),
                    rng,
                    validation=self.validation,
                    folds=fold_count(self.effort, len(rows), rows.shape[1], units is not None),
                    time_limit=self.time_limit,
                    n_jobs=self.n_jobs,
                    device=self.device,
                    progress=self.progress,
                    units=units,
                )
                if self.columns_ is not None:
                    self._log_mass, self._reach = measure_support(fitted.flow, self.columns_, int(rng.integers(2**62)))
            self.flow_, self.reports_, self.race_ = fitted.flow.to(self.device), fitted.reports, fitted.race
            held_out, held_weight, noise = fitted.held_out - self._log_mass, fitted.held_weight, fitted.noise
        self._held_out = held_out.sort().values.numpy()
        self.validation_score_ = float((held_out * held_weight).sum() / held_weight.sum()) if len(held_out) else np.nan
        self.calibration_ = goodness_of_fit(noise.numpy(), names)

    def _learn(
        self, X: ArrayLike, rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], list[Unit] | None, list[str]]:
        """Looks at the columns of a table: its matrix (n, variables), what they are (None for complete numbers), their names."""
        mixed = any((m if isinstance(m, str) else m.kind) == "mixed" for m in self.members or ())
        if not (mixed or self.schema is not None or read_rules(self.rules) or is_whole(X)):
            return self._learn_numbers(X, rng)
        if isinstance(X, pd.DataFrame):
            frame = X
            cells.check_frame(frame)
            _check_feature_names(self, frame, reset=True)
        else:
            x = check_array(X, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=2)
            frame = pd.DataFrame(x, columns=[f"x{j}" for j in range(x.shape[1])])
        self.n_features_in_ = frame.shape[1]
        self.table_, self._rows_kept = WholeTable.learn(frame, self.schema, self.rules, frame is not X)
        self.schema_ = self.table_.codec.schema
        names = [unit.name for unit in self.table_.units]
        return self.table_.encode(frame[self._rows_kept]), self.table_.units, names

    def _learn_numbers(self, X: ArrayLike, rng: np.random.Generator) -> tuple[NDArray[np.float64], None, list[str]]:
        x = self._validated(X, reset=True)
        self.columns_ = Columns.learn(x, self._names(), self._precision)
        self.schema_ = Schema.infer(pd.DataFrame(x, columns=self._names()) if self._index_names is None else X)
        for column, own in zip(self.columns_.columns, self.schema_, strict=True):
            if own.kind == "id":
                warnings.warn(
                    f"column {own.name!r} holds {own.reason}: it is modelled as any other; if it says nothing, drop it",
                    stacklevel=5,
                )
            if column.kind != "constant":
                column.lower, column.upper = (None if end is None else float(end) for end in (own.lower, own.upper))
        self._rows_kept = np.ones(len(x), dtype=bool)
        return self.columns_.encode(x, rng), None, [c.name for c in self.columns_.columns if c.modelled]

    def _encoded(
        self, X: ArrayLike, rng: np.random.Generator | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The matrix of rows, and which of them can occur."""
        X = read_rows(X)
        if self.table_ is not None:
            return self.table_.encode_all(self.table_.frame(X))
        x = self._validated(X, reset=False)
        return self.columns_.encode(x, rng), self.columns_.possible(x)

    def score_samples(self, X: ArrayLike, missing: str = "outcome") -> NDArray[np.float64]:
        """Log-density of each row in nats, in the units of the data; -inf for rows that cannot occur.

        Of whole tables it is, with respect to the product of the columns' own measures, the log of the probability of levels, of missing cells, of values on a
        grid and of values that repeat, and of the density of other numbers, per unit of the column.

        Args:
            X: The rows.
            missing: Whether a missing cell of a column that had some in training counts as an "outcome", or as "unknown": the row then
                has the density of its other cells. In other columns a missing cell is always unknown.
        """
        check_is_fitted(self)
        if missing not in ("outcome", "unknown"):
            raise ValueError(f'missing must be "outcome" or "unknown", not {missing!r}')
        X = read_rows(X)
        x, possible = self._encoded(X)
        if self.table_ is not None and isinstance(X, pd.DataFrame):
            self.table_.warn_of_new_levels(X, x)
        out = np.zeros(len(x))
        if self.flow_ is not None:
            rows = torch.from_numpy(x).to(self.device)
            with torch.no_grad(), threads_for(rows.numel()):
                out = np.concatenate([self._log_prob(chunk, missing).cpu().numpy() for chunk in rows.split(CHUNK)])
        return np.where(possible, out - self._log_mass, -np.inf)

    def _log_prob(self, rows: torch.Tensor, missing: str) -> torch.Tensor:
        assert self.flow_ is not None
        if self.table_ is None or missing == "outcome":
            return self.flow_.log_prob(rows)
        return member_log_prob(self.flow_, rows, ~torch.isnan(rows)).logsumexp(0)

    def score(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Mean log-density of the rows, nats, weighted where weights (n,) are given."""
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        return float(np.average(self.score_samples(X), weights=weights))

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
        check_is_fitted(self)
        count = 0 if self.flow_ is None else sum(p.numel() for p in self.flow_.parameters())
        modelled = len(self.table_.units if self.table_ is not None else self.columns_.modelled)
        lines = [
            f"FlowDensity of {self.n_features_in_} columns, {modelled} variables modelled, {count:,} parameters",
            f"held-out log-likelihood: {self.validation_score_:.3f} nats per row, {MEASURES[self.table_ is None]}",
        ]
        if self.race_:
            lines += [
                "preprocessing, held out after a short race: "
                + ", ".join(f"{k} {v:.3f}" for k, v in self.race_.items())
            ]
        if self.reports_:
            lines += ["members, each with its own held-out log-likelihood and its weight:"]
        for report in self.reports_:
            text = f"  {report.score:10.3f}  {report.weight:6.1%}  {report.member}"
            lines += [text + ("" if report.converged else f"; not converged: {report.reason}")]
        if len(self.calibration_):
            lines += ["fit to held-out rows (a p-value below 0.01 means that the test sees a difference):"]
            lines += [
                f"  {name}: {row.statistic:.3f}, p = {row.p_value:.3f}" for name, row in self.calibration_.iterrows()
            ]
        if self.table_ is not None:
            lines += ["rules:", *(f"  {rule}" for rule in self.table_.rules)] if self.table_.rules else []
            lines += ["columns:", *("  " + line for line in repr(self.schema_).splitlines())]
        else:
            lines += ["columns:"] + [f"  {c.name}: {c.kind} ({c.reason})" for c in self.columns_.columns]
        return "\n".join(lines)

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
        from flowlab.report.write import write_report

        check_is_fitted(self)
        plain = copy.copy(self)
        plain._kind = None  # the report knows pandas alone
        shown = self.progress if progress is None else progress
        return write_report(plain, train, test, path, target=target, title=title, seed=random_state, progress=shown)

    def _names(self, frame: pd.DataFrame | None = None) -> list[str]:
        return super()._names(frame) if self.table_ is None else [str(name) for name in self.table_.names]

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

    def _chosen(self, rows: int, features: int) -> list[Member]:
        members = (
            recipe(self.effort, rows, features, self.table_ is not None) if self.members is None else list(self.members)
        )
        members = [Member(member) if isinstance(member, str) else member for member in members]
        if not members:
            raise ValueError("members is empty: name at least one, or leave it None")
        kinds = {member.kind == "mixed" for member in members}
        if len(kinds) > 1 or (self.table_ is not None and kinds == {False}):
            odd = [
                c.name
                for c in self.schema_
                if c.missing or c.kind not in ("continuous", "integer", "derived", "constant")
            ]
            raise ValueError(
                f'members {", ".join(sorted({m.kind for m in members}))} do not go together with whole tables, which "mixed" members alone '
                f"model: columns {odd or [c.name for c in self.schema_]} hold what is no number, or a missing cell, or have a schema or rules"
            )
        if self.preprocessing != "auto":
            members = [
                replace(m, preprocessing=self.preprocessing) if m.preprocessing == "auto" else m for m in members
            ]
        return members

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "calibration_")

    def _to_file(self) -> tuple[dict[str, Any], FlowMixture | None]:
        state = {
            "n_features_in_": self.n_features_in_,
            "feature_names_in_": self.feature_names_in_.tolist() if hasattr(self, "feature_names_in_") else None,
            "kind": None if self._kind is None else self._kind.to_json(),
            "table": None if self.table_ is None else self.table_.to_json(),
            "numbers": None
            if self.columns_ is None
            else {
                "dtypes": self._dtypes,
                "index_names": self._index_names,
                "precision": self._precision,
                "columns": self.columns_.to_json(),
                "log_mass": self._log_mass,
                "reach": self._reach,
                "schema": self.schema_.to_json(),
            },
            "rows": self.n_rows_,
            "race": self.race_,
            "reports": [{**asdict(r), "member": r.member.to_json()} for r in self.reports_],
            "calibration": self.calibration_.reset_index().to_dict("list"),
            "held_out": self._held_out.tolist(),
            "validation_score": self.validation_score_,
        }
        header = {"parameters": parameters.to_json(self.get_params(deep=False)), "state": parameters.finite(state)}
        return {"kind": "FlowDensity", **header}, self.flow_

    @classmethod
    def _from_file(cls, header: dict[str, Any], flow: FlowMixture | None) -> "FlowDensity":
        state = header["state"]
        params = parameters.from_json(header["parameters"]) if "parameters" in header else parameters.early(header)
        check_arguments("FlowDensity", params, {**hints_of(cls.__init__), "time_limit": Real | None})
        model = cls(**params)
        parameters.check(params)
        stored.read_names(model, state["n_features_in_"], state["feature_names_in_"])
        model.n_rows_ = state.get("rows")
        model.table_ = model.columns_ = None
        model._log_mass = model._reach = 0.0
        model._kind = Kind.from_json(state["kind"]) if state.get("kind") is not None else None
        if state["table"] is not None:
            model.table_ = WholeTable.from_json(state["table"])
            model.schema_ = model.table_.codec.schema
            width = len(model.table_.units)
        else:
            own = state["numbers"]
            model.columns_, model.schema_ = stored.columns_from(own["columns"]), Schema.from_json(own["schema"])
            stored.check_numbers(own, model.n_features_in_)
            model._dtypes, model._index_names, model._precision = own["dtypes"], own["index_names"], own["precision"]
            model._log_mass, model._reach = own.get("log_mass", 0.0), own.get("reach", 0.0)
            width = len(model.columns_.modelled)
            if len(model.columns_.columns) != model.n_features_in_:
                raise files.FileError("the columns are not as many as in training")
        if not isinstance(flow, FlowMixture | None) or width != (0 if flow is None else flow.features):
            raise files.FileError("the columns do not fit the flow")
        if flow is not None:
            check_flow(None if model.table_ is None else model.table_.units, flow)
            model.device = str(next(iter(flow.buffers())).device)
        model.flow_ = flow
        known = {"rows": int | None, "race": dict[str, float | None], "validation_score": float | None}
        check_arguments("FlowDensity", state, known)
        check_arguments(
            "FlowDensity",
            {"log_mass": model._log_mass, "reach": model._reach},
            dict.fromkeys(("log_mass", "reach"), float),
        )
        model.race_ = stored.with_nan(state["race"], state["race"])
        model.reports_ = [Report.from_json(report) for report in state["reports"]]
        model._held_out = stored.held_out_from(state["held_out"])
        model.calibration_ = stored.calibration_from(state["calibration"])
        model.validation_score_ = stored.with_nan(state, ["validation_score"])["validation_score"]
        return model
