"""What ONNX has no operator for, or ONNX Runtime none in double precision, in operations that both have.

`decompositions` goes to `torch.export`, `translations` to `torch.onnx.export`. The first replaces operations by plain
ones that keep their digits (ONNX has neither log1p nor erfcx nor triangular solves, and torch's exporter writes
log1p(x) as log(1 + x)); the second writes Python's numbers as they are, where torch's exporter rounds them to single
precision.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from numpy.polynomial import chebyshev
from onnxscript import opset20
from torch import Tensor

aten = torch.ops.aten
op: Any = opset20

# Numbers in torch -----------------------------------------------------------------------------------------------------


def constant(value: float, like: Tensor) -> Tensor:
    """A number () of a tensor's type, which `translations` writes exactly."""
    return torch.full((), value, dtype=like.dtype)


def exactly(operator: Any) -> Callable[..., Any]:
    """The operator on two tensors where the second operand is a Python float."""

    def run(x: Tensor, other: Any, **options: Any) -> Any:
        if not isinstance(other, float) or not x.is_floating_point():
            return NotImplemented
        return operator(x, constant(other, x), **options)

    return run


def full_like(x: Tensor, value: Any, **options: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, float | int) or not x.is_floating_point():
        return NotImplemented
    return constant(float(value), x).expand(x.shape)


def clamp(x: Tensor, low: Any = None, high: Any = None) -> Any:
    """By `where`: onnxscript's optimizer makes invalid graphs of some clips. NaN stays NaN."""
    if not x.is_floating_point():
        return NotImplemented
    for bound, beyond in ((low, torch.lt), (high, torch.gt)):
        if bound is not None:
            end = bound if isinstance(bound, Tensor) else constant(float(bound), x)
            x = torch.where(beyond(x, end), end, x)
    return x


def remainder(x: Tensor, divisor: Any) -> Any:
    if not x.is_floating_point():
        return NotImplemented
    return x - torch.floor(x / float(divisor)) * float(divisor)


# Functions in torch ---------------------------------------------------------------------------------------------------


def elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    below = torch.expm1(x.clamp(max=0) * float(input_scale)) * float(alpha)
    return torch.where(x > 0, x, below) * float(scale)


def gelu(x: Tensor, approximate: str = "none") -> Any:
    return x * torch.special.ndtr(x) if approximate == "none" else NotImplemented


SHIFT = 8  # from there on Stirling's series has all digits
STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def lgamma(x: Tensor) -> Tensor:
    """log Γ(x) for x > 0: Stirling's series at x + SHIFT, less the logarithms in between."""
    large, between = torch.where(x < SHIFT, x + SHIFT, x), x
    for k in range(1, SHIFT):
        between = between * (torch.where(x < SHIFT, x, 1.0) + k)
    over = 1 / large
    tail = torch.zeros_like(x)
    for coefficient in reversed(STIRLING):
        tail = tail * over * over + coefficient
    found = (large - 0.5) * large.log() - large + math.log(2 * math.pi) / 2 + tail * over
    return found - torch.where(x < SHIFT, between, 1.0).log()


# Linear algebra in torch ----------------------------------------------------------------------------------------------


def solve_triangular(a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Tensor:
    """By substitution, one row of the solution after the other."""
    if not left:
        return solve_triangular(a.mT, b.mT, upper=not upper, unitriangular=unitriangular).mT
    n = a.shape[-1]
    found: Tensor | None = None
    for i in reversed(range(n)) if upper else range(n):
        row = b[..., i : i + 1, :]
        if found is not None:
            row = row - a[..., i : i + 1, slice(i + 1, n) if upper else slice(0, i)] @ found
        if not unitriangular:
            row = row / a[..., i : i + 1, i : i + 1]
        found = row if found is None else torch.cat([row, found] if upper else [found, row], -2)
    assert found is not None
    return found


# Constants in ONNX ----------------------------------------------------------------------------------------------------


def number(value: float, dtype: int) -> Any:
    """A scalar of an ONNX type; -1, the default of the operators below, is single precision."""
    kind = onnx.TensorProto.FLOAT if dtype == -1 else dtype
    return op.Constant(value=onnx.helper.make_tensor("", kind, [], [value]))


def full(
    size: Any, fill_value: float, dtype: int = -1, layout: str = "", device: str = "", pin_memory: bool = False
) -> Any:
    value = number(fill_value, dtype)
    if isinstance(size, list | tuple) and not size:
        return value
    return op.Expand(value, op.Cast(size, to=onnx.TensorProto.INT64))


def scalar_tensor(s: float, dtype: int = -1, layout: str = "", device: str = "", pin_memory: bool = False) -> Any:
    return number(s, dtype)


# Exponentials and logarithms in ONNX ----------------------------------------------------------------------------------


def log1p(self):  # type: ignore[no-untyped-def]
    """log(1 + x): a factor restores the digits of a small x that rounding 1 + x loses."""
    return log_of_one_and(self, self.dtype)


def log_of_one_and(x: Any, dtype: int) -> Any:
    """log(1 + x) for x of a given type."""
    one = number(1.0, dtype)
    total = op.Add(one, x)
    kept = op.Sub(total, one)
    lost = op.Equal(kept, number(0.0, dtype))
    small = op.Where(lost, x, op.Mul(op.Log(total), op.Div(x, op.Where(lost, one, kept))))
    return op.Where(op.Less(op.Abs(x), number(0.5, dtype)), small, op.Log(total))


def expm1(self):  # type: ignore[no-untyped-def]
    """exp(x) - 1, with the digits of a small x restored likewise."""
    grown, one = op.Exp(self), number(1.0, self.dtype)
    logarithm = op.Log(grown)
    lost = op.Equal(logarithm, number(0.0, self.dtype))
    less = op.Sub(grown, one)
    small = op.Where(lost, self, op.Mul(less, op.Div(self, op.Where(lost, one, logarithm))))
    return op.Where(op.Less(op.Abs(self), number(0.5, self.dtype)), small, less)


def softplus(self, beta: float = 1.0, threshold: float = 20.0):  # type: ignore[no-untyped-def]
    """Double precision, too, which ONNX Runtime's own operator does not support."""
    factor = number(beta, self.dtype)
    scaled = op.Mul(self, factor)
    tail = log_of_one_and(op.Exp(op.Neg(op.Abs(scaled))), self.dtype)
    return op.Div(op.Add(op.Max(scaled, number(0.0, self.dtype)), tail), factor)


# The normal distribution in ONNX --------------------------------------------------------------------------------------

# Polynomials in a mapped argument, fitted when first needed. The monomial basis is well-conditioned here: the
# coefficients decay faster than those of the Chebyshev polynomials grow.

MIDDLE = 3.75  # of the map x -> (x - MIDDLE) / (x + MIDDLE) from [0, ∞) to [-1, 1)


@functools.cache
def erfcx_series() -> list[float]:
    """(1 + 2x) erfcx(x) in the mapped x."""
    from scipy.special import erfcx

    def function(t: Any) -> Any:
        x = MIDDLE * (1 + t) / (1 - t)
        return (1 + 2 * x) * erfcx(x)

    return chebyshev.cheb2poly(chebyshev.chebinterpolate(function, 31)).tolist()


# √(-2 log p) at p = 1/2, and beyond the smallest number; the series is in -1 / (1 + root), mapped to [-1, 1].
FLIPPED = tuple(-1 / (root + 1) for root in (math.sqrt(2 * math.log(2)), 38.7))


@functools.cache
def ndtri_series() -> list[float]:
    """-z / √(-2 log Φ(z)) for z < 0, in the mapped root."""
    from scipy.special import ndtri_exp

    low, high = FLIPPED

    def function(t: Any) -> Any:
        root = -1 / ((t + 1) * (high - low) / 2 + low) - 1
        return -ndtri_exp(-(root**2) / 2) / root

    return chebyshev.cheb2poly(chebyshev.chebinterpolate(function, 32)).tolist()


def polynomial(x: Any, dtype: int, coefficients: Sequence[float]) -> Any:
    """A polynomial at x (*s): one product of powers and coefficients, in place of two operations per coefficient."""
    count = len(coefficients)
    powers, weights = (
        op.Constant(value=onnx.helper.make_tensor("", dtype, [count], list(values)))
        for values in (range(count), coefficients)
    )
    return op.MatMul(op.Pow(op.Unsqueeze(x, op.Constant(value_ints=[-1])), powers), weights)


def erfcx(self):  # type: ignore[no-untyped-def]
    """exp(x²) erfc(x)."""
    zero, two = number(0.0, self.dtype), number(2.0, self.dtype)
    found = erfcx_of(op.Abs(self), self.dtype)
    return op.Where(op.Less(self, zero), op.Sub(op.Mul(two, op.Exp(op.Mul(self, self))), found), found)


def erfcx_of(x: Any, dtype: int) -> Any:
    """`erfcx` for x >= 0."""
    one, two, middle = (number(value, dtype) for value in (1.0, 2.0, MIDDLE))
    mapped = op.Sub(one, op.Div(op.Mul(two, middle), op.Add(x, middle)))
    return op.Div(polynomial(mapped, dtype, erfcx_series()), op.Add(one, op.Mul(two, x)))


def ndtr(self):  # type: ignore[no-untyped-def]
    """The normal distribution function, with its digits in the lower tail."""
    half, root = number(0.5, self.dtype), number(math.sqrt(0.5), self.dtype)
    bell = op.Exp(op.Neg(op.Mul(half, op.Mul(self, self))))
    tail = op.Mul(half, op.Mul(bell, erfcx_of(op.Mul(op.Abs(self), root), self.dtype)))
    return op.Where(op.Less(self, number(0.0, self.dtype)), tail, op.Sub(number(1.0, self.dtype), tail))


def ndtri(self):  # type: ignore[no-untyped-def]
    """The normal quantile function."""
    one, half = number(1.0, self.dtype), number(0.5, self.dtype)
    root = op.Sqrt(op.Mul(number(-2.0, self.dtype), op.Log(op.Min(self, op.Sub(one, self)))))
    low, high = FLIPPED
    flipped = op.Neg(op.Div(one, op.Add(root, one)))
    mapped = op.Sub(op.Mul(op.Sub(flipped, number(low, self.dtype)), number(2 / (high - low), self.dtype)), one)
    capped = op.Where(op.Greater(mapped, one), one, mapped)
    size = op.Mul(root, polynomial(capped, self.dtype, ndtri_series()))
    return op.Where(op.Less(self, half), op.Neg(size), size)


# Tables ---------------------------------------------------------------------------------------------------------------


TRANSLATED = (
    aten.log1p.default,
    aten.expm1.default,
    aten.softplus.default,
    aten.special_erfcx.default,
    aten.special_ndtr.default,
    aten.special_ndtri.default,
)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What `ExportedProgram.run_decompositions` wants: torch's own, and these."""
    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions().items())
    table |= {
        operator: exactly(operator) for operator in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
    }
    table |= {
        getattr(aten, name).Scalar: exactly(getattr(aten, name).Tensor) for name in ("lt", "le", "gt", "ge", "eq", "ne")
    }
    for operator in TRANSLATED:
        table.pop(operator, None)
    return table | {
        aten.full_like.default: full_like,
        aten.clamp.default: clamp,
        aten.clamp.Tensor: clamp,
        aten.clamp_min.default: clamp,
        aten.clamp_max.default: lambda x, high: clamp(x, None, high),
        aten.remainder.Scalar: remainder,
        aten.elu.default: elu,
        aten.gelu.default: gelu,
        aten.lgamma.default: lgamma,
        aten.linalg_solve_triangular.default: solve_triangular,
    }


def translations() -> dict[Any, Callable[..., Any]]:
    """What `torch.onnx.export` wants as its `custom_translation_table`."""
    functions = (log1p, expm1, softplus, erfcx, ndtr, ndtri)
    return {
        aten.full.default: full,
        aten.scalar_tensor.default: scalar_tensor,
        **dict(zip(TRANSLATED, functions, strict=True)),
    }
