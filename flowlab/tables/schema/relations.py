"""Columns of a numeric table <-> the numbers that a flow models: constants and exactly collinear columns are taken out and put back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowlab.tables.schema.grid import Array, Column, check_scale, check_size, learn_column, on_grid, spread

EXACT = 1e-9  # relative residual below which a column is a linear combination of others


class Columns:
    """The columns of a table as `FlowDensity` treats them: learnt once, printed by `summary()`, kept in files."""

    def __init__(self, columns: list[Column]) -> None:
        self.columns = columns
        self.modelled = [j for j, column in enumerate(columns) if column.modelled]

    @classmethod
    def learn(cls, x: Array, names: list[str], precision: float = 1e-15) -> "Columns":
        """Look at a table (rows, columns) whose values carry relative rounding errors of `precision`.

        Raises:
            ValueError: A column's values are too far apart, too large or too small for a density; the message names it.
        """
        for name, values in zip(names, x.T, strict=True):
            check_size(values, name)
        columns = [learn_column(x[:, j], name, precision) for j, name in enumerate(names)]
        for column, values in zip(columns, x.T, strict=True):
            column.least, column.most = float(values.min()), float(values.max())
        mark_derived(x, columns, precision)
        for column, values in zip(columns, x.T, strict=True):
            if column.modelled:
                check_scale(values, column.name)
        return cls(columns)

    @property
    def bounded(self) -> bool:
        """Whether some column has an end of its support."""
        return any(column.lower is not None or column.upper is not None for column in self.columns)

    def encode(self, x: Array, generator: np.random.Generator | None = None) -> Array:
        """The modelled columns (rows, modelled), dequantised where a generator is given."""
        out = x[:, self.modelled] - np.array([self.columns[j].offset for j in self.modelled])
        if generator is None:
            return out
        for k, j in enumerate(self.modelled):
            column = self.columns[j]
            if column.resolution:
                noise = (generator.random(len(x)) - 0.5) * column.resolution
                tied = True if column.kind == "grid" else np.isin(x[:, j], column.atoms)
                out[:, k] += np.where(tied, noise, 0.0)
        return out

    def possible(self, x: Array) -> NDArray[np.bool_]:
        """Which rows lie within every column's support, with the values that constant and derived columns must have.

        Elsewhere the density is zero.
        """
        ok = np.ones(len(x), dtype=bool)
        for j, column in enumerate(self.columns):
            ok &= column.supports(x[:, j], 0.0 if column.modelled else column.tolerance)
            if not column.modelled:
                ok &= np.abs(x[:, j] - self._exact(column, x)) <= column.tolerance
        return ok

    def supported(self, table: Array) -> NDArray[np.bool_]:
        """Which rows of a decoded table lie within every column's support, to the last digit."""
        return np.all([column.supports(table[:, j]) for j, column in enumerate(self.columns)], axis=0)

    def excess(self, table: Array, asked: Mapping[int, Sequence[tuple[float, float]]] | None = None) -> Array:
        """How far each row of a decoded table lies beyond the training rows' range, in widths of it: 0 for rows within.

        Args:
            table: The rows (n, columns).
            asked: Intervals that columns are asked to lie in; the range of a column does not count if all of its intervals lie beyond.
        """
        worst = np.zeros(len(table))
        for j, column in enumerate(self.columns):
            if column.least is None or column.most is None or column.kind == "constant":
                continue
            if asked and j in asked and all(high < column.least or low > column.most for low, high in asked[j]):
                continue
            beyond = np.maximum(column.least - table[:, j], table[:, j] - column.most) - column.tolerance
            worst = np.maximum(worst, beyond / (column.most - column.least))
        return worst

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
        return out + 0.0  # no negative zeros

    @staticmethod
    def _exact(column: Column, x: Array) -> Array:
        used = [j for j, weight in enumerate(column.weights) if weight]
        weights = np.array([column.weights[j] for j in used])
        return column.value + x[:, used] @ weights if used else np.full(len(x), column.value)

    @staticmethod
    def _snap(column: Column, values: Array) -> Array:
        if column.kind == "grid":
            return on_grid(values, column.resolution) + column.offset
        if column.kind == "atoms":
            atoms = np.array(column.atoms)
            nearest = atoms[np.abs(values[:, None] - atoms).argmin(1)]
            return np.where(np.abs(values - nearest) <= column.resolution / 2, nearest, values)
        return on_grid(values, column.decimals) if column.decimals else values

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(column) for column in self.columns]


def mark_derived(x: Array, columns: list[Column], precision: float) -> None:
    """Mark each column that is an exact linear combination of earlier modelled ones.

    With few rows everything is collinear: a column is only called derived where there are at least three rows per
    coefficient and ten to spare.
    """
    # By the largest deviation, which no square has made overflow or vanish.
    centre = (x / len(x)).sum(0)
    scale = np.array([np.abs(column - middle).max() or 1.0 for column, middle in zip(x.T, centre)])
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
            derived = replace(column, kind="derived", weights=tidy(weights), offset=0.0, decimals=0.0)
            derived.value = tidy(np.array([centre[j] - centre @ np.array(derived.weights)]), float(scale[j]))[0]
            derived.reason = f"an exact linear combination of {', '.join(used)}"
            deviation = np.abs(x[:, j] - Columns._exact(derived, x))
            rounding = 64 * precision * (np.abs(x) @ np.abs(derived.weights) + np.abs(x[:, j]) + abs(derived.value))
            # An outlier alone can make columns look collinear: every row must agree, by the measure of the bulk.
            if (deviation <= 1e-6 * spread(x[:, j]) + rounding).all():
                derived.tolerance = 4 * float(deviation.max()) + 1e-6 * spread(x[:, j])
                columns[j] = derived
                continue
        kept.append(j)
        if size > 0:
            basis = np.column_stack([basis, residual / np.linalg.norm(residual)])


def tidy(values: Array, scale: float = 0.0) -> list[float]:
    """Numbers that miss a short decimal by a rounding error, as that decimal: 0.9999999999 is 1.

    Args:
        values: The numbers.
        scale: The size beside which an error is small, where that is not the number's own.
    """
    found = []
    for value in values.tolist():
        near = 1e-8 * max(abs(value), scale)
        shorts = (round(value, 6), float(f"{value:.6g}"))
        found.append(next((short for short in shorts if abs(value - short) <= near), value))
    return found
