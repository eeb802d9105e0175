"""The page on long fits: what it shows runs."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "long_fits.md"


@pytest.mark.slow
def test_every_snippet_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(snippets) == 2
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, PAGE.name, "exec"), names)
    assert {path.name for path in tmp_path.iterdir()} >= {"flow.checkpoint", "diamonds.fit", "posterior.fit"}
