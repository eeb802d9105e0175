"""`ConditionalDensity`: a density of rows that knows the distribution of any variable given any others.

A row is a vector of floats: numbers as they are, classes as codes, NaN for a missing cell. Its log-density, with
respect to the product of counting and Lebesgue measures, is the sum over variables of the log of a conditional
probability (classes, missingness, values on a grid, repeated values) or density (other numbers).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from flowlab.tables.mixed.distributions import NumberDistribution, choose, uniform_from
from flowlab.tables.mixed.heads import quantile
from flowlab.tables.mixed.marginal_cdf import MarginalCDF
from flowlab.tables.mixed.networks import CODE, FIELDS, LOG_SLOPE, LOW, MISSING, WIDTH, Z, fields_of
from flowlab.tables.schema.levels import UNKNOWN


class RowDensity(nn.Module):
    """What the densities of a table's rows have in common beside `log_prob`, `sample` and `to_normal`."""

    has_rsample = False
    context_features = 0
    features: int

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the rows."""
        return torch.float64

    @property
    def support(self) -> constraints.Constraint:
        """Rows are vectors; `log_prob` is -inf for those that cannot occur."""
        return constraints.real_vector


class ConditionalDensity(RowDensity):
    """Base class: a subclass says what the distribution of a variable is, given what has been observed of rows.

    What has been observed is any object of the subclass (`observe`), to which one variable after another is added
    (`reveal`). Everything else follows: draws, draws under conditions, noise.

    Attributes:
        features: Number of variables.
        columns: The column of each variable; a column's variables are adjacent (dates have two).
        classes: Number of classes of each variable, 0 for numbers.
        nullable: Whether each variable can be missing; a column's variables are missing together.
        order: The main order of the columns, their own when None.
    """

    columns: list[int]
    classes: list[int]
    nullable: list[bool]
    order: Sequence[int] | None

    # What a subclass defines ------------------------------------------------------------------------------------------

    def marginals(self) -> dict[int, MarginalCDF]:
        """The marginal distribution function of each numeric variable."""
        raise NotImplementedError

    def log_probs(self, cells: Tensor) -> Tensor:
        """Log-probability or log-density (features, n) of each variable given those before it in the main order.

        Args:
            cells: Rows as `cells` returns them. Cells to be ignored are not seen, and their own terms are 0.
        """
        raise NotImplementedError

    def observe(self, x: Tensor, known: Tensor) -> Any:
        """What conditional distributions see of rows (n, features) whose cells are `known` (n, features)."""
        raise NotImplementedError

    def reveal(self, seen: Any, variable: int, place: Tensor, missing: Tensor, where: Tensor | None = None) -> None:
        """Add one variable's cells to what has been observed.

        Args:
            seen: What has been observed.
            variable: The variable.
            place: Codes of a class (n,), or the normal quantiles of a number's cells (`Cell.middle`).
            missing: Which cells are missing (n,).
            where: Rows (n,) to change; all when None.
        """
        raise NotImplementedError

    def class_log_prob(self, variable: int, seen: Any) -> Tensor:
        """Log-probabilities (outcomes, n) of a class variable given what has been observed; missing is the last one."""
        raise NotImplementedError

    def number(self, variable: int, seen: Any) -> NumberDistribution:
        """The distribution of a number given what has been observed."""
        raise NotImplementedError

    # What follows -----------------------------------------------------------------------------------------------------

    def says_missing(self, variable: int) -> bool:
        """Whether a variable decides whether its column is missing."""
        return self.nullable[variable] and (variable == 0 or self.columns[variable - 1] != self.columns[variable])

    def in_order(self) -> list[int]:
        """The variables in the main order of their columns."""
        order = range(max(self.columns) + 1) if self.order is None else self.order
        rank = {column: i for i, column in enumerate(order)}
        return sorted(range(len(self.columns)), key=lambda j: rank[self.columns[j]])

    @torch.no_grad()
    def cells(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """Rows (n, features) as `log_probs` takes them, (n, FIELDS · features).

        The fields of a variable are its class (0 for numbers), whether it is missing, the normal quantile that other
        variables' networks see, and interval and log-slope of its `MarginalCDF`. CODE is -1 for cells to be ignored:
        those that are not `known` (n, features), NaN in variables that cannot be missing, and unknown classes.
        """
        fields = torch.stack([self.variable_fields(j, x[:, j]) for j in range(self.features)], 1)
        absent = torch.isnan(x.T) & ~torch.tensor(self.nullable, device=x.device).unsqueeze(-1)
        if known is not None:
            absent |= ~known.T
        fields[CODE] = torch.where(absent, -1.0, fields[CODE])
        return fields.flatten(0, 1).T.contiguous()

    def variable_fields(self, variable: int, values: Tensor) -> Tensor:
        """The fields (FIELDS, n) of one variable's values (n,)."""
        marginal = self.marginals().get(variable)
        out = values.new_zeros(FIELDS, len(values))
        missing = torch.isnan(values)
        if marginal is None:
            code = torch.where(missing, float(self.classes[variable]), values)
            none = ~missing & (code != UNKNOWN) & ((code < 0) | (code >= self.classes[variable]))
            out[CODE] = torch.where(none, 0.0, code)
            out[LOG_SLOPE] = torch.where(none, -math.inf, 0.0)
            return out
        cell = marginal.cell(torch.where(missing, 0.0, values))
        high = (cell.low + cell.width).clamp(max=1)
        parts = [cell.middle, cell.low, cell.width, quantile(cell.low), quantile(high), cell.log_slope]
        out[MISSING] = missing.to(values)
        out[Z:] = torch.where(missing, 0.0, torch.stack(parts))
        return out

    def place(self, variable: int, values: Tensor) -> Tensor:
        """What `reveal` takes for a variable's values (n,): codes, or the normal quantiles of their cells."""
        missing, marginal = torch.isnan(values), self.marginals().get(variable)
        if marginal is None:
            return torch.where(missing, self.classes[variable], values)
        return torch.where(missing, 0, marginal.cell(torch.where(missing, 0, values)).middle)

    def tell(self, seen: Any, variable: int, values: Tensor, where: Tensor | None = None) -> None:
        """Add one variable's values (n,), NaN where missing, to what has been observed."""
        if where is not None:  # what is not to be told may be anything
            values = torch.where(where, values, 0)
        self.reveal(seen, variable, self.place(variable, values), torch.isnan(values), where)

    def log_prob(self, x: Tensor, context: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """Log-density of rows (*batch, features), nats.

        Cells that are not `known` (of x's shape), and NaN in columns that cannot be missing, are ignored: the result is
        the density of the other cells. Of a class of code `UNKNOWN` it is only said that it is there, not what it is.
        """
        rows = x.reshape(x.shape[:-1].numel(), self.features).double()
        known = torch.ones_like(rows, dtype=torch.bool) if known is None else known.reshape(rows.shape)
        cells = self.cells(rows, known)
        log_prob = self.log_probs(cells).sum(0).double() + self._log_there(rows, known, cells)
        return log_prob.view(x.shape[:-1])

    def _log_there(self, rows: Tensor, known: Tensor, cells: Tensor) -> Tensor:
        """Log-probability (n,) that classes of code `UNKNOWN` are there, each given the known cells before it."""
        total, order = rows.new_zeros(len(rows)), self.in_order()
        seen = fields_of(cells, self.features)[CODE].T > UNKNOWN / 2
        for i, variable in enumerate(order):
            where = known[:, variable] & (rows[:, variable] == UNKNOWN)
            if self.classes[variable] and self.nullable[variable] and bool(where.any()):
                before = torch.zeros_like(seen[where])
                before[:, order[:i]] = seen[where][:, order[:i]]
                log_p = self.class_log_prob(variable, self.observe(rows[where], before))
                total[where] += log_p[: self.classes[variable]].logsumexp(0)
        return total

    @torch.no_grad()
    def sample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Rows (*shape, features); numbers lie within the range of the training rows."""
        device = next(self.buffers()).device
        x = torch.full((math.prod(shape), self.features), math.nan, dtype=torch.float64, device=device)
        known = torch.zeros_like(x, dtype=torch.bool)
        return self.fill(x, known, generator=generator).view(*shape, self.features)

    @torch.no_grad()
    def fill(
        self,
        x: Tensor,
        known: Tensor,
        missing: bool = True,
        generator: torch.Generator | None = None,
        variables: Sequence[int] | None = None,
    ) -> Tensor:
        """Draw the unknown cells of rows (n, features) given the known ones.

        Args:
            x: The rows; unknown cells may hold anything.
            known: Mask of the known cells, of x's shape.
            missing: Whether a drawn cell may be missing.
            generator: Source of the draws.
            variables: The variables to draw, all when None.
        """
        x, seen = x.clone(), self.observe(x, known)
        for variable in [j for j in self.in_order() if variables is None or j in variables]:
            wanted = ~known[:, variable]
            if bool(wanted.any()):
                drawn, place = self.draw(variable, seen, x, missing=missing, generator=generator)
                x[:, variable] = torch.where(wanted, drawn, x[:, variable])
                self.reveal(seen, variable, place, torch.isnan(drawn), wanted)
        return x

    def draw(
        self,
        variable: int,
        seen: Any,
        x: Tensor,
        *,
        missing: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw one variable (n,) of rows x (n, features); return the draws and what `reveal` takes of them.

        Args:
            variable: The variable.
            seen: What has been observed.
            x: The rows.
            missing: Whether a draw may be missing.
            generator: Source of the draws.

        Returns:
            The draws (n,), and their codes or normal quantiles (n,).
        """
        marginal, uniform = self.marginals().get(variable), uniform_from(generator, x.device)
        if marginal is None:
            probability = self.class_log_prob(variable, seen).exp()
            if not missing:
                probability = probability[: self.classes[variable]]
            code = choose(probability, uniform(len(x))).double()
            return torch.where(code == self.classes[variable], math.nan, code), code
        number = self.number(variable, seen)
        low, high = (end.expand(len(x)) for end in marginal.seen)
        value, middle = marginal.value_and_middle(number.draw_between(low, high, uniform))
        gone = torch.zeros_like(value, dtype=torch.bool)
        if missing and self.nullable[variable]:
            first = self.says_missing(variable)
            gone = uniform(len(x)) < number.missing if first else torch.isnan(x[:, variable - 1])
        return torch.where(gone, math.nan, value), torch.where(gone, 0, middle)

    def draw_within(
        self,
        variable: int,
        seen: Any,
        allowed: Sequence[tuple[float, float]],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw one variable (n,) within intervals; return the draws and the log-probability (n,) of the intervals.

        Args:
            variable: The variable.
            seen: What has been observed.
            allowed: Closed intervals of numbers, or of codes.
            generator: Source of the draws.
        """
        marginal = self.marginals().get(variable)
        device = next(self.buffers()).device
        uniform = uniform_from(generator, device)
        if marginal is None:
            log_p = self.class_log_prob(variable, seen)
            codes = torch.arange(len(log_p), device=device)
            inside = torch.stack([(codes >= low) & (codes <= high) for low, high in allowed]).any(0)
            probability = torch.where(inside.unsqueeze(-1), log_p.exp(), 0)
            code = choose(probability, uniform(log_p.shape[1]))
            return torch.where(code == self.classes[variable], math.nan, code.double()), probability.sum(0).log()
        number = self.number(variable, seen)
        n = len(number.missing)
        ends = torch.tensor(list(allowed), dtype=torch.float64, device=device)
        open_ = torch.isinf(ends)
        first, last = (marginal.cell(end) for end in torch.where(open_, 0, ends).unbind(-1))
        low = torch.where(open_[:, 0], 0, first.low).unsqueeze(-1).expand(-1, n)
        high = torch.where(open_[:, 1], 1, (last.low + last.width).clamp(max=1)).unsqueeze(-1).expand(-1, n)
        mass = (number.cdf(high) - number.cdf(low)).clamp(min=0)
        k = choose(mass, uniform(n)).unsqueeze(0)
        rank = number.draw_between(low.gather(0, k)[0], high.gather(0, k)[0], uniform)
        # Rounding may have moved values out of the interval.
        value = torch.minimum(torch.maximum(marginal.value(rank), ends[k[0], 0]), ends[k[0], 1])
        log_mass = mass.sum(0).log()
        if self.says_missing(variable):
            log_mass = log_mass + number.log_present
        return value, log_mass

    @torch.no_grad()
    def to_normal(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise (n, features) of rows, by each variable's conditional distribution function.

        Outcomes with a probability are spread over their intervals at random (Dunn & Smyth 1996, "Randomized quantile
        residuals").
        """
        known = ~(torch.isnan(x) & ~torch.tensor(self.nullable, device=x.device))
        noise, seen = torch.empty_like(x), self.observe(x, torch.zeros_like(known))
        for variable in self.in_order():
            low, width = self._interval(variable, seen, x[:, variable])
            spread = torch.rand(len(x), dtype=torch.float64, device=x.device, generator=generator)
            level = torch.where(known[:, variable], low + spread * width, spread)
            noise[:, variable] = quantile(level.clamp(1e-12, 1 - 1e-12))
            new = (x[:, variable] == UNKNOWN) & (self.classes[variable] > 0)
            self.tell(seen, variable, x[:, variable], known[:, variable] & ~new)
        return noise

    def _interval(self, variable: int, seen: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        """The intervals in [0, 1] of values (n,) under a variable's conditional distribution: lower ends and widths."""
        gone, fields = torch.isnan(values), self.variable_fields(variable, values)
        if self.classes[variable]:
            probability = self.class_log_prob(variable, seen).exp()
            code = fields[CODE].clamp(min=0).long().unsqueeze(0)
            width = probability.gather(0, code)[0]
            low = probability.cumsum(0).gather(0, code)[0] - width
            there = probability[: self.classes[variable]].sum(0)  # of any class
            new = values == UNKNOWN
            return torch.where(new, 0, low), torch.where(new, there, width)
        number = self.number(variable, seen)
        share = number.missing if self.says_missing(variable) else torch.zeros_like(values)
        low, high = number.cdf(fields[LOW]), number.cdf((fields[LOW] + fields[WIDTH]).clamp(max=1))
        low, width = (1 - share) * low, (1 - share) * (high - low)
        if not self.says_missing(variable):  # the column's first variable decides, this one adds nothing
            return torch.where(gone, 0, low), torch.where(gone, 1, width)
        return torch.where(gone, 1 - share, low), torch.where(gone, share, width)
