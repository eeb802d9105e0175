"""The distribution of a number that the values in leaves of trees stand for."""

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from flowlab.tables.mixed.distributions import Uniform
from flowlab.tables.mixed.heads import Cells, quantile
from flowlab.tables.mixed.marginal_cdf import MarginalCDF

if TYPE_CHECKING:
    from flowlab.tables.mixed.forest import Forest

KINDS = ("kernels", "shifted", "atoms")


class Entries(NamedTuple):
    """Values in the leaves that rows fall into, one after another, row by row; each (entries,) but the last.

    Attributes:
        row: The row that each belongs to, ascending.
        share: Its share of the row's probability.
        centre: Its normal quantile.
        shift: What leads from the mean of its leaf to the mean over the row's leaves.
        scale: The bandwidth of its leaf.
        start: The lower end of its atom in [0, 1].
        width: The width of that atom; 0 for values that are none.
        rest: The share (n,) of leaves without values, which stand for the marginal distribution.
    """

    row: Tensor
    share: Tensor
    centre: Tensor
    shift: Tensor
    scale: Tensor
    start: Tensor
    width: Tensor
    rest: Tensor


class Leaves:
    """The leaves of one variable's trees that rows fall into, found when they are asked for.

    Args:
        forest: The trees.
        variable: The variable, a number.
        seen: What trees see of the rows (variables, n).
        marginal: The variable's marginal distribution.
    """

    def __init__(self, forest: "Forest", variable: int, seen: Tensor, marginal: MarginalCDF) -> None:
        self.forest, self.variable, self.seen, self.marginal = forest, variable, seen, marginal
        self.last: tuple[Tensor, Leaves] | None = None

    def take(self, rows: Tensor) -> "Leaves":
        """The leaves of some rows, by a mask (n,); once for all kinds of distributions that ask for the same ones."""
        if self.last is None or self.last[0] is not rows:
            taken = Leaves(self.forest, self.variable, self.seen[:, rows], self.marginal)
            if self.found:
                taken.nodes = self.nodes[rows]
            self.last = rows, taken
        return self.last[1]

    @property
    def found(self) -> bool:
        """Whether the leaves of all trees have been asked for."""
        return "nodes" in vars(self)

    def in_trees(self, tree: Tensor) -> Tensor:
        """The leaf (n,) in one tree (n,) for each row."""
        if self.found:
            return self.nodes.gather(1, tree.unsqueeze(1))[:, 0]
        return self.forest.leaves(self.variable, self.seen, tree.unsqueeze(1))[:, 0]

    @cached_property
    def nodes(self) -> Tensor:
        """The leaves (n, trees)."""
        return self.forest.leaves(self.variable, self.seen)

    @cached_property
    def common_mean(self) -> Tensor:
        """The mean (n,) over the row's leaves of the means of their values."""
        filled = (self.forest.size[self.nodes] > 0).double()
        return (self.forest.mean[self.nodes] * filled).sum(1) / filled.sum(1).clamp(min=1)

    @cached_property
    def missing(self) -> Tensor:
        """The probability (n,) of being missing."""
        if not self.forest.nullable[self.variable]:  # leaves need not be found for that
            return torch.zeros(self.seen.shape[1], dtype=torch.float64, device=self.seen.device)
        return self.forest.gone[self.nodes].double().mean(1)

    @cached_property
    def entries(self) -> Entries:
        """All their values."""
        forest, nodes = self.forest, self.nodes
        owner, entry = forest.entries_of(nodes)
        filled = (forest.size[nodes] > 0).double().mean(1)
        start, width = self.atoms(entry)
        row = owner // forest.trees
        return Entries(
            row,
            forest.share[entry].double() / forest.trees,
            forest.z[entry].double(),
            self.common_mean[row] - forest.mean[nodes.flatten()][owner],
            forest.bandwidth[nodes.flatten()][owner].double(),
            start,
            width,
            1 - filled,
        )

    def atoms(self, entry: Tensor) -> tuple[Tensor, Tensor]:
        """Lower ends and widths of the atoms that values are; zero for values that are none."""
        atom = self.forest.code[entry].long()
        if not self.marginal.atoms:
            return torch.zeros_like(atom, dtype=torch.float64), torch.zeros_like(atom, dtype=torch.float64)
        place, exact = atom.clamp(min=0), atom >= 0
        starts, shares = self.marginal.starts[place], self.marginal.shares[place]
        return torch.where(exact, starts, 0), torch.where(exact, shares, 0)


class LeafDistribution:
    """What the values in the leaves of a number's trees stand for, in the normal scale.

    Args:
        leaves: The leaves.
        kind: "kernels" (a Gaussian around each value), "shifted" (the same, with the values of each leaf moved so that
            their mean is that over all of the row's leaves: trees agree on the mean, and leaves say how values vary
            around it), or "atoms" (values that are atoms stand for themselves, others for a Gaussian).
    """

    def __init__(self, leaves: Leaves, kind: str) -> None:
        self.leaves, self.kind = leaves, kind
        self.exact = kind == "atoms"

    @cached_property
    def centre(self) -> Tensor:
        """Where each value's Gaussian lies (entries,)."""
        entries = self.leaves.entries
        return entries.centre + entries.shift if self.kind == "shifted" else entries.centre

    @property
    def missing(self) -> Tensor:
        return self.leaves.missing

    @property
    def log_present(self) -> Tensor:
        return torch.log1p(-self.missing)

    def take(self, rows: Tensor) -> "LeafDistribution":
        return LeafDistribution(self.leaves.take(rows), self.kind)

    def _sum(self, parts: Tensor) -> Tensor:
        """The sum of entries (*points, entries) over each row: (*points, n)."""
        entries = self.leaves.entries
        out = parts.new_zeros(*parts.shape[:-1], len(entries.rest))
        return out.index_add_(-1, entries.row, parts)

    def _below(self, rank: Tensor) -> Tensor:
        """The share of each entry's probability at ranks up to `rank` (*points, n): (*points, entries)."""
        entries = self.leaves.entries
        smooth = torch.special.ndtr((quantile(rank)[..., entries.row] - self.centre) / entries.scale)
        if not self.exact:
            return smooth
        inside = ((rank[..., entries.row] - entries.start) / entries.width.clamp(min=1e-300)).clamp(0, 1)
        return torch.where(entries.width > 0, inside, smooth)

    def log_prob(self, cells: Cells) -> Tensor:
        entries = self.leaves.entries
        low, high = cells.low, (cells.low + cells.width).clamp(max=1)
        mass = self._sum(entries.share * (self._below(high) - self._below(low)).clamp(min=0))
        mass = (mass + entries.rest * cells.width).log()
        point = cells.width == 0
        if not bool(point.any()):
            return mass + cells.log_slope
        distance = (cells.z_low[entries.row] - self.centre) / entries.scale
        smooth = (-distance.square() / 2).exp() / entries.scale
        if self.exact:
            smooth = torch.where(entries.width > 0, 0, smooth)
        # A density of z becomes one of the rank by the normal density there.
        density = self._sum(entries.share * smooth).log() + cells.z_low.square() / 2
        return torch.where(point, torch.logaddexp(density, entries.rest.log()), mass) + cells.log_slope

    def cdf(self, rank: Tensor) -> Tensor:
        entries = self.leaves.entries
        return self._sum(entries.share * self._below(rank)) + entries.rest * rank

    def draw(self, uniform: Uniform) -> Tensor:
        leaves, forest, n = self.leaves, self.leaves.forest, self.leaves.seen.shape[1]
        centre = leaves.common_mean if self.kind == "shifted" else None  # which finds the leaves of all trees
        tree = (uniform(n) * forest.trees).long().clamp(max=forest.trees - 1)
        node = leaves.in_trees(tree)
        entry, level = forest.draw_entry(node, uniform(n)), uniform(n)
        z = forest.z[entry].double()
        if centre is not None:
            z = z + centre - forest.mean[node]
        z = z + forest.bandwidth[node].double() * torch.special.ndtri(level)
        rank = torch.special.ndtr(z)
        if self.exact:
            start, width = leaves.atoms(entry)
            rank = torch.where(width > 0, start + level * width, rank)
        return torch.where(forest.size[node] > 0, rank, level)

    def draw_between(self, low: Tensor, high: Tensor, uniform: Uniform) -> Tensor:
        entries, n = self.leaves.entries, self.leaves.seen.shape[1]
        below, above = self._below(low), self._below(high)
        mass = (entries.share * (above - below)).clamp(min=0)
        through = torch.cat([mass.new_zeros(1), mass.cumsum(0)])
        ends = torch.searchsorted(entries.row, torch.arange(n, device=mass.device), right=True)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        total = through[ends] - through[starts]
        level, second = uniform(n) * (total + entries.rest * (high - low)), uniform(n)
        plain = low + second * (high - low)  # of rows whose values have no probability here
        if not len(mass):
            return plain
        entry = torch.searchsorted(through, through[starts] + level, right=True) - 1
        entry = torch.minimum(torch.maximum(entry, starts), ends - 1).clamp(min=0)
        place = below[entry] + second * (above[entry] - below[entry])
        rank = torch.special.ndtr(self.centre[entry] + entries.scale[entry] * torch.special.ndtri(place))
        if self.exact:
            width = entries.width[entry]
            rank = torch.where(width > 0, entries.start[entry] + place * width, rank)
        rank = torch.where((level >= total) | (total <= 0), plain, rank)
        return torch.minimum(torch.maximum(rank, low), high)
