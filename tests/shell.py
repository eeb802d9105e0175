"""The command line, run in the process of the tests."""

import sys
from pathlib import Path

import pytest

from flowlab.cli import main


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """The command `flowlab`: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["flowlab", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def text_file(path: Path, text: str, encoding: str = "utf-8") -> Path:
    """A file of text, and its path."""
    path.write_bytes(text.encode(encoding))
    return path
