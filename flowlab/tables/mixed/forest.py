"""`Forest`: the distribution of each variable given those before it, from the values in the leaves of decision trees.

For numbers a leaf stands for a kernel density estimate around its values, or for those of them that are repeated ones
(atoms of the `MarginalCDF`); for classes it stands for their frequencies. Trees see a number as its normal quantile,
NaN where it is missing, and a class as a score of its own for each variable that is predicted.

Sources: Reiter 2005, "Using CART to generate partially synthetic public use microdata" (sequential trees); Meinshausen
2006, "Quantile regression forests" (a forest's leaves as a conditional distribution).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from flowlab.registry import register
from flowlab.tables.mixed.networks import outcomes_of

PRIOR = 1.0  # rows that the marginal distribution of a class counts as in each leaf
DENSE = 2_000_000  # class probabilities computed at once


@register
class Forest(nn.Module):
    """Trees as arrays. A node's left child is the next node; values in leaves are entries.

    Args:
        classes: Number of classes of each variable, 0 for numbers.
        nullable: Whether each variable can be missing; for a class that is one more outcome.
        order: The variables in their order. The first one has no trees.
        trees: Trees of each other variable.
        nodes: Nodes of all trees together.
        entries: Entries of all leaves together.
    """

    roots: Tensor
    feature: Tensor
    threshold: Tensor
    missing_left: Tensor
    right: Tensor
    bandwidth: Tensor
    rows: Tensor
    gone: Tensor
    size: Tensor
    code: Tensor
    z: Tensor
    share: Tensor
    scores: Tensor
    frequency: Tensor
    first: Tensor
    through: Tensor
    mean: Tensor

    def __init__(
        self,
        classes: Sequence[int],
        nullable: Sequence[bool],
        order: Sequence[int],
        trees: int,
        nodes: int,
        entries: int,
    ) -> None:
        super().__init__()
        if sorted(order) != list(range(len(classes))) or len(nullable) != len(classes):
            raise ValueError("classes, nullable and order must be about the same variables")
        self.classes, self.nullable, self.order = list(classes), list(nullable), list(order)
        self.trees, self.nodes, self.entries = trees, nodes, entries
        self.outcomes = outcomes_of(self.classes, self.nullable)
        # The trees of a variable see each outcome of the classes before it as a score: where those of one class begin,
        # and where those for one variable do.
        self.before = [0, *accumulate(self.outcomes[j] for j in self.order)]
        self.begin = [0, *accumulate(self.before[:-1])]
        whole, real = torch.int32, torch.float32
        self.register_buffer("roots", torch.zeros(len(self.order) - 1, trees, dtype=whole))  # of all but the first
        self.register_buffer("feature", torch.full((nodes,), -1, dtype=whole))  # the variable asked; -1 for a leaf
        self.register_buffer("threshold", torch.zeros(nodes, dtype=torch.float64))  # up to it rows go to the left
        self.register_buffer("missing_left", torch.zeros(nodes, dtype=torch.bool))
        self.register_buffer("right", torch.zeros(nodes, dtype=whole))
        self.register_buffer("bandwidth", torch.ones(nodes, dtype=real))  # of a leaf's kernels, in the normal scale
        self.register_buffer("rows", torch.zeros(nodes, dtype=real))  # training rows in a leaf, by weight
        self.register_buffer("gone", torch.zeros(nodes, dtype=real))  # probability of being missing there, for numbers
        self.register_buffer("size", torch.zeros(nodes, dtype=whole))  # entries of a leaf
        self.register_buffer("code", torch.zeros(entries, dtype=whole))  # outcome of a class; atom of a number, or -1
        self.register_buffer("z", torch.zeros(entries, dtype=real))  # the normal quantile of a number
        self.register_buffer("share", torch.zeros(entries, dtype=real))  # of its leaf's rows
        self.register_buffer("scores", torch.zeros(self.begin[-1], dtype=real))
        self.register_buffer("frequency", torch.zeros(sum(self.outcomes), dtype=torch.float64))  # of all outcomes
        # What follows from these, for look-ups.
        places, means = torch.zeros(nodes, dtype=torch.long), torch.zeros(nodes, dtype=torch.float64)
        self.register_buffer("first", places, persistent=False)  # the index of each node's first entry
        self.register_buffer(
            "through", torch.zeros(entries + 1, dtype=torch.float64), persistent=False
        )  # sums of shares
        self.register_buffer("mean", means, persistent=False)  # of a leaf's values, in the normal scale
        self.register_load_state_dict_post_hook(_check)

    def index(self) -> None:
        """Work out what follows from the entries."""
        size, share = self.size.long(), self.share.double()
        self.first.copy_(size.cumsum(0) - size)
        self.through[1:] = share.cumsum(0)
        owner = torch.arange(self.nodes, device=size.device).repeat_interleave(size)
        self.mean.zero_().index_add_(0, owner, share * self.z.double())

    def frequencies(self, variable: int) -> Tensor:
        """The frequencies (outcomes,) of a class variable's outcomes in training."""
        start = sum(self.outcomes[:variable])
        return self.frequency[start : start + self.outcomes[variable]]

    def leaves(self, variable: int, seen: Tensor, trees: Tensor | None = None) -> Tensor:
        """The leaves (n, trees) of one variable's trees that rows fall into.

        Args:
            variable: The variable.
            seen: Codes and normal quantiles of all variables (variables, n), NaN for numbers that are missing; those of
                variables before it count.
            trees: The trees to ask (n, trees), all when None.
        """
        i, inputs = self.order.index(variable), torch.zeros_like(seen, dtype=torch.float32)
        for k, other in enumerate(self.order[:i]):
            if self.classes[other]:
                inputs[other] = self.scores.to(inputs)[self.begin[i] + self.before[k] + seen[other].long()]
            else:
                inputs[other] = seen[other]
        n, roots = seen.shape[1], self.roots[i - 1].long()
        start = roots.expand(n, -1) if trees is None else roots[trees]
        node = start.flatten().clone()  # of one tree, flatten gives a view in which all rows share one number
        row = torch.arange(n, device=seen.device).repeat_interleave(start.shape[1])
        active = torch.arange(len(node), device=seen.device)
        while len(active):
            at = node[active]
            feature = self.feature[at].long()
            inner = feature >= 0
            active, at, feature = active[inner], at[inner], feature[inner]
            value = inputs[feature, row[active]].double()
            left = torch.where(torch.isnan(value), self.missing_left[at], value <= self.threshold[at])
            node[active] = torch.where(left, at + 1, self.right[at].long())
        return node.view(start.shape)

    def entries_of(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """All values in leaves (n, trees): the place of each one's leaf among these (entries,), and its index."""
        flat = nodes.flatten()
        size = self.size[flat].long()
        owner = torch.arange(len(flat), device=flat.device).repeat_interleave(size)
        within = torch.arange(len(owner), device=flat.device) - (size.cumsum(0) - size)[owner]
        return owner, self.first[flat][owner] + within

    def draw_entry(self, nodes: Tensor, uniform: Tensor) -> Tensor:
        """The index of a value in each of some leaves (n,), drawn by its share; meaningless for leaves without any."""
        first, size = self.first[nodes], self.size[nodes].long()
        start, end = self.through[first], self.through[first + size]
        entry = torch.searchsorted(self.through, start + uniform * (end - start), right=True) - 1
        return torch.minimum(torch.maximum(entry, first), first + size - 1).clamp(0, self.entries - 1)

    def class_probabilities(self, variable: int, seen: Tensor) -> Tensor:
        """Probabilities (outcomes, n) of a class variable's outcomes, given the variables before it (variables, n)."""
        outcomes = self.outcomes[variable]
        parts = []
        for chunk in seen.split(max(DENSE // outcomes, 1), 1):
            leaves = self.leaves(variable, chunk)
            owner, entry = self.entries_of(leaves)
            rows = self.rows[leaves].double()
            of_leaf = (rows / (rows + PRIOR) / self.trees).flatten()
            out = torch.zeros(chunk.shape[1] * outcomes, dtype=torch.float64, device=seen.device)
            place = owner // self.trees * outcomes + self.code[entry]
            out.index_add_(0, place, self.share[entry].double() * of_leaf[owner])
            rest = 1 - of_leaf.view(leaves.shape).sum(1)
            parts.append(out.view(-1, outcomes).T + rest * self.frequencies(variable).unsqueeze(1))
        return torch.cat(parts, 1)

    def check_codes(self, counts: Mapping[int, int], least: int) -> None:
        """Raise a ValueError unless the codes in the leaves of variables are at least `least` and below a count.

        Args:
            counts: The count of each variable; nothing is asked of those with a count of 0, or without one.
            least: The least code.
        """
        starts, size = self.roots.cpu().flatten().contiguous(), self.size.cpu().long()
        owner = torch.arange(self.nodes).repeat_interleave(size).int()
        tree = torch.searchsorted(starts, owner, right=True) - 1
        later = torch.tensor([counts.get(j, 0) for j in self.order[1:]], dtype=torch.long)
        if not len(owner) or not len(later):
            return
        count, code = later[tree.div(max(self.trees, 1), rounding_mode="floor")], self.code.cpu().long()
        if bool(((count > 0) & ((code < least) | (code >= count))).any()):
            raise ValueError("a value in the leaves of a Forest is none of its variable's")

    def extra_repr(self) -> str:
        return f"{len(self.order)} variables, {self.trees} trees each, {self.nodes} nodes"


def _check(forest: Forest, _: object) -> None:
    """Raise a ValueError unless tensors from a file are trees, whose paths end, with leaves that are distributions."""
    nodes = torch.arange(forest.nodes)
    feature, right, size = (part.cpu().long() for part in (forest.feature, forest.right, forest.size))
    inner = feature >= 0
    fits = bool((feature < len(forest.classes)).all()) and bool((feature >= -1).all())
    fits = fits and bool((right[inner] > nodes[inner]).all()) and bool((right[inner] < forest.nodes).all())
    fits = fits and not bool(inner[-1:].any()) and bool((size >= 0).all()) and int(size.sum()) == forest.entries
    roots = forest.roots.cpu().long()
    fits = fits and bool((roots >= 0).all()) and bool((roots < max(forest.nodes, 1)).all())
    for name in ("threshold", "bandwidth", "rows", "gone", "z", "share", "scores", "frequency"):
        fits = fits and bool(torch.isfinite(forest.get_buffer(name)).all())
    fits = fits and bool((forest.bandwidth > 0).all()) and bool((forest.rows >= 0).all())
    for name in ("gone", "share", "frequency"):
        part = forest.get_buffer(name)
        fits = fits and bool((part >= 0).all()) and bool((part <= 1 + 1e-6).all())
    if not fits or bool((forest.code < -1).any()):
        raise ValueError("the trees of a Forest are none")
    total = torch.zeros(forest.nodes, dtype=torch.float64).index_add_(
        0, nodes.repeat_interleave(size), forest.share.cpu().double()
    )
    if bool(((total - 1).abs()[size > 0] > 1e-3).any()):
        raise ValueError("the shares of a Forest's leaves do not sum to one")
    _check_codes(forest)
    forest.index()


def _check_codes(forest: Forest) -> None:
    """Raise a ValueError unless trees begin one after another, and class variables' entries are outcomes of theirs."""
    starts = forest.roots.cpu().flatten()
    if len(starts) and (int(starts[0]) != 0 or bool((starts.diff() <= 0).any())):
        raise ValueError("the roots of a Forest are not in order")
    forest.check_codes(dict(enumerate(forest.outcomes)), least=0)
    sums = [float(forest.frequencies(j).sum()) for j, k in enumerate(forest.outcomes) if k]
    if any(not math.isclose(total, 1, abs_tol=1e-6) for total in sums):
        raise ValueError("the frequencies of a Forest's outcomes do not sum to one")
