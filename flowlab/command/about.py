"""The text of `flowlab info`."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from flowlab.command.tables import columns_of
from flowlab.tables.density import FlowDensity

SEEN = 0.01  # p-value below which a test sees a difference


def about(model: Any, path: Path) -> str:
    """Describe a model that `flowlab.load` read from a file, in a few lines."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["flowlab"])
    version = f"written by flowlab {header.get('version')}"
    if isinstance(model, FlowDensity):
        return "\n".join([f"FlowDensity, {version}", *_density(model)])
    if isinstance(model, nn.Module):
        count = sum(p.numel() for p in model.parameters())
        sizes = [f"{name} {getattr(model, name)}" for name in ("features", "context_features") if hasattr(model, name)]
        return f"{type(model).__name__}, {version}\n{', '.join([*sizes, f'{count:,} parameters'])}"
    return f"{type(model).__name__}, {version}"


def _density(model: FlowDensity) -> list[str]:
    columns = columns_of(model)
    count = 0 if model.flow_ is None else sum(p.numel() for p in model.flow_.parameters())
    score = model.validation_score_
    fitted = "" if model.n_rows_ is None else f"{model.n_rows_:,} rows of "
    held_out = len(model._model.held_out)
    rows = f" of {held_out:,} rows" if held_out else ""
    kind = "complete numbers" if model.table_.complete else "a whole table"
    width = max(len(str(name)) for name in columns)
    lines = [
        f"fitted to {fitted}{kind}: {len(columns)} columns, effort {model.effort}, "
        f"{len(model.reports_)} members, {count:,} parameters",
        "held-out log-likelihood: "
        + (f"{score:.3f} nats per row{rows}" if score == score else "no rows were held out"),
        _calibration(model),
    ]
    if model.table_.rules:
        lines.append("rules: " + "; ".join(map(str, model.table_.rules)))
    lines.append("columns:")
    for name, column in columns.items():
        lines.append(
            f"  {str(name).ljust(width)}  {column.kind}" + (f", {column.missing:.1%} missing" if column.missing else "")
        )
    return lines


def _calibration(model: FlowDensity) -> str:
    """Say what the tests of fit on held-out rows see."""
    tests = model.calibration_
    if not len(tests):
        return "calibration: not tested"
    seen = tests[tests["p_value"] < SEEN]
    if not len(seen):
        least = tests["p_value"].min()
        return f"calibration: none of {len(tests)} tests sees a difference from held-out rows (smallest p {least:.3f})"
    named = ", ".join(f"{name} (p = {p:.3f})" for name, p in seen["p_value"].items())
    return f"calibration: {len(seen)} of {len(tests)} tests see a difference from held-out rows: {named}"
