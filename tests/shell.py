"""The command line, run in the process of the tests."""

import sys

import pytest

from flowlab.cli import main


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """The command `flowlab`: exit code, output, errors."""
    monkeypatch.setattr(sys, "argv", ["flowlab", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err
