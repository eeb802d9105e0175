"""`Target`: the user's log-density as a function of the unconstrained vector."""

import math
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from flowlab.flow import CHUNK
from flowlab.posteriors.space import Space, Value

WORST_SHARE = 0.01  # of a fit's draws that may have no finite log-density
ADVICE = "Where a parameter is bounded, say so in supports=…; where a computation overflows, rewrite it in logarithms"


class PosteriorError(ArithmeticError):
    """A fit failed, or what was asked of it cannot be trusted; the message says why, and what to do."""


def check_finite(values: Tensor, describe: Callable[[Tensor], str] = lambda bad: "") -> None:
    """Check the log-densities, or log-weights, (n,) of a fit's draws.

    Args:
        values: The log-densities.
        describe: From the draws without a finite value, as booleans (n,), to what the message says of them.

    Raises:
        PosteriorError: More than 1 % of them are not finite.
    """
    bad = ~torch.isfinite(values)
    share = float(bad.double().mean())
    if share > WORST_SHARE:
        raise PosteriorError(
            f"log_prob is not finite at {share:.1%} of the fit's draws, more than {WORST_SHARE:.0%}{describe(bad)}. "
            f"{ADVICE}"
        )


def piecewise(function: Callable[[tuple[slice, ...]], Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
    """Evaluate a function on a batch, with −inf at the points where torch raises an error.

    A distribution refuses an argument, say a scale that has become zero, or a factorisation a matrix. Such points are
    found by bisecting the batch. Switching torch's validation off would do so for all threads of the process.

    Args:
        function: From slices of the batch's axes to its values there.
        shape: The batch's shape.
        like: A tensor of the values' type and device.
    """

    def block(place: tuple[slice, ...]) -> Tensor:
        try:
            return function(place)
        except (ValueError, torch.linalg.LinAlgError) as error:
            if not _raised_by_torch(error):
                raise
        lengths = [part.stop - part.start for part in place]
        if math.prod(lengths) == 1:
            return like.new_full(lengths, -math.inf)
        axis = lengths.index(max(lengths))
        part = place[axis]
        middle = (part.start + part.stop) // 2
        halves = slice(part.start, middle), slice(middle, part.stop)
        return torch.cat([block((*place[:axis], half, *place[axis + 1 :])) for half in halves], axis)

    return block(tuple(slice(0, length) for length in shape))


def about_dtype(error: Exception) -> bool:
    """Whether torch complains about floating-point types that do not go together."""
    return any(words in str(error) for words in ("dtype", "same type", "scalar type"))


def _raised_by_torch(error: Exception) -> bool:
    """Whether a distribution or a factorisation of torch raised the error, and not the user's own code."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, torch.linalg.LinAlgError) or str(frame.f_globals.get("__name__")).startswith(
        "torch.distributions"
    )


class LogDensity:
    """The user's log-density with its parameters' space: how it is called, and the check of what it returns.

    Args:
        log_prob: The user's function, to nats.
        space: The parameters.
        dtype: Floating-point type in which `log_prob` is called.

    Attributes:
        evaluations: Points at which the function was evaluated so far.
    """

    # Words for messages, which subclasses set: what the function takes, which argument its gradient leads back to, what
    # draws without names are called, what one number is returned for, and how to mend a wrong shape.
    takes: str
    argument: str
    unnamed: str
    each: str
    advice: str

    def __init__(self, log_prob: Callable[..., Tensor], space: Space, dtype: torch.dtype = torch.float64) -> None:
        if not callable(log_prob):
            raise TypeError(f"log_prob must be a function of {self.takes}, not {type(log_prob).__name__}")
        self.function, self.space, self.dtype = log_prob, space, dtype
        self.evaluations = 0

    def call(self, *arguments: Value) -> Tensor:
        """The user's function; errors about floating-point types say what to do."""
        try:
            return self.function(*arguments)
        except RuntimeError as error:
            if about_dtype(error):
                raise ValueError(
                    f"log_prob failed on arguments of {self.dtype}: {error}. Convert the model's tensors to "
                    f"{self.dtype}, or pass dtype=…"
                ) from error
            raise

    def check_call(self, z: Tensor, *context: Tensor, batch: str) -> None:
        """Call the user's function once, and check that it returns a log-density with a gradient.

        Args:
            z: Unconstrained draws (*batch, features).
            *context: Further arguments of the function.
            batch: The batch in words, for messages.

        Raises:
            TypeError: The result is not a tensor of floating-point numbers.
            ValueError: It has the wrong shape, or no gradient leads back to the draws.
        """
        with torch.enable_grad():
            value, _ = self.space.constrain(z.detach().to(self.dtype).requires_grad_())
            named = {self.unnamed: value} if isinstance(value, Tensor) else value
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in named.items())
            shapes += "".join(f", context {tuple(x.shape)}" for x in context)
            try:
                found: Any = self.call(value, *(x.to(self.dtype) for x in context))
            except Exception as error:
                error.add_note(f"flowlab had called log_prob with {batch}: {shapes}")
                raise
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise TypeError(f"log_prob must return a tensor of floating-point numbers, not {kind}")
        if found.shape != z.shape[:-1]:
            raise ValueError(
                f"log_prob was called with {batch} ({shapes}) and must return shape {tuple(z.shape[:-1])}, one number "
                f"for {self.each}, not {tuple(found.shape)}: {self.advice}"
            )
        if not found.requires_grad:
            raise ValueError(
                f"the result of log_prob has no gradient with respect to its {self.argument}: compute it with torch "
                "operations on the tensors given, without .detach(), .item(), numpy or torch.no_grad()"
            )


class Target(LogDensity):
    """The unnormalised log-posterior of the unconstrained vector.

    It includes the log-determinant of the map to the user's space. A value or a gradient that is not finite counts as
    log-density −inf with gradient zero, and so does a point at which one of torch's distributions refuses an argument
    or a matrix has no Cholesky factor: optimisers look at extreme points. In `check`, which comes first, these are
    errors.

    Args:
        log_prob: The user's function: a batch (n, features), or a dict of named batches (n, *shape), to (n,) nats.
        space: The parameters.
        dtype: Floating-point type in which `log_prob` is called.

    Attributes:
        evaluations: Points at which the function was evaluated so far.
    """

    takes, argument, unnamed, each = "a batch of draws", "argument", "shape", "each"
    advice = "sum over the parameters' own axes with .sum(-1), or wrap a function of a single draw in torch.vmap"

    def __call__(self, z: Tensor) -> Tensor:
        """Log-density (*batch,) of unconstrained z (*batch, features), differentiable once."""
        rows = z.reshape(-1, self.space.features)
        if torch.is_grad_enabled() and z.requires_grad:
            value: Tensor = _Evaluate.apply(rows, self)
        else:
            value = torch.cat([self._values(chunk) for chunk in rows.split(CHUNK)])
        return value.reshape(z.shape[:-1])

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density (n,) and its gradient (n, features) at z (n, features)."""
        parts = [self._value_and_gradient(chunk) for chunk in z.detach().split(CHUNK)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def describe(self, z: Tensor) -> str:
        """What the user's function returns at z (n, features), for messages."""
        with torch.no_grad():
            value, _ = self.space.constrain(z.to(self.dtype))
            try:
                found = self.call(value)
            except (ValueError, torch.linalg.LinAlgError) as error:
                return f"at {value} it fails: {str(error).strip().splitlines()[0]}"
            gradient = "" if not bool(torch.isfinite(found).all()) else ", without a finite gradient"
            return f"at {value} it is {found.tolist()}{gradient}"

    def check(self, z: Tensor) -> None:
        """Call the user's function with z (n, features), and check what it returns.

        Raises:
            TypeError: It does not return a tensor of floating-point numbers.
            ValueError: The result has the wrong shape, or no gradient leads back to the argument.
        """
        self.check_call(z, batch=f"a batch of {len(z)} draws")

    def _log_density(self, z: Tensor) -> Tensor:
        """Log-density (n,) of z (n, features) in the target's floating-point type, as the user's function has it."""
        value, log_det = self.space.constrain(z)
        found = piecewise(lambda place: self.call(at(value, place)), (len(z),), log_det)
        return found.to(self.dtype) + log_det

    def _values(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            found = self._log_density(z.to(self.dtype))
            self.evaluations += len(z)
            return torch.where(torch.isfinite(found), found, -math.inf).to(z.dtype)

    def _value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            free = z.detach().to(self.dtype).requires_grad_()
            found = self._log_density(free)
            # Gradients of values that are not finite would be NaN, also for parts shared with other points.
            finite = torch.isfinite(found)
            total = torch.where(finite, found, 0).sum() + 0 * free.sum()
            (gradient,) = torch.autograd.grad(total, free)
        self.evaluations += len(z)
        finite = finite & torch.isfinite(gradient).all(-1)
        found = torch.where(finite, found.detach(), -math.inf)
        return found.to(z.dtype), torch.where(finite.unsqueeze(-1), gradient, 0).to(z.dtype)


def at(value: Value, place: tuple[slice, ...]) -> Value:
    """Some of the points of a batch."""
    return value[place] if isinstance(value, Tensor) else {name: x[place] for name, x in value.items()}


class _Evaluate(Function):
    """A target's log-density, whose gradient is computed in the forward pass: zero, not NaN, where there is none."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Target) -> Tensor:
        value, gradient = target.value_and_gradient(z)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return torch.where(grad.unsqueeze(-1) == 0, 0, grad.unsqueeze(-1) * gradient), None
