"""Ready-made flows by the names of the field: each function returns a `Flow`.

All take `features`, then by keyword `context_features`, `layers` and `hidden`, of which one number stands for one
layer; `generator` decides the initial weights.
"""

import math
from collections.abc import Callable, Sequence

import torch

from flowlab.arguments import whole
from flowlab.bases import Gaussian, Uniform
from flowlab.flow import Flow
from flowlab.layers import (
    ActNorm,
    Additive,
    Affine,
    Autoregressive,
    CircularSpline,
    ElementwiseAffine,
    Layer,
    LULinear,
    Planar,
    Radial,
    RationalQuadraticSpline,
    ScalarMap,
    Sylvester,
)
from flowlab.layers.coupling import alternating_couplings

__all__ = ["circular_nsf", "glow", "iaf", "maf", "nice", "nsf", "planar", "radial", "real_nvp", "sylvester"]

Generator = torch.Generator | None


def __dir__() -> list[str]:
    """The presets, for tab completion."""
    return __all__


def planar(
    features: int,
    *,
    context_features: int = 0,
    layers: int = 16,
    hidden: int | Sequence[int] = (64,),
    generator: Generator = None,
) -> Flow:
    """Planar flow (Rezende & Mohamed 2015): one `Planar` of `layers` steps.

    Sampling is fast; `hidden` belongs to the context's network.

    Example:
        >>> import flowlab
        >>> flowlab.presets.planar(2, layers=4).fast
        'sampling'
    """
    layer = Planar(
        features, whole("layers", layers), context_features=context_features, hidden=hidden, generator=generator
    )
    return Flow(Gaussian(features), [layer])


def radial(
    features: int,
    *,
    context_features: int = 0,
    layers: int = 16,
    hidden: int | Sequence[int] = (64,),
    generator: Generator = None,
) -> Flow:
    """Radial flow (Rezende & Mohamed 2015); `hidden` belongs to the context's network."""
    return _residual(Radial, features, context_features, layers, hidden, generator)


def sylvester(
    features: int,
    *,
    context_features: int = 0,
    layers: int = 4,
    hidden: int | Sequence[int] = (64,),
    directions: int | None = None,
    generator: Generator = None,
) -> Flow:
    """Householder Sylvester flow (van den Berg et al. 2018) with `directions` columns in Q; sampling is fast."""

    def layer(features: int, **options: object) -> Layer:
        return Sylvester(features, directions, **options)  # type: ignore[arg-type]

    return _residual(layer, features, context_features, layers, hidden, generator)


def nice(
    features: int,
    *,
    context_features: int = 0,
    layers: int = 6,
    hidden: int | Sequence[int] = (128, 128),
    generator: Generator = None,
) -> Flow:
    """NICE (Dinh et al. 2014): additive couplings and one elementwise scaling."""
    couplings = _couplings(Additive(), features, context_features, layers, hidden, generator)
    scaling = ElementwiseAffine(features, context_features=context_features, generator=generator)
    return Flow(Gaussian(features), [*couplings, scaling])


def real_nvp(
    features: int,
    *,
    context_features: int = 0,
    layers: int = 8,
    hidden: int | Sequence[int] = (128, 128),
    generator: Generator = None,
) -> Flow:
    """RealNVP (Dinh et al. 2017): affine couplings with alternating masks."""
    return Flow(Gaussian(features), _couplings(Affine(), features, context_features, layers, hidden, generator))


def glow(
    features: int,
    *,
    context_features: int = 0,
    layers: int = 6,
    hidden: int | Sequence[int] = (128, 128),
    generator: Generator = None,
) -> Flow:
    """Glow (Kingma & Dhariwal 2018) for vectors: per step an affine coupling, an LU mixing and an ActNorm."""
    steps: list[Layer] = []
    for coupling in _couplings(Affine(), features, context_features, layers, hidden, generator):
        steps += [coupling, LULinear(features), ActNorm(features)]
    return Flow(Gaussian(features), steps)


def maf(
    features: int,
    *,
    context_features: int = 0,
    layers: int = 5,
    hidden: int | Sequence[int] = (128, 128),
    generator: Generator = None,
) -> Flow:
    """Masked autoregressive flow (Papamakarios et al. 2017): density is one pass, sampling one per feature."""
    return Flow(
        Gaussian(features),
        _autoregressive(Affine(), "density", features, context_features, layers, hidden, generator),
    )


def iaf(
    features: int,
    *,
    context_features: int = 0,
    layers: int = 5,
    hidden: int | Sequence[int] = (128, 128),
    generator: Generator = None,
) -> Flow:
    """Inverse autoregressive flow (Kingma et al. 2016): sampling is one pass, density one per feature."""
    return Flow(
        Gaussian(features),
        _autoregressive(Affine(), "sampling", features, context_features, layers, hidden, generator),
    )


def nsf(
    features: int,
    *,
    context_features: int = 0,
    layers: int = 6,
    hidden: int | Sequence[int] = (128, 128),
    bins: int = 8,
    bound: float = 5.0,
    autoregressive: bool = False,
    generator: Generator = None,
) -> Flow:
    """Neural spline flow (Durkan et al. 2019): rational-quadratic splines in couplings, or autoregressive.

    Example:
        >>> import torch, flowlab
        >>> flow = flowlab.presets.nsf(3, context_features=2, layers=2, hidden=(16,))
        >>> flow.log_prob(torch.zeros(3), context=torch.zeros(4, 2)).shape
        torch.Size([4])
    """
    scalar = RationalQuadraticSpline(bins, bound)
    if autoregressive:
        chain = _autoregressive(scalar, "density", features, context_features, layers, hidden, generator)
    else:
        chain = _couplings(scalar, features, context_features, layers, hidden, generator)
    return Flow(Gaussian(features), chain)


def circular_nsf(
    features: int,
    *,
    context_features: int = 0,
    layers: int = 6,
    hidden: int | Sequence[int] = (128, 128),
    bins: int = 8,
    autoregressive: bool = False,
    generator: Generator = None,
) -> Flow:
    """Neural spline flow on a torus (Rezende et al. 2020).

    Every feature is an angle in [-π, π), the base is uniform.
    """
    scalar = CircularSpline(bins)
    if autoregressive:
        chain = _autoregressive(scalar, "density", features, context_features, layers, hidden, generator)
    else:
        chain = _couplings(scalar, features, context_features, layers, hidden, generator)
    return Flow(Uniform(features, low=-math.pi, high=math.pi), chain)


def _residual(
    layer: Callable[..., Layer],
    features: int,
    context_features: int,
    layers: int,
    hidden: int | Sequence[int],
    generator: Generator,
) -> Flow:
    options = {"context_features": context_features, "hidden": hidden, "generator": generator}
    return Flow(Gaussian(features), [layer(features, **options) for _ in range(whole("layers", layers))])


def _couplings(
    scalar: ScalarMap,
    features: int,
    context_features: int,
    layers: int,
    hidden: int | Sequence[int],
    generator: Generator,
) -> list[Layer]:
    """Couplings with alternating masks."""
    options = {"context_features": context_features, "hidden": hidden, "generator": generator}
    return alternating_couplings(whole("features", features), scalar, whole("layers", layers), **options)


def _autoregressive(
    scalar: ScalarMap,
    fast: str,
    features: int,
    context_features: int,
    layers: int,
    hidden: int | Sequence[int],
    generator: Generator,
) -> list[Layer]:
    """Autoregressive layers whose order alternates between the features' own and its reverse."""
    own = list(range(whole("features", features)))
    return [
        Autoregressive(
            features,
            scalar,
            own[::-1] if i % 2 else own,
            fast,  # type: ignore[arg-type]
            context_features=context_features,
            hidden=hidden,
            generator=generator,
        )
        for i in range(whole("layers", layers))
    ]
