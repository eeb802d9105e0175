"""`flowlab demo`: the main job on real tables, start to end, in a few minutes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from flowlab import datasets, presets
from flowlab.report import baselines, figures
from flowlab.report.log_likelihood import over_cells
from flowlab.runtime import threads
from flowlab.tables.density import FlowDensity
from flowlab.tables.schema.relations import Columns
from flowlab.training import fit

Array = NDArray[np.float64]
TEST = 0.2  # share of rows held out
MOST_ROWS = 20_000  # of a table, so that the demo takes minutes
WHOLE_ROWS = 6_000  # of the whole diamonds table
NOT_MEASURED = ["quality"]  # the tasters' grade of a wine
LONGEST = 30  # mm; the three diamonds that are longer are misprints


@dataclass
class Row:
    """One method on one table."""

    method: str
    log_prob: Array
    seconds: float


def run(folder: Path, seed: int = 0, console: Console | None = None) -> dict[str, list[Row]]:
    """Fit two real tables, one of them whole, and a toy, print the comparison, and write models, rows and pictures.

    Args:
        folder: Where to write; made if needed.
        seed: Decides splits, fits and draws.
        console: Where to print.

    Returns:
        The rows of the comparison, by table.
    """
    console = console or Console()
    folder.mkdir(parents=True, exist_ok=True)
    # Every method on one thread (flowlab in as many processes as there are cores), so that nothing waits for a core
    # that another program uses.
    with threads(1), threadpool_limits(1):
        found = {name: _table(name, folder, seed, console) for name in ("wine", "diamonds")}
        results = {name: rows for name, (rows, _) in found.items()}
        tests = {name: calibration for name, (_, calibration) in found.items()}
        (folder / "results.md").write_text(markdown(results, tests), encoding="utf-8")
        _whole(folder, seed, console)
        _toy(folder, seed, console)
    console.print(
        f"\nAll of it is in [bold]{folder}/[/bold]: models (.flow), synthetic rows (.csv), pictures (.png), results.md, and the "
        "report on the whole diamonds table, whole_diamonds.html: open it in a browser."
    )
    console.print(f"Next: flowlab info {folder}/wine.flow", soft_wrap=True)
    console.print(
        f'      flowlab sample {folder}/whole_diamonds.flow -n 5 --given "cut=Ideal,carat=1.0:1.5" -o rows.csv',
        soft_wrap=True,
    )
    return results


def possible(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """A table without rows that no method can be judged by: diamonds of length zero, which stands for a missing one, and misprints."""
    if name != "diamonds":
        return frame
    lengths = frame[["x", "y", "z"]]
    return frame[((lengths > 0) & (lengths < LONGEST)).all(axis=1)]


def numbers(name: str, seed: int) -> pd.DataFrame:
    """A table's numeric columns as they are: distinct rows in random order, so that none is in training and test alike. At most `MOST_ROWS`."""
    frame = _distinct(name)
    return frame.iloc[np.random.default_rng(seed).permutation(len(frame))[:MOST_ROWS]].reset_index(drop=True)


def continuous(name: str, seed: int) -> pd.DataFrame:
    """The same as continuous data, for methods that know no grids: tied columns are spread over the cells of their resolution."""
    frame = _distinct(name)
    x = frame.to_numpy(dtype=float)
    rng = np.random.default_rng(seed)
    x = Columns.learn(x, list(frame.columns)).encode(x, rng)
    return pd.DataFrame(x[rng.permutation(len(x))[:MOST_ROWS]], columns=frame.columns)


def _distinct(name: str) -> pd.DataFrame:
    frame = possible(name, datasets.load(name).select_dtypes("number"))
    return frame.drop(columns=NOT_MEASURED, errors="ignore").drop_duplicates()


def compare(
    frame: pd.DataFrame, seed: int, effort: str = "default", progress: bool = False
) -> tuple[list[Row], FlowDensity]:
    """Fit every method to all but the first fifth of the rows, and score that; flowlab comes last, with its model.

    flowlab gets the table as it is, and its density at a value of a column on a grid stands for the value's cell. The
    others learn from values spread over their cells, and their density is averaged over a test row's cell, which comes
    to the same.
    """
    test, train = split(frame)
    x, y = train.to_numpy(dtype=float), test.to_numpy(dtype=float)
    columns = Columns.learn(x, list(frame.columns)).columns
    width = np.array([column.resolution if column.kind == "grid" else 0.0 for column in columns])
    model = FlowDensity(effort=effort, random_state=seed, progress=progress)
    methods: list[tuple[str, Callable[[], Array]]] = [
        (name, partial(over_cells, baseline, x, y, width, np.random.default_rng(seed)))
        for name, baseline in (
            ("Gaussian", baselines.gaussian),
            ("KDE", baselines.kernel_density),
            ("Gaussian mixture", baselines.mixture),
        )
    ]
    rows = []
    for method, evaluate in [*methods, ("flowlab", lambda: model.fit(train).score_samples(test))]:
        started = time.perf_counter()
        log_prob = evaluate()
        rows.append(Row(method, log_prob, time.perf_counter() - started))
    return rows, model


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test and training rows of a table in random order."""
    held = round(TEST * len(frame))
    return frame.iloc[:held], frame.iloc[held:]


def _table(name: str, folder: Path, seed: int, console: Console) -> tuple[list[Row], pd.DataFrame]:
    frame = numbers(name, seed)
    test, train = split(frame)
    console.print(
        f"\n[bold]{name}[/bold]: {len(train):,} rows of {frame.shape[1]} numeric columns to learn from, {len(test):,} held out"
    )
    rows, model = compare(frame, seed, effort="fast", progress=True)
    console.print(_printed(name, rows))
    console.print(f"  {calibrated(model.calibration_)}")
    model.save(folder / f"{name}.flow")
    samples = model.sample(len(train), random_state=seed)
    samples.to_csv(folder / f"{name}_rows.csv", index=False)
    figures.save_figure(figures.training_curve(model.history_, name), folder / f"{name}_training.png")
    picture = figures.pairs(train.to_numpy(), samples.to_numpy(), list(frame.columns), name, most=5)
    figures.save_figure(picture, folder / f"{name}_pairs.png")
    return rows, model.calibration_


def _whole(folder: Path, seed: int, console: Console) -> None:
    """Diamonds with cut, colour and clarity: fit, draw, and say in a report how good that is."""
    frame = possible("diamonds", datasets.load("diamonds")).drop_duplicates()
    frame = frame.sample(WHOLE_ROWS, random_state=seed, ignore_index=True)
    test, train = split(frame)
    console.print(
        f"\n[bold]diamonds, all {frame.shape[1]} columns[/bold]: {len(train):,} rows to learn from, {len(test):,} held out"
    )
    started = time.perf_counter()
    model = FlowDensity(effort="fast", random_state=seed, progress=True).fit(train)
    fitted = time.perf_counter()
    log_prob = model.score_samples(test)
    model.save(folder / "whole_diamonds.flow")
    model.sample(len(train), random_state=seed).to_csv(folder / "whole_diamonds_rows.csv", index=False)
    model.report(train, test, folder / "whole_diamonds.html", random_state=seed)
    console.print(
        f"  {log_prob.mean():.2f} nats per held-out row; fitted in {fitted - started:.0f} s, "
        f"rows and report in {time.perf_counter() - fitted:.0f} s"
    )


def _toy(folder: Path, seed: int, console: Console) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = datasets.toy("pinwheel", 10_000, random_state=seed)
    flow = presets.nsf(2, layers=6, hidden=(64, 64), generator=generator)
    history = fit(flow, x, epochs=60, generator=generator, progress=True)
    console.print(f"\n[bold]pinwheel[/bold], a toy in 2-D: {-history.best:.3f} nats per held-out row")
    figures.save_figure(figures.morph(flow, x, title="a neural spline flow, from noise to data"), folder / "morph.png")


def comparison(rows: list[Row]) -> list[tuple[str, ...]]:
    """Each method's mean log-likelihood, flowlab's gain over it (paired), where it is ahead, and the time, as text."""
    ours = rows[-1].log_prob
    lines: list[tuple[str, ...]] = []
    for row in rows:
        gain = ours - row.log_prob
        error = gain.std(ddof=1) / np.sqrt(len(gain))
        own = row.log_prob.std(ddof=1) / np.sqrt(len(gain))
        lines.append(
            (
                row.method,
                f"{row.log_prob.mean():.3f} ± {own:.3f}",
                "" if row is rows[-1] else f"{gain.mean():+.3f} ± {error:.3f}",
                "" if row is rows[-1] else f"{(gain > 0).mean():.0%}",
                f"{row.seconds:.0f} s",
            )
        )
    return lines


HEADINGS = ("method", "held out", "flowlab's gain", "rows ahead", "time")


def _printed(name: str, rows: list[Row]) -> Table:
    table = Table(title=f"{name}: log-likelihood of held-out rows, nats per row ± standard error")
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i == 0 else "right")
    for line in comparison(rows):
        table.add_row(*line, style="bold" if line[0] == "flowlab" else "")
    return table


def calibrated(tests: pd.DataFrame) -> str:
    """What tests of fit on held-out rows find, in a sentence: the smallest p-value, times the number of tests."""
    if not len(tests):
        return "Calibration: no rows were held out to test the fit with."
    smallest = min(float(tests["p_value"].min()) * len(tests), 1.0)
    seen = f"of {len(tests)} tests of fit on held-out rows, “{tests['p_value'].idxmin()}” has the smallest p-value, {smallest:.3f} after correction"
    if smallest >= 0.01:
        return f"Calibration: {seen}. No difference is seen."
    return f"Calibration: {seen}. The model is not exact: the tests see that."


def markdown(results: dict[str, list[Row]], tests: dict[str, pd.DataFrame] | None = None) -> str:
    """The comparison as a Markdown table, and below it what the tests of fit say of flowlab's models."""
    lines = ["| table | " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * (len(HEADINGS) - 1)]
    for name, rows in results.items():
        lines += [f"| {name} | " + " | ".join(line) + " |" for line in comparison(rows)]
    lines += [f"\n{name}: {calibrated(calibration)}" for name, calibration in (tests or {}).items()]
    if tests:
        lines += [
            "\n“radius” tests how far from the origin the noise behind held-out rows lies, “energy” whether that of all columns together is right."
        ]
    return "\n".join(lines) + "\n"
