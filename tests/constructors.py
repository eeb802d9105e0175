"""Every layer in every meaningful variant, every base and every preset, with functions for inputs and comparisons."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from flowlab import Flow, bases, presets
from flowlab.interop.converted import (
    Backwards,
    ConvertedAutoregressive,
    ConvertedCoupling,
    FlooredSpline,
    Inverse,
    ScaleAndShift,
)
from flowlab.interop.steps import Steps
from flowlab.layers import (
    ActNorm,
    Additive,
    Affine,
    Autoregressive,
    CircularSpline,
    Coupling,
    ElementwiseAffine,
    Householder,
    Layer,
    LULinear,
    Marginal,
    MixtureCDF,
    Permutation,
    Planar,
    Radial,
    RationalQuadraticSpline,
    ScalarMap,
    SinhArcsinh,
    Sylvester,
    Whitening,
)
from flowlab.posteriors.contexts import Given
from helpers import seeded

SCALARS: dict[str, ScalarMap] = {
    "additive": Additive(),
    "affine": Affine(),
    "spline": RationalQuadraticSpline(bins=4),
    "circular": CircularSpline(bins=4),
    "mixture": MixtureCDF(components=3),
    "sinh-arcsinh": SinhArcsinh(),
}
NARROW = {"hidden": (8,)}


@dataclass(frozen=True)
class Entry:
    """How to build a layer, and what may be asked of it.

    Attributes:
        build: Function of features, context_features and generator.
        takes_context: Whether the layer can depend on a context.
        circular: Values are angles in [-π, π), equal modulo 2π.
        identity: How far from the identity the layer may be as built, for |x| < 3; None if it is none at all.
        numeric: One of its directions is a numerical inverse.
    """

    build: Callable[[int, int, Generator], Layer]
    takes_context: bool = True
    circular: bool = False
    identity: float | None = 1e-6
    numeric: bool = False

    def __call__(
        self,
        features: int,
        context_features: int = 0,
        generator: Generator | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        perturbed: bool = True,
    ) -> Layer:
        """The layer, by default in double precision and not at its initial parameters."""
        generator = generator or torch.Generator().manual_seed(features + 10 * context_features)
        layer = self.build(features, context_features, generator).double()
        return (perturb(layer, generator) if perturbed else layer).to(dtype)


def perturb(module: nn.Module, generator: Generator | None = None, scale: float = 0.2) -> nn.Module:
    """Add normal noise to every parameter, in place, so that layers are not the identity."""
    generator = generator or torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.empty_like(parameter).normal_(generator=generator)
    return module


def skewed(features: int, rows: int = 400) -> Tensor:
    """A fixed sample whose columns are, in turn, log-normal, heavy-tailed, bounded, and correlated with the first."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.empty(rows, features, dtype=torch.float64).normal_(generator=generator)
    wide = torch.empty(rows, features, dtype=torch.float64).normal_(generator=generator)
    kinds = [
        lambda z, w: z.exp(),
        lambda z, w: 10 + z / w.abs().clamp(min=0.05),
        lambda z, w: torch.special.ndtr(z),
        lambda z, w: noise[:, 0] + 0.5 * z,
    ]
    return torch.stack([kinds[j % 4](noise[:, j], wide[:, j]) for j in range(features)], -1)


def fitted(layer: Layer) -> Layer:
    """The layer after `initialise` on the fixed sample."""
    layer = layer.double()
    layer.initialise(skewed(layer.features))
    return layer


def shuffled(features: int, generator: Generator) -> list[int]:
    return torch.randperm(features, generator=generator).tolist()


def _conditioned(scalar: ScalarMap) -> dict[str, Callable[[int, int, Generator], Layer]]:
    """The couplings and autoregressive layers of one scalar map."""

    def coupling(features: int, context: int, generator: Generator, **options: object) -> Layer:
        return Coupling(features, scalar, context_features=context, generator=generator, **{**NARROW, **options})

    def autoregressive(features: int, context: int, generator: Generator, **options: object) -> Layer:
        return Autoregressive(features, scalar, context_features=context, generator=generator, **{**NARROW, **options})

    return {
        "coupling": coupling,
        "coupling, residual, own mask": lambda f, c, g: coupling(
            f, c, g, mask=[i % 3 == 0 for i in range(f)], residual=True, activation="silu"
        ),
        "autoregressive, fast density": autoregressive,
        "autoregressive, fast sampling": lambda f, c, g: autoregressive(f, c, g, fast="sampling"),
        "autoregressive, residual, random order": lambda f, c, g: autoregressive(
            f, c, g, order=shuffled(f, g), residual=True, activation="tanh"
        ),
    }


def _converted_coupling(features: int, context: int, _: Generator) -> Layer:
    scalar, mask = Backwards(ScaleAndShift("exp")), [i % 2 == 0 for i in range(features)]
    steps = [["join"], ["linear", 8], ["tanh"], ["linear", sum(mask) * scalar.count]]
    return ConvertedCoupling(features, scalar, mask, Steps(features - sum(mask), context, steps))


def _converted_autoregressive(features: int, context: int, _: Generator) -> Layer:
    scalar = FlooredSpline(bins=4, bound=3.0)
    network = Steps(features, context, [["masked", features * scalar.count]])
    lower = torch.ones(features, features).tril(-1)
    network.linears[0].mask.copy_(lower.repeat_interleave(scalar.count, 0))
    return ConvertedAutoregressive(features, scalar, range(features), network)


def _given(features: int, _: int, generator: Generator) -> Layer:
    layer = Coupling(features, Affine(), context_features=2, generator=generator, **NARROW)
    return Given(layer, torch.tensor([0.5, -1.0]))


def _table() -> dict[str, Entry]:
    table: dict[str, Entry] = {}
    for name, scalar in SCALARS.items():
        mixture = isinstance(scalar, MixtureCDF)
        for kind, build in _conditioned(scalar).items():
            table[f"{kind}: {name}"] = Entry(
                build, circular=scalar.periodic, identity=0.05 if mixture else 1e-6, numeric=mixture
            )
    table |= {
        "planar": Entry(lambda f, c, g: Planar(f, context_features=c, generator=g, **NARROW), numeric=True),
        "planar, five steps": Entry(
            lambda f, c, g: Planar(f, 5, context_features=c, generator=g, **NARROW), numeric=True
        ),
        "radial": Entry(lambda f, c, g: Radial(f, context_features=c, generator=g, **NARROW)),
        "sylvester": Entry(lambda f, c, g: Sylvester(f, context_features=c, generator=g, **NARROW), numeric=True),
        "sylvester, one direction": Entry(
            lambda f, c, g: Sylvester(f, 1, context_features=c, generator=g, **NARROW), numeric=True
        ),
        "elementwise affine": Entry(
            lambda f, c, g: ElementwiseAffine(f, context_features=c, generator=g, **NARROW),
        ),
        "LU": Entry(lambda f, c, g: LULinear(f), takes_context=False),
        "householder": Entry(lambda f, c, g: Householder(f, generator=g), takes_context=False),
        "householder, two reflections": Entry(lambda f, c, g: Householder(f, 2, generator=g), takes_context=False),
        "permutation": Entry(lambda f, c, g: Permutation(f, generator=g), takes_context=False, identity=None),
        "actnorm": Entry(lambda f, c, g: ActNorm(f), takes_context=False),
        "actnorm, fitted": Entry(lambda f, c, g: fitted(ActNorm(f)), takes_context=False, identity=None),
        "whitening": Entry(lambda f, c, g: Whitening(f), takes_context=False),
        "whitening, fitted": Entry(lambda f, c, g: fitted(Whitening(f)), takes_context=False, identity=None),
        "marginal": Entry(lambda f, c, g: Marginal(f), takes_context=False),
        "marginal, fitted": Entry(lambda f, c, g: fitted(Marginal(f)), takes_context=False, identity=None),
        "inverse": Entry(
            lambda f, c, g: Inverse(Autoregressive(f, Affine(), context_features=c, generator=g, **NARROW))
        ),
        "fixed context": Entry(_given, takes_context=False),
        "converted coupling": Entry(_converted_coupling),
        "converted autoregressive": Entry(_converted_autoregressive, takes_context=False, identity=None),
    }
    return table


LAYERS = _table()


def noise_for(
    entry: Entry,
    features: int,
    batch: tuple[int, ...] = (16,),
    dtype: torch.dtype = torch.float64,
    seed: int = 2,
) -> Tensor:
    """Moderate noise for a layer: standard normal, for circular layers uniform angles."""
    noise = torch.empty(*batch, features, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    if entry.circular:
        return noise.uniform_(-math.pi, math.pi, generator=generator).to(dtype)
    return noise.normal_(generator=generator).to(dtype)


def context_for(
    context_features: int, batch: tuple[int, ...] = (16,), dtype: torch.dtype = torch.float64
) -> Tensor | None:
    """A standard normal context, None for `context_features=0`."""
    if not context_features:
        return None
    generator = torch.Generator().manual_seed(3)
    return torch.empty(*batch, context_features, dtype=torch.float64).normal_(generator=generator).to(dtype)


def flow_of(entry: Entry, layer: Layer) -> Flow:
    """A flow of one double-precision layer over the base that suits it."""
    circular, features = entry.circular, layer.features
    base = bases.Uniform(features, low=-math.pi, high=math.pi) if circular else bases.Gaussian(features)
    return Flow(base.double(), [layer])


def distance(entry: Entry, a: Tensor, b: Tensor) -> Tensor:
    """|a - b| elementwise, on the circle for circular layers."""
    apart = (a - b).abs()
    return torch.minimum(apart, 2 * math.pi - apart).abs() if entry.circular else apart


BASES: dict[str, Callable[[int], bases.Base]] = {
    "gaussian": bases.Gaussian,
    "gaussian, learnable": lambda features: perturb(bases.Gaussian(features, learnable=True)),
    "student": lambda features: perturb(bases.StudentT(features, df=5.0)),
    "mixture": lambda features: perturb(bases.GaussianMixture(features, 3, generator=seeded())),
    "kernels": lambda features: bases.Kernels.from_rows(rows(5, features).float(), bandwidth=0.7),
    "uniform": lambda features: bases.Uniform(features, low=-2.0, high=0.5),
    "circle": lambda features: bases.Uniform(features, low=-math.pi, high=math.pi),
}

PRESETS: dict[str, tuple[Callable[..., Flow], str]] = {
    "planar": (presets.planar, "sampling"),
    "radial": (presets.radial, "both"),
    "sylvester": (presets.sylvester, "sampling"),
    "nice": (presets.nice, "both"),
    "real_nvp": (presets.real_nvp, "both"),
    "glow": (presets.glow, "both"),
    "maf": (presets.maf, "density"),
    "iaf": (presets.iaf, "sampling"),
    "nsf": (presets.nsf, "both"),
    "nsf, autoregressive": (
        lambda features, **options: presets.nsf(features, autoregressive=True, **options),
        "density",
    ),
    "circular_nsf": (presets.circular_nsf, "both"),
    "circular_nsf, autoregressive": (
        lambda features, **options: presets.circular_nsf(features, autoregressive=True, **options),
        "density",
    ),
}
EVERY_PRESET = pytest.mark.parametrize("name", PRESETS)


def preset(name: str, features: int, *, perturbed: bool = True, **options: Any) -> Flow:
    flow = PRESETS[name][0](features, hidden=(8,), generator=seeded(), **{"layers": 2, **options}).double()
    return perturb(flow) if perturbed else flow


def rows(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.float64).normal_(generator=seeded(4))


def flat(results: Any) -> Tensor:
    """All results in one vector."""
    return torch.cat([r.reshape(-1) for r in ([results] if isinstance(results, Tensor) else results)])


def weighted(results: Any) -> Tensor:
    """A scalar with another weight for each result, and curved in all of them."""
    x = flat(results)
    return (x + x.square() / 2) @ torch.linspace(0.5, 2, len(x), dtype=x.dtype)
