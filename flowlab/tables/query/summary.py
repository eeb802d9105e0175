"""What was fitted, as text and as tables."""

import math

import pandas as pd

from flowlab.tables.ensemble.calibration import Membership
from flowlab.tables.fitted import Fitted

MEASURE = "probabilities of levels and of values that repeat, densities of other numbers"


def summary(fitted: Fitted, features: int) -> str:
    """See `FlowDensity.summary`."""
    table = fitted.table
    count = 0 if fitted.mixture is None else sum(p.numel() for p in fitted.mixture.parameters())
    lines = [
        f"FlowDensity of {features} columns, {len(table.variables)} variables modelled, {count:,} parameters",
        f"held-out log-likelihood: {fitted.validation_score:.3f} nats per row, {MEASURE}"
        if fitted.privacy is None
        else f"differentially private: {fitted.privacy}; tables that differ in one row's presence, their length public",
    ]
    if fitted.race:
        race = ", ".join(f"{name} {score:.3f}" for name, score in fitted.race.items())
        lines += [f"preprocessing, held out after a short race: {race}"]
    if fitted.reports:
        lines += ["members, each with its own held-out log-likelihood and its weight:"]
    for report in fitted.reports:
        text = f"  {report.score:10.3f}  {report.weight:6.1%}  {report.member}"
        lines += [text + ("" if report.converged else f"; not converged: {report.reason}")]
    if fitted.membership is not None:
        lines += [memorised(fitted.membership)]
    if len(fitted.calibration):
        lines += ["fit to held-out rows (a p-value below 0.01 means that the test sees a difference):"]
        lines += [f"  {name}: {r.statistic:.3f}, p = {r.p_value:.3f}" for name, r in fitted.calibration.iterrows()]
    if table.rules:
        lines += ["rules:", *(f"  {rule}" for rule in table.rules)]
    return "\n".join([*lines, "columns:", *("  " + line for line in repr(table.schema).splitlines())])


def memorised(known: Membership) -> str:
    """What log-likelihoods of training and held-out rows say of memorisation, as text."""
    text = (
        f"training rows: {known.train:.3f} nats per row, held-out ones {known.held_out:.3f}; the training row "
        f"of a pair has the higher log-likelihood in {known} of them (0.5 if nothing was memorised)"
    )
    return text if not known.memorised else f"{text}\nMEMORISED: this fit knows its training rows from any others"


def members_frame(fitted: Fitted) -> pd.DataFrame:
    """One row per member: kind, preprocessing, held-out log-likelihood (nats per row), weight, seconds."""
    names = ["kind", "preprocessing", "score", "weight", "seconds"]
    rows = [(r.member.kind, r.member.preprocessing, r.score, r.weight, r.seconds) for r in fitted.reports]
    return pd.DataFrame(rows, columns=names)


def history_frame(fitted: Fitted) -> pd.DataFrame:
    """The training curve of the network with the largest weight, in its first fold; empty if no network was trained."""
    trained = [report for report in fitted.reports if report.history]
    best = max(trained, key=lambda report: report.weight, default=None)
    return pd.DataFrame.from_records([] if best is None else best.history).astype(float)


def headline(fitted: Fitted, features: int) -> str:
    """The fit in one line."""
    members = sum(report.weight > 0 for report in fitted.reports)
    score = fitted.validation_score
    held_out = "" if math.isnan(score) else f", {score:.3f} nats per held-out row"
    return f"fitted: {features} columns, {members} member{'s' * (members != 1)}{held_out}"
