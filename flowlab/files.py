"""`save` and `load`: a model in one safetensors file, tensors plus a JSON description of how to build it. Never pickle.

The description names each class and its constructor's arguments, which every module keeps as attributes of the same
name. Only flowlab's own classes, and those a program registered, can be built from a file; nothing in a file is run.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import nn

from flowlab import building, registry
from flowlab.building import FileError
from flowlab.file_versions import FORMAT, upgraded
from flowlab.hints import shown
from flowlab.registry import register
from flowlab.version import __version__
from flowlab.writing import check_writable, written_whole

__all__ = ["FileError", "check_writable", "load", "register", "save"]

MOST_HEADER = 2**25  # bytes before the tensors; reading them takes several times as many
MOST_FOREIGN = 2**22  # where some are not ASCII, which Python stores in up to four bytes each
MOST_LISTS = 2**18  # lists and objects, each of which takes up to a hundred times its two bytes
BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
# By what members of mixtures are drawn, which has to sum to one.
_SHARES: dict[str, Callable[[Any], torch.Tensor]] = {
    "FlowMixture": lambda mixture: mixture.weights,
    "GaussianMixture": lambda base: base.logits.detach().softmax(0),
}


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a flow, a mixture of flows, a layer, a base, a posterior, a VAE or a fitted estimator to one file.

    The file is written beside its destination and renamed when complete, so that no half-written file is left. A
    symbolic link stays one, and a file that is there keeps its mode.

    Args:
        model: What to save.
        path: Where; the suffix `.flow` is customary.

    Raises:
        TypeError: The model holds something that no file can describe; `register` its class. For parts of torch's,
        `flowlab.torch_networks` has the list of those that files may hold.
        ValueError: A number of the description or a weight is not finite, or there is too much to describe.
        OSError: The file cannot be written; the error names `path`. `flowlab.files.check_writable` says so before a
        long fit.

    Example:
        >>> import flowlab, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.flow"
        >>> flowlab.save(flowlab.presets.maf(3, layers=1), path)
        >>> flowlab.load(path).features
        3
    """
    header: dict[str, Any]
    module: nn.Module | None
    if registry.is_kind(model):
        header, module = model._to_file()
    elif isinstance(model, nn.Module):
        header, module = {"kind": "module"}, model
    else:
        raise TypeError(
            f"cannot save a {type(model).__name__}: files hold flows, mixtures of flows, layers, bases, VAEs and "
            f"fitted objects of the classes {', '.join(registry.kinds())}"
        )
    header = {
        "format": FORMAT,
        "version": __version__,
        **header,
        "module": None if module is None else building.describe(module),
    }
    broken = None if module is None else building.not_finite(module)
    if broken:
        raise ValueError(f"tensor {broken} holds numbers that are not finite: such a model cannot be saved")
    tensors = {} if module is None else {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    # Copies, because safetensors refuses tensors that share memory.
    written = {k: v.clone() for k, v in tensors.items()}
    try:
        content = serialized(written, {"flowlab": json.dumps(header, allow_nan=False)})
    except SafetensorError as error:
        raise FileError(f"{os.fspath(path)} cannot be written: {error}") from error
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def load(path: str | os.PathLike[str], device: str | torch.device | None = None) -> Any:
    """Read what `save` wrote: the same kind of object, in evaluation mode.

    A file from anyone may be loaded: nothing in it is run, and it takes no more time and memory than its tensors'
    sizes account for. Global random states stay as they are.

    Args:
        path: The file.
        device: Where to put tensors; the CPU when None.

    Raises:
        FileNotFoundError: There is no such file.
        FileError: The file is damaged, foreign, or of a newer format; the message says which.
        ValueError: There is no such device.
    """
    check_device(device)
    try:
        return _load(Path(path), device)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    except OSError:
        raise
    except Exception as error:  # a hostile description can make any code fail that is given its values
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise FileError(f"{path} is damaged: its description cannot be built ({reason})") from error


def _load(path: Path, device: str | torch.device | None) -> Any:
    with _opened(path) as file:
        header = _header(file)
        kind = header["kind"]
        if kind != "module" and kind not in registry.kinds():
            raise FileError(f"unknown kind of model {shown(kind)}")
        module = None if header["module"] is None else _module(file, header["module"])
    if module is not None:
        module = module.to(device or "cpu").train(False)
    if kind == "module":
        return module
    return registry.find_kind(kind)._from_file(header, module)


def check_device(device: str | torch.device | None) -> None:
    """Raises a ValueError unless torch can put tensors on a device."""
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"torch has no device {device!r} here: {str(error).splitlines()[0]}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file whose header is of a size that can be looked at."""
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
    with open(path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        there = length <= os.fstat(raw.fileno()).st_size  # else safetensors says what is wrong
        if there and length > MOST_HEADER:
            raise FileError(f"its header of {length:,} bytes is longer than {MOST_HEADER:,}")
        if there and length > MOST_FOREIGN and not raw.read(length).isascii():
            raise FileError("its header is long and not in ASCII, as flowlab writes it")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise FileError(f"this is not a flowlab file, or is damaged or truncated ({error})") from error


def _header(file: Any) -> dict[str, Any]:
    """The JSON beside the tensors."""
    metadata = file.metadata() or {}
    if "flowlab" not in metadata:
        raise FileError("this is a safetensors file, but not one of flowlab's")
    text = metadata["flowlab"]
    if text.count("[") + text.count("{") > MOST_LISTS:
        raise FileError(f"its description has more than {MOST_LISTS:,} lists and objects")
    try:
        header = json.loads(
            text, parse_constant=_no_number, parse_float=_number, parse_int=_whole, object_pairs_hook=_object
        )
    except (ValueError, RecursionError) as error:
        raise FileError(f"this is not a flowlab file, or is damaged ({str(error)[:200]})") from error
    if not isinstance(header, dict) or type(header.get("format")) is not int:
        raise FileError("it is damaged: no format number")
    if header["format"] > FORMAT:
        raise FileError(
            f"it has format {header['format']}, written by flowlab {shown(header.get('version'))}; "
            f"this version reads up to {FORMAT}: upgrade flowlab"
        )
    if header["format"] < 1:
        raise FileError(f"it is damaged: there is no format {header['format']}")
    lacking = {"kind", "module"} - header.keys()
    if lacking:
        raise FileError(f"it is damaged: no {' and no '.join(sorted(lacking))}")
    return upgraded(header)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _whole(text: str) -> int:
    if len(text) > 40:  # Python takes long to read thousands of digits
        raise ValueError(f"{text[:20]}… is too large a number")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has two values of one name")
    return found


def _module(file: Any, description: Any) -> nn.Module:
    """The module that a description stands for, with the file's tensors."""
    names = list(file.keys())
    slices = {name: file.get_slice(name) for name in names}
    stored = {name: building.Stored(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    payload = sum(math.prod(one.shape) * BYTES.get(one.dtype, 1) for one in stored.values())
    module = building.build(description, stored, payload, file.get_tensor)
    broken = building.not_finite(module)
    if broken:
        raise FileError(f"tensor {broken} holds what is no number")
    for part in module.modules():
        name = type(part).__name__
        if name in _SHARES and building.is_own(type(part)):
            total = float(_SHARES[name](part).sum())
            if not abs(total - 1) < 0.1:
                raise FileError(f"the weights of a {name} sum to {total:.6g}, not to 1")
    return module
