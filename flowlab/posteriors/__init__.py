"""Variational posteriors: `fit_posterior`, and what it returns."""

from flowlab.divergence import Estimate
from flowlab.posteriors.amortized import AmortizedPosterior
from flowlab.posteriors.bayesian import BayesianModule
from flowlab.posteriors.diagnostics import Diagnostics
from flowlab.posteriors.fitting import fit_posterior
from flowlab.posteriors.posterior import FlowPosterior
from flowlab.posteriors.target import PosteriorError
from flowlab.posteriors.vae import VAE

__all__ = [
    "VAE",
    "AmortizedPosterior",
    "BayesianModule",
    "Diagnostics",
    "Estimate",
    "FlowPosterior",
    "PosteriorError",
    "fit_posterior",
]
