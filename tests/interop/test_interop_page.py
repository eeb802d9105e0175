"""Every block of code of docs/interop.md, run as written."""

from pathlib import Path

import pytest
import torch

from helpers import run_blocks, sections

PAGE = "interop.md"
SECTIONS = sections(PAGE)


@pytest.mark.parametrize("section", SECTIONS)
def test_blocks(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if section == "ONNX":
        for library in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(library, reason="pip install flowlab[onnx]")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        run_blocks(SECTIONS[section], PAGE)


def test_the_table_says_what_is_refused() -> None:
    """The words of the refusals that test_onnx.py asks for are on the page."""
    for word in ("mixture.flows", "model.sample", "model.score_samples", "MixedFlow"):
        assert word in SECTIONS["ONNX"]
