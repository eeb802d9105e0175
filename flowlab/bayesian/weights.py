"""What a `BayesianModule` is made of: a network's weights by name, their priors, and the layers of their posterior."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from flowlab.flow import Flow
from flowlab.layers import Affine, Coupling, ElementwiseAffine, Layer
from flowlab.layers.coupling import alternating_mask
from flowlab.layers.layer import zero_log_det
from flowlab.layers.linear import solve_rows
from flowlab.training.path_gradients import path_log_prob

Prior = float | Mapping[str, float] | Callable[[str, Tensor], float | Tensor] | None
Posterior = Literal["flow", "full", "mean-field"] | Callable[[int], Flow]

NOISE = "log_noise"  # the name of the noise's logarithm among the weights
WIDEST = 4096  # weights that a full map mixes: its matrices have this many rows and columns
COUPLINGS, HIDDEN = 4, (64, 64)


class Subspace(Layer):
    """Layers that act in a learnt subspace of `rank` directions, and leave what is orthogonal to it as it is.

    x = z + Q (g(Qᵀz) − Qᵀz), with Q (features, rank) of orthonormal columns and g the layers' chain; the log-determinant is
    g's. Sylvester flows are built alike (van den Berg et al. 2018, "Sylvester normalizing flows for variational inference", equation 13).
    The cost is that of features × rank numbers.

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

    Any covariance, once every feature has a scale of its own. The divisor lets one learning rate do for few weights and for many.

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


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters that get a posterior, by name."""
    for name, layer in module.named_modules():
        batch = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        if batch or (isinstance(layer, _NormBase) and layer.track_running_stats):
            raise ValueError(
                f"module: layer {name!r} is a {type(layer).__name__}, which makes rows depend on each other or on "
                "running averages; take LayerNorm or GroupNorm"
            )
    weights = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError("module has no parameter that requires a gradient")
    kinds = {(w.dtype, w.device) for w in weights.values()}
    if len(kinds) > 1 or not next(iter(kinds))[0].is_floating_point:
        raise ValueError(f"module's parameters must share a real floating-point type and a device, not {kinds}")
    if NOISE in weights:
        raise ValueError(f"module has a parameter named {NOISE!r}, which is the name of the noise here: rename it")
    return weights


def aliases_of(module: nn.Module) -> dict[str, str]:
    """Further names of parameters and buffers that are shared, each with the name that counts."""
    first: dict[int, str] = {}
    aliases = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        if first.setdefault(id(tensor), name) != name:
            aliases[name] = first[id(tensor)]
    return aliases


def covered_by(module: nn.Module, weights: Mapping[str, Tensor], over: str) -> list[str]:
    """The names that `over` stands for."""
    if over == "all":
        return list(weights)
    if over == "last":
        last = [name for name in weights if name != NOISE][-1].rpartition(".")[0]
        return [name for name in weights if name.rpartition(".")[0] == last and name != NOISE]
    found = [name for name in weights if fnmatch.fnmatchcase(name, over)]
    if not found:
        raise ValueError(f'over must be "all", "last" or a pattern of names, and {over!r} fits none of {list(weights)}')
    return found


def prior_scale(prior: Prior, name: str, weight: Tensor) -> Tensor:
    """The prior's standard deviation of each number of a weight."""
    scale: float | Tensor
    if prior is None:
        scale = (weight.numel() / weight.shape[0]) ** -0.5 if weight.ndim >= 2 else 1.0
    elif callable(prior):
        scale = prior(name, weight)
    elif isinstance(prior, Mapping):
        fitting = [value for pattern, value in prior.items() if fnmatch.fnmatchcase(name, pattern)]
        if not fitting:
            raise ValueError(f'prior has no pattern that fits {name!r}; add "*" for the rest')
        scale = fitting[0]
    else:
        scale = prior
    scale = torch.as_tensor(scale, dtype=weight.dtype, device=weight.device)
    if not bool((scale > 0).all()):
        raise ValueError(f"prior must be positive, not {scale.tolist()} for {name!r}")
    return scale.expand(weight.shape)


def layers_of(posterior: Posterior, features: int, rank: int | None, generator: torch.Generator | None) -> list[Layer]:
    """The layers of a joint posterior, the identity or near it, in units of the weights' first scales."""
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
            masks = [alternating_mask(width, flip=i % 2 == 1) for i in range(COUPLINGS)]
            inner = [*(Coupling(width, Affine(2.0), mask, **options) for mask in masks), *inner]
    return inner if rank is None else [Subspace(features, inner, generator=generator)]


def shifted(at: Tensor, sd: Tensor) -> ElementwiseAffine:
    """The layer that gives every weight its own place and scale."""
    layer = ElementwiseAffine(len(at)).to(at)
    log_scale = (sd.log() / layer.bound).clamp(-0.999, 0.999).atanh() * layer.bound
    with torch.no_grad():
        layer.parameters_.value.copy_(torch.cat([at, log_scale]))
    return layer


def draw(flow: Flow, shape: Sequence[int], generator: torch.Generator | None, path: bool) -> tuple[Tensor, Tensor]:
    """Draws and log-densities, by the path alone if asked: as `Variational.weigh_by_path` does."""
    if not path:
        return flow.rsample_and_log_prob(shape, generator=generator)
    return path_log_prob(flow, shape, None, generator)
