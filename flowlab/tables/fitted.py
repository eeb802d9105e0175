"""`Fitted`: everything that a fit leaves behind, as one record, and how it is kept in a file."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from flowlab import files
from flowlab.flow import Flow
from flowlab.hints import check_arguments, hints_of, made
from flowlab.mixture import FlowMixture
from flowlab.runtime import threads
from flowlab.tables import parameters
from flowlab.tables.codec.table import Table
from flowlab.tables.ensemble.calibration import Membership, goodness_of_fit
from flowlab.tables.ensemble.ensemble import Report, check_flow, fit_ensemble
from flowlab.tables.ensemble.families import Trained
from flowlab.tables.ensemble.joint_density import JointDensity, Numbers
from flowlab.tables.ensemble.member import Member, choose_members, fold_count
from flowlab.tables.frames.arrow import TableFormat
from flowlab.tables.schema import stored
from flowlab.training import Callback
from flowlab.training.checkpoint import digest_of, open_folder
from flowlab.training.private import Privacy

COLUMNS = 2_000  # of a table, beyond those that the model sees, which a file may have
REPORTS = 2_000  # on members, in a file
LEAST_HELD_OUT = 8  # rows from which some are held out

Array = NDArray[np.float64]


@dataclass
class Warm:
    """What a fit that goes on from another one needs of it: its seed, what it was of, and its networks."""

    seed: int
    task: dict[str, Any]
    networks: dict[str, Trained]


@dataclass
class Fitted:
    """What a fit leaves behind.

    Attributes:
        table: The columns, and the way between rows and matrix.
        mixture: The density of the matrix, in double precision; None if every column is constant.
        rows: Number of rows fitted to; None in a model of a file that does not say it.
        format: Library and types of the table fitted to; None for pandas and arrays.
        reports: What became of each member.
        race: Held-out log-likelihood of each preprocessing in the race, nats per row.
        held_out: Sorted log-likelihoods of held-out rows, nats.
        validation_score: Their mean.
        calibration: Tests of fit on the held-out rows.
        warm: What a fit that goes on from this one needs; no file has it.
        privacy: What a differentially private fit spent; None for others.
        membership: Whether training rows score higher than held-out ones; None where none were, or in an early file.
    """

    table: Table
    mixture: FlowMixture | None
    rows: int | None
    format: TableFormat | None = None
    reports: list[Report] = field(default_factory=list)
    race: dict[str, float] = field(default_factory=dict)
    held_out: Array = field(default_factory=lambda: np.zeros(0))
    validation_score: float = math.nan
    calibration: pd.DataFrame = field(default_factory=lambda: goodness_of_fit(np.zeros((0, 1)), []))
    membership: Membership | None = None
    privacy: Privacy | None = None
    warm: "Warm | None" = None

    @property
    def joint(self) -> JointDensity | None:
        """The member that is made of flows of numbers, if there is one."""
        first = None if self.mixture is None else self.mixture.flows[0]
        return first if isinstance(first, JointDensity) else None

    @property
    def only_joint(self) -> bool:
        """Whether no member has a density of any columns given any others."""
        return self.joint is not None and len(self.density().flows) == 1

    @property
    def device(self) -> torch.device:
        """Where the mixture is."""
        return torch.device("cpu") if self.mixture is None else self.mixture.log_weights.device

    def density(self) -> FlowMixture:
        """The mixture.

        Raises:
            ValueError: There is none.
        """
        if self.mixture is None:
            raise ValueError("every column is constant: there is nothing to draw")
        return self.mixture

    def conditionals(self, what: str) -> FlowMixture:
        """The mixture, for questions that need conditional densities.

        Raises:
            ValueError: No member has them; `what` begins the message.
        """
        if self.only_joint:
            kinds = sorted({report.member.kind for report in self.reports})
            raise ValueError(
                f"{what} a density of any columns given others, which the members asked for do not have "
                f'({", ".join(kinds)}): leave members out, or name "mixed" among them'
            )
        return self.density()


def fit_table(
    frame: pd.DataFrame,
    array: bool,
    weight: Array | None,
    params: dict[str, Any],
    seed: int,
    table_format: TableFormat | None,
    last: Any = None,
    callback: Callback | None = None,
    warm: Warm | None = None,
) -> Fitted:
    """Learn the schema of a table and fit a mixture to its matrix.

    Args:
        frame: The rows.
        array: Whether they came as an array.
        weight: Their weights (n,), equal when None.
        params: The parameters of the `FlowDensity`.
        seed: Seed of everything random; a folder of checkpoints may know that of the fit that it is of.
        table_format: Library and types of the rows' table; None for pandas and arrays.
        last: The column that comes last in the order of mixed flows; any when None.
        callback: Called with a `TrainingState` after every evaluation of a network in training.
        warm: What an earlier fit left, for this one to go on with.

    Raises:
        ValueError: A column cannot be modelled, the members do not go together with the table, or the earlier fit was
            of other rows.
    """
    table, kept = Table.learn(frame, params["schema"], params["rules"], array)
    matrix = table.encode(frame[kept])
    rows, features = matrix.shape
    effort, validation = params["effort"], params["validation"]
    if rows < LEAST_HELD_OUT and validation:
        warnings.warn(f"only {rows} rows: none is held out, and how well the model fits is not known", stacklevel=5)
    joint = table.complete and last is None  # a target is asked of conditional densities alone
    members = choose_members(params["members"], effort, params["preprocessing"], table, rows, joint)
    weights, folder = np.ones(rows) if weight is None else weight[kept], None
    task: dict[str, Any] = {}
    if params["checkpoint"] is not None or params["warm_start"]:
        task = what_is_fitted(params, matrix, weights, last)
        task["round"] = 0 if warm is None else warm.task["round"] + 1
    if warm is not None:
        seed = warm.seed
        if different := sorted(name for name in task if name != "round" and task[name] != warm.task[name]):
            raise ValueError(
                f"warm_start trains the networks of the last fit further, and {', '.join(different)} differ from that "
                "one's: fit to the same rows with the same parameters, or set warm_start to False"
            )
    if params["checkpoint"] is not None:
        folder, seed = open_folder(params["checkpoint"], task, seed, params["random_state"] is not None)
    fitted, networks = fit_matrix(
        table,
        matrix,
        weights,
        members,
        np.random.default_rng(seed),
        table_format,
        params["device"],
        last=None if last is None else table.variables[table.place(last)][0].column,
        validation=validation,
        folds=fold_count(effort, rows, features, all(member.kind == "mixed" for member in members)),
        callback=callback,
        kept=folder,
        start=None if warm is None else warm.networks,
        **{name: params[name] for name in ("time_limit", "n_jobs", "progress")},
    )
    if params["warm_start"]:
        fitted.warm = Warm(seed, task, networks)
    return fitted


def what_is_fitted(params: dict[str, Any], matrix: Array, weights: Array, last: Any) -> dict[str, Any]:
    """What a fit is of, in JSON's types, for one that is to go on from it: parameters, and rows by a digest."""
    task = {name: value for name, value in parameters.to_json(params).items() if name not in parameters.HOW}
    return task | {"rows": digest_of(torch.from_numpy(matrix), torch.from_numpy(weights)), "target": str(last)}


def fit_matrix(
    table: Table,
    matrix: Array,
    weight: Array,
    members: Sequence[Member],
    rng: np.random.Generator,
    table_format: TableFormat | None,
    device: str,
    **options: Any,
) -> tuple[Fitted, dict[str, Trained]]:
    """Fit members to the matrix (n, variables) of a table; the options are those of `fit_ensemble`.

    Returns:
        The record of the fit, and the networks that were trained.
    """
    fitted = Fitted(table, None, len(matrix), table_format)
    if not matrix.shape[1]:
        return fitted, {}
    joint = any(member.kind != "mixed" for member in members)
    with threads(1):  # members run side by side; what is left are many small operations
        ensemble = fit_ensemble(
            torch.from_numpy(matrix),
            torch.from_numpy(weight),
            members,
            rng,
            device=device,
            variables=table.variables,
            numbers=Numbers.of(table, matrix) if joint else None,
            **options,
        )
    fitted.mixture, fitted.reports, fitted.race = ensemble.flow.to(device), ensemble.reports, ensemble.race
    held_out, held_weight = ensemble.held_out + table.codec.log_constants, ensemble.held_weight
    fitted.held_out = held_out.sort().values.numpy()
    if len(held_out):
        fitted.validation_score = float((held_out * held_weight).sum() / held_weight.sum())
    fitted.membership = ensemble.membership
    fitted.calibration = goodness_of_fit(ensemble.noise.numpy(), [variable.name for variable in table.variables])
    return fitted, ensemble.networks


def check_width(columns: int, features: int) -> None:
    """Raise a ValueError where a table has more columns than a file may describe: each takes time at loading."""
    if columns > COLUMNS + features:
        raise ValueError(f"{columns:,} columns are too many for a file whose model has {features:,}: leave some out")


def to_json(fitted: Fitted) -> dict[str, Any]:
    """What `from_json` reads, beside the mixture.

    Raises:
        ValueError: The table has more columns that are not modelled than a file may describe.
    """
    check_width(len(list(fitted.table.schema)), 0 if fitted.mixture is None else fitted.mixture.features)
    state = {
        "kind": None if fitted.format is None else fitted.format.to_json(),
        "table": fitted.table.to_json(),
        "rows": fitted.rows,
        "race": fitted.race,
        "reports": [{**asdict(report), "member": report.member.to_json()} for report in fitted.reports],
        "calibration": fitted.calibration.reset_index().to_dict("list"),
        "held_out": fitted.held_out.tolist(),
        "validation_score": fitted.validation_score,
        "privacy": None if fitted.privacy is None else asdict(fitted.privacy),
        "membership": None if fitted.membership is None else asdict(fitted.membership),
    }
    return parameters.finite(state)


def from_json(state: dict[str, Any], mixture: Any) -> Fitted:
    """What a fit had left behind, from a file.

    Args:
        state: What `to_json` wrote.
        mixture: The file's module.

    Raises:
        ValueError: Parts are of the wrong kind, or do not go together.
    """
    listed = state["table"]["schema"]["columns"]
    check_width(len(listed), 0 if mixture is None else mixture.features)
    table = Table.from_json(state["table"])
    if not isinstance(mixture, FlowMixture | None) or len(table.variables) != (
        0 if mixture is None else mixture.features
    ):
        raise files.FileError("the columns do not fit the flow")
    if mixture is not None:
        if not table.complete and isinstance(mixture.flows[0], Flow | JointDensity):
            raise files.FileError("the mixture is one of complete numbers, and the table has other columns")
        if "bare" in state:
            mixture = joined(table, mixture, state["bare"])
        check_flow(table.variables, mixture)
    if len(state["reports"]) > REPORTS:
        raise ValueError(f"there are {len(state['reports']):,} reports on members, more than {REPORTS:,}")
    kinds = {"rows": int | None, "race": dict[str, float | None], "validation_score": float | None}
    check_arguments("FlowDensity", state, kinds)
    return Fitted(
        table,
        mixture,
        state["rows"],
        TableFormat.from_json(state["kind"]) if state["kind"] is not None else None,
        [Report.from_json(report) for report in state["reports"]],
        stored.with_nan(state["race"], state["race"]),
        stored.held_out_from(state["held_out"]),
        stored.with_nan(state, ["validation_score"])["validation_score"],
        stored.calibration_from(state["calibration"]),
        membership_from(state.get("membership")),
        None if state.get("privacy") is None else made(Privacy, state["privacy"]),
    )


def membership_from(values: Any) -> Membership | None:
    """What a fit recorded of its training rows' scores, from a file; None in an early one.

    Raises:
        ValueError: The fields are none of `Membership`'s.
    """
    if values is None:
        return None
    made(Membership, values, {**hints_of(Membership), **dict.fromkeys(("train", "held_out"), float | None)})
    means = {name: -math.inf if values[name] is None else values[name] for name in ("train", "held_out")}
    return Membership(**(values | means))


def joined(table: Table, flow: FlowMixture, known: Any) -> FlowMixture:
    """Bare flows of numbers, from a file of format 1, as a density of rows.

    Raises:
        ValueError: They are none, or what is known of their draws is not.
    """
    check_arguments("FlowDensity", {"bare": known}, {"bare": dict[str, float]})
    if not all(isinstance(member, Flow) for member in flow) or known.keys() != {"log_mass", "reach"}:
        raise ValueError("the flows are not those of a table of numbers")
    if not (-1e3 < known["log_mass"] <= 0 and 0 <= known["reach"] < 1e3):
        raise ValueError("the range of a table's numbers, or the probability of their supports, is none")
    return FlowMixture([Numbers.of(table).density(flow, **known)])
