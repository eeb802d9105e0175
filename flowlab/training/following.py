"""Who follows a fit beside the loop: a progress bar, a callback of the user's, a checkpoint, and Ctrl-C."""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any

from torch import nn

from flowlab.training.checkpoint import Checkpoint
from flowlab.training.loop import State, Task, evaluate


@dataclass
class TrainingState:
    """What a callback is given after every evaluation of a fit.

    Attributes:
        stage: What is being trained: "fit", or a member of an ensemble or a round of a posterior by name.
        step: Steps so far.
        steps: Steps at most.
        epoch: The pass over the rows, from one.
        train: Loss of training rows, nats per row.
        validation: Loss of held-out rows, nats per row; the same as `train` where none are held out.
        best: The lowest validation loss so far.
        best_step: The step that it is of.
        learning_rate: That of the last step.
        gradient_norm: Norm of the last gradient, before clipping.
        seconds: Wall time so far, that before a restart included.
        seconds_left: Estimated wall time until the last step, if no evaluation ends training before.
        stopped: Why the callback wants training to end; None while it does not.

    Example:
        >>> import torch, flowlab
        >>> def callback(state):
        ...     if state.step >= 20:
        ...         state.stop("twenty steps are enough")
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> flow = flowlab.presets.real_nvp(2, layers=2, hidden=(8,))
        >>> flowlab.fit(flow, x, batch_size=100, callback=callback, progress=False).reason
        'twenty steps are enough'
    """

    stage: str
    step: int
    steps: int
    epoch: int
    train: float
    validation: float
    best: float
    best_step: int
    learning_rate: float
    gradient_norm: float
    seconds: float
    seconds_left: float
    stopped: str | None = field(default=None, init=False)

    def stop(self, reason: str = "the callback asked for it") -> None:
        """End training after this evaluation; the weights that did best so far are kept."""
        self.stopped = reason


Callback = Callable[[TrainingState], Any]


class Interrupt:
    """Inside the block, Ctrl-C waits until the step that runs is done; a second one does not wait.

    Python raises KeyboardInterrupt between any two operations, so that weights could be half written. Where signals
    are not this thread's, or the program has a handler of its own, everything is as it was.
    """

    asked = False

    def __enter__(self) -> "Interrupt":
        main = threading.current_thread() is threading.main_thread()
        self._ours = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            signal.default_int_handler(number, frame)
        self.asked = True


@dataclass
class Following:
    """What `fit` lets follow the loop.

    Attributes:
        model: The model, whose weights checkpoints hold.
        task: The task.
        bar: The progress bar.
        interrupt: Whether Ctrl-C was pressed.
        callback: The user's.
        checkpoint: Where the state is kept.
    """

    model: nn.Module
    task: Task
    bar: Any
    interrupt: Interrupt
    callback: Callback | None
    checkpoint: Checkpoint | None

    def __enter__(self) -> "Following":
        self.interrupt.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.interrupt.__exit__(*error)
        self.bar.close()

    def begin(self, state: State, warm: bool) -> None:
        """Before the first step: the state of a checkpoint, or the first checkpoint, which a full disk ends.

        Args:
            state: The state.
            warm: Whether the weights at the start are the first to be compared with.
        """
        if self.checkpoint is not None and self.checkpoint.resumed:
            self.checkpoint.load_state(self.task.model, state)
            return
        if warm and state.stopper.compares:
            state.stopper.best = evaluate(self.task, state)["validation"]
        if self.checkpoint is not None:
            self.checkpoint.write(self.model, self.task.model, state)

    def step(self, state: State) -> None:
        self.bar.update(state.step - self.bar.n)
        if self.interrupt.asked:
            if self.checkpoint is not None:
                self._keep(state)
            raise KeyboardInterrupt

    def evaluation(self, state: State, record: dict[str, float]) -> str | None:
        self.bar.set_postfix_str(f"loss {record['train']:.3f}, validation {record['validation']:.3f} nats")
        if self.callback is None:
            return None
        known = {name: record[name] for name in ("train", "validation", "learning_rate", "gradient_norm", "seconds")}
        left = record["seconds"] / state.step * (self.task.total - state.step)
        left = min(left, max(self.task.time_limit - record["seconds"], 0.0))
        best, best_step = state.stopper.best, state.history.best_step
        seen = TrainingState("fit", state.step, self.task.total, state.epoch, best=best, best_step=best_step,
                             seconds_left=left, **known)  # fmt: skip
        self.callback(seen)
        return seen.stopped

    def look(self, state: State) -> None:
        if self.checkpoint is not None and self.checkpoint.is_due():
            self._keep(state)

    def _keep(self, state: State) -> None:
        state.history.seconds = time.perf_counter() - self.task.started
        assert self.checkpoint is not None
        self.checkpoint.try_to_write(self.model, self.task.model, state)
