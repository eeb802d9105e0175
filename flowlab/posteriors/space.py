"""`Space`: named parameters with supports, and the unconstrained vector that they are functions of."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Transform, constraints

from flowlab.arguments import is_whole
from flowlab.hints import fits, shown
from flowlab.posteriors.matrices import bijector

SMALL = 1024  # numbers without elements, such as sides of empty shapes, that a file may name
# A point in the user's space: a tensor (*batch, features), or named tensors (*batch, *shape).
Value = Tensor | dict[str, Tensor]
Supports = Mapping[str, tuple[Sequence[int], constraints.Constraint]]


@dataclass(frozen=True)
class Block:
    """One named parameter: its shape, support and bijector, and its place in the unconstrained vector."""

    name: str
    shape: Size
    constraint: constraints.Constraint
    transform: Transform
    free_shape: Size
    place: slice

    @property
    def labels(self) -> list[str]:
        """A name for each of its numbers: "tau", or "theta[0]", "theta[1]", …"""
        if not self.shape:
            return [self.name]
        indices = itertools.product(*(range(size) for size in self.shape))
        return [f"{self.name}[{','.join(map(str, index))}]" for index in indices]


class Space:
    """The parameters of a posterior: `features` unconstrained numbers, or names with shapes and supports.

    A bijector maps unconstrained numbers to each parameter: torch's – exp for positive ones, stick-breaking for a
    simplex, … – or one of `matrices` for Cholesky factors and covariances, whose densities are over the entries on and
    below the diagonal.

    Args:
        features: Width of an unconstrained space without names.
        supports: For each name its shape and its torch constraint.

    Raises:
        ValueError: Neither or both are given, or a constraint does not fit its shape.

    Example:
        >>> from torch.distributions import constraints
        >>> space = Space(supports={"tau": ((), constraints.positive), "p": ((3,), constraints.simplex)})
        >>> space.features, space.labels
        (3, ['tau', 'p[0]', 'p[1]', 'p[2]'])
        >>> value, log_det = space.constrain(torch.zeros(5, 3))
        >>> value["p"].shape, log_det.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, features: int | None = None, supports: Supports | None = None) -> None:
        if (features is None) == (supports is None):
            raise ValueError("give features=… for an unconstrained space, or supports={name: (shape, constraint)}")
        self.blocks: list[Block] | None = None
        if supports is None:
            if not is_whole(features) or features < 1:  # type: ignore[operator]
                raise ValueError(f"features must be a positive whole number, not {features!r}")
            self.features: int = int(features)  # type: ignore[arg-type]
            self.labels: list[str] = [f"z[{i}]" for i in range(self.features)]
            return
        if not isinstance(supports, Mapping):
            raise ValueError(f"supports must be a dict {{name: (shape, constraint)}}, not a {type(supports).__name__}")
        if not supports:
            raise ValueError("supports names no parameter")
        self.blocks = []
        start = 0
        for name, entry in supports.items():
            self.blocks.append(_block(name, entry, start))
            start = self.blocks[-1].place.stop
        if not start:
            raise ValueError("supports names only parameters without elements")
        self.features = start
        self.labels = [label for block in self.blocks for label in block.labels]

    def constrain(self, z: Tensor) -> tuple[Value, Tensor]:
        """Map unconstrained z (*batch, features) to a value in the user's space, with the log-determinant (*batch,)."""
        if self.blocks is None:
            return z, z.new_zeros(z.shape[:-1])
        value, log_det = {}, z.new_zeros(z.shape[:-1])
        for block in self.blocks:
            free = z[..., block.place].reshape((*z.shape[:-1], *block.free_shape))
            value[block.name] = block.transform(free)
            log_det = log_det + _summed(block.transform.log_abs_det_jacobian(free, value[block.name]), z.ndim - 1)
        return value, log_det

    def unconstrain(self, value: Value) -> tuple[Tensor, Tensor]:
        """Map a value to unconstrained z (*batch, features), with the log-determinant (*batch,) of `constrain` at z.

        Outside of the support z is NaN.

        Raises:
            ValueError: A name is missing or unknown, or a shape does not fit.
        """
        if self.blocks is None:
            if not isinstance(value, Tensor) or value.ndim == 0 or value.shape[-1] != self.features:
                raise ValueError(f"expected a tensor (*batch, {self.features}), not {_described(value)}")
            return value, value.new_zeros(value.shape[:-1])
        names = [block.name for block in self.blocks]
        if not isinstance(value, dict) or set(value) != set(names):
            raise ValueError(f"expected a dict with the tensors {', '.join(names)}, not {_described(value)}")
        pieces, log_dets = [], []
        for block in self.blocks:
            x = value[block.name]
            if not isinstance(x, Tensor):
                raise ValueError(f"{block.name} must be a torch.Tensor, not {type(x).__name__}; use torch.as_tensor")
            batch = x.shape[: x.ndim - len(block.shape)]
            if x.shape != (*batch, *block.shape):
                raise ValueError(
                    f"{block.name} must have shape (*batch, {', '.join(map(str, block.shape))}), not {tuple(x.shape)}"
                )
            inside = block.constraint.check(x).reshape(*batch, -1).all(-1)
            free = block.transform.inv(x)
            log_dets.append(_summed(block.transform.log_abs_det_jacobian(free, x), len(batch)))
            pieces.append(torch.where(inside.unsqueeze(-1), free.reshape(*batch, -1), math.nan))
        try:
            batch = torch.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
        except RuntimeError as error:
            raise ValueError(f"the batches of the parameters do not broadcast: {_described(value)}") from error
        z = torch.cat([piece.expand(*batch, -1) for piece in pieces], -1)
        return z, torch.stack([log_det.to(z.dtype).expand(batch) for log_det in log_dets]).sum(0)

    def columns(self, value: Value) -> Tensor:
        """Flatten a value to one row of numbers for each draw: (*batch, len(labels))."""
        if isinstance(value, Tensor):
            return value
        assert self.blocks is not None
        parts = [value[b.name].flatten(-len(b.shape)) if b.shape else value[b.name].unsqueeze(-1) for b in self.blocks]
        return torch.cat(parts, -1)

    def describe(self) -> dict[str, Any]:
        """The space as JSON, which `from_description` reads."""
        if self.blocks is None:
            return {"features": self.features}
        return {"supports": {b.name: [list(b.shape), _describe_constraint(b.constraint)] for b in self.blocks}}

    @classmethod
    def from_description(cls, description: Any, width: int | None = None) -> "Space":
        """Build the space that `describe` described, and check that it has `width` unconstrained numbers, if given.

        Raises:
            ValueError: The description is of no space, or of another width, or a constraint does not fit its shape.
        """
        if not isinstance(description, dict) or len(description) != 1:
            raise ValueError(f"a space is {shown(description)}")
        if "features" in description:
            if width is not None and description["features"] != width:
                raise ValueError(f"the space has {shown(description['features'])} features, the flow {width}")
            return cls(description["features"])
        supports = description["supports"]
        if not fits(supports, dict[str, tuple[list[int], Any]]):
            raise ValueError(f"supports are {shown(supports)}")
        # No support has more than four numbers for each unconstrained one, as the Cholesky factor of a 2 × 2
        # correlation.
        sizes = [max(math.prod(shape), *shape, 0) for shape, _ in supports.values()]
        if width is not None and sum(sizes) > 4 * width + SMALL:
            raise ValueError(f"the shapes of the parameters are larger than the flow's {width} features allow")
        space = cls(supports={name: (shape, _build_constraint(entry)) for name, (shape, entry) in supports.items()})
        if width not in (None, space.features):
            raise ValueError(f"the space has {space.features} features, the flow {width}")
        with torch.no_grad():  # a bound's shape may not go with its parameter's
            space.unconstrain(space.constrain(torch.zeros(1, space.features, dtype=torch.float64))[0])
        return space


def _block(name: str, entry: Any, start: int) -> Block:
    try:
        shape, constraint = entry
        shape = Size([shape] if isinstance(shape, int) else shape)
        if any(size < 0 for size in shape):
            raise ValueError("negative size")
    except (TypeError, ValueError) as error:
        raise ValueError(f"supports[{name!r}] must be (shape, constraint), not {entry!r}") from error
    if not isinstance(constraint, constraints.Constraint):
        raise ValueError(
            f"supports[{name!r}] needs a constraint of torch.distributions.constraints, not {constraint!r}"
        )
    try:
        transform = bijector(constraint)
        free_shape = Size(transform.inverse_shape(shape))
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"supports[{name!r}]: {constraint} with shape {tuple(shape)} has no bijector: {error}"
        ) from error
    if shape.numel() and not free_shape.numel():
        raise ValueError(f"supports[{name!r}]: {constraint} with shape {tuple(shape)} has a single point: leave it out")
    return Block(name, shape, constraint, transform, free_shape, slice(start, start + free_shape.numel()))


def _summed(log_det: Tensor, batch_dims: int) -> Tensor:
    return log_det.flatten(batch_dims).sum(-1) if log_det.ndim > batch_dims else log_det


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if not isinstance(value, dict):
        return type(value).__name__
    return "a dict with " + ", ".join(f"{name} {_shape(x)}" for name, x in value.items())


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


# Constraints that files can name: those of torch.distributions that have a bijector, with their numbers.
_PLAIN = (
    "real",
    "positive",
    "nonnegative",
    "unit_interval",
    "simplex",
    "corr_cholesky",
    "lower_cholesky",
    "positive_definite",
)
_WITH_NUMBERS = {
    "greater_than": ("lower_bound",),
    "greater_than_eq": ("lower_bound",),
    "less_than": ("upper_bound",),
    "interval": ("lower_bound", "upper_bound"),
    "half_open_interval": ("lower_bound", "upper_bound"),
}


def _describe_constraint(constraint: constraints.Constraint) -> Any:
    for name in _PLAIN:
        if constraint is getattr(constraints, name):
            return name
    for name, arguments in _WITH_NUMBERS.items():
        if type(constraint) is getattr(constraints, name):
            return [name, *(torch.as_tensor(getattr(constraint, argument)).tolist() for argument in arguments)]
    if isinstance(constraint, constraints.independent):
        return ["independent", _describe_constraint(constraint.base_constraint), constraint.reinterpreted_batch_ndims]
    raise TypeError(f"no file can describe the constraint {constraint}")


def _build_constraint(description: Any) -> constraints.Constraint:
    if isinstance(description, str) and description in _PLAIN:
        return getattr(constraints, description)
    if isinstance(description, list) and description:
        name, *numbers = description
        if name == "independent" and len(numbers) == 2 and fits(numbers[1], int):
            return constraints.independent(_build_constraint(numbers[0]), numbers[1])
        if name in _WITH_NUMBERS and len(numbers) == len(_WITH_NUMBERS[name]) and fits(numbers, list[float | Tensor]):
            bounds = (torch.tensor(x, dtype=torch.float64) if isinstance(x, list) else float(x) for x in numbers)
            return getattr(constraints, name)(*bounds)
    raise ValueError(f"unknown constraint {shown(description)}")
