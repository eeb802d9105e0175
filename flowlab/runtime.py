"""What a run asks of torch and of the system: threads, memory, precision of products, compilation."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch

Precision = Literal["highest", "high", "medium"]
Result = TypeVar("Result")


if sys.platform != "win32":
    # After a fork only the forking thread goes on: a process that comes of one, as multiprocessing's may, would wait
    # for ever for the other threads of torch's pool, which are gone. torch's own data loaders use one thread there,
    # too.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block, and what it used before afterwards.

    The steps of small flows are too short to share: a second thread gains a sixth of the time on an idle machine, and loses
    a factor of ten where another process wants its core, since each of the hundreds of kernels of a step waits for it.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def matmul_precision(precision: Precision | None) -> Iterator[None]:
    """torch's precision of float32 matrix products inside the block, and what it was before afterwards; None leaves it."""
    before = torch.get_float32_matmul_precision()
    try:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        yield
    finally:
        if precision is not None:
            torch.set_float32_matmul_precision(before)


def keep_freed_memory() -> None:
    """Lets glibc keep what a training step frees for the next step, in place of returning it to the system.

    Freeing one block of almost 32 MiB raises malloc's own thresholds to it, for the rest of the process. Without that,
    every step asks the system for its memory anew, page by page, which takes up to half of its time. Elsewhere it has no effect.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def compiled(function: Callable[..., Result]) -> Callable[..., Result]:
    """The function through `torch.compile`, or as it is, with a warning, where the first call cannot be compiled.

    Every new size of an argument is a new compilation.
    """

    def own(*arguments: object) -> Result:
        return function(*arguments)

    # torch counts compilations by code object and gives up after eight: every function gets one of its own.
    own.__code__ = own.__code__.replace()
    fast: Callable[..., Result] | None = torch.compile(own, dynamic=False)
    works = False

    def call(*arguments: object) -> Result:
        nonlocal fast, works
        if fast is None:
            return function(*arguments)
        try:
            result = fast(*arguments)
        except Exception as error:
            if works:
                raise
            fast, result = None, function(*arguments)  # an error of the function itself is raised here
            warnings.warn(
                f"torch.compile failed, so this runs uncompiled: {type(error).__name__}: {str(error).strip().splitlines()[0]}. "
                "It needs a C++ compiler (g++ or clang++, or the one that the variable CXX names).",
                stacklevel=3,
            )
        works = True
        return result

    return call
