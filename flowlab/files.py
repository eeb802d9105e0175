"""`save` and `load`: a model in one safetensors file, tensors plus a JSON description of how to build it. Never pickle.

The description names each class and its constructor's arguments, which every module keeps as attributes of the same
name. Only flowlab's own classes, and those a program registered, can be built from a file; nothing in a file is run.
"""

import dataclasses
import importlib
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from flowlab import bases, layers
from flowlab.flow import Flow
from flowlab.mixture import FlowMixture
from flowlab.writing import check_writable, written_whole

__all__ = ["FileError", "check_writable", "load", "register", "save"]

FORMAT = 1
T = TypeVar("T", bound=type)


class FileError(ValueError):
    """A file is not a flowlab model, is damaged, or comes from a newer version."""


_classes: dict[str, type] = {
    "Flow": Flow,
    "FlowMixture": FlowMixture,
    **{name: getattr(layers, name) for name in layers.__all__ if name not in ("Layer", "ScalarMap")},
    **{c.__name__: c for c in (bases.Gaussian, bases.GaussianMixture, bases.Kernels, bases.StudentT, bases.Uniform)},
}
# Classes that are imported only when a file holds one: they need pandas, or belong to few flows.
_lazy: dict[str, str] = {
    "MixedFlow": "flowlab.tables.model",
    "Ranks": "flowlab.tables.ranks",
    **dict.fromkeys(("Histogram", "Logistics", "HistogramAndLogistics"), "flowlab.tables.heads"),
    **dict.fromkeys(
        ("Backwards", "ConvertedAutoregressive", "ConvertedCoupling", "FlooredSpline", "Inverse", "ScaleAndShift"),
        "flowlab.interop.converted",
    ),
    "Steps": "flowlab.interop.steps",
    "Given": "flowlab.posteriors.contexts",
}
# Readers of saved objects that are more than a module, by kind; each module adds its own when imported.
_kinds: dict[str, str] = {"FlowDensity": "flowlab.tables.density", "FlowPosterior": "flowlab.posteriors.posterior"}


def register(cls: T) -> T:
    """Class decorator that lets `load` build a layer, base or scalar map of yours.

    Its constructor must keep each argument (but `generator`) as an attribute of the same name.

    Raises:
        ValueError: The name is taken by another class.
    """
    if _classes.setdefault(cls.__name__, cls) is not cls:
        raise ValueError(f"the name {cls.__name__} is taken by {_classes[cls.__name__]}")
    return cls


def save(model: Any, path: str | os.PathLike[str]) -> None:
    """Write a `Flow`, a `FlowMixture`, a layer, a base, a `FlowPosterior` or a fitted `FlowDensity` to one file.

    The file is written beside its destination and renamed when complete, so that no half-written file is left.

    Args:
        model: What to save.
        path: Where; the suffix `.flow` is customary.

    Raises:
        TypeError: The model holds something that no file can describe; `register` its class.

    Example:
        >>> import flowlab, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.flow"
        >>> flowlab.save(flowlab.presets.maf(3, layers=1), path)
        >>> flowlab.load(path).features
        3
    """
    header: dict[str, Any]
    module: nn.Module | None
    if hasattr(model, "_to_file"):
        header, module = model._to_file()
    elif isinstance(model, nn.Module):
        header, module = {"kind": "module"}, model
    else:
        raise TypeError(f"cannot save a {type(model).__name__}: only flows, layers, bases and FlowDensity")
    from flowlab import __version__

    header = {
        "format": FORMAT,
        "version": __version__,
        **header,
        "module": None if module is None else describe(module),
    }
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

    Args:
        path: The file.
        device: Where to put tensors; the CPU when None.

    Raises:
        FileNotFoundError: There is no such file.
        FileError: The file is damaged, foreign, or of a newer format; the message says which.
    """
    header, tensors = _read(Path(path))
    try:
        module = None if header["module"] is None else build(header["module"], tensors)
        if module is not None:
            module = module.to(device or "cpu").eval()
        kind = header["kind"]
        if kind == "module":
            return module
        if kind not in _kinds:
            raise FileError(f"unknown kind of model {kind!r}")
        return getattr(importlib.import_module(_kinds[kind]), kind)._from_file(header, module)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    except (
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        raise FileError(f"{path} is damaged: its description cannot be built ({error})") from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if "flowlab" not in metadata:
                raise FileError(f"{path} is a safetensors file, but not one of flowlab's")
            header = json.loads(metadata["flowlab"])
            if not isinstance(header, dict) or not isinstance(header.get("format"), int):
                raise FileError(f"{path} is damaged: no format number")
            if header["format"] > FORMAT:
                raise FileError(
                    f"{path} has format {header['format']}, written by flowlab {header.get('version')}; "
                    f"this version reads up to {FORMAT}: upgrade flowlab"
                )
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FileError(f"{path} is not a flowlab file, or is damaged or truncated ({error})") from error


def describe(value: Any) -> Any:
    """A module or scalar map as JSON: its class and its constructor's arguments."""
    if isinstance(value, nn.ModuleList | list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Tensor):
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    name = type(value).__name__
    if _classes.get(name) is not type(value):
        reason = getattr(value, "unsaved", "decorate the class with flowlab.files.register")
        raise TypeError(f"cannot save a {name}: {reason}")
    return {"class": name, "args": {k: describe(getattr(value, k)) for k in arguments(type(value))}}


def arguments(cls: type) -> list[str]:
    """The constructor's arguments that a file keeps: all but the source of initial weights."""
    if dataclasses.is_dataclass(cls):
        return [f.name for f in dataclasses.fields(cls)]
    return [name for name in inspect.signature(cls).parameters if name != "generator"]


def build(description: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """The module that a description and its tensors stand for.

    It is first built without memory, so that a file cannot claim sizes that it does not bring.
    """
    with torch.device("meta"):
        outline = _construct(description)
    if not isinstance(outline, nn.Module):
        raise FileError("the description is not that of a module")
    expected = {name: tuple(tensor.shape) for name, tensor in outline.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        names = sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))
        raise FileError(f"tensors do not fit the description: {', '.join(names[:5])}")
    module = _construct(description)
    fresh = {name: tensor.clone() for name, tensor in module.state_dict().items() if not tensor.is_floating_point()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != (name not in fresh):
            raise FileError(f"tensor {name} has the wrong type {tensor.dtype}")
        # Integers index something: none may exceed the largest of a newly built module.
        indices = name in fresh and tensor.dtype != torch.bool and tensor.numel() > 0
        if indices and not 0 <= int(tensor.min()) <= int(tensor.max()) <= int(fresh[name].max()):
            raise FileError(f"tensor {name} holds indices out of range")
    # Assigned, since each layer may have a floating-point type of its own; copied, since a file's memory is not aligned
    # as torch's own is, and other kernels would round differently.
    module.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    return module


def _construct(description: Any) -> Any:
    if isinstance(description, list):
        return [_construct(item) for item in description]
    if not isinstance(description, dict):
        return description
    name = description.get("class", "")
    if name in _lazy:
        importlib.import_module(_lazy[name])
    cls: Callable[..., Any] | None = _classes.get(name)
    if cls is None:
        raise FileError(f"unknown class {description.get('class')!r}: register it before loading")
    args = description["args"]
    if set(args) - set(arguments(cls)):  # type: ignore[arg-type]
        raise FileError(f"{description['class']} has no argument {', '.join(set(args) - set(arguments(cls)))}")  # type: ignore[arg-type]
    return cls(**{name: _construct(value) for name, value in args.items()})
