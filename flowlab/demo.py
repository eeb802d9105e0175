"""`flowlab demo`: the main job on real tables, start to end, in a few minutes."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from flowlab import datasets, presets
from flowlab.report import figures
from flowlab.report.comparison import Row, compare, distinct_numbers, paired_gain, possible, split
from flowlab.runtime import threads
from flowlab.tables.density import FlowDensity
from flowlab.training import fit

MOST_ROWS = 20_000  # of a table, so that the demo takes minutes
WHOLE_ROWS = 6_000  # of the whole diamonds table


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
        f"\nAll of it is in [bold]{folder}/[/bold]: models (.flow), synthetic rows (.csv), pictures (.png), "
        "results.md, and the report on the whole diamonds table, whole_diamonds.html: open it in a browser."
    )
    console.print(f"Next: flowlab info {folder}/wine.flow", soft_wrap=True)
    console.print(
        f'      flowlab sample {folder}/whole_diamonds.flow -n 5 --given "cut=Ideal,carat=1.0:1.5" -o rows.csv',
        soft_wrap=True,
    )
    return results


def numbers(name: str, seed: int) -> pd.DataFrame:
    """Load a table's numeric columns as they are: distinct rows in random order, at most `MOST_ROWS`."""
    frame = distinct_numbers(name)
    return frame.iloc[np.random.default_rng(seed).permutation(len(frame))[:MOST_ROWS]].reset_index(drop=True)


def _table(name: str, folder: Path, seed: int, console: Console) -> tuple[list[Row], pd.DataFrame]:
    frame = numbers(name, seed)
    test, train = split(frame)
    size = f"{len(train):,} rows of {frame.shape[1]} numeric columns to learn from, {len(test):,} held out"
    console.print(f"\n[bold]{name}[/bold]: {size}")
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
    size = f"{len(train):,} rows to learn from, {len(test):,} held out"
    console.print(f"\n[bold]diamonds, all {frame.shape[1]} columns[/bold]: {size}")
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
    """Write each method's mean log-likelihood, flowlab's paired gain over it, where flowlab is ahead, and the time."""
    ours = rows[-1].log_prob
    lines: list[tuple[str, ...]] = []
    for row in rows:
        gain, error = paired_gain(ours, row.log_prob)
        own = row.log_prob.std(ddof=1) / np.sqrt(len(ours))
        lines.append(
            (
                row.method,
                f"{row.log_prob.mean():.3f} ± {own:.3f}",
                "" if row is rows[-1] else f"{gain:+.3f} ± {error:.3f}",
                "" if row is rows[-1] else f"{(ours > row.log_prob).mean():.0%}",
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
    """Say in a sentence what tests of fit on held-out rows find: the smallest p-value, times the number of tests."""
    if not len(tests):
        return "Calibration: no rows were held out to test the fit with."
    smallest = min(float(tests["p_value"].min()) * len(tests), 1.0)
    seen = (
        f"of {len(tests)} tests of fit on held-out rows, “{tests['p_value'].idxmin()}” has the smallest p-value, "
        f"{smallest:.3f} after correction"
    )
    if smallest >= 0.01:
        return f"Calibration: {seen}. No difference is seen."
    return f"Calibration: {seen}. The model is not exact: the tests see that."


def markdown(results: dict[str, list[Row]], tests: dict[str, pd.DataFrame] | None = None) -> str:
    """Write the comparison as a Markdown table, and below it what the tests of fit say of flowlab's models."""
    lines = ["| table | " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * (len(HEADINGS) - 1)]
    for name, rows in results.items():
        lines += [f"| {name} | " + " | ".join(line) + " |" for line in comparison(rows)]
    lines += [f"\n{name}: {calibrated(calibration)}" for name, calibration in (tests or {}).items()]
    if tests:
        lines.append(
            "\n“radius” tests how far from the origin the noise behind held-out rows lies, “energy” whether that of "
            "all columns together is right."
        )
    return "\n".join(lines) + "\n"
