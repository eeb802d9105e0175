"""`fit`: the entry to training. Arguments are checked, rows prepared, and the loop does the rest."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowlab.arguments import real, share, whole
from flowlab.bases import Base
from flowlab.flow import Flow
from flowlab.layers.layer import Layer
from flowlab.networks import Random
from flowlab.runtime import Precision, compiled, progress_bar
from flowlab.runtime import matmul_precision as at_precision
from flowlab.training.checkpoint import Checkpoint, described
from flowlab.training.following import Callback, Following, Interrupt, TrainingState
from flowlab.training.history import History, TrainingError
from flowlab.training.loop import EarlyStopping, RollBack, State, Task, train
from flowlab.training.objectives import NLL, Objective, loss_of, source_of
from flowlab.training.optimizer import Optimizer
from flowlab.training.rows import Precomputed, checked_rows, precompute, representative, split
from flowlab.training.schedule import SCHEDULES, Schedule

__all__ = ["Callback", "History", "TrainingError", "TrainingState", "fit"]


def fit(
    flow: Flow,
    data: Tensor | None = None,
    context: Tensor | None = None,
    *,
    objective: Objective | None = None,
    validation: float | Tensor | tuple[Tensor, Tensor] = 0.1,
    sample_weight: Tensor | None = None,
    epochs: int = 200,
    steps: int | None = None,
    batch_size: int = 192,
    learning_rate: float = 1e-2,
    schedule: Literal["restarts", "cosine", "plateau", "constant"] = "restarts",
    warmup: int = 50,
    weight_decay: float = 1e-4,
    clip: float = 50.0,
    ema: float = 0.998,
    patience: int = 30,
    time_limit: float | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    compile: bool = False,
    matmul_precision: Precision | None = None,
    callback: Callback | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    history: History | None = None,
) -> History:
    """Train a flow in place on rows of data, and leave it with the weights that did best on validation rows.

    Objectives that draw from the flow, as variational ones do, need no rows: without `data` training takes `steps`
    steps and keeps the last weights, since losses of different draws do not compare. With a context alone, batches are
    of its rows.

    AdamW with warm-up and a schedule, clipped gradients, and a moving average of the weights, which is what is
    validated and kept. A step whose loss or gradient is not finite is skipped; after several in a row the best weights
    come back and the learning rate halves.

    Args:
        flow: The flow, or a mixture of flows; layers that learn from data (`ActNorm`, …) are initialised first.
        data: Rows (n, features), of the flow's floating-point type, on any device; batches are moved to the flow's.
            None for an objective that draws its own.
        context: Context of each row (n, context_features).
        objective: Each row's loss, a function of flow, rows and context; `NLL()` when None. One that draws
            (`objectives.Drawing`) stays as it is: what changes in a fit belongs to that fit.
        validation: Share of rows held out, 0 for none, or the held-out rows themselves (with their context, as a
            tuple).
        sample_weight: Non-negative weight of each row (n,).
        epochs: Passes over the data at most, each of all its rows.
        steps: Steps, in place of epochs, where there is neither data nor context.
        batch_size: Rows per step at most: every pass is divided into as few batches as that allows, of equal size to
            within one row.
        learning_rate: Peak learning rate.
        schedule: "restarts" decays to zero in cycles that double in length, the first of 750 steps, until one of them
            brings no improvement (Loshchilov & Hutter 2017, "SGDR"): a good model early, and a better one for as long
            as it pays. "cosine" decays once over all epochs, "plateau" halves when validation stalls.
        warmup: Steps over which the learning rate rises, at most a tenth of all.
        weight_decay: Decay of weight matrices, not of biases and scales.
        clip: Largest gradient norm.
        ema: Decay of the moving average of the weights per step; 0 turns it off.
        patience: Evaluations without improvement after which training stops, under other schedules than "restarts".
            There is one per epoch, or per 25 steps where epochs are shorter.
        time_limit: Seconds after which training stops at the next evaluation; the result then depends on the machine.
            None for no limit.
        generator: Source of the split, the batches, the dropout and what the objective draws; torch's global generator
            when None.
        progress: Show a progress bar in terminals and notebooks.
        compile: Run steps through `torch.compile`: a step of a spline flow of a few features takes three quarters of
            the time, after up to a minute of compilation, and as long again where the batches are not all equal.
            Scoring gains nothing by it. Where compilation fails, for want of a C++ compiler say, a warning says so and
            steps run uncompiled.
        matmul_precision: For `torch.set_float32_matmul_precision` during the fit; torch's setting as it is when None.
            "high" and "medium" allow tensor cores on a GPU and bfloat16 units on a CPU to round more coarsely. On an
            AMD CPU, together with `compile`, "medium" saves another fifth at unchanged precision.
        callback: Called with a `TrainingState` after every evaluation; its `stop()` ends training.
        checkpoint: A file that keeps the state of the fit, written at evaluations, as often as takes a twentieth of the
            time at most. A fit that was killed, and is called again with the same arguments, goes on from it and, on
            the same CPU, ends with the same bits as one that was not; of one that had ended it gives weights and
            history back. The model may be made anew, its weights are the file's. What no file can hold is a generator
            of its own that an objective's function draws from.
        resume: Whether to go on from a checkpoint that is there; if not, a new one replaces it.
        history: The history of an earlier fit of this flow, which this one continues (a warm start): its records come
            first, and only weights that do better than those at the start are kept. Give the same rows as `validation`,
            since another share of the data would hold out rows that the flow has been trained on.

    Returns:
        The history, with the reason for stopping.

    Raises:
        TypeError: Rows are no tensors; the message names the argument.
        ValueError: A number, a shape or a floating-point type does not fit, neither rows nor steps are given, data hold
            a value that is not finite (the message names row and column), or the checkpoint is of another fit.
        FileError: The checkpoint is damaged, and so is the one before it.
        OSError: No checkpoint can be written, before any training; if that happens later, a warning says so.
        TrainingError: Training stayed non-finite; the message names the worst row and column.
        KeyboardInterrupt: Ctrl-C was pressed: once the step that ran is done, the flow has the weights that did best so
            far, and the checkpoint is written.

    Example:
        >>> import torch, flowlab
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = 3 + 2 * torch.randn(1000, 2, generator=generator)
        >>> flow = flowlab.presets.real_nvp(2, layers=2, hidden=(16,), generator=generator)
        >>> options = {"batch_size": 100, "epochs": 30, "learning_rate": 1e-2, "progress": False}
        >>> history = flowlab.fit(flow, x, generator=generator, **options)
        >>> bool((flow.sample((2000,), generator=generator).mean(0) - 3).abs().max() < 0.3)
        True
    """
    started = time.perf_counter()
    objective = NLL() if objective is None else objective
    _check_counts(epochs, steps, batch_size, warmup, patience)
    _check_numbers(learning_rate, weight_decay, clip, ema, time_limit)
    if (steps is None) == (data is None and context is None):
        raise ValueError("give rows of data or of context, or, for an objective that draws its own, steps")
    _check_arguments(flow, objective, generator, schedule, data is not None)
    rows = checked_rows(flow, data, context, sample_weight)
    device = next((t.device for t in (*flow.parameters(), *flow.buffers())), rows.weight.device)
    seed = int(torch.randint(2**62, (), generator=generator))
    kept = None
    if checkpoint is not None:
        options = (epochs, steps, batch_size, learning_rate, schedule, warmup, weight_decay, clip, ema, patience)
        kept = Checkpoint(Path(checkpoint), described(rows, validation, options, objective, device), resume)
        seed = kept.begin(flow, seed, given=generator is not None)
        if kept.finished:
            flow.train(False)  # as every fit leaves it
            return kept.history
    generator = torch.Generator(device).manual_seed(seed)
    rows, held_out = split(flow, rows, validation if steps is None else 0.0, generator)
    flow.train(False)  # no dropout while layers learn from data
    rows, held_out = rows.to(device), None if held_out is None else held_out.to(device)
    if rows.x is not None and history is None and not (kept and kept.resumed):
        flow.initialise(representative(rows.x, rows.weight, generator))
    by_likelihood = isinstance(objective, NLL) and rows.x is not None
    ready = precompute(flow, rows, held_out) if by_likelihood else Precomputed(flow, rows, held_out)

    loss = loss_of(objective, generator)
    task = Task(
        model=ready.model,
        loss=loss,
        step_loss=compiled(loss) if compile else loss,  # steps have one number of rows, or two
        train=ready.train,
        held_out=ready.held_out,
        offsets=(ready.train_offset, ready.offset),
        batch_size=batch_size,
        epochs=epochs if steps is None else steps,
        unit="epochs" if steps is None else "steps",
        time_limit=math.inf if time_limit is None else time_limit,
        started=started - (kept.seconds if kept else 0.0),
    )
    optimizer = Optimizer(ready.model, learning_rate, weight_decay, clip, ema)
    state = State(
        optimizer=optimizer,
        schedule=Schedule(schedule, task.total, warmup),
        stopper=EarlyStopping(patience, task.total, compares=steps is None),
        best=RollBack(optimizer, ready.train),
        history=History(),
        generator=generator,
        source=source_of(objective, generator),
    )
    with ExitStack() as lent:
        lent.callback(_end, flow, optimizer, state)
        follow = Following(flow, task, progress_bar(task.total, progress), Interrupt(), callback, kept)
        lent.enter_context(follow)
        lent.enter_context(at_precision(matmul_precision))
        lent.enter_context(_lent(ready.model, generator))
        follow.begin(state, warm=history is not None)
        train(task, state, follow)
    state.history.seconds = time.perf_counter() - task.started
    if history is not None:
        state.history = history.continued(state.history)
    if kept is not None:
        kept.try_to_write(flow, ready.model, state, finished=True)
    return state.history


def _end(flow: Any, optimizer: Optimizer, state: State) -> None:
    """However training ended, the flow has the weights that did best."""
    optimizer.load(state.best.weights)
    optimizer.release()
    flow.train(False)


def _check_arguments(flow: Any, objective: Any, generator: Any, schedule: str, rows: bool) -> None:
    if not isinstance(flow, nn.Module) or isinstance(flow, Layer | Base):
        raise TypeError(f"flow must be a Flow(base, layers) or have its methods, not a {type(flow).__name__}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, not {generator!r}")
    if not callable(objective):
        raise TypeError(f"objective must be a function of flow, rows and context, such as NLL(), not {objective!r}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
    if isinstance(objective, NLL) and not rows:
        raise ValueError("NLL needs rows: give data, or an objective that draws its own, such as ReverseKL(log_prob)")


def _check_counts(epochs: Any, steps: Any, batch_size: Any, warmup: Any, patience: Any) -> None:
    whole("epochs", epochs, 0)
    whole("steps", 1 if steps is None else steps)
    whole("batch_size", batch_size)
    whole("warmup", warmup, 0)
    whole("patience", patience)


def _check_numbers(learning_rate: Any, weight_decay: Any, clip: Any, ema: Any, time_limit: Any) -> None:
    real("learning_rate", learning_rate, 0)
    for name, value in (("weight_decay", weight_decay), ("time_limit", 0 if time_limit is None else time_limit)):
        if real(name, value) < 0:
            raise ValueError(f"{name} must not be negative, as {value} is")
    if clip != math.inf:
        real("clip", clip, 0)
    share("ema", ema)


@contextmanager
def _lent(flow: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Lets modules that draw, and have no generator of their own, draw from this one inside the block."""
    borrowers = [module for module in flow.modules() if isinstance(module, Random) and module.generator is None]
    for module in borrowers:
        module.generator = generator
    try:
        yield
    finally:
        for module in borrowers:
            module.generator = None
