#!/usr/bin/env python3
"""Runs the tests under each Python and torch of a list, every pair in an environment of its own, and prints a table.

make test-matrix                                   # all pairs that are at hand
make test-matrix ARGS="--only 2.14.1"              # those with it in their name
make test-matrix ARGS="-- tests/layers"            # what follows -- goes to pytest

A Python is at hand if python3.12 (say) is on PATH or among pyenv's versions. A torch is at hand if the environment has
it already, or if pip finds it on this machine's disk. --download fetches the others; without an index of CPU builds
that can be several GB. Whatever is not at hand is skipped, and the table says why.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".matrix"
PAIRS = [
    ("3.11", "2.13.0"),  # what constraints.txt has
    ("3.11", "2.14.1"),
    ("3.11", "2.6.0"),  # the oldest that pyproject.toml allows
    ("3.12", "2.13.0"),
    ("3.12", "2.14.1"),
    ("3.13", "2.13.0"),
    ("3.13", "2.14.1"),
]


class Outcome(NamedTuple):
    """What became of one pair."""

    result: str  # passed, FAILED or skipped
    detail: str
    seconds: float = 0.0


def answers(python: Path | str, version: str) -> bool:
    """Whether a file is a Python of a version; pyenv's shims are there for versions that do not run."""
    try:
        done = subprocess.run([python, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0 and done.stdout.decode().strip() == version


def find_python(version: str) -> str | None:
    """A Python of a version: on PATH, or among pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *sorted(root.glob(f"{version}.*/bin/python"), reverse=True)]
    return next((str(python) for python in found if python and answers(python, version)), None)


def pip(python: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess:
    """Runs an environment's pip."""
    command = [str(python), "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    return subprocess.run(command, cwd=ROOT, **options)  # type: ignore[call-overload]


def has(python: Path, torch: str) -> bool:
    """Whether an environment has a torch."""
    code = f"from importlib.metadata import version as v; raise SystemExit(v('torch').split('+')[0] != {torch!r})"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def out_of_reach(python: Path, torch: str) -> str:
    """Why pip cannot install a torch from this machine's disk; nothing if it can."""
    done = pip(python, "install", "--dry-run", "--no-deps", "--report", "-", f"torch=={torch}", capture_output=True)
    if done.returncode:
        return f"pip finds no torch {torch} for this Python"
    place = json.loads(done.stdout)["install"][0]["download_info"]["url"]
    return "" if place.startswith("file:") else f"torch {torch} would be downloaded: --download allows it"


def prepare(base: str, python: Path, torch: str, download: bool) -> str:
    """Makes an environment, or brings it up to date; the answer is why it cannot be, or nothing."""
    sources = [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    stamp = hashlib.sha256("".join(sources).encode()).hexdigest()
    ready = python.parent.parent / ".ready"
    if ready.is_file() and ready.read_text() == stamp:
        return ""
    if not python.is_file():
        subprocess.run([base, "-m", "venv", python.parent.parent], check=True)
        if pip(python, "install", "--upgrade", "pip").returncode:
            return "pip cannot be brought up to date"
    if not has(python, torch):
        why = "" if download else out_of_reach(python, torch)
        if why:
            return why
        if pip(python, "install", f"torch=={torch}").returncode:
            return f"torch {torch} cannot be installed"
    pins = python.parent.parent / "constraints.txt"
    others = re.sub(r"(?m)^torch==.*\n", f"torch=={torch}\n", sources[1])
    pins.write_text(others)
    if pip(python, "install", "-c", str(pins), "-e", ".[test]").returncode:
        return "the tests' requirements cannot be installed"
    ready.write_text(stamp)
    return ""


def run(version: str, torch: str, download: bool, arguments: list[str]) -> Outcome:
    """The tests under one pair."""
    base = find_python(version)
    if base is None:
        return Outcome("skipped", f"no Python {version}, on PATH or of pyenv")
    folder = FOLDER / f"py{version}-torch{torch}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    why = prepare(base, python, torch, download)
    if why:
        return Outcome("skipped", why)
    start, last = time.monotonic(), ""
    command = [str(python), "-m", "pytest", *(arguments or ["-n", "2"])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tests:
        assert tests.stdout is not None
        for line in tests.stdout:
            print(line, end="", flush=True)
            last = line.strip("= \n") or last
    return Outcome("FAILED" if tests.returncode else "passed", last, time.monotonic() - start)


def main() -> int:
    """Exit code 0 if some tests ran and none failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", help="run the pairs with this in their name, such as py3.12 or torch2.14.1"
    )
    parser.add_argument("--download", action="store_true", help="fetch torch where it is not on this machine's disk")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --; -n 2 if there are none")
    given = parser.parse_args()
    outcomes = {}
    for version, torch in PAIRS:
        if given.only in f"py{version}-torch{torch}":
            print(f"== Python {version}, torch {torch}", flush=True)
            outcomes[version, torch] = run(version, torch, given.download, given.pytest)
            print(f"{outcomes[version, torch].result}: {outcomes[version, torch].detail}", flush=True)
    print(f"\n{'Python':8}{'torch':10}{'result':10}{'seconds':>8}  detail")
    for (version, torch), (result, detail, seconds) in outcomes.items():
        print(f"{version:8}{torch:10}{result:10}{f'{seconds:.0f}' if seconds else '':>8}  {detail}")
    results = [outcome.result for outcome in outcomes.values()]
    return int("FAILED" in results or "passed" not in results)


if __name__ == "__main__":
    sys.exit(main())
