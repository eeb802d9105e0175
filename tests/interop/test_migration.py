"""Every block of code of docs/migration.md, and both sides of every row of its tables, run as written."""

import importlib
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Distribution

from helpers import run_blocks, sections

PAGE = "migration.md"
SECTIONS = sections(PAGE)
ROWS = {"nflows": 35, "zuko": 30, "normflows": 30}  # at least


@pytest.fixture(autouse=True)
def as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """In a folder of its own, without what zuko's import does to torch, and with the global generator as it was."""
    validate = Distribution._validate_args
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.(triangular_solve|qr)")
        warnings.filterwarnings("ignore", message="__array_wrap__ must accept")  # normflows calls numpy with tensors
        torch.manual_seed(0)
        yield
    Distribution.set_default_validate_args(validate)


def test_trained_models(capsys: pytest.CaptureFixture[str]) -> None:
    for library in ("nflows", "zuko"):
        pytest.importorskip(library, reason=f"pip install {library}")
    run_blocks(SECTIONS["A trained model"], PAGE)
    assert "transform 0 (LeakyReLU) has no counterpart" in capsys.readouterr().out


@pytest.mark.parametrize("library", ROWS)
def test_every_row(library: str) -> None:
    """The calls in a row's first two cells, the other library's and flowlab's."""
    pytest.importorskip(library, reason=f"pip install {library}")
    names = run_blocks(SECTIONS[library], PAGE)[0]
    lines = re.findall(r"^\| `.*", SECTIONS[library], re.MULTILINE)
    rows = [re.match(r"\| `([^`]+)` \| `([^`]+)` \|", line) for line in lines]
    assert all(rows), "a row is not two calls"
    assert len(rows) >= ROWS[library]
    for call in (call for row in rows if row for call in row.groups()):
        try:
            eval(call, names)
        except Exception as error:
            raise AssertionError(f"{call}: {error!r}") from error


def test_permutations_are_the_inverse_ones() -> None:
    """What the page says of permutations and of autoregressive orders, which a call alone does not show."""
    transforms = pytest.importorskip("nflows.transforms", reason="pip install nflows")
    from flowlab.layers import Permutation

    x = torch.randn(5, 4)
    theirs = transforms.Permutation(torch.tensor([2, 0, 3, 1]))
    assert torch.equal(Permutation(4, [1, 3, 0, 2]).inverse(x)[0], theirs(x)[0])


def test_words_of_the_converters_are_on_the_page() -> None:
    """Each transform that converts from nflows is in the table, or is one of few that say nothing new."""
    pytest.importorskip("nflows", reason="pip install nflows")
    parts = importlib.import_module("flowlab.interop.nflows_parts")
    known = {kind.__name__ for kind in parts._CONVERTERS} - {"AffineTransform", "IdentityTransform", "QRLinear"}
    assert not [name for name in known if f"{name}(" not in SECTIONS["nflows"]]
