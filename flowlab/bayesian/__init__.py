"""Networks whose weights have a posterior."""

from flowlab.bayesian.module import BayesianModule

__all__ = ["BayesianModule"]
