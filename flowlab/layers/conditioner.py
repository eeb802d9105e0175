"""Scalar maps whose parameters a network predicts: what coupling and autoregressive layers are made of.

All work with features first: values are (features, n).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.distributions import constraints

from flowlab.kernels import (
    Kernel,
    differentiable_backward,
    plain_backward,
    plain_network,
    pull_network,
    pull_tame,
    run_network,
    run_tame,
    tame,
    to_features_first,
    transforming,
    within,
)
from flowlab.layers.scalar.scalar_map import ScalarMap, kernel_of
from flowlab.networks import MLP

Rows = Tensor | slice  # indices of rows, or evenly spaced rows, which are read without copying


class Places(NamedTuple):
    """Which rows a coupling layer keeps and changes, and where in the kept and then the changed ones each row is."""

    kept: Rows
    changed: Rows
    restore: Tensor


def conditioned(
    x: Tensor,
    context: Tensor | None,
    network: MLP,
    scalar: ScalarMap,
    inverse: bool,
    places: Places | None = None,
    dropout: bool = True,
) -> tuple[Tensor, Tensor]:
    """Map rows of x (features, n) by scalar maps with the network's parameters; also the log-determinant (n,).

    Args:
        x: The values.
        context: (*batch, context_features) for n columns in all.
        network: From context and rows to the parameters.
        scalar: The scalar map.
        inverse: Whether to map data to noise.
        places: Which rows the network sees, and which others are mapped; None for all of them and all of them.
        dropout: Whether the network's dropout is on, in training.
    """
    given = None if context is None else to_features_first(context)
    kernel = kernel_of(scalar, inverse)
    dropped = dropout and network.training and network.dropout > 0
    if kernel is None or not network.plain or dropped or transforming():
        run = functools.partial(network.columns, dropout=dropout)
        return _plain(
            x, given, run, scalar.inverse if inverse else scalar.forward, scalar.count, scalar.periodic, places
        )
    return _Conditioned.apply(
        x, given, network.activation, network.masks, kernel, scalar.count, places, *network.weights
    )


def rows(x: Tensor, index: Rows) -> Tensor:
    """The rows of x at an index."""
    return x[index] if isinstance(index, slice) else x.index_select(0, index)


def _put(x: Tensor, index: Rows, part: Tensor) -> None:
    """Writes to x what `rows(x, index)` was made into: of a slice that was x itself, not a copy."""
    if not isinstance(index, slice):
        x[index] = part


def _plain(
    x: Tensor,
    given: Tensor | None,
    network: Callable[[Tensor], Tensor],
    map: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    count: int,
    periodic: bool,
    places: Places | None,
) -> tuple[Tensor, Tensor]:
    """`conditioned` in differentiable operations."""
    kept, changed = (x, x) if places is None else (rows(x, places.kept), rows(x, places.changed))
    params = by_parameter(network(conditioner_inputs(kept, given, periodic)), count)
    mapped, log_slope = map(changed, params)
    if places is not None:
        mapped = torch.cat([kept, mapped]).index_select(0, places.restore)
    return mapped, log_slope.sum(0)


class _Conditioned(Function):
    """One function for a whole layer: autograd then has one step to remember and to take, in place of fifteen."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        given: Tensor | None,
        activation: str,
        masks: Sequence[Tensor | None],
        kernel: Kernel,
        count: int,
        places: Places | None,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        kept, changed = (x, x) if places is None else (rows(x, places.kept), rows(x, places.changed))
        inputs = kept if given is None else torch.cat([given, kept])
        # Of all rows, though some are not inputs: they lie together in memory, and looking is quicker.
        untamed = None if within(x) and (given is None or within(given)) else inputs
        if untamed is not None:
            inputs = run_tame(inputs)
        output, values, matrices = run_network(inputs, activation, masks, weights)
        params = output.view(len(changed), count, x.shape[1])
        mapped = torch.empty_like(x)
        # As data: a saved view of an output would keep the output, and that this graph, alive for good.
        out = mapped if places is None else rows(mapped.data, places.changed)
        log_slope, saved = kernel.run(changed, params, out)
        if places is not None:
            mapped[places.kept] = kept
            _put(mapped, places.changed, out)
        ctx.save_for_backward(x, given, untamed, changed, params, *saved, *matrices, *weights, *values)
        ctx.options = activation, masks, kernel, count, places, len(saved)
        return mapped, log_slope.sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        activation, masks, kernel, count, places, first = ctx.options
        x, given, untamed, changed, params, *rest = ctx.saved_tensors
        second, third = first + len(masks), first + 3 * len(masks)
        saved, matrices, weights, values = rest[:first], rest[first:second], rest[second:third], rest[third:]
        if plain_backward(grad, grad_log_det):

            def plain(x: Tensor, *given_and_weights: Tensor) -> tuple[Tensor, Tensor]:
                given, weights = _leading(given_and_weights, len(given_and_weights) > len(masks) * 2)

                def network(inputs: Tensor) -> Tensor:
                    return plain_network(inputs, *weights, activation=activation, masks=masks)

                return _plain(x, given, network, kernel.plain, count, False, places)

            inputs = (x, *weights) if given is None else (x, given, *weights)
            by_x, *others = differentiable_backward(plain, inputs, (grad, grad_log_det))
            by_given, by_weights = _leading(others, given is not None)
            return by_x, by_given, *[None] * 5, *by_weights

        need_x, need_given = ctx.needs_input_grad[:2]
        needed = (need_x or need_given, *ctx.needs_input_grad[7:])
        grad_mapped = grad if places is None else rows(grad, places.changed)
        grad_log_slope = grad_log_det.expand(grad_mapped.shape)
        by_x = torch.empty_like(grad)
        by_changed = by_x if places is None else rows(by_x, places.changed)
        by_params = kernel.pull(changed, params, saved, grad_mapped, grad_log_slope, by_changed)
        by_input, by_weights = pull_network(by_params.flatten(0, 1), activation, masks, values, matrices, needed)
        if by_input is None:
            return *[None] * 7, *by_weights
        if untamed is not None:
            by_input = pull_tame(by_input, untamed)
        by_given = None if given is None else by_input[: len(given)]
        by_kept = by_input if given is None else by_input[len(given) :]
        if places is None:
            by_x.add_(by_kept)
        else:
            by_x[places.kept] = by_kept.add_(rows(grad, places.kept))
            _put(by_x, places.changed, by_changed)
        return by_x, by_given, *[None] * 5, *by_weights


def _leading(values: Sequence[Any], present: bool) -> tuple[Any, Sequence[Any]]:
    """The first of the values where it is there, and the others."""
    return (values[0], values[1:]) if present else (None, values)


def conditioner_inputs(features: Tensor, given: Tensor | None, periodic: bool) -> Tensor:
    """A conditioner's inputs: the context, then features (d, n), angles as cosine and sine; outliers are tamed."""
    if periodic:
        features = torch.stack([features.cos(), features.sin()], 1).flatten(0, 1)
    return tame(features if given is None else torch.cat([given, features]))


def by_parameter(output: Tensor, count: int) -> Tensor:
    """A conditioner's output, `count` parameters of feature after feature, as scalar maps want it: (count, d, n)."""
    return output.view(len(output) // count, count, output.shape[-1]).transpose(0, 1)


def scalar_support(scalar: ScalarMap, noise: constraints.Constraint) -> constraints.Constraint:
    """Where data lie when a scalar map is applied to noise in `noise`: a box around the map's own stays as it is."""
    side = noise.base_constraint if isinstance(noise, constraints.independent) else None
    if scalar.box is None or not isinstance(side, constraints.interval):
        return constraints.real_vector
    keeps = side.lower_bound <= scalar.box[0] and side.upper_bound >= scalar.box[1]
    return noise if keeps else constraints.real_vector
