"""Validation of the rows that users pass in, with messages that name the column."""

import os
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_feature_names, _check_sample_weight, validate_data

from flowlab.tables.frames import cells
from flowlab.tables.frames.arrow import to_pandas


def training_frame(model: BaseEstimator, X: Any) -> tuple[pd.DataFrame, bool]:
    """Check the rows to fit to, and set an estimator's number and names of features.

    Args:
        model: The estimator.
        X: The rows, as `read_rows` returns them.

    Returns:
        The rows as a DataFrame, and whether they came as an array: its columns are called x0, x1, and so on.
    """
    if isinstance(X, pd.DataFrame):
        cells.check_frame(X)
        if not X.shape[1]:
            raise ValueError("the table has no columns: there is nothing to fit to")
        if len(X) < 2:
            raise ValueError(f"a fit needs at least two rows, the table has {len(X)}")
        for name, dtype in X.dtypes.items():
            if pd.api.types.is_complex_dtype(dtype):
                raise ValueError(f"Complex data not supported: column {name!r}")
        _check_feature_names(model, X, reset=True)
        model.n_features_in_ = X.shape[1]
        return X, False
    # Infinite cells are found with the schema, which names their column.
    try:
        x = validate_data(model, X, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=2)
    except (TypeError, ValueError):
        if not np.iscomplexobj(X):
            _check_cells(X)
        raise
    given = np.asarray(X) if hasattr(X, "dtype") else x
    return pd.DataFrame(given if given.dtype.kind in "iuf" else x, columns=[f"x{j}" for j in range(x.shape[1])]), True


def weighted_rows(X: Any, sample_weight: Any) -> tuple[Any, NDArray[np.float64] | None]:
    """Rows of positive weight and their weights; all rows and None without weights.

    Raises:
        ValueError: A weight is negative, or fewer than two are positive.
    """
    if sample_weight is None:
        return X, None
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    used = np.flatnonzero(weight)
    if len(used) < 2:
        raise ValueError(f"sample_weight leaves {len(used)} rows with a positive weight, at least 2 are needed")
    return X.iloc[used] if isinstance(X, pd.DataFrame) else np.asarray(X)[used], weight[used]


def check_count(name: str, value: Any) -> None:
    """Raise a ValueError unless an argument is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def fit_anew(model: Any, *data: Any) -> None:
    """Fit an estimator by its `_fit`; a fit that fails, or is interrupted, leaves the estimator unchanged."""
    fresh = type(model)(**model.get_params(deep=False))
    fresh._fit(*data)
    model.__dict__ = {k: v for k, v in vars(model).items() if not k.endswith("_")} | vars(fresh)


def read_rows(X: Any) -> Any:
    """Rows as a pandas DataFrame, or as an array with NaN for missing cells; anything else is left for later checks.

    Tables of polars and pyarrow, masked arrays, tensors, and lists or arrays of Python objects with None or pd.NA among
    numbers are converted; anything else is returned unchanged.

    Raises:
        TypeError: The rows are a dict, dicts or a path.
        ValueError: A cell of an array is not a number; the message names row and column.
    """
    X = to_pandas(X)
    if isinstance(X, str | os.PathLike):
        raise TypeError(f"expected a table or an array of rows, got the text {str(X)[:80]!r}: pd.read_csv reads a file")
    first = X[0] if isinstance(X, list | tuple) and X else None
    if isinstance(X if first is None else first, Mapping) and not issparse(X):  # scipy's dictionaries of keys are both
        kind = "a dict" if first is None else "dicts"
        raise TypeError(f"expected a table or an array of rows, got {kind}: pd.DataFrame(...) makes a table of it")
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
            raise ValueError(_no_number(grid, row, j)) from error
    return out


def _check_cells(X: Any) -> None:
    """Raise an error that names the first cell of an array that is no number, if one can be found."""
    grid = np.array(X, dtype=object)
    for place in np.ndindex(grid.shape) if grid.ndim == 2 else ():
        try:
            float(grid[place])
        except (TypeError, ValueError) as error:
            raise type(error)(f"{_no_number(grid, *place)} ({error})") from error


def _no_number(grid: NDArray[np.object_], row: int, column: int) -> str:
    cell = str(grid[row, column])[:40]
    return f"column {column} holds {cell!r} in row {row}, which is no number: a DataFrame can hold such columns"


def only_known(frame: pd.DataFrame, names: Sequence[Any]) -> pd.DataFrame:
    """A table without unknown columns, which a warning names; unchanged if it lacks known ones."""
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
    """A seed below 2**62 from scikit-learn's random states; None draws one without touching the global state."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**62))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**62))
    if isinstance(random_state, int | np.integer) and 0 <= random_state < 2**63:
        return int(random_state)
    raise ValueError(
        "random_state must be an int from 0 to below 2**63, a numpy RandomState or Generator, or None, not "
        f"{random_state!r}"
    )
