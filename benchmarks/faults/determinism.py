"""Determinism: one seed gives the same bits in other processes, threads and workers, and no global generator moves.

Run it alone with `python -m benchmarks.faults.determinism --scale 0.1`. With `--write FILE` it is the program that
fresh processes run: all of `ACTIONS`, or those named, with what they found in one file.
"""

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import flowlab
from benchmarks.common import table

if TYPE_CHECKING:  # they take longer to import than torch, and not all work needs them
    import pandas as pd

    from flowlab import FlowDensity

ROOT = Path(__file__).parents[2]
Found = dict[str, np.ndarray]
SMALL = {"steps": 40, "hidden": (8,)}
JOBS = int(os.environ.get("FAULTS_JOBS", "1"))  # of ensembles


# ---- what is done ---------------------------------------------------------------------------------------------------


def numbers(rows: int = 200) -> np.ndarray:
    """Three columns of numbers: correlated, skewed, heavy-tailed."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=rows)
    return np.stack([a, np.exp(0.5 * rng.normal(size=rows) + 0.3 * a), rng.standard_t(3, rows)], 1)


def mixed(rows: int = 200) -> "pd.DataFrame":
    """Levels, a price, an integer, a date, and missing cells."""
    import pandas as pd

    rng = np.random.default_rng(2)
    city = rng.choice(["Rome", "Oslo", "Lima"], rows, p=[0.5, 0.3, 0.2])
    frame = pd.DataFrame(
        {
            "city": city,
            "price": np.round(rng.lognormal(3.0, 0.5, rows) + 5 * (city == "Oslo"), 2),
            "count": rng.poisson(3.0, rows),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 90, rows), unit="D"),
            "x": rng.normal(size=rows),
        }
    )
    frame.loc[rng.random(rows) < 0.15, "x"] = np.nan
    frame.loc[rng.random(rows) < 0.1, "city"] = None
    return frame


def columns(frame: "pd.DataFrame", name: str) -> Found:
    """The columns of a table as arrays that can be saved."""
    return {
        f"{name}, {column}": values.to_numpy() if values.dtype.kind in "ifb" else values.astype(str).to_numpy("U40")
        for column, values in frame.items()
    }


def flow_and_split(_: Path) -> Found:
    x = torch.as_tensor(numbers()).float()
    flow = flowlab.presets.nsf(3, layers=2, hidden=(16,), generator=torch.Generator().manual_seed(0))
    history = flowlab.fit(flow, x, epochs=8, generator=torch.Generator().manual_seed(1), progress=False)
    return {
        "weights": torch.cat([p.detach().flatten() for p in flow.parameters()]).numpy(),
        "losses of the split": history.frame["validation"].to_numpy(),
        "sample": flow.sample((50,), generator=torch.Generator().manual_seed(2)).numpy(),
        "score": flow.log_prob(x).detach().numpy(),
        "to_noise": flow.to_noise(x).detach().numpy(),
    }


def number_model() -> "FlowDensity":
    networks = [flowlab.Member("autoregressive", "none", **SMALL), flowlab.Member("spline", "marginal", **SMALL)]
    return flowlab.FlowDensity(members=[*networks, "copula"], n_jobs=JOBS, random_state=0).fit(numbers())


def numeric_table(_: Path) -> Found:
    model, x = number_model(), numbers()
    return {
        "score": model.score_samples(x),
        "sample": model.sample(50, random_state=1),
        "to_noise": model.to_noise(x, random_state=2),
        "weights of members": model.members_["weight"].to_numpy(),
        "entropy": np.array(model.entropy(500, random_state=3)[:2]),
    }


def mixed_model() -> "FlowDensity":
    return flowlab.FlowDensity(
        members=[flowlab.Member("mixed", "none", trees=2, gaussians=3, **SMALL)], n_jobs=JOBS, random_state=0
    ).fit(mixed())


def mixed_table(_: Path) -> Found:
    model, frame = mixed_model(), mixed()
    given = frame[["city", "count"]].head(5)
    return {
        "score": model.score_samples(frame),
        "to_noise": model.to_noise(frame, random_state=2),
        "p-values": model.anomaly_p_value(frame),
        **columns(model.sample(50, random_state=1), "sample"),
        **columns(model.impute(frame.head(40), random_state=3), "impute"),
        **columns(model.conditional("price", given, n=100, random_state=4), "conditional"),
        **columns(model.sample(20, random_state=5, given={"city": "Rome"}), "sample given"),
    }


def posterior(_: Path) -> Found:
    def log_prob(z: torch.Tensor) -> torch.Tensor:
        return -(z[:, 0].square() / 2 + (z[:, 1] - z[:, 0].square()).square() * 2)

    fitted = flowlab.fit_posterior(log_prob, features=2, random_state=0, steps=60, progress=False)
    z = fitted.sample((50,), generator=torch.Generator().manual_seed(1))
    return {
        "sample": z.numpy(),
        "score": fitted.log_prob(z).detach().numpy(),
        "khat": np.array(fitted.diagnostics().khat),
    }


def amortised_posterior(_: Path) -> Found:
    contexts = torch.as_tensor(numbers()[:, :2])

    def log_prob(z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return -(z - context).square().sum(-1) / 2 - z.square().sum(-1) / 2

    fitted = flowlab.fit_posterior(log_prob, features=2, context=contexts, steps=30, random_state=0, progress=False)
    given = fitted.at(contexts[0])
    return {"sample": given.sample((50,), generator=torch.Generator().manual_seed(1)).numpy()}


def report(folder: Path) -> Found:
    """The page, without what it says of time: the minute of its writing, and the seconds that fits took."""
    model, frame = mixed_model(), mixed()
    for member in model.reports_:
        member.seconds = 0.0
    page = model.report(frame.iloc[100:], frame.iloc[:100], folder / "report.html", random_state=0)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", Path(page).read_text(encoding="utf-8"))
    return {"page": np.array(hashlib.sha256(text.encode()).hexdigest())}


def command(folder: Path) -> Found:
    """Files of the command line; the model's files may differ in the seconds that fits took."""
    mixed().to_csv(folder / "table.csv", index=False)

    def run(*arguments: str) -> None:
        line = [sys.executable, "-m", "flowlab", *arguments, "--quiet", "--force"]
        subprocess.run(line, check=True, cwd=folder, capture_output=True)

    run("fit", "table.csv", "-o", "m.flow", "--members", "mixed", "--effort", "fast")
    run("sample", "m.flow", "-n", "50", "-o", "rows.csv")
    run("score", "m.flow", "table.csv", "-o", "scores.csv")
    run("impute", "m.flow", "table.csv", "-o", "filled.csv")
    files = {name: np.array((folder / name).read_text()) for name in ("rows.csv", "scores.csv", "filled.csv")}
    return {**files, "model file": np.frombuffer((folder / "m.flow").read_bytes(), dtype=np.uint8)}


ACTIONS: dict[str, Callable[[Path], Found]] = {
    "flow and split": flow_and_split,
    "numeric table": numeric_table,
    "mixed table": mixed_table,
    "posterior": posterior,
    "amortised posterior": amortised_posterior,
    "report": report,
    "command line": command,
}
QUICK = ("flow and split", "numeric table", "mixed table", "posterior")


@contextmanager
def states_kept() -> Iterator[dict[str, bool]]:
    """Which of the global random generators are as they were before the block, known after it."""

    def states() -> dict[str, Any]:
        return {
            "torch": torch.get_rng_state().tolist(),
            "numpy": repr(np.random.get_state()),
            "python": random.getstate(),
        }

    before, kept = states(), dict[str, bool]()
    yield kept
    kept.update({name: state == before[name] for name, state in states().items()})


def perform(names: Sequence[str]) -> Found:
    """What the actions find, and whether they left the global generators alone."""
    import sklearn.preprocessing  # noqa: F401  # imports rich, which draws from Python's generator as it is imported

    found: Found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder, states_kept() as kept:
            results = ACTIONS[name](Path(folder))
        found |= {f"{name}: {what}": value for what, value in results.items()}
        found |= {f"{name}: global state of {which} kept": np.array(same) for which, same in kept.items()}
    return found


# ---- comparisons ----------------------------------------------------------------------------------------------------


def in_new_process(names: Sequence[str], hash_seed: int = 1, threads: int = 1, jobs: int = 1) -> Found:
    """What a fresh process finds, with its own hash seed, number of threads, and processes of ensembles."""
    environment = {
        **os.environ,
        "PYTHONHASHSEED": str(hash_seed),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "FAULTS_JOBS": str(jobs),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.npz"
        line = [sys.executable, "-m", "benchmarks.faults.determinism", "--write", str(path), *names]
        subprocess.run(line, check=True, cwd=ROOT, env=environment)
        with np.load(path) as file:
            return dict(file)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest relative difference; zero means the same bits, infinity what has no difference, such as texts."""
    if a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return 0.0
    if a.dtype.kind != "f" or a.shape != b.shape:
        return float("inf")
    apart = np.abs(a - b) / (1 + np.abs(b))
    return float(np.nan_to_num(np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, apart), nan=np.inf).max())


def differences(one: Found, other: Found) -> dict[str, float]:
    """The difference of everything found but model files, which hold timings."""
    assert one.keys() == other.keys()
    return {name: difference(value, other[name]) for name, value in one.items() if not name.endswith("model file")}


def fields_that_differ(one: bytes, other: bytes) -> list[str]:
    """Where the headers of two model files differ, by path; "tensors" where their tensors do."""

    def parts(file: bytes) -> tuple[Any, bytes]:
        size = int.from_bytes(file[:8], "little")
        header = json.loads(file[8 : 8 + size])
        meta = {k: json.loads(v) if v[:1] in "{[" else v for k, v in header.pop("__metadata__", {}).items()}
        return {"metadata": meta, "layout": header}, file[8 + size :]

    def walk(a: Any, b: Any, path: str) -> Iterator[str]:
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            for key in a:
                yield from walk(a[key], b[key], f"{path}.{key}")
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for i, (left, right) in enumerate(zip(a, b, strict=True)):
                yield from walk(left, right, f"{path}[{i}]")
        elif a != b:
            yield path

    (header, tensors), (other_header, other_tensors) = parts(one), parts(other)
    changed = [path.removeprefix(".") for path in walk(header, other_header, "")]
    return changed + ["tensors"] * (tensors != other_tensors)


# ---- threads, forks, workers ----------------------------------------------------------------------------------------


def answers(model: "FlowDensity", i: int) -> Found:
    """What a model says of rows, and draws, with seed i."""
    frame = mixed(60)
    sample = model.sample(30, random_state=i)
    return {
        "score": model.score_samples(frame),
        "noise": model.to_noise(frame, random_state=i),
        **columns(sample, "sample"),
    }


def in_threads(model: "FlowDensity", count: int = 8, calls: int = 40) -> float:
    """The largest difference between answers of one model in several threads at once and one after the other."""
    serial = [answers(model, i) for i in range(calls)]
    barrier = threading.Barrier(count)

    def job(i: int) -> Found:
        if i < count:
            barrier.wait()
        return answers(model, i)

    with ThreadPoolExecutor(count) as pool:
        return largest(serial, list(pool.map(job, range(calls))))


def in_workers(model: "FlowDensity", calls: int = 8) -> float:
    """The same for two of joblib's processes."""
    import joblib

    serial = [answers(model, i) for i in range(calls)]
    return largest(serial, joblib.Parallel(n_jobs=2)(joblib.delayed(answers)(model, i) for i in range(calls)))


def in_forks(model: "FlowDensity", calls: int = 4, timeout: float = 120.0) -> float:
    """The same for two forks, made after torch used threads here; TimeoutError where they hang."""
    import multiprocessing

    serial = [answers(model, i) for i in range(calls)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return largest(serial, pool.starmap_async(answers, [(model, i) for i in range(calls)]).get(timeout))


def largest(serial: Sequence[Found], others: Sequence[Found]) -> float:
    """The largest difference between answers."""
    return max(max(differences(a, b).values()) for a, b in zip(serial, others, strict=True))


# ---- the page -------------------------------------------------------------------------------------------------------


def section(scale: float = 1.0) -> str:
    """The section of the reliability page; below a tenth of the full run without report and command line."""
    started = time.perf_counter()
    names = list(ACTIONS) if scale >= 0.1 else list(QUICK)
    reference = in_new_process(names)
    again = in_new_process(names, hash_seed=2)
    rows = []
    for what, other in (
        ("a second process, another hash seed", again),
        ("OMP_NUM_THREADS=2", in_new_process(names, threads=2)),
        ("two processes an ensemble (n_jobs=2)", in_new_process(["numeric table", "mixed table"], jobs=2)),
    ):
        apart = differences({name: reference[name] for name in other}, other)
        worst = max(apart, key=lambda name: apart[name])
        equal = sum(value == 0 for value in apart.values())
        rows.append([what, f"{equal} of {len(apart)}", f"{apart[worst]:.1e} ({worst})" if apart[worst] else "0"])
    kept = [bool(value) for name, value in reference.items() if "global state" in name]
    text = [
        f"{sum(kept)} of {len(kept)} global random states were left alone, three each by {len(names)} kinds of work. "
        "Not counted is what importing scikit-learn does: rich, where it is installed, is imported too, and draws once."
    ]
    if "command line: model file" in reference:
        files = (found["command line: model file"].tobytes() for found in (reference, again))
        fields = dict.fromkeys(re.sub(r"\[\d+\]", "[]", field) for field in fields_that_differ(*files))
        text.append(f"Two model files of equal `flowlab fit` calls differ in: {', '.join(fields) or 'nothing'}.")
    model = mixed_model()
    calls = max(8, round(200 * scale))
    for what, apart in (
        (f"8 threads with one model, {calls} calls", in_threads(model, 8, calls)),
        ("two forks after threads", in_forks(model)),
        ("two joblib workers", in_workers(model)),
    ):
        rows.append([what, "all" if not apart else "not all", f"{apart:.1e}" if apart else "0"])
    compared = table(
        ["compared with one process, one thread", "equal bit for bit", "largest relative difference"], rows
    )
    words = "\n\n".join(text)
    return f"## Determinism\n\n{words} {time.perf_counter() - started:,.0f} s.\n\n{compared}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full run")
    parser.add_argument("--write", help="file to write what the actions find to")
    parser.add_argument("names", nargs="*", help="actions")
    arguments = parser.parse_args()
    if arguments.write:
        np.savez(arguments.write, **perform(arguments.names or list(ACTIONS)))
    else:
        print(section(arguments.scale))


if __name__ == "__main__":
    main()
