"""flowlab: densities, synthetic rows and variational posteriors from normalizing flows.

A flow is a chain of invertible layers that turns Gaussian noise into data: one object with an exact
log-density, samples, and gradients through samples.
"""

from typing import TYPE_CHECKING, Any

from flowlab import bases, layers, presets
from flowlab.checks import check_flow, check_layer
from flowlab.divergence import kl_divergence
from flowlab.files import FileError, load, save
from flowlab.flow import Flow
from flowlab.layers.root import ConvergenceError
from flowlab.mixture import FlowMixture
from flowlab.objectives import IWAE, NLL, DReG, ForwardKL, MiniBatch, Renyi, ReverseKL, StickingTheLanding, Tempered
from flowlab.training import History, TrainingError, fit

if TYPE_CHECKING:
    from flowlab import datasets, gradients
    from flowlab.posteriors import (
        VAE,
        AmortizedPosterior,
        BayesianModule,
        Diagnostics,
        FlowPosterior,
        PosteriorError,
        fit_posterior,
    )
    from flowlab.tables.conditions import ConditionError
    from flowlab.tables.density import FlowDensity
    from flowlab.tables.members import Member
    from flowlab.tables.outlier import FlowOutlier
    from flowlab.tables.rules import Derived, FixedCombinations, LessThan, Predicate
    from flowlab.tables.schema import Schema
    from flowlab.tables.supervised import FlowClassifier, FlowRegressor

__version__ = "0.1.0"

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


# What needs pandas and scikit-learn is imported only when it is asked for.
_LAZY = {
    **dict.fromkeys(("FlowClassifier", "FlowRegressor"), "flowlab.tables.supervised"),
    "FlowDensity": "flowlab.tables.density",
    "FlowOutlier": "flowlab.tables.outlier",
    "Member": "flowlab.tables.members",
    "Schema": "flowlab.tables.schema",
    **dict.fromkeys(("Derived", "FixedCombinations", "LessThan", "Predicate"), "flowlab.tables.rules"),
    "ConditionError": "flowlab.tables.conditions",
    **dict.fromkeys(
        (
            "VAE",
            "AmortizedPosterior",
            "BayesianModule",
            "Diagnostics",
            "FlowPosterior",
            "PosteriorError",
            "fit_posterior",
        ),
        "flowlab.posteriors",
    ),
}


def __getattr__(name: str) -> Any:
    """Import what needs pandas and scikit-learn only when it is asked for."""
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in ("datasets", "gradients"):
        return importlib.import_module(f"flowlab.{name}")
    raise AttributeError(f"module 'flowlab' has no attribute {name!r}")
