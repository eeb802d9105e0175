"""`MixedFlow`: the density of rows of numbers, classes and missing cells, its conditional distributions by networks.

One set of networks serves every order of the columns (Uria, Murray & Larochelle 2014, "A deep and tractable density
estimator"), so that any columns can be conditioned on and any others drawn or scored. Half of the training rows come in
one main order, in which rows are scored. This costs no measurable likelihood in that order, whereas training on random
orders only costs 0.3 to 2 nats per row.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from flowlab.registry import register
from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.tables.mixed.distributions import HeadDistribution
from flowlab.tables.mixed.heads import Head
from flowlab.tables.mixed.marginal_cdf import MarginalCDF
from flowlab.tables.mixed.networks import ConditionalNetworks, outcomes_of


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
class MixedFlow(ConditionalDensity):
    """The density of rows with numbers, classes and missing cells, with the methods of a `Flow` but `rsample`.

    Args:
        ranks: The `MarginalCDF` of each numeric variable, in order.
        columns: The column of each variable; a column's variables are adjacent (dates have two).
        classes: Number of classes of each variable, 0 for numbers.
        nullable: Whether each variable can be missing; a column's variables are missing together.
        head: Distribution of numbers given other columns.
        hidden, blocks, dropout, order, generator: As for `ConditionalNetworks`.
    """

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
        outcomes = outcomes_of(self.classes, self.nullable)
        self.network = ConditionalNetworks(columns, outcomes, nullable, head, hidden, blocks, dropout, order, generator)

    def marginals(self) -> dict[int, MarginalCDF]:
        return dict(zip(self.network.numbers, self.ranks, strict=True))  # type: ignore[arg-type]

    def log_probs(self, cells: Tensor) -> Tensor:
        return self.network.log_probs(cells.to(self.network.first.dtype))

    def observe(self, x: Tensor, known: Tensor) -> Tensor:
        """The networks' inputs (inputs, n), zero for cells that are not known."""
        inputs = x.new_zeros(len(self.network.owner), len(x), dtype=self.network.first.dtype)
        for variable, observed in enumerate(known.T):
            if bool(observed.any()):
                self.tell(inputs, variable, x[:, variable], observed)
        return inputs

    def reveal(self, seen: Tensor, variable: int, place: Tensor, missing: Tensor, where: Tensor | None = None) -> None:
        network = self.network
        if self.classes[variable]:
            inputs = network.class_inputs([variable], place.unsqueeze(0))
        else:
            inputs = network.number_inputs(place, missing)
        rows = network.places[variable]
        seen[rows] = inputs.to(seen.dtype) if where is None else torch.where(where, inputs.to(seen.dtype), seen[rows])

    def class_log_prob(self, variable: int, seen: Tensor) -> Tensor:
        hidden = self.network.hidden_of_one(variable, seen)
        return self.network.class_logits(hidden[0], variable).double()

    def number(self, variable: int, seen: Tensor) -> HeadDistribution:
        hidden = self.network.hidden_of_one(variable, seen)
        params = self.network.number_parameters(hidden, [self.network.numbers.index(variable)]).double()[0]
        return HeadDistribution(self.head, params[:-1], params[-1])

    def extra_repr(self) -> str:
        return f"{self.features} variables, {self.head}, hidden={self.hidden}"
