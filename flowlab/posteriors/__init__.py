"""Variational posteriors: `fit_posterior`, and what it returns."""

from flowlab.distribution import Estimate
from flowlab.posteriors.amortized import AmortizedPosterior
from flowlab.posteriors.diagnostics import Diagnostics
from flowlab.posteriors.fitting import fit_posterior
from flowlab.posteriors.posterior import FlowPosterior
from flowlab.posteriors.target import PosteriorError

__all__ = [
    "AmortizedPosterior",
    "Diagnostics",
    "Estimate",
    "FlowPosterior",
    "PosteriorError",
    "fit_posterior",
]
