"""flowlab: densities, synthetic rows and variational posteriors from normalizing flows.

A flow is a chain of invertible layers that turns Gaussian noise into data: one object with an exact
log-density, samples, and gradients through samples.
"""

from typing import TYPE_CHECKING, Any

from flowlab import bases, layers, presets
from flowlab.checks import check_flow, check_layer
from flowlab.distribution import kl_divergence
from flowlab.files import FileError, load, save
from flowlab.flow import Flow
from flowlab.layers.root_finding import ConvergenceError
from flowlab.mixture import FlowMixture
from flowlab.training import History, TrainingError, TrainingState, fit
from flowlab.training.objectives import (
    IWAE,
    NLL,
    DReG,
    ForwardKL,
    MiniBatch,
    Renyi,
    ReverseKL,
    StickingTheLanding,
    Tempered,
)
from flowlab.version import __version__ as __version__

if TYPE_CHECKING:
    from flowlab import datasets, gradients
    from flowlab.bayesian import BayesianModule
    from flowlab.posteriors import AmortizedPosterior, Diagnostics, FlowPosterior, PosteriorError, fit_posterior
    from flowlab.tables.density import FlowDensity
    from flowlab.tables.ensemble.member import Member
    from flowlab.tables.outlier import FlowOutlier
    from flowlab.tables.query.conditions import ConditionError
    from flowlab.tables.schema import Schema
    from flowlab.tables.schema.rules import Derived, FixedCombinations, LessThan, Predicate
    from flowlab.tables.supervised import FlowClassifier, FlowRegressor
    from flowlab.vae import VAE

__all__ = [
    "IWAE",
    "NLL",
    "VAE",
    "AmortizedPosterior",
    "BayesianModule",
    "ConditionError",
    "ConvergenceError",
    "DReG",
    "Derived",
    "Diagnostics",
    "FileError",
    "FixedCombinations",
    "Flow",
    "FlowClassifier",
    "FlowDensity",
    "FlowMixture",
    "FlowOutlier",
    "FlowPosterior",
    "FlowRegressor",
    "ForwardKL",
    "History",
    "LessThan",
    "Member",
    "MiniBatch",
    "PosteriorError",
    "Predicate",
    "Renyi",
    "ReverseKL",
    "Schema",
    "StickingTheLanding",
    "Tempered",
    "TrainingError",
    "TrainingState",
    "bases",
    "check_flow",
    "check_layer",
    "datasets",
    "fit",
    "fit_posterior",
    "gradients",
    "kl_divergence",
    "layers",
    "load",
    "presets",
    "save",
]


# Imported only when they are asked for, since they need pandas and scikit-learn, or are modules.
_LAZY = {
    "flowlab.tables.density": ("FlowDensity",),
    "flowlab.tables.supervised": ("FlowClassifier", "FlowRegressor"),
    "flowlab.tables.outlier": ("FlowOutlier",),
    "flowlab.tables.ensemble.member": ("Member",),
    "flowlab.tables.schema": ("Schema",),
    "flowlab.tables.schema.rules": ("Derived", "FixedCombinations", "LessThan", "Predicate"),
    "flowlab.tables.query.conditions": ("ConditionError",),
    "flowlab.posteriors": ("AmortizedPosterior", "Diagnostics", "FlowPosterior", "PosteriorError", "fit_posterior"),
    "flowlab.bayesian": ("BayesianModule",),
    "flowlab.vae": ("VAE",),
}
_MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}
_MODULES = ("datasets", "gradients")


def __getattr__(name: str) -> Any:
    """Import what is imported only when it is asked for."""
    import importlib

    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"flowlab.{name}")
    raise AttributeError(f"module 'flowlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for tab completion and pydoc."""
    return [*__all__, "__all__", "__doc__", "__version__"]
