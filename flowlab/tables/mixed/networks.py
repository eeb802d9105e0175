"""The networks of `MixedFlow`: one small network per variable, whatever the order of the columns."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowlab.networks import Random
from flowlab.tables.mixed.heads import FAR, Cells, Head

FIELDS = 8  # numbers that a cell is made into: see `MixedFlow.cells`
CODE, MISSING, Z, LOW, WIDTH, Z_LOW, Z_HIGH, LOG_SLOPE = range(FIELDS)
RANDOM_ORDERS = 0.5  # share of training rows that come in a random order of the columns
WIDE = 40  # variables from which all rows of a training step share an order
AT_ONCE = 8192  # cells scored at once: their heads' parameters stay in the cache, and memory small
EMBEDDING = 8  # numbers that stand for a class in other columns' networks
BUCKETS = (2, 4, 8, 16, 32, 64, 128, 512, 2048)  # classes are computed together, padded to the next of these sizes


class ConditionalNetworks(Random):
    """One small residual network per variable, all computed in one batch; each sees the variables before its own.

    Args:
        columns: The column of each variable; a column's variables are adjacent.
        outcomes: Number of classes of each variable, 0 for numbers.
        nullable: Whether each variable can be missing.
        head: Distribution of numbers.
        hidden: Width of each network.
        blocks: Residual blocks.
        dropout: Share of hidden units dropped in training.
        order: The main order of the columns; their own when None.
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
        variables = len(self.columns)
        self.features, self.context_features = variables * FIELDS, 0
        self.numbers = [j for j, k in enumerate(outcomes) if not k]
        self.classes = [j for j, k in enumerate(outcomes) if k]
        # Inputs of other variables' networks: for a number its quantile, whether it is missing, and whether it is given
        # at all; for a class its embedding.
        self.owner = [j for j in self.numbers for _ in range(3)] + [j for j in self.classes for _ in range(EMBEDDING)]
        sizes = [(j, 3) for j in self.numbers] + [(j, EMBEDDING) for j in self.classes]
        ends = accumulate(size for _, size in sizes)
        self.places = {j: slice(end - size, end) for (j, size), end in zip(sizes, ends, strict=True)}
        width = len(self.owner)

        def weights(*shape: int, fan: float) -> nn.Parameter:
            return nn.Parameter((torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(max(fan, 1)))

        total = sum(outcomes)
        self.embedding = nn.Parameter(torch.randn(total, EMBEDDING, generator=generator))
        self.first = weights(variables, hidden, width, fan=width / 2)
        self.first_bias = weights(variables, hidden, 1, fan=width / 2)
        self.inner = nn.ParameterList(weights(variables, hidden, hidden, fan=hidden) for _ in range(2 * blocks))
        self.inner_bias = nn.ParameterList(nn.Parameter(torch.zeros(variables, hidden, 1)) for _ in range(2 * blocks))
        count = head.count + 1  # the last one is the logit of being missing
        self.number = nn.Parameter(torch.zeros(len(self.numbers), count, hidden))
        start = torch.cat([head.initial(), torch.zeros(1)])
        self.number_bias = nn.Parameter(start.repeat(len(self.numbers), 1).unsqueeze(-1))
        by_size: dict[int, list[int]] = {}
        for j in self.classes:
            by_size.setdefault(bucket(outcomes[j]), []).append(j)
        self.buckets: list[tuple[int, list[int]]] = sorted(by_size.items())
        self.class_weight = nn.ParameterList(torch.zeros(len(group), size, hidden) for size, group in self.buckets)
        self.class_bias = nn.ParameterList(torch.zeros(len(group), size, 1) for size, group in self.buckets)
        self.term_order = [*self.numbers, *(j for _, group in self.buckets for j in group)]
        # Padding for variables with fewer outcomes than others in their bucket.
        for i, (size, group) in enumerate(self.buckets):
            beyond = torch.arange(size) >= torch.tensor([outcomes[j] for j in group]).unsqueeze(-1)
            self.register_buffer(f"padding{i}", (beyond.float() * -FAR).unsqueeze(-1), persistent=False)
        self.dropout = dropout
        self.order = list(range(max(self.columns) + 1)) if order is None else list(order)
        self.register_buffer("rank", torch.tensor(self.order).argsort())  # of each column in the main order
        self.offsets = [0, *accumulate(self.outcomes)][:-1]  # of each variable's classes in the embedding

    def initialise(self, cells: Tensor) -> None:
        """Start every column at its marginal distribution, estimated from cells (n, features)."""
        rows = self.fields(cells)
        with torch.no_grad():
            for i, j in enumerate(self.numbers):
                share = (float(rows[MISSING, j].sum()) + 0.5) / (cells.shape[0] + 1)
                self.number_bias[i, -1] = math.log(share / (1 - share))
            for bias, (_, group) in zip(self.class_bias, self.buckets, strict=True):
                for i, j in enumerate(group):
                    counts = torch.bincount(rows[CODE, j].long(), minlength=self.outcomes[j]).to(bias) + 0.5
                    bias[i, : self.outcomes[j], 0] = (counts / counts.sum()).log()

    def visible(self, rank: Tensor) -> Tensor:
        """Which variables each network sees, (*batch, variables, variables), given columns' ranks (*batch, columns)."""
        place = rank[..., self.columns] * len(self.columns) + torch.arange(len(self.columns), device=rank.device)
        return place.unsqueeze(-1) > place.unsqueeze(-2)

    def log_probs(self, cells: Tensor) -> Tensor:
        """Log-density (variables, n) of each variable given those before it in the main order; 0 for ignored cells."""
        terms = torch.cat(self._in_chunks(cells), 1)
        return terms[torch.tensor(self.term_order).argsort()]

    def _in_chunks(self, cells: Tensor) -> list[Tensor]:
        """`_terms` of rows in the main order, chunk by chunk."""
        visible, rows = self.visible(self.rank).unsqueeze(-1), max(AT_ONCE // len(self.columns), 32)
        return [self._terms(chunk, visible) for chunk in cells.split(rows)]

    def log_prob(self, cells: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density (n,) of rows given as cells (n, features); in training, some of them in random orders."""
        if not self.training:
            return torch.cat([terms.sum(0) for terms in self._in_chunks(cells)])
        options: Any = {"generator": self.generator, "device": cells.device}
        if len(self.columns) > WIDE:  # an order for each row would dominate memory and time
            shuffled = torch.rand(1, len(self.rank), **options).argsort(-1)
            rank = torch.where(torch.rand(1, 1, **options) < RANDOM_ORDERS, shuffled, self.rank)
        else:
            shuffled = torch.rand(round(RANDOM_ORDERS * len(cells)), len(self.rank), **options).argsort(-1)
            rank = torch.cat([shuffled, self.rank.unsqueeze(0)])
        return self._terms(cells, self.visible(rank).movedim(0, -1)).sum(0)

    def fields(self, cells: Tensor) -> Tensor:
        """Cells (n, features) as fields (FIELDS, variables, n)."""
        return fields_of(cells, len(self.columns))

    def inputs(self, fields: Tensor) -> Tensor:
        """The networks' inputs (inputs, n) from the fields of all variables."""
        numbers = self.number_inputs(fields[Z, self.numbers], fields[MISSING, self.numbers])
        return torch.cat([numbers.flatten(0, 1), self.class_inputs(self.classes, fields[CODE, self.classes])])

    def number_inputs(self, z: Tensor, missing: Tensor) -> Tensor:
        """Inputs (*variables, 3, n) from numbers: quantiles (*variables, n), zero where missing (*variables, n)."""
        return torch.stack([z, missing.to(z), torch.ones_like(z)], -2)

    def class_inputs(self, variables: Sequence[int], code: Tensor) -> Tensor:
        """Inputs (inputs of these variables, n) from the codes (variables, n) of classes."""
        start = code.new_tensor([self.offsets[j] for j in variables]).unsqueeze(-1)
        return self.embedding[(code.clamp(min=0) + start).long().T].flatten(1).T

    def hidden_of(self, inputs: Tensor, visible: Tensor) -> Tensor:
        """Last hidden layers (variables, hidden, n) from inputs (inputs, n) under masks (variables, variables, m).

        The first m - 1 rows have masks of their own, the others share the last one.
        """
        seen, shuffled = visible[:, self.owner].to(inputs.dtype), visible.shape[-1] - 1
        first = (self.first * seen[..., shuffled].unsqueeze(1)) @ inputs[:, shuffled:]
        if shuffled:
            first = torch.cat([torch.bmm(self.first, seen[..., :shuffled] * inputs[:, :shuffled]), first], -1)
        return self._rest(first)

    def hidden_of_one(self, variable: int, inputs: Tensor) -> Tensor:
        """Last hidden layer (1, hidden, n) of one variable's network, from masked inputs (inputs, n)."""
        return self._rest((self.first[variable] @ inputs).unsqueeze(0), slice(variable, variable + 1))

    def _rest(self, h: Tensor, variables: slice = slice(None)) -> Tensor:
        h = h + self.first_bias[variables]
        for i in range(0, len(self.inner), 2):
            inside = torch.baddbmm(self.inner_bias[i][variables], self.inner[i][variables], F.relu(h))
            inside = F.relu(inside)
            if self.training and self.dropout:  # half the time of bernoulli_
                keep = torch.rand(inside.shape, generator=self.generator, device=inside.device) >= self.dropout
                inside = inside * (keep / (1 - self.dropout))
            h = h + torch.baddbmm(self.inner_bias[i + 1][variables], self.inner[i + 1][variables], inside)
        return F.relu(h)

    def number_parameters(self, hidden: Tensor, of: slice | list[int] = slice(None)) -> Tensor:
        """Parameters (numbers, count + 1, n) of the head, and the logit of being missing."""
        return torch.baddbmm(self.number_bias[of], self.number[of], hidden)

    def class_logits(self, hidden: Tensor, variable: int) -> Tensor:
        """Log-probabilities of the outcomes (outcomes, n) of one variable, from its hidden layer (hidden, n)."""
        for weight, bias, (_, group) in zip(self.class_weight, self.class_bias, self.buckets, strict=True):
            if variable in group:
                i = group.index(variable)
                return (weight[i] @ hidden + bias[i])[: self.outcomes[variable]].log_softmax(0)
        raise IndexError(variable)

    def _terms(self, cells: Tensor, visible: Tensor) -> Tensor:
        """Log-density (variables, n) of each variable, in the order of `term_order`, under masks as `hidden_of`'s."""
        fields = self.fields(cells)
        absent = fields[CODE] < -0.5  # cells to be ignored
        if bool(absent.any()):
            shared = visible[..., -1:].expand(-1, -1, len(cells) + 1 - visible.shape[-1])
            visible = torch.cat([visible[..., :-1], shared], -1) & ~absent
        return torch.where(absent[self.term_order], 0, self.known_terms(fields, visible))

    def known_terms(self, fields: Tensor, visible: Tensor) -> Tensor:
        """The same from fields (FIELDS, variables, n) of which none is to be ignored; works under `torch.func`."""
        hidden = self.hidden_of(self.inputs(fields), visible)
        terms = []
        if self.numbers:
            params = self.number_parameters(hidden[self.numbers])
            of = fields[:, self.numbers]
            terms.append(self.number_log_prob(params, of))
        for i, (weight, bias, (_, group)) in enumerate(
            zip(self.class_weight, self.class_bias, self.buckets, strict=True)
        ):
            log_p = (torch.baddbmm(bias, weight, hidden[group]) + self.get_buffer(f"padding{i}")).log_softmax(1)
            code = fields[CODE, group].clamp(min=0).long()
            terms.append(log_p.gather(1, code.unsqueeze(1)).squeeze(1) + fields[LOG_SLOPE, group])
        return torch.cat(terms)

    def number_log_prob(self, params: Tensor, fields: Tensor) -> Tensor:
        """Log-probability (variables, n) of numbers, or of missing cells, from fields (FIELDS, variables, n)."""
        cells = number_cells(fields)
        params, logit = params.split([self.head.count, 1], 1)  # one gradient copy; slices would make several
        value, logit, missing = self.head.log_prob(params, cells), logit.squeeze(1), fields[MISSING] > 0.5
        # Only the first variable of a column has a factor for its being missing.
        asked = params.new_tensor([float(self.says_missing(j)) for j in self.numbers]).unsqueeze(-1)
        return torch.where(missing, asked * F.logsigmoid(logit), value + asked * F.logsigmoid(-logit))

    def says_missing(self, variable: int) -> bool:
        """Whether a variable decides whether its column is missing."""
        return self.nullable[variable] and (variable == 0 or self.columns[variable - 1] != self.columns[variable])


def fields_of(cells: Tensor, variables: int) -> Tensor:
    """Cells (n, FIELDS · variables) as fields (FIELDS, variables, n)."""
    return cells.T.reshape(FIELDS, variables, len(cells))


def number_cells(fields: Tensor) -> Cells:
    """What heads see of the fields (FIELDS, ...) of numbers."""
    return Cells(fields[LOW], fields[WIDTH], fields[Z_LOW], fields[Z_HIGH], fields[LOG_SLOPE])


def outcomes_of(classes: Sequence[int], nullable: Sequence[bool]) -> list[int]:
    """Outcomes of each variable: its classes, of which missing is one more; 0 for numbers."""
    return [k + gone if k else 0 for k, gone in zip(classes, nullable, strict=True)]


def bucket(outcomes: int) -> int:
    """The size that a number of outcomes is padded to."""
    return next((size for size in BUCKETS if size >= outcomes), outcomes)
