"""What nflows' flows are made of, part by part, as parts of flowlab: bases, transforms, networks.

`nflows.convert` puts them together.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from nflows import transforms
from nflows.distributions import ConditionalDiagonalNormal, DiagonalNormal, StandardNormal
from nflows.distributions.uniform import BoxUniform
from nflows.nn.nets import MLP, ResidualNet
from nflows.transforms.normalization import BatchNorm
from nflows.transforms.orthogonal import HouseholderSequence
from torch import Tensor, nn

from flowlab.bases import Base, Gaussian, Uniform
from flowlab.interop.conversion import (
    ConversionError,
    Recipe,
    Source,
    activation,
    dropout,
    elementwise,
    scale_and_shift,
    sequential,
)
from flowlab.interop.converted import (
    Backwards,
    ConvertedAutoregressive,
    ConvertedCoupling,
    FlooredSpline,
    Inverse,
    ScaleAndShift,
)
from flowlab.interop.steps import Step
from flowlab.layers import ActNorm, Additive, Householder, Layer, LULinear, Permutation, ScalarMap

# Bases ----------------------------------------------------------------------------------------------------------------


def base_of(distribution: Any, empty: Tensor) -> tuple[Base, list[Layer]]:
    """The base, and the layers between it and the transforms."""
    if type(distribution) is BoxUniform:
        low, high = distribution.base_dist.low, distribution.base_dist.high
        if low.ndim == 1 and bool((low == low[0]).all() and (high == high[0]).all()):
            return Uniform(len(low), low=float(low[0]), high=float(high[0])), []
        raise ConversionError(
            "the distribution (BoxUniform) has sides of unlike lengths: flowlab's Uniform has equal ones"
        )
    if type(distribution) not in (StandardNormal, DiagonalNormal, ConditionalDiagonalNormal):
        raise ConversionError(
            f"the distribution ({type(distribution).__name__}) has no counterpart: StandardNormal, DiagonalNormal, "
            "ConditionalDiagonalNormal and BoxUniform have"
        )
    if len(distribution._shape) != 1:
        raise ConversionError(
            f"the distribution has shape {tuple(distribution._shape)}: flowlab's flows are over vectors"
        )
    features = int(distribution._shape[0])
    if type(distribution) is DiagonalNormal:
        return Gaussian.from_moments(distribution.mean_[0], distribution.log_std_[0]).to(empty), []
    layers: list[Layer] = []
    if type(distribution) is ConditionalDiagonalNormal:
        recipe, context_features = _encoder(distribution._context_encoder)
        *inner, last = recipe.sources
        order = [k * features + i for i in range(features) for k in range(2)]
        recipe = Recipe([["join"], *recipe.steps], [*inner, last.select(order)])
        layers = [elementwise(features, Backwards(ScaleAndShift("exp")), recipe, context_features, empty)]
    return Gaussian(features), layers


def _encoder(encoder: Any) -> tuple[Recipe, int]:
    where = "the distribution (ConditionalDiagonalNormal)"
    recipe: Recipe | None = None
    if type(encoder) is ResidualNet and not encoder.context_features:
        recipe = _residual_net(encoder, where)
    elif type(encoder) is MLP and not encoder._activate_output:
        step = activation(encoder._activation, where)
        linears = [encoder._input_layer, *encoder._hidden_layers, encoder._output_layer]
        steps = [s for linear in linears for s in (["linear", int(linear.out_features)], step)][:-1]
        recipe = Recipe(steps, [Source(linear.weight, linear.bias) for linear in linears])
    elif isinstance(encoder, nn.Linear):
        recipe = sequential([encoder], where)
    elif type(encoder) is nn.Sequential:
        recipe = sequential(encoder, where)
    if recipe is None or not recipe.sources or recipe.steps[-1][0] != "linear":
        raise ConversionError(f"{where}: the context_encoder ({type(encoder).__name__}) has no counterpart")
    return recipe, recipe.sources[0].weight.shape[1]


# Transforms -----------------------------------------------------------------------------------------------------------


def layers_of(transform: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    """Layers from data to noise."""
    converter = _CONVERTERS.get(type(transform))
    if converter is None:
        names = ", ".join(sorted(kind.__name__ for kind in _CONVERTERS))
        raise ConversionError(
            f"{where} has no counterpart; what has: {names}. convert(model, wrap=True) keeps it as from_nflows wraps it"
        )
    return [layer.to(empty) for layer in converter(transform, features, where, empty)]


def _affine_coupling(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    scalar: ScalarMap = (
        ScaleAndShift("sigmoid") if type(t) is transforms.AffineCouplingTransform else Backwards(Additive())
    )
    changed = len(t.transform_features)
    # There, all shifts come before all scales.
    return _coupling(t, scalar, where, empty, [k * changed + i for i in range(changed) for k in range(scalar.count)])


def _spline_coupling(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    return _coupling(t, _spline(t, t.num_bins, where, t.transform_net), where, empty)


def _coupling(t: Any, scalar: ScalarMap, where: str, empty: Tensor, order: Sequence[int] | None = None) -> list[Layer]:
    if type(t.transform_net) is not ResidualNet:
        raise ConversionError(
            f"{where}: its network ({type(t.transform_net).__name__}) has no counterpart, "
            "only nflows.nn.nets.ResidualNet has; convert(model, wrap=True) keeps the transform as from_nflows wraps it"
        )
    recipe = _residual_net(t.transform_net, where)
    if order is not None:
        recipe.sources[-1] = recipe.sources[-1].select(order)
    context_features = t.transform_net.context_features or 0
    kept = t.identity_features.tolist()
    network = recipe.build(len(kept), context_features, empty)
    mask = [i not in kept for i in range(t.features)]
    layers: list[Layer] = [ConvertedCoupling(t.features, scalar, mask, network)]
    if (
        t.unconditional_transform is not None
    ):  # of the features that the coupling keeps, behind it on the way to the noise
        own = f"{where}: its unconditional transform ({type(t.unconditional_transform).__name__})"
        layers.append(_constant_spline(t.unconditional_transform, [not m for m in mask], own, empty))
    return layers


def _autoregressive(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    made = t.autoregressive_net
    recipe = _made(made, where)
    features = made.initial_layer.in_features
    scalar: ScalarMap
    if type(t) is transforms.MaskedAffineAutoregressiveTransform:
        scalar = ScaleAndShift("softplus", t._epsilon)
        order = [2 * i + k for i in range(features) for k in (1, 0)]  # there, a feature's scale comes before its shift
        recipe.sources[-1] = recipe.sources[-1].select(order)
    else:
        scalar = _spline(t, t.num_bins, where, made)
    context_features = made.context_layer.in_features if hasattr(made, "context_layer") else 0
    network = recipe.build(features, context_features, empty)
    return [ConvertedAutoregressive(features, scalar, range(features), network)]


def _spline(t: Any, bins: int, where: str, network: Any = None) -> FlooredSpline:
    if t.tails != "linear":
        raise ConversionError(
            f'{where} has tails={t.tails!r}: outside of its box it is not defined, only tails="linear" has a '
            "counterpart. convert(model, wrap=True) keeps it as from_nflows wraps it"
        )
    shrink = math.sqrt(getattr(network, "hidden_features", 1))  # a MADE does not tell its width
    return FlooredSpline(bins, float(t.tail_bound), t.min_bin_width, t.min_bin_height, t.min_derivative, shrink)


def _elementwise_spline(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    return [_constant_spline(t, [True] * features, where, empty)]


def _constant_spline(t: Any, mask: list[bool], where: str, empty: Tensor) -> Layer:
    """A spline of the features in `mask` with parameters of its own."""
    if type(t) is not transforms.PiecewiseRationalQuadraticCDF or t.unnormalized_widths.ndim != 2:
        raise ConversionError(
            f"{where} has no counterpart: of the elementwise splines, PiecewiseRationalQuadraticCDF of vectors has"
        )
    values = torch.cat([t.unnormalized_widths, t.unnormalized_heights, t.unnormalized_derivatives], 1).flatten()
    recipe = Recipe([["constant", len(values)]], [Source(values.new_empty(len(values), 0), values)])
    network = recipe.build(mask.count(False), 0, empty)
    return ConvertedCoupling(len(mask), _spline(t, t.unnormalized_widths.shape[1], where), mask, network)


def _permutation(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    if t._dim != 1:
        raise ConversionError(f"{where} has dim={t._dim}: flowlab's flows are over vectors")
    return [Permutation(features, t._permutation.argsort().tolist()).to(empty.device)]


def _lu(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    lower, upper = (matrix.double() for matrix in t._create_lower_upper())
    return [_mixing(lower, upper, t.bias, empty)]


def _mixing(lower: Tensor, upper: Tensor, shift: Tensor, empty: Tensor) -> Layer:
    return Inverse(LULinear.from_factors(lower, upper, shift.double()).to(empty))


def _householder(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    if t.num_transforms % 2:
        raise ConversionError(
            f"{where} has {t.num_transforms} reflections: flowlab's Householder has an even number. "
            "convert(model, wrap=True) keeps it as from_nflows wraps it"
        )
    return [Inverse(Householder.from_vectors(t.q_vectors).to(empty))]


@torch.no_grad()
def _qr(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    upper = t._create_upper().double()
    shift = t.orthogonal.inverse(t.bias.unsqueeze(0))[0][0]  # ahead of the reflections
    return [_mixing(torch.eye(features), upper, shift, empty), *_householder(t.orthogonal, features, where, empty)]


@torch.no_grad()
def _svd(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    shift = t.orthogonal_1.inverse(t.bias.unsqueeze(0))[0][0]
    first, second = (_householder(o, features, where, empty) for o in (t.orthogonal_2, t.orthogonal_1))
    return [*first, scale_and_shift(t.diagonal.double(), shift.double(), empty), *second]


@torch.no_grad()
def _actnorm(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    scale, shift = t.log_scale.double().exp(), t.shift.double()
    layer = ActNorm.from_moments(-shift / scale, -scale.log()).to(empty)
    layer.initialised.copy_(t.initialized)
    return [layer]


@torch.no_grad()
def _batch_norm(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    scale = t.weight.double() / (t.running_var.double() + t.eps).sqrt()
    return [scale_and_shift(scale, t.bias.double() - scale * t.running_mean.double(), empty)]


def _pointwise(t: Any, features: int, where: str, empty: Tensor) -> list[Layer]:
    layer = scale_and_shift(t._scale.double().expand(features), t._shift.double().expand(features), empty)
    return [layer.requires_grad_(False)]  # numbers that nflows does not train


_CONVERTERS: dict[type, Callable[[Any, int, str, Tensor], list[Layer]]] = {
    transforms.AffineCouplingTransform: _affine_coupling,
    transforms.AdditiveCouplingTransform: _affine_coupling,
    transforms.PiecewiseRationalQuadraticCouplingTransform: _spline_coupling,
    transforms.MaskedAffineAutoregressiveTransform: _autoregressive,
    transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform: _autoregressive,
    transforms.PiecewiseRationalQuadraticCDF: _elementwise_spline,
    transforms.Permutation: _permutation,
    transforms.RandomPermutation: _permutation,
    transforms.ReversePermutation: _permutation,
    transforms.LULinear: _lu,
    transforms.QRLinear: _qr,
    transforms.SVDLinear: _svd,
    HouseholderSequence: _householder,
    transforms.ActNorm: _actnorm,
    BatchNorm: _batch_norm,
    transforms.PointwiseAffineTransform: _pointwise,
    transforms.AffineTransform: _pointwise,
    transforms.IdentityTransform: lambda t, features, where, empty: [],
}


# Networks -------------------------------------------------------------------------------------------------------------


def _residual_net(net: Any, where: str) -> Recipe:
    """Context and inputs enter together, and each block is multiplied by a gate of the context."""
    first, last = net.initial_layer, net.final_layer
    steps: list[Step] = [*([["join"]] if net.context_features else []), ["linear", first.out_features]]
    sources = [Source(first.weight, first.bias)]
    for block in net.blocks:
        _no_batch_norm(block.use_batch_norm, where)
        act, (one, two) = activation(block.activation, where), block.linear_layers
        inner: list[Step] = [
            act,
            ["linear", one.out_features],
            act,
            *dropout(block.dropout),
            ["linear", two.out_features],
        ]
        sources += [Source(one.weight, one.bias), Source(two.weight, two.bias)]
        if net.context_features:
            inner.append(["gate", [["linear", two.out_features]]])
            sources.append(Source(block.context_layer.weight, block.context_layer.bias))
        steps.append(["residual", inner])
    return Recipe([*steps, ["linear", last.out_features]], [*sources, Source(last.weight, last.bias)])


def _made(made: Any, where: str) -> Recipe:
    """The context is added behind the first layer, through the activation, and in every residual block."""

    def masked(linear: Any) -> Step:
        sources.append(Source(linear.weight, linear.bias, linear.mask))
        return ["masked", linear.out_features]

    def of_context(linear: Any) -> list[Step]:
        sources.append(Source(linear.weight, linear.bias))
        return [["linear", linear.out_features]]

    sources: list[Source] = []
    act, conditional = activation(made.activation, where), hasattr(made, "context_layer")
    steps = [masked(made.initial_layer)]
    if conditional:
        steps.append(["add", [*of_context(made.context_layer), act]])
    if not made.use_residual_blocks:
        steps.append(act)
    for block in made.blocks:
        if made.use_residual_blocks:
            _no_batch_norm(block.use_batch_norm, where)
            one, two = block.linear_layers
            inner = [act, masked(one)]
            if conditional:
                inner.append(["add", of_context(block.context_layer)])
            steps.append(["residual", [*inner, act, *dropout(block.dropout), masked(two)]])
        else:
            _no_batch_norm(block.batch_norm is not None, where)
            steps += [masked(block.linear), act, *dropout(block.dropout)]
    return Recipe([*steps, masked(made.final_layer)], sources)


def _no_batch_norm(used: bool, where: str) -> None:
    if used:
        raise ConversionError(
            f"{where}: batch normalisation inside of its network has no counterpart. "
            "convert(model, wrap=True) keeps the transform as from_nflows wraps it"
        )
