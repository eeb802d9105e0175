"""The number of torch threads that a log-density is worth."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flowlab.posteriors.target import Target
from flowlab.runtime import threads

BATCH = 256  # typical draws of a step
# CPU seconds of one thread for the log-density of a batch, above which several threads share the work; a linear model
# with 200,000 numbers of data takes as long. Below, a second thread gains little, and on a busy machine each of
# hundreds of small kernels waits for it.
LONG = 0.01


@contextmanager
def sparing(target: Target, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run the block in one torch thread, unless it computes on a GPU or the log-density is slow enough to share."""
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
