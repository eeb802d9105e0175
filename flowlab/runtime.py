"""What a run asks of torch and of the system: threads, memory, precision of products, compilation, a progress bar."""

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from threadpoolctl import ThreadpoolController

Precision = Literal["highest", "high", "medium"]
Result = TypeVar("Result")

SECONDS = 10.0  # between lines of progress
DELAY = 0.5  # seconds until a bar is shown: short work has none
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
SHARED = 1_000_000  # numbers in the matrix that is worked on, from which further threads gain more than they can lose


@dataclass
class _Process:
    """What all threads of this process share: how many blocks are open, and what the first of them found or set."""

    torch_inside: int = 0
    torch_most: int = 1
    blas_inside: int = 0
    blas_limit: Any = None


_process, _own, _lock = _Process(), threading.local(), threading.Lock()


if sys.platform != "win32":
    # After a fork only the forking thread goes on: a process that comes of one, as multiprocessing's may, would wait
    # for ever for the other threads of torch's pool, which are gone. torch's own data loaders use one thread there,
    # too.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside the block, and what it used before afterwards.

    The steps of small flows are too short to share: a second thread gains a sixth of the time on an idle machine, and
    loses a factor of ten where another process wants its core, since each of the hundreds of kernels of a step waits
    for it.

    torch's count is each thread's own, but a thread starts with the count that was set last. One that first meets torch
    while others are in such a block goes back to what the first of those found, so that no count of one stays for good.
    """
    depth = getattr(_own, "depth", 0)
    with _lock:
        before = torch.get_num_threads()
        if not _process.torch_inside:
            _process.torch_most = max(before, count)
        elif not depth:
            before = max(before, _process.torch_most)
        _process.torch_inside, _own.depth = _process.torch_inside + 1, depth + 1
        torch.set_num_threads(count)
    try:
        yield
    finally:
        with _lock:
            _process.torch_inside, _own.depth = _process.torch_inside - 1, depth
            torch.set_num_threads(before)


@contextmanager
def threads_for(numbers: int) -> Iterator[None]:
    """Hold torch, BLAS and OpenMP (scikit-learn's trees) to one thread inside the block if the work is small.

    The rule: work on a matrix of fewer than a million numbers (`SHARED`; rows × columns at a time) stays on one thread.
    It is many short operations, of which a second thread saves at most a third on an idle machine, while on a busy one
    all wait for it at each: ten to thirty times as long, measured. Larger work goes on as many threads as the user
    allows, by `torch.set_num_threads`, `threadpoolctl` or OMP_NUM_THREADS.

    Afterwards the counts are what they were. Blocks may be nested, and several threads may be in some at once. BLAS has
    one count for the process: the last thread to leave restores it.

    Args:
        numbers: Rows × columns of what is worked on.

    Example:
        >>> with threads_for(numbers=5_000 * 12):
        ...     torch.get_num_threads()
        1
    """
    if numbers >= SHARED:
        yield
        return
    controller = ThreadpoolController()
    with threads(1), controller.select(user_api="openmp").limit(limits=1), _one_blas_thread(controller):
        yield


@contextmanager
def _one_blas_thread(controller: ThreadpoolController) -> Iterator[None]:
    with _lock:
        if not _process.blas_inside:
            _process.blas_limit = controller.select(user_api="blas").limit(limits=1)
        _process.blas_inside += 1
    try:
        yield
    finally:
        with _lock:
            _process.blas_inside -= 1
            if not _process.blas_inside:
                _process.blas_limit.restore_original_limits()


@contextmanager
def matmul_precision(precision: Precision | None) -> Iterator[None]:
    """Set torch's precision of float32 matrix products inside the block, and restore it afterwards; None leaves it."""
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
    every step asks the system for its memory anew, page by page, which takes up to half of its time. Elsewhere it has
    no effect.
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
            cause = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            warnings.warn(
                f"torch.compile failed, so this runs uncompiled: {cause}. "
                "It needs a C++ compiler (g++ or clang++, or the one that the variable CXX names).",
                stacklevel=3,
            )
        works = True
        return result

    return call


def progress_bar(total: int, progress: bool, what: str = "fit", unit: str = "step") -> Any:
    """A bar in terminals and notebooks, lines in what goes to a file, and nothing where neither is wanted."""
    from tqdm.auto import tqdm

    in_notebook = any(part.__module__ == "tqdm.notebook" for part in tqdm.__mro__)
    if progress and not in_notebook and not sys.stderr.isatty():
        return Lines(total, what)
    make: Callable[..., Any] = tqdm
    return make(total=total, disable=not progress, desc=what, unit=unit, leave=False, bar_format=BAR, delay=DELAY)


class Lines:
    """What has a bar's methods and writes, where no bar can move, a line to stderr every ten seconds.

    Attributes:
        n: Units done.
        total: Units in all.
    """

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what, self.n = total, what, 0.0
        self._started = self._last = time.monotonic()
        self._note = ""

    def update(self, n: float = 1) -> None:
        """So many more are done."""
        self.n += n
        now = time.monotonic()
        if now - self._last >= SECONDS:
            self._last = now
            spent = now - self._started
            left = f", {_clock(spent / self.n * (self.total - self.n))} left" if 0 < self.n <= self.total else ""
            note = f"; {self._note}" if self._note else ""
            print(f"{self.what}: {self.n / max(self.total, 1):.0%}, {_clock(spent)}{left}{note}", file=sys.stderr)

    def set_postfix_str(self, note: str, refresh: bool = True) -> None:
        """What to say beside the numbers."""
        self._note = note

    def set_description(self, what: str, refresh: bool = True) -> None:
        """What is done now."""
        self.what = what

    def close(self) -> None:
        """Nothing is left to be taken away."""

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"
