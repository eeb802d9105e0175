"""`fit`, the only training loop, and what it is made of."""

from flowlab.training.fitting import Callback, History, TrainingError, TrainingState, fit

__all__ = ["Callback", "History", "TrainingError", "TrainingState", "fit"]
