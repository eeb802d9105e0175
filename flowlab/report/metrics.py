"""Metrics of synthetic rows: functions of pandas tables that say which way is better, and what real rows would score.

All take tables as they come: numbers (also nullable ones), booleans, categories, text, dates, durations, missing
cells. `real` should be rows that the model has not seen. No number means much without its noise floor, what real rows
score against other real rows: `real_against_real` computes it for any of these functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from flowlab.tables.frames.aligned import Array, Column, align, matrix, pair_counts

T = TypeVar("T")

FOLDS = 5
LEAST_ROWS = 10  # of each table in a comparison by classifier
CLASSES = 10  # most classes of a target that is chosen by itself
MAJORITY = 0.95  # largest share of one class in such a target

BETTER = {
    "classifier_auc": "nearer to 0.5 is better; 1 means that every synthetic row gives itself away",
    "column_distances": "lower is better; 0 is perfect, 1 means that nothing overlaps",
    "pair_similarity": "higher is better; 1 is perfect, 0 means that nothing overlaps",
    "dependence": "neither: the synthetic table should have the values of the real one",
    "train_on_synthetic": "higher is better; a ratio of 1 means that synthetic rows teach as much as real ones",
    "missing_pattern_distance": "lower is better; 0 is perfect",
    "missing_rates": "neither: the synthetic table should have the values of the real one",
    "validity": "lower is better; 0 is perfect",
}


def real_against_real(
    metric: Callable[[pd.DataFrame, pd.DataFrame], T],
    rows: pd.DataFrame,
    size: int | None = None,
    repeats: int = 5,
    seed: int = 0,
) -> list[T]:
    """Compute a metric's noise floor, which no model should beat: its values on disjoint parts of real rows.

    Args:
        metric: A function of two tables.
        rows: Real rows.
        size: Rows in each part: as many as in the tables that are compared. Half of all, if not given or if there are
            not as many.
        repeats: Number of pairs.
        seed: Decides the parts.

    Example:
        >>> rows = pd.DataFrame({"x": np.random.default_rng(0).normal(size=2000)})
        >>> floor = real_against_real(column_distances, rows, repeats=3)
        >>> bool(max(f["distance"].max() for f in floor) < 0.1)
        True
    """
    return [metric(one, other) for one, other in disjoint_parts(rows, size, repeats, seed)]


def disjoint_parts(
    rows: pd.DataFrame, size: int | None = None, repeats: int = 5, seed: int = 0
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Draw pairs of disjoint random parts of a table; the arguments are those of `real_against_real`."""
    half = len(rows) // 2
    size = half if size is None else min(size, half)
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(rows)) for _ in range(repeats)]
    return [(rows.iloc[order[:size]], rows.iloc[order[size : 2 * size]]) for order in orders]


def classifier_auc(real: pd.DataFrame, synthetic: pd.DataFrame, seed: int = 0) -> float:
    """Classifier two-sample test: how well gradient-boosted trees tell synthetic rows from real ones.

    ROC-AUC of scikit-learn's HistGradientBoostingClassifier on as many rows of each kind, five-fold cross-validated
    (mean over folds). Nearer to 0.5 is better; 1 means that every synthetic row gives itself away. Real against real
    reads 0.5 give or take 0.4 / √(rows of each kind).

    Args:
        real: Rows that the model has not seen.
        synthetic: Synthetic rows, with the same columns.
        seed: Decides folds, and which rows of the longer table are used.

    Raises:
        ValueError: A table has fewer than ten rows, or the columns differ.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> real, same, shifted = (pd.DataFrame({"x": rng.normal(m, size=300)}) for m in (0, 0, 9))
        >>> abs(classifier_auc(real, same) - 0.5) < 0.1, classifier_auc(real, shifted) > 0.99
        (True, True)
    """
    size = min(len(real), len(synthetic))
    if size < LEAST_ROWS:
        raise ValueError(f"telling rows apart takes at least {LEAST_ROWS} rows of each kind, not {size}")
    columns = align(_some(real, size, seed), _some(synthetic, size, seed + 1))
    first, categorical = matrix(columns, 0)
    x = np.concatenate([first, matrix(columns, 1)[0]])
    y = np.repeat([0, 1], size)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = []
    for train, test in folds.split(x, y):
        trees, used = _trees(HistGradientBoostingClassifier, x[train], y[train], categorical, seed)
        scores.append(roc_auc_score(y[test], trees.predict_proba(x[test][:, used])[:, 1]))
    return float(np.mean(scores))


def column_distances(real: pd.DataFrame, synthetic: pd.DataFrame) -> pd.DataFrame:
    """Measure how far each column's distribution is from the real one, by itself.

    Kolmogorov-Smirnov for numbers and times (largest difference of the distribution functions), total variation for
    categories (half the sum of differences of shares), both of the cells that are not missing and both in [0, 1];
    lower is better, 0 is perfect. A column that is missing throughout in one table alone is 1 away.

    Returns:
        A row per column: kind, measure ("KS" or "TV"), distance, and the shares of missing cells missing_real and
        missing_synthetic.

    Example:
        >>> real = pd.DataFrame({"a": ["x", "x", "y", "y"], "b": [1.0, 2.0, 3.0, None]})
        >>> synthetic = pd.DataFrame({"a": ["x", "y", "y", "z"], "b": [1.0, 2.0, 9.0, 9.0]})
        >>> column_distances(real, synthetic)[["measure", "distance", "missing_real"]]
          measure  distance  missing_real
        a      TV      0.25          0.00
        b      KS      0.50          0.25
    """
    rows = []
    columns = align(real, synthetic)
    for column in columns:
        missing = [float(np.isnan(x).mean()) if len(x) else np.nan for x in column.values]
        a, b = (x[~np.isnan(x)] for x in column.values)
        measure = "TV" if column.kind == "category" else "KS"
        rows.append((column.kind, measure, _distance(a, b, column), *missing))
    names = pd.Index([column.name for column in columns])
    return pd.DataFrame(rows, names, ["kind", "measure", "distance", "missing_real", "missing_synthetic"])


def pair_similarity(real: pd.DataFrame, synthetic: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """Measure how much of the joint distribution of each two columns is right: 1 - total variation of the joint tables.

    Each number falls in one of at most ten cells between the real table's deciles, each category of the twenty most
    frequent ones in a cell of its own, and a missing value in another. Higher is better; 1 is perfect. Joint tables of
    few rows differ by chance, so that real against real reads well below 1 (0.84 for two continuous columns and 1,000
    rows): look at the noise floor.

    Returns:
        The mean over all pairs of columns (NaN if there is one column only), and the matrix, with the columns
        themselves on its diagonal.
    """
    columns = align(real, synthetic)
    (a, b), starts = pair_counts(columns)
    names = [column.name for column in columns]
    difference = np.abs(a / max(len(real), 1) - b / max(len(synthetic), 1))
    similarity = 1 - _block_sums(difference, starts) / 2
    pairs = similarity[np.triu_indices(len(names), 1)]
    return float(pairs.mean()) if len(pairs) else float("nan"), pd.DataFrame(similarity, names, names)


def dependence(table: pd.DataFrame, like: pd.DataFrame | None = None) -> pd.DataFrame:
    """Measure how strongly each two columns of any kinds are related: Cramér's V, corrected for bias (Bergsma 2013).

    Computed on the cells of `pair_similarity`, so that it sees any relation, monotone or not, and those of missing
    values too. 0 means unrelated, 1 that one column decides the other. It is lower than a correlation: a Gaussian pair
    with correlation 0.8 has 0.33.

    Args:
        table: The rows.
        like: Rows whose deciles and frequent categories make the cells, such as the real ones for a synthetic table;
            `table` itself if not given.

    Returns:
        The symmetric matrix, with ones on its diagonal.
    """
    columns = align(table if like is None else like, table)
    counts, starts = pair_counts(columns)
    joint, rows = counts[1], max(len(table), 1)
    expected = np.outer(np.diag(joint), np.diag(joint)) / rows
    excess = np.divide((joint - expected) ** 2, expected, out=np.zeros_like(joint), where=expected > 0)
    phi = _block_sums(excess, starts) / rows
    levels = np.add.reduceat((np.diag(joint) > 0).astype(float), starts)
    bias = np.outer(levels - 1, levels - 1) / max(rows - 1, 1)
    effective = levels - (levels - 1) ** 2 / max(rows - 1, 1) - 1
    most = np.minimum.outer(effective, effective)
    v = np.sqrt(np.divide(np.maximum(phi - bias, 0), most, out=np.zeros_like(phi), where=most > 0)).clip(0, 1)
    np.fill_diagonal(v, 1.0)
    names = [column.name for column in columns]
    return pd.DataFrame(v, names, names)


class Transfer(NamedTuple):
    """What trees learnt from synthetic rows, and what they learn from real ones.

    Attributes:
        target: The column that is predicted.
        measure: "ROC-AUC" (of classes; their mean, each against the rest) or "R²" (of numbers), on real rows held out.
        real: Score of training on real rows; higher is better.
        synthetic: Score of training on synthetic rows; higher is better.
        ratio: synthetic / real; 1 means that synthetic rows teach as much as real ones; NaN where real rows teach
            nothing.
    """

    target: Any
    measure: str
    real: float
    synthetic: float
    ratio: float


def train_on_synthetic(
    real_train: pd.DataFrame, real_test: pd.DataFrame, synthetic: pd.DataFrame, target: Any, seed: int = 0
) -> Transfer:
    """Train on synthetic rows, test on real ones (TSTR): are synthetic rows as good to learn from as the real ones?

    Gradient-boosted trees with scikit-learn's defaults predict `target` from the other columns. The target is a class
    if it is a category or boolean or has two values; rows without a target are left out. Higher is better; a ratio of
    1 is what real rows reach. For a fair ratio give as many synthetic rows as there are in `real_train`.

    Args:
        real_train: The rows that the model was fitted to.
        real_test: Real rows that it has not seen.
        synthetic: Synthetic rows.
        target: Name of the column to predict; `choose_target` finds one.
        seed: Of the trees.

    Raises:
        ValueError: There is no such column, or it is the only one, or `real_test` has no value of it.
    """
    if target not in real_train.columns or real_train.shape[1] < 2:
        raise ValueError(f"cannot predict {target!r} from the other columns of {list(map(str, real_train.columns))}")
    columns = align(real_train, real_test, synthetic)
    goal = next(column for column in columns if column.name == target)
    others = [column for column in columns if column is not goal]
    labelled = [~np.isnan(values) for values in goal.values]
    x = [matrix(others, table)[0][rows] for table, rows in enumerate(labelled)]
    y = [values[rows] for values, rows in zip(goal.values, labelled)]
    if not len(y[1]):
        raise ValueError(f"no row to test on has a value of {target!r}")
    classes = _is_class(goal)
    score = _class_score if classes else _number_score
    categorical = matrix(others, 0)[1]
    real, fake = (score(x[table], y[table], x[1], y[1], categorical, seed) for table in (0, 2))
    floor = 0.5 if classes else 0.0
    ratio = fake / real if real > floor else float("nan")
    return Transfer(target, "ROC-AUC" if classes else "R²", real, fake, ratio)


def choose_target(table: pd.DataFrame) -> Any:
    """Choose a column to predict where the user names none: the one that the other columns say most about.

    Of the classes (categories, booleans and columns of two values, with at most ten levels, none of them in more than
    95 % of rows) the one with the largest mean `dependence` on the other columns; where there is none, of the numbers
    that are not constant; else the last column. Columns missing in more than half of the rows are passed over.

    Example:
        >>> x = np.arange(100) % 10
        >>> choose_target(pd.DataFrame({"x": x, "noise": np.arange(100) // 10, "large": x > 5}))
        'large'
    """
    strength = dependence(table).sum().to_numpy()
    classes, numbers = [], []
    for j, column in enumerate(align(table)):
        present = column.values[0][~np.isnan(column.values[0])]
        counts = np.unique(present, return_counts=True)[1]
        if len(counts) < 2 or 2 * len(present) < len(table):
            continue
        if _is_class(column):
            if len(counts) <= CLASSES and counts.max() <= MAJORITY * len(present):
                classes.append(j)
        elif column.kind == "number":
            numbers.append(j)
    candidates = classes or numbers or [table.shape[1] - 1]
    return table.columns[max(candidates, key=lambda j: strength[j])]


def missing_rates(real: pd.DataFrame, synthetic: pd.DataFrame) -> pd.DataFrame:
    """Compute each column's share of missing cells in both tables: column synthetic should be like column real."""
    shares = [[float(np.isnan(x).mean()) if len(x) else np.nan for x in c.values] for c in align(real, synthetic)]
    return pd.DataFrame(shares, real.columns, ["real", "synthetic"])


def missing_pattern_distance(real: pd.DataFrame, synthetic: pd.DataFrame) -> float:
    """Compute the total variation between the distributions of which cells of a row are missing together.

    Lower is better, 0 is perfect.

    Example:
        >>> real = pd.DataFrame({"a": [1, None, 3, None], "b": [1, None, 3, None]})
        >>> missing_pattern_distance(real, pd.DataFrame({"a": [1, None, 3, None], "b": [1, 2, None, None]}))
        0.5
    """
    columns = align(real, synthetic)
    patterns = [np.packbits(np.isnan(matrix(columns, table)[0]), axis=1) for table in (0, 1)]
    _, codes = np.unique(np.concatenate(patterns), axis=0, return_inverse=True)
    return _total_variation(codes.ravel()[: len(real)], codes.ravel()[len(real) :], int(codes.max(initial=0)) + 1)


def validity(real: pd.DataFrame, synthetic: pd.DataFrame) -> pd.DataFrame:
    """Count the cells that no real row has: lower is better, 0 is perfect.

    Returns:
        A row per column, with shares of the synthetic cells that are not missing (NaN where the question does not
        apply): unknown_categories (that the real table neither has nor declares), fractions (where all real values are
        whole), out_of_range (beyond the real extremes; a few are right, as real rows are beyond those of others too:
        see the noise floor); and dtype_real, dtype_synthetic, same_dtype.

    Example:
        >>> real = pd.DataFrame({"a": ["x", "y"], "n": [1, 5]})
        >>> validity(real, pd.DataFrame({"a": ["x", "?"], "n": [2.5, 7.0]})).T
                                a        n
        unknown_categories    0.5      NaN
        fractions             NaN      0.5
        out_of_range          NaN      0.5
        dtype_real            str    int64
        dtype_synthetic       str  float64
        same_dtype           True    False
    """
    shares = []
    columns = align(real, synthetic)
    for column in columns:
        a, b = (x[~np.isnan(x)] for x in column.values)
        unknown = fractions = beyond = float("nan")
        if len(b) and column.kind == "category":
            unknown = float((~column.known[b.astype(int)]).mean())
        elif len(b) and len(a):
            beyond = float(((b < a.min()) | (b > a.max())).mean())
            if column.kind == "number" and (a == np.floor(a)).all():
                fractions = float((b != np.floor(b)).mean())
        shares.append((unknown, fractions, beyond))
    names = pd.Index([column.name for column in columns])
    out = pd.DataFrame(shares, names, ["unknown_categories", "fractions", "out_of_range"])
    out["dtype_real"], out["dtype_synthetic"] = ([str(t[name].dtype) for name in names] for t in (real, synthetic))
    out["same_dtype"] = out["dtype_real"] == out["dtype_synthetic"]
    return out


def _some(table: pd.DataFrame, size: int, seed: int) -> pd.DataFrame:
    return table if len(table) == size else table.sample(size, random_state=seed)


def _distance(a: Array, b: Array, column: Column) -> float:
    """Measure the distance of a column's values: total variation of categories, Kolmogorov-Smirnov of numbers."""
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    if column.kind == "category":
        return _total_variation(a.astype(int), b.astype(int), len(column.levels))
    a, b = np.sort(a), np.sort(b)
    points = np.concatenate([a, b])
    steps = [np.searchsorted(x, points, side="right") / len(x) for x in (a, b)]
    return float(np.abs(steps[0] - steps[1]).max())


def _total_variation(a: NDArray[np.integer], b: NDArray[np.integer], levels: int) -> float:
    shares = [np.bincount(codes, minlength=levels) / max(len(codes), 1) for codes in (a, b)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _block_sums(values: Array, starts: NDArray[np.int64]) -> Array:
    """Sums over the cells of each pair of columns."""
    return np.add.reduceat(np.add.reduceat(values, starts, axis=0), starts, axis=1)


def _is_class(column: Column) -> bool:
    present = column.values[0][~np.isnan(column.values[0])]
    return column.kind == "category" or len(np.unique(present)) == 2


def _class_score(x: Array, y: Array, x_test: Array, y_test: Array, categorical: NDArray[np.bool_], seed: int) -> float:
    """Average the ROC-AUC of each class of the test rows against the rest; 0.5 for a class not seen in training."""
    seen, tested = np.unique(y), np.unique(y_test)
    if len(tested) < 2:
        return float("nan")
    if len(seen) < 2:
        return 0.5
    trees, used = _trees(HistGradientBoostingClassifier, x, y, categorical, seed)
    share = trees.predict_proba(x_test[:, used])
    if len(tested) == 2:  # both classes give the same value
        tested = tested[1:]
    known = [(level, share[:, np.flatnonzero(seen == level)]) for level in tested]
    return float(np.mean([roc_auc_score(y_test == level, p[:, 0]) if p.size else 0.5 for level, p in known]))


def _number_score(x: Array, y: Array, x_test: Array, y_test: Array, categorical: NDArray[np.bool_], seed: int) -> float:
    """Compute R² on the test rows; 0 is what their mean reaches."""
    if len(y) < 2 or len(y_test) < 2:
        return float("nan")
    trees, used = _trees(HistGradientBoostingRegressor, x, y, categorical, seed)
    return float(r2_score(y_test, trees.predict(x_test[:, used])))


def _trees(kind: Any, x: Array, y: Array, categorical: NDArray[np.bool_], seed: int) -> tuple[Any, NDArray[np.bool_]]:
    """Fit trees, and say which columns they use: scikit-learn's fail on those without any value."""
    used = np.asarray(~np.isnan(x).all(axis=0))
    used[0] |= not used.any()
    x = np.where(used & np.isnan(x).all(axis=0), 0.0, x)[:, used]
    trees = kind(categorical_features=categorical[used], early_stopping=False, random_state=seed)
    return trees.fit(x, y), used
