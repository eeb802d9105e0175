"""`Member`: the specification of one density of the mixture, rules for its sizes, and the members of each effort."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from flowlab.hints import hints_of, made, shown
from flowlab.tables.codec.table import Table
from flowlab.tables.frames.records import set_fields

PREPROCESSING = ("none", "marginal", "marginal-whitening", "whitening-marginal")
KINDS = ("autoregressive", "spline", "mixture", "kernel", "copula", "broad", "mixed")
TRAINED = ("autoregressive", "spline", "mixed")
WIDE = 50_000  # values in a table of few rows from which it counts as wide


@dataclass(frozen=True)
class Sizes:
    """The sizes of one member, all decided; the fields are those of `Member`."""

    layers: int
    hidden: tuple[int, ...]
    components: int
    dropout: float
    steps: int
    batch_size: int
    learning_rate: float
    trees: int
    gaussians: int


def network_sizes(kind: str, rows: int, features: int) -> Sizes:
    """The rule for flows of numbers, from training rows and columns."""
    batch = max(32, min(256, rows // 8))
    return Sizes(
        layers=3 if kind == "spline" else 2,
        hidden=(128, 128) if rows >= 500 else (64, 64),
        components=8 if kind in TRAINED else 64,
        dropout=0.2 if rows < 5_000 else 0.1 if rows < 20_000 else 0.0,
        batch_size=batch,
        steps=min(max(40 * rows // batch, 300), 3000 if rows >= 20_000 and features <= 15 else 1500),
        learning_rate=1e-2,
        trees=0,
        gaussians=0,
    )


def mixed_sizes(kind: str, rows: int, variables: int) -> Sizes:
    """The rule for mixed flows, from training rows and variables."""
    batch = 64 if rows < 1_500 else 128 if rows < 20_000 or variables > 60 else 256
    return Sizes(
        layers=1,
        hidden=(96,) if rows >= 20_000 and variables <= 30 else (64,) if variables <= 60 else (32,),
        components=8,
        dropout=0.3 if rows < 4_000 else 0.1 if rows < 20_000 else 0.0,
        batch_size=batch,
        steps=min(max(10 * rows // batch, 150), 1_500),
        learning_rate=1e-2,
        trees=10,
        gaussians=24,
    )


SIZES = {"mixed": mixed_sizes}  # of all other kinds: network_sizes


@dataclass(frozen=True)
class Member:
    """One density of the mixture: its family and its sizes. Sizes of None follow from the table (`sized`).

    Attributes:
        kind: "autoregressive" (masked networks, Gaussian mixture maps, random orders of the columns), "spline" (the
            same with rational-quadratic splines), "mixture" (Gaussian mixture with full covariances, its number of
            components and its regularisation chosen on held-out rows), "kernel" (a Gaussian around each row), "copula"
            (Gaussian), "broad" (Student-t tails), all for tables of complete numbers; or "mixed" (`MixedFlow`), for
            any table.
        preprocessing: Layers on the data side: "none" (networks still standardise columns), "marginal" (each column
            made Gaussian), "marginal-whitening", "whitening-marginal", or "auto", which a short race decides.
        rank: With "auto", the place in the race whose preprocessing is taken, 0 for the winner. For "mixed": 0 for the
            columns' own order, those with few levels first, else a random one.
        layers: Autoregressive layers; residual blocks of "mixed".
        hidden: Widths of each layer's network.
        components: Gaussians per column and layer, bins of a spline, or maximal components of a mixture.
        dropout: Share of hidden units dropped in training.
        steps: Maximal number of training steps.
        batch_size: Rows per step.
        learning_rate: Peak learning rate.
        trees: Decision trees per column of "mixed"; 0 for networks alone.
        gaussians: Components, at most, of the Gaussian mixture of the numbers in "mixed"; 0 for none.
        rows: Maximal number of training rows for a Gaussian mixture, that of "mixed" too.
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
    trees: int | None = None
    gaussians: int | None = None
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

    def sizes(self, rows: int, features: int) -> "Sizes":
        """The sizes for a table: the member's own, else those of its family's rule.

        Args:
            rows: Rows to train on.
            features: Variables.
        """
        rule = SIZES.get(self.kind, network_sizes)(self.kind, rows, features)
        asked = {f.name: getattr(self, f.name) for f in fields(Sizes)}
        return replace(rule, **{name: value for name, value in asked.items() if value is not None})

    def sized(self, rows: int, features: int) -> "Member":
        """The member with every size filled in, by the rows to train on and their columns."""
        return replace(self, **vars(self.sizes(rows, features)))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Member":
        """The member that `to_json` wrote."""
        if not isinstance(data, dict):
            raise ValueError(f"a member is {shown(data)}")
        return made(cls, {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}, HINTS)

    def __repr__(self) -> str:
        return f"Member({set_fields(self)})"

    def __str__(self) -> str:
        if self.kind == "mixed":
            trees = f", {self.trees} trees a column" if self.trees else ""
            order = "random" if self.rank else "their own"
            return f"mixed (columns in {order} order, networks of {self.hidden}{trees})"
        sizes = f", {self.layers} layers of {self.hidden}, {self.components} components" if self.trained else ""
        return f"{self.kind} ({self.preprocessing}{sizes})"


def fold_count(effort: str, rows: int, features: int, mixed: bool = False) -> int:
    """Number of folds below 2,000 rows: fewer for costly fits, one for a fast fit of flows to a wide table."""
    wide = rows * features > WIDE
    return 1 if effort == "fast" and wide and not mixed else 3 if effort == "fast" or mixed or wide else 5


HINTS = hints_of(Member)


def recipe(effort: str, rows: int, features: int, joint: bool = False) -> list[Member]:
    """The members that an effort fits to a table: with conditional densities, and for complete numbers joint ones."""
    if effort == "fast":
        conditional = [
            Member("mixed", "none", steps=min(max(4 * rows // 128, 150), 300), trees=5, gaussians=16, rows=3_000)
        ]
    else:
        many: dict[str, Any] = (
            {"steps": min(max(60 * rows // 128, 1_000), 6_000), "trees": 20} if effort == "best" else {}
        )
        conditional = [Member("mixed", "none", rank=i, **many) for i in range(3 if effort == "default" else 10)]
    return [*joint_recipe(effort, rows, features), *conditional] if joint else conditional


def joint_recipe(effort: str, rows: int, features: int) -> list[Member]:
    """The members without conditional densities that an effort fits to a table of complete numbers."""
    mixtures = [Member("mixture", p) for p in ("none", "marginal", "whitening-marginal")]
    simple = [Member("copula", "marginal-whitening"), Member("broad", "marginal-whitening")]
    if rows <= 5_000:
        simple.append(Member("kernel", "marginal-whitening"))
    if effort == "fast":
        quick = [replace(m, rows=5_000, components=32) for m in mixtures[:2]]
        steps = min(300 if rows >= 2_000 else 200, max(9_000 // features, 100))
        first = "auto" if features <= 30 else "marginal-whitening"  # a race of wide networks takes long
        return [Member("autoregressive", first, steps=steps, learning_rate=1e-2), *quick, *simple[:2]]
    if effort == "default":  # a flow of numbers costs one fit for each fold, and gains where there are many rows
        flows = [Member("autoregressive")] if rows >= 2_000 else []
        return [*flows, *(replace(m, rows=10_000) for m in mixtures), *simple]
    more: dict[str, Any] = {"steps": min(max(300 * rows // 256, 2000), 20_000), "learning_rate": 5e-3}
    return [
        *(Member("autoregressive", rank=i // 3, **more) for i in range(6)),
        *(Member("spline", rank=i // 2, **more) for i in range(4)),
        *(replace(m, rows=100_000) for m in mixtures),
        *simple,
    ]


def choose_members(
    asked: Sequence[Member | str] | None, effort: str, preprocessing: str, table: Table, rows: int, joint: bool
) -> list[Member]:
    """The members to fit to a table.

    Args:
        asked: Members, or names of their kinds; None takes those that the effort stands for.
        effort: The effort.
        preprocessing: For members that leave it open.
        table: The table.
        rows: Rows of the training matrix.
        joint: Whether there may be members without conditional densities: for complete numbers alone.

    Raises:
        ValueError: No member is named, or a member cannot model the table.
    """
    features = len(table.variables)
    if not features:
        return []
    if asked is None:
        members = recipe(effort, rows, features, joint)
    else:
        members = [Member(member) if isinstance(member, str) else member for member in asked]
    if not members:
        raise ValueError("members is empty: name at least one, or leave it None")
    kinds = sorted({member.kind for member in members if member.kind != "mixed"})
    if kinds and not joint:
        numeric = ("continuous", "integer", "derived", "constant", "duplicate")
        odd = [c.name for c in table.schema if c.missing or c.kind not in numeric]
        raise ValueError(
            f"members {', '.join(kinds)} model tables of complete numbers alone, and "
            + (f"columns {odd} hold what is no number, or a missing cell" if odd else "a target is asked of the others")
            + ': take "mixed" members'
        )
    if preprocessing == "auto":
        return members
    return [replace(m, preprocessing=preprocessing) if m.preprocessing == "auto" else m for m in members]
