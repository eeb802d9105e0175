"""The evidence lower bound of a `BayesianModule`, and the objective that minimises its negative."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowlab.arguments import whole
from flowlab.training.objectives import Drawing, Moment


def elbo_by_draw(
    bnn: Any,
    x: Tensor,
    y: Tensor,
    rows: int | None,
    draws: int,
    path: bool,
    generator: torch.Generator | None,
) -> Tensor:
    """The evidence lower bound of all data as each draw of the weights estimates it: (draws,), nats.

    Arguments are a `BayesianModule` and those of its `elbo`.
    """
    check_pair(x, y)
    draws = whole("draws", draws)
    rows = len(x) if rows is None else rows
    if rows < len(x):
        raise ValueError(f"rows is the number of all rows, at least the {len(x)} that were given, not {rows}")
    w, log_q = bnn.rsample_and_log_prob((draws,), generator, path)
    return bnn.log_prior(w) + rows / len(x) * bnn.log_likelihood(w, x, y).sum(-1) - log_q


@dataclass(eq=False)
class NegativeELBO(Drawing):
    """An objective for `flowlab.fit`: each draw's negative bound per row, from a mini-batch drawn with replacement.

    Attributes:
        x: Inputs (n, …), all of them.
        y: Targets (n, …).
        batch_size: Rows in each call.
        draws: Draws of the weights in each.
        generator: Source of both; that of the fit when None.
    """

    x: Tensor
    y: Tensor
    batch_size: int
    draws: int
    generator: torch.Generator | None = field(default=None, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        check_pair(self.x, self.y)
        for name, value in (("x", self.x), ("y", self.y)):
            if not bool(torch.isfinite(value).all()):
                first = (~torch.isfinite(value)).nonzero()[0].tolist()
                raise ValueError(f"{name} holds a value that is not finite in row {first[0]}")
        self.x, self.y = self.x.detach(), self.y.detach()
        self.batch_size, self.draws = whole("batch_size", self.batch_size), whole("draws", self.draws)

    def loss(self, model: Any, x: Any, context: Any, at: Moment) -> Tensor:
        """The negative bound per row (draws,) of a `BayesianModule`."""
        rows = len(self.x)
        x, y = self.x, self.y
        if self.batch_size < rows:
            which = torch.randint(rows, (self.batch_size,), generator=at.generator, device=x.device)
            x, y = x[which], y[which]
        return -elbo_by_draw(model, x, y, rows, self.draws, True, at.generator) / rows


def check_pair(x: Any, y: Any) -> None:
    """Check that inputs and targets are tensors with the same number of rows.

    Raises:
        TypeError: One is not a tensor.
        ValueError: One is a scalar, or they differ in length, or are empty.
    """
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}; use torch.as_tensor")
        if not value.ndim:
            raise ValueError(f"{name} must have shape (n, …), not ()")
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x and y must have the same number of rows, at least one, not {len(x)} and {len(y)}")
