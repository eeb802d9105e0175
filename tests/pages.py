"""Pages of docs/ whose code is run: their sections, and the blocks of Python in them."""

import re
from pathlib import Path
from typing import Any


def sections(page: str) -> dict[str, str]:
    """Title and text of every section of docs/`page`."""
    text = (Path(__file__).parent.parent / "docs" / page).read_text()
    return dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))


def run_blocks(text: str, page: str) -> list[dict[str, Any]]:
    """Runs every block of Python as written, each alone; the names that each has left."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    spaces: list[dict[str, Any]] = [{} for _ in blocks]
    for block, names in zip(blocks, spaces, strict=True):
        exec(compile(block, page, "exec"), names)
    return spaces
