"""`MixedFlow`: the density of rows of numbers, classes and missing cells, one conditional distribution per variable.

A row is a vector of floats: numbers as they are, classes as codes, NaN for a missing cell. Its log-density, with
respect to the product of counting and Lebesgue measures, is the sum over variables of the log of a conditional
probability (classes, missingness, values on a grid, repeated values) or density (other numbers).

One set of networks serves every order of the columns (Uria, Murray & Larochelle 2014, "A deep and tractable density
estimator"), so that any columns can be conditioned on and any others drawn or scored. Half of the training rows come in
one main order, in which rows are scored. This costs no measurable likelihood in that order, whereas training on random
orders only costs 0.3 to 2 nats per row.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from flowlab.registry import register
from flowlab.tables.mixed.heads import Head, quantile
from flowlab.tables.mixed.marginal_cdf import MarginalCDF
from flowlab.tables.mixed.networks import CODE, FIELDS, LOG_SLOPE, LOW, MISSING, WIDTH, ConditionalNetworks, Z


def choose(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw indices (n,) with probabilities proportional to weights (k, n), from uniform numbers (n,)."""
    through = weights.cumsum(0)
    return (through < uniform * through[-1]).sum(0).clamp(max=len(weights) - 1)


def check_variables(
    marginals: int,
    columns: Sequence[int],
    classes: Sequence[int],
    nullable: Sequence[bool],
    order: Sequence[int] | None,
) -> None:
    """Raise a ValueError if the lists that describe a `MixedFlow`'s variables are inconsistent."""
    if not columns or not len(columns) == len(classes) == len(nullable):
        raise ValueError(
            f"columns, classes and nullable must be as long, not {len(columns)}, {len(classes)}, {len(nullable)}"
        )
    if columns[0] != 0 or any(step not in (0, 1) for step in (b - a for a, b in pairwise(columns))):
        raise ValueError("columns must count from 0 without a gap, and a column's variables lie together")
    numbers = sum(k == 0 for k in classes)
    if marginals != numbers:
        raise ValueError(f"{numbers} variables are numbers, and there are {marginals} marginal distributions")
    if order is not None and sorted(order) != list(range(columns[-1] + 1)):
        raise ValueError(f"order must be a permutation of 0 … {columns[-1]}")


@register
class MixedFlow(nn.Module):
    """The density of rows with numbers, classes and missing cells, with the methods of a `Flow` but `rsample`.

    Args:
        ranks: The `MarginalCDF` of each numeric variable, in order.
        columns: The column of each variable; a column's variables are adjacent (dates have two).
        classes: Number of classes of each variable, 0 for numbers.
        nullable: Whether each variable can be missing; a column's variables are missing together.
        head: Distribution of numbers given other columns.
        hidden, blocks, dropout, order, generator: As for `ConditionalNetworks`.
    """

    has_rsample = False
    context_features = 0

    def __init__(
        self,
        ranks: Sequence[MarginalCDF],
        columns: Sequence[int],
        classes: Sequence[int],
        nullable: Sequence[bool],
        head: Head,
        hidden: int = 64,
        blocks: int = 1,
        dropout: float = 0.1,
        order: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_variables(len(ranks), columns, classes, nullable, order)
        self.ranks = nn.ModuleList(ranks)
        self.columns, self.classes, self.nullable = list(columns), list(classes), [bool(x) for x in nullable]
        self.head, self.hidden, self.blocks, self.dropout = head, hidden, blocks, dropout
        self.order = order
        self.features = len(self.columns)
        # For a class variable, missing is one more outcome.
        outcomes = [k + gone if k else 0 for k, gone in zip(self.classes, self.nullable, strict=True)]
        self.network = ConditionalNetworks(columns, outcomes, nullable, head, hidden, blocks, dropout, order, generator)

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the rows."""
        return torch.float64

    @property
    def support(self) -> constraints.Constraint:
        """Rows are vectors; `log_prob` is -inf for those that cannot occur."""
        return constraints.real_vector

    def marginals(self) -> dict[int, MarginalCDF]:
        """The marginal distribution function of each numeric variable."""
        return dict(zip(self.network.numbers, self.ranks, strict=True))  # type: ignore[arg-type]

    @torch.no_grad()
    def cells(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """Rows (n, features) as the network takes them, (n, FIELDS · features).

        The fields of a variable are its class (0 for numbers), whether it is missing, the normal quantile that other
        variables' networks see, and interval and log-slope of its `MarginalCDF`. CODE is -1 for cells to be ignored:
        those that are not `known` (n, features), and NaN in variables that cannot be missing.
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
            unknown = ~missing & ((code < 0) | (code >= self.classes[variable]))
            out[CODE] = torch.where(unknown, 0.0, code)
            out[LOG_SLOPE] = torch.where(unknown, -math.inf, 0.0)
            return out
        cell = marginal.cell(torch.where(missing, 0.0, values))
        high = (cell.low + cell.width).clamp(max=1)
        parts = [cell.middle, cell.low, cell.width, quantile(cell.low), quantile(high), cell.log_slope]
        out[MISSING] = missing.to(values)
        out[Z:] = torch.where(missing, 0.0, torch.stack(parts))
        return out

    def log_prob(self, x: Tensor, context: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """Log-density of rows (*batch, features), nats.

        Cells that are not `known` (of x's shape), and NaN in columns that cannot be missing, are ignored: the result is
        the density of the other cells.
        """
        rows = x.reshape(x.shape[:-1].numel(), self.features).double()
        cells = self.cells(rows, None if known is None else known.reshape(rows.shape))
        return self.network.log_prob(cells.to(self.network.first.dtype)).double().view(x.shape[:-1])

    @torch.no_grad()
    def sample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Rows (*shape, features); numbers lie within the range of the training rows."""
        device = self.network.first.device
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
        x, inputs = x.clone(), self.network_inputs(x, known)
        for variable in [j for j in self.in_order() if variables is None or j in variables]:
            wanted = ~known[:, variable]
            if bool(wanted.any()):
                place = self.network.places[variable]
                drawn, seen = self.draw(variable, inputs, x, missing=missing, generator=generator)
                x[:, variable] = torch.where(wanted, drawn, x[:, variable])
                inputs[place] = torch.where(wanted, seen, inputs[place])
        return x

    def in_order(self) -> list[int]:
        """The variables in the main order of their columns."""
        return [j for column in self.network.order for j, place in enumerate(self.columns) if place == column]

    def network_inputs(self, x: Tensor, known: Tensor) -> Tensor:
        """The networks' inputs (inputs, n) from rows (n, features), zero for cells that are not known (n, features)."""
        network = self.network
        out = x.new_zeros(len(network.owner), len(x), dtype=network.first.dtype)
        for variable, observed in enumerate(known.T):
            if bool(observed.any()):
                self.set_inputs(out, variable, torch.where(observed, x[:, variable], 0))
        return out * known.T[network.owner]

    def set_inputs(self, inputs: Tensor, variable: int, values: Tensor) -> None:
        """Write one variable's values (n,) into the networks' inputs (inputs, n)."""
        marginal = self.marginals().get(variable)
        if marginal is None:
            seen = self._class_inputs(variable, values)
        else:
            missing = torch.isnan(values)
            seen = self._number_inputs(marginal.cell(torch.where(missing, 0, values)).middle, missing)
        inputs[self.network.places[variable]] = seen

    def _class_inputs(self, variable: int, values: Tensor) -> Tensor:
        code = torch.where(torch.isnan(values), self.classes[variable], values)
        return self.network.class_inputs([variable], code.unsqueeze(0))

    def _number_inputs(self, middle: Tensor, missing: Tensor) -> Tensor:
        return self.network.number_inputs(torch.where(missing, 0, middle), missing)

    def conditional(self, variable: int, inputs: Tensor) -> Tensor:
        """The output of one variable's network, in double precision.

        Log-probabilities of the outcomes (outcomes, n) of a class variable; for a number parameters (1, count + 1, n):
        those of the head, and the logit of being missing.
        """
        hidden = self.network.hidden_of_one(variable, inputs)
        if self.classes[variable]:
            return self.network.class_logits(hidden[0], variable).double()
        return self.network.number_parameters(hidden, [self.network.numbers.index(variable)]).double()

    def draw(
        self,
        variable: int,
        inputs: Tensor,
        x: Tensor,
        *,
        missing: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw one variable (n,) of rows x (n, features); return the draws and the inputs made of them.

        Args:
            variable: The variable.
            inputs: The networks' inputs (inputs, n).
            x: The rows.
            missing: Whether a draw may be missing.
            generator: Source of the draws.

        Returns:
            The draws (n,), and the other networks' inputs from them (inputs of the variable, n).
        """
        params, marginal = self.conditional(variable, inputs), self.marginals().get(variable)

        def uniform() -> Tensor:
            return torch.rand(params.shape[-1], dtype=torch.float64, device=params.device, generator=generator)

        if marginal is None:
            probability = params.exp()
            if not missing:
                probability = probability[: self.classes[variable]]
            code = choose(probability, uniform())
            value = torch.where(code == self.classes[variable], math.nan, code.double())
            return value, self._class_inputs(variable, value)
        low, high = (end.expand(1, len(x)) for end in marginal.seen)
        rank = self.head.draw(params[:, :-1], low, high, uniform()[None], uniform()[None])[0]
        value, middle = marginal.value_and_middle(rank)
        gone = torch.zeros_like(value, dtype=torch.bool)
        if missing and self.nullable[variable]:
            first = self.network.says_missing(variable)
            gone = uniform() < torch.sigmoid(params[0, -1]) if first else torch.isnan(x[:, variable - 1])
        return torch.where(gone, math.nan, value), self._number_inputs(middle, gone)

    def draw_within(
        self,
        variable: int,
        inputs: Tensor,
        allowed: Sequence[tuple[float, float]],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw one variable (n,) within intervals; return the draws and the log-probability (n,) of the intervals.

        Args:
            variable: The variable.
            inputs: The networks' inputs (inputs, n).
            allowed: Closed intervals of numbers, or of codes.
            generator: Source of the draws.
        """
        params = self.conditional(variable, inputs)
        n = params.shape[-1]

        def uniform() -> Tensor:
            return torch.rand(n, dtype=torch.float64, device=params.device, generator=generator)

        if self.classes[variable]:
            codes = torch.arange(len(params), device=params.device)
            inside = torch.stack([(codes >= low) & (codes <= high) for low, high in allowed]).any(0)
            probability = torch.where(inside.unsqueeze(-1), params.exp(), 0)
            code = choose(probability, uniform())
            return torch.where(code == self.classes[variable], math.nan, code.double()), probability.sum(0).log()
        marginal = self.marginals()[variable]
        ends = torch.tensor(list(allowed), dtype=torch.float64, device=params.device)
        open_ = torch.isinf(ends)
        first, last = (marginal.cell(end) for end in torch.where(open_, 0, ends).unbind(-1))
        low = torch.where(open_[:, 0], 0, first.low).unsqueeze(-1).expand(-1, n)
        high = torch.where(open_[:, 1], 1, (last.low + last.width).clamp(max=1)).unsqueeze(-1).expand(-1, n)
        head = params[:, :-1].expand(len(ends), -1, -1)
        mass = (self.head.cdf(head, high) - self.head.cdf(head, low)).clamp(min=0)
        k = choose(mass, uniform()).unsqueeze(0)
        rank = self.head.draw(params[:, :-1], low.gather(0, k), high.gather(0, k), uniform()[None], uniform()[None])[0]
        # Rounding may have moved values out of the interval.
        value = torch.minimum(torch.maximum(marginal.value(rank), ends[k[0], 0]), ends[k[0], 1])
        log_mass = mass.sum(0).log()
        if self.network.says_missing(variable):
            log_mass = log_mass + F.logsigmoid(-params[0, -1])
        return value, log_mass

    @torch.no_grad()
    def to_normal(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise (n, features) of rows, by each variable's conditional distribution function.

        Outcomes with a probability are spread over their intervals at random (Dunn & Smyth 1996, "Randomized quantile
        residuals").
        """
        known = ~(torch.isnan(x) & ~torch.tensor(self.nullable, device=x.device))
        noise, all_inputs = torch.empty_like(x), self.network_inputs(x, known)
        inputs = torch.zeros_like(all_inputs)
        for variable in self.in_order():
            params = self.conditional(variable, inputs)
            low, width = self._interval(
                variable, params, x[:, variable], self.variable_fields(variable, x[:, variable])
            )
            spread = torch.rand(len(x), dtype=torch.float64, device=x.device, generator=generator)
            level = torch.where(known[:, variable], low + spread * width, spread)
            noise[:, variable] = quantile(level.clamp(1e-12, 1 - 1e-12))
            place = self.network.places[variable]
            inputs[place] = all_inputs[place]
        return noise

    def _interval(self, variable: int, params: Tensor, values: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """The intervals in [0, 1] of values (n,) under a variable's conditional distribution: lower ends and widths."""
        gone = torch.isnan(values)
        if self.classes[variable]:
            probability = params.exp()
            code = fields[CODE].clamp(min=0).long().unsqueeze(0)
            width = probability.gather(0, code)[0]
            return probability.cumsum(0).gather(0, code)[0] - width, width
        share = torch.sigmoid(params[0, -1]) if self.network.says_missing(variable) else torch.zeros_like(values)
        low = self.head.cdf(params[:, :-1], fields[LOW][None])[0]
        high = self.head.cdf(params[:, :-1], (fields[LOW] + fields[WIDTH]).clamp(max=1)[None])[0]
        low, width = (1 - share) * low, (1 - share) * (high - low)
        if not self.network.says_missing(variable):  # the column's first variable decides, this one adds nothing
            return torch.where(gone, 0, low), torch.where(gone, 1, width)
        return torch.where(gone, 1 - share, low), torch.where(gone, share, width)

    def extra_repr(self) -> str:
        return f"{self.features} variables, {self.head}, hidden={self.hidden}"
