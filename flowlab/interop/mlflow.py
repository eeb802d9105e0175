"""`log_to_mlflow`: a callback that logs a fit to the active run of MLflow. Needs the extra `mlflow`."""

from flowlab.training import TrainingState
from flowlab.training.following import curves

try:
    import mlflow
except ImportError as error:
    raise ImportError("flowlab.interop.mlflow needs MLflow: pip install 'flowlab[mlflow]'") from error


def log_to_mlflow(state: TrainingState) -> None:
    """A callback for `fit`, `FlowDensity.fit` and `fit_posterior` that logs the curves of training as metrics.

    Losses are in nats per row, as "train", "validation", "learning_rate" and "gradient_norm" under each stage's name.
    MLflow starts a run where none is active.

    Args:
        state: What `fit` gives its callbacks.
    """
    mlflow.log_metrics(curves(state), step=state.step)
