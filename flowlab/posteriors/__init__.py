"""Variational posteriors: `fit_posterior`, and what it returns."""

from flowlab.posteriors.diagnostics import Diagnostics, Estimate
from flowlab.posteriors.fitting import fit_posterior
from flowlab.posteriors.posterior import FlowPosterior
from flowlab.posteriors.target import PosteriorError

__all__ = ["Diagnostics", "Estimate", "FlowPosterior", "PosteriorError", "fit_posterior"]
