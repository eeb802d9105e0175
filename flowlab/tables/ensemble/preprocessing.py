"""Preprocessing between a table's numbers and a member's core, fitted to training rows and part of the density."""

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from flowlab.flow import CHUNK
from flowlab.layers import Layer, Marginal, Whitening
from flowlab.runtime import threads
from flowlab.tables.codec.columns import Variable
from flowlab.tables.ensemble.mixtures import learn_gaussians
from flowlab.tables.mixed.gaussians import Gaussians
from flowlab.tables.mixed.marginal_cdf import MarginalCDF, learn_marginal_cdf

if TYPE_CHECKING:
    from flowlab.tables.ensemble.families import Fold

# Layers on the data side, in sampling order.
LAYERS: dict[str, tuple[type[Layer], ...]] = {
    "none": (),
    "marginal": (Marginal,),
    "marginal-whitening": (Whitening, Marginal),
    "whitening-marginal": (Marginal, Whitening),
}


class Preprocessing:
    """Preprocessing layers in double precision, fitted to rows once and shared by all members.

    Args:
        rows: Training rows (n, features).
        like: The preprocessing of another fold, whose numbers of bins are reused: choosing them takes most of the time.
    """

    def __init__(self, rows: Tensor, like: "Preprocessing | None" = None) -> None:
        self.like = like
        self.fitted: dict[tuple[type[Layer], ...], tuple[list[Layer], Tensor]] = {(): ([], rows)}

    def layers(self, name: str) -> list[Layer]:
        """The layers of that name, in sampling order."""
        return copy.deepcopy(self._fit(LAYERS[name])[0])

    @torch.no_grad()
    def _fit(self, kinds: tuple[type[Layer], ...]) -> tuple[list[Layer], Tensor]:
        if kinds not in self.fitted:
            outer, rows = self._fit(kinds[1:])  # layers nearer to the data are fitted first
            features, other = rows.shape[1], None if self.like is None else self.like._fit(kinds)[0][0]
            known = isinstance(other, Marginal) and other.chosen
            layer = (Marginal(features, bins=known) if known else kinds[0](features)).double()
            layer.initialise(rows)
            self.fitted[kinds] = [layer, *outer], torch.cat([layer.inverse(chunk)[0] for chunk in rows.split(CHUNK)])
        return self.fitted[kinds]


class Marginals:
    """The `MarginalCDF` of each number, and a Gaussian mixture of all, fitted once and shared by all members.

    Args:
        fold: The training rows.
        variables: The variables.
        spanning: Training and held-out rows (m, variables), whose range samples may have.
    """

    def __init__(self, fold: "Fold", variables: Sequence[Variable], spanning: Tensor) -> None:
        self.fold = fold
        self.numbers = [j for j, variable in enumerate(variables) if not variable.classes]
        self.mixtures: dict[tuple[int, int], Gaussians | None] = {}
        self.cdfs = []
        for variable, x, whole in zip(variables, fold.train.T, spanning.T, strict=True):
            if not variable.classes:
                observed = ~torch.isnan(x)
                lower, upper = (end if math.isfinite(end) else None for end in (variable.lower, variable.upper))
                self.cdfs.append(
                    learn_marginal_cdf(
                        x[observed],
                        resolution=variable.resolution,
                        atoms=variable.atoms,
                        lower=lower,
                        upper=upper,
                        weight=fold.weight[observed],
                        spanning=whole[~torch.isnan(whole)],
                    )
                )

    def layers(self, name: str) -> list[MarginalCDF]:
        """A copy for one member, whatever the name."""
        return copy.deepcopy(self.cdfs)

    def gaussians(self, rows: int, most: int, seed: int) -> Gaussians | None:
        """The Gaussian mixture of the numbers, for all members that ask for one of these sizes.

        Args:
            rows: Number of training rows to fit to at most.
            most: Components at most.
            seed: Seed of everything random.
        """
        if (rows, most) not in self.mixtures:
            chosen = self.fold.subsample(rows, seed)
            z = torch.full((len(chosen), len(self.numbers)), math.nan, dtype=torch.float64)
            for k, (variable, cdf) in enumerate(zip(self.numbers, self.cdfs, strict=True)):
                there = ~torch.isnan(chosen[:, variable])
                z[there, k] = cdf.cell(chosen[there, variable]).middle
            with threads(1), threadpool_limits(1):  # the same on every machine
                self.mixtures[rows, most] = learn_gaussians(z, self.numbers, most, seed)
        return self.mixtures[rows, most]
