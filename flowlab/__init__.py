"""flowlab: densities, synthetic rows and variational posteriors from normalizing flows.

A flow is a chain of invertible layers that turns Gaussian noise into data: one object with an exact
log-density, samples, and gradients through samples.
"""

from typing import TYPE_CHECKING, Any

from flowlab import bases, layers, presets
from flowlab.checks import check_flow, check_layer
from flowlab.files import load, save
from flowlab.flow import Flow
from flowlab.layers.root import ConvergenceError
from flowlab.mixture import FlowMixture
from flowlab.objectives import NLL
from flowlab.training import History, TrainingError, fit

if TYPE_CHECKING:
    from flowlab import datasets
    from flowlab.tables.density import FlowDensity
    from flowlab.tables.members import Member

__version__ = "0.1.0"

__all__ = [
    "NLL",
    "ConvergenceError",
    "Flow",
    "FlowDensity",
    "FlowMixture",
    "History",
    "Member",
    "TrainingError",
    "bases",
    "check_flow",
    "check_layer",
    "datasets",
    "fit",
    "layers",
    "load",
    "presets",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import what needs pandas and scikit-learn only when it is asked for."""
    if name == "FlowDensity":
        from flowlab.tables.density import FlowDensity

        return FlowDensity
    if name == "Member":
        from flowlab.tables.members import Member

        return Member
    if name == "datasets":
        import importlib

        return importlib.import_module("flowlab.datasets")
    raise AttributeError(f"module 'flowlab' has no attribute {name!r}")
