"""Arguments that are numbers, checked where they come in: a message names the argument, its range, and what came."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Size

LARGEST = 2**31 - 1


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least `least`, as Python's own.

    Example:
        >>> whole("bins", 8)
        8
    """
    if not is_whole(value) or not least <= value <= LARGEST:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of Python or numpy, and neither true nor false."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def real(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number above `low` and below `high`, as Python's own.

    Example:
        >>> real("bound", 5, 0)
        5.0
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not low < value < high or not math.isfinite(value):
        parts = [f"above {low:g}"] * (low > -math.inf) + [f"below {high:g}"] * (high < math.inf)
        raise ValueError(f"{name} must be a finite number{' ' * bool(parts)}{' and '.join(parts)}, not {value!r}")
    return float(value)


def share(name: str, value: Any) -> float:
    """A number from 0 to below 1, as Python's own."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number from 0 to below 1, not {value!r}")
    return float(value)


def widths(value: Any, name: str = "hidden") -> tuple[int, ...]:
    """The widths of hidden layers; one number stands for one layer.

    Example:
        >>> widths(64), widths([32, 32]), widths(())
        ((64,), (32, 32), ())
    """
    if is_whole(value):
        value = (value,)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be whole numbers such as (128, 128), or one of them, not {value!r}")
    return tuple(whole(f"each number of {name}", width) for width in value)


def sizes(shape: Any) -> Size:
    """The shape of draws; one number stands for a single axis.

    Example:
        >>> sizes(5), sizes((2, 3)), sizes(())
        (torch.Size([5]), torch.Size([2, 3]), torch.Size([]))
    """
    try:
        size = Size((shape,) if is_whole(shape) else shape)
    except TypeError as error:
        raise ValueError(
            f"the shape of draws must be whole numbers such as (1000,), or one of them, not {shape!r}"
        ) from error
    if any(n < 0 for n in size):
        raise ValueError(f"the shape of draws must not hold negative numbers, as {tuple(size)} does")
    return size


def settle(frozen: Any, **values: Any) -> None:
    """Sets the fields of a frozen dataclass, in its `__post_init__`, to what checks have made of them."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def floating(name: str, value: Any, dtype: torch.dtype | None, what: str = "flow") -> None:
    """Looks whether a value is a tensor of the floating-point type that `what`, a flow say, takes; None for any such
    type.

    Raises:
        TypeError: It is no tensor.
        ValueError: It is of another type.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}; use torch.as_tensor")
    if value.dtype == dtype or (dtype is None and value.is_floating_point()):
        return
    wanted = torch.get_default_dtype() if dtype is None else dtype
    advice = f"convert {name} by .to({wanted})"
    if value.dtype in (torch.float32, torch.float64):
        advice = f"convert {name}, or the {what} by .to({value.dtype})"
    raise ValueError(f"{name} is {value.dtype}, this {what} takes {wanted}: {advice}")
