"""Supply chain: what is pinned and hashed, known vulnerabilities, the network, hostile names, formulas in CSV.

python -m benchmarks.faults.supply_chain --scale 0.01
"""

import argparse
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import pandas as pd

from flowlab.tables.frames.read_write import read_file, write_table

ROOT = Path(__file__).parent.parent.parent
CELLS = 200_000  # random cells that are defused
AUDIT = ["--strict", "--no-deps", "--disable-pip", "-r", str(ROOT / "constraints.txt")]
SIGNS = "=+-@\t\r\n＝＋－＠ 0123456789.,eE'\"abc|!"


def _tests(path: str) -> ModuleType:
    """A module of tests, for what it checks with."""
    sys.path.insert(0, str(ROOT / "tests"))
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "tests" / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _pinned() -> str:
    """How many packages have a version, and how many of these hashes."""
    versions = re.findall(r"^[\w.-]+==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    text = (ROOT / "requirements-ci.txt").read_text()
    locked, hashes = re.findall(r"^[\w.-]+==", text, re.MULTILINE), text.count("--hash=sha256:")
    return (
        f"{len(versions)} versions, {len(locked)} of them with hashes ({hashes:,}, of all their files); torch has none"
    )


def _audited() -> str:
    """What pip-audit says; that it was not asked is said as well, since silence would read as a pass."""
    tool = ROOT / ".venv-lock" / "bin" / "pip-audit"
    if not tool.exists():
        return "not run: `make audit` installs pip-audit"
    done = subprocess.run([tool, *AUDIT], capture_output=True, text=True)
    said = (done.stdout + done.stderr).strip()
    if done.returncode == 0:
        return "no known vulnerabilities"
    if re.search(r"could not be audited|ConnectionError|not found on PyPI", said):
        return "could not be asked: the database of advisories was not to be reached where this ran"
    return f"findings: {' '.join(said.split())[:300]}"


def _offline(whole: bool) -> str:
    """Whether programs that refuse sockets run to their end."""
    tests = _tests("test_offline.py")
    programs = {"import of every module": tests.IMPORTS, "fit, score, draw, impute, save, load": tests.USE}
    if whole:
        programs["report and eight commands"] = tests.USE + tests.COMMANDS
    opened = []
    for name, code in programs.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                tests.done_offline(code, Path(folder))
            except AssertionError:
                opened.append(name)
    return (
        f"{len(programs)} programs ({'; '.join(programs)}), {len(opened)} asked for a socket{': ' if opened else ''}"
        + (", ".join(opened))
    )


def _hostile(whole: bool) -> str:
    """Whether the report of a table with hostile names has an element or a link that the page itself does not have."""
    if not whole:
        return "left out at this scale"
    tests = _tests("report/test_hostile_names.py")
    with tempfile.TemporaryDirectory() as folder:
        path = tests.report(tests.HOSTILE, Path(folder))
        checks = {"parsed": lambda: tests.test_names_from_data_make_no_elements_and_no_attributes(path)}
        if tests.CHROMIUM is not None:
            checks["in a headless browser"] = lambda: tests.test_a_browser_runs_nothing(path, Path(folder))
        failed = []
        for name, check in checks.items():
            try:
                check()
            except AssertionError:
                failed.append(name)
    browser = "" if tests.CHROMIUM is not None else "; no browser was there"
    return (
        f"{len(tests.HOSTILE)} names as columns, levels, title and path: {', '.join(checks)}, {len(failed)} of "
        f"{len(checks)} checks failed{browser}"
    )


def _formulas(count: int) -> str:
    """How many random cells a spreadsheet would take for formulas, before and after."""
    draw = random.Random(0)
    cells = ["".join(draw.choices(SIGNS, k=draw.randint(1, 6))) for _ in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        write_table(pd.DataFrame({"c": cells}), Path(folder) / "t.csv", safe=True)
        back = read_file(Path(folder) / "t.csv").table.column("c").to_pylist()
    assert [cell if cell == found else f"'{cell}" for cell, found in zip(cells, back, strict=True)] == back
    number = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?\s*")

    def formula(cell: str) -> bool:
        return cell[:1] in "=+-@\t\r\n＝＋－＠" and not number.fullmatch(cell)

    before, after = sum(map(formula, cells)), sum(map(formula, back))
    return f"{count:,} random cells, {before:,} formulas before `--safe-csv`, {after:,} after"


def section(scale: float = 1.0) -> str:
    """Measure all parts.

    Args:
        scale: 1 is all; from a tenth on the report is written, and commands are run.

    Returns:
        The section, in Markdown.
    """
    start, whole = time.perf_counter(), scale >= 0.1
    parts = {
        "pinned (constraints.txt, requirements-ci.txt)": _pinned(),
        "known vulnerabilities (`make audit`)": _audited(),
        "network": _offline(whole),
        "report with hostile names": _hostile(whole),
        "formulas in CSV": _formulas(max(round(CELLS * scale), 1000)),
    }
    lines = ["## Supply chain\n", "| part | what was found |", "|---|---|"]
    lines += [f"| {name} | {found} |" for name, found in parts.items()]
    return "\n".join([*lines, f"\nMeasured in {time.perf_counter() - start:.0f} s."]) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    print(section(parser.parse_args().scale))
