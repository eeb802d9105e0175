"""Columns of a numeric table <-> the numbers that a flow models, and what is exact beside it.

Constants and exactly collinear columns are taken out and put back. Columns whose values repeat are dequantised at their resolution.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

REPEATS = 0.05  # share of rows repeating another's value from which a column counts as tied
ON_GRID = 0.95  # share of rows on a decimal grid that makes the grid the column's resolution
ATOM = 0.01  # share of rows with one value that makes it an atom, off any grid
ATOM_WIDTH = 1e-4  # width of an atom's cell in standard deviations
EXACT = 1e-9  # relative residual below which a column is a linear combination of others


@dataclass
class Column:
    """How one column is treated.

    Attributes:
        name: The column's name.
        kind: "continuous"; "grid" (multiples of `resolution`, dequantised uniformly within a cell); "atoms" (single
            repeated values, each with a cell of width `resolution`, among continuous ones); "constant"; "derived"
            (an exact linear combination of earlier columns).
        reason: Why, in plain words.
        resolution: Width of a cell in the column's units, 0 for continuous columns.
        atoms: The repeated values of kind "atoms".
        value: The constant; the intercept of a derived column.
        weights: Coefficients of a derived column on all columns.
        tolerance: Largest deviation of a constant or derived value that rounding explains.
    """

    name: str
    kind: str = "continuous"
    reason: str = "values do not repeat"
    resolution: float = 0.0
    atoms: list[float] = field(default_factory=list)
    value: float = 0.0
    weights: list[float] = field(default_factory=list)
    tolerance: float = 0.0

    @property
    def modelled(self) -> bool:
        """Whether the flow sees this column."""
        return self.kind in ("continuous", "grid", "atoms")


class Columns:
    """The columns of a table as `FlowDensity` treats them: learnt once, printed by `summary()`, kept in files."""

    def __init__(self, columns: list[Column]) -> None:
        self.columns = columns
        self.modelled = [j for j, column in enumerate(columns) if column.modelled]

    @classmethod
    def learn(cls, x: Array, names: list[str], precision: float = 1e-15) -> "Columns":
        """Look at a table (rows, columns) whose values carry relative rounding errors of `precision`."""
        columns = [learn_column(x[:, j], name, precision) for j, name in enumerate(names)]
        mark_derived(x, columns, precision)
        return cls(columns)

    def encode(self, x: Array, generator: np.random.Generator | None = None) -> Array:
        """The modelled columns (rows, modelled), dequantised where a generator is given."""
        out = x[:, self.modelled].copy()
        if generator is None:
            return out
        for k, j in enumerate(self.modelled):
            column = self.columns[j]
            if column.resolution:
                noise = (generator.random(len(x)) - 0.5) * column.resolution
                tied = True if column.kind == "grid" else np.isin(out[:, k], column.atoms)
                out[:, k] += np.where(tied, noise, 0.0)
        return out

    def possible(self, x: Array) -> NDArray[np.bool_]:
        """Which rows have the values that constant and derived columns must have: elsewhere the density is zero."""
        ok = np.ones(len(x), dtype=bool)
        for j, column in enumerate(self.columns):
            if not column.modelled:
                ok &= np.abs(x[:, j] - self._exact(column, x)) <= column.tolerance
        return ok

    def decode(self, z: Array) -> Array:
        """A whole table (rows, columns) from modelled columns: values on their grid or atom, exact columns put back."""
        out = np.empty((len(z), len(self.columns)))
        for k, j in enumerate(self.modelled):
            out[:, j] = self._snap(self.columns[j], z[:, k])
        for j, column in enumerate(self.columns):  # derived columns use earlier ones only
            if not column.modelled:
                out[:, j] = self._exact(column, out)
                if column.kind == "derived" and column.resolution:
                    out[:, j] = on_grid(out[:, j], column.resolution)
        return out

    @staticmethod
    def _exact(column: Column, x: Array) -> Array:
        used = [j for j, weight in enumerate(column.weights) if weight]
        weights = np.array([column.weights[j] for j in used])
        return column.value + x[:, used] @ weights if used else np.full(len(x), column.value)

    @staticmethod
    def _snap(column: Column, values: Array) -> Array:
        if column.kind == "grid":
            return on_grid(values, column.resolution)
        if column.kind == "atoms":
            atoms = np.array(column.atoms)
            nearest = atoms[np.abs(values[:, None] - atoms).argmin(1)]
            return np.where(np.abs(values - nearest) <= column.resolution / 2, nearest, values)
        return values

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(column) for column in self.columns]


def learn_column(x: Array, name: str, precision: float) -> Column:
    """Kind and resolution of one column, by itself."""
    rounding = 8 * precision * np.abs(x)
    if float(np.ptp(x)) <= rounding.max():
        tolerance = 2 * float(rounding.max())
        return Column(name, "constant", "all values are equal", value=float(np.median(x)), tolerance=tolerance)
    values, counts = np.unique(x, return_counts=True)
    if len(values) > (1 - REPEATS) * len(x):
        return Column(name)
    resolution = decimal_grid(x, rounding)
    if resolution:
        return Column(name, "grid", f"{len(values)} distinct values, multiples of {resolution:g}", resolution)
    frequent = counts >= max(ATOM * len(x), 2)
    atoms = values[frequent]
    if 0 < len(atoms) <= 50:
        width = ATOM_WIDTH * spread(x)
        share = float(counts[frequent].sum() / len(x))
        return Column(name, "atoms", f"{share:.0%} of rows are on {len(atoms)} repeated values", width, atoms.tolist())
    # Ties off any decimal grid, none of them frequent: cells as wide as the smallest gap keep every value apart.
    gap = float(np.diff(values).min())
    return Column(name, "atoms", "values repeat off any decimal grid", gap, values[counts > 1][:1000].tolist())


def spread(x: Array) -> float:
    """A standard deviation that outliers do not touch: from the narrowest pair of quantiles that differ."""
    for share, sigmas in ((0.25, 1.35), (0.1, 2.56), (0.02, 4.11)):
        low, high = np.quantile(x, [share, 1 - share])
        if high > low:
            return float(high - low) / sigmas
    return float(x.std())


def decimal_grid(x: Array, rounding: Array) -> float:
    """The coarsest power of ten of which nearly all values are multiples, 0 if there is none."""
    for decimals in range(-9, 13):
        step = 10.0**-decimals
        if step < 100 * np.median(rounding):
            return 0.0
        off = np.abs(x - np.round(x / step) * step)
        if step <= np.ptp(x) and np.mean(off <= np.maximum(rounding, 1e-6 * step)) >= ON_GRID:
            return step
    return 0.0


def on_grid(values: Array, step: float) -> Array:
    """Values rounded to multiples of a power of ten, as the nearest floating-point numbers."""
    if step >= 1:
        return np.round(values / step) * step
    scale = round(1 / step)
    return np.round(values * scale) / scale


def mark_derived(x: Array, columns: list[Column], precision: float) -> None:
    """Mark each column that is an exact linear combination of earlier modelled ones.

    With few rows everything is collinear: a column is only called derived where there are at least three rows per
    coefficient and ten to spare.
    """
    centre, scale = x.mean(0), np.maximum(x.std(0), 1e-300)
    basis = np.empty((len(x), 0))
    kept: list[int] = []
    for j, column in enumerate(columns):
        if not column.modelled:
            continue
        z = (x[:, j] - centre[j]) / scale[j]
        residual = z - basis @ (basis.T @ z)
        residual -= basis @ (basis.T @ residual)  # twice is enough (Kahan)
        size = float(np.linalg.norm(residual) / np.sqrt(len(x)))
        limit = max(EXACT, 64 * precision * float(np.abs(x[:, j]).max()) / float(scale[j]))
        if size <= limit and kept and len(x) >= 10 + 3 * (len(kept) + 1):
            standard = (x[:, kept] - centre[kept]) / scale[kept]
            coefficients = np.linalg.lstsq(standard, z, rcond=None)[0]
            coefficients[np.abs(coefficients) < 1e-7] = 0.0
            weights = np.zeros(len(columns))
            weights[kept] = coefficients * scale[j] / scale[kept]
            used = [columns[k].name for k in kept if weights[k]]
            derived = replace(column, kind="derived", weights=tidy(weights))
            derived.value = tidy(np.array([centre[j] - centre @ np.array(derived.weights)]), float(scale[j]))[0]
            derived.reason = f"an exact linear combination of {', '.join(used)}"
            deviation = np.abs(x[:, j] - Columns._exact(derived, x))
            rounding = 64 * precision * np.abs(x[:, [*kept, j]]).max(1)
            # An outlier alone can make columns look collinear: every row must agree, by the measure of the bulk.
            if (deviation <= 1e-6 * spread(x[:, j]) + rounding).all():
                derived.tolerance = 4 * float(deviation.max()) + 1e-6 * spread(x[:, j])
                columns[j] = derived
                continue
        kept.append(j)
        if size > 0:
            basis = np.column_stack([basis, residual / np.linalg.norm(residual)])


def tidy(values: Array, scale: float = 1.0) -> list[float]:
    """Numbers that miss a short decimal by a rounding error, as that decimal: 0.9999999999 is 1."""
    short = np.round(values, 6)
    return np.where(np.abs(values - short) <= 1e-8 * np.maximum(np.abs(values), scale), short, values).tolist()
