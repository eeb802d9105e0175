"""`fit`: the only training loop."""

import functools
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from flowlab.flow import CHUNK, Flow
from flowlab.objectives import NLL, Objective
from flowlab.runtime import Precision, compiled, keep_freed_memory
from flowlab.runtime import matmul_precision as at_precision

if TYPE_CHECKING:
    import pandas as pd

FIRST_CYCLE = 750  # steps of the first cycle of the learning rate under schedule="restarts"
CHECK_EVERY = 25  # steps between looks at whether steps were skipped
SKIPS_TO_ROLL_BACK = 5  # skipped steps in a row
ROLL_BACKS = 6  # halvings of the learning rate before training gives up


class TrainingError(ArithmeticError):
    """Training kept producing non-finite losses or gradients at ever smaller learning rates."""


@dataclass
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


def fit(
    flow: Flow,
    data: Tensor,
    context: Tensor | None = None,
    *,
    objective: Objective | None = None,
    validation: float | Tensor | tuple[Tensor, Tensor] = 0.1,
    sample_weight: Tensor | None = None,
    epochs: int = 200,
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

    AdamW with warm-up and a schedule, clipped gradients, and a moving average of the weights, which is what is validated and kept.
    A step whose loss or gradient is not finite is skipped; after several in a row the best weights come back and the learning rate halves.

    Args:
        flow: The flow; layers that learn from data (`ActNorm`, …) are initialised first.
        data: Rows (n, features), of the flow's floating-point type, on any device; batches are moved to the flow's.
        context: Context of each row (n, context_features).
        objective: Each row's loss; `NLL()` when None.
        validation: Share of rows held out, 0 for none, or the held-out rows themselves (with their context, as a tuple).
        sample_weight: Non-negative weight of each row (n,).
        epochs: Passes over the data at most.
        batch_size: Rows per step.
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
        generator: Source of the split, the batches and the dropout; torch's global generator when None.
        progress: Show a progress bar in terminals and notebooks.
        compile: Run steps through `torch.compile`: a step of a spline flow of a few features takes three quarters of the time, after up to
            a minute of compilation. Scoring gains nothing by it. Where compilation fails, for want of a C++ compiler say, a warning says so and steps run uncompiled.
        matmul_precision: For `torch.set_float32_matmul_precision` during the fit; torch's setting as it is when None. "high" and
            "medium" allow tensor cores on a GPU and bfloat16 units on a CPU to round more coarsely. On an AMD CPU, together with
            `compile`, "medium" saves another fifth at unchanged precision.

    Returns:
        The history, with the reason for stopping.

    Raises:
        ValueError: Shapes do not fit, or data hold a value that is not finite (the message names row and column).
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
    _check_rows("data", data, flow.features, data)
    if context is not None:
        _check_rows("context", context, flow.context_features, data)
    weight = torch.ones(len(data), dtype=torch.float64) if sample_weight is None else sample_weight.double().cpu()
    if weight.shape != (len(data),) or not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()):
        raise ValueError(
            f"sample_weight must be {len(data)} finite non-negative numbers, got shape {tuple(weight.shape)}"
        )
    if not float(weight.sum()) > 0:
        raise ValueError("sample_weight is zero everywhere: give some row a positive weight")

    device = next((t.device for t in (*flow.parameters(), *flow.buffers())), data.device)
    seed = int(torch.randint(2**62, (), generator=generator))
    generator = torch.Generator(device).manual_seed(seed)
    train, held_out = _split(data, context, weight, validation, generator)
    flow.eval()  # no dropout while layers learn from data
    train, held_out = train.to(device), None if held_out is None else held_out.to(device)
    flow.initialise(representative(train.x, train.weight, generator))
    head, train, held_out, offset = _precompute(flow, objective, train, held_out)
    trainer = _Trainer(head, objective, learning_rate, weight_decay, clip, ema, compile)

    random = [module for module in head.modules() if hasattr(module, "generator")]
    for module in random:
        module.generator = generator
    n = len(train.x)
    batch_size = max(min(batch_size, n), 1)
    per_epoch = n // batch_size
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
        step = 0
        for epoch in range(epochs):
            order = torch.randperm(n, generator=generator, device=device)
            for i in range(per_epoch):
                start, end = next(cycle for cycle in cycles if step < cycle[1])
                rate = plateau_scale * _schedule(schedule, step, warmup if start == 0 else 0, start, end)
                trainer.step(train.take(order[i * batch_size : (i + 1) * batch_size]), rate)
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
                if record["validation"] < best:
                    best, stale, history.best_step = record["validation"], 0, step
                    trainer.copy_averaged(best_weights)
                elif schedule == "plateau" and stale % max(patience // 3, 1) == 0:
                    plateau_scale /= 2
                if schedule == "restarts":
                    stop = step in ends and history.best_step <= start
                    history.reason = "the last cycle of the learning rate brought no improvement on validation"
                else:
                    stop = stale >= patience
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
            history.reason = f"all {epochs} epochs used"
            if math.isfinite(gained):
                history.reason += f"; the last tenth of them gained {gained:.3g} nats per row"
            if not history.converged:
                history.reason += ", and more epochs may gain more"
    finally:
        bar.close()
        lent.close()
        trainer.load(best_weights)
        trainer.release()
        for module in random:
            module.generator = None
        flow.eval()
    history.seconds = time.perf_counter() - started
    return history


@dataclass
class _Rows:
    """Rows with their context and weight, on one device; weights average one."""

    x: Tensor
    context: Tensor | None
    weight: Tensor

    def take(self, index: Tensor | slice) -> "_Rows":
        return _Rows(self.x[index], None if self.context is None else self.context[index], self.weight[index])

    def to(self, device: torch.device) -> "_Rows":
        context = None if self.context is None else self.context.to(device)
        return _Rows(self.x.to(device), context, self.weight.to(device))

    def chunks(self) -> "list[_Rows]":
        return [self.take(slice(i, i + CHUNK)) for i in range(0, len(self.x), CHUNK)]


class _Trainer:
    """The optimizer's step and the moving average of weights. Nothing here waits for the device in a step.

    While it lives, the parameters are views of a few flat tensors, one per kind, and so are their gradients: norm,
    clipping, optimizer and average are single operations, however many layers there are. `release` ends that.
    """

    def __init__(
        self,
        flow: Flow,
        objective: Objective,
        rate: float,
        weight_decay: float,
        clip: float,
        ema: float,
        compile: bool = False,
    ) -> None:
        self.flow, self.objective, self.rate = flow, objective, rate
        self.loss_of: Callable[..., Tensor] = functools.partial(objective, flow)
        if compile:
            self.loss_of = compiled(self.loss_of)  # all steps have the same number of rows
        self.weight_decay, self.clip, self.ema = weight_decay, clip, ema
        self.parameters = [p for p in flow.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("the flow has no trainable parameters")
        keep_freed_memory()
        kinds: dict[torch.dtype, list[nn.Parameter]] = {}
        for p in sorted(self.parameters, key=lambda p: p.ndim < 2):  # matrices, which decay, before the others
            kinds.setdefault(p.dtype, []).append(p)
        self.kinds = list(kinds.values())
        self.weights = [torch.cat([p.detach().flatten() for p in same]) for same in self.kinds]
        self.gradients = [torch.zeros_like(flat) for flat in self.weights]
        for flat, same in zip(self.weights, self.kinds, strict=True):
            for p, data in zip(same, flat.split([p.numel() for p in same]), strict=True):
                p.data, p.grad = data.view(p.shape), None
        self.average = self.copy()
        self._start()

    def _start(self) -> None:
        """A fresh optimizer; what is remembered of skipped steps starts anew."""
        device = self.weights[0].device
        self.adam: list[
            tuple[float, list[list[Tensor]]]
        ] = []  # of each part: its decay; weights, gradients, moments, steps
        for flat, gradient, same in zip(self.weights, self.gradients, self.kinds, strict=True):
            matrices = sum(p.numel() for p in same if p.ndim >= 2)
            moments = torch.zeros_like(flat), torch.zeros_like(flat)
            for part, decay in ((slice(matrices), self.weight_decay), (slice(matrices, None), 0.0)):
                if flat[part].numel():
                    steps = torch.zeros((), device=device)
                    lists = [[flat[part]], [gradient[part]], [moments[0][part]], [moments[1][part]], [], [steps]]
                    self.adam.append((decay, lists))
        self.steps = 0
        self.streak, self.worst_streak, self.skipped, self.loss, self.norm = torch.zeros(5, device=device).unbind()

    def step(self, batch: _Rows, rate: float) -> None:
        if not self.flow.training:
            self.flow.train()
        losses = self.loss_of(batch.x, batch.context)
        loss = (losses * batch.weight.to(losses.dtype)).mean()
        loss.backward()
        self.gather()
        norm = self.gradient_norm()
        bad = (~(torch.isfinite(norm) & torch.isfinite(loss))).float()
        self._adam(self.rate * rate, (norm.float() / self.clip).clamp(min=1.0), bad)
        self.steps += 1
        with torch.no_grad():
            decay = min(self.ema, self.steps / (10 + self.steps))
            torch._foreach_lerp_(self.average, self.weights, 1 - decay)
            self.streak = (self.streak + 1) * bad
            self.worst_streak = torch.maximum(self.worst_streak, self.streak)
            self.skipped = self.skipped + bad
            self.loss = torch.where(bad > 0, self.loss, loss.detach().float())
            self.norm = torch.where(bad > 0, self.norm, norm.float())

    @torch.no_grad()
    def _adam(self, rate: float, divisor: Tensor, bad: Tensor) -> None:
        """A step of AdamW down the gradients divided by `divisor`; none where `bad` is 1.

        It calls the kernel behind `torch.optim.AdamW(fused=True)`, whose own preparations take longer than a small flow's step.
        """
        options: Any = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False, "maximize": False}
        for decay, lists in self.adam:
            steps = lists[-1][0]
            steps += 1 - bad
            options |= {"lr": rate, "weight_decay": decay, "grad_scale": divisor, "found_inf": bad}
            torch._fused_adamw_(*lists, **options)

    @torch.no_grad()
    def gather(self) -> None:
        """Moves the parameters' gradients into the flat ones."""
        for flat, same in zip(self.gradients, self.kinds, strict=True):
            pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in same]
            torch.cat([piece.reshape(-1) for piece in pieces], out=flat)
            for p in same:
                p.grad = None

    def gradient_norm(self) -> Tensor:
        """The norm of the gradient, also where its square would overflow in its own precision."""
        if self.gradients[0].is_cpu:  # elsewhere looking at the result would mean waiting
            norm = torch.stack([torch.linalg.vector_norm(gradient).double() for gradient in self.gradients]).norm()
            if math.isfinite(norm.item()):
                return norm
        return torch.stack([torch.linalg.vector_norm(flat, dtype=torch.float64) for flat in self.gradients]).norm()

    def longest_streak(self) -> int:
        return int(self.worst_streak)

    @torch.no_grad()
    def evaluate(self, train: _Rows, held_out: _Rows | None) -> dict[str, float]:
        """Mean loss of held-out rows under the averaged weights, with its standard error, and of a sample of training rows."""
        self.flow.eval()
        current = self.copy()
        self.load(self.average)
        train_loss, train_error = self._mean_loss(train.take(slice(0, CHUNK)))
        loss, error = (train_loss, train_error) if held_out is None else self._mean_loss(held_out)
        self.load(current)
        return {
            "train": train_loss,
            "validation": loss,
            "standard_error": error,
            "gradient_norm": float(self.norm),
            "skipped": float(self.skipped),
        }

    def _mean_loss(self, rows: _Rows) -> tuple[float, float]:
        losses = torch.cat([self.objective(self.flow, c.x, c.context).double() for c in rows.chunks()])
        weight = rows.weight.to(losses)
        share = weight / weight.sum()
        # A row without weight says nothing, not even by a loss that is infinite.
        losses = torch.where(share > 0, losses, 0)
        mean = (share * losses).sum()
        return float(mean), float((share.square() * (losses - mean).square()).sum().sqrt())

    def copy(self) -> list[Tensor]:
        """The weights now."""
        return [flat.detach().clone() for flat in self.weights]

    @torch.no_grad()
    def load(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(self.weights, weights)

    @torch.no_grad()
    def copy_averaged(self, into: list[Tensor]) -> None:
        torch._foreach_copy_(into, self.average)

    def release(self) -> None:
        """Gives every parameter memory of its own again."""
        for p in self.parameters:
            p.data, p.grad = p.detach().clone(), None

    @torch.no_grad()
    def restart(self, weights: list[Tensor]) -> None:
        """Continue from given weights at half the learning rate."""
        self.load(weights)
        torch._foreach_copy_(self.average, weights)
        self.rate /= 2
        self._start()


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


def _roll_back(trainer: _Trainer, best: list[Tensor], history: History, train: _Rows, flow: Flow) -> None:
    history.roll_backs += 1
    if history.roll_backs > ROLL_BACKS:
        row, column = worst_cell(train.x)
        raise TrainingError(
            f"loss or gradient stayed non-finite through {ROLL_BACKS} halvings of the learning rate. The most extreme value is "
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


def _check_rows(name: str, x: Tensor, width: int, data: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != width or len(x) != len(data) or len(x) < 1:
        raise ValueError(f"{name} must have shape ({len(data) or 'at least 1'}, {width}), not {tuple(x.shape)}")
    bad = ~torch.isfinite(x)
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(f"{name} has {int(bad.sum())} non-finite values, the first in row {row}, column {column}")


def _split(
    x: Tensor,
    context: Tensor | None,
    weight: Tensor,
    validation: float | Tensor | tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> tuple[_Rows, _Rows | None]:
    weight = weight / weight.mean()
    rows = _Rows(x, context, weight)
    if not isinstance(validation, float | int):
        held_x, held_context = validation if isinstance(validation, tuple) else (validation, None)
        _check_rows("validation", held_x, x.shape[1], held_x)
        return rows, _Rows(held_x, held_context, torch.ones(len(held_x), dtype=weight.dtype))
    if not 0 <= validation < 1:
        raise ValueError(f"validation must be a share from 0 to below 1, or rows, not {validation}")
    count = round(validation * len(x))
    if count == 0 or len(x) < 2:
        return rows, None
    order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
    train, held_out = rows.take(order[count:]), rows.take(order[:count])
    if not float(held_out.weight.sum()) > 0 or not float(train.weight.sum()) > 0:
        return rows, None
    train.weight = train.weight / train.weight.mean()
    return train, held_out


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
    flow: Flow, objective: Objective, train: _Rows, held_out: _Rows | None
) -> tuple[Flow, _Rows, _Rows | None, tuple[float, float]]:
    """Map the rows through the fixed layers on the data side once, instead of in every step.

    Returns the flow that remains (sharing the rest of the layers), its rows, and what to add to its losses.
    """
    chain = list(flow) if isinstance(flow, Flow) else []
    fixed = 0
    while fixed < len(chain) and _is_fixed(chain[-1 - fixed]):
        fixed += 1
    if not isinstance(objective, NLL) or fixed == 0:
        return flow, train, held_out, (0.0, 0.0)
    preprocessing = Flow(flow.base, chain[len(chain) - fixed :])

    def mapped(rows: _Rows) -> tuple[_Rows, float]:
        parts = [preprocessing.inverse(chunk.x) for chunk in rows.chunks()]
        log_det = torch.cat([part[1].double() for part in parts])
        weight = rows.weight.to(log_det)
        offset = -float((weight * torch.where(weight > 0, log_det, 0)).sum() / weight.sum())
        return _Rows(torch.cat([part[0] for part in parts]), rows.context, rows.weight), offset

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
