"""`FlowDensity`: the scikit-learn estimator."""

import copy
import os
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils.validation import (
    _check_feature_names,
    _check_n_features,
    _check_sample_weight,
    check_array,
    check_is_fitted,
    validate_data,
)
from torch import Tensor

from flowlab import files
from flowlab.bases import Gaussian
from flowlab.flow import CHUNK, Flow
from flowlab.layers import Autoregressive, Layer, Marginal, MixtureCDF, Whitening
from flowlab.runtime import threads
from flowlab.tables.encode import Columns
from flowlab.training import History, fit, representative

# Layers on the data side, in sampling order.
PREPROCESSING: dict[str, tuple[type[Layer], ...]] = {
    "none": (),
    "marginal": (Marginal,),
    "marginal-whitening": (Whitening, Marginal),
    "whitening-marginal": (Marginal, Whitening),
}
RACE = ("marginal", "marginal-whitening", "whitening-marginal")
RACE_STEPS = 100


class FlowDensity(DensityMixin, BaseEstimator):
    """The density of a numeric table, as a scikit-learn estimator: fit it, score rows, draw new ones. Nothing needs tuning.

    The model is an autoregressive flow of Gaussian-mixture maps behind preprocessing that is fitted to the training rows
    and part of the density. Every log-likelihood is in nats per row, in the units of the data.

    Columns are treated by what their values are (`columns_`, `summary()`):
    values that repeat on a decimal grid (integers, prices) are dequantised uniformly over a cell in training, scored by the density
    at the value (add log(`resolution`) for the probability of the cell), and drawn on the grid; repeated values off
    any grid become atoms with a narrow cell of their own; constant columns and exact linear combinations of other columns stay out of the
    density, come back exactly in samples, and a row that contradicts them scores -inf.

    Args:
        layers: Autoregressive layers, each with a random order of the columns.
        hidden: Widths of each layer's network.
        components: Gaussians per column and layer.
        preprocessing: "auto" tries the last three in a short race on validation rows: "none", "marginal" (each
            column made Gaussian), "marginal-whitening", "whitening-marginal".
        dropout: Share of hidden units dropped in training; "auto" is 0.2 below 5,000 rows, 0.1 below 20,000, else 0.
        epochs: Passes over the rows at most; "auto" makes it 400 to 3,000 steps.
        batch_size: Rows per step; "auto" is an eighth of the rows, between 32 and 512.
        learning_rate: Peak learning rate.
        validation: Share of rows held out to stop early and to choose the preprocessing.
        patience: Evaluations without improvement that end training.
        device: Where to train, "cpu" or "cuda".
        n_jobs: Threads for training. One by default: its steps are short, and more would hardly help (see `runtime.threads`).
        random_state: An int makes split, weights, batches and noise reproducible; None draws a seed.
        progress: Show a progress bar.

    Attributes:
        flow_: The fitted `Flow` over the modelled columns, in double precision; None if every column is constant.
        columns_: How each column is treated, with the reason.
        preprocessing_: The preprocessing chosen.
        history_: DataFrame of the training curve, nats per row.
        converged_: Whether more training is not expected to help.
        stop_reason_: Why training stopped, in plain words.
        validation_score_: Mean log-likelihood of the held-out rows.
        n_features_in_: Number of columns.
        feature_names_in_: Their names, if fitted to a DataFrame with string names.

    Example:
        >>> import numpy as np, flowlab
        >>> x = np.random.default_rng(0).normal(size=(300, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
        >>> model = flowlab.FlowDensity(epochs=20, random_state=0).fit(x)
        >>> model.score_samples(x).shape, model.sample(5, random_state=1).shape
        ((300,), (5, 2))
    """

    def __init__(
        self,
        *,
        layers: int = 2,
        hidden: tuple[int, ...] = (128, 128),
        components: int = 8,
        preprocessing: str = "auto",
        dropout: float | str = "auto",
        epochs: int | str = "auto",
        batch_size: int | str = "auto",
        learning_rate: float = 2e-3,
        validation: float = 0.1,
        patience: int = 30,
        device: str = "cpu",
        n_jobs: int = 1,
        random_state: int | None = None,
        progress: bool = False,
    ) -> None:
        self.layers = layers
        self.hidden = hidden
        self.components = components
        self.preprocessing = preprocessing
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation = validation
        self.patience = patience
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> "FlowDensity":
        """Fit to rows (n, columns): an array, or a DataFrame of numeric columns.

        Args:
            X: The rows; at least two.
            y: Ignored.
            sample_weight: Non-negative weight of each row; rows of weight zero have no influence.

        Raises:
            ValueError: A column is not numeric, or holds missing or infinite values; the message names it.
        """
        if self.preprocessing not in ("auto", *PREPROCESSING):
            raise ValueError(f"preprocessing must be auto, {', '.join(PREPROCESSING)}, not {self.preprocessing!r}")
        x = self._validated(X, reset=True)
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            x, weight = x[weight > 0], weight[weight > 0]
            if len(x) < 2:
                raise ValueError(f"sample_weight leaves {len(x)} rows with a positive weight, at least 2 are needed")
        else:
            weight = np.ones(len(x))
        rng = np.random.default_rng(seed_from(self.random_state))
        self.columns_ = Columns.learn(x, self._names(), self._precision)
        rows = torch.from_numpy(self.columns_.encode(x, rng))
        self.flow_, self.preprocessing_, history = None, "none", History(converged=True, reason="nothing to model")
        if self.columns_.modelled:
            with threads(self.n_jobs):
                self.flow_, self.preprocessing_, history = self._train(rows, torch.from_numpy(weight), rng)
        self.history_, self.converged_, self.stop_reason_ = history.frame, history.converged, history.reason
        self.validation_score_ = -history.best
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """Log-density of each row in nats, in the units of the data; -inf for rows that cannot occur."""
        check_is_fitted(self)
        x = self._validated(X, reset=False)
        out = np.zeros(len(x))
        if self.flow_ is not None:
            rows = torch.from_numpy(self.columns_.encode(x))
            out = np.concatenate([self._log_prob(chunk) for chunk in rows.split(CHUNK)])
        return np.where(self.columns_.possible(x), out, -np.inf)

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Mean log-density of the rows, nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: int | None = None) -> Any:
        """New rows: a DataFrame with the columns and types of the one fitted to, else an array.

        Args:
            n_samples: Number of rows.
            random_state: An int makes the draw reproducible; None draws a seed.

        Raises:
            RuntimeError: Nearly all draws lie outside what the columns' types can hold.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, not {n_samples}")
        generator = torch.Generator(self.device).manual_seed(seed_from(random_state))
        found: list[NDArray[np.float64]] = []
        missing = n_samples
        for _ in range(100):
            count = min(missing, 4 * CHUNK)
            rows = np.empty((count, 0))
            if self.flow_ is not None:
                rows = self.flow_.sample((count,), generator=generator).cpu().double().numpy()
            table = self.columns_.decode(rows)
            found.append(table[self._storable(table)])
            missing -= len(found[-1])
            if missing <= 0:
                return self._restore(np.concatenate(found)[:n_samples])
            if len(found[-1]) < count / 100:
                break
        raise RuntimeError(
            f"only {n_samples - missing} of {n_samples} rows fit the columns' types {self._dtypes}: "
            "fit to wider integer types, or to floats"
        )

    def summary(self) -> str:
        """What was fitted, in a few lines of text."""
        check_is_fitted(self)
        flow = self.flow_
        count = 0 if flow is None else sum(p.numel() for p in flow.parameters())
        lines = [
            f"FlowDensity of {self.n_features_in_} columns, {len(self.columns_.modelled)} modelled, {count:,} parameters",
            f"preprocessing: {self.preprocessing_}",
            f"held-out log-likelihood: {self.validation_score_:.3f} nats per row",
            f"training: {self.stop_reason_}" + ("" if self.converged_ else " (not converged)"),
        ]
        lines += [f"  {c.name}: {c.kind} ({c.reason})" for c in self.columns_.columns]
        return "\n".join(lines)

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

    def _train(self, rows: Tensor, weight: Tensor, rng: np.random.Generator) -> tuple[Flow, str, History]:
        """Race the preprocessings, then train the winner."""
        n, features = rows.shape
        order = torch.from_numpy(rng.permutation(n))
        # A few rows say little: hold out at least ten where there are forty.
        held = max(round(self.validation * n), min(10, n // 4)) if self.validation else 0
        held_out, train = order[:held], order[held:]
        seed = int(rng.integers(2**62))
        shown = representative(rows[train], weight[train], torch.Generator().manual_seed(seed))
        prepared = _Preprocessing(shown)
        batch = max(32, min(512, n // 8)) if self.batch_size == "auto" else int(self.batch_size)
        per_epoch = max(len(train) // batch, 1)
        epochs = round(min(max(100 * per_epoch, 400), 3000) / per_epoch) if self.epochs == "auto" else int(self.epochs)

        def run(preprocessing: str, epochs: int, progress: bool) -> tuple[Flow, History]:
            generator = torch.Generator().manual_seed(seed)
            layers = [*self._core(features, n, generator), *prepared.layers(PREPROCESSING[preprocessing])]
            flow = Flow(Gaussian(features), layers).to(self.device)
            history = fit(
                flow,
                rows[train],
                validation=rows[held_out] if held else 0.0,
                sample_weight=weight[train],
                epochs=epochs,
                batch_size=batch,
                learning_rate=self.learning_rate,
                schedule="cosine",
                clip=5.0,
                patience=self.patience,
                generator=generator,
                progress=progress,
            )
            return flow, history

        chosen = self.preprocessing
        if chosen == "auto":
            chosen = RACE[0]
            if held and features > 1:  # a single column needs no whitening
                short = min(max(RACE_STEPS // per_epoch, 1), epochs)
                scores = {name: run(name, short, False)[1].best for name in RACE}
                chosen = min(scores, key=lambda name: scores[name])
        flow, history = run(chosen, max(epochs, 1), self.progress)
        return flow.double(), chosen, history

    def _core(self, features: int, n: int, generator: torch.Generator) -> list[Layer]:
        """The layers that are trained."""
        dropout = self.dropout
        if dropout == "auto":
            dropout = 0.2 if n < 5_000 else 0.1 if n < 20_000 else 0.0
        return [
            Autoregressive(
                features,
                MixtureCDF(self.components),
                torch.randperm(features, generator=generator).tolist(),
                hidden=self.hidden,
                dropout=float(dropout),
                generator=generator,
            )
            for _ in range(self.layers)
        ]

    @torch.no_grad()
    def _log_prob(self, rows: Tensor) -> NDArray[np.float64]:
        assert self.flow_ is not None
        return self.flow_.log_prob(rows.to(self.device)).cpu().numpy()

    def _validated(self, X: ArrayLike, reset: bool) -> NDArray[np.float64]:
        """The rows as float64, after checks whose messages name the column."""
        frame = X if isinstance(X, pd.DataFrame) else None
        rules: dict[str, Any] = {
            "dtype": np.float64,
            "ensure_all_finite": False,
            "ensure_min_samples": 2 if reset else 1,
        }
        if frame is not None:
            if not frame.columns.is_unique:
                twice = frame.columns[frame.columns.duplicated()].unique().tolist()
                raise ValueError(f"several columns have the same name {twice}: rename or drop them")
            for name, dtype in frame.dtypes.items():
                if not pd.api.types.is_numeric_dtype(dtype) or pd.api.types.is_bool_dtype(dtype):
                    raise ValueError(
                        f"column {name!r} is of type {dtype}: FlowDensity takes numeric columns; drop it, or encode it as numbers"
                    )
                if pd.api.types.is_complex_dtype(dtype):
                    raise ValueError(f"Complex data not supported: column {name!r}")
            _check_feature_names(self, frame, reset=reset)
            values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
            _check_n_features(self, values, reset=reset)
            if reset:
                self._dtypes: Any = [str(dtype) for dtype in frame.dtypes]
                self._index_names: Any = [n if isinstance(n, str | int) else str(n) for n in frame.columns]
                self._precision = max((rounding(numpy_dtype(name)) for name in self._dtypes), default=1e-15)
            array = check_array(values, input_name="X", **rules)
        else:
            array = validate_data(self, X, reset=reset, **rules)
            if reset:
                dtype = np.asarray(X).dtype if hasattr(X, "dtype") else np.dtype(np.float64)
                self._dtypes = str(dtype) if dtype.kind in "iuf" else "float64"
                self._index_names = None
                self._precision = rounding(numpy_dtype(self._dtypes))
        bad = ~np.isfinite(array)
        if bad.any():
            row, j = (int(i) for i in np.argwhere(bad)[0])
            what = "NaN" if np.isnan(array[:, j]).any() else "infinity"
            raise ValueError(
                f"Input X contains {what}: column {self._names(frame)[j]!r} has {int(bad[:, j].sum())} such values, the first "
                f"in row {row}. Drop or fill those rows: missing values are not modelled yet"
            )
        dtypes = self._dtypes if isinstance(self._dtypes, list) else [self._dtypes] * array.shape[1]
        for j, dtype in enumerate(dtypes):
            if numpy_dtype(dtype).kind in "iu" and np.abs(array[:, j]).max() > 2**53:
                raise ValueError(
                    f"column {self._names(frame)[j]!r} holds integers above 2**53, which float64 cannot tell apart: "
                    "subtract an offset, or drop the column if it is an identifier"
                )
        return array

    def _names(self, frame: pd.DataFrame | None = None) -> list[str]:
        if frame is not None:
            return [str(name) for name in frame.columns]
        if self._index_names is not None:
            return [str(name) for name in self._index_names]
        return [f"x{j}" for j in range(self.n_features_in_)]

    def _storable(self, table: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which rows are finite and within the range of their integer types."""
        ok = np.asarray(np.isfinite(table).all(axis=1))
        dtypes = self._dtypes if isinstance(self._dtypes, list) else [self._dtypes] * table.shape[1]
        for j, name in enumerate(dtypes):
            dtype = numpy_dtype(name)
            if dtype.kind in "iu":
                limits = np.iinfo(dtype)
                ok &= (table[:, j] >= limits.min) & (table[:, j] <= limits.max)
        return ok

    def _restore(self, table: NDArray[np.float64]) -> Any:
        """The table with the types it was fitted with."""
        if self._index_names is None:
            integer = np.dtype(self._dtypes).kind in "iu"
            return (np.round(table) if integer else table).astype(self._dtypes)
        columns = {}
        for j, dtype in enumerate(self._dtypes):
            values = np.round(table[:, j]) if numpy_dtype(dtype).kind in "iu" else table[:, j]
            columns[j] = pd.Series(values).astype(dtype)
        frame = pd.DataFrame(columns)
        frame.columns = pd.Index(self._index_names)
        return frame

    def _to_file(self) -> tuple[dict[str, Any], Flow | None]:
        params = self.get_params()
        if not isinstance(params["random_state"], int):
            params["random_state"] = None
        params["hidden"] = list(self.hidden)
        state = {
            "n_features_in_": self.n_features_in_,
            "feature_names_in_": self.feature_names_in_.tolist() if hasattr(self, "feature_names_in_") else None,
            "dtypes": self._dtypes,
            "index_names": self._index_names,
            "precision": self._precision,
            "columns": self.columns_.to_json(),
            "preprocessing": self.preprocessing_,
            "history": {
                name: [value if np.isfinite(value) else None for value in values]
                for name, values in self.history_.to_dict("list").items()
            },
            "converged": bool(self.converged_),
            "stop_reason": self.stop_reason_,
            "validation_score": None if np.isnan(self.validation_score_) else self.validation_score_,
        }
        return {"kind": "FlowDensity", "params": params, "state": state}, self.flow_

    @classmethod
    def _from_file(cls, header: dict[str, Any], flow: Flow | None) -> "FlowDensity":
        params, state = header["params"], header["state"]
        model = cls(**{**params, "hidden": tuple(params["hidden"])})
        model.n_features_in_ = int(state["n_features_in_"])
        if state["feature_names_in_"] is not None:
            model.feature_names_in_ = np.array(state["feature_names_in_"], dtype=object)
        model._dtypes, model._index_names, model._precision = state["dtypes"], state["index_names"], state["precision"]
        model.columns_ = Columns.from_json(state["columns"])
        if len(model.columns_.columns) != model.n_features_in_ or len(model.columns_.modelled) != getattr(
            flow, "features", 0
        ):
            raise files.FileError("the columns do not fit the flow")
        model.flow_, model.preprocessing_ = flow, state["preprocessing"]
        model.history_ = pd.DataFrame(state["history"]).astype(float)
        model.converged_, model.stop_reason_ = state["converged"], state["stop_reason"]
        score = state["validation_score"]
        model.validation_score_ = np.nan if score is None else score
        if flow is not None:
            model.device = str(next(iter(flow.buffers())).device)
        return model


class _Preprocessing:
    """Preprocessing layers in double precision, fitted to rows once however many chains share them."""

    def __init__(self, rows: Tensor) -> None:
        self.fitted: dict[tuple[type[Layer], ...], tuple[list[Layer], Tensor]] = {(): ([], rows)}

    def layers(self, kinds: tuple[type[Layer], ...]) -> list[Layer]:
        """The layers of these kinds, in sampling order."""
        return copy.deepcopy(self._fit(kinds)[0])

    @torch.no_grad()
    def _fit(self, kinds: tuple[type[Layer], ...]) -> tuple[list[Layer], Tensor]:
        if kinds not in self.fitted:
            outer, rows = self._fit(kinds[1:])  # what lies nearer to the data comes first
            layer = kinds[0](rows.shape[1]).double()
            layer.initialise(rows)
            noise = torch.cat([layer.inverse(chunk)[0] for chunk in rows.split(CHUNK)])
            self.fitted[kinds] = [layer, *outer], noise
        return self.fitted[kinds]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type behind a pandas type's name: int64 behind Int64."""
    dtype = pd.api.types.pandas_dtype(name)
    return getattr(dtype, "numpy_dtype", dtype)


def rounding(dtype: np.dtype[Any]) -> float:
    """Relative rounding error of values that were computed in, or read as, a type."""
    return max(float(np.finfo(dtype).eps), 1e-15) if dtype.kind == "f" else 1e-15


def seed_from(random_state: Any) -> int:
    """A seed below 2**62 from what scikit-learn calls a random state; None draws one, and leaves the global state alone."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**62))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**62))
    if isinstance(random_state, int | np.integer) and random_state >= 0:
        return int(random_state)
    raise ValueError(
        f"random_state must be a non-negative int, a numpy RandomState or Generator, or None, not {random_state!r}"
    )
