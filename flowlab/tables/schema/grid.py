"""How the values of a column of numbers lie: constant, on a decimal grid, repeated off any grid, or continuous.

`learn_column` decides this while a schema is inferred. The rest is arithmetic of grids, and checks of numbers that
double precision cannot resolve.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
FINE = 1e-6  # width of a grid cell, in standard deviations, from which its probability has digits enough
REPEATS = 0.05  # share of rows repeating another's value from which a column counts as tied
ON_GRID = 0.95  # share of rows on a decimal grid that makes the grid the column's resolution
ATOM = 0.01  # share of rows with one value that makes it an atom, off any grid
ATOM_WIDTH = 1e-4  # width of an atom's cell in standard deviations
CHANCE = 1e-6  # probability of values to be multiples of a step by chance, up to which they are so by design
DISTINCT = 20  # values that tell steps such as 0.05 from 0.01
FAR_FROM_ZERO = 1e11  # size, in grid cells, from which a float64 cannot resolve positions within a cell
SCALES = (1e-100, 1e100)  # spreads of columns whose squares a float64 holds with all digits
DIGITS = (1e-304, 1e300)  # sizes of numbers that a float64 holds with all digits, sums of them too
RESCALE = "multiply the column by a power of ten that brings it near 1"
OUTLIER = 1e16  # distance from the median, in spreads, at which a float64 keeps no digit of the spread


@dataclass
class Column:
    """How one column of complete numbers is treated: a step of inference, and the view in `FlowDensity.columns_`.

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
        lower: Lower end of the support, None for none: rows below it have no density, and are not drawn.
        upper: Upper end of the support, likewise.
        least: Smallest value in training, None where it is not known (a model file of an early version).
        most: Largest value in training.
        offset: What is subtracted from large values on a grid, in whole cells.
        decimals: Step of the decimals of a continuous column's values, to which draws are rounded; 0 for none.
    """

    name: str
    kind: str = "continuous"
    reason: str = "values do not repeat"
    resolution: float = 0.0
    atoms: list[float] = field(default_factory=list)
    value: float = 0.0
    weights: list[float] = field(default_factory=list)
    tolerance: float = 0.0
    lower: float | None = None
    upper: float | None = None
    least: float | None = None
    most: float | None = None
    offset: float = 0.0
    decimals: float = 0.0

    @property
    def modelled(self) -> bool:
        """Whether the flow sees this column."""
        return self.kind in ("continuous", "grid", "atoms")

    def supports(self, values: Array, slack: float = 0.0) -> NDArray[np.bool_]:
        """Which values lie within the support."""
        lower, upper = -np.inf if self.lower is None else self.lower, np.inf if self.upper is None else self.upper
        return (values >= lower - slack) & (values <= upper + slack)


def learn_column(x: Array, name: str, precision: float, finest: float = 0.0) -> Column:
    """Kind and resolution of one column, by its own values.

    Args:
        x: The values (n,).
        name: The column's name.
        precision: Relative rounding error of the values.
        finest: Width of a cell, in standard deviations, below which a grid is only the decimals that values have.
    """
    if (x == np.round(x)).all() and np.abs(x).max() < 2**53:
        precision = 0.0  # whole numbers carry no rounding errors
    rounding = 8 * precision * np.abs(x)
    if float(np.ptp(x)) <= rounding.max():
        tolerance = 2 * float(rounding.max())
        return Column(name, "constant", "all values are equal", value=float(np.median(x)), tolerance=tolerance)
    values, counts = np.unique(x, return_counts=True)
    if len(values) > (1 - REPEATS) * len(x):
        return Column(name, decimals=common_decimals(x, rounding))
    resolution = decimal_grid(x, rounding)
    if resolution and resolution >= finest * spread(x):
        reason = f"{len(values)} distinct values, multiples of {resolution:g}"
        return Column(name, "grid", reason, resolution, offset=offset_of(x, resolution))
    frequent = counts >= max(ATOM * len(x), 2)
    atoms = values[frequent]
    if 0 < len(atoms) <= 50:
        width = ATOM_WIDTH * spread(x)
        share = float(counts[frequent].sum() / len(x))
        reason = f"{share:.0%} of rows are on {len(atoms)} repeated values"
        return Column(name, "atoms", reason, width, atoms.tolist(), decimals=common_decimals(x, rounding))
    # Ties, none of them frequent, off any grid or on too fine a one: cells as wide as the smallest gap keep every value
    # apart.
    decimals, gap = common_decimals(x, rounding), float(np.diff(values).min())
    reason = f"values repeat, multiples of {decimals:g}" if decimals else "values repeat off any decimal grid"
    return Column(name, "atoms", reason, gap, values[counts > 1][:1000].tolist(), decimals=decimals)


def spread(x: Array) -> float:
    """A robust standard deviation, from the narrowest pair of quantiles that differ."""
    for share, sigmas in ((0.25, 1.35), (0.1, 2.56), (0.02, 4.11)):
        low, high = np.quantile(x, [share, 1 - share])
        if high > low:
            return float(high / sigmas - low / sigmas)
    largest = float(np.abs(x).max()) or 1.0  # squares must not overflow
    return float((x / largest).std() * largest)


def decimal_grid(x: Array, rounding: Array) -> float:
    """The coarsest power of ten of which nearly all values are multiples, 0 if there is none."""
    for decimals in range(-9, 13):
        step = 10.0**-decimals
        if step < 100 * np.median(rounding):
            return 0.0
        off = np.abs(x - np.round(x / step) * step)
        if step <= np.ptp(x) and np.mean(off <= np.maximum(rounding, 1e-6 * min(step, 1.0))) >= ON_GRID:
            return step
    return 0.0


def common_decimals(x: Array, rounding: Array) -> float:
    """The step of which all values are multiples: the cents of prices, or five cents; 0 if there is none.

    Numbers so large that rounding errors are nearly as wide as a step are multiples of it by chance: together the
    values must be unlikely to be so.

    Args:
        x: The values (n,).
        rounding: Their rounding errors (n,) if they were computed; values as they are read have a fifteenth.
    """
    values, first = np.unique(x, return_index=True)
    few = slice(None, None, max(len(values) // 100, 1))  # which spare most of the work
    for step in [10.0**-decimals for decimals in range(-9, 13) if 10.0**-decimals <= np.ptp(x)]:
        for error in (rounding[first], rounding[first] / 15):
            allowed = np.maximum(error, 1e-6 * min(step, 1.0))
            # What is nearly nothing is a number of its own, unless sums of numbers like the others leave as much.
            allowed = np.where(np.abs(values) < step / 2, np.maximum(error, np.median(error)), allowed)
            if not _multiples(values[few], step, allowed[few]):
                continue
            with np.errstate(divide="ignore"):  # among whole numbers a zero is exact: it is no chance
                chance = np.log(np.minimum(2 * allowed / step, 1.0)).sum()
            if chance <= math.log(CHANCE) and _multiples(values, step, allowed):
                return _coarser(values, step)
    return 0.0


def _multiples(x: Array, step: float, allowed: Array) -> bool:
    return bool((np.abs(x - on_grid(x, step)) <= allowed).all())


def _coarser(values: Array, step: float) -> float:
    """The coarsest fraction 1 / integer of which distinct multiples of 1 / 10ⁿ are multiples, too."""
    if step >= 1 or len(values) < DISTINCT:
        return step
    scale = round(1 / step)
    counts = np.round(values * scale)
    counts = counts[np.abs(counts) < 2**53]
    return float(np.gcd.reduce(counts.astype(np.int64), initial=scale) / scale)


def offset_of(x: Array, resolution: float) -> float:
    """What to subtract from values on a grid so that a float64 resolves positions within a cell; 0 if not needed."""
    largest = np.abs(x).max()
    if largest <= FAR_FROM_ZERO * resolution:
        return 0.0
    offset = float(on_grid(np.median(x), resolution))
    return offset if np.abs(x - offset).max() < largest / 1000 else 0.0


def check_size(x: Array, name: Any, labels: Any) -> None:
    """Raise a ValueError for numbers so large or small that double precision loses digits; `labels` name the rows."""
    row = int(np.abs(x).argmax())
    size = abs(x[row])
    if x.min() < x.max() and not DIGITS[0] <= size <= DIGITS[1]:
        raise ValueError(
            f"column {name!r} holds values of size {size:g}, the largest in row {labels[row : row + 1].tolist()[0]!r}, "
            f"where double precision fails: make cells missing that stand for missing values, or {RESCALE}"
        )


def check_scale(x: Array, name: Any, labels: Any = None) -> None:
    """Raise a ValueError for a column that no double-precision density can model; `labels` name the rows."""
    middle, width = float(np.median(x)), spread(x)
    far = np.abs(x - middle)
    row = int(far.argmax())
    if not width:
        return
    if far[row] > OUTLIER * width:
        label = row if labels is None else labels[row : row + 1].tolist()[0]
        raise ValueError(
            f"column {name!r} holds {x[row]:g} in row {label!r}, {far[row] / width:.0e} times further out than the "
            "bulk of its values is wide: no double-precision density tells both apart. If it stands for a missing "
            "value, make the cell missing; if it is an error, drop the row; if it is real, model the logarithm of the "
            "column"
        )
    if not SCALES[0] < width < SCALES[1] or not np.abs(x).max() < SCALES[1]:
        raise ValueError(
            f"column {name!r} holds values of size {np.abs(x).max():g} that spread by {width:g}, where double "
            f"precision fails: {RESCALE}"
        )


def on_grid(values: Any, step: float) -> Any:
    """Values rounded to multiples of a power of ten, as the nearest floating-point numbers."""
    if step >= 1:
        return np.round(values / step) * step
    scale = round(1 / step)
    return np.round(values * scale) / scale
