"""The loop of `fit`: steps, evaluations, when to stop, and the way back after steps that are not finite."""

import math
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowlab.flow import CHUNK
from flowlab.training.history import History, TrainingError
from flowlab.training.objectives import Loss, Moment
from flowlab.training.optimizer import Optimizer
from flowlab.training.rows import Rows, worst_cell
from flowlab.training.schedule import Schedule

CHECK_EVERY = 25  # steps between looks at whether steps were skipped
SKIPS_TO_ROLL_BACK = 5  # skipped steps in a row
ROLL_BACKS = 6  # halvings of the learning rate before training gives up


@dataclass(frozen=True)
class Task:
    """What a fit is to do; nothing here changes.

    Attributes:
        model: What is trained.
        loss: Its loss, evaluated as it is.
        step_loss: The same, perhaps compiled, for steps.
        train: Rows to train on.
        held_out: Rows to validate on; those trained on when None.
        offsets: What to add to the mean losses of both, in nats per row.
        batch_size: Rows per step at most.
        epochs: Passes over the rows at most.
        unit: What the passes are called: "epochs", or "steps" where there are no rows.
        time_limit: Seconds after which the next look ends the fit.
        started: When the fit began, by `time.perf_counter`.
    """

    model: nn.Module
    loss: Loss
    step_loss: Loss
    train: Rows
    held_out: Rows | None
    offsets: tuple[float, float]
    batch_size: int
    epochs: int
    unit: str
    time_limit: float
    started: float

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.train.weight) / self.batch_size)

    @property
    def total(self) -> int:
        """Steps at most."""
        return self.steps_per_epoch * self.epochs


@dataclass
class State:
    """Where a fit stands: with the flow's own weights, all that changes in its course.

    Attributes:
        optimizer: Weights, moments and the moving average.
        schedule: The learning rate.
        stopper: The best evaluation so far, and whether to go on.
        best: The weights that are kept, and the way back to them.
        history: What has been seen.
        generator: Source of the batches and the dropout.
        source: Source of the objective's draws.
        global_start: The state of torch's own generator when the fit began, from which modules of a user's may draw.
        step: Steps so far.
        epoch: The pass over the rows, from one.
        shuffle: The state of `generator` from which the order of the rows in this pass follows.
        memory: What the objective keeps from step to step.
    """

    optimizer: Optimizer
    schedule: Schedule
    stopper: "EarlyStopping"
    best: "RollBack"
    history: History
    generator: torch.Generator
    source: torch.Generator
    global_start: Tensor = field(default_factory=torch.get_rng_state)
    step: int = 0
    epoch: int = 0
    shuffle: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.uint8))
    memory: dict[Any, Any] = field(default_factory=dict)

    @property
    def moment(self) -> Moment:
        """What a loss may know of this."""
        return Moment(self.step, self.source, self.memory)

    def shuffled(self, rows: int, begun: bool) -> Tensor:
        """The order of the rows in the next pass, or again in one that has begun."""
        if begun:
            now = self.generator.get_state()
            self.generator.set_state(self.shuffle)
        else:
            self.epoch, self.shuffle = self.epoch + 1, self.generator.get_state()
        order = torch.randperm(rows, generator=self.generator, device=self.generator.device)
        if begun:
            self.generator.set_state(now)
        return order


class Followers(Protocol):
    """Who follows a fit: a bar, a checkpoint, a callback of the user's."""

    def step(self, state: State) -> None:
        """After every step.

        Raises:
            KeyboardInterrupt: The user wants the fit to end.
        """

    def evaluation(self, state: State, record: dict[str, float]) -> str | None:
        """After every evaluation: why the fit is to stop, or None."""

    def look(self, state: State) -> None:
        """After every evaluation that does not end the fit, when all that belongs to it is done."""


def train(task: Task, state: State, followers: Followers) -> None:
    """Steps until an evaluation or the last epoch ends them; the history says why."""
    per_epoch, ends = task.steps_per_epoch, state.schedule.ends
    every = max(per_epoch, min(CHECK_EVERY, task.total))
    while state.step < task.total:
        done = state.step % per_epoch  # not zero where a fit goes on that was broken off
        order = state.shuffled(len(task.train.weight), done > 0)
        for batch in order.tensor_split(per_epoch)[done:]:
            share = state.schedule.share(state.step)
            take_step(task, state, task.train.take(batch), share)
            due = state.step % every == 0 or state.step in ends
            if (due or state.step % CHECK_EVERY == 0) and _look(task, state, share, due, followers):
                return
            followers.step(state)
    state.stopper.all_used(state.history, task)


def take_step(task: Task, state: State, batch: Rows, share: float) -> None:
    """One step on a batch, at a share of the peak learning rate."""
    if not task.model.training:
        task.model.train()
    losses = task.step_loss(task.model, batch.x, batch.context, state.moment)
    state.optimizer.step((losses * batch.weight.to(losses.dtype)).mean(), share)
    state.step += 1


def _look(task: Task, state: State, share: float, due: bool, followers: Followers) -> bool:
    """Back to the best weights if steps were skipped; an evaluation, if one is due; and whether to stop."""
    late = time.perf_counter() - task.started >= task.time_limit
    if state.optimizer.longest_streak() >= SKIPS_TO_ROLL_BACK:
        state.best.roll_back(state)
    if not (due or late):
        return False
    record = {"step": state.step, "epoch": state.epoch, "learning_rate": share * state.optimizer.rate}
    record |= evaluate(task, state) | {"seconds": time.perf_counter() - task.started}
    state.history.records.append(record)
    if not math.isfinite(record["validation"]):
        state.best.roll_back(state)
        return False
    if state.stopper.update(record, state.schedule):
        state.best.keep(state)
    reason = state.stopper.reason_to_stop(state.step, state.schedule)
    state.history.converged = reason is not None
    asked = followers.evaluation(state, record)
    if reason is None:
        reason = f"the time limit of {task.time_limit:.3g} s" if late else asked
    state.history.reason = reason or ""
    if reason is None:
        followers.look(state)
    return reason is not None


# ---- evaluation -------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(task: Task, state: State) -> dict[str, float]:
    """Mean loss of held-out rows under the averaged weights, its standard error, and that of as many training rows."""
    task.model.train(False)
    held_out = task.held_out
    shown = CHUNK if held_out is None else min(len(held_out.weight), CHUNK)
    with state.optimizer.averaged():
        train_loss, train_error = _mean_loss(task, task.train.take(slice(0, shown)), state.moment)
        loss, error = (train_loss, train_error) if held_out is None else _mean_loss(task, held_out, state.moment)
    return {
        "train": train_loss + task.offsets[0],
        "validation": loss + task.offsets[1],
        "standard_error": error,
        "gradient_norm": float(state.optimizer.norm),
        "skipped": float(state.optimizer.skipped),
    }


def _mean_loss(task: Task, rows: Rows, at: Moment) -> tuple[float, float]:
    """Weighted mean of the losses, and its standard error."""
    losses = torch.cat([task.loss(task.model, part.x, part.context, at).double() for part in rows.chunks()])
    weight = rows.weight.to(losses).expand_as(losses)
    share = weight / weight.sum()
    # A row without weight says nothing, not even by a loss that is infinite.
    losses = torch.where(share > 0, losses, 0)
    mean = (share * losses).sum()
    return float(mean), float((share.square() * (losses - mean).square()).sum().sqrt())


# ---- when to stop -----------------------------------------------------------------------------------------------


class EarlyStopping:
    """Which evaluation was the best, and whether another is expected to be better.

    Attributes:
        patience: Evaluations without improvement after which training stops, under other schedules than "restarts".
        total: Steps at most.
        compares: Whether losses of different steps compare; where each is of other draws, the last counts as the best.
        best: The best validation loss, and the step it is of.
        stale: Evaluations since then.
        early: The best validation loss before the last tenth of the steps.
    """

    def __init__(self, patience: int, total: int, compares: bool = True) -> None:
        self.patience, self.total, self.compares = patience, total, compares
        self.best, self.best_step, self.stale = math.inf, 0, 0
        self.early = math.inf

    def update(self, record: dict[str, float], schedule: Schedule) -> bool:
        """Whether this evaluation is the best so far; the schedule hears where it is not."""
        loss = record["validation"]
        if record["step"] <= 0.9 * self.total:
            self.early = min(self.best, loss)
        if loss < self.best or not self.compares:
            self.best, self.best_step, self.stale = loss, int(record["step"]), 0
            return True
        self.stale += 1
        schedule.stalled(self.stale, self.patience)
        return False

    def reason_to_stop(self, step: int, schedule: Schedule) -> str | None:
        """Why to stop after this step, or None."""
        if schedule.name == "restarts":
            if step in schedule.ends and self.best_step <= schedule.ends[step]:
                return "the last cycle of the learning rate brought no improvement on validation"
        elif self.stale >= self.patience and self.compares:
            return f"no improvement on validation in {self.patience} evaluations"
        return None

    def all_used(self, history: History, task: Task) -> None:
        """Says in the history that no step is left, and whether more of them may have gained more."""
        gained, error = self.early - self.best, history.records[-1]["standard_error"] if history.records else 0.0
        history.converged = gained < error / 2
        history.reason = f"all {task.epochs} {task.unit} used"
        if math.isfinite(gained):
            history.reason += f"; the last tenth of them gained {gained:.3g} nats per row"
        if not history.converged:
            history.reason += ", and more epochs may gain more"


class RollBack:
    """The best weights so far, which come back at half the learning rate where training fails.

    Attributes:
        weights: As `Optimizer.copy` gives them.
    """

    def __init__(self, optimizer: Optimizer, rows: Rows) -> None:
        self.weights, self.rows = optimizer.copy(), rows

    def keep(self, state: State) -> None:
        """The averaged weights are the best now."""
        state.optimizer.copy_average(self.weights)
        state.history.best_step = state.step

    def roll_back(self, state: State) -> None:
        """Back to the best weights, at half the learning rate.

        Raises:
            TrainingError: It has been halved often enough; the message names the most extreme cell.
        """
        state.history.roll_backs += 1
        if state.history.roll_backs > ROLL_BACKS:
            raise TrainingError(_failure(self.rows.x))
        state.optimizer.restart(self.weights)


def _failure(x: Tensor | None) -> str:
    failure = f"loss or gradient stayed non-finite through {ROLL_BACKS} halvings of the learning rate"
    if x is None:
        return f"{failure}. Lower learning_rate, or start closer to what is to be learnt."
    row, column = worst_cell(x)
    return (
        f"{failure}. The most extreme value is {float(x[row, column]):.4g} in column {column}, training row {row}, "
        "after preprocessing. Put a flowlab.layers.Marginal in front (FlowDensity does), scale the data, or lower "
        "learning_rate."
    )
