"""The names that model files may hold: of classes, where they live; and of saved objects that are more than a module.

This is the ground floor: it imports nothing of flowlab. A class is imported when a file names it, or when it is itself
saved, so that files of flows need neither pandas nor scikit-learn.
"""

import importlib
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T", bound=type)

_MODULES: dict[str, tuple[str, ...]] = {
    "flowlab.flow": ("Flow",),
    "flowlab.mixture": ("FlowMixture",),
    "flowlab.bases": ("Gaussian", "GaussianMixture", "Kernels", "StudentT", "Uniform"),
    "flowlab.layers.autoregressive": ("Autoregressive",),
    "flowlab.layers.coupling": ("Coupling",),
    "flowlab.layers.linear": (
        "ActNorm",
        "ElementwiseAffine",
        "Householder",
        "LULinear",
        "Permutation",
        "Whitening",
    ),
    "flowlab.layers.marginal": ("Marginal",),
    "flowlab.layers.planar": ("Planar", "Radial", "Sylvester"),
    "flowlab.layers.scalar.affine": ("Additive", "Affine"),
    "flowlab.layers.scalar.mixture": ("MixtureCDF",),
    "flowlab.layers.scalar.sinh_arcsinh": ("SinhArcsinh",),
    "flowlab.layers.scalar.spline": ("CircularSpline", "RationalQuadraticSpline"),
    "flowlab.tables.ensemble.joint_density": ("Cells", "JointDensity"),
    "flowlab.tables.mixed.mixed_flow": ("MixedFlow",),
    "flowlab.tables.mixed.column_mixture": ("ColumnMixture",),
    "flowlab.tables.mixed.forest": ("Forest",),
    "flowlab.tables.mixed.gaussian_flow": ("GaussianFlow",),
    "flowlab.tables.mixed.gaussians": ("Gaussians",),
    "flowlab.tables.mixed.marginal_cdf": ("MarginalCDF",),
    "flowlab.tables.mixed.heads": ("Histogram", "HistogramAndLogistics", "Logistics"),
    "flowlab.interop.converted": (
        "Backwards",
        "ConvertedAutoregressive",
        "ConvertedCoupling",
        "FlooredSpline",
        "Inverse",
        "ScaleAndShift",
    ),
    "flowlab.interop.steps": ("Steps",),
    "flowlab.posteriors.contexts": ("Given", "Standardise"),
    "flowlab.bayesian.posterior": ("Subspace", "Triangular"),
    "flowlab.vae.likelihoods": ("Bernoulli", "Categorical", "Normal"),
    "flowlab.vae.model": ("VAE",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_KINDS: dict[str, str] = {
    "FlowDensity": "flowlab.tables.density",
    "FlowClassifier": "flowlab.tables.supervised",
    "FlowRegressor": "flowlab.tables.supervised",
    "FlowOutlier": "flowlab.tables.outlier",
    "FlowPosterior": "flowlab.posteriors.posterior",
    "AmortizedPosterior": "flowlab.posteriors.amortized",
    "BayesianModule": "flowlab.bayesian.module",
}
_refused: dict[type, str] = {}  # why objects of a class cannot be saved
_registered: dict[str, type] = {}  # the classes of the program that uses flowlab


def register(cls: T) -> T:
    """Class decorator that lets `load` build a layer, base or scalar map of yours.

    Its constructor must keep each argument (but `generator`) as an attribute of the same name.

    Raises:
        ValueError: The name is taken by another class.
    """
    name = cls.__name__
    if _MODULE_OF.get(name) == cls.__module__:  # one of flowlab's own, which `find` reaches without being told
        return cls
    if name in _MODULE_OF:
        raise ValueError(f"the name {name} is taken by {find(name)}")
    if _registered.setdefault(name, cls) is not cls:
        raise ValueError(f"the name {name} is taken by {_registered[name]}")
    return cls


def find(name: str) -> type | None:
    """The class that files call by a name, imported if need be; None where no file may hold that name.

    Example:
        >>> find("Coupling"), find("Popen")
        (<class 'flowlab.layers.coupling.Coupling'>, None)
    """
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    return _registered.get(name)


def is_known(cls: type) -> bool:
    """Whether files may hold objects of a class."""
    name = cls.__name__
    return _MODULE_OF.get(name) == cls.__module__ or is_registered(cls)


def is_registered(cls: type) -> bool:
    """Whether a class is one that a program registered, not flowlab's own."""
    return _registered.get(cls.__name__) is cls


def refuse(reason: str) -> Callable[[T], T]:
    """Class decorator that says why objects of a class cannot be saved, and what to do."""

    def note(cls: T) -> T:
        _refused[cls] = reason
        return cls

    return note


def reason(cls: type) -> str:
    """Why objects of a class that is not known cannot be saved."""
    found = (_refused[base] for base in cls.__mro__ if base in _refused)
    return next(found, "decorate the class with flowlab.files.register")


def own_names() -> list[str]:
    """The names of flowlab's own classes that files may hold."""
    return sorted(_MODULE_OF)


def kinds() -> list[str]:
    """The saved objects that are more than a module: each has `_to_file` and the class method `_from_file`."""
    return list(_KINDS)


def find_kind(kind: str) -> Any:
    """The class of a kind of saved object, imported if need be."""
    return getattr(importlib.import_module(_KINDS[kind]), kind)


def is_kind(model: Any) -> bool:
    """Whether an object, or the class that its own is derived from, is one of these kinds."""
    return any(_KINDS.get(cls.__name__) == cls.__module__ for cls in type(model).__mro__)
