"""How many threads pay for a log-density."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flowlab.posteriors.target import Target
from flowlab.runtime import threads

BATCH = 256  # draws of a step, as a rule
# CPU seconds of one thread from which on a log-density's work on these is shared. A linear model of 200,000 numbers takes as long. Below, what a
# second thread gains is small, and on a machine whose cores are busy each of hundreds of small kernels waits for it.
LONG = 0.01


@contextmanager
def sparing(target: Target, device: torch.device | str = "cpu") -> Iterator[None]:
    """One thread of torch inside the block, unless a batch of draws is so much work that the threads set before pay, or the work is a GPU's."""
    before = torch.get_num_threads()
    if before == 1 or torch.device(device).type != "cpu":
        yield
        return
    with threads(1):
        started = time.thread_time()
        target.value_and_gradient(torch.zeros(BATCH, target.space.features, dtype=torch.float64))
        seconds = time.thread_time() - started
    with threads(before if seconds > LONG else 1):
        yield
