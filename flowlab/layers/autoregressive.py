"""Autoregressive layers: every feature's scalar map is parametrised by the features before it."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import constraints

from flowlab.layers.coupling import conditioner_inputs, initial_parameters, scalar_support
from flowlab.layers.layer import Layer, flat
from flowlab.layers.scalar import Affine, ScalarMap
from flowlab.networks import MaskedMLP, start_at


class Autoregressive(Layer):
    """A masked autoregressive layer over any scalar map.

    With `fast="density"` the parameters depend on the earlier data (MAF, Papamakarios et al. 2017): density is one pass of
    the network, sampling one per feature. With `fast="sampling"` they depend on the earlier noise (IAF, Kingma
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

    def __init__(
        self,
        features: int,
        scalar: ScalarMap | None = None,
        order: Sequence[int] | None = None,
        fast: Literal["density", "sampling"] = "density",
        *,
        context_features: int = 0,
        hidden: Sequence[int] = (64, 64),
        residual: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if fast not in ("density", "sampling"):
            raise ValueError(f'fast must be "density" or "sampling", not {fast!r}')
        self.features, self.context_features, self.fast = features, context_features, fast
        self.scalar: ScalarMap = Affine() if scalar is None else scalar
        self.hidden, self.residual, self.activation, self.dropout = tuple(hidden), residual, activation, dropout
        self.network = MaskedMLP(
            features,
            self.scalar.count,
            hidden,
            order=order,
            context_features=context_features,
            inputs_per_feature=2 if self.scalar.periodic else 1,
            residual=residual,
            activation=activation,
            dropout=dropout,
            generator=generator,
        )
        start_at(self.network.mlp.last, initial_parameters(self.scalar))

    def support(self, noise: constraints.Constraint) -> constraints.Constraint:
        return scalar_support(self.scalar, noise)

    @property
    def order(self) -> Tensor:
        return self.network.order

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._one_pass(z, context, False) if self.fast == "sampling" else self._by_feature(z, context, False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._one_pass(x, context, True) if self.fast == "density" else self._by_feature(x, context, True)

    def _map(self, value: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return self.scalar.inverse(value, params) if inverse else self.scalar.forward(value, params)

    def _one_pass(self, value: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        rows = flat(value)
        params = self.network.columns(conditioner_inputs(rows, context, self.scalar.periodic))
        mapped, log_det = self._map(rows.T, params.view(self.scalar.count, *rows.T.shape), inverse)
        return mapped.T.reshape(value.shape), log_det.sum(0).view(value.shape[:-1])

    def _by_feature(self, value: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """The other direction: the parameters of a feature need the mapped values of those before it."""
        columns = flat(value).T
        mapped = torch.zeros_like(columns)
        log_det = torch.zeros_like(columns[0])
        for i in self.order.split(1):  # a tensor: as a number it would break torch.compile's graph
            inputs = conditioner_inputs(mapped.T, context, self.scalar.periodic)
            params = self.network.columns(inputs).view(self.scalar.count, *columns.shape).index_select(1, i)
            column, term = self._map(columns.index_select(0, i), params, inverse)
            mapped = mapped.index_copy(0, i, column)
            log_det = log_det + term[0]
        return mapped.T.reshape(value.shape), log_det.view(value.shape[:-1])

    def extra_repr(self) -> str:
        return f"{self.features}, {self.scalar}, fast={self.fast!r}"
