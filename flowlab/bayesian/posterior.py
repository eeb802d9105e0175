"""The variational posterior over the weights of a `BayesianModule`: layers, and draws by path gradients."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowlab.flow import Flow
from flowlab.layers import Affine, ElementwiseAffine, Layer
from flowlab.layers.coupling import alternating_couplings
from flowlab.layers.layer import zero_log_det
from flowlab.layers.linear import solve_rows
from flowlab.training.path_gradients import path_log_prob

Posterior = Literal["flow", "full", "mean-field"] | Callable[[int], Flow]

WIDEST = 4096  # weights that a full map mixes: its matrices have this many rows and columns
COUPLINGS, HIDDEN = 4, (64, 64)
WIDEST_SCALE = 30.0  # largest |log-sd| of a weight


class Subspace(Layer):
    """Layers that act in a learnt subspace of `rank` directions and are the identity on its orthogonal complement.

    x = z + Q (g(Qᵀz) − Qᵀz), with Q (features, rank) of orthonormal columns and g the layers' chain; the
    log-determinant is that of g. Sylvester flows are built alike (van den Berg et al. 2018, "Sylvester normalizing
    flows for variational inference", equation 13). Memory and time grow as features × rank.

    Args:
        features: Width of noise and data.
        layers: Layers of `rank` features, in sampling order.
        generator: Source of the first directions.

    Example:
        >>> import torch, flowlab
        >>> layer = Subspace(5, [flowlab.layers.LULinear(2)])
        >>> flowlab.check_layer(layer)
    """

    def __init__(self, features: int, layers: Sequence[Layer], *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.features, self.layers = features, nn.ModuleList(layers)
        self.frame = nn.Parameter(torch.empty(features, layers[0].features).normal_(generator=generator))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(z, inverse=False)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(x, inverse=True)

    def _map(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        directions = torch.linalg.qr(self.frame).Q
        before = after = value @ directions
        log_det = value.new_zeros(value.shape[:-1])
        chain: list[Any] = list(self.layers)
        for layer in reversed(chain) if inverse else chain:
            after, term = layer.inverse(after) if inverse else layer(after)
            log_det = log_det + term
        return value + (after - before) @ directions.T, log_det


class Triangular(Layer):
    """x = z + L z / √features, with L strictly lower triangular.

    With a scale for every feature after it, a Gaussian can have any covariance. The divisor lets one learning rate
    serve few weights and many.

    Args:
        features: Width of noise and data.

    Example:
        >>> import flowlab
        >>> flowlab.check_layer(Triangular(3))
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.lower = nn.Parameter(torch.zeros(features, features))  # the strict lower triangle counts

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z + z @ self.lower.tril(-1).T / self.features**0.5, zero_log_det(z)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        eye = torch.eye(self.features, dtype=x.dtype, device=x.device)
        return solve_rows(eye + self.lower.tril(-1) / self.features**0.5, x, upper=False), zero_log_det(x)


def layers_of(posterior: Posterior, features: int, rank: int | None, generator: torch.Generator | None) -> list[Layer]:
    """The layers of a joint posterior before `shift_and_scale`, at first the identity or near it."""
    width = features if rank is None else rank
    if not 1 <= width <= features:
        raise ValueError(f"rank must be from 1 to the {features} weights that are covered, not {rank}")
    if width > WIDEST and not callable(posterior):
        raise ValueError(
            f"posterior={posterior!r} over {width} weights needs matrices of that size, {WIDEST} is the limit: "
            'give over="last", rank=…, or posterior="mean-field"'
        )
    if callable(posterior):
        own = posterior(width)
        if own.features != width or own.context_features:
            raise ValueError(f"posterior must make a flow of {width} features without context, not {own}")
        inner: list[Layer] = list(own)
    else:
        inner = [Triangular(width)]
        if posterior == "flow":
            options: dict[str, Any] = {"hidden": HIDDEN, "activation": "silu", "generator": generator}
            inner = [*alternating_couplings(width, Affine(2.0), COUPLINGS, **options), *inner]
    return inner if rank is None else [Subspace(features, inner, generator=generator)]


def shift_and_scale(mean: Tensor, sd: Tensor) -> ElementwiseAffine:
    """The layer that gives every weight its first mean and standard deviation, both learnt on."""
    return ElementwiseAffine.from_moments(mean, sd.log(), bound=WIDEST_SCALE)


def draw(flow: Flow, shape: Sequence[int], generator: torch.Generator | None, path: bool) -> tuple[Tensor, Tensor]:
    """Draws and their log-densities, whose gradients go through the draws alone with `path`."""
    if not path:
        return flow.rsample_and_log_prob(shape, generator=generator)
    return path_log_prob(flow, shape, None, generator)
