"""What tests of several rooms share: numbers, small models, the repository's pages and programs, the command line."""

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import flowlab  # its estimators and the command are imported where they are used: they take longer than torch

ROOT = Path(__file__).parent.parent  # of the repository


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Standard normal numbers in double precision, times `scale`."""
    return scale * torch.empty(*shape, dtype=torch.float64).normal_(generator=seeded(seed))


def assert_close(got: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def jacobian(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Every row's own Jacobian (n, features, features), by reverse-mode autograd."""
    value = value.detach().requires_grad_()
    result = function(value)
    rows = [torch.autograd.grad(column.sum(), value, retain_graph=True)[0] for column in result.unbind(-1)]
    return torch.stack(rows, -2)


def small_density(steps: int = 60, **options: Any) -> "flowlab.FlowDensity":
    """An estimator whose one member is a small network for columns of every kind."""
    member = flowlab.Member("mixed", "none", steps=steps, hidden=(16,))
    return flowlab.FlowDensity(members=[member], random_state=0, n_jobs=1, **options)


def load_program(path: str) -> ModuleType:
    """Import a program such as examples/own_layer.py, `path` within the repository, without running its `main`."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


def sections(page: str) -> dict[str, str]:
    """Title and text of every section of docs/`page`."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))


def run_blocks(text: str, page: str) -> list[dict[str, Any]]:
    """Run every block of Python as written, each on its own, and return the names that each defines."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    spaces: list[dict[str, Any]] = [{} for _ in blocks]
    for block, names in zip(blocks, spaces, strict=True):
        exec(compile(block, page, "exec"), names)
    return spaces


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Run the command `flowlab` in this process, and return its exit code, output and errors."""
    from flowlab.cli import main

    monkeypatch.setattr(sys, "argv", ["flowlab", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def text_file(path: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write a text file, and return its path."""
    path.write_bytes(text.encode(encoding))
    return path


def rewritten(path: Path, change, tensors=None) -> Path:
    """A model file with its JSON description changed by a function, in place or by what it returns."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["flowlab"])
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = change(header) or header
    save_file(kept if tensors is None else tensors(kept), path, metadata={"flowlab": json.dumps(header)})
    return path
