"""`FlowClassifier` and `FlowRegressor`: one column of a table by the conditionals of a joint `FlowDensity`."""

import os
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, column_or_1d, validate_data

from flowlab import files
from flowlab.hints import fits
from flowlab.mixture import FlowMixture
from flowlab.runtime import threads_for
from flowlab.tables.density import FlowDensity
from flowlab.tables.frames.arrow import to_pandas
from flowlab.tables.frames.validation import fit_anew
from flowlab.tables.query.conditional import class_probabilities, joint_log_prob
from flowlab.tables.query.predictive import Predictive, predict
from flowlab.tables.schema import stored

Array = NDArray[np.float64]
KINDS: dict[str, Any] = {
    "b": bool,
    "i": np.int64,
    "u": np.uint64,
    "f": np.float64,
    "U": str,
    "O": object,
}  # of classes, in files
TARGET = "target"
BLOCK = 1024  # rows predicted at once


class _Supervised(BaseEstimator):
    """The base of both estimators: a density of the table with the target as its last column.

    Attributes:
        density_: The fitted `FlowDensity` of features and target.
        n_features_in_, feature_names_in_: As everywhere in scikit-learn.
    """

    density_: FlowDensity

    def __init__(self, density: FlowDensity | None = None) -> None:
        self.density = density

    def _frame(self, X: ArrayLike, reset: bool) -> pd.DataFrame:
        """The features as a DataFrame with names that are strings, after scikit-learn's checks of names and widths."""
        X = to_pandas(X)
        if not isinstance(X, pd.DataFrame):
            rules: dict[str, Any] = {"dtype": np.float64, "ensure_all_finite": "allow-nan"}
            x = validate_data(self, X, reset=reset, ensure_min_samples=2 if reset else 1, **rules)
            return pd.DataFrame(x, columns=[f"x{j}" for j in range(x.shape[1])])
        validate_data(self, X, reset=reset, skip_check_array=True)
        frame = X.reset_index(drop=True).set_axis([str(name) for name in X.columns], axis=1)
        if not frame.columns.is_unique:
            twice = frame.columns[frame.columns.duplicated()].unique().tolist()
            raise ValueError(f"several columns have the same name {twice}: rename or drop them")
        return frame

    def _fit_density(self, frame: pd.DataFrame, target: Any, kind: str, sample_weight: ArrayLike | None) -> None:
        if TARGET in frame.columns:
            raise ValueError(f"X has a column {TARGET!r}, the name that the target has in the model: rename it")
        if len(frame) != len(target):
            raise ValueError(f"X has {len(frame)} rows and y has {len(target)}: they must be as many")
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, frame, dtype=np.float64)
            if pd.Series(target)[weight > 0].nunique() == 1:
                what = "class" if kind == "categorical" else "value"
                raise ValueError(f"y has one {what} only in the rows with a positive weight: at least two are needed")
        density: FlowDensity = FlowDensity() if self.density is None else clone(self.density)
        if density.privacy is not None:
            raise ValueError(
                "density.privacy must be None here: the classes, or the target's range, come from the rows"
            )
        if density.rules:
            raise ValueError("density.rules must be left out here: a row that breaks a rule would have no prediction")
        if density.schema is not None and not isinstance(density.schema, dict):
            raise ValueError("density.schema must be a dict here, of the features' columns: the target's kind is added")
        closed = {"unseen": 0.0} if kind == "categorical" else {}
        density.set_params(schema={**(density.schema or {}), TARGET: {"kind": kind, **closed}})
        density._last = TARGET  # trees know a column given all those before it
        self.density_ = density.fit(frame.assign(**{TARGET: target}), sample_weight=sample_weight)

    def _encoded(self, X: ArrayLike, y: Any = np.nan) -> tuple[pd.DataFrame, Array]:
        """Rows with their targets, and their matrix; warns of levels that training did not have."""
        check_is_fitted(self)
        frame, table = self._frame(X, reset=False), self.density_.table_
        frame = frame.assign(**{TARGET: pd.Series(y, index=frame.index)})
        matrix, _ = table.encode_all(frame)
        fate = "count as unknown"
        table.warn_of_new_levels(frame, matrix, fate, fate, stacklevel=5)
        return frame, matrix

    def _question(self, X: ArrayLike, y: Any = np.nan) -> tuple[torch.Tensor, torch.Tensor, int]:
        """The matrix (n, variables) of rows, a mask of its known cells except the target, and the target's variable.

        Levels that training did not have count as unknown, like missing cells of columns that had none.
        """
        _, matrix = self._encoded(X, y)
        table, device = self.density_.table_, self.density_.device
        complete = np.array([not variable.nullable for variable in table.variables])
        known = torch.from_numpy(~table.new_levels(matrix) & ~(np.isnan(matrix) & complete))
        variable = table.place(TARGET).start
        known[:, variable] = False
        return torch.from_numpy(matrix).to(device), known.to(device), variable

    def _log_prob(self, x: torch.Tensor, known: torch.Tensor) -> Array:
        """Log-likelihood of the known cells of rows, nats (n,)."""
        with torch.no_grad(), threads_for(min(len(x), BLOCK) * x.shape[1]):
            parts = [
                joint_log_prob(self.density_._model.density(), rows, which).logsumexp(0)
                for rows, which in zip(x.split(BLOCK), known.split(BLOCK), strict=True)
            ]
        return torch.cat(parts).cpu().numpy()

    def score_samples(self, X: ArrayLike) -> Array:
        """Log-likelihood of the features alone, nats (n,): -inf for rows that cannot occur.

        Where it is low, the row is unlike the training rows, and a prediction is a guess.
        """
        frame, matrix = self._encoded(X)
        table, device = self.density_.table_, self.density_.device
        known = torch.from_numpy(~table.new_levels(matrix) | table.open_levels)
        known[:, table.place(TARGET)] = False
        log_prob = self._log_prob(torch.from_numpy(matrix).to(device), known.to(device))
        return log_prob + table.codec.log_seen(frame, matrix)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to one file for `flowlab.load`; `density` is then an unfitted copy of `density_`."""
        check_is_fitted(self)
        files.save(self, path)

    def _to_file(self) -> tuple[dict[str, Any], FlowMixture | None]:
        check_is_fitted(self)
        header, flow = self.density_._to_file()
        extra = {"n_features_in_": self.n_features_in_, "feature_names_in_": stored.names_of(self)}
        return {**header, "kind": type(self).__name__, "estimator": extra}, flow

    @classmethod
    def _from_file(cls, header: dict[str, Any], flow: FlowMixture | None) -> Any:
        density = FlowDensity._from_file(header, flow)
        if TARGET not in density.table_.codec._places:
            raise ValueError("the table has no target")
        extra = header["estimator"]
        unfitted = clone(density)
        model = cls(
            unfitted.set_params(schema={k: v for k, v in (unfitted.schema or {}).items() if k != TARGET} or None)
        )
        model.density_ = density
        stored.read_names(model, extra["n_features_in_"], extra["feature_names_in_"])
        return model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _native(y: Any) -> Any:
    """Targets without missing cells in numpy's types, where pandas' nullable integers or booleans hold them.

    scikit-learn would convert those, and categories of them, to floats.
    """
    if isinstance(y, pd.Series) and pd.api.types.is_extension_array_dtype(y.dtype) and not y.isna().any():
        values = y.cat.categories.dtype if isinstance(y.dtype, pd.CategoricalDtype) else y.dtype
        kind = {"b": np.bool_, "i": np.int64, "u": np.uint64}.get(values.kind)
        return y if kind is None else y.to_numpy(dtype=kind)
    return y


class FlowClassifier(ClassifierMixin, _Supervised):
    """A classifier by the posterior of a joint density: p(class | row) = p(row, class) / p(row).

    The class is the last column of a `FlowDensity` of mixed flows. Features may be numbers, categories and times, and
    may have missing cells, in training and in prediction: a missing feature is integrated out, or is an outcome of its
    own in columns that had missing cells. `score_samples` is low for rows unlike the training rows.

    Args:
        density: The `FlowDensity` to fit, with its effort, schema, seed, but no rules; its defaults when None.

    Attributes:
        classes_: The classes, sorted.
        density_: The fitted density of features and class (column "target").

    Example:
        >>> import flowlab
        >>> from flowlab import FlowClassifier, FlowDensity
        >>> wine = flowlab.datasets.load("wine").iloc[:150]
        >>> good = wine.pop("quality") > 5
        >>> model = FlowClassifier(FlowDensity(effort="fast", random_state=0)).fit(wine[["alcohol", "sulphates"]], good)
        >>> model.predict_proba(wine[["alcohol", "sulphates"]]).shape
        (150, 2)
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "FlowClassifier":
        """Fit to rows and their classes.

        Raises:
            ValueError: X and y do not fit, or there is one class only.
        """
        fit_anew(self, X, y, sample_weight)
        return self

    def _fit(self, X: ArrayLike, y: Any, sample_weight: ArrayLike | None) -> None:
        frame, y = self._frame(X, reset=True), _native(y)
        check_classification_targets(y)
        encoder = LabelEncoder().fit(column_or_1d(y, warn=True))
        self.classes_ = encoder.classes_
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class only, {self.classes_[0]!r}: a classifier needs at least two")
        levels = [f"class {k}" for k in range(len(self.classes_))]
        target = pd.Categorical.from_codes(encoder.transform(column_or_1d(y)), categories=levels)
        self._fit_density(frame, target, "categorical", sample_weight)

    def _to_file(self) -> tuple[dict[str, Any], FlowMixture | None]:
        header, flow = super()._to_file()
        header["estimator"]["classes"] = [self.classes_.dtype.kind, self.classes_.tolist()]
        return header, flow

    @classmethod
    def _from_file(cls, header: dict[str, Any], flow: FlowMixture | None) -> "FlowClassifier":
        model: FlowClassifier = super()._from_file(header, flow)
        kind, classes = header["estimator"]["classes"]
        if not fits(classes, list[stored.LABEL]) or kind not in KINDS:
            raise ValueError("the classes are none")
        model.classes_ = np.array(classes, dtype=KINDS[kind])
        table = model.density_.table_
        known = {f"class {k}" for k in range(len(classes))}
        if not known >= set(table.codec.schema[TARGET].categories):
            raise ValueError("the classes are not those of the target")
        return model

    def predict_proba(self, X: ArrayLike) -> Array:
        """The probability of each class (n, classes), in the order of `classes_`."""
        x, known, variable = self._question(X)
        table = self.density_.table_
        with threads_for(min(len(x), BLOCK) * x.shape[1]):
            parts = [
                class_probabilities(self.density_._model.density(), rows, which, variable, strict=False)
                for rows, which in zip(x.split(BLOCK), known.split(BLOCK), strict=True)
            ]
        probability = torch.cat(parts).cpu().numpy()
        order = [int(str(level).split()[1]) for level in table.codec.schema[TARGET].categories]
        out = np.zeros((len(probability), len(self.classes_)))
        out[:, order] = probability[:, : len(order)]
        return out

    def predict_log_proba(self, X: ArrayLike) -> Array:
        """The logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.predict_proba(X)))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likeliest class of each row (n,)."""
        probability = self.predict_proba(X)
        return np.asarray(self.classes_[probability.argmax(1)])


class FlowRegressor(RegressorMixin, _Supervised):
    """A regressor that predicts a distribution, the conditional of a joint density: mean, quantiles, intervals.

    The target is the last column of a `FlowDensity` of mixed flows. Features may be of any kind and have missing cells.
    The target's distribution may be skewed, multimodal and heteroscedastic; integers and repeated values have
    probabilities.

    Args:
        density: The `FlowDensity` to fit, with its effort, schema, seed, but no rules; its defaults when None.

    Attributes:
        density_: The fitted density of features and target (column "target").

    Example:
        >>> import flowlab
        >>> from flowlab import FlowDensity, FlowRegressor
        >>> diamonds = flowlab.datasets.load("diamonds").iloc[:200]
        >>> features = diamonds[["carat", "cut"]]
        >>> model = FlowRegressor(FlowDensity(effort="fast", random_state=0)).fit(features, diamonds["price"])
        >>> model.predict_interval(features, 0.9).shape
        (200, 2)
    """

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> "FlowRegressor":
        """Fit to rows and their targets, finite numbers.

        Raises:
            ValueError: X and y do not fit, or y holds what is no finite number.
        """
        fit_anew(self, X, y, sample_weight)
        return self

    def _fit(self, X: ArrayLike, y: Any, sample_weight: ArrayLike | None) -> None:
        frame = self._frame(X, reset=True)
        y = _native(y)
        target = check_array(column_or_1d(y, warn=True), ensure_2d=False, dtype=None, input_name="y", estimator=self)
        kind = "integer" if target.dtype.kind in "iu" else "continuous"
        target = target if kind == "integer" else target.astype(float)
        if target.min() == target.max():
            raise ValueError("y has the same value in every row: there is nothing to predict")
        self._fit_density(frame, target, kind, sample_weight)

    def predictive(self, X: ArrayLike) -> Predictive:
        """The distribution of the target given each row, as distribution functions on a grid."""
        x, known, variable = self._question(X)
        return predict(self.density_._model.density(), x, known, variable)

    def predict(self, X: ArrayLike) -> Array:
        """The mean of the target given each row (n,)."""
        return self.predictive(X).mean()

    def predict_quantiles(self, X: ArrayLike, levels: ArrayLike = (0.05, 0.5, 0.95)) -> Array:
        """Quantiles of the target given each row (n, levels).

        Raises:
            ValueError: A level is not between 0 and 1.
        """
        wanted = np.atleast_1d(np.asarray(levels, dtype=float))
        if not ((wanted > 0) & (wanted < 1)).all():
            raise ValueError(f"levels must lie between 0 and 1, not {wanted.tolist()}")
        return self.predictive(X).quantiles(wanted)

    def predict_interval(self, X: ArrayLike, coverage: float = 0.9) -> Array:
        """Lower and upper end (n, 2) of the central interval with that probability.

        Raises:
            ValueError: coverage is not between 0 and 1.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must lie between 0 and 1, not {coverage}")
        rest = (1 - coverage) / 2
        return self.predict_quantiles(X, (rest, 1 - rest))

    def crps(self, X: ArrayLike, y: ArrayLike) -> Array:
        """Continuous ranked probability score of each row (n,), in the target's units: lower is better."""
        distribution, observed = self.predictive(X), column_or_1d(y)
        if len(observed) != len(distribution.at):
            raise ValueError(f"X has {len(distribution.at)} rows and y has {len(observed)}: they must be as many")
        return distribution.crps(observed)

    def log_prob(self, X: ArrayLike, y: ArrayLike) -> Array:
        """log p(y | row) of each row (n,), nats: a log-probability where values repeat, else a log-density per unit."""
        x, known, variable = self._question(X, column_or_1d(y))
        both = known.clone()
        both[:, variable] = True
        return self._log_prob(x, both) - self._log_prob(x, known)
