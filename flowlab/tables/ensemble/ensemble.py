"""The ensemble of `FlowDensity`: members are fitted separately, in parallel, and weighted by held-out likelihood."""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor

from flowlab.flow import CHUNK, Flow
from flowlab.hints import hints_of, made, shown
from flowlab.mixture import FlowMixture, stack
from flowlab.tables.codec.columns import Variable
from flowlab.tables.ensemble.calibration import Membership, membership
from flowlab.tables.ensemble.families import Fold, Task, Trained, network_of
from flowlab.tables.ensemble.joint_density import JointDensity, Numbers
from flowlab.tables.ensemble.member import Member
from flowlab.tables.ensemble.preprocessing import Marginals, Preprocessing
from flowlab.tables.ensemble.running import Result, Runner
from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.tables.schema.levels import UNKNOWN, log_seen
from flowlab.tables.schema.stored import with_nan
from flowlab.training import Callback

RACE = ("marginal", "marginal-whitening", "whitening-marginal")
RACE_STEPS = (50, 150)  # at least and at most; else a fifth of a member's own
FOLD_ROWS = 2_000  # below so many rows every row is held out once
CLOSE = 0.3  # nats per row behind the winner of the race up to which a preprocessing gets a member
WORTH = 0.1  # weight of a first member with conditional densities above which more are fitted beside joint ones
NEGLIGIBLE = 0.003  # weight below which members are dropped
RACE_TIME, TRAINING_TIME = 0.2, 0.8  # shares of the remaining time; scoring and mixing take the rest
SCORED = 500  # training rows, and held-out ones, that are scored to see whether these are told apart
SPREAD_WORK = 20_000  # rows × columns × folds from which starting processes pays

Split = tuple[Tensor, Tensor]  # of rows to train on and rows held out, by their indices


@dataclass
class Report:
    """The result of fitting one member.

    Attributes:
        member: The member, with its sizes.
        score: Mean log-likelihood of held-out rows, nats per row.
        weight: Its weight in the mixture.
        seconds: Time to fit it, over all folds.
        reason: Why its training stopped; empty for members without training.
        converged: Whether more training is not expected to help.
        history: Training curves, one dict per evaluation, of the first fold.
    """

    member: Member
    score: float
    weight: float
    seconds: float
    reason: str = ""
    converged: bool = True
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def from_json(cls, values: Any) -> "Report":
        """Read a report from a file, in which None stands for NaN.

        Raises:
            ValueError: A field is unknown, or of another type.
        """
        if not isinstance(values, dict):
            raise ValueError(f"a report on a member is {shown(values)}")
        member = Member.from_json(values["member"])
        made(cls, {**values, "member": member}, IN_FILES)
        return cls(**{**with_nan(values, NUMBERS), "member": member})


NUMBERS = ("score", "weight", "seconds")
IN_FILES = {**hints_of(Report), **dict.fromkeys(NUMBERS, float | None), "history": list[dict[str, float | None]]}


@dataclass
class Ensemble:
    """A mixture, reports on its members, and held-out rows' scores and noise under mixtures not trained on them.

    `membership` says whether training rows score higher than these; None where there are none. `networks` has what was
    trained, by member and fold, for a fit that goes on from there.
    """

    flow: FlowMixture
    reports: list[Report]
    race: dict[str, float]
    held_out: Tensor
    held_weight: Tensor
    noise: Tensor
    membership: Membership | None
    networks: dict[str, Trained] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What the fits of an ensemble share.

    Attributes:
        members: The members, with their sizes.
        variables: The variables of the table.
        folds: For each kind of rows, "mixed" or "numbers", the folds and what is fitted to each beforehand.
        seed: Seed of everything random.
        last: The column that comes last in the order of mixed flows; any when None.
        device: Where networks train.
        kept: The folder that keeps what is done; None for none.
        start: Networks to go on with, by member and fold.
    """

    members: list[Member]
    variables: Sequence[Variable]
    folds: dict[str, tuple[list[Fold], Sequence[Marginals | Preprocessing]]]
    seed: int
    last: int | None
    device: str
    kept: Path | None
    start: Mapping[str, Trained]

    def task(self, i: int, k: int, seconds: float | None = None, preprocessing: str | None = None) -> Task:
        """The fit of member i to fold k, with a preprocessing that the race tries."""
        member = self.members[i]
        name = name_of(i, k) if preprocessing is None else f"race-{preprocessing}"
        if preprocessing is not None:
            member = replace(member, preprocessing=preprocessing)
        own, prepared = self.folds["mixed" if member.kind == "mixed" else "numbers"]
        sizes, basis, gaussians = member.sizes(len(own[0].train), own[0].train.shape[1]), prepared[k], None
        if isinstance(basis, Marginals):
            gaussians = basis.gaussians(member.rows, sizes.gaussians, self.seed)
        what = f"member {i + 1} of {len(self.members)}" if preprocessing is None else f"trying {preprocessing}"
        fold = f", fold {k + 1} of {len(own)}" if len(own) > 1 else ""
        return Task(
            member=member,
            sizes=sizes,
            fold=own[k],
            layers=basis.layers(member.preprocessing),
            variables=self.variables,
            gaussians=gaussians,
            seed=(self.seed + 1009 * i + 9176 * k) % 2**62,
            last=self.last,
            device=self.device,
            seconds=seconds,
            stage=f"{what} ({member.kind}){fold}",
            kept=None if self.kept is None else self.kept / name,
            start=self.start.get(name),
        )


def fit_ensemble(
    rows: Tensor,
    weight: Tensor,
    members: Sequence[Member],
    rng: np.random.Generator,
    *,
    validation: float = 0.1,
    folds: int = 5,
    time_limit: float | None = None,
    n_jobs: int | None = None,
    device: str = "cpu",
    progress: bool = False,
    callback: Callback | None = None,
    kept: Path | None = None,
    start: Mapping[str, Trained] | None = None,
    variables: Sequence[Variable],
    numbers: Numbers | None = None,
    last: int | None = None,
) -> Ensemble:
    """Fit members to rows (n, features) and mix them.

    Below 2,000 rows each member is fitted once per fold, each row is held out once, and the mixture holds the versions
    of all folds. From 2,000 rows on, or with one fold, a share of the rows is held out. The weights maximise the
    likelihood of the held-out rows.

    Args:
        rows: The rows, in double precision.
        weight: Their weights (n,).
        members: What to fit; sizes that are None are filled in.
        rng: Source of everything random.
        validation: Share of rows held out without folds; 0 trains on all rows and weights the members equally.
        folds: Number of folds.
        time_limit: Approximate time for everything, in seconds, None for no limit. Networks are then trained in turn,
            as many as can be finished; the result depends on the machine.
        n_jobs: Processes; None uses all cores, or one for a small table or another device.
        device: Where networks train.
        progress: Show a bar.
        callback: Called with a `TrainingState` after every evaluation of a network in training.
        kept: The folder that keeps what is done; None for none.
        start: Networks to go on with, as an earlier fit with the same rows, members and seed left them.
        variables: The variables of the table.
        numbers: What is known of the variables where all are complete numbers, for joint members.
        last: The column that comes last in the order of mixed flows; any when None.
    """
    started = time.perf_counter()
    n, features = rows.shape
    splits = make_splits(n, rng, validation, folds)
    seed = int(rng.integers(2**62))
    parts = [with_new_levels(make_fold(rows, weight, *split), variables) for split in splits]
    spreads = n * features * len(parts) >= SPREAD_WORK and device == "cpu"
    jobs = joblib.effective_n_jobs(n_jobs or (-1 if spreads else 1))
    ends = None if time_limit is None or math.isinf(time_limit) else started + time_limit
    with Runner(jobs, len(members) * len(parts), progress, callback) as runner:
        ground: dict[str, tuple[list[Fold], Sequence[Marginals | Preprocessing]]] = {}
        if any(member.kind == "mixed" for member in members):
            ground["mixed"] = (parts, [Marginals(fold, variables, rows) for fold in parts])
        if numbers is not None:
            ground["numbers"] = _of_numbers(numbers, rows, weight, splits, seed)
        members = [member.sized(len(parts[0].train), features) for member in members]
        plan = Plan(members, variables, ground, seed, last, device, kept, start or {})
        race = _race(plan, runner, ends)
        plan = replace(plan, members=_decided(members, race))
        grid = _run_grid(plan, runner, ends)
    why = "the first of its kind has little weight" if ends is None else "no time was left for it"
    left_out = [Report(m, math.nan, 0.0, 0.0, why, ends is None) for i, m in enumerate(plan.members) if i not in grid]
    done = sorted(grid)
    mixed = _mix([plan.members[i] for i in done], [grid[i] for i in done], left_out, parts, numbers, race, seed)
    for i, results in grid.items():
        found = {name_of(i, k): (network_of(r.flow), r.history) for k, r in enumerate(results) if r.history is not None}
        mixed.networks.update(found)
    return mixed


def name_of(i: int, k: int) -> str:
    """What the fit of member i to fold k is called where it is kept."""
    return f"member-{i}-fold-{k}"


def _race(plan: Plan, runner: Runner, ends: float | None) -> dict[str, float]:
    """The mean log-likelihood of held-out rows under each preprocessing of the first member that leaves it open."""
    undecided = [i for i, m in enumerate(plan.members) if m.preprocessing == "auto" and m.kind != "mixed"]
    if not undecided:
        return {}
    first = plan.folds["numbers"][0][0]
    if first.train.shape[1] == 1 or not len(first.held_out):
        return {}
    seconds = None
    if ends is not None:
        seconds = RACE_TIME * max(ends - time.perf_counter(), 0.0) * min(runner.jobs, len(RACE)) / len(RACE)
    short = [replace(_short(plan.task(undecided[0], 0, seconds, name)), seed=plan.seed) for name in RACE]
    runner.expect(len(short))
    return {
        name: _mean(result.log_prob, first.held_weight) for name, result in zip(RACE, runner.run(short), strict=True)
    }


def _run_grid(plan: Plan, runner: Runner, ends: float | None) -> dict[int, list[Result]]:
    """Each member's results, fold by fold: of all members that are worth it, or that there is time for."""
    grid: dict[int, list[Result]] = {}
    members, parts = plan.members, next(iter(plan.folds.values()))[0]

    def run(places: Sequence[int], seconds: float | None = None) -> None:
        results = iter(runner.run([plan.task(i, k, seconds) for i in places for k in range(len(parts))]))
        grid.update({i: [next(results) for _ in parts] for i in places})

    if ends is None:
        waiting = _waiting(members) if len(parts[0].held_out) else []
        run([i for i in range(len(members)) if i not in waiting])
        tried = sorted(grid)
        if waiting and _worth([members[i] for i in tried], [grid[i] for i in tried], parts):
            run(waiting)
        return grid
    # Few networks that are trained to the end beat many that are not.
    run([i for i, member in enumerate(members) if not member.trained])
    trained = [i for i, member in enumerate(members) if member.trained]
    # First one with conditional densities, without which most questions would have no answer.
    trained.sort(key=lambda i: members[i].kind != "mixed" or i in _waiting(members))
    for places, seconds in _turns(trained, len(parts), runner.jobs, ends):
        run(places, seconds)
    return grid


def _decided(members: Sequence[Member], race: dict[str, float]) -> list[Member]:
    """The members with the preprocessing that a race decides: the best for rank 0, then others that are close."""
    order = sorted(race, key=lambda name: -race[name]) or list(RACE[:1])  # a single column needs no whitening
    order = [name for name in order if not race or race[name] > race[order[0]] - CLOSE]
    return [
        replace(m, preprocessing=order[min(m.rank, len(order) - 1)]) if m.preprocessing == "auto" else m
        for m in members
    ]


def _waiting(members: Sequence[Member]) -> list[int]:
    """The members that wait for others: beside joint ones, those with conditional densities after the first."""
    mixed = [i for i, member in enumerate(members) if member.kind == "mixed"]
    return mixed[1:] if len(mixed) < len(members) else []


def _worth(members: list[Member], grid: list[list[Result]], folds: list[Fold]) -> bool:
    """Whether a member with conditional densities has so much weight that more of them are worth their time."""
    log_probs = torch.stack([torch.cat([r.log_prob for r in results]) for results in grid])
    shares = _weights(members, log_probs, torch.cat([fold.held_weight for fold in folds]))
    return float(shares[[member.kind == "mixed" for member in members]].sum()) > WORTH


def _of_numbers(
    numbers: Numbers, rows: Tensor, weight: Tensor, splits: Sequence[Split], seed: int
) -> tuple[list[Fold], list[Preprocessing]]:
    """Folds and preprocessing of flows of numbers, which see values spread over their cells."""
    spread = numbers.cells.spread(rows, torch.Generator().manual_seed(seed))
    log_width = numbers.cells.log_width(rows)
    folds = [replace(make_fold(spread, weight, *split), log_width=log_width[split[1]]) for split in splits]
    first = Preprocessing(folds[0].subsample(50 * CHUNK, seed))
    return folds, [first, *(Preprocessing(fold.subsample(50 * CHUNK, seed), first) for fold in folds[1:])]


def _turns(places: list[int], folds: int, jobs: int, ends: float) -> Iterator[tuple[list[int], float]]:
    """Members to train together and seconds for each of their tasks, until the time does not suffice for more."""
    together = max(jobs // folds, 1)
    took = 0.0
    for first in range(0, len(places), together):
        chosen, now = places[first : first + together], time.perf_counter()
        if first and ends - now < took:
            return
        rounds = -(-len(chosen) * folds // jobs)
        yield chosen, max(TRAINING_TIME * (ends - now) / rounds, 0.0)
        took = time.perf_counter() - now


def _mix(
    members: list[Member],
    grid: list[list[Result]],
    left_out: list[Report],
    folds: list[Fold],
    numbers: Numbers | None,
    race: dict[str, float],
    seed: int,
) -> Ensemble:
    held_weight = torch.cat([fold.held_weight for fold in folds])
    log_probs = torch.stack([torch.cat([r.log_prob for r in results]) for results in grid])
    shares, density = _weights(members, log_probs, held_weight), None
    if numbers is not None and (joint := [i for i, m in enumerate(members) if m.kind != "mixed" and shares[i] > 0]):
        flows = [grid[i][k].flow for i in joint for k in range(len(folds))]
        measured = numbers.measured(FlowMixture(flows, shares[joint].repeat_interleave(len(folds))), seed)
        density = functools.partial(numbers.like, measured)
        log_probs[[i for i, member in enumerate(members) if member.kind != "mixed"]] -= measured.log_mass
        shares = _weights(members, log_probs, held_weight)
    reports = [
        Report(
            member,
            _mean(log_prob, held_weight),
            float(share),
            sum(r.seconds for r in results),
            results[0].history.reason if results[0].history else "",
            all(r.history is None or r.history.converged for r in results),
            results[0].history.records if results[0].history else [],
        )
        for member, results, log_prob, share in zip(members, grid, log_probs, shares, strict=True)
    ]
    reports += left_out
    used = [i for i, share in enumerate(shares.tolist()) if share > 0]
    generator = torch.Generator().manual_seed(seed)
    noise, scores = [], []
    for k, fold in enumerate(folds):
        of_fold = assembled([grid[i][k].flow for i in used], shares[used], density)
        noise += [of_fold.to_noise(chunk, generator=generator) for chunk in fold.held_out.split(CHUNK)]
        scores.append(_scores(of_fold, fold, -(-SCORED // len(folds))))
    told = [torch.cat(parts).numpy() for parts in zip(*scores, strict=True)]
    flows = [grid[i][k].flow for i in used for k in range(len(folds))]
    flow = assembled(flows, shares[used].repeat_interleave(len(folds)) / len(folds), density)
    held_out = (log_probs + shares.log().unsqueeze(1)).logsumexp(0)
    known = membership(*told) if len(held_out) > 1 else None
    return Ensemble(flow, reports, race, held_out, held_weight, torch.cat(noise), known)


@torch.no_grad()
def _scores(mixture: FlowMixture, fold: Fold, most: int) -> tuple[Tensor, Tensor]:
    """Log-likelihoods, under a fold's mixture, of some of its training rows and of at most as many held-out ones."""
    count = min(most, len(fold.held_out))
    return mixture.log_prob(fold.train[:count]), mixture.log_prob(fold.held_out[:count])


def _weights(members: Sequence[Member], log_probs: Tensor, held_weight: Tensor) -> Tensor:
    """The members' weights, by log-densities (members, n) of held-out rows."""
    if not log_probs.shape[1]:
        return torch.full((len(members),), 1 / len(members), dtype=torch.float64)
    # The broad member keeps a prior weight: it covers rows unlike all others, which held-out rows may lack. So does the
    # best of those with conditional densities, beside members without: conditions and missing cells need it.
    kinds = [member.kind for member in members]
    prior = torch.tensor([1.0 if kind == "broad" else 0.0 for kind in kinds])
    conditional = [i for i, kind in enumerate(kinds) if kind == "mixed"]
    if 0 < len(conditional) < len(members):
        prior[max(conditional, key=lambda i: _mean(log_probs[i], held_weight))] = 1.0
    shares = stack(log_probs, held_weight, prior)
    shares = torch.where((shares < NEGLIGIBLE) & (prior == 0), 0, shares)
    return shares / shares.sum()


def assembled(
    flows: Sequence[Flow | ConditionalDensity],
    shares: Tensor,
    density: Callable[[FlowMixture], JointDensity] | None,
) -> FlowMixture:
    """A mixture of a table's rows, in which flows of numbers come first, together, as one joint density.

    Args:
        flows: The members.
        shares: Their weights.
        density: Makes a density of rows of a mixture of flows of numbers; may be None where there are none.
    """
    joint = [k for k, flow in enumerate(flows) if isinstance(flow, Flow)]
    others = [k for k in range(len(flows)) if k not in joint]
    parts: list[Any] = [flows[k] for k in others]
    weights = shares[others]
    if joint and density is not None:
        whole = density(FlowMixture([flows[k] for k in joint], shares[joint]))
        parts, weights = [whole, *parts], torch.cat([shares[joint].sum()[None], weights])
    return FlowMixture(parts, weights)


def make_splits(n: int, rng: np.random.Generator, validation: float, folds: int) -> list[Split]:
    """The folds of a small table; for a larger one, or with `folds` of one, a single split."""
    order = torch.from_numpy(rng.permutation(n))
    if not validation or n < 8:
        return [(order, order[:0])]
    if n < FOLD_ROWS and folds > 1:
        parts = order.tensor_split(folds)
        return [(torch.cat([*parts[:k], *parts[k + 1 :]]), parts[k]) for k in range(folds)]
    held = max(round(validation * n), 1)
    return [(order[held:], order[:held])]


def with_new_levels(fold: Fold, variables: Sequence[Variable]) -> Fold:
    """The fold with `UNKNOWN` for levels of held-out rows that its training rows lack, as in rows after the fit.

    The log-probability of levels that training rows have, or of others, is added to scores.
    """
    held_out = fold.held_out.clone()
    for j, variable in enumerate(variables):
        if variable.unseen:
            held_out[~torch.isnan(held_out[:, j]) & ~torch.isin(held_out[:, j], fold.train[:, j]), j] = UNKNOWN
    fold = replace(fold, held_out=held_out)
    return replace(fold, log_width=log_levels(fold, variables))


def log_levels(fold: Fold, variables: Sequence[Variable]) -> Tensor:
    """Log-probability (held-out rows,) that held-out rows have levels that a fold's training rows have, or others."""
    total = torch.zeros(len(fold.held_out), dtype=torch.float64)
    for variable, train, held_out in zip(variables, fold.train.T, fold.held_out.T, strict=True):
        if variable.unseen:
            seen = len(train[~torch.isnan(train)].unique())
            codes = held_out.numpy()
            total += torch.from_numpy(log_seen(codes, variable.unseen, 1 + max(variable.declared - seen, 0)))
    return total


def make_fold(rows: Tensor, weight: Tensor, train: Tensor, held_out: Tensor) -> Fold:
    """Rows to train on and rows held out."""
    weight = weight / weight.mean()
    return Fold(rows[train], weight[train], rows[held_out], weight[held_out])


def _short(task: Task) -> Task:
    """A short version of a task for the race: a fifth of its steps, on rows that are seen about once."""
    sizes, fold = task.sizes, task.fold
    least, most = RACE_STEPS
    steps = min(max(sizes.steps // 5, least), most, sizes.steps)
    seen = steps * sizes.batch_size
    fold = replace(fold, train=fold.train[:seen], weight=fold.weight[:seen])
    return replace(task, sizes=replace(sizes, steps=steps), fold=fold)


def _mean(log_prob: Tensor, weight: Tensor) -> float:
    return float((log_prob * weight).sum() / weight.sum()) if len(weight) else float("nan")


def check_flow(variables: Sequence[Variable], flow: FlowMixture) -> None:
    """Raise a ValueError unless a mixture's members match a table's variables: one joint density at most, first."""
    wanted = [(variable.column, variable.classes, variable.nullable) for variable in variables]
    for k, member in enumerate(flow):
        if not isinstance(member, ConditionalDensity):
            plain = isinstance(member, JointDensity) and all(isinstance(part, Flow) for part in member.flow)
            if not plain or k or any(classes or nullable for _, classes, nullable in wanted):
                raise ValueError(f"a {type(member).__name__} of the mixture does not fit the table")
            if any(part.context_features for part in member.flow):
                raise ValueError("a flow of the mixture wants a context, and a table has none")
        elif list(zip(member.columns, member.classes, member.nullable, strict=True)) != wanted:
            raise ValueError("the variables of the mixture are not those of the table")
