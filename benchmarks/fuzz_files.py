"""Hostile model files: 20,000 mutated ones are loaded, and used where they load. Writes benchmarks/results/fuzz.md.

A file is a small model of some kind with one to three changes: bytes, the JSON description (values, types, keys,
growth), or the list of tensors. A worker process under a memory limit loads file after file, and a new one takes over
should it die. A file passes if `load` refuses it by a `FileError`, or if it loads and then scores rows and draws new
ones without any error but a ValueError or ArithmeticError.

    nice -n 10 python benchmarks/fuzz_files.py            # 20,000 files, about ten minutes on one core
    python benchmarks/fuzz_files.py --files 500 --seed 3 --no-page
"""

import argparse
import collections
import copy
import json
import platform
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

import numpy as np
import pandas as pd
import torch

import flowlab
from flowlab import FlowDensity, Member, bases, layers, presets
from flowlab.interop.converted import Backwards, ConvertedAutoregressive, ConvertedCoupling, FlooredSpline, Inverse
from flowlab.interop.steps import Steps
from flowlab.posteriors import FlowPosterior
from flowlab.posteriors.contexts import Given
from flowlab.posteriors.space import Space

PAGE = Path(__file__).parent / "results" / "fuzz.md"
MEMORY = 6 << 30  # bytes of address space; torch alone maps one or two
SECONDS = 60  # until a worker gives up on a file
ALLOWED = (ValueError, ArithmeticError)  # in use: what no file but a number in it can be blamed for
VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        7,
        64,
        1000,
        10**5,
        10**7,
        2**31,
        2**62,
        2**63,
        10**30,
        0.0,
        -1.5,
        0.5,
        1e-320,
        1e308,
    ),
    *(
        "",
        "x",
        "relu",
        "int6",
        "object",
        "category",
        "datetime64[ns]",
        "float64",
        "str[pyarrow]",
        "Gaussian",
        "Flow",
        "2024-01-01",
        "None",
    ),
    *([], [0], [1, 2], [0.5], ["a"], [[]], [None], {}, {"a": 1}, {"class": "Gaussian", "args": {"features": 3}}),
]


# Seeds ----------------------------------------------------------------------------------------------------------------


def table() -> pd.DataFrame:
    """A small whole table."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "n": rng.integers(0, 5, 60), "low": rng.integers(0, 9, 60)})
    frame["high"] = frame.low + rng.integers(0, 5, 60)
    frame["total"] = frame.n * frame.low
    frame["city"] = rng.choice(["Rome", "Oslo", "Bern"], 60)
    frame["when"] = pd.Timestamp("2024-01-01 08:00") + pd.to_timedelta(rng.integers(0, 3000, 60) * 60, "s")
    frame["size"] = pd.Categorical(rng.choice(["s", "m", "l"], 60), categories=["s", "m", "l", "xl"], ordered=True)
    frame.loc[::7, "x"], frame.loc[::5, "city"] = np.nan, None
    return frame


def seeds() -> dict[str, tuple[Any, Any]]:
    """A small model of every kind, each with rows to score."""
    generator = torch.Generator().manual_seed(0)
    numbers = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=list("abc"))
    numbers["k"], numbers["d"], whole = np.arange(60) % 7, 2 * numbers.a - numbers.b, table()
    mixed = [Member("mixed", steps=20, hidden=(4,))]
    fitted: dict[str, Any] = {"random_state": 0, "n_jobs": 1}
    plain = whole[["x", "n", "city"]]
    rules = ["low <= high", "total = n * low", "n + low < 100", flowlab.FixedCombinations(["city", "size"])]
    supports = {
        "tau": ((), torch.distributions.constraints.positive),
        "p": ((3,), torch.distributions.constraints.simplex),
    }
    own = [
        layers.Permutation(3, [2, 0, 1]),
        layers.ActNorm(3),
        layers.LULinear(3),
        layers.Whitening(3),
        layers.Marginal(3, bins=4),
    ]
    converted = [
        Inverse(layers.Coupling(3, Backwards(layers.Affine()), hidden=(4,), generator=generator)),
        ConvertedCoupling(
            3, FlooredSpline(4, 3.0), [True, False, False], Steps(2, 0, [["linear", 4], ["elu", 1.0], ["linear", 11]])
        ),
        ConvertedAutoregressive(3, layers.Affine(), [0, 0, 0], Steps(3, 0, [["constant", 6]])),
        Given(layers.Coupling(3, context_features=2, hidden=(4,), generator=generator), torch.tensor([0.5, -1.0])),
    ]
    flow = presets.maf(3, layers=1, hidden=(4,), generator=generator)
    found = {
        "Flow, nsf": presets.nsf(3, layers=1, hidden=(4,), generator=generator),
        "Flow, maf": flow,
        "Flow, planar": presets.planar(3, layers=2, generator=generator),
        "Flow, linear layers": flowlab.Flow(bases.StudentT(3), own),
        "Flow, converted layers": flowlab.Flow(bases.GaussianMixture(3, 2, generator=generator), converted),
        "FlowMixture": flowlab.FlowMixture(
            [flow, presets.real_nvp(3, layers=1, hidden=(4,), generator=generator)], [1, 2]
        ),
        "FlowPosterior": FlowPosterior(
            presets.maf(3, layers=1, hidden=(4,), generator=generator).double(), Space(supports=supports)
        ),
    }
    return {
        **{name: (model, torch.linspace(-1, 1, 6).view(2, 3)) for name, model in found.items()},
        "FlowDensity, numbers": (FlowDensity(members=["copula", "kernel"], **fitted).fit(numbers), numbers[:3]),
        "FlowDensity, whole table": (FlowDensity(members=mixed, **fitted).fit(plain), plain[:3]),
        "FlowDensity, rules": (FlowDensity(members=mixed, rules=rules, **fitted).fit(whole), whole[:3]),
    }


def use(model: Any, rows: Any) -> None:
    """Scores rows and draws new ones."""
    with torch.no_grad():
        if isinstance(model, FlowDensity):
            model.score_samples(rows)
            model.sample(2, random_state=0)
            model.summary()
        elif isinstance(model, FlowPosterior):
            model.log_prob(model.sample((2,), torch.Generator().manual_seed(0)))
        elif isinstance(model, flowlab.Flow | flowlab.FlowMixture):
            generator, context = torch.Generator().manual_seed(0), None
            if model.context_features:
                context = torch.zeros(model.context_features, dtype=model.dtype)
            drawn = model.sample((2,), context, generator)
            model.log_prob(drawn, context)
        repr(model)


# Mutations ------------------------------------------------------------------------------------------------------------


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file as the JSON before its tensors, with flowlab's own read, and the bytes of the tensors."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = json.loads(header["__metadata__"]["flowlab"])
    return header, data[8 + length :]


def joined(header: dict[str, Any], tensors: bytes) -> bytes:
    """The inverse of `split`."""
    text = json.dumps({**header, "__metadata__": {"flowlab": json.dumps(header["__metadata__"])}}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + tensors


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container in JSON with every key or index in it."""
    for key in list(value) if isinstance(value, dict) else range(min(len(value), 50)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            places(value[key], found)
    return found


def mutate_json(root: Any, rng: random.Random) -> None:
    """One change of a value, its type, its key or its size, in place."""
    spots = places(root, [])
    if not spots:
        return
    within, key = rng.choice(spots)
    old = within[key]
    match rng.randrange(9):
        case 0 | 1:
            within[key] = copy.deepcopy(rng.choice(VALUES))
        case 2 if isinstance(old, int | float):
            within[key] = rng.choice(
                [-old, old + 1, old * 2, old - 1, float(old), str(old), [old], 10 ** rng.randrange(1, 19)]
            )
        case 3 if isinstance(old, list):
            within[key] = rng.choice(
                [old * 2, old[:-1], old[::-1], old * rng.choice([10, 1000]) if len(old) < 99 else old, {}, None]
            )
        case 4 if isinstance(within, dict):
            within[rng.choice(["class", "args", "features", "x", str(key) + "_"])] = within.pop(key)
        case 5:
            del within[key]
        case 6:
            other, place = rng.choice(spots)
            within[key] = json.loads(
                json.dumps(other[place] if place in other or (isinstance(other, list) and place < len(other)) else None)
            )
        case 7:
            for _ in range(rng.choice([1, 3, 100])):
                old = [old]
            within[key] = old
        case _:
            within[key] = old * rng.choice([2, 10_000]) if isinstance(old, str) else copy.deepcopy(rng.choice(VALUES))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few other bytes, fewer of them, or more."""
    changed = bytearray(data)
    match rng.randrange(6):
        case 0 | 1:
            for _ in range(rng.choice([1, 2, 8])):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        case 2:
            changed = changed[: rng.randrange(len(changed))]
        case 3:
            changed[:8] = rng.choice([0, 1, 2**20, 2**40, 2**63, len(data)]).to_bytes(8, "little")
        case 4:
            place = rng.randrange(len(changed))
            changed[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 8, 100])))
        case _:
            place, length = rng.randrange(len(changed)), rng.choice([1, 4, 8])
            changed[place : place + length] = rng.choice([b"\0", b"\xff"]) * length
    return bytes(changed)


def mutated(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A file with one to three changes, and what kind they are."""
    kind = rng.choice(["bytes", "JSON", "JSON", "JSON", "tensors"])
    if kind == "bytes":
        return kind, mutate_bytes(data, rng)
    header, tensors = split(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        if kind == "JSON":
            mutate_json(header["__metadata__"], rng)
        else:
            names = [name for name in header if name != "__metadata__"]
            mutate_json({name: header[name] for name in names}, rng) if rng.random() < 0.5 else None
            start = rng.randrange(max(len(tensors) - 8, 1))  # any numbers: NaN, infinite, tiny, huge
            value = rng.choice([np.nan, np.inf, -np.inf, 1e300, -1e300, 0.0, 1e-300])
            start -= start % 8
            tensors = tensors[:start] + np.float64(value).tobytes() + tensors[start + 8 :]
    return kind, joined(header, tensors)


# Workers --------------------------------------------------------------------------------------------------------------


def peak() -> int:
    """The largest resident memory since `reset_peak`, bytes; without a /proc since the process began."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024


def reset_peak() -> int:
    """Starts `peak` anew where that can be, and gives the memory in use."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak()


def try_file(path: Path, rows: Any) -> dict[str, Any]:
    """What becomes of a file: refused, clean, or what went wrong; seconds and bytes that loading took."""
    before, started = reset_peak(), time.process_time()
    outcome, detail, model = "clean", "", None
    try:
        model = flowlab.load(path)
    except flowlab.FileError:
        outcome = "refused"
    except BaseException as error:
        outcome, detail = f"load: {type(error).__name__}", traceback.format_exc()[-1500:]
    found = {"seconds": time.process_time() - started, "bytes": peak() - before}
    if outcome == "clean":
        try:
            use(model, rows)
        except ALLOWED as error:
            outcome = f"used, {type(error).__name__}"
            detail = str(error)[:200]
        except BaseException as error:
            said = type(error) is RuntimeError and "draws keep" in str(
                error
            )  # bounds that leave `sample` nothing to draw
            outcome, detail = f"{'used,' if said else 'use:'} {type(error).__name__}", traceback.format_exc()[-1500:]
    return {**found, "outcome": outcome, "detail": detail, "used": time.process_time() - started}


def give_up(*_: object) -> None:
    raise TimeoutError(f"{SECONDS} s")


def work(folder: Path, seed: int, first: int, last: int) -> None:
    """Tries the files of that numbers, and prints a line for each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, give_up)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known = pd.read_pickle(folder / "rows.pkl")  # written by this program's parent
    data = {name: (folder / f"{name}.flow").read_bytes() for name in known}
    path = folder / "mutated.flow"
    for name in data:  # what is imported at the first use of each kind
        use(flowlab.load(folder / f"{name}.flow"), known[name])
    for i in range(first, last):
        print(json.dumps({"file": i}), flush=True)
        rng = random.Random(f"{seed} {i}")
        name = rng.choice(sorted(data))
        kind, content = mutated(data[name], rng)
        path.write_bytes(content)
        signal.alarm(SECONDS)
        result = try_file(path, known[name])
        signal.alarm(0)
        print(json.dumps({"file": i, "model": name, "kind": kind, "size": len(content), **result}), flush=True)


def run(folder: Path, seed: int, count: int) -> list[dict[str, Any]]:
    """The results of so many files, by one worker after another; of fewer where Ctrl-C ends it."""
    results: list[dict[str, Any]] = []
    with suppress(KeyboardInterrupt):
        collect(folder, seed, count, results)
    return results


def collect(folder: Path, seed: int, count: int, results: list[dict[str, Any]]) -> None:
    """Adds the results of so many files."""
    first = 0
    while first < count:
        command = [sys.executable, __file__, "--worker", str(folder), str(seed), str(first), str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            for line in worker.stdout:
                found = json.loads(line)
                if "outcome" in found:
                    results.append(found)
                    if found["outcome"].startswith(("load:", "use:")):
                        print(json.dumps({**found, "detail": found["detail"][-200:]}), file=sys.stderr)
                first = found["file"] + ("outcome" in found)
        if first < count:  # it died
            results.append(
                {"file": first, "model": "?", "kind": "?", "size": 0, "seconds": 0.0, "bytes": 0, "used": 0.0}
            )
            results[-1] |= {"outcome": "the process died", "detail": f"exit status {worker.returncode}"}
            first += 1


def page(results: list[dict[str, Any]], seed: int, seconds: float) -> str:
    """The figures as Markdown."""
    frame = pd.DataFrame(results)
    counts = frame.outcome.value_counts()
    wrong = [name for name in counts.index if name.startswith(("load:", "use:", "the process"))]
    lines = [
        "# Hostile model files",
        "",
        f"{len(frame):,} mutated files (seed {seed}) of {frame.model.nunique()} small models, "
        f"each loaded, and used where it loaded. "
        f"flowlab {flowlab.__version__}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, pandas {pd.__version__}; "
        f"{platform.machine()}, one core, {seconds / 60:.0f} minutes. Made by `make bench-fuzz`.",
        "",
        "| outcome | files |",
        "|---|---|",
        *(f"| {name} | {count:,} |" for name, count in counts.items()),
        "",
        f"Neither refused by a `FileError` nor clean: {int(counts[wrong].sum()) if wrong else 0}. "
        f"“Used, ValueError” and the like are models whose numbers were changed to "
        "ones that cannot be drawn from or inverted.",
        "",
        "| model | files | refused | most CPU seconds to load | most memory to load (MB) |",
        "|---|---|---|---|---|",
    ]
    for name, own in frame.groupby("model"):
        lines.append(
            f"| {name} | {len(own):,} | {(own.outcome == 'refused').mean():.0%} "
            f"| {own.seconds.max():.2f} | {own.bytes.max() / 1e6:.0f} |"
        )
    lines += [
        "",
        f"All: at most {frame.seconds.max():.2f} s and {frame.bytes.max() / 1e6:.0f} MB to load, "
        f"{frame.used.max():.1f} s with use.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-page", action="store_true", help="print the figures only")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        folder, seed, first, last = options.worker
        work(Path(folder), int(seed), int(first), int(last))
        return
    warnings.simplefilter("ignore")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="flowlab-fuzz-") as name:
        folder = Path(name)
        models = seeds()
        for title, (model, _) in models.items():
            flowlab.save(model, folder / f"{title}.flow")
        pd.to_pickle({title: rows for title, (_, rows) in models.items()}, folder / "rows.pkl")
        results = run(folder, options.seed, options.files)
    text = page(results, options.seed, time.perf_counter() - started)
    print(text)
    details = collections.Counter(
        r["outcome"] + ": " + r["detail"][-200:] for r in results if r["outcome"] not in ("clean", "refused")
    )
    for detail, count in details.most_common(40):
        print(count, detail)
    if not options.no_page:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
