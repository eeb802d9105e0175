"""Invertible layers, and the scalar maps that couplings and autoregressive layers apply."""

from flowlab.layers.autoregressive import Autoregressive
from flowlab.layers.coupling import Coupling
from flowlab.layers.layer import Layer
from flowlab.layers.linear import ActNorm, ElementwiseAffine, Householder, LULinear, Permutation, Whitening
from flowlab.layers.marginal import Marginal
from flowlab.layers.planar import Planar, Radial, Sylvester
from flowlab.layers.scalar import (
    Additive,
    Affine,
    CircularSpline,
    MixtureCDF,
    RationalQuadraticSpline,
    ScalarMap,
    SinhArcsinh,
)

__all__ = [
    "ActNorm",
    "Additive",
    "Affine",
    "Autoregressive",
    "CircularSpline",
    "Coupling",
    "ElementwiseAffine",
    "Householder",
    "LULinear",
    "Layer",
    "Marginal",
    "MixtureCDF",
    "Permutation",
    "Planar",
    "Radial",
    "RationalQuadraticSpline",
    "ScalarMap",
    "SinhArcsinh",
    "Sylvester",
    "Whitening",
]


def __dir__() -> list[str]:
    """The layers and scalar maps, for tab completion."""
    return __all__
