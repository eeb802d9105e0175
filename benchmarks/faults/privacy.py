"""Memorisation of ordinary fits and of planted memorisers, and what privacy costs: a section of the reliability page.

python -m benchmarks.faults.privacy --scale 0.1
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd

from flowlab import FlowDensity, datasets
from flowlab.tables.ensemble import mixtures
from flowlab.tables.ensemble.member import Member
from flowlab.tables.query.memorization import Memorization

BUDGETS = (1.0, 3.0, 10.0)
DELTA = 1e-5
ROWS = 5_000  # of diamonds, for private fits
TESTED = 2_000  # held-out rows that score them
# Declared from what a jeweller knows of cut diamonds, not from these rows' extremes.
DIAMONDS: dict[str, Any] = {
    "carat": {"kind": "continuous", "lower": 0, "upper": 6, "resolution": 0.01},
    "cut": {"kind": "categorical", "categories": ["Fair", "Good", "Very Good", "Premium", "Ideal"]},
    "color": {"kind": "categorical", "categories": list("JIHGFED")},
    "clarity": {"kind": "categorical", "categories": ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"]},
    "depth": {"kind": "continuous", "lower": 40, "upper": 80, "resolution": 0.1},
    "table": {"kind": "continuous", "lower": 40, "upper": 100, "resolution": 0.1},
    "price": {"kind": "integer", "lower": 0, "upper": 20_000},
    "x": {"kind": "continuous", "lower": 0, "upper": 12, "resolution": 0.01},
    "y": {"kind": "continuous", "lower": 0, "upper": 12, "resolution": 0.01},
    "z": {"kind": "continuous", "lower": 0, "upper": 8, "resolution": 0.01},
}


def section(scale: float = 1.0) -> str:
    """Measure, and write the section: memorisation at about 3,000 · scale rows, private fits of 5,000 · scale rows.

    Args:
        scale: 1 for the whole run, less for a shorter one.
    """
    parts = ["## Privacy and honesty of synthetic rows", *_memorisation(scale), *_null(scale), *_private(scale)]
    return "\n\n".join(parts) + "\n"


def table(name: str, rows: int) -> pd.DataFrame:
    """Rows of a table that ships with flowlab, in random order."""
    frame = datasets.load(name)
    return frame.sample(min(rows, len(frame)), random_state=0).reset_index(drop=True)


def ordinary(train: pd.DataFrame) -> tuple[FlowDensity, pd.DataFrame]:
    """A fit as anyone makes it."""
    return FlowDensity(effort="fast", random_state=0).fit(train), train


def overfitted(train: pd.DataFrame) -> tuple[FlowDensity, pd.DataFrame]:
    """Wide networks without dropout, trained long on sixty rows, without early stopping."""
    train = train.iloc[:60]
    member = Member("mixed", hidden=(192,), dropout=0.0, steps=1_000, trees=0, gaussians=0)
    return FlowDensity(members=[member], validation=0, random_state=0).fit(train), train


def repeated(train: pd.DataFrame) -> tuple[FlowDensity, pd.DataFrame]:
    """A fit to a hundred rows, each of which comes ten times: held-out rows are among the training rows."""
    train = pd.concat([train.iloc[:100]] * 10, ignore_index=True)
    return FlowDensity(effort="fast", random_state=0).fit(train), train


def peaked(train: pd.DataFrame) -> tuple[FlowDensity, pd.DataFrame]:
    """A kernel density estimate of numbers, a hundredth of a standard deviation wide."""
    train = train.select_dtypes("number").iloc[:500]
    widths, mixtures.BANDWIDTHS = mixtures.BANDWIDTHS, (0.01,)
    try:
        return FlowDensity(members=["kernel"], preprocessing="marginal", n_jobs=1, random_state=0).fit(train), train
    finally:
        mixtures.BANDWIDTHS = widths


PLANTED: dict[str, Callable[[pd.DataFrame], tuple[FlowDensity, pd.DataFrame]]] = {
    "wide networks, no early stopping": overfitted,
    "each row ten times": repeated,
    "kernels of width 0.01": peaked,
}


def _row(name: str, rows: int, found: Memorization, flagged: bool, seconds: float) -> str:
    cells = [
        name,
        f"{rows:,}",
        f"{found.copies:.1%} / {found.copies_held_out:.1%}",
        f"{found.nearer_to_train:.3f} ± {found.nearer_error:.3f}",
        str(found.likelihood),
        str(found.ratio),
        found.verdict.split(":")[0],
        "yes" if flagged else "no",
        f"{seconds:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _measured(name: str, fit: Callable[..., Any], train: pd.DataFrame, new: pd.DataFrame) -> tuple[str, Memorization]:
    started = time.perf_counter()
    model, rows = fit(train)
    found = model.memorization(rows, new[rows.columns], random_state=0)
    return _row(name, len(rows), found, "MEMORISED" in model.summary(), time.perf_counter() - started), found


def _memorisation(scale: float) -> list[str]:
    size = max(round(3_000 * scale), 300)
    lines, caught, false = [], 0, 0
    names = ("diamonds", "wine", "weather")
    for name in names:
        rows = table(name, 2 * size)
        half = len(rows) // 2
        line, found = _measured(f"{name}, ordinary", ordinary, rows[:half], rows[half:])
        lines.append(line)
        false += found.memorised
    rows = table("diamonds", 2 * size)
    for name, fit in PLANTED.items():
        line, found = _measured(f"diamonds, {name}", fit, rows[:size], rows[size:])
        lines.append(line)
        caught += found.memorised
    head = (
        "| fit | rows | copies: draws / held-out rows | nearer to training | AUC, likelihood | AUC, ratio | verdict | "
        "flagged by its own summary | s |\n|---|---|---|---|---|---|---|---|---|"
    )
    text = (
        f"{caught} of {len(PLANTED)} planted memorisers flagged by `FlowDensity.memorization`, {false} of {len(names)} "
        "ordinary fits. An AUC is the share of pairs in which the training row scores higher than a row that the model "
        "has not seen."
    )
    return [text, "\n".join([head, *lines])]


def _null(scale: float) -> list[str]:
    """Rows that the model has seen neither of: is the test of membership one of level?"""
    tries, size = max(round(20 * scale), 2), 400
    rows = table("diamonds", 300 + 2 * size * tries)
    model, _ = ordinary(rows[:300])
    z = []
    for k in range(tries):
        part = rows[300 + 2 * size * k :][: 2 * size]
        found = model.memorization(part[:size], part[size:], random_state=k)
        z += [(test.auc - 0.5) / test.standard_error for test in (found.likelihood, found.ratio)]
    return [
        f"With “training” rows that the model never saw, in {tries} tries: AUC less 0.5, in its standard errors, "
        f"{np.mean(z):+.2f} on average, {np.std(z):.2f} in spread, {max(map(abs, z)):.2f} at most (expected 0, 1, and "
        "about 2 to 3)."
    ]


def _private(scale: float) -> list[str]:
    if find_spec("opacus") is None:
        return ["Private fits were not run: Opacus, the extra `private`, is not installed."]
    size = max(round(ROWS * scale), 300)
    rows = table("diamonds", 20_000)
    rows = rows[(rows[["x", "y"]].max(axis=1) <= 12) & (rows["z"] <= 8)]  # a few cells are known slips of the pen
    train, test = rows[:size], rows[-TESTED:]
    fits: dict[str, FlowDensity] = {"not private, effort fast": FlowDensity(effort="fast", random_state=0)}
    fits |= {
        f"ε = {epsilon:g}": FlowDensity(privacy={"epsilon": epsilon, "delta": DELTA}, schema=DIAMONDS, random_state=0)
        for epsilon in BUDGETS
    }
    lines = [
        "| fit | ε spent | noise multiplier | steps | held-out, nats per row | AUC, likelihood | AUC, ratio | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, model in fits.items():
        started = time.perf_counter()
        model.fit(train)
        seconds, plan = time.perf_counter() - started, model._model.privacy
        found = model.memorization(train, test, random_state=0)
        spent = (
            ("–", "–", "–") if plan is None else (f"{plan.spent:.3f}", f"{plan.noise_multiplier:.3f}", f"{plan.steps}")
        )
        cells = [name, *spent, f"{model.score(test):.2f}", str(found.likelihood), str(found.ratio), f"{seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    text = (
        f"Differentially private fits of {size:,} rows of diamonds at δ = {DELTA:g}, the schema declared, beside an "
        f"ordinary one; {len(test):,} held-out rows. Even cells of the declared table would score {uniform():.2f} nats."
    )
    return [text, "\n".join(lines)]


def uniform() -> float:
    """Log-probability of any row if all that are declared were equally likely, nats."""
    total = 0.0
    for given in DIAMONDS.values():
        levels = len(given["categories"]) if "categories" in given else 0
        step = given.get("resolution", 1)
        total -= np.log(levels or round((given["upper"] - given["lower"]) / step) + 1)
    return float(total)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    print(section(parser.parse_args().scale))
