"""Grow a `Forest` by scikit-learn's trees."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from torch import Tensor

from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.tables.mixed.forest import Forest
from flowlab.tables.mixed.marginal_cdf import MarginalCDF
from flowlab.tables.mixed.networks import CODE, MISSING, Z, fields_of, outcomes_of

LEAST_BANDWIDTH = 3e-4  # in the normal scale
BANDWIDTH = 0.5  # of a leaf's kernels: this times the standard deviation of its values times rows ** -0.2
MOST = 64  # distinct values of a number that a leaf keeps; of more, quantiles
MISSING_WEIGHT = 2.0  # of being missing beside one standard deviation of the numbers, where trees tell both

Array = NDArray[np.float64]
Part = dict[str, NDArray[Any]]


class Growth:
    """What trees are grown from, in the order of a density.

    Args:
        density: Says what the variables are.
        rows: The training rows (n, variables).
        cells: The same, as the density's `cells` makes them.
        weight: Their weights (n,).

    Attributes:
        seen: What trees see of the rows (variables, n): codes and normal quantiles, NaN for missing numbers.
        outcomes: Outcomes of each class variable, 0 for numbers.
        order: The variables in their order.
    """

    def __init__(self, density: ConditionalDensity, rows: Tensor, cells: Tensor, weight: Tensor) -> None:
        self.density, self.values, self.weight = density, rows.numpy(), weight.numpy()
        fields = fields_of(cells, density.features).numpy()
        numbers = np.where(fields[MISSING] > 0.5, np.nan, fields[Z])
        self.seen: Array = np.where(np.array(density.classes)[:, None] > 0, fields[CODE], numbers)
        self.outcomes = outcomes_of(density.classes, density.nullable)
        self.order = density.in_order()

    def codes(self, variable: int) -> NDArray[np.int64]:
        """Outcomes (n,) of a class variable."""
        return self.seen[variable].astype(np.int64)


def grow_forest(growth: Growth, trees: int, leaf: int, most_rows: int, seed: int) -> Forest:
    """Grow the trees of every variable but the first on the variables before it.

    Args:
        growth: What they are grown from.
        trees: Trees of each variable.
        leaf: Least number of rows in a leaf.
        most_rows: Largest number of rows that a tree is grown on.
        seed: Seed of everything random.
    """
    scores: list[Array] = []
    parts: list[Part] = []
    for i, variable in enumerate(growth.order[1:], 1):
        target, rows = target_of(growth, variable)
        inputs = []
        for other in growth.order[:i]:
            column = growth.seen[other]
            if growth.outcomes[other]:
                scores.append(level_scores(target, growth.codes(other)[rows], growth.outcomes[other]))
                column = scores[-1][growth.codes(other)]
            inputs.append(column)
        x = np.stack(inputs, 1).astype(np.float32)
        model = fitted(growth, variable, x[rows], target, rows, seed + i, trees, leaf, most_rows)
        parts += [tree_arrays(growth, variable, tree, x, rows) for tree in model.estimators_]
        for part in parts[-trees:]:
            part["feature"] = np.where(part["feature"] >= 0, np.array(growth.order[:i])[part["feature"]], -1)
    return assembled(growth, parts, scores, trees)


def target_of(growth: Growth, variable: int) -> tuple[Array, NDArray[np.int64]]:
    """What the trees of a variable are to tell apart (rows, outputs), and the rows for it."""
    if growth.outcomes[variable]:
        return np.eye(growth.outcomes[variable])[growth.codes(variable)], np.arange(len(growth.weight))
    z, there = growth.seen[variable], ~np.isnan(growth.seen[variable])
    if not growth.density.says_missing(variable) or there.all():
        return z[there, None], np.flatnonzero(there)
    filled = np.where(there, z, z[there].mean() if there.any() else 0.0)
    return np.stack([filled, ~there * MISSING_WEIGHT * max(filled.std(), 0.1)], 1), np.arange(len(z))


def level_scores(target: Array, codes: NDArray[np.int64], outcomes: int) -> Array:
    """Scores (outcomes,) of a class that put outcomes with similar targets side by side.

    They are the first principal component of the outcomes' mean targets (Coppersmith, Hong & Hosking 1999,
    "Partitioning nominal attributes in decision trees").
    """
    if outcomes <= 2:
        return np.arange(outcomes, dtype=float)
    count = np.bincount(codes, minlength=outcomes)
    total = np.zeros((outcomes, target.shape[1]))
    np.add.at(total, codes, target - target.mean(0))
    mean = total / (count + 1)[:, None]
    if target.shape[1] == 1:
        return mean[:, 0]
    axis = np.linalg.svd(mean * np.sqrt(count)[:, None], full_matrices=False)[2][0]
    return mean @ axis


def fitted(
    growth: Growth,
    variable: int,
    inputs: NDArray[np.float32],
    target: Array,
    rows: NDArray[np.int64],
    seed: int,
    trees: int,
    leaf: int,
    most_rows: int,
) -> Any:
    """scikit-learn's forest of one variable."""
    options: dict[str, Any] = {
        "n_estimators": trees,
        "min_samples_leaf": leaf,
        "max_samples": min(most_rows, len(rows)),
        "random_state": seed % 2**32,
        "n_jobs": 1,
    }
    weight = growth.weight[rows]
    if growth.outcomes[variable]:
        options |= {"max_features": None}
        return RandomForestClassifier(**options).fit(inputs, growth.codes(variable)[rows], weight)
    return RandomForestRegressor(**options).fit(inputs, target[:, 0] if target.shape[1] == 1 else target, weight)


def tree_arrays(growth: Growth, variable: int, tree: Any, inputs: NDArray[np.float32], rows: NDArray[np.int64]) -> Part:
    """One tree as arrays, its leaves filled with all training rows, by weight."""
    nodes = tree.tree_
    count, leaf, weight = nodes.node_count, tree.apply(inputs[rows]), growth.weight[rows]
    inner = nodes.children_left >= 0
    part: Part = {
        "feature": np.where(inner, nodes.feature, -1),
        # A split by what is missing has an infinite threshold.
        "threshold": np.where(inner, np.nan_to_num(nodes.threshold), 0.0),
        "missing_left": np.asarray(nodes.missing_go_to_left, dtype=bool),
        "right": np.where(inner, nodes.children_right, 0),
        "rows": np.bincount(leaf, weight, count),
        "gone": np.zeros(count),
        "bandwidth": np.ones(count),
    }
    if growth.outcomes[variable]:
        code = growth.codes(variable)[rows]
        return part | entries_of(leaf, code, np.zeros(len(code)), weight, count)
    z = growth.seen[variable][rows]
    there = ~np.isnan(z)
    rate = np.average(~there, weights=weight) if weight.sum() > 0 else 0.0
    part["gone"] = (np.bincount(leaf, weight * ~there, count) + rate) / (part["rows"] + 1)
    leaf, z, weight = leaf[there], z[there], weight[there]
    mass = np.maximum(np.bincount(leaf, weight, count), 1e-300)
    mean = np.bincount(leaf, weight * z, count) / mass
    variance = np.bincount(leaf, weight * (z - mean[leaf]) ** 2, count) / mass
    part["bandwidth"] = np.maximum(BANDWIDTH * np.sqrt(variance) * np.maximum(mass, 1) ** -0.2, LEAST_BANDWIDTH)
    atom = atoms_of(growth.density.marginals()[variable], growth.values[rows, variable][there])
    return part | entries_of(leaf, atom, z, weight, count)


def atoms_of(marginal: MarginalCDF, values: Array) -> NDArray[np.int64]:
    """The atom (n,) that each value is, -1 for none."""
    if not marginal.atoms:
        return np.full(len(values), -1)
    return marginal.atom(torch.from_numpy(np.ascontiguousarray(values))).numpy()


def entries_of(leaf: NDArray[np.int64], code: NDArray[np.int64], z: Array, weight: Array, nodes: int) -> Part:
    """The distinct values in each leaf with their shares, leaf by leaf; of many numbers, `MOST` quantiles."""
    order = np.lexsort((code, z, leaf))
    leaf, code, z, weight = leaf[order], code[order], z[order], weight[order]
    new = np.ones(len(leaf), dtype=bool)
    new[1:] = (np.diff(leaf) > 0) | (np.diff(z) > 0) | (np.diff(code) != 0)
    mass = np.bincount(new.cumsum() - 1, weight, new.sum()) if len(leaf) else weight
    leaf, code, z = leaf[new], code[new], z[new]
    size = np.bincount(leaf, minlength=nodes)
    for crowded in np.flatnonzero((size > MOST) & (np.bincount(leaf, z != 0, nodes) > 0)):
        places = np.flatnonzero((leaf == crowded) & (mass > 0))
        through = mass[places].cumsum()
        chosen = np.searchsorted(through, through[-1] * (np.arange(MOST) + 0.5) / MOST)
        thinned = np.bincount(chosen, minlength=len(places)) * through[-1] / MOST
        mass[np.flatnonzero(leaf == crowded)] = 0
        mass[places] = thinned
    kept = mass > 0
    leaf, code, z, mass = leaf[kept], code[kept], z[kept], mass[kept]
    total = np.bincount(leaf, mass, nodes)
    return {"size": np.bincount(leaf, minlength=nodes), "code": code, "z": z, "share": mass / total[leaf]}


def assembled(growth: Growth, parts: list[Part], scores: list[Array], trees: int) -> Forest:
    """The trees of all variables as one `Forest`."""
    starts = np.cumsum([0, *(len(part["feature"]) for part in parts)])
    for part, start in zip(parts, starts, strict=False):
        part["right"] = np.where(part["feature"] >= 0, part["right"] + start, 0)
    entries = sum(len(part["code"]) for part in parts)
    forest = Forest(growth.density.classes, growth.density.nullable, growth.order, trees, int(starts[-1]), entries)

    def fill(name: str, value: Any) -> None:
        buffer = forest.get_buffer(name)
        buffer.copy_(torch.as_tensor(np.asarray(value)).view(buffer.shape))

    if parts:
        fill("roots", starts[:-1])
        for name in parts[0]:
            fill(name, np.concatenate([part[name] for part in parts]))
    if scores:
        fill("scores", np.concatenate(scores))
    shares = []
    for variable, outcomes in enumerate(growth.outcomes):
        if outcomes:
            count = np.bincount(growth.codes(variable), growth.weight, growth.outcomes[variable]) + 0.5
            shares.append(count / count.sum())
    if shares:
        fill("frequency", np.concatenate(shares))
    forest.index()
    return forest
