"""`fit`: the only training loop."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from flowlab.arguments import floating, real, share, whole
from flowlab.bases import Base
from flowlab.flow import CHUNK, Flow
from flowlab.layers.layer import Layer
from flowlab.mixture import FlowMixture
from flowlab.networks import Random
from flowlab.runtime import Precision
from flowlab.runtime import matmul_precision as at_precision
from flowlab.training.objectives import NLL, Drawing, Objective
from flowlab.training.trainer import Rows, Trainer

if TYPE_CHECKING:
    import pandas as pd

FIRST_CYCLE = 750  # steps of the first cycle of the learning rate under schedule="restarts"
CHECK_EVERY = 25  # steps between looks at whether steps were skipped
SKIPS_TO_ROLL_BACK = 5  # skipped steps in a row
SCHEDULES = ("restarts", "cosine", "plateau", "constant")
ROLL_BACKS = 6  # halvings of the learning rate before training gives up


class TrainingError(ArithmeticError):
    """Training kept producing non-finite losses or gradients at ever smaller learning rates."""


@dataclass(repr=False)
class History:
    """What happened in a fit.

    Attributes:
        records: One dict per evaluation: step, epoch, learning_rate, train and validation loss (nats per row), its standard error,
            gradient_norm, skipped (steps so far that were not finite), seconds (wall time so far).
        converged: Whether more training is not expected to help.
        reason: Why training stopped, in plain words.
        best_step: The step whose weights were kept.
        roll_backs: How often the best weights came back after non-finite steps.
        seconds: Wall time.
    """

    records: list[dict[str, float]] = field(default_factory=list)
    converged: bool = False
    reason: str = ""
    best_step: int = 0
    roll_backs: int = 0
    seconds: float = 0.0

    @property
    def frame(self) -> "pd.DataFrame":
        """The records as a DataFrame."""
        import pandas as pd

        return pd.DataFrame.from_records(self.records)

    @property
    def best(self) -> float:
        """The lowest validation loss (training loss where there was no validation), nats per row."""
        return min((r["validation"] for r in self.records), default=math.nan)

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        count = len(self.records)
        return (
            f"History({count} evaluation{'s' * (count != 1)} in {self.seconds:.1f} s, best {self.best:.4g} nats "
            f"per row at step {self.best_step}, {state}: {self.reason})"
        )


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
) -> History:
    """Train a flow in place on rows of data, and leave it with the weights that did best on validation rows.

    Objectives that draw from the flow, as variational ones do, need no rows: without `data` training takes `steps` steps and keeps
    the last weights, since losses of different draws do not compare. With a context alone, batches are of its rows.

    AdamW with warm-up and a schedule, clipped gradients, and a moving average of the weights, which is what is validated and kept.
    A step whose loss or gradient is not finite is skipped; after several in a row the best weights come back and the learning rate halves.

    Args:
        flow: The flow, or a mixture of flows; layers that learn from data (`ActNorm`, …) are initialised first.
        data: Rows (n, features), of the flow's floating-point type, on any device; batches are moved to the flow's. None for an
            objective that draws its own.
        context: Context of each row (n, context_features).
        objective: Each row's loss; `NLL()` when None. Of one that draws (`objectives.Drawing`) a copy is used, and it
            stays as it is.
        validation: Share of rows held out, 0 for none, or the held-out rows themselves (with their context, as a tuple).
        sample_weight: Non-negative weight of each row (n,).
        epochs: Passes over the data at most, each of all its rows.
        steps: Steps, in place of epochs, where there is neither data nor context.
        batch_size: Rows per step at most: every pass is divided into as few batches as that allows, of equal size to
            within one row.
        learning_rate: Peak learning rate.
        schedule: "restarts" decays to zero in cycles that double in length, the first of 750 steps, until one of them brings no
            improvement (Loshchilov & Hutter 2017, "SGDR"): a good model early, and a better one for as long as it pays.
            "cosine" decays once over all epochs, "plateau" halves when validation stalls.
        warmup: Steps over which the learning rate rises, at most a tenth of all.
        weight_decay: Decay of weight matrices, not of biases and scales.
        clip: Largest gradient norm.
        ema: Decay of the moving average of the weights per step; 0 turns it off.
        patience: Evaluations without improvement after which training stops, under other schedules than "restarts". There is one per epoch,
            or per 25 steps where epochs are shorter.
        time_limit: Seconds after which training stops at the next evaluation; the result then depends on the machine. None for no limit.
        generator: Source of the split, the batches, the dropout and what the objective draws; torch's global generator
            when None.
        progress: Show a progress bar in terminals and notebooks.
        compile: Run steps through `torch.compile`: a step of a spline flow of a few features takes three quarters of the time, after up to
            a minute of compilation, and as long again where the batches are not all equal. Scoring gains nothing by it.
            Where compilation fails, for want of a C++ compiler say, a warning says so and steps run uncompiled.
        matmul_precision: For `torch.set_float32_matmul_precision` during the fit; torch's setting as it is when None. "high" and
            "medium" allow tensor cores on a GPU and bfloat16 units on a CPU to round more coarsely. On an AMD CPU, together with
            `compile`, "medium" saves another fifth at unchanged precision.

    Returns:
        The history, with the reason for stopping.

    Raises:
        TypeError: Rows are no tensors; the message names the argument.
        ValueError: A number, a shape or a floating-point type does not fit, neither rows nor steps are given, or data
            hold a value that is not finite (the message names row and column).
        TrainingError: Training stayed non-finite; the message names the worst row and column.

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
    rows = _rows(flow, data, context, sample_weight)
    device = next((t.device for t in (*flow.parameters(), *flow.buffers())), rows.weight.device)
    seed = int(torch.randint(2**62, (), generator=generator))
    generator = torch.Generator(device).manual_seed(seed)
    train, held_out = _split(flow, rows, validation if steps is None else 0.0, generator)
    flow.train(False)  # no dropout while layers learn from data
    train, held_out = train.to(device), None if held_out is None else held_out.to(device)
    if train.x is not None:
        flow.initialise(representative(train.x, train.weight, generator))
    head, train, held_out, offset = _precompute(flow, objective, train, held_out)
    if isinstance(objective, Drawing):
        objective = objective.for_fit(generator)
    trainer = Trainer(head, objective, learning_rate, weight_decay, clip, ema, compile)

    n = len(train.weight)
    per_epoch, epochs = math.ceil(n / batch_size), epochs if steps is None else steps
    total = per_epoch * epochs
    every = max(per_epoch, min(CHECK_EVERY, total))
    cycles = _cycles(FIRST_CYCLE, total) if schedule == "restarts" else [(0, total)]
    ends = {end for _, end in cycles}
    warmup = min(warmup, cycles[0][1] // 10)
    history = History()
    plateau_scale, stale, best, stop = 1.0, 0, math.inf, False
    best_weights = trainer.copy()
    seen = math.inf  # best validation before the last tenth of training
    bar = progress_bar(total, progress)
    lent = ExitStack()
    try:
        lent.enter_context(at_precision(matmul_precision))
        lent.enter_context(_lent(head, generator))
        step = 0
        for epoch in range(epochs):
            order = torch.randperm(n, generator=generator, device=device)
            for batch in order.tensor_split(per_epoch):
                start, end = next(cycle for cycle in cycles if step < cycle[1])
                rate = plateau_scale * _schedule(schedule, step, warmup if start == 0 else 0, start, end)
                trainer.step(train.take(batch), rate)
                step += 1
                bar.update()
                evaluate = step % every == 0 or step in ends
                if not evaluate and step % CHECK_EVERY:
                    continue
                late = time_limit is not None and time.perf_counter() - started >= time_limit
                if trainer.longest_streak() >= SKIPS_TO_ROLL_BACK:
                    _roll_back(trainer, best_weights, history, train, flow)
                if not (evaluate or late):
                    continue
                record = trainer.evaluate(train, held_out)
                record = {"step": step, "epoch": epoch + 1, "learning_rate": rate * trainer.rate, **record}
                record["seconds"] = time.perf_counter() - started
                record["train"] += offset[0]
                record["validation"] += offset[1]
                history.records.append(record)
                if not math.isfinite(record["validation"]):
                    _roll_back(trainer, best_weights, history, train, flow)
                    continue
                bar.set_postfix_str(f"loss {record['train']:.3f}, validation {record['validation']:.3f} nats")
                if step <= 0.9 * total:
                    seen = min(best, record["validation"])
                stale += 1
                if record["validation"] < best or steps is not None:
                    best, stale, history.best_step = record["validation"], 0, step
                    trainer.copy_averaged(best_weights)
                elif schedule == "plateau" and stale % max(patience // 3, 1) == 0:
                    plateau_scale /= 2
                if schedule == "restarts":
                    stop = step in ends and history.best_step <= start
                    history.reason = "the last cycle of the learning rate brought no improvement on validation"
                else:
                    stop = stale >= patience and steps is None
                    history.reason = f"no improvement on validation in {patience} evaluations"
                history.converged = stop
                if late and not stop:
                    stop, history.reason = True, f"the time limit of {time_limit:.3g} s"
                if stop:
                    break
            if stop:
                break
        else:
            gained, error = seen - best, history.records[-1]["standard_error"] if history.records else 0.0
            history.converged = gained < error / 2
            history.reason = f"all {epochs} {'epochs' if steps is None else 'steps'} used"
            if math.isfinite(gained):
                history.reason += f"; the last tenth of them gained {gained:.3g} nats per row"
            if not history.converged:
                history.reason += ", and more epochs may gain more"
    finally:
        bar.close()
        lent.close()
        trainer.load(best_weights)
        trainer.release()
        flow.train(False)
    history.seconds = time.perf_counter() - started
    return history


def _schedule(schedule: str, step: int, warmup: int, start: int, end: int) -> float:
    """The share of the peak learning rate, in the cycle from `start` to `end`."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule in ("cosine", "restarts"):
        start += warmup
        return (1 + math.cos(math.pi * (step - start) / max(end - start, 1))) / 2
    return 1.0


def _cycles(first: int, total: int) -> list[tuple[int, int]]:
    """Start and end of cycles that double in length; a rest too short for another one lengthens the last."""
    cycles, start, length = [], 0, first
    while start + 3 * length <= total:
        cycles.append((start, start + length))
        start, length = start + length, 2 * length
    return [*cycles, (start, total)]


def _roll_back(trainer: Trainer, best: list[Tensor], history: History, train: Rows, flow: Flow) -> None:
    history.roll_backs += 1
    if history.roll_backs > ROLL_BACKS:
        failure = f"loss or gradient stayed non-finite through {ROLL_BACKS} halvings of the learning rate"
        if train.x is None:
            raise TrainingError(f"{failure}. Lower learning_rate, or start closer to what is to be learnt.")
        row, column = worst_cell(train.x)
        raise TrainingError(
            f"{failure}. The most extreme value is "
            f"{float(train.x[row, column]):.4g} in column {column}, training row {row}, after preprocessing. Put a flowlab.layers.Marginal "
            "in front (FlowDensity does), scale the data, or lower learning_rate."
        )
    trainer.restart(best)


def worst_cell(x: Tensor) -> tuple[int, int]:
    """Row and column of the value furthest from its column's median, in units of the column's spread."""
    x = x.double()
    deviation = (x - x.median(0).values).abs()
    spread = deviation.median(0).values.clamp(min=1e-300)
    worst = int((deviation / spread).nan_to_num(nan=math.inf).argmax())
    return worst // x.shape[1], worst % x.shape[1]


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


def _checked(name: str, x: Tensor, width: int, count: int) -> Tensor:
    """Rows, looked at, and as constants."""
    if x.ndim != 2 or x.shape[1] != width or len(x) != count or count < 1:
        rows = "n" if x.ndim != 2 else count or "at least 1"
        raise ValueError(f"{name} must have shape ({rows}, {width}), not {tuple(x.shape)}")
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(f"{name} has {int(bad.sum())} non-finite values, the first in row {row}, column {column}")
    if x.grad_fn is not None:
        warnings.warn(f"{name} has a gradient, but fit trains the flow alone: it counts as constant", stacklevel=5)
    return x.detach()


def _pair(flow: Any, names: tuple[str, str], data: Any, context: Any) -> tuple[int, Tensor | None, Tensor | None]:
    """The number of rows, and data and context as checked tensors, at least one of them."""
    known = isinstance(flow, Flow | FlowMixture)
    for name, value in zip(names, (data, context), strict=True):
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}; use torch.as_tensor")
    given = context if data is None else data
    count = len(given) if given.ndim else 0
    if data is not None:
        floating(names[0], data, flow.dtype if known else None)
        data = _checked(names[0], data, flow.features, count)
    if context is not None:
        if known and not flow.context_features:
            raise ValueError(f"{names[1]} is given, but this flow takes none: build it with context_features=…")
        context = _checked(names[1], context, flow.context_features, count)
    elif known and flow.context_features:
        raise ValueError(f"this flow needs {names[1]} of shape ({count}, {flow.context_features}), one for each row")
    return count, data, context


def _rows(flow: Any, data: Any, context: Any, sample_weight: Any) -> Rows:
    """The rows to train on, checked; where there is neither data nor context, one that stands for a batch of draws."""
    count = 1
    if data is not None or context is not None:
        count, data, context = _pair(flow, ("data", "context"), data, context)
    if sample_weight is None:
        sample_weight = torch.ones(count)
    elif not isinstance(sample_weight, Tensor):
        kind = type(sample_weight).__name__
        raise TypeError(f"sample_weight must be a torch.Tensor, not {kind}; use torch.as_tensor")
    weight = sample_weight.detach().double().cpu()
    if weight.shape != (count,) or not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()):
        raise ValueError(f"sample_weight must be {count} finite non-negative numbers, got shape {tuple(weight.shape)}")
    if not 0 < float(weight.sum()) < math.inf:
        raise ValueError("sample_weight is zero everywhere, or its sum overflows: give weights that average about one")
    return Rows(data, context, weight / weight.mean())


def _split(flow: Any, rows: Rows, validation: Any, generator: torch.Generator) -> tuple[Rows, Rows | None]:
    if not isinstance(validation, Real):
        if rows.x is None:
            raise ValueError("without data, validation must be a share of the contexts")
        pair = validation if isinstance(validation, tuple) else (validation, None)
        if len(pair) != 2 or pair[0] is None:
            raise ValueError(
                f"validation must be a share, rows, or a pair of rows and their context, not {validation!r}"
            )
        count, held_x, held_context = _pair(flow, ("validation", "validation context"), *pair)
        return rows, Rows(held_x, held_context, torch.ones(count, dtype=rows.weight.dtype))
    validation = float(validation)
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a share from 0 to below 1, or rows, not {validation}")
    n = len(rows.weight)
    count = round(validation * n)
    if n > 1 and count:
        order = torch.randperm(n, generator=generator, device=generator.device).to(rows.weight.device)
        train, held_out = rows.take(order[count:]), rows.take(order[:count])
        if float(held_out.weight.sum()) > 0 and float(train.weight.sum()) > 0:
            train.weight = train.weight / train.weight.mean()
            return train, held_out
    if validation:
        warnings.warn(
            f"nothing is held out: a share of {validation} of {n} row{'s' * (n > 1)} is no row that counts. The "
            "losses are those of the rows trained on, and nothing says when to stop",
            stacklevel=3,
        )
    return rows, None


def representative(x: Tensor, weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Rows for layers that learn from data: where weights differ, a row comes as often as its weight says."""
    if bool((weight == weight[0]).all()):
        return x[: 50 * CHUNK]
    count = min(len(x), 50 * CHUNK)
    start = torch.rand((), generator=generator, device=weight.device, dtype=weight.dtype)
    # Systematic sampling: the number of copies is the expected one, to within one.
    levels = (torch.arange(count).to(weight) + start) / count
    share = weight.cumsum(0) / weight.sum()
    return x[torch.searchsorted(share, levels).clamp(max=len(share) - 1)]


@torch.no_grad()
def _precompute(
    flow: Flow, objective: Objective, train: Rows, held_out: Rows | None
) -> tuple[Flow, Rows, Rows | None, tuple[float, float]]:
    """Map the rows through the fixed layers on the data side once, instead of in every step.

    Returns the flow that remains (sharing the rest of the layers), its rows, and what to add to its losses.
    """
    chain = list(flow) if isinstance(flow, Flow) else []
    fixed = 0
    while fixed < len(chain) and _is_fixed(chain[-1 - fixed]):
        fixed += 1
    if not isinstance(objective, NLL) or fixed == 0 or train.x is None:
        return flow, train, held_out, (0.0, 0.0)
    preprocessing = Flow(flow.base, chain[len(chain) - fixed :])

    def mapped(rows: Rows) -> tuple[Rows, float]:
        parts = [preprocessing.inverse(chunk.x) for chunk in rows.chunks()]  # type: ignore[arg-type]
        log_det = torch.cat([part[1].double() for part in parts])
        weight = rows.weight.to(log_det)
        offset = -float((weight * torch.where(weight > 0, log_det, 0)).sum() / weight.sum())
        return Rows(torch.cat([part[0] for part in parts]), rows.context, rows.weight), offset

    train, train_offset = mapped(train)
    held_out, offset = (None, train_offset) if held_out is None else mapped(held_out)
    return Flow(flow.base, chain[: len(chain) - fixed]), train, held_out, (train_offset, offset)


def _is_fixed(layer: nn.Module) -> bool:
    return not any(p.requires_grad for p in layer.parameters()) and not getattr(layer, "context_features", 0)


def progress_bar(total: int, progress: bool, what: str = "fit", unit: str = "step") -> Any:
    """A bar in terminals and notebooks, where one is wanted."""
    from tqdm.auto import tqdm

    make: Callable[..., Any] = tqdm
    # None shows a bar in terminals and notebooks, and nothing where output goes to a file.
    return make(total=total, disable=None if progress else True, desc=what, unit=unit, leave=False)
