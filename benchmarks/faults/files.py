"""Hostile model files: 200,000 mutated ones are loaded, each within 5 s and 500 MB, and used where they load.

A file is a small model of some kind, or one of an older format, with a few changes of one kind (`MUTATIONS`). A worker
process loads file after file, and a new one takes over should it die. A file passes if `load` refuses it by a
`FileError`, or if it loads and then, for a share of them, scores rows and draws new ones without any error but a
ValueError or ArithmeticError.

    nice -n 10 python -m benchmarks.faults.files                 # 200,000 files, about an hour on one core
    python -m benchmarks.faults.files --scale 0.01 --keep bad/   # 2,000, and those that fail are kept
"""

import argparse
import copy
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import flowlab
from flowlab import FlowDensity, Member, bases, layers, presets
from flowlab.interop.converted import Backwards, ConvertedAutoregressive, ConvertedCoupling, FlooredSpline, Inverse
from flowlab.interop.steps import Steps
from flowlab.posteriors import AmortizedPosterior, FlowPosterior
from flowlab.posteriors.contexts import Given, Standardise
from flowlab.posteriors.space import Space

FILES = 200_000
FIXTURES = Path(__file__).parents[2] / "tests" / "data"  # models of older formats
EARLY = ("mixture", "numbers", "posterior", "table")
SECONDS, MEGABYTES = 5.0, 500.0  # what a load may take: CPU time, and memory beyond that of the process before
MOST = 4 << 30  # bytes beyond that of a worker that the system gives it; a load that wants more is at fault
PATIENCE = 60  # seconds of the clock until a worker gives up on a file
USED = 4  # of so many files that load, one is used
ALLOWED = (ValueError, ArithmeticError)  # in use: what no file but a number in it can be blamed for
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 64, 1000, 10**5, 10**7, 2**31, 2**62, 2**63, 10**30),
    *(0.0, -1.5, 0.5, 1e-320, 1e308),
    *("", "x", "relu", "int6", "object", "category", "datetime64[ns]", "float64", "str[pyarrow]", "Gaussian", "Flow"),
    *("2024-01-01", "None", [], [0], [1, 2], [0.5], ["a"], [[]], [None], {}, {"a": 1}),
    {"class": "Gaussian", "args": {"features": 3}},
    {"class": "torch.nn.Linear", "args": {"in_features": 2, "out_features": 2, "bias": True}},
]
COUNTS = (0, -1, 2**16, 10**5, 10**6, 2**31 - 1, 2**31, 2**40, 2**62, 2**63, 2**64, 10**30, -(2**31), 1e18, 1e300)
NAMES = (
    *("../../etc/passwd", "/dev/zero", "/proc/self/mem", "C:\\Windows\\win.ini", "file:///etc/passwd", "a/../b", "~"),
    *("os.system", "builtins.eval", "__class__", "__init__.__globals__", "flowlab.files.load", "torch.nn.Module"),
    *("torch.load", "torch.nn.Bilinear", "", ".", "..", "\x00", "\ud800", "a.b.c", "layers.0.weight", "x" * 100_000),
    *("$(reboot)", "`@pd.io`", "{0.__class__}", "%s%n", "<script>"),
)
BROKEN = (np.nan, np.inf, -np.inf, 1e300, -1e300, 3e38, 1e-320, -0.0)


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
    mixed = [Member("mixed", steps=20, hidden=(4,), components=2, trees=2, gaussians=2)]
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
    found |= networks(generator)
    frame, y = plain.assign(x=plain.x.fillna(0)), np.asarray(whole.n > 2)
    outlier = flowlab.FlowOutlier(FlowDensity(members=["copula"], **fitted)).fit(numbers[["a", "b"]])
    return {
        **{name: (model, torch.linspace(-1, 1, 6).view(2, 3)) for name, model in found.items()},
        "FlowClassifier": (flowlab.FlowClassifier(FlowDensity(members=mixed, **fitted)).fit(frame, y), frame[:3]),
        "FlowRegressor": (flowlab.FlowRegressor(FlowDensity(members=mixed, **fitted)).fit(frame, whole.low), frame[:3]),
        "FlowOutlier": (outlier, numbers[["a", "b"]][:3]),
        "FlowDensity, trees and networks": (
            FlowDensity(members=["mixture", *mixed], **fitted).fit(numbers[["a", "b", "k"]]),
            numbers[["a", "b", "k"]][:3],
        ),
        "FlowDensity, numbers": (FlowDensity(members=["copula", "kernel"], **fitted).fit(numbers), numbers[:3]),
        "FlowDensity, whole table": (FlowDensity(members=mixed, **fitted).fit(plain), plain[:3]),
        "FlowDensity, rules": (FlowDensity(members=mixed, rules=rules, **fitted).fit(whole), whole[:3]),
    }


def networks(generator: torch.Generator) -> dict[str, Any]:
    """Models that hold networks of torch's."""
    encoder = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.SiLU(), nn.Dropout(0.1), nn.Linear(4, 6))
    conditional = presets.iaf(2, context_features=2, layers=1, hidden=(4,), generator=generator)
    image = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 6))
    back = nn.Sequential(nn.Unflatten(1, (2, 1, 1)), nn.ConvTranspose2d(2, 1, 2), nn.ELU(), nn.Flatten())
    encoding = nn.Sequential(Standardise(3), nn.Linear(3, 2), nn.Tanh())
    own = presets.iaf(3, context_features=2, layers=1, hidden=(4,), generator=generator)
    small = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
    small[2].bias.requires_grad_(False)  # a constant
    net = {"full": {"posterior": "full", "noise": "posterior"}, "flow": {"rank": 2, "over": "last"}}
    supports = {"s": ((2,), torch.distributions.constraints.positive), "r": ((), torch.distributions.constraints.real)}
    return {
        "VAE": flowlab.VAE(encoder, nn.Linear(2, 6), conditional, likelihood="gaussian", noise="decoder"),
        "VAE, images": flowlab.VAE(image, back, conditional, prior=presets.maf(2, layers=1, hidden=(4,))),
        "AmortizedPosterior": AmortizedPosterior(encoding, own, supports=supports),
        **{
            f"BayesianModule, {name}": flowlab.BayesianModule(small, generator=generator, **options)
            for name, options in net.items()
        },
    }


def use(model: Any, rows: Any) -> None:
    """Scores rows, as far as there are any, and draws new ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if isinstance(model, FlowDensity):
            if rows is not None:
                model.score_samples(rows)
            model.sample(2, random_state=0)
            model.summary()
        elif isinstance(model, flowlab.FlowClassifier | flowlab.FlowRegressor | flowlab.FlowOutlier):
            model.predict(rows)
        elif isinstance(model, FlowPosterior):
            model.log_prob(model.sample((2,), generator))
        elif isinstance(model, AmortizedPosterior):
            model.log_prob(model.sample((2,), torch.zeros(3), generator), torch.zeros(3))
        elif isinstance(model, flowlab.VAE):
            model.elbo(model.sample((2,), generator), generator=generator)
        elif isinstance(model, flowlab.BayesianModule):
            model.predict(torch.zeros(2, 3), 2, generator=generator)
        elif isinstance(model, flowlab.Flow | flowlab.FlowMixture):
            context = None
            if model.context_features:
                context = torch.zeros(model.context_features, dtype=model.dtype)
            model.log_prob(model.sample((2,), context, generator), context)
        repr(model)


# Mutations ------------------------------------------------------------------------------------------------------------


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file as the JSON before its tensors, with flowlab's own read, and the bytes of the tensors."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = json.loads(header["__metadata__"]["flowlab"])
    return header, data[8 + length :]


def joined(header: dict[str, Any], tensors: bytes, text: Callable[[str], str] = str) -> bytes:
    """The inverse of `split`, with a change of flowlab's own JSON as text."""
    metadata = {"flowlab": text(json.dumps(header["__metadata__"]))}
    return framed(json.dumps({**header, "__metadata__": metadata}), tensors)


def framed(header: str, tensors: bytes) -> bytes:
    """A safetensors file of a header and the bytes of its tensors."""
    raw = header.encode(errors="surrogatepass")
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + tensors


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container in JSON with every key or index in it."""
    for key in list(value) if isinstance(value, dict) else range(min(len(value), 50)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            places(value[key], found)
    return found


def bit_flips(data: bytes, rng: random.Random) -> bytes:
    """Some bits flipped, more often than not in the header, or bytes put in or set to 0 or 255."""
    changed = bytearray(data)
    end = 8 + int.from_bytes(data[:8], "little") if rng.random() < 0.6 else len(data)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        changed[rng.randrange(end)] ^= 1 << rng.randrange(8)
    place = rng.randrange(len(changed))
    match rng.randrange(8):
        case 0:
            changed[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 8, 100])))
        case 1:
            changed[place : place + 8] = rng.choice([b"\0", b"\xff"]) * 8
    return bytes(changed)


def truncations(data: bytes, rng: random.Random) -> bytes:
    """A file cut off, or with more than it should have."""
    match rng.randrange(4):
        case 0:
            return data[: rng.randrange(int.from_bytes(data[:8], "little") + 8)]
        case 1:
            return data[: -rng.choice([1, 2, 4, 8, 64])]
        case 2:
            return data + data[: rng.choice([1, 8, 1000])]
        case _:
            return data[: rng.randrange(len(data))]


def header_edits(data: bytes, rng: random.Random) -> bytes:
    """Values of the description exchanged, left out, renamed or changed by a little; or another length of it."""
    if rng.random() < 0.05:
        length = rng.choice([0, 1, 7, 2**20, 2**25 + 1, 2**40, 2**63, 2**64 - 1, len(data)])
        return length.to_bytes(8, "little") + data[8:]
    header, tensors = split(data)
    for _ in range(rng.choice([1, 1, 2, 3])):
        spots = places(header["__metadata__"], [])
        if spots:
            edit(spots, rng)
    return joined(header, tensors)


def edit(spots: list[tuple[Any, Any]], rng: random.Random) -> None:
    """One of those changes, in place."""
    within, key = rng.choice(spots)
    old = within[key]
    match rng.randrange(6):
        case 0 if isinstance(old, int | float):
            within[key] = rng.choice([-old, old + 1, old * 2, old - 1, float(old), 1 / (abs(old) + 1)])
        case 1 if isinstance(old, list):
            within[key] = rng.choice([old * 2, old[:-1], old[::-1], old[1:], rng.sample(old, len(old))])
        case 2 if isinstance(within, dict):
            within[rng.choice(["class", "args", "features", "x", str(key) + "_"])] = within.pop(key)
        case 3:
            del within[key]
        case 4:
            other, place = rng.choice(spots)
            there = place in other or (isinstance(other, list) and place < len(other))
            within[key] = copy.deepcopy(other[place] if there else None)
        case _:
            within[key] = copy.deepcopy(rng.choice(VALUES))


def huge_counts(data: bytes, rng: random.Random) -> bytes:
    """Numbers, lists, words and the tensors' shapes far larger than the file pays for."""
    header, tensors = split(data)
    whole = rng.random() < 0.2
    for _ in range(rng.choice([1, 2, 4])):
        spots = places(header if whole else header["__metadata__"], [])
        numbers = [(w, k) for w, k in spots if type(w[k]) in (int, float)]
        others = [(w, k) for w, k in spots if isinstance(w[k], str | list) and w[k]]
        if numbers and rng.random() < 0.7:
            within, key = rng.choice(numbers)
            within[key] = rng.choice(COUNTS)
        elif others:
            within, key = rng.choice(others)
            most = max(1_000_000 // len(json.dumps(within[key])), 2)  # a few hundred kilobytes at most
            within[key] = within[key] * min(rng.choice([10, 1000, 30_000]), most)
    return joined(header, tensors)


def deep_nesting(data: bytes, rng: random.Random) -> bytes:
    """A value within lists or objects within lists or objects …"""
    header, tensors = split(data)
    within, key = rng.choice(places(header["__metadata__"], []))
    inner, mark = json.dumps(within[key]), "what is nested"
    within[key] = mark
    opening, closing = rng.choice(
        [
            ("[", "]"),
            ('{"a": ', "}"),
            ('{"class": "Inverse", "args": {"layer": ', "}}"),
            ('{"class": "torch.nn.Sequential", "args": {"names": ["0"], "modules": [', "]}}"),
            ('{"pairs": [["a", ', "]]}"),
            ('["independent", ', ", 0]"),
        ]
    )
    times = rng.choice([1, 2, 30, 60, 64, 65, 300, 990, 1000, 5000, 30_000])
    return joined(header, tensors, lambda text: text.replace(f'"{mark}"', opening * times + inner + closing * times))


def wrong_kinds(data: bytes, rng: random.Random) -> bytes:
    """Values of another type."""
    header, tensors = split(data)
    for _ in range(rng.choice([1, 1, 2])):
        within, key = rng.choice(places(header["__metadata__"], []))
        old = within[key]
        others = [value for value in VALUES if type(value) is not type(old)]
        within[key] = rng.choice([str(old), [old], {"a": old}, *map(copy.deepcopy, rng.choices(others, k=4))])
    return joined(header, tensors)


def hostile_names(data: bytes, rng: random.Random) -> bytes:
    """Words, keys and names of tensors that look like paths or code."""
    header, tensors = split(data)
    name = rng.choice(NAMES)
    match rng.randrange(4):
        case 0:
            names = [key for key in header if key != "__metadata__"]
            if names:
                header[name] = header.pop(rng.choice(names))
        case 1:
            spots = [(w, k) for w, k in places(header["__metadata__"], []) if isinstance(w, dict)]
            within, key = rng.choice(spots)
            within[name] = within.pop(key)
        case _:
            spots = [(w, k) for w, k in places(header["__metadata__"], []) if isinstance(w[k], str)]
            within, key = rng.choice(spots)
            within[key] = name
    return joined(header, tensors)


def broken_weights(data: bytes, rng: random.Random) -> bytes:
    """Numbers of tensors that are none, infinite, huge or tiny, one or many, or taken from elsewhere."""
    header, tensors = split(data)
    places_of = [one for key, one in header.items() if key != "__metadata__" and one["data_offsets"][1]]
    changed = bytearray(tensors)
    for _ in range(rng.choice([1, 1, 3, 10])):
        one = rng.choice(places_of)
        start, end = one["data_offsets"]
        kind = {"F64": np.float64, "F32": np.float32, "I64": np.int64}.get(one["dtype"], np.uint8)
        size = np.dtype(kind).itemsize
        count = max((end - start) // size, 1)
        if kind in (np.int64, np.uint8):
            value = kind(rng.choice([0, 1, 2, 255] if kind is np.uint8 else [0, -1, 1, 5, 2**40, -(2**63), 2**63 - 1]))
        else:
            with np.errstate(over="ignore", under="ignore"):
                value = kind(rng.choice(BROKEN))
        first = rng.randrange(count)
        many = rng.choice([1, 1, 1, count - first])
        changed[start + first * size : start + (first + many) * size] = value.tobytes() * many
    return joined(header, bytes(changed[: len(tensors)]))


def duplicate_keys(data: bytes, rng: random.Random) -> bytes:
    """Two values of one name, in the description or among the tensors."""
    header, tensors = split(data)
    root = header["__metadata__"] if rng.random() < 0.8 else header
    spots = [(w, k) for w, k in places(root, []) if isinstance(w, dict) and k != "__metadata__"]
    within, key = rng.choice(spots)
    value = rng.choice([within[key], *VALUES[:8]])
    mark = "the same again"
    if root is header:
        text = {**header, "__metadata__": {"flowlab": json.dumps(header["__metadata__"])}}
        within[mark] = value
        text = {**text, **{k: v for k, v in header.items() if k != "__metadata__"}}
        return framed(json.dumps(text).replace(f'"{mark}"', json.dumps(key)), tensors)
    within[mark] = value
    return joined(header, tensors, lambda text: text.replace(f'"{mark}"', json.dumps(key)))


def tensor_tables(data: bytes, rng: random.Random) -> bytes:
    """Names, types, shapes and places of tensors changed, or tensors exchanged, left out or added."""
    header, tensors = split(data)
    names = [key for key in header if key != "__metadata__"]
    table = {name: header.pop(name) for name in names}
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice(names)
        one = table.get(name, {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
        match rng.randrange(6):
            case 0:
                one["dtype"] = rng.choice(["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "X", 3])
            case 1:
                one["shape"] = rng.choice([[], [0], [1], [1, *one["shape"]], one["shape"][::-1], [-1], [2**62, 0]])
            case 2:
                one["data_offsets"] = rng.choice([[0, 0], [0, 2**62], [8, 0], [-1, 8], one["data_offsets"][::-1]])
            case 3:
                table[rng.choice(names)] = one
            case 4:
                table.pop(name, None)
            case _:
                empty = {"dtype": "F32", "shape": [0, 2**40], "data_offsets": [0, 0]}
                table |= {f"{name}{i}": empty for i in range(rng.choice([1, 100, 3000]))}
    return joined({**header, **table}, tensors)


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit flips": bit_flips,
    "truncations": truncations,
    "header edits": header_edits,
    "huge counts": huge_counts,
    "deep nesting": deep_nesting,
    "wrong kinds": wrong_kinds,
    "path-like names": hostile_names,
    "NaN and other weights": broken_weights,
    "duplicate keys": duplicate_keys,
    "tables of tensors": tensor_tables,
}
WEIGHTS = [1, 1, 3, 1, 1, 2, 1, 2, 1, 1]  # how often each kind


def mutated(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """A file with changes of one kind, and which."""
    kind = rng.choices(list(MUTATIONS), WEIGHTS)[0]
    return kind, MUTATIONS[kind](data, rng)


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
        command = [sys.executable, __file__, "--worker", str(folder), str(seed), str(first), str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
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
        f"kind, some of them written in format 1. `flowlab.load` must load a file or refuse it by a `FileError`, within "
        f"{SECONDS:.0f} s of CPU time and {MEGABYTES:.0f} MB beyond what the process had. {used:,} of the files that "
        f"loaded were asked for scores and draws: {raised:,} of these have numbers that cannot be drawn from or "
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
