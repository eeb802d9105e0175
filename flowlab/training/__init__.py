"""`fit`, the only training loop, and what it is made of."""

from flowlab.training.fitting import History, TrainingError, fit

__all__ = ["History", "TrainingError", "fit"]
