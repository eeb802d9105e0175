"""How a member of each kind is fitted to one fold of a table's rows: a class per family.

A Gaussian mixture is a flow with a mixture as its base, a copula one with a whitening and marginal layers: there is one
kind of model. All layers on the data side are preprocessing that is fitted to training rows and part of the density.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from flowlab import bases
from flowlab.flow import CHUNK, Flow
from flowlab.layers import ActNorm, Autoregressive, Layer, MixtureCDF, RationalQuadraticSpline
from flowlab.layers.scalar import ScalarMap
from flowlab.tables.codec.columns import Variable
from flowlab.tables.ensemble.member import Member, Sizes
from flowlab.tables.ensemble.mixtures import choose_bandwidth, choose_mixture
from flowlab.tables.mixed.column_mixture import ColumnMixture, misjudged_by, rare_levels
from flowlab.tables.mixed.conditional_density import ConditionalDensity
from flowlab.tables.mixed.gaussian_flow import GaussianFlow
from flowlab.tables.mixed.gaussians import Gaussians
from flowlab.tables.mixed.growing import Growth, grow_forest
from flowlab.tables.mixed.heads import HistogramAndLogistics
from flowlab.tables.mixed.mixed_flow import MixedFlow
from flowlab.training import Callback, History, fit
from flowlab.training.rows import representative

BROAD_DF = 3.0
BINS = 48  # of the histograms in mixed flows' heads
FEW_LEVELS = 20  # up to which a column comes before others in the main order of mixed flows
LEAF = 5  # rows in a leaf at least
TREE_ROWS = 20_000  # rows that a tree is grown on at most

M = TypeVar("M", Flow, MixedFlow)
Fit = tuple[Flow | ConditionalDensity, History | None]
Trained = tuple[nn.Module, History]


@dataclass
class Fold:
    """Rows to train on and rows held out, with their weights, which average one; all in double precision.

    Attributes:
        log_width: What to add to the log-densities of held-out rows, for the table's measure.
    """

    train: Tensor
    weight: Tensor
    held_out: Tensor
    held_weight: Tensor
    log_width: Tensor | float = 0.0

    def subsample(self, most: int, seed: int) -> Tensor:
        """Training rows for what cannot weigh them: a row comes as often as its weight says."""
        generator = torch.Generator().manual_seed(seed)
        rows = representative(self.train, self.weight, generator)
        if len(rows) <= most:
            return rows
        return rows[torch.randperm(len(rows), generator=generator)[:most]]


@dataclass(frozen=True)
class Task:
    """One member to fit on one fold.

    Attributes:
        member: What to fit, its preprocessing decided.
        sizes: Its sizes.
        fold: The rows.
        layers: The fitted preprocessing, in sampling order; of "mixed" the marginal distributions of the numbers.
        variables: The variables of the table.
        gaussians: A Gaussian mixture of the numbers, for "mixed"; None for none.
        seed: Seed of everything random.
        last: The column that comes last in the order of "mixed"; any when None.
        device: Where networks train.
        seconds: Time limit of training; None for none.
        stage: What it is called where progress is shown.
        kept: The name, without suffix, of the files that keep its result and, until then, its training.
        callback: For `flowlab.fit`.
        start: The network of an earlier fit to the same rows, which is trained further, and its history.
    """

    member: Member
    sizes: Sizes
    fold: Fold
    layers: list[Any]
    variables: Sequence[Variable]
    gaussians: Gaussians | None
    seed: int
    last: int | None = None
    device: str = "cpu"
    seconds: float | None = None
    stage: str = ""
    kept: Path | None = None
    callback: Callback | None = None
    start: Trained | None = None


class Family(Protocol):
    """A kind of member."""

    def fit(self, task: Task) -> Fit:
        """The fitted flow, in double precision on the CPU, and the training history if there is any."""


class Networks:
    """Autoregressive flows of numbers."""

    def __init__(self, scalar: type[MixtureCDF] | type[RationalQuadraticSpline]) -> None:
        self.scalar = scalar

    def fit(self, task: Task) -> Fit:
        """Train a flow whose orders of the columns are random."""
        generator = torch.Generator().manual_seed(task.seed)
        sizes, features = task.sizes, task.fold.train.shape[1]
        scalar: ScalarMap = self.scalar(sizes.components)
        core = [
            Autoregressive(
                features,
                scalar,
                torch.randperm(features, generator=generator).tolist(),
                hidden=sizes.hidden,
                dropout=sizes.dropout,
                generator=generator,
            )
            for _ in range(sizes.layers)
        ]
        layers: list[Layer] = task.layers
        if not layers:  # networks need columns of one scale, and their own single precision is not for raw ones
            scaling = ActNorm(features).double().requires_grad_(False)
            scaling.initialise(task.fold.train)
            layers = [scaling]
        flow = Flow(bases.Gaussian(features), [*core, *layers]).to(task.device)
        return trained(flow, flow, task.fold.train, task.fold.held_out, task, generator)


class Mixed:
    """Mixed flows, with every conditional density."""

    def fit(self, task: Task) -> Fit:
        """Train a `MixedFlow`, in the columns' own order or a random one."""
        generator = torch.Generator().manual_seed(task.seed)
        sizes, columns = task.sizes, [variable.column for variable in task.variables]
        flow = MixedFlow(
            task.layers,
            columns,
            [variable.classes for variable in task.variables],
            [variable.nullable for variable in task.variables],
            HistogramAndLogistics(BINS, sizes.components),
            hidden=sizes.hidden[0],
            blocks=sizes.layers or 1,
            dropout=sizes.dropout,
            order=column_order(task, generator),
            generator=generator,
        )
        cells, held_out = (flow.cells(rows) for rows in (task.fold.train, task.fold.held_out))
        possible = torch.isfinite(held_out.float()).all(1)  # a row without a density would make every loss infinite
        flow.to(task.device)
        flow, history = trained(flow, flow.network, cells.float(), held_out[possible].float(), task, generator)
        return with_others(flow, task, cells, held_out), history


def column_order(task: Task, generator: torch.Generator) -> list[int]:
    """A random order of a table's columns, after those that mark few rows; or their own, those with few levels first.

    Trees know exactly what follows from the first columns, and conditions are mostly on levels. A rare level that comes
    late is also drawn, now and then, for rows that are nothing like its own. Where a column has one level in most rows,
    the others lose next to nothing by coming after it.

    Args:
        task: What is fitted: members with a rank have a random order, and a column may have to come last.
        generator: Source of a random order.
    """
    few = [j for j, variable in enumerate(task.variables) if 0 < variable.classes <= FEW_LEVELS]
    columns = max(variable.column for variable in task.variables) + 1
    order = list(range(columns))
    if task.member.rank > 0:
        order = torch.randperm(columns, generator=generator).tolist()
        few = [j for j in few if _marks_few(task.fold.train[:, j], task.variables[j].classes, task.fold.weight)]
    first = {task.variables[j].column for j in few}
    return sorted(order, key=lambda column: (column == task.last, column not in first))


def _marks_few(codes: Tensor, classes: int, weight: Tensor) -> bool:
    """Whether a column has one level in most rows, and rare ones."""
    usual = float(weight[codes == codes.mode().values].sum())
    return usual > float(weight.sum()) / 2 and bool(rare_levels(codes, classes, weight))


@torch.no_grad()
def with_others(flow: MixedFlow, task: Task, cells: Tensor, held_out: Tensor) -> ConditionalDensity:
    """Networks mixed column by column with a Gaussian mixture, and with trees that are grown in the same order.

    Args:
        flow: The networks.
        task: What is fitted.
        cells: The training rows, as `flow.cells` makes them.
        held_out: The same of held-out rows.
    """
    if flow.features == 1:
        return flow
    fold, possible = task.fold, torch.isfinite(held_out).all(1)
    judging = held_out[possible], fold.held_weight[possible]
    density: MixedFlow | GaussianFlow = flow
    if task.gaussians is not None:
        both = GaussianFlow(flow, copy.deepcopy(task.gaussians))
        both.learn_share(*judging)
        density = both if bool((both.share > 0).any()) else flow
    if not task.sizes.trees:
        return density
    rows = torch.cat([fold.train, fold.held_out[possible]])
    weight = torch.cat([fold.weight, fold.held_weight[possible]])
    misjudged = misjudged_by(density, rows, weight, torch.Generator().manual_seed(task.seed))
    forest = grow_forest(Growth(flow, fold.train, cells, fold.weight), task.sizes.trees, LEAF, TREE_ROWS, task.seed)
    mixture = ColumnMixture(density, forest, rare=bool(misjudged.any()))
    if mixture.rare:
        mixture.misjudged.copy_(misjudged)
    mixture.learn_weights(*judging)
    mixture.learn_sharpness(*judging)
    return mixture


class Copula:
    """A Gaussian behind the preprocessing."""

    def fit(self, task: Task) -> Fit:
        """Nothing is left to fit."""
        return behind(bases.Gaussian(task.fold.train.shape[1]).double(), task.layers), None


class Broad:
    """A Student-t behind the preprocessing."""

    def fit(self, task: Task) -> Fit:
        """Nothing is left to fit."""
        return behind(bases.StudentT(task.fold.train.shape[1], df=BROAD_DF).double(), task.layers), None


class Mixture:
    """A Gaussian mixture behind the preprocessing."""

    def fit(self, task: Task) -> Fit:
        """Choose components and regularisation on held-out rows."""
        train, held_out, weight = noise_of(task)
        base = choose_mixture(train, held_out, weight, task.sizes.components, task.seed)
        return behind(base, task.layers), None


class Kernel:
    """A kernel density estimate behind the preprocessing."""

    def fit(self, task: Task) -> Fit:
        """Choose the bandwidth on held-out rows."""
        return behind(choose_bandwidth(*noise_of(task)), task.layers), None


FAMILIES: dict[str, Family] = {
    "autoregressive": Networks(MixtureCDF),
    "spline": Networks(RationalQuadraticSpline),
    "mixture": Mixture(),
    "kernel": Kernel(),
    "copula": Copula(),
    "broad": Broad(),
    "mixed": Mixed(),
}


def behind(base: bases.Base, layers: list[Layer]) -> Flow:
    """A base without parameters to train behind preprocessing layers."""
    return Flow(base.requires_grad_(False), layers)


@torch.no_grad()
def noise_of(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on and held-out rows as the preprocessing leaves them, and the latter's weights."""
    chain = Flow(bases.Gaussian(task.fold.train.shape[1]).double(), task.layers)
    rows = task.fold.subsample(task.member.rows, task.seed), task.fold.held_out
    train, held_out = (torch.cat([chain.to_noise(chunk) for chunk in part.split(CHUNK)]) for part in rows)
    return train.numpy(), held_out.numpy(), task.fold.held_weight.numpy()


def network_of(flow: Flow | ConditionalDensity) -> nn.Module:
    """The part of a member that was trained."""
    return flow if isinstance(flow, Flow) else next(m for m in flow.modules() if isinstance(m, MixedFlow)).network


def trained(
    flow: M, part: Any, rows: Tensor, held_out: Tensor, task: Task, generator: torch.Generator
) -> tuple[M, History]:
    """Train a part of a flow, or all of it, on rows; the flow comes back in double precision on the CPU."""
    sizes, earlier = task.sizes, None
    if task.start is not None:
        part.load_state_dict(task.start[0].state_dict())
        earlier = task.start[1]
    per_epoch = max(math.ceil(len(rows) / sizes.batch_size), 1)
    history = fit(
        part,
        rows,
        validation=held_out if len(held_out) else 0.0,
        sample_weight=task.fold.weight,
        epochs=max(round(sizes.steps / per_epoch), 1),
        batch_size=sizes.batch_size,
        learning_rate=sizes.learning_rate,
        schedule="cosine" if task.seconds is None else "restarts",  # a schedule that may be cut short
        time_limit=task.seconds,
        patience=30,
        generator=generator,
        callback=task.callback,
        checkpoint=None if task.kept is None else task.kept.with_suffix(".training"),
        progress=False,
        history=earlier,
    )
    return flow.double().cpu(), history
