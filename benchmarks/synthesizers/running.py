"""Runs a worker with the interpreter of its environment, and says whether what it wrote before still holds."""

import json
import subprocess
from pathlib import Path

from common import write_json

WORKER = Path(__file__).with_name("worker.py")
DRAWS = 5
LIMIT = 3600.0  # seconds for one method on one table


def fresh(path: Path, *sources: Path) -> bool:
    """It is there, and no older than what it was made from."""
    return path.exists() and all(path.stat().st_mtime >= source.stat().st_mtime for source in sources)


def answer(command: list[object]) -> dict:
    """The JSON that a program answers with, or {"error": what went wrong}."""
    try:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=LIMIT)
    except FileNotFoundError:
        return {"error": f"there is no {command[0]}"}
    except subprocess.TimeoutExpired:
        return {"error": f"more than {LIMIT:.0f} s"}
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        last = done.stderr.strip().splitlines()[-1:] or [""]
        return {"error": f"died with code {done.returncode}: {last[0]}"}


def fit_and_draw(
    facts: Path, python: Path, method: str, train: Path, rows: int, drawn: list[Path], again: bool
) -> dict:
    """A method's times, or its error, kept in `facts`; so many rows lie in each of the files `drawn`."""
    if fresh(facts, train) and not again:
        return json.loads(facts.read_text())
    return write_json(facts, answer([python, WORKER, method, train, rows, *drawn]))


def without_missing(methods: list[str], pythons: dict[str, Path]) -> list[str]:
    """The methods whose environment is there; for each of the others a word."""
    for method in methods:
        if not pythons[method].exists():
            print(f"without {method}: there is no {pythons[method]}")
    return [method for method in methods if pythons[method].exists()]
