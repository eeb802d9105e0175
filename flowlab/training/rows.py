"""`Rows`: what `fit` trains on, checked, split, and mapped once through the layers that stay as they are."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from flowlab.arguments import floating
from flowlab.flow import CHUNK, Flow
from flowlab.mixture import FlowMixture


@dataclass
class Rows:
    """Rows with their context and weight, on one device; weights average one. `x` is None for objectives that draw."""

    x: Tensor | None
    context: Tensor | None
    weight: Tensor

    def take(self, index: Tensor | slice) -> "Rows":
        """The rows at an index."""
        return self._each(lambda value: value[index])

    def to(self, device: torch.device) -> "Rows":
        """The rows on a device."""
        return self._each(lambda value: value.to(device))

    def chunks(self) -> "list[Rows]":
        """The rows in parts of at most `CHUNK`."""
        return [self.take(slice(i, i + CHUNK)) for i in range(0, len(self.weight), CHUNK)]

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Rows":
        x = None if self.x is None else function(self.x)
        context = None if self.context is None else function(self.context)
        return Rows(x, context, function(self.weight))


# ---- checks: their warnings name the line that called `fit`, which calls `checked_rows` and `split` itself ----------


def checked_rows(flow: Any, data: Any, context: Any, sample_weight: Any) -> Rows:
    """The rows to train on; where there is neither data nor context, one that stands for a batch of draws.

    Raises:
        TypeError: Something is no tensor.
        ValueError: A shape or a type does not fit the flow, or a value is not finite; the message says where.
    """
    count = 1
    if data is not None or context is not None:
        count, data, context = _pair(flow, ("data", "context"), data, context)
    if sample_weight is None:
        sample_weight = torch.ones(count)
    elif not isinstance(sample_weight, Tensor):
        kind = type(sample_weight).__name__
        raise TypeError(f"sample_weight must be a torch.Tensor, not {kind}; use torch.as_tensor")
    weight = sample_weight.detach().double().cpu()
    if weight.shape != (count,) or not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()):
        raise ValueError(f"sample_weight must be {count} finite non-negative numbers, got shape {tuple(weight.shape)}")
    if not 0 < float(weight.sum()) < math.inf:
        raise ValueError("sample_weight is zero everywhere, or its sum overflows: give weights that average about one")
    return Rows(data, context, weight / weight.mean())


def _pair(flow: Any, names: tuple[str, str], data: Any, context: Any) -> tuple[int, Tensor | None, Tensor | None]:
    """The number of rows, and data and context as checked tensors, at least one of them."""
    known = isinstance(flow, Flow | FlowMixture)
    for name, value in zip(names, (data, context), strict=True):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}; use torch.as_tensor")
    given = context if data is None else data
    count = len(given) if given.ndim else 0
    if data is not None:
        floating(names[0], data, flow.dtype if known else None)
        data = _matrix(names[0], data, flow.features, count)
    if context is not None:
        if known and not flow.context_features:
            raise ValueError(f"{names[1]} is given, but this flow takes none: build it with context_features=…")
        context = _matrix(names[1], context, flow.context_features, count)
    elif known and flow.context_features:
        raise ValueError(f"this flow needs {names[1]} of shape ({count}, {flow.context_features}), one for each row")
    return count, data, context


def _matrix(name: str, x: Tensor, width: int, count: int) -> Tensor:
    """A matrix of finite values, as a constant."""
    if x.ndim != 2 or x.shape[1] != width or len(x) != count or count < 1:
        rows = "n" if x.ndim != 2 else count or "at least 1"
        raise ValueError(f"{name} must have shape ({rows}, {width}), not {tuple(x.shape)}")
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(f"{name} has {int(bad.sum())} non-finite values, the first in row {row}, column {column}")
    if x.grad_fn is not None:
        warnings.warn(f"{name} has a gradient, but fit trains the flow alone: it counts as constant", stacklevel=5)
    return x.detach()


# ---- parts ------------------------------------------------------------------------------------------------------


def split(flow: Any, rows: Rows, validation: Any, generator: torch.Generator) -> tuple[Rows, Rows | None]:
    """Rows to train on, and those held out: a share of them, or what was given as `validation`."""
    if not isinstance(validation, Real):
        if rows.x is None:
            raise ValueError("without data, validation must be a share of the contexts")
        pair = validation if isinstance(validation, tuple) else (validation, None)
        if len(pair) != 2 or pair[0] is None:
            raise ValueError(
                f"validation must be a share, rows, or a pair of rows and their context, not {validation!r}"
            )
        count, held_x, held_context = _pair(flow, ("validation", "validation context"), *pair)
        return rows, Rows(held_x, held_context, torch.ones(count, dtype=rows.weight.dtype))
    validation = float(validation)
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a share from 0 to below 1, or rows, not {validation}")
    n = len(rows.weight)
    count = round(validation * n)
    if n > 1 and count:
        order = torch.randperm(n, generator=generator, device=generator.device).to(rows.weight.device)
        train, held_out = rows.take(order[count:]), rows.take(order[:count])
        if float(held_out.weight.sum()) > 0 and float(train.weight.sum()) > 0:
            train.weight = train.weight / train.weight.mean()
            return train, held_out
    if validation:
        warnings.warn(
            f"nothing is held out: a share of {validation} of {n} row{'s' * (n > 1)} is no row that counts. The "
            "losses are those of the rows trained on, and nothing says when to stop",
            stacklevel=3,
        )
    return rows, None


def representative(x: Tensor, weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Rows for layers that learn from data: where weights differ, a row comes as often as its weight says."""
    if bool((weight == weight[0]).all()):
        return x[: 50 * CHUNK]
    count = min(len(x), 50 * CHUNK)
    start = torch.rand((), generator=generator, device=weight.device, dtype=weight.dtype)
    # Systematic sampling: the number of copies is the expected one, to within one.
    levels = (torch.arange(count).to(weight) + start) / count
    share = weight.cumsum(0) / weight.sum()
    return x[torch.searchsorted(share, levels).clamp(max=len(share) - 1)]


def worst_cell(x: Tensor) -> tuple[int, int]:
    """Row and column of the value furthest from its column's median, in units of the column's spread."""
    x = x.double()
    deviation = (x - x.median(0).values).abs()
    spread = deviation.median(0).values.clamp(min=1e-300)
    worst = int((deviation / spread).nan_to_num(nan=math.inf).argmax())
    return worst // x.shape[1], worst % x.shape[1]


# ---- fixed layers -----------------------------------------------------------------------------------------------


@dataclass
class Precomputed:
    """A flow without the fixed layers on its data side, with its rows behind them.

    Attributes:
        model: The rest of the flow; it shares its layers with the flow.
        train: Rows to train on.
        held_out: Rows to validate on, if any.
        train_offset: What to add to the mean loss of `train`, for the log-determinants of the fixed layers.
        offset: The same for `held_out`, or for `train` where nothing is held out.
    """

    model: nn.Module
    train: Rows
    held_out: Rows | None
    train_offset: float = 0.0
    offset: float = 0.0


@torch.no_grad()
def precompute(flow: Any, train: Rows, held_out: Rows | None) -> Precomputed:
    """Map the rows through the fixed layers on the data side once, instead of in every step."""
    chain = list(flow) if isinstance(flow, Flow) else []
    fixed = 0
    while fixed < len(chain) and _is_fixed(chain[-1 - fixed]):
        fixed += 1
    if fixed == 0:
        return Precomputed(flow, train, held_out)
    preprocessing = Flow(flow.base, chain[len(chain) - fixed :])
    model = Flow(flow.base, chain[: len(chain) - fixed])
    train, train_offset = _mapped(preprocessing, train)
    if held_out is None:
        return Precomputed(model, train, None, train_offset, train_offset)
    held_out, offset = _mapped(preprocessing, held_out)
    return Precomputed(model, train, held_out, train_offset, offset)


def _mapped(preprocessing: Flow, rows: Rows) -> tuple[Rows, float]:
    """Rows behind fixed layers, and the mean of minus their log-determinants."""
    parts = [preprocessing.inverse(chunk.x) for chunk in rows.chunks()]  # type: ignore[arg-type]
    log_det = torch.cat([part[1].double() for part in parts])
    weight = rows.weight.to(log_det)
    offset = -float((weight * torch.where(weight > 0, log_det, 0)).sum() / weight.sum())
    return Rows(torch.cat([part[0] for part in parts]), rows.context, rows.weight), offset


def _is_fixed(layer: nn.Module) -> bool:
    return not any(p.requires_grad for p in layer.parameters()) and not getattr(layer, "context_features", 0)
