"""The unlike densities that `FlowDensity` mixes, each a `Flow`, and how one of them is fitted to a table's rows.

A Gaussian mixture is a flow with a mixture as its base, a copula one with a whitening and marginal layers: there is
one kind of model. All layers on the data side are preprocessing that is fitted to training rows and part of the density.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor

from flowlab import bases
from flowlab.flow import CHUNK, Flow
from flowlab.hints import made, shown
from flowlab.layers import ActNorm, Autoregressive, Layer, Marginal, MixtureCDF, RationalQuadraticSpline, Whitening
from flowlab.tables.codec.columns import Unit
from flowlab.tables.frames.records import set_fields
from flowlab.tables.mixed.heads import HistogramAndLogistics
from flowlab.tables.mixed.marginal_cdf import Ranks, learn_ranks
from flowlab.tables.mixed.mixed_flow import MixedFlow
from flowlab.training.fitting import History, fit, representative

# Layers on the data side, in sampling order.
PREPROCESSING: dict[str, tuple[type[Layer], ...]] = {
    "none": (),
    "marginal": (Marginal,),
    "marginal-whitening": (Whitening, Marginal),
    "whitening-marginal": (Marginal, Whitening),
}
RACE = ("marginal", "marginal-whitening", "whitening-marginal")
RACE_STEPS = (50, 150)  # at least and at most; else a fifth of a member's own
KINDS = ("autoregressive", "spline", "mixture", "kernel", "copula", "broad", "mixed")
TRAINED = ("autoregressive", "spline", "mixed")
COMPONENTS = (1, 2, 4, 8, 16, 32, 64)
REGULARISATION = (1e-3, 1e-2, 1e-5)  # of variances in standardised columns; the first is used to choose the components
BANDWIDTHS = tuple(np.geomspace(0.05, 1.0, 12))
BROAD_DF = 3.0
BINS = 48  # of histograms of ranks
WIDE = 50_000  # values in a table of few rows from which it counts as wide


@dataclass(frozen=True)
class Member:
    """One density of the mixture: its family and its sizes. None leaves a size to the rule for the table at hand (`sized`).

    Attributes:
        kind: "autoregressive" (masked network, maps of Gaussian mixtures, random order of the columns), "spline" (rational-
            quadratic splines likewise), "mixture" (Gaussian mixture, full covariances, number of components
            chosen on held-out rows), "kernel" (a Gaussian around each row), "copula" (Gaussian), "broad" (Student-t tails); of whole tables,
            with classes and missing cells, "mixed" (`MixedFlow`), which does not go together with the others.
        preprocessing: What comes first on the data side: "none" (networks: standardised columns), "marginal" (each column made Gaussian), "marginal-whitening",
            "whitening-marginal", or "auto", the one that a short race finds best.
        rank: With "auto", which place in the race it takes: 0 for the winner. Of "mixed": 0 for the columns' own order, else a random one.
        layers: Autoregressive layers; residual blocks of "mixed".
        hidden: Widths of each layer's network.
        components: Gaussians per column and layer, or bins of a spline, or most components of a mixture.
        dropout: Share of hidden units dropped in training.
        steps: Training steps at most.
        batch_size: Rows per step.
        learning_rate: Peak learning rate.
        rows: Most training rows that a mixture looks at.
    """

    kind: str
    preprocessing: str = "auto"
    rank: int = 0
    layers: int | None = None
    hidden: tuple[int, ...] | None = None
    components: int | None = None
    dropout: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    rows: int = 20_000

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a member's kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.preprocessing not in ("auto", *PREPROCESSING):
            raise ValueError(f"preprocessing must be auto, {', '.join(PREPROCESSING)}, not {self.preprocessing!r}")

    @property
    def trained(self) -> bool:
        """Whether it has a network to train."""
        return self.kind in TRAINED

    def sized(self, rows: int, features: int) -> "Member":
        """The member with every size filled in, by the rows to train on and their columns."""
        if self.kind == "mixed":
            return self._filled(mixed_sizes(rows, features))
        spline = self.kind == "spline"
        dropout = 0.2 if rows < 5_000 else 0.1 if rows < 20_000 else 0.0
        batch = max(32, min(256, rows // 8))
        rule: dict[str, Any] = {
            "layers": 3 if spline else 2,
            "hidden": (128, 128) if rows >= 500 else (64, 64),
            "components": (8 if self.trained else 64),
            "dropout": dropout,
            "batch_size": batch,
            "steps": min(max(100 * rows // batch, 400), 6000 if rows >= 20_000 and features <= 15 else 3000),
            "learning_rate": 5e-3,
        }
        return self._filled(rule)

    def _filled(self, rule: dict[str, Any]) -> "Member":
        return replace(self, **{name: value for name, value in rule.items() if getattr(self, name) is None})

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Member":
        """The member that `to_json` wrote."""
        if not isinstance(data, dict):
            raise ValueError(f"a member is {shown(data)}")
        return made(cls, {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})

    def __repr__(self) -> str:
        return f"Member({set_fields(self)})"

    def __str__(self) -> str:
        if self.kind == "mixed":
            return f"mixed (columns in {'random' if self.rank else 'their own'} order, networks of {self.hidden})"
        sizes = f", {self.layers} layers of {self.hidden}, {self.components} components" if self.trained else ""
        return f"{self.kind} ({self.preprocessing}{sizes})"


def fold_count(effort: str, rows: int, features: int, mixed: bool = False) -> int:
    """How often a table of fewer than 2,000 rows is divided: less often where that takes long, once for a fast fit to a wide one."""
    wide = rows * features > WIDE
    return 1 if effort == "fast" and wide and not mixed else 3 if effort == "fast" or mixed or wide else 5


def mixed_sizes(rows: int, units: int) -> dict[str, Any]:
    """The sizes of a "mixed" member, by rows to train on and variables."""
    batch = 64 if rows < 1_500 else 128 if rows < 20_000 or units > 60 else 256
    return {
        "layers": 1,
        "hidden": (96,) if rows >= 20_000 and units <= 30 else (64,) if units <= 60 else (32,),
        "components": 8,
        "dropout": 0.3 if rows < 4_000 else 0.1 if rows < 20_000 else 0.0,
        "batch_size": batch,
        "steps": min(max(110 * rows // batch, 500), 6_000 if units <= 60 else 2_000),
        "learning_rate": 2e-3,
    }


def recipe(effort: str, rows: int, features: int, mixed: bool = False) -> list[Member]:
    """The members that an effort fits to a table."""
    if mixed:
        many: dict[str, Any] = {"steps": min(max(200 * rows // 128, 2_000), 20_000)} if effort == "best" else {}
        if effort == "fast":
            return [Member("mixed", "none", steps=min(max(40 * rows // 128, 300), 1_500))]
        return [Member("mixed", "none", rank=i % 2, **many) for i in range(4 if effort == "default" else 10)]
    mixtures = [Member("mixture", p) for p in ("none", "marginal", "whitening-marginal")]
    simple = [Member("copula", "marginal-whitening"), Member("broad", "marginal-whitening")]
    if rows <= 5_000:
        simple.append(Member("kernel", "marginal-whitening"))
    if effort == "fast":
        quick = [replace(m, rows=5_000, components=32) for m in mixtures[:2]]
        steps = min(300, max(9_000 // features, 100))
        first = "auto" if features <= 30 else "marginal-whitening"  # a race of wide networks takes long
        return [Member("autoregressive", first, steps=steps, learning_rate=1e-2), *quick, *simple[:2]]
    if effort == "default":
        third = [Member("autoregressive", rank=1)] if features <= 30 else []  # wide networks take long
        return [Member("autoregressive"), Member("autoregressive"), *third, Member("spline"), *mixtures, *simple]
    more: dict[str, Any] = {"steps": min(max(300 * rows // 256, 2000), 20_000)}
    return [
        *(Member("autoregressive", rank=i // 3, **more) for i in range(6)),
        *(Member("spline", rank=i // 2, **more) for i in range(4)),
        *(replace(m, rows=100_000) for m in mixtures),
        *simple,
    ]


class Preprocessing:
    """Preprocessing layers in double precision, fitted to rows once however many members share them.

    Args:
        rows: Training rows.
        like: Another fold's, whose numbers of bins are taken over: choosing them takes most of the time.
    """

    def __init__(self, rows: Tensor, like: "Preprocessing | None" = None) -> None:
        self.like = like
        self.fitted: dict[tuple[type[Layer], ...], tuple[list[Layer], Tensor]] = {(): ([], rows)}

    def layers(self, name: str) -> list[Layer]:
        """The layers of that name, in sampling order."""
        return copy.deepcopy(self._fit(PREPROCESSING[name])[0])

    @torch.no_grad()
    def _fit(self, kinds: tuple[type[Layer], ...]) -> tuple[list[Layer], Tensor]:
        if kinds not in self.fitted:
            outer, rows = self._fit(kinds[1:])  # what lies nearer to the data comes first
            features, other = rows.shape[1], None if self.like is None else self.like._fit(kinds)[0][0]
            known = isinstance(other, Marginal) and other.chosen
            layer = (Marginal(features, bins=known) if known else kinds[0](features)).double()
            layer.initialise(rows)
            self.fitted[kinds] = [layer, *outer], torch.cat([layer.inverse(chunk)[0] for chunk in rows.split(CHUNK)])
        return self.fitted[kinds]


class TableRanks:
    """The `Ranks` of a whole table's numbers, fitted to rows once however many members share them.

    Args:
        rows: Training rows (n, units).
        weight: Their weights.
        units: The variables.
        spanning: Rows (m, units) whose range is that of samples: also held-out ones, from which nothing else is learnt.
    """

    def __init__(self, rows: Tensor, weight: Tensor, units: Sequence[Unit], spanning: Tensor) -> None:
        self.ranks = []
        for unit, x, whole in zip(units, rows.T, spanning.T, strict=True):
            if not unit.classes:
                there = ~torch.isnan(x)
                lower, upper = (end if math.isfinite(end) else None for end in (unit.lower, unit.upper))
                self.ranks.append(
                    learn_ranks(
                        x[there],
                        resolution=unit.resolution,
                        atoms=unit.atoms,
                        lower=lower,
                        upper=upper,
                        weight=weight[there],
                        spanning=whole[~torch.isnan(whole)],
                    )
                )

    def layers(self, name: str) -> list[Ranks]:
        """A copy for one member; there is one kind of preprocessing, whatever the name."""
        return copy.deepcopy(self.ranks)


@dataclass
class Fold:
    """Rows to train on and rows held out, with their weights, which average one; all in double precision."""

    train: Tensor
    weight: Tensor
    held_out: Tensor
    held_weight: Tensor

    def shown(self, most: int, seed: int) -> Tensor:
        """Training rows for what cannot weigh them: a row comes as often as its weight says."""
        generator = torch.Generator().manual_seed(seed)
        rows = representative(self.train, self.weight, generator)
        if len(rows) <= most:
            return rows
        return rows[torch.randperm(len(rows), generator=generator)[:most]]


def fit_member(
    member: Member,
    fold: Fold,
    layers: list[Any],
    seed: int,
    device: str = "cpu",
    seconds: float | None = None,
    progress: bool = False,
    units: Sequence[Unit] | None = None,
) -> tuple[Flow | MixedFlow, History | None]:
    """Fit a sized member behind fitted preprocessing layers; the flow is in double precision on the CPU.

    Args:
        member: What to fit, its preprocessing decided.
        fold: The rows.
        layers: The preprocessing, in sampling order; the `Ranks` of the numbers for "mixed".
        seed: Decides everything that is random.
        device: Where networks train.
        seconds: Time that training may take; None for as long as its steps take.
        progress: Show a bar.
        units: The variables of a whole table.
    """
    if units is not None:
        return _fit_mixed(member, fold, layers, units, seed, device, seconds, progress)
    if member.trained:
        return _fit_flow(member, fold, layers, seed, device, seconds, progress)
    chain = Flow(bases.Gaussian(fold.train.shape[1]).double(), layers)
    with torch.no_grad():
        if member.kind == "copula":
            return chain, None
        if member.kind == "broad":
            return Flow(bases.StudentT(chain.features, df=BROAD_DF).double().requires_grad_(False), layers), None
        train, held_out = (
            torch.cat([chain.to_noise(chunk) for chunk in rows.split(CHUNK)])
            for rows in (fold.shown(member.rows, seed), fold.held_out)
        )
    choose = _kernels if member.kind == "kernel" else _mixture
    base = choose(train.numpy(), held_out.numpy(), fold.held_weight.numpy(), member.components or 1, seed)
    return Flow(base.requires_grad_(False), layers), None


def _fit_flow(
    member: Member,
    fold: Fold,
    layers: list[Layer],
    seed: int,
    device: str,
    seconds: float | None,
    progress: bool,
) -> tuple[Flow, History]:
    assert member.layers is not None
    assert member.hidden is not None
    assert member.components is not None
    assert member.dropout is not None
    generator = torch.Generator().manual_seed(seed)
    features = fold.train.shape[1]
    scalar: Any = (
        RationalQuadraticSpline(member.components) if member.kind == "spline" else MixtureCDF(member.components)
    )
    core = [
        Autoregressive(
            features,
            scalar,
            torch.randperm(features, generator=generator).tolist(),
            hidden=member.hidden,
            dropout=member.dropout,
            generator=generator,
        )
        for _ in range(member.layers)
    ]
    if not layers:  # networks need columns of one scale, and their own single precision is not for raw ones
        scaling = ActNorm(features).double().requires_grad_(False)
        scaling.initialise(fold.train)
        layers = [scaling]
    flow = Flow(bases.Gaussian(features), [*core, *layers]).to(device)
    return _train(flow, flow, fold.train, fold.held_out, member, fold, seconds, generator, progress)


def _fit_mixed(
    member: Member,
    fold: Fold,
    ranks: list[Ranks],
    units: Sequence[Unit],
    seed: int,
    device: str,
    seconds: float | None,
    progress: bool,
) -> tuple[MixedFlow, History]:
    assert member.hidden is not None
    assert member.components is not None
    assert member.dropout is not None
    generator = torch.Generator().manual_seed(seed)
    columns = [unit.column for unit in units]
    flow = MixedFlow(
        ranks,
        columns,
        [unit.classes for unit in units],
        [unit.nullable for unit in units],
        HistogramAndLogistics(BINS, member.components),
        hidden=member.hidden[0],
        blocks=member.layers or 1,
        dropout=member.dropout,
        order=torch.randperm(max(columns) + 1, generator=generator).tolist() if member.rank else None,
        generator=generator,
    )
    # What the network sees of rows stays the same in training: it is computed once. A held-out row that cannot be (a level that this
    # fold does not have) would make every loss infinite.
    shown, held_out = (flow.cells(rows).float() for rows in (fold.train, fold.held_out))
    held_out = held_out[torch.isfinite(held_out).all(1)]
    flow.to(device)
    return _train(flow, flow.network, shown, held_out, member, fold, seconds, generator, progress)


M = TypeVar("M", Flow, MixedFlow)


def _train(
    flow: M,
    part: Any,
    rows: Tensor,
    held_out: Tensor,
    member: Member,
    fold: Fold,
    seconds: float | None,
    generator: torch.Generator,
    progress: bool,
) -> tuple[M, History]:
    """Trains a part of a flow (or all of it) on rows, and gives the flow back in double precision."""
    assert member.steps is not None
    assert member.batch_size is not None
    assert member.learning_rate is not None
    per_epoch = max(math.ceil(len(rows) / member.batch_size), 1)
    history = fit(
        part,
        rows,
        validation=held_out if len(held_out) else 0.0,
        sample_weight=fold.weight,
        epochs=max(round(member.steps / per_epoch), 1),
        batch_size=member.batch_size,
        learning_rate=member.learning_rate,
        schedule="cosine" if seconds is None else "restarts",  # a schedule that may be cut short
        time_limit=seconds,
        patience=30,
        generator=generator,
        progress=progress,
    )
    return flow.double().cpu(), history


def _mixture(
    train: np.ndarray, held_out: np.ndarray, weight: np.ndarray, most: int, seed: int
) -> bases.GaussianMixture:
    """A Gaussian mixture, its components and then its regularisation chosen on held-out rows."""
    mean, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x, validation = (train - mean) / scale, (held_out - mean) / scale
    best, best_score, worse = None, -math.inf, 0

    def attempt(components: int, regularisation: float) -> bool:
        nonlocal best, best_score
        model = SklearnMixture(components, reg_covar=regularisation, max_iter=100, tol=1e-3, random_state=seed % 2**32)
        with np.errstate(all="ignore"):
            model.fit(x)
        score = float(np.average(model.score_samples(validation), weights=weight)) if len(validation) else 0.0
        if best is None or score > best_score:
            best, best_score = model, score
            return True
        return False

    for components in COMPONENTS:
        if components > most or (components > 1 and components * (1 + x.shape[1]) > len(x)) or worse == 2:
            break
        worse = 0 if attempt(components, REGULARISATION[0]) else worse + 1
        if not len(validation):
            break
    assert best is not None
    chosen = best.n_components
    for regularisation in REGULARISATION[1:] if len(validation) else ():
        attempt(chosen, regularisation)
    base = bases.GaussianMixture.from_sklearn(best)
    return rescaled(base, torch.from_numpy(mean), torch.from_numpy(scale))


@torch.no_grad()
def rescaled(base: bases.GaussianMixture, mean: Tensor, scale: Tensor) -> bases.GaussianMixture:
    """The mixture of mean + scale · z for z from `base`."""
    scale_tril = scale[:, None] * base.scale_tril()
    diagonal = scale_tril.diagonal(dim1=-2, dim2=-1)
    base.means.copy_(mean + scale * base.means)
    base.lower.copy_(scale_tril)
    base.diagonal.copy_(diagonal + torch.log(-torch.expm1(-diagonal)))  # softplus's inverse
    return base


def _kernels(train: np.ndarray, held_out: np.ndarray, weight: np.ndarray, most: int, seed: int) -> bases.Kernels:
    """A kernel density estimate: a Gaussian around every row, all of one bandwidth, chosen on held-out rows."""
    from sklearn.neighbors import KernelDensity

    scores = [
        np.average(KernelDensity(bandwidth=h).fit(train).score_samples(held_out), weights=weight)
        if len(held_out)
        else -h
        for h in BANDWIDTHS
    ]
    base = bases.Kernels(train.shape[1], len(train)).double()
    base.centres.copy_(torch.from_numpy(train))
    base.log_bandwidth.fill_(math.log(BANDWIDTHS[int(np.argmax(scores))]))
    return base
