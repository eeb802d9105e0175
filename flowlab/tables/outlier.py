"""`FlowOutlier`: an outlier detector with scikit-learn's interface and a calibrated p-value for each row."""

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted

from flowlab import files
from flowlab.hints import check_arguments
from flowlab.mixture import FlowMixture
from flowlab.tables.density import FlowDensity
from flowlab.tables.frames.validation import fit_anew
from flowlab.tables.schema import stored

Array = NDArray[np.float64]


class FlowOutlier(OutlierMixin, BaseEstimator):
    """An outlier detector by exact log-likelihoods, with the methods of scikit-learn's IsolationForest.

    Args:
        density: The `FlowDensity` to fit, with its effort, schema, seed; its defaults when None.
        contamination: The share of ordinary rows to be flagged; it sets the threshold, on held-out rows.

    Attributes:
        density_: The fitted density.
        offset_: The log-likelihood below which a row is an outlier, nats.

    Example:
        >>> import numpy as np
        >>> from flowlab import FlowDensity, FlowOutlier
        >>> x = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = FlowOutlier(FlowDensity(effort="fast", random_state=0), contamination=0.02).fit(x)
        >>> model.predict([[0.0, 0.0], [7.0, -7.0]]).tolist()
        [1, -1]
    """

    density_: FlowDensity

    def __init__(self, density: FlowDensity | None = None, contamination: float = 0.05) -> None:
        self.density = density
        self.contamination = contamination

    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> "FlowOutlier":
        """Fit to rows that are mostly ordinary; y is ignored.

        Raises:
            ValueError: contamination is not between 0 and 0.5, or no rows are held out.
        """
        fit_anew(self, X, sample_weight)
        return self

    def _fit(self, X: ArrayLike, sample_weight: ArrayLike | None) -> None:
        if not 0 < self.contamination <= 0.5:
            raise ValueError(f"contamination must be above 0 and at most 0.5, not {self.contamination}")
        density: FlowDensity = FlowDensity() if self.density is None else clone(self.density)
        if density.privacy is not None:
            raise ValueError(
                "density.privacy must be None here: the threshold is a score of held-out rows, not private"
            )
        self.density_ = density.fit(X, sample_weight=sample_weight)
        held_out = self.density_._model.held_out
        if not len(held_out):
            raise ValueError("no rows are held out to set the threshold by: density needs validation above 0, and rows")
        self.offset_ = float(np.quantile(held_out, self.contamination))
        stored.read_names(self, self.density_.n_features_in_, stored.names_of(self.density_))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted model to one file for `flowlab.load`; `density` is then an unfitted copy of `density_`."""
        check_is_fitted(self)
        files.save(self, path)

    def _to_file(self) -> tuple[dict[str, Any], FlowMixture | None]:
        check_is_fitted(self)
        header, flow = self.density_._to_file()
        extra = {"contamination": self.contamination, "offset": self.offset_}
        return {**header, "kind": "FlowOutlier", "estimator": extra}, flow

    @classmethod
    def _from_file(cls, header: dict[str, Any], flow: FlowMixture | None) -> "FlowOutlier":
        density, extra = FlowDensity._from_file(header, flow), header["estimator"]
        check_arguments(
            "FlowOutlier", {name: extra[name] for name in ("contamination", "offset")}, dict.fromkeys(extra, float)
        )
        model = cls(clone(density), extra["contamination"])
        model.density_, model.offset_ = density, float(extra["offset"])
        stored.read_names(model, density.n_features_in_, stored.names_of(density))
        return model

    def score_samples(self, X: ArrayLike) -> Array:
        """Log-likelihood of each row, nats (n,): the lower, the more abnormal."""
        check_is_fitted(self)
        return self.density_.score_samples(X)

    def decision_function(self, X: ArrayLike) -> Array:
        """`score_samples` less the threshold `offset_`: negative for outliers (n,)."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """-1 for outliers, 1 for the others (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_value(self, X: ArrayLike) -> Array:
        """The share (n,) of ordinary rows that would be at least as unusual; see `FlowDensity.anomaly_p_value`."""
        check_is_fitted(self)
        return self.density_.anomaly_p_value(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
