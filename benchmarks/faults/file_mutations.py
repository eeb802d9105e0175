"""Mutations of model files, each a function of a file's bytes and a generator to other bytes."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np

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
    spots = places(header if rng.random() < 0.2 else header["__metadata__"], [])
    numbers = [(w, k) for w, k in spots if type(w[k]) in (int, float)]
    others = [(w, k) for w, k in spots if isinstance(w[k], str | list) and w[k]]
    if numbers and rng.random() < 0.7:
        for within, key in rng.choices(numbers, k=rng.choice([1, 2, 4])):
            within[key] = rng.choice(COUNTS)
    elif others:
        within, key = rng.choice(others)
        most = max(1_000_000 // len(json.dumps(within[key])), 2)  # a megabyte, or twice what there is
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
