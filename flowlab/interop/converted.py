"""What flows converted from other libraries are made of: layers with a given network, and the others' parametrisations.

The scalar maps here differ from flowlab's own in how numbers become scales, knots and slopes, and in their direction:
nflows and zuko parametrise the way from data to noise. Nothing here needs the other library: a converted flow is saved,
loaded, trained and moved like any flow.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from flowlab.interop.steps import Steps
from flowlab.kernels import to_features_first
from flowlab.layers import Additive, Autoregressive, Coupling, Layer, ScalarMap
from flowlab.layers.conditioner import by_parameter, rows
from flowlab.layers.layer import Fast
from flowlab.layers.scalar.rational_quadratic import cumulated, rational_quadratic, soft_clip, within
from flowlab.layers.scalar.spline import OnBox
from flowlab.registry import register

# Layers ---------------------------------------------------------------------------------------------------------------


@register
class Inverse(Layer):
    """A layer with its two directions exchanged.

    Args:
        layer: The layer.

    Example:
        >>> import torch, flowlab
        >>> layer = flowlab.layers.LULinear(2)
        >>> bool(torch.equal(Inverse(layer)(torch.ones(2))[0], layer.inverse(torch.ones(2))[0]))
        True
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer, self.features, self.context_features = layer, layer.features, layer.context_features
        swapped: dict[Fast, Fast] = {"both": "both", "density": "sampling", "sampling": "density"}
        self.fast = swapped[layer.fast]

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer.inverse(z, context)

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer(x, context)


@register
class ConvertedCoupling(Coupling):
    """A `Coupling` whose network is given.

    Args:
        features: Width of noise and data.
        scalar: What happens to each changed feature.
        mask: True for each feature that is changed.
        network: From the kept features, in order, and the context, to the parameters of each changed feature in turn.
    """

    network: Steps  # type: ignore[assignment]

    def __init__(self, features: int, scalar: ScalarMap, mask: Sequence[bool], network: Steps) -> None:
        super().__init__(features, scalar, mask, context_features=network.context_features, hidden=())
        check_widths(network, len(self.kept), len(self.changed) * scalar.count)
        self.network = network

    def _map(self, value: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        x, given = to_features_first(value), None if context is None else to_features_first(context)
        kept, changed = rows(x, self.evenly[0] or self.kept), rows(x, self.evenly[1] or self.changed)
        params = by_parameter(self.network.columns(kept, given), self.scalar.count)
        mapped, log_slope = (self.scalar.inverse if inverse else self.scalar.forward)(changed, params)
        mapped = torch.cat([kept, mapped]).index_select(0, self.restore)
        return mapped.T.view(value.shape), log_slope.sum(0).view(value.shape[:-1])


@register
class ConvertedAutoregressive(Autoregressive):
    """An `Autoregressive` layer whose network is given: density is one pass, sampling one for each level.

    Args:
        features: Width of noise and data.
        scalar: What happens to each feature.
        level: Of each feature: its parameters depend on features of lower levels alone. Levels count from 0.
        network: From all features in order, and the context, to the parameters of each feature in turn.
    """

    level: Tensor
    by_level: Tensor
    network: Steps  # type: ignore[assignment]

    def __init__(self, features: int, scalar: ScalarMap, level: Sequence[int], network: Steps) -> None:
        super().__init__(features, Additive(), context_features=network.context_features, hidden=())
        check_widths(network, features, features * scalar.count)
        self.scalar, self.network = scalar, network
        levels = [int(k) for k in level]
        found = Counter(levels)
        if len(levels) != features or sorted(found) != list(range(len(found))):
            raise ValueError(
                f"level must be {features} whole numbers that count from 0 without a gap, not {levels[:20]}"
            )
        self.register_buffer("level", torch.tensor(levels))
        self.register_buffer("by_level", torch.tensor(sorted(range(features), key=levels.__getitem__)))
        self.sizes = [found[k] for k in range(len(found))]

    def _run(self, value: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        x, given = to_features_first(value), None if context is None else to_features_first(context)
        if inverse:
            mapped, log_slope = self.scalar.inverse(x, by_parameter(self.network.columns(x, given), self.scalar.count))
            log_det = log_slope.sum(0)
        else:
            mapped, log_det = self._by_level(x, given)
        return mapped.T.view(value.shape), log_det.view(value.shape[:-1])

    def _by_level(self, z: Tensor, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """From noise (features, n) to data and the log-determinant (n,)."""
        count = self.scalar.count
        mapped, log_det = torch.zeros_like(z), torch.zeros_like(z[0])
        parameters = torch.arange(count, device=z.device)
        for index in self.by_level.split(self.sizes):
            outputs = (index.unsqueeze(1) * count + parameters).view(-1)
            params = by_parameter(self.network.columns(mapped, given, dropout=False, rows=outputs), count)
            part, term = self.scalar.forward(z.index_select(0, index), params)
            mapped, log_det = mapped.index_copy(0, index, part), log_det + term.sum(0)
        return mapped, log_det


def check_widths(network: Steps, inputs: int, outputs: int) -> None:
    """Raises a ValueError unless a network is of the widths that its layer needs."""
    found = network.in_features, network.out_features
    if found != (inputs, outputs):
        raise ValueError(
            f"the network must take {inputs} features and give {outputs} parameters, not {found[0]} and {found[1]}"
        )


# Scalar maps ----------------------------------------------------------------------------------------------------------


@register
@dataclass(frozen=True)
class Backwards(ScalarMap):
    """A scalar map with its two directions exchanged.

    Attributes:
        scalar: The scalar map, not of angles.
    """

    scalar: ScalarMap

    @property
    def box(self) -> tuple[float, float] | None:
        return self.scalar.box

    @property
    def count(self) -> int:
        return self.scalar.count

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self.scalar.inverse(z, params)

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self.scalar.forward(x, params)


@register
@dataclass(frozen=True)
class ScaleAndShift(ScalarMap):
    """z = scale · x + shift, with parameters shift and a raw scale.

    Attributes:
        scale: How the raw scale a becomes the scale: "softplus" is softplus(a) + least (nflows' autoregressive
            transform), "sigmoid" is sigmoid(a + 2) + least (nflows' coupling), "soft clip" is
            exp(a / (1 + |a / log least|)) (zuko), "exp" is exp(a).
        least: The smallest scale.
    """

    scale: Literal["softplus", "sigmoid", "soft clip", "exp"]
    least: float = 1e-3

    count: ClassVar[int] = 2

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        scale, log_scale = self._scale(params[1])
        return (z - params[0]) / scale, -log_scale

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        scale, log_scale = self._scale(params[1])
        return x * scale + params[0], log_scale

    def _scale(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale in ("softplus", "sigmoid"):
            scale = (F.softplus(raw) if self.scale == "softplus" else torch.sigmoid(raw + 2)) + self.least
            return scale, scale.log()
        log_scale = soft_clip(raw, -math.log(self.least)) if self.scale == "soft clip" else raw
        return log_scale.exp(), log_scale


@register
@dataclass(frozen=True)
class FlooredSpline(OnBox):
    """From data to noise a rational-quadratic spline on [-bound, bound], the identity outside, as nflows has it.

    Parameters are the logits of `bins` widths and of as many heights, and of `bins - 1` slopes the softplus⁻¹.

    Attributes:
        bins: Number of bins.
        bound: Half-width of the box.
        least_width: Smallest width of a bin, as a share of the box.
        least_height: Smallest height of a bin, likewise.
        least_slope: Smallest slope at a knot.
        shrink: What the logits are divided by: nflows divides by the root of its network's width.
    """

    bins: int
    bound: float
    least_width: float = 1e-3
    least_height: float = 1e-3
    least_slope: float = 1e-3
    shrink: float = 1.0

    def forward(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(z, params, inverse=True)

    def inverse(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(x, params, inverse=False)

    def _map(self, value: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        widths, heights, slopes = params.split([self.bins, self.bins, self.bins - 1])
        one = torch.ones_like(params[:1])
        slopes = torch.cat([one, F.softplus(slopes) + self.least_slope, one])
        knots_x, knots_y = self._knots(widths, self.least_width), self._knots(heights, self.least_height)
        inner = value.clamp(-self.bound, self.bound)
        mapped, log_slope = rational_quadratic(inner, knots_x, knots_y, slopes, inverse)
        return within(self.bound, value, mapped, log_slope)

    def _knots(self, logits: Tensor, least: float) -> Tensor:
        return cumulated(least + (1 - least * self.bins) * (logits / self.shrink).softmax(0), self.bound)
