"""`JointDensity`: flows of complete numbers as a density of a table's rows, in the measure of all tables.

Flows know densities only. What repeats in a table – values on a grid, and single repeated ones – has a probability: it
is spread uniformly over a cell before flows see it (dequantisation: Uria, Murray & Larochelle 2013, "RNADE"; Theis, van
den Oord & Bethge 2016, "A note on the evaluation of generative models"), and a cell's probability is the density at its
value times its width.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowlab.mixture import FlowMixture
from flowlab.registry import register
from flowlab.tables.codec.columns import Variable
from flowlab.tables.codec.table import Table
from flowlab.tables.frames.validation import numpy_dtype
from flowlab.tables.mixed.conditional_density import RowDensity
from flowlab.tables.schema.grid import FINE

Array = NDArray[np.float64]
LEAST = 0.001  # share of draws within the supports below which sampling gives up
DRAWS = 2_000  # least draws at once where some lie outside
ROUNDS = 10  # of draws, at most, by which the probability of the supports is estimated
ERROR = 0.002  # standard error at which the estimate stops, nats
NEAR = 0.05  # least share of draws within the range of the training rows, which is widened to hold it


@register
class Cells(nn.Module):
    """The cells of a table's numbers: between values and points that are spread uniformly over their cells.

    Args:
        atoms: Number of repeated values of each variable that is on no grid.
    """

    steps: Tensor
    widths: Tensor
    log_tied: Tensor
    log_other: Tensor
    values: Tensor

    def __init__(self, atoms: Sequence[int]) -> None:
        super().__init__()
        self.atoms = list(atoms)
        each = torch.zeros(len(self.atoms), dtype=torch.float64)
        self.register_buffer("steps", each.clone())  # of a grid, 0 for none
        self.register_buffer("widths", each.clone())  # of the cells around repeated values
        self.register_buffer("log_tied", each.clone())  # log-ratio of probability and density
        self.register_buffer("log_other", each.clone())  # the same of values in no such cell
        self.register_buffer("values", torch.zeros(sum(self.atoms), dtype=torch.float64))  # repeated ones, sorted
        self.register_load_state_dict_post_hook(_check)

    @classmethod
    def of(cls, variables: Sequence[Variable], matrix: Array | None = None) -> "Cells":
        """The cells of variables.

        Args:
            variables: The variables, all numbers.
            matrix: The training rows (n, variables). Values on a grid too fine for probabilities then have densities
                unless they repeat, and a coarse grid's share of the rows counts; None in early files.
        """
        found = [_cells(variable, None if matrix is None else matrix[:, k]) for k, variable in enumerate(variables)]
        cells = cls([len(atoms) for *_, atoms in found])
        for k, (step, width, log_tied, log_other, _) in enumerate(found):
            cells.steps[k], cells.widths[k], cells.log_tied[k], cells.log_other[k] = step, width, log_tied, log_other
        cells.values.copy_(torch.tensor([value for *_, atoms in found for value in atoms], dtype=torch.float64))
        return cells

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The value (n, features) of the nearest cell, and whether each number lies in it."""
        near, inside = x.clone(), torch.zeros_like(x, dtype=torch.bool)
        for k, values in enumerate(self.values.split(self.atoms)):
            step = self.steps[k]
            if step > 0:
                inside[:, k] = True
                if step >= 1:
                    near[:, k] = (x[:, k] / step).round() * step
                else:  # as the nearest floating-point numbers: 0.1 has no exact multiple
                    scale = (1 / step).round()
                    near[:, k] = (x[:, k] * scale).round() / scale
            elif len(values):
                place = torch.searchsorted(values, x[:, k].contiguous()).clamp(max=len(values) - 1)
                below = values[(place - 1).clamp(min=0)]
                value = torch.where((x[:, k] - below).abs() < (values[place] - x[:, k]).abs(), below, values[place])
                inside[:, k] = (x[:, k] - value).abs() <= self.widths[k] / 2
                near[:, k] = torch.where(inside[:, k], value, x[:, k])
        return near, inside

    def quantized(self, x: Tensor) -> Tensor:
        """Points (n, features) as the values of the cells that they lie in."""
        return self._nearest(x)[0]

    def spread(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Values (n, features), those that have cells spread uniformly over these."""
        inside = self._nearest(x)[1]
        noise = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator) - 0.5
        return torch.where(inside, x + noise * (self.steps + self.widths), x)

    def log_width(self, x: Tensor) -> Tensor:
        """What to add (n,) to the log-density of values (n, features) for their log-probability, nats; 0 for NaN."""
        near, inside = self._nearest(x)
        tied = inside & ((x - near).abs() <= 1e-6 * (self.steps + self.widths))
        return torch.where(torch.isnan(x), 0, torch.where(tied, self.log_tied, self.log_other)).sum(-1)

    def has_cell(self, variable: int, value: float) -> bool:
        """Whether a value of a variable has a probability."""
        x = self.values.new_full((1, len(self.atoms)), value)
        return bool(self._nearest(x)[1][0, variable])

    def extra_repr(self) -> str:
        return f"{len(self.atoms)} variables"


def _cells(variable: Variable, x: Array | None) -> tuple[float, float, float, float, list[float]]:
    """Step, width of atoms' cells, log-widths of values in cells and of others, and the atoms of a variable."""
    resolution = variable.resolution
    if x is not None and 0 < resolution < FINE * float(x.std()):
        values, counts = np.unique(x, return_counts=True)
        return 0.0, resolution, math.log(resolution), 0.0, values[counts > 1].tolist()
    if not variable.step:
        width = variable.atom_width
        return 0.0, width, math.log(width) if width else 0.0, 0.0, sorted(variable.atoms) if width else []
    log_tied, log_other = math.log(variable.step), math.log(resolution or 1.0)
    if x is not None and variable.coarse:
        near = np.abs(x - np.round(x / variable.step) * variable.step) <= 1e-6 * variable.step
        share = (near.sum() + 0.5) / (len(x) + 1)
        return variable.step, 0.0, log_tied + math.log(share), log_other + math.log1p(-share), []
    return variable.step, 0.0, log_tied, log_other if variable.coarse else log_tied, []


def _check(cells: Cells, _: object) -> None:
    """Raise a ValueError unless tensors from a file are cells."""
    parts = [cells.steps, cells.widths, cells.log_tied, cells.log_other, cells.values]
    if not all(bool(torch.isfinite(part).all()) for part in parts) or bool((cells.steps < 0).any()):
        raise ValueError("the cells of a table's numbers are none")
    if bool((cells.widths < 0).any()) or any(bool((v.diff() <= 0).any()) for v in cells.values.split(cells.atoms)):
        raise ValueError("the repeated values of a table's numbers are not in order")


@register
class JointDensity(RowDensity):
    """Flows of dequantised numbers as a density of rows, within the supports of the columns.

    Args:
        flow: The density of dequantised rows.
        cells: The cells of the numbers.
        lower: Lower end of each variable's support, None for none.
        upper: Upper end of each variable's support, None for none.
    """

    log_mass: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self, flow: FlowMixture, cells: Cells, lower: Sequence[float | None], upper: Sequence[float | None]
    ) -> None:
        super().__init__()
        if not flow.features == len(cells.atoms) == len(lower) == len(upper):
            raise ValueError("flow, cells and supports must be about the same variables")
        self.flow, self.cells, self.lower, self.upper = flow, cells, list(lower), list(upper)
        self.features = flow.features
        ends = torch.full((self.features,), math.inf, dtype=torch.float64)
        self.register_buffer("log_mass", torch.zeros((), dtype=torch.float64))  # of the supports, under the flow
        self.register_buffer("low", -ends)  # the range of rows that users get
        self.register_buffer("high", ends)
        self.register_load_state_dict_post_hook(_check_ends)

    def supported(self, x: Tensor) -> Tensor:
        """Which rows (n, features) lie within the supports."""
        slack = 1e-6 * self.cells.steps
        ok = torch.isfinite(x)
        for ends, sign in ((self.lower, 1), (self.upper, -1)):
            limit = x.new_tensor([-sign * math.inf if end is None else end for end in ends])
            ok = ok & (sign * (x - limit) >= -slack)
        return ok.all(-1)

    def in_range(self, x: Tensor, but: Collection[int] = ()) -> Tensor:
        """Which rows (n, features) lie within the range of rows that users get, but for some variables."""
        asked = torch.tensor([j not in but for j in range(self.features)], device=x.device)
        return ((x >= self.low) & (x <= self.high) | ~asked).all(-1)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-probability, or log-density where numbers do not repeat, of rows (*batch, features), nats."""
        rows = x.reshape(-1, self.features)
        log_prob = self.flow.log_prob(rows) + self.cells.log_width(rows) - self.log_mass
        return torch.where(self.supported(rows), log_prob, -math.inf).view(x.shape[:-1])

    @torch.no_grad()
    def sample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Rows (*shape, features) within the supports.

        Raises:
            RuntimeError: Nearly all draws lie outside.
        """
        wanted, tried = math.prod(shape), 0
        kept: list[Tensor] = []
        lacking = wanted
        while lacking > 0 or not kept:
            rows = self.cells.quantized(self.flow.sample((max(lacking, DRAWS) if kept else wanted,), None, generator))
            tried += len(rows)
            kept.append(rows[self.supported(rows)])
            lacking -= len(kept[-1])
            if lacking > 0 and tried >= DRAWS and wanted - lacking < LEAST * tried:
                raise RuntimeError(f"only {wanted - lacking} of {tried} draws lie within the supports of the columns")
        return torch.cat(kept)[:wanted].view(*shape, self.features)

    @torch.no_grad()
    def to_normal(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise (n, features) of rows, their values spread over cells at random."""
        return self.flow.to_noise(self.cells.spread(x, generator), None, generator)

    def extra_repr(self) -> str:
        return f"{self.features} variables"


def _check_ends(density: JointDensity, _: object) -> None:
    """Raise a ValueError unless tensors from a file are a probability and a range."""
    if not -1e3 < float(density.log_mass) <= 0 or not bool((density.low <= density.high).all()):
        raise ValueError("the range of a table's numbers, or the probability of their supports, is none")


@dataclass(frozen=True)
class Numbers:
    """What is known of the variables of a table of complete numbers.

    Attributes:
        cells: Their cells.
        lower, upper: Ends of their supports, None for none.
        seen: Range of the training rows (2, variables), infinite where it is not known.
        limits: The least and the largest number that the columns' types can hold (2, variables).
    """

    cells: Cells
    lower: list[float | None]
    upper: list[float | None]
    seen: Tensor
    limits: Tensor

    @classmethod
    def of(cls, table: Table, matrix: Array | None = None) -> "Numbers":
        """The variables of a table; for the rows of its matrix see `Cells.of`."""
        supports = [[end if math.isfinite(end) else None for end in (v.lower, v.upper)] for v in table.variables]
        seen, limits = [], []
        for column in table.schema:
            if column.modelled:
                dtype = numpy_dtype(column.dtype)
                of_type: Any = np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype)
                ends = np.array([*(column.seen or (-np.inf, np.inf)), of_type.min, of_type.max], dtype=np.float64)
                seen.append(ends[:2] - column.offset)
                limits.append(ends[2:] - column.offset)
        lower, upper = zip(*supports, strict=True)
        ranges = [torch.from_numpy(np.array(ends).T.copy()) for ends in (seen, limits)]
        return cls(Cells.of(table.variables, matrix), list(lower), list(upper), *ranges)

    def density(self, flow: FlowMixture, log_mass: float = 0.0, reach: float = 0.0) -> JointDensity:
        """The density of rows by a flow of dequantised numbers.

        Args:
            flow: The flow.
            log_mass: Log of the probability that it gives to the supports.
            reach: How far beyond the range of the training rows draws may lie, in widths of that range.
        """
        density = JointDensity(flow, self.cells, self.lower, self.upper)
        density.log_mass.fill_(log_mass)
        beyond = reach * (self.seen[1] - self.seen[0]) if reach else 0.0
        density.low.copy_(torch.maximum(self.seen[0] - beyond, self.limits[0]))
        density.high.copy_(torch.minimum(self.seen[1] + beyond, self.limits[1]))
        return density

    def like(self, other: JointDensity, flow: FlowMixture) -> JointDensity:
        """The density of rows by a flow, with the probability of the supports and the range of another density."""
        density = self.density(flow, float(other.log_mass))
        density.low.copy_(other.low)
        density.high.copy_(other.high)
        return density

    @torch.no_grad()
    def measured(self, flow: FlowMixture, seed: int) -> JointDensity:
        """The same, with the probability of the supports and the reach of draws estimated from draws.

        The reach is 0 unless fewer than one draw in twenty lies within the range of the training rows.
        """
        generator, density, excess = torch.Generator().manual_seed(seed), self.density(flow), []
        low, high = self.seen
        kept = tried = 0
        for _ in range(ROUNDS):
            drawn = self.cells.quantized(flow.sample((DRAWS,), generator=generator))
            drawn = drawn[density.supported(drawn)]
            beyond = torch.maximum(low - drawn, drawn - high) / (high - low)
            excess.append(beyond.clamp(min=0).amax(-1))
            kept, tried = kept + len(drawn), tried + DRAWS
            if kept and math.sqrt((tried - kept) / (kept * tried)) <= ERROR:
                break
        reach = float(torch.cat(excess).quantile(NEAR)) if kept else 0.0
        return self.density(flow, math.log(max(kept, 1) / tried), reach)


def numbers_of(density: JointDensity, variables: Sequence[int]) -> Numbers:
    """What is known of some of the variables of a density of rows."""
    cells, chosen = density.cells, list(variables)
    atoms = cells.values.split(cells.atoms)
    part = Cells([cells.atoms[j] for j in chosen])
    for name in ("steps", "widths", "log_tied", "log_other"):
        part.get_buffer(name).copy_(cells.get_buffer(name)[chosen])
    part.values.copy_(torch.cat([atoms[j] for j in chosen]))
    seen = torch.stack([density.low, density.high])[:, chosen].cpu()
    return Numbers(part, [density.lower[j] for j in chosen], [density.upper[j] for j in chosen], seen, seen)
