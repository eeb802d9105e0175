"""Inverting monotone functions that have no formula for it."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowlab.kernels import transforming
from flowlab.torch_internals import exporting, repeat

State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x, its bracket, the last error, whether it is found


class ConvergenceError(ArithmeticError):
    """A numerical inverse did not reach its tolerance."""


def solve(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, low: Tensor, high: Tensor, steps: int = 80
) -> Tensor:
    """The x with function(x) = target, elementwise, by Newton steps kept inside a shrinking bracket.

    Args:
        function: Increasing in every element; returns its value and the log of its derivative.
        target: The values to reach (*s).
        low: A point at or below each root (*s).
        high: A point at or above each root (*s).
        steps: Evaluations of the function at most; all of them are spent under torch.compile, torch.export and
            torch.func.

    Returns:
        The roots, with the implicit function's first derivatives in `target` and in everything
        that `function` depends on. NaN, without a derivative, where a bracket is not finite, as that of a number
        too large for its type is: one such row must not cost a batch the others.

    Raises:
        ConvergenceError: A bracket did not shrink to the precision of its floating-point type.
    """
    tracing = transforming() or target.is_meta  # then there are no values to look at
    epsilon = torch.finfo(target.dtype).eps
    with torch.no_grad():
        low, high = low.detach().clone(), high.detach().clone()
        # Rounding may put a root a few units in the last place outside its bracket.
        margin = 8 * epsilon * low.abs() + 8 * epsilon * high.abs() + 8 * epsilon  # a sum of both may overflow
        low, high = low - margin, high + margin
        middle = _middle(low, high)
        lost = ~middle.isfinite()
        x, last = torch.where(lost, 0, middle), torch.full_like(target, float("inf"))
        state = x, low, high, last, lost
        aim = torch.where(lost, 0, target)

        def step(state: State) -> State:
            x, low, high, last, done = state
            value, log_slope = function(x)
            error = value - aim
            low, high = torch.where(error <= 0, x, low), torch.where(error >= 0, x, high)
            newton = x - error * (-log_slope).exp()
            # A Newton step must stay inside the bracket and must have halved the error last time.
            good = (newton > low) & (newton < high) & (error.abs() < last / 2)
            new = torch.where(good, newton, _middle(low, high))
            tolerance = 4 * epsilon * (new.abs() + 1e-3)
            # Where the function is flat, its own rounding is what limits x: no step can do better.
            settled = error.abs() <= 2 * epsilon * (1 + aim.abs())
            near = ((new - x).abs() <= tolerance) | (high - low <= tolerance)
            return torch.where(done | settled, x, new), low, high, error.abs(), done | settled | near

        if exporting():
            state, steps = repeat(step, state, steps), 0
        for _ in range(steps):
            if not tracing and bool(state[-1].all()):
                break
            state = step(state)
    x, low, high, _, done = state
    # One Newton step on values that autograd sees attaches the derivatives. Where the function is flat, its rounding
    # errors would throw the root far away: the value moves by a few units in the last place at most.
    value, log_slope = function(x)
    if not tracing:
        _check_found(done & ~value.isnan(), target, low, high, steps)
    error = value - torch.where(lost, 0, target)
    inverse_slope = (-log_slope.detach()).clamp(max=math.log(torch.finfo(target.dtype).max) / 2).exp()
    room = 16 * epsilon * (x.abs() + 1e-3)
    x = x - (error.detach() * inverse_slope).clamp(-room, room)
    return torch.where(lost, math.nan, x - (error - error.detach()) * inverse_slope)


def _check_found(found: Tensor, target: Tensor, low: Tensor, high: Tensor, steps: int) -> None:
    """An error that names the widest bracket, unless all is found."""
    if bool(found.all()):
        return
    worst = int(torch.where(found, 0, high - low).flatten().argmax())
    raise ConvergenceError(
        f"no root after {steps} steps: target {target.flatten()[worst]:.6g} is still bracketed by "
        f"[{low.flatten()[worst]:.9g}, {high.flatten()[worst]:.9g}]; is the input finite, "
        "and are the layer's parameters finite?"
    )


def _middle(low: Tensor, high: Tensor) -> Tensor:
    """(low + high) / 2 where the sum may leave the range of its type."""
    return torch.add(low / 2, high, alpha=0.5)
