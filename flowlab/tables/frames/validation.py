"""Numeric tables in and out: checks whose messages name the column, and the types that samples come back in."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_feature_names, _check_n_features, check_array, validate_data

from flowlab.tables.frames import cells
from flowlab.tables.frames.arrow import to_pandas


class TableEstimator(BaseEstimator):
    """An estimator that is fitted to a numeric table, an array or a DataFrame, and gives back tables of the same kind."""

    def _validated(self, X: ArrayLike, reset: bool) -> NDArray[np.float64]:
        """The rows as float64, after checks whose messages name the column."""
        frame = X if isinstance(X, pd.DataFrame) else None
        rules: dict[str, Any] = {
            "dtype": np.float64,
            "ensure_all_finite": False,
            "ensure_min_samples": 2 if reset else 1,
        }
        if frame is not None:
            cells.check_frame(frame)
            if not reset and self._index_names is not None:
                frame = only_known(frame, self._index_names)
            for name, dtype in frame.dtypes.items():
                if pd.api.types.is_complex_dtype(dtype):
                    raise ValueError(f"Complex data not supported: column {name!r}")
                if cells.family(frame[name], name) != "number":
                    raise ValueError(f"column {name!r} is of type {dtype}: this model was fitted to complete numbers")
            _check_feature_names(self, frame, reset=reset)
            values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
            _check_n_features(self, values, reset=reset)
            if reset:
                self._dtypes: Any = [str(dtype) for dtype in frame.dtypes]
                self._index_names: Any = [cells.plain_label(label) for label in frame.columns]
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
                f"in row {row}. Drop or fill those rows: this model is one of complete numbers"
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
        """Which rows are finite and within the range of their types."""
        ok = np.asarray(np.isfinite(table).all(axis=1))
        dtypes = self._dtypes if isinstance(self._dtypes, list) else [self._dtypes] * table.shape[1]
        for j, name in enumerate(dtypes):
            dtype = numpy_dtype(name)
            limits: Any = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
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


def fit_anew(model: Any, *data: Any) -> None:
    """Fits an estimator by its `_fit`, all or nothing: a fit that fails, or is interrupted, leaves the estimator as it was."""
    fresh = type(model)(**model.get_params(deep=False))
    fresh._fit(*data)
    model.__dict__ = {k: v for k, v in vars(model).items() if not k.endswith("_")} | vars(fresh)


def read_rows(X: Any) -> Any:
    """Rows as a pandas DataFrame, or as an array in which missing cells are NaN; what is neither is left for later checks.

    Tables of polars and pyarrow, masked arrays, tensors, and lists or arrays of Python objects with None or pd.NA among numbers are
    rewritten; all else comes back as it is.

    Raises:
        TypeError: The rows are a dict, which says nothing of their order.
        ValueError: A cell of an array is no number; the message names row and column.
    """
    X = to_pandas(X)
    if isinstance(X, Mapping) and not issparse(X):  # scipy's dictionaries of keys are both
        raise TypeError("expected a table or an array of rows, got a dict: pd.DataFrame(...) makes a table of it")
    if isinstance(X, np.ma.MaskedArray):
        return np.where(np.ma.getmaskarray(X), np.nan, X.data) if np.ma.is_masked(X) else X.data
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        return (X.float() if X.dtype == torch.bfloat16 else X).numpy()
    objects = isinstance(X, np.ndarray) and X.dtype == object
    if not objects and not (isinstance(X, list | tuple) and X and isinstance(X[0], list | tuple)):
        return X
    widths = {len(row) for row in X} if not objects else {1}
    if len(widths) > 1:
        raise ValueError(f"expected rows of one length, got lengths {sorted(widths)[:5]}")
    grid = np.array(X, dtype=object)
    missing = pd.isna(grid)
    if grid.ndim != 2 or not missing.any():
        return X
    out = np.full(grid.shape, np.nan)
    for row, j in np.argwhere(~missing):
        try:
            out[row, j] = grid[row, j]
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"column {j} holds {grid[row, j]!r} in row {row}, which is no number: a DataFrame can hold such columns"
            ) from error
    return out


def only_known(frame: pd.DataFrame, names: Sequence[Any]) -> pd.DataFrame:
    """A table without the columns that the model does not know, which a warning names; as it is if it lacks some that the model knows."""
    strange = [name for name in frame.columns if name not in names]
    if not strange or not set(names) <= set(frame.columns):
        return frame
    warnings.warn(f"columns {strange} were not there in training, and are ignored", stacklevel=4)
    return frame[[name for name in frame.columns if name in names]]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type behind a pandas type's name: int64 behind Int64."""
    dtype: Any = cells.dtype_of(name)
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
    if isinstance(random_state, int | np.integer) and 0 <= random_state < 2**63:
        return int(random_state)
    raise ValueError(
        f"random_state must be an int from 0 to below 2**63, a numpy RandomState or Generator, or None, not {random_state!r}"
    )
