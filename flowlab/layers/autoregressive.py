"""Autoregressive layers: every feature's scalar map is parametrised by the features before it."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import constraints

from flowlab.arguments import whole, widths
from flowlab.kernels import permute, to_features_first, transforming
from flowlab.layers.autoregressive_inverse import Implicit, Map, Sweep
from flowlab.layers.conditioner import (
    by_parameter,
    conditioned,
    conditioner_inputs,
    scalar_support,
)
from flowlab.layers.layer import Layer
from flowlab.layers.linear import ordering
from flowlab.layers.scalar import Affine, ScalarMap
from flowlab.layers.scalar.scalar_map import initial_parameters
from flowlab.networks import MaskedMLP, start_at


class Autoregressive(Layer):
    """A masked autoregressive layer over any scalar map.

    With `fast="density"` the parameters depend on the earlier data (MAF, Papamakarios et al. 2017): density is one pass
    of the network, sampling one per feature. With `fast="sampling"` they depend on the earlier noise (IAF, Kingma
    et al. 2016), and it is the other way round.

    Args:
        features: Width of noise and data.
        scalar: What happens to each feature; `Affine()` when None.
        order: `order[k]` is the feature that comes k-th; 0 … features - 1 when None.
        fast: The direction that is one pass, "density" or "sampling".
        context_features: Width of the context.
        hidden: Widths of the masked network's hidden layers.
        residual: Residual blocks in the masked network.
        activation: The network's activation.
        dropout: The network's dropout.
        generator: Source of the initial weights.

    Example:
        >>> import torch, flowlab
        >>> layer = flowlab.layers.Autoregressive(3, order=[2, 0, 1], fast="sampling")
        >>> x, log_det = layer(torch.randn(4, 3))
        >>> z, back = layer.inverse(x)
        >>> bool((log_det + back).abs().max() < 1e-5)
        True
    """

    order: Tensor
    rank: Tensor

    def __init__(
        self,
        features: int,
        scalar: ScalarMap | None = None,
        order: Sequence[int] | None = None,
        fast: Literal["density", "sampling"] = "density",
        *,
        context_features: int = 0,
        hidden: int | Sequence[int] = (64, 64),
        residual: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if fast not in ("density", "sampling"):
            raise ValueError(f'fast must be "density" or "sampling", not {fast!r}')
        features, context_features = whole("features", features), whole("context_features", context_features, 0)
        self.features, self.context_features, self.fast = features, context_features, fast
        self.scalar: ScalarMap = Affine() if scalar is None else scalar
        self.hidden, self.residual, self.activation, self.dropout = widths(hidden), residual, activation, dropout
        order = list(range(features)) if order is None else ordering("order", order, features)
        self.register_buffer("order", torch.tensor(order, dtype=torch.long))
        self.register_buffer("rank", torch.tensor(order, dtype=torch.long).argsort())
        self.permutes = order != sorted(order)
        self.register_load_state_dict_post_hook(_note_order)
        self.network = MaskedMLP(
            features,
            self.scalar.count,
            self.hidden,
            context_features=context_features,
            inputs_per_feature=2 if self.scalar.periodic else 1,
            residual=residual,
            activation=activation,
            dropout=dropout,
            generator=generator,
        )
        start_at(self.network.last, initial_parameters(self.scalar))

    def support(self, noise: constraints.Constraint) -> constraints.Constraint:
        return scalar_support(self.scalar, noise)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, inverse=True)

    def _run(self, value: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        ordered = to_features_first(value)
        if self.permutes:
            ordered = permute(ordered, self.order, self.rank)
        if inverse == (self.fast == "density"):
            mapped, log_det = self._one_pass(ordered, context, inverse)
        elif transforming():
            mapped, log_det = self._pass_per_feature(ordered, context, inverse)
        else:
            mapped, log_det = self._by_feature(ordered, context, inverse)
        if self.permutes:
            mapped = permute(mapped, self.rank, self.order)
        return mapped.T.view(value.shape), log_det.view(value.shape[:-1])

    def _one_pass(
        self, value: Tensor, context: Tensor | None, inverse: bool, dropout: bool = True
    ) -> tuple[Tensor, Tensor]:
        return conditioned(value, context, self.network, self.scalar, inverse, dropout=dropout)

    def _by_feature(self, value: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """The slow direction: a feature's parameters need the mapped values before it. There is no dropout."""
        slow: Map = self.scalar.inverse if inverse else self.scalar.forward
        fast: Map = self.scalar.forward if inverse else self.scalar.inverse
        sweep = Sweep(self.network, self.scalar, None if context is None else context.detach())
        mapped, log_det = sweep.run(value, slow)
        given = [value, *self.parameters()] if context is None else [value, context, *self.parameters()]
        if not (torch.is_grad_enabled() and any(x.requires_grad for x in given)):
            return mapped, log_det
        residual = value - self._one_pass(mapped, context, not inverse, dropout=False)[0]
        mapped = Implicit.apply(residual, mapped, sweep, fast, *sweep.weights)
        return mapped, -self._one_pass(mapped, context, not inverse, dropout=False)[1]

    def _pass_per_feature(self, value: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """The slow direction by whole passes, for torch.compile, torch.export and torch.func."""
        given = None if context is None else to_features_first(context)
        mapped = torch.zeros_like(value)
        log_det = torch.zeros_like(value[0])
        for i in torch.arange(self.features, device=value.device).split(1):  # as numbers they would break graphs
            inputs = conditioner_inputs(mapped, given, self.scalar.periodic)
            params = by_parameter(self.network.columns(inputs, dropout=False), self.scalar.count).index_select(1, i)
            column = value.index_select(0, i)
            column, term = self.scalar.inverse(column, params) if inverse else self.scalar.forward(column, params)
            mapped = mapped.index_copy(0, i, column)
            log_det = log_det + term[0]
        return mapped, log_det

    def extra_repr(self) -> str:
        return f"{self.features}, {self.scalar}, fast={self.fast!r}"


def _note_order(layer: Autoregressive, _: object) -> None:
    order = layer.order.tolist()
    layer.permutes = order != sorted(order)
