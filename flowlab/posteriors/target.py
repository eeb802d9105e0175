"""`Target`: somebody's log-density, evaluated with care."""

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


class PosteriorError(ArithmeticError):
    """A posterior could not be fitted, or what was asked of it cannot be trusted; the message says why, and what to do."""


def piecewise(function: Callable[[tuple[slice, ...]], Tensor], shape: Sequence[int], like: Tensor) -> Tensor:
    """A function of a batch of this shape, some of whose points torch may refuse: their values are −inf.

    A distribution refuses an argument, say a scale that has become zero, or a factorisation a matrix. The points are
    found by halving the batch.

    torch could be told not to look at arguments, but only for all threads at once.

    Args:
        function: From slices of the batch's axes to its values there.
        shape: The batch's shape.
        like: A tensor of the values' type and device.
    """

    def block(place: tuple[slice, ...]) -> Tensor:
        try:
            return function(place)
        except (ValueError, torch.linalg.LinAlgError) as error:
            if not _refused(error):
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


def _refused(error: Exception) -> bool:
    """Whether it is torch that refused an argument, and not the user's own code."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return isinstance(error, torch.linalg.LinAlgError) or str(frame.f_globals.get("__name__")).startswith(
        "torch.distributions"
    )


class Target:
    """The unnormalised log-posterior as a function of the unconstrained vector, with the log-determinant of getting to the user's space.

    A value or a gradient that is not finite counts as log-density −inf with gradient zero, and so does a point at
    which one of torch's distributions refuses an argument or a matrix has no Cholesky factor: optimisers look at
    extreme points. `check` comes first, and there these are errors.

    Args:
        log_prob: The user's function: a batch (n, features), or a dict of named batches (n, *shape), to (n,) nats.
        space: The parameters.
        dtype: Floating-point type in which `log_prob` is called.

    Attributes:
        evaluations: Points at which the function was evaluated so far.
    """

    def __init__(self, log_prob: Callable[[Any], Tensor], space: Space, dtype: torch.dtype = torch.float64) -> None:
        if not callable(log_prob):
            raise TypeError(f"log_prob must be a function of a batch of draws, not {type(log_prob).__name__}")
        self.function, self.space, self.dtype = log_prob, space, dtype
        self.evaluations = 0

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

    def shown(self, z: Tensor) -> str:
        """What the user's function says at z (n, features), for messages."""
        with torch.no_grad():
            value, _ = self.space.constrain(z.to(self.dtype))
            try:
                found = self._ask(value)
            except (ValueError, torch.linalg.LinAlgError) as error:
                return f"at {value} it fails: {str(error).strip().splitlines()[0]}"
            gradient = "" if not bool(torch.isfinite(found).all()) else ", without a finite gradient"
            return f"at {value} it is {found.tolist()}{gradient}"

    def check(self, z: Tensor) -> None:
        """Evaluate the user's function at z (n, features), and say plainly what is wrong with what it returns.

        Raises:
            TypeError: It does not return a tensor of floating-point numbers.
            ValueError: The result has the wrong shape, or no gradient leads back to the argument.
        """
        with torch.enable_grad():
            value, _ = self.space.constrain(z.detach().to(self.dtype).requires_grad_())
            try:
                found = self._ask(value)
            except Exception as error:
                error.add_note(f"flowlab had called log_prob with a batch of {len(z)} draws: {self._shapes(value)}")
                raise
        n = len(z)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            kind = f"a tensor of {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise TypeError(f"log_prob must return a tensor of floating-point numbers, not {kind}")
        if found.shape != (n,):
            raise ValueError(
                f"log_prob was called with a batch of {n} draws ({self._shapes(value)}) and must return shape ({n},), one number "
                f"for each, not {tuple(found.shape)}: sum over the parameters' own axes with .sum(-1), or wrap a function of "
                "a single draw in torch.vmap"
            )
        if not found.requires_grad:
            raise ValueError(
                "the result of log_prob has no gradient with respect to its argument: compute it with torch operations on the tensors "
                "given, without .detach(), .item(), numpy or torch.no_grad()"
            )

    def _ask(self, value: Value) -> Tensor:
        try:
            return self.function(value)
        except RuntimeError as error:
            if about_dtype(error):
                raise ValueError(
                    f"log_prob failed on arguments of {self.dtype}: {error}. Convert the model's tensors to {self.dtype}, or pass dtype=…"
                ) from error
            raise

    def _asked(self, value: Value, n: int, like: Tensor) -> Tensor:
        """The user's log-density (n,) of n points; −inf where torch refuses."""
        return piecewise(lambda place: self._ask(at(value, place)), (n,), like)

    def _values(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            value, log_det = self.space.constrain(z.to(self.dtype))
            found = self._asked(value, len(z), log_det).to(self.dtype) + log_det
            self.evaluations += len(z)
            return torch.where(torch.isfinite(found), found, -math.inf).to(z.dtype)

    def _value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            free = z.detach().to(self.dtype).requires_grad_()
            value, log_det = self.space.constrain(free)
            found = self._asked(value, len(z), log_det).to(self.dtype) + log_det
            # Only finite values are asked for their gradient: the others' would be NaN, also for what they share with their neighbours.
            finite = torch.isfinite(found)
            total = torch.where(finite, found, 0).sum() + 0 * free.sum()
            (gradient,) = torch.autograd.grad(total, free)
        self.evaluations += len(z)
        finite = finite & torch.isfinite(gradient).all(-1)
        found = torch.where(finite, found.detach(), -math.inf)
        return found.to(z.dtype), torch.where(finite.unsqueeze(-1), gradient, 0).to(z.dtype)

    def _shapes(self, value: Value) -> str:
        if isinstance(value, Tensor):
            return f"shape {tuple(value.shape)}"
        return ", ".join(f"{name} {tuple(x.shape)}" for name, x in value.items())


def at(value: Value, place: tuple[slice, ...]) -> Value:
    """Some of the points of a batch."""
    return value[place] if isinstance(value, Tensor) else {name: x[place] for name, x in value.items()}


class _Evaluate(Function):
    """A target's log-density, whose gradient is computed along with it, so that no NaN comes back from points without one."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Target) -> Tensor:
        value, gradient = target.value_and_gradient(z)
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return torch.where(grad.unsqueeze(-1) == 0, 0, grad.unsqueeze(-1) * gradient), None
