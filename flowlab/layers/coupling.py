"""Coupling layers: part of the features pass through and parametrise a scalar map of the others."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from flowlab.arguments import whole, widths
from flowlab.kernels import to_features_first
from flowlab.layers.conditioner import Places, conditioned, scalar_support
from flowlab.layers.layer import Layer
from flowlab.layers.scalar import Affine, ScalarMap
from flowlab.layers.scalar.scalar_map import initial_parameters
from flowlab.networks import MLP, start_at


class Coupling(Layer):
    """A coupling layer over any scalar map. Dinh et al. 2017, "Density estimation using Real NVP", section 3.

    Args:
        features: Width of noise and data.
        scalar: What happens to each changed feature; `Affine()` when None.
        mask: True for each feature that is changed; every other one, beginning with the second, when
            None. A single feature is always changed, by parameters that depend on the context alone.
        context_features: Width of the context.
        hidden: Widths of the conditioner's hidden layers.
        residual: Residual blocks in the conditioner.
        activation: The conditioner's activation.
        dropout: The conditioner's dropout.
        generator: Source of the initial weights.

    Example:
        >>> import torch, flowlab
        >>> layer = flowlab.layers.Coupling(3, flowlab.layers.RationalQuadraticSpline(bins=4))
        >>> x, log_det = layer(torch.randn(5, 3))
        >>> x.shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    mask: Tensor
    kept: Tensor
    changed: Tensor
    restore: Tensor

    def __init__(
        self,
        features: int,
        scalar: ScalarMap | None = None,
        mask: Sequence[bool] | None = None,
        *,
        context_features: int = 0,
        hidden: int | Sequence[int] = (64, 64),
        residual: bool = False,
        activation: str = "relu",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        features, context_features = whole("features", features), whole("context_features", context_features, 0)
        mask = alternating_mask(features) if mask is None else [bool(m) for m in mask]
        if len(mask) != features or not any(mask):
            raise ValueError(f"mask must have {features} entries, at least one of them True, not {mask}")
        self.features, self.context_features = features, context_features
        self.scalar: ScalarMap = Affine() if scalar is None else scalar
        self.hidden, self.residual, self.activation, self.dropout = widths(hidden), residual, activation, dropout
        kept = [i for i in range(features) if not mask[i]]
        changed = [i for i in range(features) if mask[i]]
        self.register_buffer("mask", torch.tensor(mask))
        self.register_buffer("kept", torch.tensor(kept, dtype=torch.long))
        self.register_buffer("changed", torch.tensor(changed, dtype=torch.long))
        self.register_buffer("restore", torch.tensor(kept + changed).argsort())
        self.evenly = evenly_spaced(kept), evenly_spaced(changed)
        self.register_load_state_dict_post_hook(_find_evenly)
        self.network = MLP(
            len(kept) * (2 if self.scalar.periodic else 1) + context_features,
            len(changed) * self.scalar.count,
            self.hidden,
            residual=residual,
            activation=activation,
            dropout=dropout,
            generator=generator,
        )
        start_at(self.network.last, initial_parameters(self.scalar))

    def support(self, noise: constraints.Constraint) -> constraints.Constraint:
        return scalar_support(self.scalar, noise)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(z, context, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(x, context, inverse=True)

    def _map(self, value: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        places = Places(self.evenly[0] or self.kept, self.evenly[1] or self.changed, self.restore)
        mapped, log_det = conditioned(to_features_first(value), context, self.network, self.scalar, inverse, places)
        return mapped.T.view(value.shape), log_det.view(value.shape[:-1])

    def extra_repr(self) -> str:
        return f"{self.features}, {self.scalar}, changes {len(self.changed)}"


def alternating_mask(features: int, flip: bool = False) -> list[bool]:
    """Every other feature, beginning with the second, or with `flip` the first; a single feature always."""
    return [features == 1 or (i % 2 == 1) != flip for i in range(features)]


def alternating_couplings(features: int, scalar: ScalarMap, count: int, **options: Any) -> list[Layer]:
    """Couplings with alternating masks, the first of which changes every other feature from the second on.

    Args:
        features: Width of noise and data.
        scalar: What happens to each changed feature.
        count: Number of couplings.
        **options: Further arguments of `Coupling`.

    Example:
        >>> from flowlab.layers import Affine
        >>> [layer.mask.tolist() for layer in alternating_couplings(3, Affine(), 2, hidden=16)]
        [[False, True, False], [True, False, True]]
    """
    masks = [alternating_mask(features, flip=i % 2 == 1) for i in range(count)]
    return [Coupling(features, scalar, mask, **options) for mask in masks]


def evenly_spaced(indices: list[int]) -> slice | None:
    """The same rows as a slice, which is read without copying; None where they are not evenly spaced."""
    if not indices:
        return None
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    same = indices == list(range(indices[0], indices[-1] + 1, step)) if step > 0 else False
    return slice(indices[0], indices[-1] + 1, step) if same else None


def _find_evenly(layer: Coupling, _: object) -> None:
    layer.evenly = evenly_spaced(layer.kept.tolist()), evenly_spaced(layer.changed.tolist())
