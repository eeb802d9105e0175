"""What README and the examples say, run as written."""

import re
import shlex

import pytest

from helpers import ROOT, load_program

SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.slow
def test_every_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(SNIPPETS) >= 4
    for snippet in SNIPPETS:  # in order: the second reads the file that the first wrote
        exec(compile(snippet, "README.md", "exec"), {})


def test_every_command_and_target_that_is_named_exists():
    from typer.main import get_command

    from flowlab.cli import app

    text = "".join(re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    assert set(re.findall(r"^flowlab (\w+)", text, re.MULTILINE)) <= set(get_command(app).commands)  # type: ignore[attr-defined]
    for line in re.findall(r"^flowlab .*", text, re.MULTILINE):
        name, *arguments = shlex.split(line, comments=True)[1:]
        get_command(app).commands[name].make_context(name, arguments)  # type: ignore[attr-defined]  # it knows the options
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize(("name", "low", "high"), [("flow_as_posterior", -0.01, 0.05), ("own_layer", 0.05, 5.0)])
def test_examples_reach_what_they_promise(name, low, high):
    assert low < load_program(f"examples/{name}.py").main() < high
