"""Modules <-> their descriptions, where a description may cost no more than the tensors beside it pay for.

What a file may ask for follows from what it brings, before anything is built:

- No whole number is larger than a quarter of the bytes of its tensors, and all of them (of a list the largest)
  together not larger than four times that: every size in flowlab is the side of some tensor of four bytes a number.
  Small files may ask for `SMALL`, and `TOGETHER` in sum. `FREE` names sizes that cost nothing.
- There are at most four objects for each tensor, and `SPARE` besides; they are nested `DEPTH` deep at most.
- Types fit the constructors' annotations, sizes are not negative nor beyond single precision, and what is divided by is
  above zero.

Then an outline is built without memory (on torch's meta device), with a bounded number of calls, and its tensors must
be those of the file. Only then is the module itself built: whatever it costs, its tensors have that size.
"""

import dataclasses
import inspect
import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowlab import registry, torch_networks
from flowlab.hints import check_arguments, hints_of, shown

SMALL = 2**16  # largest whole number in a description, whatever the tensors
TOGETHER = 2**20  # and the sum of all
FREE = {"Uniform": ("features",)}  # sizes that nothing is made of
FREE_SIZE = 2**24
# Buffers without a fraction that are learnt, and checked by their class when they are loaded.
LEARNT = {
    "Forest": ("roots", "feature", "missing_left", "right", "size", "code"),
    "ColumnMixture": ("misjudged",),
}
SPARE = 64  # objects, and calls of torch, beyond what the number of tensors allows
OBJECTS, CALLS = 4, 16  # for each tensor
DEPTH = 64
SIGNED = ("low", "high", "lower", "upper", "context", "steps")  # arguments that may be negative
ABOVE_ZERO = ("bins", "components", "bound", "log_scale_bound", "heaviest", "knots", "least", "shrink", "df", "min_df")
LARGEST_FLOAT = torch.finfo(torch.float32).max
SAME_SHAPE = (  # what torch calls with tensors of one shape, or of shapes that broadcast, and gives back in that shape
    *(
        "add",
        "sub",
        "__rsub__",
        "mul",
        "div",
        "__rtruediv__",
        "__floordiv__",
        "pow",
        "ge",
        "le",
        "gt",
        "lt",
        "neg",
        "abs",
        "square",
        "log",
        "exp",
    ),
    *("argsort", "zeros_like", "ones_like", "empty_like"),
)
INITIAL = ("normal_", "uniform_", "fill_", "zero_", "ones_", "zeros_", "kaiming_uniform_", "xavier_uniform_")
FLOATS = ("F16", "BF16", "F32", "F64")  # safetensors' names of what torch computes with


class FileError(ValueError):
    """A file is not a flowlab model, is damaged, or comes from a newer version."""


class Stored(NamedTuple):
    """A tensor in a file: its shape, and safetensors' name of its type."""

    shape: tuple[int, ...]
    dtype: str


# Descriptions ---------------------------------------------------------------------------------------------------------


def describe(value: Any) -> Any:
    """A module or scalar map as JSON: its class and its constructor's arguments."""
    if isinstance(value, nn.ModuleList | list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        value = value.tolist()
        return describe(value) if isinstance(value, list | float) else value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be saved: files hold finite numbers")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    name = type(value).__name__
    if type(value) in torch_networks.ARGUMENTS:
        name, kept = f"torch.nn.{name}", torch_networks.arguments_of(value)
    elif registry.is_known(type(value)):
        kept = {argument: getattr(value, argument) for argument in arguments(type(value))}
    else:
        raise TypeError(f"cannot save a {name}: {registry.reason(type(value))}")
    found = {}
    for argument, each in kept.items():
        try:
            found[argument] = describe(each)
        except ValueError as error:
            raise ValueError(f"{name}.{argument}: {error}") from error
    return {"class": name, "args": found}


def arguments(cls: type) -> list[str]:
    """The constructor's arguments that a file keeps: all but the source of initial weights."""
    if cls in torch_networks.ARGUMENTS:
        return list(torch_networks.ARGUMENTS[cls])
    if dataclasses.is_dataclass(cls):
        return [f.name for f in dataclasses.fields(cls)]
    found = inspect.signature(cls).parameters.values()
    return [p.name for p in found if p.name != "generator" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def argument_hints(cls: type) -> dict[str, Any]:
    """The annotations of the constructor's arguments."""
    if cls in torch_networks.ARGUMENTS:
        return torch_networks.hints(cls)
    return hints_of(cls if dataclasses.is_dataclass(cls) else cls.__init__)  # type: ignore[misc]


def is_own(cls: type) -> bool:
    """Whether a class is flowlab's, not one that a program registered."""
    return cls.__module__.partition(".")[0] == "flowlab"


def class_of(name: Any) -> type:
    """The class that a file names.

    Raises:
        FileError: There is none of that name.
    """
    cls = torch_networks.CLASSES.get(name) or registry.find(name) if isinstance(name, str) else None
    if cls is None:
        raise FileError(f"unknown class {shown(name)}: register it before loading")
    return cls


# Limits ---------------------------------------------------------------------------------------------------------------


class _Allowance:
    """What a description may still ask for, given the tensors of its file."""

    def __init__(self, stored: Mapping[str, Stored], payload: int) -> None:
        self.largest = max(SMALL, payload // 4)
        self.together = max(TOGETHER, payload)
        self.objects = SPARE + OBJECTS * len(stored)

    def check(self, value: Any, depth: int = 0, sizes: bool = True) -> None:
        """Raises a FileError where a description asks for too much, or is none; whole numbers need not be `sizes`."""
        if depth > DEPTH:
            raise FileError(f"the description is nested more than {DEPTH} deep")
        if isinstance(value, list):
            whole = [item for item in value if type(item) is int]
            if whole and sizes:  # at most one of them decides how long something takes in Python
                self.spend(max(map(abs, whole)))
            for item in value:
                self.check(item, depth + 1, sizes=False)
        elif isinstance(value, dict):
            self.objects -= 1
            if self.objects < 0:
                raise FileError("the description has more objects than the file has tensors for")
            if value.keys() != {"class", "args"} or not isinstance(value["args"], dict):
                raise FileError(f"an object of the description is damaged: {shown(value)}")
            self.check_object(class_of(value["class"]), value["args"], depth)
        elif sizes and type(value) is int:
            self.spend(value)

    def check_object(self, cls: type, args: Mapping[str, Any], depth: int) -> None:
        """The same for one object."""
        unknown = [name for name in args if name not in arguments(cls)]
        if unknown:
            raise FileError(f"{cls.__name__} has no argument {', '.join(unknown)[:80]}")
        for name, value in args.items():
            if is_own(cls):
                check_sign(cls.__name__, name, value)
            if name in FREE.get(cls.__name__, ()) and type(value) is int and value <= FREE_SIZE:
                continue
            # A number of a program's own class may mean anything.
            self.check(value, depth + 1, sizes=is_own(cls) or cls in torch_networks.ARGUMENTS)

    def spend(self, number: int) -> None:
        """Takes a whole number off the allowance."""
        self.together -= abs(number)
        if abs(number) > self.largest or self.together < 0:
            raise FileError(f"the description asks for sizes such as {shown(number)}, which its tensors do not have")


def check_sign(owner: str, name: str, value: Any) -> None:
    """Raise a FileError for a size that is negative, beyond single precision, or zero as a divisor."""
    if isinstance(value, list):
        for item in value:
            check_sign(owner, name, item)
        return
    if type(value) not in (int, float) or name in SIGNED:
        return
    if value < 0 or value > LARGEST_FLOAT or (name in ABOVE_ZERO and value == 0):
        raise FileError(f"{owner}: {name} cannot be {shown(value)}")


class _Outline(TorchFunctionMode):
    """Counts torch's calls, and answers some of them with the shape alone.

    The meta device would do, but imports sympy and half of torch's compiler at the first draw, product or comparison:
    seconds, and 70 MB.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.left -= 1
        if self.left < 0:
            raise FileError("the description has more parts than the file has tensors")
        name = func.__name__
        if name in INITIAL:  # with the tensor first, or by name in torch.nn.init
            return args[0] if args else (kwargs or {})["tensor"]
        if name in ("rand", "randn"):
            return torch.empty(*args)
        if name == "randperm":
            return torch.arange(args[0], device="cpu")
        if kwargs:
            return func(*args, **kwargs)
        if name in SAME_SHAPE:
            return torch.empty(np.broadcast_shapes(*(x.shape for x in args if isinstance(x, Tensor))))
        if name == "arange":
            return torch.empty(len(range(*args)))
        if name == "linspace":
            return torch.empty(args[2])
        if name == "eye":
            return torch.empty(args[0], args[-1])
        if name == "cat" and len(args) == 1 and all(x.ndim == 1 for x in args[0]):
            return torch.empty(sum(len(x) for x in args[0]))
        return func(*args)


# Building -------------------------------------------------------------------------------------------------------------


def build(
    description: Any,
    stored: Mapping[str, Stored],
    payload: int,
    read: Callable[[str], Tensor],
) -> nn.Module:
    """The module that a description and the tensors beside it stand for.

    Args:
        description: What `describe` wrote.
        stored: The tensors of the file, not yet read.
        payload: Their bytes.
        read: The tensor of a name.

    Raises:
        FileError: It is none of flowlab's, is damaged, or asks for more than its tensors have.
    """
    _Allowance(stored, payload).check(description)
    with random_states_kept():
        with torch.device("meta"), _Outline(SPARE + CALLS * len(stored)):
            outline = _construct(description)
            if not isinstance(outline, nn.Module):
                raise FileError("the description is not that of a module")
        expected = {name: tuple(tensor.shape) for name, tensor in outline.state_dict().items()}
        if expected != {name: one.shape for name, one in stored.items()}:
            found = {name: one.shape for name, one in stored.items()}
            names = sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))
            raise FileError(f"tensors do not fit the description: {', '.join(names[:5])[:200]}")
        module = _construct(description)
    check_types(module, stored)
    # Assigned, since each layer may have a floating-point type of its own; copied, since a file's memory is not aligned
    # as torch's own is, and other kernels would round differently.
    fresh = {name: tensor.clone() for name, tensor in module.state_dict().items() if not tensor.is_floating_point()}
    module.load_state_dict({name: read(name).clone() for name in stored}, assign=True)
    check_indices(module, fresh)
    return module


def _construct(description: Any) -> Any:
    if isinstance(description, list):
        return [_construct(item) for item in description]
    if not isinstance(description, dict):
        return description
    cls = class_of(description["class"])
    args = {name: _construct(value) for name, value in description["args"].items()}
    if cls in torch_networks.ARGUMENTS:
        return torch_networks.made(cls, args)
    if is_own(cls):
        # What objects of a program's own classes are good for, the constructor will find out.
        own = {name: value for name, value in args.items() if not registry.is_registered(type(value))}
        check_arguments(cls.__name__, own, argument_hints(cls))
    if "generator" in inspect.signature(cls).parameters:
        args["generator"] = torch.Generator()  # the weights are the file's: none come from a generator of the program
    return cls(**args)


def check_types(module: nn.Module, stored: Mapping[str, Stored]) -> None:
    """Raises a FileError for a tensor of another type than its module's; any floating-point one goes for another."""
    names = {torch.bool: "BOOL", torch.int64: "I64"}
    for name, tensor in module.state_dict().items():
        found = stored[name].dtype
        wanted = FLOATS if tensor.is_floating_point() else (names.get(tensor.dtype, found),)
        if found not in wanted or (found in FLOATS) != tensor.is_floating_point():
            raise FileError(f"tensor {name} has the wrong type {found}")


def check_indices(module: nn.Module, fresh: Mapping[str, Tensor]) -> None:
    """Raises a FileError for a buffer that indexes something and is not what the description says.

    These are the buffers without a fraction that flowlab's own classes declare: permutations, orders, masks. Those of
    a program's own classes, such as counters, have whatever value was saved.
    """
    now = module.state_dict()
    for name, expected in fresh.items():
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        declared = any(is_own(c) and leaf in inspect.get_annotations(c) for c in type(owner).__mro__)
        if leaf == "initialised" or not declared or leaf in LEARNT.get(type(owner).__name__, ()):
            continue
        found = now[name]
        if leaf == "last":  # how many of its bins each column of a `Marginal` uses
            good = found.numel() == 0 or (bool(found.min() >= 1) and bool((found <= expected).all()))
        else:
            good = torch.equal(found, expected)
        if not good:
            raise FileError(f"tensor {name} holds indices out of range, or not those of its description")


def not_finite(module: nn.Module) -> str | None:
    """The name of the first tensor of a module with numbers that no model has, None where there is none.

    Parameters are finite; buffers may hold infinities, such as the ends of a range. A program's own modules may hold
    anything.
    """
    for path, owner in module.named_modules():
        if is_own(type(owner)) or type(owner) in torch_networks.ARGUMENTS:
            found = [(name, tensor.isfinite()) for name, tensor in owner.named_parameters(recurse=False)]
            found += [(name, ~tensor.isnan()) for name, tensor in owner.named_buffers(recurse=False)]
            for name, good in found:
                if not bool(good.all()):
                    return f"{path}.{name}".lstrip(".")
    return None


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Gives torch's, numpy's and Python's global generators their states back, if the block drew from them."""
    ours, numpys, pythons = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    try:
        yield
    finally:
        if not torch.equal(torch.get_rng_state(), ours):
            torch.set_rng_state(ours)
        if pickle.dumps(np.random.get_state(legacy=False)) != pickle.dumps(numpys):
            np.random.set_state(numpys)
        if random.getstate() != pythons:
            random.setstate(pythons)
