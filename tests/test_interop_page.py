"""Every block of code of docs/interop.md, run as written."""

import re
from pathlib import Path

import pytest
import torch

PAGE = (Path(__file__).parent.parent / "docs" / "interop.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("section", SECTIONS)
def test_blocks(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if section == "ONNX":
        for library in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(library, reason="pip install flowlab[onnx]")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
    assert blocks
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks:
            exec(compile(block, "interop.md", "exec"), {})


def test_the_table_says_what_is_refused() -> None:
    """The words of the refusals that tests/test_onnx.py asks for are on the page."""
    for word in ("mixture.flows", "model.sample", "model.score_samples", "MixedFlow"):
        assert word in SECTIONS["ONNX"]
