"""Callbacks for TensorBoard and MLflow, read back with the libraries themselves."""

import warnings
from pathlib import Path

import pytest
import torch

from flowlab import History, fit, presets


def fitted(callback) -> History:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    flow = presets.real_nvp(2, layers=2, hidden=(8,))
    return fit(flow, x, epochs=30, batch_size=60, callback=callback, progress=False)


def test_tensorboard_shows_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from flowlab.interop.tensorboard import TensorBoard

    with TensorBoard(tmp_path) as callback:
        history = fitted(callback)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {
        f"fit/{name}" for name in ("train", "validation", "learning_rate", "gradient_norm")
    }
    shown = [(event.step, event.value) for event in events.Scalars("fit/validation")]
    assert shown == [(r["step"], pytest.approx(r["validation"], rel=1e-5)) for r in history.records]


def test_mlflow_logs_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database would need more than the skinny package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's own dependencies, at import
        mlflow = pytest.importorskip("mlflow")
        from flowlab.interop.mlflow import log_to_mlflow

        mlflow.set_tracking_uri(tmp_path.as_uri())
        mlflow.set_experiment("flowlab")
        with mlflow.start_run() as run:
            history = fitted(log_to_mlflow)
        logged = mlflow.MlflowClient().get_metric_history(run.info.run_id, "fit/validation")
    assert [(m.step, m.value) for m in logged] == [(r["step"], r["validation"]) for r in history.records]
