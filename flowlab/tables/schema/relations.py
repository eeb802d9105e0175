"""Exact linear relations between columns of numbers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flowlab.tables.schema.column import NUMERIC, ColumnSchema
from flowlab.tables.schema.grid import Array, Column, spread

EXACT = 1e-9  # relative residual below which a column is a linear combination of others


class Columns:
    """A view of the schema of a table of complete numbers: `FlowDensity.columns_`.

    Attributes:
        columns: One `Column` each.
        modelled: The positions of the modelled ones.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = list(columns)
        self.modelled = [j for j, column in enumerate(self.columns) if column.modelled]

    @classmethod
    def of(cls, schema: Sequence[ColumnSchema]) -> "Columns":
        """The view of a schema's columns."""
        names = [column.name for column in schema]
        return cls([as_column(column, names) for column in schema])


def as_column(own: ColumnSchema, names: Sequence[Any]) -> Column:
    """The view of one column of a schema; coefficients are in the order of `names`."""
    kind = own.kind if own.kind in ("constant", "derived") else "continuous"
    weights = dict(zip(own.sources, own.weights, strict=True))
    if own.kind == "duplicate":
        kind, weights = "derived", {own.duplicate_of: 1.0}
    elif own.kind in NUMERIC and (own.step or own.atoms):
        kind = "grid" if own.step else "atoms"
    lower, upper = (None if kind == "constant" or end is None else float(end) for end in (own.lower, own.upper))
    least, most = own.seen or (None, None)
    return Column(
        str(own.name),
        kind,
        own.reason,
        resolution=own.atom_width if kind == "atoms" else own.step,
        atoms=list(own.atoms),
        value=float(own.value or 0.0) if kind in ("constant", "derived") else 0.0,
        weights=[weights.get(name, 0.0) for name in names] if weights else [],
        tolerance=own.tolerance,
        lower=lower,
        upper=upper,
        least=least,
        most=most,
        offset=own.offset,
        decimals=own.decimals,
    )


def exact_values(column: Column, x: Array) -> Array:
    """The values (n,) of a constant or derived column beside the others (n, columns)."""
    used = [j for j, weight in enumerate(column.weights) if weight]
    weights = np.array([column.weights[j] for j in used])
    return column.value + x[:, used] @ weights if used else np.full(len(x), column.value)


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
            deviation = np.abs(x[:, j] - exact_values(derived, x))
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
