"""`MixedFlow`: the density of rows of numbers, classes and missing cells, one conditional distribution per column.

A row is a vector of floats: numbers as they are, classes as codes, NaN where a cell is missing. Its log-density is the sum over columns of the log of
a conditional probability (classes, missingness, values on a grid, repeated values) or density (other numbers): exact, with respect to
the product of counting and Lebesgue measures. One network serves every order of the columns (Uria, Murray & Larochelle 2014, "A deep and
tractable density estimator"), so that any columns can be given and any others drawn or scored. Half of the training rows come in one main
order, which is the one that rows are scored in: that costs it nothing that was measured, whereas random orders alone cost 0.3 to 2 nats per row.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from flowlab.files import register
from flowlab.networks import Dropout
from flowlab.tables.heads import FAR, Cells, Head, quantile
from flowlab.tables.ranks import Ranks

FIELDS = 8  # numbers that a cell is made into: see `MixedFlow.cells`
CODE, MISSING, Z, LOW, WIDTH, Z_LOW, Z_HIGH, LOG_SLOPE = range(FIELDS)
RANDOM_ORDERS = 0.5  # share of training rows that come in a random order of the columns
EMBEDDING = 8  # numbers that stand for a class in other columns' networks
BUCKETS = (2, 4, 8, 16, 32, 64, 128, 512, 2048)  # classes are computed together, padded to the next of these sizes


def flat_classes(classes: Sequence[int], nullable: Sequence[bool]) -> list[int]:
    """Outcomes of each unit that is a class, missing being one of them; 0 for numbers."""
    return [k + bool(missing) if k else 0 for k, missing in zip(classes, nullable, strict=True)]


class ConditionalNetworks(nn.Module):
    """One small residual network per unit, all computed together; each sees the units that come before its own in the order at hand.

    Args:
        columns: The column of each unit; units of a column lie together.
        outcomes: Number of classes of each unit, 0 for numbers.
        nullable: Whether each unit can be missing.
        head: Distribution of numbers.
        hidden: Width of each network.
        blocks: Residual blocks.
        dropout: Share of hidden units dropped in training.
        order: The main order of the columns; as they are when None.
        generator: Source of the initial weights.
    """

    rank: Tensor

    def __init__(
        self,
        columns: Sequence[int],
        outcomes: Sequence[int],
        nullable: Sequence[bool],
        head: Head,
        hidden: int = 64,
        blocks: int = 1,
        dropout: float = 0.1,
        order: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.columns, self.outcomes, self.nullable = list(columns), list(outcomes), list(nullable)
        units = len(self.columns)
        self.features, self.context_features = units * FIELDS, 0
        self.numbers = [j for j, k in enumerate(outcomes) if not k]
        self.classes = [j for j, k in enumerate(outcomes) if k]
        # Inputs of other units' networks: a number's quantile, whether it is missing, and that it is there at all; a class's embedding.
        self.owner = [j for j in self.numbers for _ in range(3)] + [j for j in self.classes for _ in range(EMBEDDING)]
        width = len(self.owner)

        def weights(*shape: int, fan: float) -> nn.Parameter:
            return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(max(fan, 1)))

        total = sum(outcomes)
        self.embedding = nn.Parameter(torch.randn(total, EMBEDDING, generator=generator))
        self.first = weights(units, hidden, width, fan=width / 2)
        self.first_bias = weights(units, hidden, 1, fan=width / 2)
        self.inner = nn.ParameterList(weights(units, hidden, hidden, fan=hidden) for _ in range(2 * blocks))
        self.inner_bias = nn.ParameterList(nn.Parameter(torch.zeros(units, hidden, 1)) for _ in range(2 * blocks))
        count = head.count + 1  # the last one is the logit of being missing
        self.number = nn.Parameter(torch.zeros(len(self.numbers), count, hidden))
        start = torch.cat([head.initial(), torch.zeros(1)])
        self.number_bias = nn.Parameter(start.repeat(len(self.numbers), 1).unsqueeze(-1))
        self.buckets: list[tuple[int, list[int]]] = []
        for size in sorted({bucket(outcomes[j]) for j in self.classes}):
            self.buckets.append((size, [j for j in self.classes if bucket(outcomes[j]) == size]))
        self.class_weight = nn.ParameterList(torch.zeros(len(own), size, hidden) for size, own in self.buckets)
        self.class_bias = nn.ParameterList(torch.zeros(len(own), size, 1) for size, own in self.buckets)
        # Outcomes that there are only because others computed together have more of them.
        for i, (size, own) in enumerate(self.buckets):
            beyond = torch.tensor([[-FAR if k >= outcomes[j] else 0.0 for k in range(size)] for j in own])
            self.register_buffer(f"padding{i}", beyond.unsqueeze(-1), persistent=False)
        self.drop = Dropout(dropout)
        self.generator: torch.Generator | None = None  # of the orders in training; `fit` lends one
        self.order = list(range(max(self.columns) + 1)) if order is None else list(order)
        self.register_buffer("rank", torch.tensor(self.order).argsort())  # of each column in the main order
        self.offsets = [sum(self.outcomes[:j]) for j in range(units)]  # of each unit's classes in the embedding

    def initialise(self, cells: Tensor) -> None:
        """Starts every column at its marginal distribution, given cells (n, features)."""
        rows = self._fields(cells)
        with torch.no_grad():
            for i, j in enumerate(self.numbers):
                share = (float(rows[MISSING, j].sum()) + 0.5) / (cells.shape[0] + 1)
                self.number_bias[i, -1] = math.log(share / (1 - share))
            for bias, (_, own) in zip(self.class_bias, self.buckets, strict=True):
                for i, j in enumerate(own):
                    counts = torch.bincount(rows[CODE, j].long(), minlength=self.outcomes[j]).to(bias) + 0.5
                    bias[i, : self.outcomes[j], 0] = (counts / counts.sum()).log()

    def visible(self, rank: Tensor) -> Tensor:
        """What each unit's network sees under an order (*batch, columns), given by each column's place: (*batch, units, units)."""
        place = rank[..., self.columns] * len(self.columns) + torch.arange(len(self.columns), device=rank.device)
        return place.unsqueeze(-1) > place.unsqueeze(-2)

    def log_prob(self, cells: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density (n,) of rows given as cells (n, features): in training some of them in random orders."""
        if not self.training:
            return self._log_prob(cells, self.visible(self.rank).unsqueeze(-1))
        options: Any = {"generator": self.generator, "device": cells.device}
        shuffled = torch.rand(len(cells), len(self.rank), **options).argsort(-1)
        rank = torch.where(torch.rand(len(cells), 1, **options) < RANDOM_ORDERS, shuffled, self.rank)
        return self._log_prob(cells, self.visible(rank).movedim(0, -1))

    def _fields(self, cells: Tensor) -> Tensor:
        return cells.T.reshape(FIELDS, len(self.columns), len(cells))

    def inputs(self, fields: Tensor) -> Tensor:
        """What networks see of all units (inputs, n)."""
        n = fields.shape[-1]
        parts = []
        if self.numbers:
            missing = fields[MISSING, self.numbers]
            parts.append(torch.stack([fields[Z, self.numbers], missing, torch.ones_like(missing)], 1).flatten(0, 1))
        if self.classes:
            offsets = fields.new_tensor([self.offsets[j] for j in self.classes]).unsqueeze(-1)
            index = (fields[CODE, self.classes].clamp(min=0) + offsets).long()
            parts.append(self.embedding[index.T].flatten(1).T)
        return torch.cat(parts)

    def hidden_of(self, inputs: Tensor, visible: Tensor, units: slice | list[int] = slice(None)) -> Tensor:
        """Last hidden layers (units, hidden, n) of networks that see inputs (inputs, n) where `visible` (units, all units, n)."""
        seen = visible[:, self.owner].to(inputs.dtype)
        if visible.shape[-1] == 1:
            h = (self.first[units] * seen.transpose(1, 2)) @ inputs
        else:
            h = torch.bmm(self.first[units], seen * inputs)
        h = h + self.first_bias[units]
        for i in range(0, len(self.inner), 2):
            inside = torch.baddbmm(self.inner_bias[i][units], self.inner[i][units], F.relu(h))
            inside = self.drop(F.relu(inside))
            h = h + torch.baddbmm(self.inner_bias[i + 1][units], self.inner[i + 1][units], inside)
        return F.relu(h)

    def number_parameters(self, hidden: Tensor, of: slice | list[int] = slice(None)) -> Tensor:
        """Parameters (numbers, count + 1, n) of the head, and the logit of being missing."""
        return torch.baddbmm(self.number_bias[of], self.number[of], hidden)

    def class_logits(self, hidden: Tensor, unit: int) -> Tensor:
        """Log-probabilities of the outcomes (outcomes, n) of one unit, from its hidden layer (hidden, n)."""
        for weight, bias, (_, own) in zip(self.class_weight, self.class_bias, self.buckets, strict=True):
            if unit in own:
                i = own.index(unit)
                return (weight[i] @ hidden + bias[i])[: self.outcomes[unit]].log_softmax(0)
        raise IndexError(unit)

    def _log_prob(self, cells: Tensor, visible: Tensor) -> Tensor:
        fields = self._fields(cells)
        absent = fields[CODE] < -0.5  # cells that are not part of the question
        if bool(absent.any()):
            visible = visible & ~absent
        hidden = self.hidden_of(self.inputs(fields), visible)
        terms = []
        if self.numbers:
            params = self.number_parameters(hidden[self.numbers])
            of = fields[:, self.numbers]
            terms.append(self.number_log_prob(params, of))
        for i, (weight, bias, (_, own)) in enumerate(
            zip(self.class_weight, self.class_bias, self.buckets, strict=True)
        ):
            log_p = (torch.baddbmm(bias, weight, hidden[own]) + self.get_buffer(f"padding{i}")).log_softmax(1)
            code = fields[CODE, own].clamp(min=0).long()
            terms.append(log_p.gather(1, code.unsqueeze(1)).squeeze(1) + fields[LOG_SLOPE, own])
        place = [*self.numbers, *(j for _, own in self.buckets for j in own)]
        return torch.where(absent[place], 0, torch.cat(terms)).sum(0)

    def number_log_prob(self, params: Tensor, fields: Tensor) -> Tensor:
        """Log-probability of numbers, or of their being missing, (units, n), from fields (FIELDS, units, n) of those units."""
        cells = Cells(fields[LOW], fields[WIDTH], fields[Z_LOW], fields[Z_HIGH], fields[LOG_SLOPE])
        value = self.head.log_prob(params[:, :-1], cells)
        logit, missing = params[:, -1], fields[MISSING] > 0.5
        # Whether later units of a column are missing, the first one has said.
        asked = params.new_tensor([float(self.says_missing(j)) for j in self.numbers]).unsqueeze(-1)
        return torch.where(missing, asked * F.logsigmoid(logit), value + asked * F.logsigmoid(-logit))

    def says_missing(self, unit: int) -> bool:
        """Whether a unit decides whether its column is missing."""
        return self.nullable[unit] and (unit == 0 or self.columns[unit - 1] != self.columns[unit])


def bucket(outcomes: int) -> int:
    """The size that a number of outcomes is padded to."""
    return next((size for size in BUCKETS if size >= outcomes), outcomes)


def choose(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draws an index (n,) with probabilities in proportion to weights (k, n), from uniform numbers (n,)."""
    through = weights.cumsum(0)
    return (through < uniform * through[-1]).sum(0).clamp(max=len(weights) - 1)


@register
class MixedFlow(nn.Module):
    """The density of rows with numbers, classes and missing cells; its methods are those of a `Flow` that need no gradient of samples.

    Args:
        ranks: The `Ranks` of each unit that is a number, in order.
        columns: The column of each unit: dates have two units. A column's units lie together.
        classes: Number of classes of each unit, 0 for numbers.
        nullable: Whether each unit can be missing; of a column's units, the first one decides for all.
        head: Distribution of numbers given other columns.
        hidden, blocks, dropout, order, generator: As for `ConditionalNetworks`.
    """

    has_rsample = False
    context_features = 0

    def __init__(
        self,
        ranks: Sequence[Ranks],
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
        self.ranks = nn.ModuleList(ranks)
        self.columns, self.classes, self.nullable = list(columns), list(classes), [bool(x) for x in nullable]
        self.head, self.hidden, self.blocks, self.dropout = head, hidden, blocks, dropout
        self.order = order
        self.features = len(self.columns)
        self.network = ConditionalNetworks(
            columns, flat_classes(classes, nullable), nullable, head, hidden, blocks, dropout, order, generator
        )

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the rows."""
        return torch.float64

    @property
    def support(self) -> constraints.Constraint:
        """Rows are vectors; which of them can occur, log_prob says."""
        return constraints.real_vector

    def _ranks(self) -> dict[int, Ranks]:
        return dict(zip(self.network.numbers, self.ranks, strict=True))  # type: ignore[arg-type]

    @torch.no_grad()
    def cells(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """Rows (n, features) as the network sees them, (n, FIELDS · features).

        Of each unit: the class (0 for numbers), whether it is missing, the quantile that other units' networks see, and interval and log-slope of `Ranks`.
        CODE is -1 where a cell is not part of the question: it is not `known` (n, features), or NaN though it cannot be missing.
        """
        fields = torch.stack([self.unit_fields(j, x[:, j]) for j in range(self.features)], 1)
        absent = torch.isnan(x.T) & ~torch.tensor(self.nullable, device=x.device).unsqueeze(-1)
        if known is not None:
            absent |= ~known.T
        fields[CODE] = torch.where(absent, -1.0, fields[CODE])
        return fields.flatten(0, 1).T.contiguous()

    def unit_fields(self, unit: int, values: Tensor) -> Tensor:
        """The fields (FIELDS, n) of one unit's values (n,)."""
        ranks = self._ranks().get(unit)
        out = values.new_zeros(FIELDS, len(values))
        missing = torch.isnan(values)
        if ranks is None:
            code = torch.where(missing, float(self.classes[unit]), values)
            unknown = ~missing & ((code < 0) | (code >= self.classes[unit]))
            out[CODE] = torch.where(unknown, 0.0, code)
            out[LOG_SLOPE] = torch.where(unknown, -math.inf, 0.0)
            return out
        cell = ranks.cell(torch.where(missing, 0.0, values))
        high = (cell.low + cell.width).clamp(max=1)
        middle = quantile((cell.low + cell.width / 2).clamp(max=1)).clamp(-5, 5)
        parts = [middle, cell.low, cell.width, quantile(cell.low), quantile(high), cell.log_slope]
        out[MISSING] = missing.to(values)
        out[Z:] = torch.where(missing, 0.0, torch.stack(parts))
        return out

    def log_prob(self, x: Tensor, context: Tensor | None = None, known: Tensor | None = None) -> Tensor:
        """Log-density of rows (*batch, features), nats.

        Cells that are not `known` (of x's shape), or NaN in a column that cannot be missing, are left out: what remains is the density of the others.
        """
        rows = x.reshape(x.shape[:-1].numel(), self.features).double()
        cells = self.cells(rows, None if known is None else known.reshape(rows.shape))
        dtype = self.network.first.dtype
        chunks = [self.network.log_prob(chunk.to(dtype)).double() for chunk in cells.split(2048)]
        return torch.cat(chunks).view(x.shape[:-1])

    @torch.no_grad()
    def sample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Rows (*shape, features); numbers lie within the range that training rows span."""
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
        units: Sequence[int] | None = None,
    ) -> Tensor:
        """Draws the cells of rows (n, features) that are not `known`, given those that are.

        Args:
            x: The rows; what they hold in other cells does not count.
            known: Which cells are given, of x's shape.
            missing: Whether a drawn cell may be a missing one.
            generator: Source of the draws.
            units: The only ones to draw, all when None.
        """
        x, fields, seen = x.clone(), self.seen_fields(x, known), known.T.clone()
        for unit in [j for j in self.in_order() if units is None or j in units]:
            wanted = ~known[:, unit]
            if bool(wanted.any()):
                drawn = self.draw(unit, fields, seen, x, missing=missing, generator=generator)
                x[:, unit] = torch.where(wanted, drawn, x[:, unit])
                fields[:, unit] = self.unit_fields(unit, x[:, unit]).to(fields)
            seen[unit] = True
        return x

    def in_order(self) -> list[int]:
        """The units in the main order of their columns."""
        return [j for column in self.network.order for j, own in enumerate(self.columns) if own == column]

    def seen_fields(self, x: Tensor, known: Tensor) -> Tensor:
        """The fields (FIELDS, features, n) of rows, of which only the `known` cells (n, features) may be looked at."""
        cells = self.cells(torch.where(known, x, math.nan)).to(self.network.first.dtype)
        return self.network._fields(cells).clone()

    def conditional(self, unit: int, fields: Tensor, seen: Tensor) -> Tensor:
        """What one unit's network says of rows of which `seen` (features, n) is known: log-probabilities of outcomes (outcomes, n), or parameters
        (1, count + 1, n) of the head and of being missing, double precision."""
        network = self.network
        hidden = network.hidden_of(network.inputs(fields), seen.unsqueeze(0), [unit])
        if self.classes[unit]:
            return network.class_logits(hidden[0], unit).double()
        return network.number_parameters(hidden, [network.numbers.index(unit)]).double()

    def draw(
        self,
        unit: int,
        fields: Tensor,
        seen: Tensor,
        x: Tensor,
        *,
        missing: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws one unit (n,) given what is seen."""
        params, ranks = self.conditional(unit, fields, seen), self._ranks().get(unit)

        def uniform() -> Tensor:
            return torch.rand(params.shape[-1], dtype=torch.float64, device=params.device, generator=generator)

        if ranks is None:
            probability = params.exp()
            if not missing:
                probability = probability[: self.classes[unit]]
            code = choose(probability, uniform())
            return torch.where(code == self.classes[unit], math.nan, code.double())
        low, high = (end.expand(1, len(x)) for end in ranks.seen)
        value = ranks.value(self.head.draw(params[:, :-1], low, high, uniform()[None], uniform()[None])[0])
        if not missing or not self.nullable[unit]:
            return value
        if self.network.says_missing(unit):
            return torch.where(uniform() < torch.sigmoid(params[0, -1]), math.nan, value)
        return torch.where(torch.isnan(x[:, unit - 1]), math.nan, value)

    def draw_within(
        self,
        unit: int,
        fields: Tensor,
        seen: Tensor,
        allowed: Sequence[tuple[float, float]],
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draws one unit (n,) from where it may be, given what is seen; and the log-probability (n,) of that.

        Args:
            unit: The unit.
            fields: As from `seen_fields`.
            seen: Which units are seen (features, n).
            allowed: Closed intervals of numbers, or of codes.
            generator: Source of the draws.
        """
        params = self.conditional(unit, fields, seen)
        n = params.shape[-1]

        def uniform() -> Tensor:
            return torch.rand(n, dtype=torch.float64, device=params.device, generator=generator)

        if self.classes[unit]:
            codes = torch.arange(len(params), device=params.device)
            inside = torch.stack([(codes >= low) & (codes <= high) for low, high in allowed]).any(0)
            probability = torch.where(inside.unsqueeze(-1), params.exp(), 0)
            code = choose(probability, uniform())
            return torch.where(code == self.classes[unit], math.nan, code.double()), probability.sum(0).log()
        ranks = self._ranks()[unit]
        ends = torch.tensor(list(allowed), dtype=torch.float64, device=params.device)
        open_ = torch.isinf(ends)
        first, last = (ranks.cell(end) for end in torch.where(open_, 0, ends).unbind(-1))
        low = torch.where(open_[:, 0], 0, first.low).unsqueeze(-1).expand(-1, n)
        high = torch.where(open_[:, 1], 1, (last.low + last.width).clamp(max=1)).unsqueeze(-1).expand(-1, n)
        head = params[:, :-1].expand(len(ends), -1, -1)
        mass = (self.head.cdf(head, high) - self.head.cdf(head, low)).clamp(min=0)
        k = choose(mass, uniform()).unsqueeze(0)
        rank = self.head.draw(params[:, :-1], low.gather(0, k), high.gather(0, k), uniform()[None], uniform()[None])[0]
        # What rounding has led out of the interval comes back to its end.
        value = torch.minimum(torch.maximum(ranks.value(rank), ends[k[0], 0]), ends[k[0], 1])
        log_mass = mass.sum(0).log()
        if self.network.says_missing(unit):
            log_mass = log_mass + F.logsigmoid(-params[0, -1])
        return value, log_mass

    @torch.no_grad()
    def to_normal(self, x: Tensor, context: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise behind rows (n, features), by each unit's distribution function given those before it.

        An outcome with a probability of its own is spread over its interval at random (Dunn & Smyth 1996, "Randomized quantile residuals").
        """
        known = ~(torch.isnan(x) & ~torch.tensor(self.nullable, device=x.device))
        fields, seen, noise = self.seen_fields(x, known), torch.zeros_like(x.T, dtype=torch.bool), torch.empty_like(x)
        for unit in self.in_order():
            params = self.conditional(unit, fields, seen)
            low, width = self._interval(unit, params, x[:, unit], fields[:, unit].double())
            spread = torch.rand(len(x), dtype=torch.float64, device=x.device, generator=generator)
            level = torch.where(known[:, unit], low + spread * width, spread)
            noise[:, unit] = quantile(level.clamp(1e-12, 1 - 1e-12))
            seen[unit] = known[:, unit]
        return noise

    def _interval(self, unit: int, params: Tensor, values: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Where in [0, 1] values (n,) of a unit lie under its conditional distribution: lower end and width."""
        gone = torch.isnan(values)
        if self.classes[unit]:
            probability = params.exp()
            code = fields[CODE].clamp(min=0).long().unsqueeze(0)
            own = probability.gather(0, code)[0]
            return probability.cumsum(0).gather(0, code)[0] - own, own
        share = torch.sigmoid(params[0, -1]) if self.network.says_missing(unit) else torch.zeros_like(values)
        low = self.head.cdf(params[:, :-1], fields[LOW][None])[0]
        high = self.head.cdf(params[:, :-1], (fields[LOW] + fields[WIDTH]).clamp(max=1)[None])[0]
        low, width = (1 - share) * low, (1 - share) * (high - low)
        if not self.network.says_missing(unit):  # the column's first unit has said it, and this one says nothing
            return torch.where(gone, 0, low), torch.where(gone, 1, width)
        return torch.where(gone, 1 - share, low), torch.where(gone, share, width)

    def extra_repr(self) -> str:
        return f"{self.features} units, {self.head}, hidden={self.hidden}"
