"""The map in CONTRIBUTING.md is the tree of flowlab: every file has one line, in its folder."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def listed() -> list[str]:
    """The files of the map, as paths from the repository's root."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text[text.index("```\nflowlab/\n") :].split("```")[1]
    found, folders = [], ["flowlab"]
    for line in block.splitlines()[2:]:
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        assert len(line.split()) > 1, f"{name} has no text"
        folders = folders[:depth]
        if name.endswith("/"):
            folders.append(name[:-1])
        else:
            found.append("/".join([*folders, name]))
    return found


def test_the_map_is_the_tree():
    files = [p for p in (ROOT / "flowlab").rglob("*.py") if p.name != "__init__.py" and "_datasets" not in p.parts]
    tree, lines = {p.relative_to(ROOT).as_posix() for p in files}, listed()
    assert len(set(lines)) == len(lines), "a file has two lines"
    assert set(lines) == tree, (
        f"not in CONTRIBUTING.md's map: {tree - set(lines)}; not in the tree: {set(lines) - tree}"
    )
