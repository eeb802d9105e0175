"""Differentially private densities of tables: networks trained by DP-SGD, and nothing else that reads the rows.

What a column may hold comes from a declared schema: types, ranges, grids and levels. Ranks come from noisy counts on
the declared range (private_ranks.py). There are no trees, Gaussian mixtures, folds, races or held-out rows, and no
record of losses: with those counts and the networks' weights all that depends on a row is spent. Everything else
depends on the schema, the number of rows and the seed.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from flowlab.arguments import real
from flowlab.runtime import threads
from flowlab.tables.codec.codec import Codec
from flowlab.tables.codec.columns import describe, possible_cells
from flowlab.tables.codec.table import Table
from flowlab.tables.ensemble.ensemble import Report, assembled
from flowlab.tables.ensemble.families import BINS, FEW_LEVELS
from flowlab.tables.ensemble.member import Member, Sizes
from flowlab.tables.fitted import Fitted
from flowlab.tables.frames import cells
from flowlab.tables.mixed.heads import HistogramAndLogistics
from flowlab.tables.mixed.marginal_cdf import MarginalCDF
from flowlab.tables.mixed.mixed_flow import MixedFlow
from flowlab.tables.mixed.networks import RANDOM_ORDERS, ConditionalNetworks
from flowlab.tables.private_ranks import noisy_ranks
from flowlab.tables.schema import ColumnSchema, Schema
from flowlab.tables.schema.column import LEVELLED, NUMERIC
from flowlab.tables.schema.schema import read_overrides
from flowlab.training.private import Batch, Privacy, fit_privately, planned

COUNTED = 0.15  # part of the budget (of its Rényi divergence) that the counts of numbers take
CLIPPING_NORM = 1.0  # 0.3 gains half a nat on five columns of diamonds at ε = 3, and loses more on all ten
PLAIN = {  # what a private fit cannot do anything else with, and why
    "effort": ("default", "a private fit has one set of networks"),
    "members": (None, "a private fit has one set of networks"),
    "preprocessing": ("auto", "ranks come from declared ranges"),
    "time_limit": (None, "the number of steps is fixed before the rows are read"),
    "validation": (0.1, "no row is held out"),
    "rules": (None, "rules are learnt from rows"),
    "checkpoint": (None, "it would hold a digest of the rows, and weights along the way"),
    "warm_start": (False, "what was spent before would have to be added"),
    "callback": (None, "losses tell of the rows"),
}
DECLARED = {  # the fields of each kind that a schema has to declare, and those that it may
    **dict.fromkeys(NUMERIC, (("lower", "upper"), ("resolution",))),
    "categorical": (("categories",), ()),
    "boolean": ((), ()),
}


def refuse(params: Mapping[str, Any], weighted: bool, plain: bool) -> None:
    """Raise a ValueError that names the first thing asked for that a private fit does not have.

    Args:
        params: The parameters of the `FlowDensity`.
        weighted: Whether rows have weights.
        plain: Whether the rows came as a pandas table or an array, and are all that is fitted.
    """
    for name, (default, why) in PLAIN.items():
        if params[name] != default:
            raise ValueError(f"privacy: {name} must be left out, not {params[name]!r}: {why}")
    if weighted:
        raise ValueError("privacy: sample_weight must be left out: a weight would scale what a row gives away")
    if not plain:
        raise ValueError("privacy: give rows as a pandas DataFrame or an array, and no target: other types hold levels")
    if params["device"] != "cpu":
        raise ValueError(f"privacy: device must be 'cpu', not {params['device']!r}: the noise is drawn there")
    schema = params["schema"]
    if not isinstance(schema, Mapping) or any(isinstance(given, ColumnSchema) for given in schema.values()):
        raise ValueError(
            "privacy: schema must be a dict that declares every column, {'age': {'kind': 'integer', 'lower': 0, "
            f"'upper': 120}}, ...}}, and not be inferred from rows; got {type(schema).__name__}"
        )


def declared_table(frame: pd.DataFrame, schema: Mapping[Any, Any], array: bool) -> Table:
    """The columns of a table as they were declared; of the frame it sees the names of its columns.

    Raises:
        ValueError: A column is not declared, or not wholly; the message names it.
    """
    said = read_overrides(schema, list(frame.columns))
    names = [cells.plain_label(name) for name in frame.columns]
    columns = [declared_column(name, said.get(name)) for name in names]
    label = frame.columns.name
    labels = cells.spell(frame.columns.dtype), label if isinstance(label, str | int) else None
    return Table(Codec(Schema(columns, labels)), [], [c.name for c in columns if c.kind != "excluded"], array)


def declared_column(name: Any, given: Mapping[str, Any] | None) -> ColumnSchema:
    """One column from its declaration alone."""
    kind = (given or {}).get("kind")
    if given is None or kind is None:
        raise ValueError(
            f"privacy: schema says nothing of the kind of column {name!r}: declare it (continuous, integer, "
            "categorical, boolean), or leave it out, 'excluded'"
        )
    if kind == "excluded":
        return ColumnSchema(name, kind, "object", "left out as asked: neither modelled nor sampled")
    if kind not in DECLARED:
        raise ValueError(
            f"privacy: column {name!r} cannot be {kind!r} in a private fit yet: make it a number of days or seconds, "
            "or leave it out, 'excluded'"
        )
    needed, allowed = DECLARED[kind]
    lacking = [field for field in needed if given.get(field) is None]
    beyond = sorted(given.keys() - {"kind", *needed, *allowed})
    if lacking or beyond:
        what = (
            f"declares no {', '.join(lacking)}" if lacking else f"has {', '.join(beyond)}, which no private fit takes"
        )
        raise ValueError(
            f"privacy: schema of column {name!r} {what}: a {kind} column takes {', '.join(needed + allowed)}"
        )
    if kind in LEVELLED:
        levels = [False, True] if kind == "boolean" else [cells.plain(level, name) for level in given["categories"]]
        if len(levels) < 2 or len(set(levels)) < len(levels):
            raise ValueError(f"privacy: schema of column {name!r}: categories must be two levels or more, each once")
        dtype = cells.spell(pd.Series(levels).dtype)
        return ColumnSchema(name, kind, dtype, "as declared", categories=levels, cardinality=len(levels))
    lower, upper = (real(f"schema of column {name!r}: {end}", given[end]) for end in ("lower", "upper"))
    step = real(f"schema of column {name!r}: resolution", given.get("resolution", float(kind == "integer")))
    if not lower < upper or not math.isfinite(upper - lower):
        raise ValueError(f"privacy: schema of column {name!r}: lower {lower:g} must be below upper {upper:g}")
    dtype = "int64" if kind == "integer" else "float64"
    return ColumnSchema(name, kind, dtype, "as declared", lower=lower, upper=upper, resolution=step)


def encoded(table: Table, frame: pd.DataFrame) -> Tensor:
    """The matrix (n, variables) of rows, each cell of which must be as declared.

    Raises:
        ValueError: One is not; the message, which is for the holder of the rows, names column and row.
    """
    matrix = table.encode(frame)
    for column in table.schema:
        if column.modelled:
            place = table.place(column.name)
            block, values = matrix[:, place], frame[column.name]
            wrong = np.isnan(block[:, 0]) | ~possible_cells(column, table.variables[place], block, values)
            if wrong.any():
                row = int(wrong.argmax())
                cell, where = values.iloc[[row]].tolist()[0], frame.index[row]
                raise ValueError(
                    f"privacy: column {column.name!r} holds {cell!r} in row {where!r}, which its schema does not "
                    f"declare: {describe(column, table.variables[place])}. Declare what a cell may be, whatever the "
                    "rows are; missing cells cannot be private yet: give them a level or number of their own"
                )
    return torch.from_numpy(matrix)


class RowLoss(nn.Module):
    """The loss of networks on one row, in an order of the columns of its own, for `fit_privately`."""

    def __init__(self, network: ConditionalNetworks) -> None:
        super().__init__()
        self.network = network

    def forward(self, row: Tensor, visible: Tensor) -> Tensor:
        """Negative log-density of a row's cells (FIELDS · variables,) under a mask (variables, variables)."""
        terms = self.network.known_terms(self.network.fields(row.unsqueeze(0)), visible.unsqueeze(-1))
        return -terms.sum()


def member_for(rows: int) -> Member:
    """The networks and their training, from the number of rows: small, with large batches, as noise wants them."""
    batch = min(max(rows // 20, 32), 512)
    sizes: dict[str, Any] = {"layers": 1, "hidden": (32,), "components": 4, "dropout": 0.0, "trees": 0, "gaussians": 0}
    return Member("mixed", "none", **sizes, batch_size=batch, steps=min(15 * rows // batch, 600), learning_rate=1e-2)


def fit_private(
    frame: pd.DataFrame, array: bool, params: Mapping[str, Any], rng: np.random.Generator, weighted: bool, plain: bool
) -> Fitted:
    """Fit networks to a table so that they are (ε, δ)-differentially private with respect to its rows.

    Args:
        frame: The rows.
        array: Whether they came as an array.
        params: The parameters of the `FlowDensity`.
        rng: Source of the initial weights, and of nothing that hides a row.
        weighted, plain: As for `refuse`.

    Raises:
        ImportError: Opacus is not installed.
        ValueError: Something asked for cannot be private, or a column is not declared, or a cell not as declared.
    """
    refuse(params, weighted, plain)
    rows, budget, table = len(frame), params["privacy"], declared_table(frame, params["schema"], array)
    if budget["delta"] * rows >= 1:
        raise ValueError(
            f"privacy: delta must be below 1 / {rows:,}, one row's share, not {budget['delta']:g}: else "
            "a whole row may be given away"
        )
    if not table.variables:
        raise ValueError("privacy: every column is excluded: there is nothing to fit")
    matrix, member = encoded(table, frame), member_for(rows)
    sizes = member.sizes(rows, len(table.variables))
    rate = min(sizes.batch_size / rows, 1.0)
    numbers = any(not variable.classes for variable in table.variables)
    plan = planned(
        budget["epsilon"], budget["delta"], rate, sizes.steps, CLIPPING_NORM, counted=COUNTED if numbers else 0.0
    )
    ranks = [] if plan.counts_noise is None else noisy_ranks(table.variables, matrix, plan.counts_noise)
    flow = networks(table, ranks, sizes, torch.Generator().manual_seed(int(rng.integers(2**62))))
    with threads(1):
        train(flow, matrix, plan, sizes.learning_rate, params["progress"])
    report = Report(member, math.nan, 1.0, math.nan, f"all {plan.steps} private steps taken")
    mixture = assembled([flow.double()], torch.ones(1, dtype=torch.float64), None)
    return Fitted(table, mixture, rows, reports=[report], privacy=plan)


def networks(table: Table, ranks: list[MarginalCDF], sizes: Sizes, generator: torch.Generator) -> MixedFlow:
    """Untrained networks of a table's variables, the numbers' ranks given: columns of few levels first."""
    variables = table.variables
    few = {variable.column for variable in variables if 0 < variable.classes <= FEW_LEVELS}
    return MixedFlow(
        ranks,
        [variable.column for variable in variables],
        [variable.classes for variable in variables],
        [False] * len(variables),
        HistogramAndLogistics(BINS, sizes.components),
        hidden=sizes.hidden[0],
        blocks=1,
        dropout=0.0,
        order=sorted(range(variables[-1].column + 1), key=lambda column: column not in few),
        generator=generator,
    )


def train(flow: MixedFlow, matrix: Tensor, plan: Privacy, learning_rate: float, progress: bool) -> None:
    """Train networks on rows (n, variables), half of them in random orders of the columns, as other fits do."""
    rows, network = flow.cells(matrix).float(), flow.network

    def taken(index: Tensor, generator: torch.Generator) -> Batch:
        shuffled = torch.rand(len(index), len(network.rank), generator=generator).argsort(-1)
        random = torch.rand(len(index), 1, generator=generator) < RANDOM_ORDERS
        return rows[index], network.visible(torch.where(random, shuffled, network.rank))

    fit_privately(RowLoss(network), len(rows), taken, plan, learning_rate, progress)
