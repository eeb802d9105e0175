"""Hostile model files: 200,000 mutated ones are loaded, each within 5 s and 500 MB, and used where they load.

A file is a small model of some kind, or one of an older format (file_seeds.py), with a few changes of one kind
(file_mutations.py). A worker process loads file after file, and a new one takes over should it die. A file passes if
`load` refuses it by a `FileError`, or if it loads and then, for a share of them, scores rows and draws new ones
without any error but a ValueError or ArithmeticError.

    nice -n 10 python -m benchmarks.faults.files                 # 200,000 files, some hours on one core
    python -m benchmarks.faults.files --scale 0.01 --keep bad/   # 2,000, and those that fail are kept
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import flowlab

from .file_mutations import MUTATIONS, mutated
from .file_seeds import EARLY, FIXTURES, seeds, use

FILES = 200_000
ABOVE = Path(__file__).parents[len(__package__.split("."))]  # the folder that this package is found in
SECONDS, MEGABYTES = 5.0, 500.0  # what a load may take: CPU time, and memory beyond that of the process before
MOST = 4 << 30  # bytes beyond that of a worker that the system gives it; a load that wants more is at fault
PATIENCE = 60  # seconds of the clock until a worker gives up on a file
USED = 4  # of so many files that load, one is used
ALLOWED = (ValueError, ArithmeticError)  # in use: what no file but a number in it can be blamed for


# Workers --------------------------------------------------------------------------------------------------------------


def memory(what: str) -> int:
    """Memory of this process in bytes, by a name of Linux's account of it."""
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) * 1024


def peak() -> int:
    """The largest resident memory since `reset_peak`, bytes; without a /proc since the process began."""
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return memory("VmHWM")


def reset_peak() -> int:
    """Starts `peak` anew where that can be, and gives the memory in use."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def wanted_memory(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, one of too little memory."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__cause__
    return False


def try_file(path: Path, rows: Any, used: bool = True) -> dict[str, Any]:
    """What becomes of a file: refused, clean, or what went wrong; seconds and bytes that loading took."""
    before, started = reset_peak(), time.process_time()
    outcome, detail, model = "clean", "", None
    try:
        model = flowlab.load(path)
    except flowlab.FileError as error:
        outcome = "load: more memory than there is" if wanted_memory(error) else "refused"
    except BaseException as error:
        outcome, detail = f"load: {type(error).__name__}", traceback.format_exc()[-1500:]
    found = {"seconds": time.process_time() - started, "bytes": peak() - before}
    if outcome in ("clean", "refused") and (found["seconds"] > SECONDS or found["bytes"] > MEGABYTES * 1e6):
        outcome = "load: too much time or memory"
    if outcome == "clean" and used:
        try:
            use(model, rows)
        except ALLOWED as error:
            outcome, detail = f"used, {type(error).__name__}", str(error)[:200]
        except BaseException as error:
            # Bounds that leave `sample` nothing to draw, and networks whose parts do not follow each other.
            said = type(error) is RuntimeError and ("draws" in str(error) or isinstance(model, flowlab.BayesianModule))
            outcome, detail = f"{'used,' if said else 'use:'} {type(error).__name__}", traceback.format_exc()[-1500:]
    return {**found, "outcome": outcome, "detail": detail}


def give_up(*_: object) -> None:
    raise TimeoutError(f"{PATIENCE} s")


def work(folder: Path, seed: int, first: int, last: int) -> None:
    """Tries the files of that numbers, and prints a line for each."""
    signal.signal(signal.SIGALRM, give_up)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known = pd.read_pickle(folder / "rows.pkl")  # written by this program's parent
    data = {name: (folder / f"{name}.flow").read_bytes() for name in known}
    for name in data:  # what is imported at the first use of each kind
        use(flowlab.load(folder / f"{name}.flow"), known[name])
    with suppress(OSError, IndexError):
        resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + MOST,) * 2)
    path = folder / "mutated.flow"
    for i in range(first, last):
        print(json.dumps({"file": i}), flush=True)
        name, kind, content = file_of(data, seed, i)
        path.write_bytes(content)
        signal.alarm(PATIENCE)
        result = try_file(path, known[name], i % USED == 0)
        signal.alarm(0)
        if result["outcome"].startswith(("load:", "use:")) and (folder / "kept").exists():
            (folder / "kept" / f"{seed}-{i}.flow").write_bytes(content)
        print(json.dumps({"file": i, "model": name, "kind": kind, "size": len(content), **result}), flush=True)


def file_of(data: dict[str, bytes], seed: int, i: int) -> tuple[str, str, bytes]:
    """File number i of a seed: the model that it is made of, how it was changed, and what it holds."""
    rng = random.Random(f"{seed} {i}")
    name = rng.choice(sorted(data))
    return name, *mutated(data[name], rng)


def try_files(folder: Path, seed: int, count: int) -> list[dict[str, Any]]:
    """The results of so many files, by one worker after another; of fewer where Ctrl-C ends it."""
    results: list[dict[str, Any]] = []
    with suppress(KeyboardInterrupt):
        collect(folder, seed, count, results)
    return results


def collect(folder: Path, seed: int, count: int, results: list[dict[str, Any]]) -> None:
    """Adds the results of so many files."""
    first = 0
    while first < count:
        command = [sys.executable, "-m", f"{__package__}.files", "--worker", str(folder), str(seed)]
        command += [str(first), str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ABOVE) as worker:
            assert worker.stdout is not None
            found: dict[str, Any] = {}
            for line in worker.stdout:
                found = json.loads(line)
                if "outcome" in found:
                    results.append(found)
                first = found["file"] + ("outcome" in found)
        if not found:
            raise RuntimeError(f"the worker does not start: exit status {worker.returncode}")
        if first < count:  # it died
            name, kind, _ = file_of({p.stem: p.read_bytes() for p in seed_files(folder)}, seed, first)
            lost = {"file": first, "model": name, "kind": kind, "seconds": 0.0, "bytes": 0}
            results.append({**lost, "outcome": "load: the process died", "detail": f"status {worker.returncode}"})
            first += 1


def seed_files(folder: Path) -> list[Path]:
    """The files that are mutated."""
    return [path for path in folder.glob("*.flow") if path.stem != "mutated"]


# The section ----------------------------------------------------------------------------------------------------------


def measure(count: int, seed: int = 0, keep: Path | None = None) -> tuple[list[dict[str, Any]], float]:
    """The results of so many files, and the seconds that it took; those at fault are kept in a folder."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="flowlab-fuzz-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, rows = Path(name), write_seeds(Path(name))
        pd.to_pickle(rows, folder / "rows.pkl")
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            (folder / "kept").symlink_to(keep.resolve())
        return try_files(folder, seed, count), time.perf_counter() - started


def write_seeds(folder: Path) -> dict[str, Any]:
    """Writes a file of each model, copies those of older formats, and gives rows to score with each."""
    models = seeds()
    for title, (model, _) in models.items():
        flowlab.save(model, folder / f"{title}.flow")
    for title in EARLY:
        (folder / f"format 1, {title}.flow").write_bytes((FIXTURES / f"{title}.flow").read_bytes())
    return {**{title: rows for title, (_, rows) in models.items()}, **{f"format 1, {title}": None for title in EARLY}}


def at_fault(result: dict[str, Any]) -> bool:
    """Whether a file was neither refused by a `FileError` nor loaded, within bounds, or broke what used it."""
    return result["outcome"].startswith(("load:", "use:"))


def row(title: str, results: list[dict[str, Any]]) -> str:
    """One row of the table."""
    refused = sum(r["outcome"] == "refused" for r in results)
    faults = sum(map(at_fault, results))
    cells = [title, f"{len(results):,}", f"{refused:,}", f"{len(results) - refused - faults:,}"]
    cells += [f"{max((r['seconds'] for r in results), default=0.0):.2f}"]
    cells += [f"{max((r['bytes'] for r in results), default=0) / 1e6:.0f}", str(faults)]
    return f"| {' | '.join(cells)} |"


def page(results: list[dict[str, Any]], seconds: float, seed: int) -> str:
    """The figures as Markdown."""
    by_kind = {kind: [r for r in results if r["kind"] == kind] for kind in MUTATIONS}
    raised = sum(r["outcome"].startswith("used,") for r in results)
    used = sum(r["outcome"] != "refused" and r["file"] % USED == 0 for r in results)
    wrong = [r for r in results if at_fault(r)]
    lines = [
        "## Hostile model files",
        "",
        f"{len(results):,} mutated files (seed {seed}) of {len({r['model'] for r in results})} small models of every "
        f"kind, some of them written in format 1. `flowlab.load` must load a file or refuse it by a `FileError`, "
        f"within {SECONDS:.0f} s of CPU time and {MEGABYTES:.0f} MB beyond what the process had. {used:,} of the files "
        f"that loaded were asked for scores and draws: {raised:,} of these have numbers that cannot be drawn from or "
        f"inverted, and said so by a ValueError or the like. {seconds / 60:.0f} minutes on one core.",
        "",
        "| mutation | files | refused | loaded | most CPU seconds | most memory (MB) | faults |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *(row(kind, own) for kind, own in by_kind.items() if own),
        row("all", results),
        "",
        f"**Faults: {len(wrong)}.**" + ("" if wrong else " No file was run, none took more than its share."),
    ]
    lines += [f"- file {r['file']} ({r['model']}, {r['kind']}): {r['outcome']}" for r in wrong[:20]]
    return "\n".join(lines) + "\n"


def section(scale: float = 1.0, seed: int = 0, keep: Path | None = None) -> str:
    """The section of the reliability page on hostile files, from 200,000 files times `scale`."""
    results, seconds = measure(max(round(FILES * scale), 1), seed, keep)
    for result in filter(at_fault, results):
        print(json.dumps(result)[-700:], file=sys.stderr)
    return page(results, seconds, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help=f"share of the {FILES:,} files")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--keep", type=Path, help="folder for the files at fault")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, seed, first, last = options.worker
        work(Path(folder), int(seed), int(first), int(last))
        return
    print(section(options.scale, options.seed, options.keep))


if __name__ == "__main__":
    main()
