"""Benchmarks: each has a page that is listed, a make target, and says what it does."""

import re
import sys
from pathlib import Path

import pytest

from helpers import ROOT, load_program

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if "def main(" in path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def common():
    return load_program("benchmarks/common.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_has_a_target_that_the_readme_lists(script: Path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    called = rf"(?:benchmarks/{script.name}|-m benchmarks.{script.stem}) "
    targets = re.findall(rf"^(bench-[a-z]+|reliability):.*\n(?:\t.*\n)*?\t.*{called}", makefile, re.MULTILINE)
    assert len(targets) == 1
    assert f"`make {targets[0]}" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_readme_links_to_pages_that_exist():
    links = re.findall(r"\]\((results/[^)]+)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert len(links) >= len(SCRIPTS)
    assert all((FOLDER / link).exists() for link in links)


def test_no_benchmark_imports_the_demo():
    for path in FOLDER.rglob("*.py"):
        assert not re.search(r"^(from|import) flowlab.*\bdemo\b", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_tables(common):
    assert (
        common.table(["a", "b", "c"], [["1", "2", "3"]], "lr") == "| a | b | c |\n| --- | ---: | ---: |\n| 1 | 2 | 3 |"
    )
    records = [{"name": "x", "n": 1234, "met": True}, {"name": "y", "share": 0.25, "large": 123.45}]
    assert common.table_of_records(records).split("\n")[2:] == [
        "| x | 1,234 | yes |  |  |",
        "| y |  |  | 0.250 | 123.5 |",
    ]


def test_circumstances_leave_out_what_is_not_installed(common):
    text = common.circumstances("numpy", "no-such-package")
    assert "numpy" in text
    assert "no-such-package" not in text
    assert "cores" in text


def test_results_survive_an_interrupted_write(common, tmp_path: Path):
    path = tmp_path / "results" / "some.json"
    assert common.read_json(path) == {}
    common.write_json(path, {"a": 1})
    assert common.read_json(path) == {"a": 1}
    with pytest.raises(TypeError):
        common.write_json(path, {"a": {1}})
    assert common.read_json(path) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["some.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's account of memory")
def test_memory(common):
    assert 0 < common.memory("VmRSS") <= common.memory("VmHWM")
