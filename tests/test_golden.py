"""Files of every format load, score and draw as when they were written (tests/golden.py made them)."""

import numpy as np
import pytest
import torch

import flowlab
import golden
from helpers import ROOT

FOLDER = ROOT / "tests" / "data"
NAMES = {golden.file_of(name): name for name in golden.MODELS}
STORED = [path.relative_to(FOLDER) for folder in ("golden", "format_2") for path in (FOLDER / folder).glob("*.flow")]


def rows_of(name: str) -> object:
    """The rows that a model was asked about, without fitting it."""
    if name.startswith("numbers"):
        return golden.numbers()
    if name.startswith("mixed"):
        return golden.mixed()
    if name in ("classifier", "regressor"):
        return golden.numbers()[["a", "b", "n"]]
    if name == "outlier":
        return golden.numbers()[["a", "b"]]
    if name in ("amortized", "bayesian", "vae"):
        return getattr(golden, f"{name}_rows")()
    return None if name.startswith("posterior") else golden.flow_rows()


@pytest.mark.parametrize("file", STORED, ids=str)
def test_files_of_before_load_and_score_as_they_did(file):
    path, name = FOLDER / file, NAMES[file.stem]
    model, known = flowlab.load(path), np.load(path.with_suffix(".npz"))
    with torch.no_grad():
        found = golden.MODELS[name][1](model, rows_of(name))
    assert set(found) == set(known)
    for key, values in found.items():
        if values.dtype.kind in "Ub" or key == "drawn n":  # a draw at a limit may fall to the other side elsewhere
            assert (values == known[key]).mean() > 0.9, key
            continue
        tolerance = 1e-4 if values.dtype == np.float32 else 1e-6
        close = np.isclose(values, known[key], rtol=tolerance, atol=tolerance, equal_nan=True)
        assert close.mean() > (0.9 if key.startswith("drawn") else 0.999), key
