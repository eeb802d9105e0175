"""Snapshots: what unfinished work needs to go on, tensors and a JSON record in one file, and the file before it kept.

A process may be killed at any moment. A snapshot is therefore written whole (`flowlab.writing`), a digest tells a
damaged one, and the one before stays beside it until the next is there. Never pickle.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor

from flowlab.building import FileError
from flowlab.version import __version__
from flowlab.writing import written_whole

KEY = "flowlab snapshot"  # of the metadata
BEFORE = ".before"  # suffix of the snapshot before the last

Snapshot = tuple[dict[str, Tensor], dict[str, Any]]


def write(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a snapshot; the one that is there becomes the one before.

    Args:
        path: Where.
        tensors: Tensors by name, on any device.
        record: What JSON can hold.

    Raises:
        OSError: It cannot be written; what was there is still there, under one of both names.
    """
    # Copies, because safetensors refuses tensors that share memory.
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    text = json.dumps(record)
    content = serialized(copies, {KEY: text, "version": __version__, "digest": digest(copies, text)})
    with written_whole(path) as temporary:
        temporary.write_bytes(content)
        with suppress(FileNotFoundError):
            os.replace(path, _before(path))


def read(path: Path) -> Snapshot | None:
    """The snapshot of that name, or the one before, which takes a damaged one's place; None where there is neither.

    Raises:
        FileError: There are files of the name, and none is a whole snapshot.
    """
    failure = None
    for place in (path, _before(path)):
        if not place.exists():
            continue
        try:
            found = _read(place)
        except FileError as error:
            failure = error
            continue
        if failure is not None:
            warnings.warn(f"{failure}; going on from the one before it", stacklevel=3)
            os.replace(place, path)  # else the next one that is written would take the place of the only good one
        return found
    if failure is not None:
        raise failure
    return None


def remove(path: Path) -> None:
    """Remove a snapshot and the one before it, if they are there."""
    for place in (path, _before(path)):
        place.unlink(missing_ok=True)


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """A digest of tensors, with their names, types and shapes, and of a text."""
    total = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _before(path: Path) -> Path:
    return path.with_name(path.name + BEFORE)


def _read(path: Path) -> Snapshot:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if KEY not in metadata:
            raise FileError(f"{path} is not a checkpoint of flowlab's: name another file")
        text = metadata[KEY]
        if metadata.get("digest") != digest(tensors, text):
            raise FileError(f"{path} is damaged: its digest is not that of its contents")
        return tensors, json.loads(text)
    except (SafetensorError, RecursionError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} is not a checkpoint, or is damaged or truncated ({error})") from error
