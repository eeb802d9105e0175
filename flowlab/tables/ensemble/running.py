"""Run the fits of an ensemble, one by one or in several processes: followed by a bar, and kept in a folder."""

import functools
import json
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_limits
from torch import Tensor

from flowlab import files, snapshots
from flowlab.flow import CHUNK, Flow
from flowlab.runtime import progress_bar, threads
from flowlab.tables.ensemble.families import FAMILIES, Task
from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.training import Callback, History, TrainingState
from flowlab.training.checkpoint import history_of
from flowlab.training.following import named

LOOK = 0.3  # seconds between looks at what other processes do
IDLE = 300  # seconds after which idle processes end


@dataclass
class Result:
    """What the fit of a member to a fold gave.

    Attributes:
        flow: The member.
        history: Its training, if there was any.
        log_prob: Log-densities of the fold's held-out rows, nats.
        seconds: Wall time.
    """

    flow: Flow | ConditionalDensity
    history: History | None
    log_prob: Tensor
    seconds: float


# ---- one fit --------------------------------------------------------------------------------------------------------


def run(task: Task) -> Result:
    """Fit one member on one thread and score the fold's held-out rows, or take what its folder holds."""
    if task.kept is not None and (found := read_result(task.kept)) is not None:
        return found
    started = time.perf_counter()
    with threads(1), threadpool_limits(1):
        flow, history = FAMILIES[task.member.kind].fit(task)
        with torch.no_grad():
            log_prob = torch.cat([flow.log_prob(chunk) for chunk in task.fold.held_out.split(CHUNK)])
            log_prob = log_prob + task.fold.log_width
    result = Result(flow, history, log_prob, time.perf_counter() - started)
    if task.kept is not None:
        try:
            write_result(task.kept, result)
        except OSError as error:  # a disk that is full by now is no reason to lose the fit
            warnings.warn(f"a member that is done was not kept, and the fit goes on without: {error}", stacklevel=2)
    return result


def write_result(kept: Path, result: Result) -> None:
    """Keep a result: the member's own file, then the rest, whose presence says that all is there."""
    files.save(result.flow, kept.with_suffix(".flow"))
    record = {"seconds": result.seconds, "history": None if result.history is None else asdict(result.history)}
    snapshots.write(kept.with_suffix(".result"), {"log_prob": result.log_prob}, record)
    snapshots.remove(kept.with_suffix(".training"))


def read_result(kept: Path) -> Result | None:
    """The result that is kept under this name, or None.

    Raises:
        FileError: Its files are damaged.
    """
    found = snapshots.read(kept.with_suffix(".result"))
    if found is None:
        return None
    tensors, record = found
    history = None if record["history"] is None else history_of(record["history"])
    return Result(files.load(kept.with_suffix(".flow")), history, tensors["log_prob"], record["seconds"])


# ---- many fits ------------------------------------------------------------------------------------------------------


@dataclass
class Runner:
    """Runs fits in order, in several processes for several jobs, with one bar for all and the user's callback.

    Attributes:
        jobs: Processes.
        total: Fits that are expected.
        progress: Whether there is a bar.
        callback: The user's, called in this process wherever a fit runs.
    """

    jobs: int
    total: int
    progress: bool = False
    callback: Callback | None = None
    _done: int = field(default=0, init=False)
    _shares: dict[int, float] = field(default_factory=dict, init=False)
    _stopped: str | None = field(default=None, init=False)

    def __enter__(self) -> "Runner":
        self._bar = progress_bar(self.total, self.progress, "fit", "member")
        if self.jobs > 1:  # they import torch meanwhile
            self._folder = tempfile.TemporaryDirectory(prefix="flowlab-", ignore_cleanup_errors=True)
            for _ in range(self.jobs):
                self._executor().submit(_imported)
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()
        if self.jobs > 1:
            self._folder.cleanup()

    @property
    def _followed(self) -> bool:
        return self.progress or self.callback is not None

    def _executor(self) -> Any:
        return get_reusable_executor(max_workers=self.jobs, timeout=IDLE)

    def expect(self, more: int) -> None:
        """There are more fits to come than was known."""
        self.total += more
        self._bar.total = self.total

    def run(self, tasks: Sequence[Task]) -> list[Result]:
        """The results of fits, in the order of the tasks.

        Raises:
            RuntimeError: A process was ended from outside.
        """
        self._shares = {}
        results = self._here(tasks) if self.jobs == 1 else self._apart(tasks)
        self._done += len(tasks)
        return results

    def _here(self, tasks: Sequence[Task]) -> list[Result]:
        results = []
        for k, task in enumerate(tasks):
            hear = named(functools.partial(self._heard, k), task.stage) if self._followed else None
            results.append(run(replace(task, callback=hear)))
            self._seen(k, 1.0, task.stage)
        return results

    def _apart(self, tasks: Sequence[Task]) -> list[Result]:
        reporters = [Reporter(Path(self._folder.name) / f"{self._done + k}", t.stage) for k, t in enumerate(tasks)]
        # Longest first, for an even load at the end.
        order = sorted(range(len(tasks)), key=lambda k: not tasks[k].member.trained)
        executor = self._executor()
        running: dict[Future[Result], int] = {}
        results: dict[int, Result] = {}
        try:
            while order or running:
                while order and len(running) < self.jobs:  # no more: what waits in an executor cannot be taken back
                    k = order.pop(0)
                    asked = reporters[k] if self._followed else None
                    running[executor.submit(run, replace(tasks[k], callback=asked))] = k
                done, _ = wait(running, LOOK, FIRST_COMPLETED)
                self._look([(k, reporters[k]) for k in running.values()])
                for future in done:
                    k = running.pop(future)
                    results[k] = future.result()
                    self._seen(k, 1.0, tasks[k].stage)
        except BrokenExecutor as error:
            raise RuntimeError(
                "a process that fitted members was killed from outside, as the system does where memory runs out: fit "
                "with n_jobs=1, which has one member in memory at a time, or with fewer rows; checkpoint=… keeps what "
                "is done"
            ) from error
        except BaseException:
            executor.shutdown(wait=True, kill_workers=True)
            raise
        return [results[k] for k in range(len(tasks))]

    def _look(self, reporters: "list[tuple[int, Reporter]]") -> None:
        """Hears what other processes tell, and answers."""
        for k, reporter in reporters:
            if (state := reporter.news()) is not None:
                self._heard(k, state)
                if state.stopped is not None:
                    reporter.ask(state.stopped)

    def _heard(self, k: int, state: TrainingState) -> None:
        """A fit has come to an evaluation; once the callback wants an end, that is the end of all fits."""
        self._seen(k, state.step / max(state.steps, 1), state.stage)
        if self._stopped is not None:
            state.stop(self._stopped)
        elif self.callback is not None:
            self.callback(state)
            self._stopped = state.stopped

    def _seen(self, k: int, share: float, stage: str) -> None:
        self._shares[k] = share
        self._bar.set_postfix_str(stage)
        self._bar.update(self._done + sum(self._shares.values()) - self._bar.n)


def _imported() -> None:
    """A task that makes a process import this module."""


class Reporter:
    """A callback that tells the process which started this one, by a file; the answer is a file, too."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage, self.seen = path, stage, 0

    def __call__(self, state: TrainingState) -> None:
        state.stage = self.stage
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps({k: v for k, v in asdict(state).items() if k != "stopped"}))
        os.replace(temporary, self.path)
        answer = self.path.with_suffix(".stop")
        if answer.exists():
            state.stop(answer.read_text())

    def news(self) -> TrainingState | None:
        """What was told since the last look."""
        if not self.path.exists():
            return None
        state = TrainingState(**json.loads(self.path.read_text()))
        if state.step == self.seen:
            return None
        self.seen = state.step
        return state

    def ask(self, reason: str) -> None:
        """Let the fit end at its next evaluation."""
        answer = self.path.with_suffix(".stop")
        temporary = answer.with_suffix(".asked")
        temporary.write_text(reason)
        os.replace(temporary, answer)
