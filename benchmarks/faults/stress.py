"""Numerical stress: every preset in both floating-point types, trained on what breaks flows, asked about rows far out.

Run it alone with `python -m benchmarks.faults.stress --scale 0.01`.
"""

import argparse
import copy
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import flowlab
from benchmarks.common import table
from flowlab import Flow, presets
from flowlab.training.history import TrainingError

FEATURES, ROWS, STEPS, POINTS = 3, 2_000, 1_000, 1_000_000
TYPES = (torch.float32, torch.float64)
FAR = (1e3, 1e5, 1e10, 1e15, 1e18, 1e20, 1e30, 1e38, 1e100, 1e150, 1e200, 1e300)


def _autoregressive(preset: Callable[..., Flow]) -> Callable[..., Flow]:
    return lambda features, **options: preset(features, autoregressive=True, **options)


PRESETS: dict[str, Callable[..., Flow]] = {
    **{name: getattr(presets, name) for name in presets.__all__},
    "nsf, autoregressive": _autoregressive(presets.nsf),
    "circular_nsf, autoregressive": _autoregressive(presets.circular_nsf),
}


@dataclass(frozen=True)
class Situation:
    """What a flow is trained on, and how.

    Attributes:
        name: Its name in tables.
        scale: Of the rows.
        cauchy: Whether the columns are Cauchy's; normal ones, correlated, otherwise.
        learning_rate: Of the fit.
        autocast: Whether the fit runs under `torch.autocast` in bfloat16.
        trips: Half-widths of the points of round trips after it, zero for normal ones.
    """

    name: str
    scale: float = 1.0
    cauchy: bool = False
    learning_rate: float = 1e-2
    autocast: bool = False
    trips: tuple[float, ...] = ()

    def rows(self, dtype: torch.dtype, circular: bool, count: int = ROWS) -> Tensor:
        """Rows (count, features); for flows of angles within [-π, π)."""
        generator = torch.Generator().manual_seed(1)
        normal = torch.empty(2, count, FEATURES, dtype=torch.float64).normal_(generator=generator)
        x = normal[0] / normal[1] if self.cauchy else normal[0] + 0.5 * normal[0].roll(1, 1)
        x = self.scale * x
        return (torch.remainder(x + math.pi, 2 * math.pi) - math.pi if circular else x).to(dtype)


SITUATIONS = (
    Situation("Cauchy columns", cauchy=True),
    Situation("scale 1e-20", scale=1e-20),
    Situation("scale 1e20", scale=1e20),
    Situation("learning rate 1", learning_rate=1.0, trips=(0.0,)),
    Situation("bfloat16 autocast", autocast=True, trips=(0.0, 10.0, 1e5)),
)


@dataclass
class Outcome:
    """What a flow was like after training.

    Attributes:
        training: "converged" and the like, or the error that `fit` raised.
        lost: Parameters and buffers that are not finite.
        rows: Rows whose density was asked for.
        faults: How often each fault came up, by its description.
    """

    training: str
    lost: int = 0
    rows: int = 0
    faults: Counter[str] = field(default_factory=Counter)


def trained(name: str, dtype: torch.dtype, situation: Situation, steps: int, **options: Any) -> tuple[Flow, str]:
    """A preset after a fit, and how the fit ended."""
    flow = PRESETS[name](FEATURES, generator=torch.Generator().manual_seed(0), **options).to(dtype)
    x = situation.rows(dtype, circular="circular" in name)
    per_epoch = math.ceil(0.9 * len(x) / 192)
    epochs = max(1, math.ceil(steps / per_epoch))
    cast = torch.autocast("cpu", dtype=torch.bfloat16) if situation.autocast else nullcontext()
    generator = torch.Generator().manual_seed(2)
    try:
        with cast:
            flowlab.fit(
                flow,
                x,
                epochs=epochs,
                learning_rate=situation.learning_rate,
                schedule="constant",
                patience=epochs,
                generator=generator,
                progress=False,
            )
    except TrainingError:
        return flow, "TrainingError"
    return flow, "fitted"


def not_finite(flow: Flow) -> int:
    """How many numbers among a flow's parameters and buffers are not finite."""
    tensors = [t for t in (*flow.parameters(), *flow.buffers()) if t.is_floating_point()]
    return sum(int((~torch.isfinite(t)).sum()) for t in tensors)


def far_rows(dtype: torch.dtype) -> Tensor:
    """Rows far out, in every direction of one, and of all features, up to the largest number."""
    limit = torch.finfo(dtype).max
    sizes = [size for size in FAR if size < limit] + [limit]
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)] * FEATURES)
    return torch.cat([size * corners for size in sizes]).to(dtype)


def density_faults(flow: Flow, x: Tensor) -> Counter[str]:
    """What is wrong with the log-densities of finite rows x (n, features), and with their gradients.

    A log-density may be -inf outside a bounded support, and where the noise's square leaves the range of the type, as
    double precision tells. Gradients pass through the noise's square, times weights: the one in a row has to be finite
    up to a thousandth of the noise at which the log-density ends, the one in the parameters up to a millionth.
    """
    found: Counter[str] = Counter()
    limit = math.sqrt(torch.finfo(x.dtype).max)
    with torch.no_grad():
        noise = copy.deepcopy(flow).double().to_noise(x.double()).abs().amax(-1).nan_to_num(nan=math.inf)
        value = flow.log_prob(x)
    outside = ~flow.support.check(x)
    found["NaN log-density"] = int(value.isnan().sum())
    found["infinite log-density"] = int((value == math.inf).sum())
    found["-inf log-density within range"] = int(((value == -math.inf) & ~outside & (noise < limit / 10)).sum())
    found["row with a non-finite gradient"] = gradient_faults(flow, x[~outside & (noise < limit / 1e3)])[0]
    near = ~outside & (torch.maximum(noise, x.abs().amax(-1)) < limit / 1e6)
    found["non-finite gradient of a parameter"] = gradient_faults(flow, x[near])[1]
    return +found


def gradient_faults(flow: Flow, x: Tensor) -> tuple[int, int]:
    """Rows and parameters whose gradients of the summed log-densities of rows x (n, features) are not finite."""
    x = x.detach().requires_grad_()
    parameters = [p for p in flow.parameters() if p.requires_grad]
    total = flow.log_prob(x).sum()
    by_x, *grads = torch.autograd.grad(total, [x, *parameters], materialize_grads=True, allow_unused=True)
    bad = sum(int((~torch.isfinite(grad)).sum()) for grad in grads)
    return int((~torch.isfinite(by_x)).any(-1).sum()), bad


def examine(name: str, dtype: torch.dtype, situation: Situation, steps: int, **options: Any) -> tuple[Flow, Outcome]:
    """Train a preset, and count what is wrong with it."""
    flow, training = trained(name, dtype, situation, steps, **options)
    outcome = Outcome(training, not_finite(flow))
    ordinary = situation.rows(dtype, circular="circular" in name, count=300)
    x = torch.cat([ordinary, torch.zeros(1, FEATURES, dtype=dtype), far_rows(dtype)])
    outcome.rows = len(x)
    outcome.faults = density_faults(flow, x)
    return flow, outcome


# ---- round trips --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """Errors of a round trip, each relative to one plus what it should be: the worst, and the 99.9 % quantile."""

    worst: float
    usual: float

    @classmethod
    def of(cls, value: Tensor, expected: Tensor, circular: bool = False) -> "Errors":
        apart = (value.double() - expected.double()).abs()
        if circular:
            apart = torch.minimum(apart, (2 * math.pi - apart).abs())
        relative = (apart / (1 + expected.double().abs())).flatten().nan_to_num(nan=math.inf)
        return cls(float(relative.max()), float(relative.kthvalue(max(1, int(0.999 * len(relative)))).values))

    def __str__(self) -> str:
        return f"{self.worst:.1e} ({self.usual:.1e})"


@torch.no_grad()
def round_trips(flow: Flow, dtype: torch.dtype, points: int, size: float, circular: bool) -> list[Errors]:
    """Errors of noise -> data -> noise, of data -> noise -> data, and of the sum of their log-determinants.

    Points are normal where `size` is zero, else uniform within ±size; on the circle always uniform.
    """
    generator = torch.Generator().manual_seed(3)
    z = torch.empty(points, FEATURES, dtype=torch.float64)
    bound = math.pi if circular else size
    z = (z.uniform_(-bound, bound, generator=generator) if bound else z.normal_(generator=generator)).to(dtype)
    there, log_det = flow.forward(z)
    back, cancelling = flow.inverse(there)
    noise, _ = flow.inverse(z)
    data, _ = flow.forward(noise)
    return [Errors.of(back, z, circular), Errors.of(data, z, circular), Errors.of(-cancelling, log_det)]


# ---- the page -----------------------------------------------------------------------------------------------------


def short(dtype: torch.dtype) -> str:
    """float32 or float64."""
    return str(dtype).removeprefix("torch.")


def stress_table(outcomes: dict[tuple[str, torch.dtype, str], Outcome]) -> str:
    """A row for each preset and type, a cell for each situation."""

    def cell(outcome: Outcome) -> str:
        lost = {"numbers lost": outcome.lost} if outcome.lost else {}
        found = "; ".join(f"{what}: {count}" for what, count in {**lost, **outcome.faults}.items())
        return found or ("sound" if outcome.training == "fitted" else f"{outcome.training}, sound")

    names = dict.fromkeys((name, dtype) for name, dtype, _ in outcomes)
    rows = [[n, short(d), *[cell(outcomes[n, d, s.name]) for s in SITUATIONS]] for n, d in names]
    return table(["preset", "type", *[s.name for s in SITUATIONS]], rows)


def measure(steps: int, points: int, names: Sequence[str], **options: Any) -> tuple[str, str, str]:
    """The summary, the table of situations, and the one of round trips."""
    outcomes: dict[tuple[str, torch.dtype, str], Outcome] = {}
    trips = []
    for name, dtype, situation in itertools.product(names, TYPES, SITUATIONS):
        flow, outcomes[name, dtype, situation.name] = examine(name, dtype, situation, steps, **options)
        circular = "circular" in name
        for size in situation.trips[: 1 if circular else None]:
            errors = round_trips(flow, dtype, points, size, circular)
            where = f"within ±{size:g}" if size else "the base's"
            trips.append([name, short(dtype), situation.name, where, *map(str, errors)])
    found = list(outcomes.values())
    sound = sum(not outcome.lost and not outcome.faults for outcome in found)
    failed = sum(outcome.training != "fitted" for outcome in found)
    summary = (
        f"{len(found)} fits of {steps:,} steps, {failed} of which ended in a TrainingError. "
        f"{sound} of {len(found)} flows are sound, asked about {sum(o.rows for o in found):,} rows."
    )
    head = ["preset", "type", "trained", "points", "noise → data → noise", "data → noise → data", "log-determinants"]
    return summary, stress_table(outcomes), table(head, trips, "llllr")


def section(scale: float = 1.0) -> str:
    """The section of the reliability page: a full run has fits of 1,000 steps and round trips of a million points."""
    steps, points = max(1, round(STEPS * scale)), max(1_000, round(POINTS * scale))
    started = time.perf_counter()
    summary, situations, trips = measure(steps, points, list(PRESETS))
    return f"""## Numerical stress

{summary} {time.perf_counter() - started:,.0f} s.

Every preset of three features, as large as it is by default, is trained on 2,000 rows: Cauchy columns, normal ones at
scales 1e-20 and 1e20, with learning rate 1, and under bfloat16 autocast. A flow is sound whose parameters and buffers
are finite, also where `fit` raised a TrainingError; whose log-densities of ordinary rows and of rows from 1e3 to the
type's largest number are neither NaN nor +inf, and -inf only outside a bounded support or where the noise is beyond a
tenth of the root of the largest number (1.8e18 in single precision, 1.3e153 in double), whose square the type cannot
hold; whose gradients in rows are finite up to a thousandth of the root, and those in parameters up to a millionth.

{situations}

Round trips of {points:,} points: the worst relative error and, in brackets, the 99.9 % quantile. Learning rate 1 drives
scales to their bounds, so that the maps' condition numbers, not the formulas, decide how many digits are left.

{trips}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full run")
    torch.set_num_threads(1)
    print(section(parser.parse_args().scale))


if __name__ == "__main__":
    main()
