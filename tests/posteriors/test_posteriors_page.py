"""Every block of code of docs/posteriors.md, run as written, and what the page says of its outcome."""

from pathlib import Path

import pytest
import torch

from helpers import run_blocks, sections

PAGE = "posteriors.md"
SECTIONS = sections(PAGE)


@pytest.mark.parametrize("section", SECTIONS)
def test_blocks(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    if section == "Pyro":
        pytest.importorskip("pyro", reason="pip install flowlab[pyro]")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        run_blocks(SECTIONS[section], PAGE)
    printed = capsys.readouterr().out
    if section == "Is it any good?":
        for words in (
            "good: unchecked",
            "usable after resampling [",
            "do not trust: ",
            "importance weights cannot correct",
        ):
            assert words in printed
    if section == "A log-density over numbers":
        assert printed == "good\n"
