"""Whether a value fits an annotation: what a file says is checked so before anything is made of it."""

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torch import Tensor

T = TypeVar("T")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value, made of JSON's types and of objects built from them, is what an annotation asks for.

    Whole numbers count as floats, lists as sequences of any kind, lists of numbers as tensors; booleans are no
    numbers, and no float is infinite. Annotations beyond those that flowlab's constructors have are taken to fit
    anything.

    Example:
        >>> fits([8, 8], Sequence[int]), fits([8, 0.5], Sequence[int]), fits("relu", float | None), fits(3, float)
        (True, False, False, True)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is types.NoneType:
        return value is None
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if hint is float:
        return type(value) in (int, float) and abs(value) < math.inf and abs(value) <= 1e308
    if hint in (int, str, bool):
        return type(value) is hint
    if hint is Tensor:
        return isinstance(value, list) and _all_fit(value, (float | Tensor,))
    if origin in (list, tuple, Sequence, Iterable):
        return isinstance(value, list | tuple) and _all_fit(value, inner)
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    return isinstance(value, hint) if isinstance(hint, type) else True


def _all_fit(values: Sequence[Any], hints: tuple[Any, ...]) -> bool:
    """Whether items fit: hints are those of a tuple's places, or one for all of them."""
    several = len(hints) > 1 and hints[-1] is not Ellipsis
    if several:
        return len(values) == len(hints) and all(map(fits, values, hints))
    return all(fits(value, hints[0]) for value in _deciding(values))


def _deciding(values: Sequence[Any]) -> Sequence[Any]:
    """Of many values those that decide whether all fit: distinct words, the largest number of a type, all others."""
    if len(values) < 100:
        return values
    found: list[Any] = []
    for kind in set(map(type, values)):
        own: list[Any] = [value for value in values if type(value) is kind]
        if kind in (int, float):
            own = [max(own, key=abs), *(value for value in own if value != value)]
        found += set(own) if kind in (str, bool, types.NoneType) else own
    return found


def hints_of(function: Callable[..., Any] | type) -> dict[str, Any]:
    """The annotations of a function's arguments, or of a dataclass's fields; none where they cannot be resolved."""
    try:
        found = get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that only a type checker imports
        return {}
    return {name: hint for name, hint in found.items() if not isinstance(hint, TypeVar)}


def check_arguments(name: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises a ValueError that names the first value which does not fit its annotation."""
    for key, value in values.items():
        if key in hints and not fits(value, hints[key]):
            wanted = getattr(hints[key], "__name__", None) if isinstance(hints[key], type) else None
            raise ValueError(f"{name}: {key} must be {wanted or str(hints[key])[:80]}, not {shown(value)}")


def made(cls: type[T], values: Any, hints: Mapping[str, Any] | None = None) -> T:
    """A dataclass of fields from a file, whose types are those of its annotations, or of `hints` if given.

    Looking annotations up takes longer than all else: where there are many records, they are looked up once.

    Raises:
        ValueError: A field is unknown, missing, or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"a {cls.__name__} is {shown(values)}")
    unknown = values.keys() - {f.name for f in fields(cls)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"a {cls.__name__} has no field {shown(sorted(map(str, unknown))[0])}")
    check_arguments(cls.__name__, values, hints_of(cls) if hints is None else hints)
    return cls(**values)


def shown(value: Any, most: int = 60) -> str:
    """A value for a message, cut off where a hostile file would fill the screen."""
    if isinstance(value, str):
        value = value[: most + 1]
    elif isinstance(value, list | tuple | dict):
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"
