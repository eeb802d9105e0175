"""DP-SGD: training whose weights say next to nothing about any one row. It needs Opacus, the extra `private`.

Abadi et al. 2016, "Deep learning with differential privacy": each step takes each row with a fixed probability
(Poisson sampling), clips each row's gradient to a norm C, and adds normal noise of standard deviation σ C to their sum.
Clipping, noise and the accounting of what the steps spend are Opacus' own. The gradient of each row is torch.func's, as
Opacus asks of models that bring their own: its hooks know layers of torch.nn, and our networks are products of all
columns' weights at once. Whatever is done with noisy gradients (Adam, schedules, averages) spends nothing.

Neighbouring tables differ in the presence of one row. The number of rows counts as public.
"""

import math
import secrets
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from flowlab.runtime import progress_bar

AT_ONCE = 128  # rows whose gradients are held in memory together
AVERAGED = 0.5  # share of the steps, the last ones, whose weights are averaged

LEAST_NOISE, MOST_NOISE = 0.1, 1e6  # noise multipliers that are tried

Batch = tuple[Tensor, ...]  # each with the rows first
Release = tuple[float, float, int]  # noise multiplier, probability of each row to be in it, how many of them


@dataclass(frozen=True)
class Privacy:
    """What a private fit spends, and how.

    Attributes:
        epsilon: What was asked for.
        spent: ε as the accountant has it: at most `epsilon`.
        delta: δ.
        noise_multiplier: σ, the noise's standard deviation in units of the clipping norm.
        clipping_norm: C, the largest norm of a row's gradient.
        sample_rate: Probability of each row to be in a step.
        steps: Their number.
        counts_noise: The noise's standard deviation of the rows' counts, in units of what one row changes; None for
            no counts.
    """

    epsilon: float
    spent: float
    delta: float
    noise_multiplier: float
    clipping_norm: float
    sample_rate: float
    steps: int
    counts_noise: float | None = None

    def __str__(self) -> str:
        counts = "" if self.counts_noise is None else f"; counts of rows with noise multiplier {self.counts_noise:.3f}"
        return (
            f"ε = {self.spent:.3f} (asked: {self.epsilon:g}) at δ = {self.delta:g}, by Opacus' RDP accountant; noise "
            f"multiplier {self.noise_multiplier:.3f}, clipping norm {self.clipping_norm:g}, {self.steps} steps on rows "
            f"taken with probability {self.sample_rate:.4g}{counts}"
        )


def planned(
    epsilon: float, delta: float, sample_rate: float, steps: int, clipping_norm: float, counted: float = 0.0
) -> Privacy:
    """The plan of a fit: the least noise with which so many steps stay within a budget.

    Args:
        epsilon: ε.
        delta: δ.
        sample_rate: Probability of each row to be in a step.
        steps: Their number.
        clipping_norm: The largest norm of a row's gradient.
        counted: The part of all Rényi divergence that one release of counts may take; 0 for none.

    Raises:
        ImportError: Opacus is not installed.
        ValueError: No noise suffices.
    """
    counts: list[Release] = []
    if counted:  # a Gaussian release's divergence goes with the inverse square of its noise
        counts = [(least_noise(epsilon, delta, 1.0, 1) / math.sqrt(counted), 1.0, 1)]
    noise = least_noise(epsilon, delta, sample_rate, steps, counts)
    spent = _spent([*counts, (noise, sample_rate, steps)], delta)
    counts_noise = counts[0][0] if counts else None
    return Privacy(epsilon, spent, delta, noise, clipping_norm, sample_rate, steps, counts_noise)


def least_noise(epsilon: float, delta: float, sample_rate: float, steps: int, before: Sequence[Release] = ()) -> float:
    """The smallest noise multiplier, to a percent, with which so many releases stay within a budget.

    Opacus' own search knows releases of one kind alone; its accountant, which says what they spend, knows several.

    Args:
        epsilon: ε.
        delta: δ.
        sample_rate: Probability of each row to be in a release.
        steps: Number of releases.
        before: What is released beside.

    Raises:
        ImportError: Opacus is not installed.
        ValueError: No noise suffices.
    """

    def suffices(noise: float) -> bool:
        return _spent([*before, (noise, sample_rate, steps)], delta) <= epsilon

    high = LEAST_NOISE
    while not suffices(high):
        high *= 2
        if high > MOST_NOISE:
            raise ValueError(
                f"privacy: the accountant finds no noise for epsilon {epsilon:g} at delta {delta:g}: take a larger "
                "epsilon"
            )
    low = high / 2
    while high > 1.01 * low and high > LEAST_NOISE:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def _spent(releases: Sequence[Release], delta: float) -> float:
    """ε of all releases together."""
    _, accountants = _opacus()
    accountant = accountants.create_accountant("rdp")
    accountant.history = list(releases)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the")  # of noise that is tried on the way
        return float(accountant.get_epsilon(delta))


def row_gradients(loss: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The gradient of each row's loss, (rows, *shape) of each parameter by name; not clipped.

    Args:
        loss: A module whose forward takes one row (the batch's tensors without their first axis), and returns a scalar.
        batch: The rows.
    """
    parameters = {name: p.detach() for name, p in loss.named_parameters() if p.requires_grad}

    def of_row(values: dict[str, Tensor], *row: Tensor) -> Tensor:
        return functional_call(loss, values, row)

    each = vmap(grad(of_row), in_dims=(None, *[0] * len(batch)))(parameters, *batch)
    # A row without a finite gradient has none: of NaN, no factor would make a norm of C.
    finite = torch.stack([g.flatten(1).isfinite().all(1) for g in each.values()]).all(0)
    return {name: torch.where(finite.view(-1, *[1] * (g.ndim - 1)), g, 0) for name, g in each.items()}


def noisy_gradients(optimizer: Any, loss: nn.Module, batches: Sequence[Batch]) -> None:
    """Give the parameters of an Opacus optimizer the sum of rows' clipped gradients with noise, per expected row.

    Args:
        optimizer: The `DPOptimizer` of the loss's parameters.
        loss: As for `row_gradients`.
        batches: The rows of one step, in parts that fit memory; without any, the gradient is noise.
    """
    parameters = {name: p for name, p in loss.named_parameters() if p.requires_grad}
    optimizer.zero_grad()
    gradients = (row_gradients(loss, batch) for batch in batches)
    nothing = {name: p.new_zeros(0, *p.shape) for name, p in parameters.items()}
    for i, each in enumerate(gradients if batches else [nothing]):
        for name, p in parameters.items():
            p.grad_sample = each[name]  # type: ignore[attr-defined]
        optimizer.signal_skip_step(i < len(batches) - 1)  # all parts but the last are only added up
        optimizer.pre_step()


def fit_privately(
    loss: nn.Module,
    rows: int,
    taken: Callable[[Tensor, torch.Generator], Batch],
    plan: Privacy,
    learning_rate: float,
    progress: bool = False,
    noise: torch.Generator | None = None,
) -> None:
    """Train a module's parameters by DP-SGD, in place: a fixed number of steps, whatever the losses are.

    Args:
        loss: As for `row_gradients`; its parameters that require a gradient are trained.
        rows: Number of rows.
        taken: Makes the batch of rows of some indices (m,); it may draw, but look at no other row.
        plan: The budget.
        learning_rate: Of Adam's first step; it falls to zero.
        progress: Show a bar.
        noise: Source of noise and batches: whoever knows it can take the noise away. The operating system's when None,
            so that no seed, kept or guessed, can.
    """
    optimizers, _ = _opacus()
    noise = system_generator() if noise is None else noise
    parameters = {name: p for name, p in loss.named_parameters() if p.requires_grad}
    optimizer = optimizers.DPOptimizer(
        torch.optim.Adam(parameters.values(), lr=learning_rate),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.clipping_norm,
        expected_batch_size=plan.sample_rate * rows,
        generator=noise,
        secure_mode=True,  # sums of several draws: the digits of a single one would give it away
    )
    averaged = math.ceil(AVERAGED * plan.steps)
    average = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with progress_bar(plan.steps, progress) as bar:
        for step in range(plan.steps):
            chosen = torch.nonzero(torch.rand(rows, generator=noise) < plan.sample_rate).flatten()
            parts = chosen.split(AT_ONCE) if len(chosen) else ()
            noisy_gradients(optimizer, loss, [taken(part, noise) for part in parts])
            optimizer.original_optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * (1 - (step + 1) / plan.steps)
            if step >= plan.steps - averaged:
                for name, p in parameters.items():
                    average[name] += p.detach() / averaged
            bar.update()
    for name, p in parameters.items():
        p.data.copy_(average[name])
        del p.grad_sample, p.summed_grad  # type: ignore[attr-defined]
        p.grad = None


def system_generator() -> torch.Generator:
    """A generator that the operating system seeds: no file and no argument has its seed."""
    return torch.Generator().manual_seed(secrets.randbits(63))


def _opacus() -> tuple[Any, Any]:
    """Opacus' optimizers and accountants.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import opacus.accountants.utils
        import opacus.optimizers
    except ImportError as error:
        raise ImportError("private training needs Opacus: pip install 'flowlab[private]'") from error
    return opacus.optimizers, opacus.accountants
