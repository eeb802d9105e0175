"""Scalar maps: what a coupling or autoregressive layer does to each number."""

from flowlab.layers.scalar.affine import Additive, Affine
from flowlab.layers.scalar.mixture import MixtureCDF
from flowlab.layers.scalar.scalar_map import ScalarMap
from flowlab.layers.scalar.sinh_arcsinh import SinhArcsinh
from flowlab.layers.scalar.spline import CircularSpline, RationalQuadraticSpline

__all__ = ["Additive", "Affine", "CircularSpline", "MixtureCDF", "RationalQuadraticSpline", "ScalarMap", "SinhArcsinh"]
