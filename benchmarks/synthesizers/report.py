"""From the results of `benchmarks/synthesis.py` to tables, bars and a picture."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import machine, table
from matplotlib.figure import Figure

import flowlab

from . import ARF, FAST, FLOWLAB, METHODS, OURS, PEERS, REAL, SDV, SPREAD
from .tables import TABLES

Cells = dict[str, dict]
Results = dict[str, Cells]


@dataclass(frozen=True)
class Metric:
    """A table of results: a number's format, which way is better (+1 higher, −1 lower, 0 neither), what it means."""

    key: str
    title: str
    write: str
    better: int
    note: str


METRICS = (
    Metric(
        "c2st",
        "C2ST",
        ".3f",
        -1,
        "ROC-AUC of gradient-boosted trees telling test rows from as many synthetic ones; 0.5 is perfect.",
    ),
    Metric(
        "quality",
        "SDMetrics quality",
        ".3f",
        1,
        "Overall score of SDMetrics' QualityReport, as documented against training rows; 1 is perfect.",
    ),
    Metric(
        "pair_tv",
        "Pair-TV",
        ".3f",
        1,
        "1 − total variation of the joint table of two columns, against test rows, mean over all pairs; 1 is perfect.",
    ),
    Metric(
        "tstr",
        "TSTR ratio",
        ".3f",
        1,
        "Score on test rows of trees trained on synthetic rows, as a ratio to trees trained on the real ones.",
    ),
    Metric(
        "copies",
        "Copied rows",
        ".3%",
        -1,
        "Share of synthetic rows that equal a training row in all cells; under real rows: of test rows.",
    ),
    Metric(
        "dcr",
        "DCR share",
        ".3f",
        -1,
        "Share of synthetic rows whose nearest real row is a training row rather than one of as many test rows; "
        "0.5 is expected of new rows.",
    ),
    Metric(
        "unknown_categories",
        "Invalid categories",
        ".2%",
        -1,
        "Share of cells of the worst column that hold a category which it does not have.",
    ),
    Metric(
        "fractions",
        "Fractional integers",
        ".2%",
        -1,
        "Share of cells of the worst column that are no whole numbers where all training values are.",
    ),
    Metric(
        "out_of_range",
        "Out of range",
        ".2%",
        -1,
        "Share of cells of the worst column beyond the extremes of the training rows.",
    ),
    Metric("dtypes", "Columns with another dtype", "d", -1, "Columns whose dtype is not that of the training rows."),
    Metric(
        "missing_rate",
        "Missing rates",
        ".4f",
        -1,
        "Largest difference of a column's share of missing cells from the training rows'.",
    ),
    Metric(
        "missing_pattern",
        "Missing patterns",
        ".4f",
        -1,
        "Total variation between the distributions of which cells of a row are missing together, against "
        "training rows.",
    ),
    Metric("fit_cpu", "Fit, CPU-seconds", ".1f", -1, "On one core, of all threads, without imports."),
    Metric("fit_wall", "Fit, seconds of wall time", ".1f", -1, "With whatever else the machine did."),
    Metric("sample_cpu", "5,000 rows, CPU-seconds", ".2f", -1, "On one core, of all threads."),
    Metric("sample_wall", "5,000 rows, seconds of wall time", ".2f", -1, "With whatever else the machine did."),
    Metric("peak", "Peak memory, MB", ".0f", -1, "Of the whole process, imports included."),
    Metric("before", "Memory before fit, MB", ".0f", 0, "What imports take of the peak."),
)
SHOWN = ("c2st", "pair_tv", "tstr")


@dataclass(frozen=True)
class Bar:
    """What flowlab should reach: a limit on each table, the best peer's value less a margin, or the tighter of both."""

    key: str
    title: str
    limit: float | dict[str, float] | Callable[[Cells, str], float] | None = None
    margin: float | None = None
    methods: tuple[str, ...] = OURS

    def wanted(self, name: str, cells: Cells, method: str) -> float | None:
        better = metric(self.key).better
        limit = self.limit.get(name) if isinstance(self.limit, dict) else self.limit
        if callable(limit):
            limit = limit(cells, method)
        peers = [value(cells[peer], self.key) for peer in PEERS if value(cells.get(peer), self.key) is not None]
        best = (
            None
            if self.margin is None or not peers
            else max(peers) - self.margin
            if better > 0
            else min(peers) + self.margin
        )
        given = [x for x in (limit, best) if x is not None]
        return None if not given else max(given) if better > 0 else min(given)


def for_size(seconds: float) -> Callable[[Cells, str], float]:
    """A limit that is set for 5,000 rows of 11 columns, in proportion for a table of more cells."""
    return lambda cells, method: seconds * max(cells["rows"]["train"] * cells["rows"]["columns"] / 55_000, 1)


BARS = (
    Bar("c2st", "C2ST at most", {"diamonds": 0.62, "flights": 0.65, "weather": 0.72, "credit": 0.63}, 0),
    Bar("pair_tv", "Pair-TV at least", margin=0),
    Bar("quality", "SDMetrics quality at least", margin=0),
    Bar("tstr", "TSTR ratio at least", {"diamonds": 0.985, "weather": 0.985, "flights": 0.955, "credit": 0.98}, 0.01),
    Bar(
        "copies",
        "copied rows, at most as many as among test rows",
        lambda cells, method: cells[method]["copies_held_out"],
    ),
    Bar("dcr", "DCR share at most", 0.55),
    Bar("unknown_categories", "invalid categories", 0),
    Bar("fractions", "fractional integers", 0),
    Bar("out_of_range", "values out of range", 0),
    Bar("dtypes", "columns with another dtype", 0),
    Bar("missing_rate", "missing rates off by at most", 0.01),
    Bar("missing_pattern", "missing-pattern distance at most", 0.015),
    Bar("fit_cpu", "fit, CPU-seconds at most (effort fast)", for_size(25), methods=(FAST,)),
    Bar("fit_cpu", "fit, CPU-seconds at most", for_size(180), methods=(FLOWLAB,)),
    Bar("sample_cpu", "5,000 rows, CPU-seconds at most", 1),
    Bar("peak", "peak memory at most, MB", 600),
)


def metric(key: str) -> Metric:
    return next(m for m in METRICS if m.key == key)


def value(cell: dict | None, key: str) -> float | None:
    """A number of a cell, None where there is none."""
    if cell is None or "error" in cell:
        return None
    if key == "dtypes":
        return len(cell["other_dtypes"]) if "other_dtypes" in cell else None
    if key not in cell:
        return None
    return cell[key] / 1e6 if key in ("peak", "before") else cell[key]


def text(cell: dict | None, key: str) -> str:
    if cell is not None and "error" in cell:
        return "failed"
    number = value(cell, key)
    return "" if number is None else format(number, metric(key).write)


def line(cell: dict) -> str:
    """One method on one table for the terminal."""
    if "error" in cell:
        return cell["error"]
    return ", ".join(f"{m.title} {text(cell, m.key)}" for m in METRICS if m.key in (*SHOWN, "quality", "fit_cpu"))


def section(what: Metric, found: Results) -> str:
    """One metric of all methods on all tables, the best in bold."""
    lines = []
    for name, cells in found.items():
        numbers = [value(cells.get(m), what.key) for m in METHODS]
        present = [text(cells[m], what.key) for m, x in zip(METHODS, numbers) if x is not None]
        ranked = [x for x in numbers if x is not None]
        best = format(max(ranked) if what.better > 0 else min(ranked), what.write) if ranked and what.better else None
        bold = best if len(set(present)) > 1 else None
        shown = [text(cells.get(m), what.key) for m in METHODS]
        lines.append([name, *(f"**{x}**" if x == bold else x for x in shown), text(cells.get(REAL), what.key)])
    return f"## {what.title}\n\n{what.note}\n\n{table(['table', *METHODS, REAL], lines)}\n"


def judged(bar: Bar, name: str, cells: Cells, method: str) -> tuple[str, bool] | None:
    """Compare a measured value with the wanted one, and say whether it is reached; None where either is not known."""
    if "error" in cells.get(method, {}):
        return "**failed**", False
    number = value(cells.get(method), bar.key)
    if number is None or (wanted := bar.wanted(name, cells, method)) is None:
        return None
    what = metric(bar.key)
    met = number >= wanted if what.better > 0 else number <= wanted
    shown = f"{number:{what.write}} {'≥' if what.better > 0 else '≤'} {wanted:{what.write}}"
    return (shown if met else f"**{shown} missed**"), met


def bars(found: Results, method: str) -> str:
    """All bars of one of flowlab's methods."""
    lines, met = [], []
    for bar in (bar for bar in BARS if method in bar.methods):
        verdicts = [judged(bar, name, cells, method) for name, cells in found.items()]
        met += [verdict[1] for verdict in verdicts if verdict]
        lines.append([bar.title, *(verdict[0] if verdict else "" for verdict in verdicts)])
    if not met:
        return "Not run yet."
    return f"{sum(met)} of {len(met)} reached.\n\n{table(['measured, wanted', *found], lines)}"


def spread(found: Results) -> str:
    """How much scores vary over draws from one fit."""
    lines = []
    for key in SPREAD:
        for method in METHODS:
            draws = [cells.get(method, {}).get("draws", {}).get(key, []) for cells in found.values()]
            lines.append([f"{metric(key).title}: {method}", *map(spread_of, draws)])
    return table(["", *found], lines)


def spread_of(scores: list[float | None]) -> str:
    """Mean ± standard deviation, from least to most."""
    known = [x for x in scores if x is not None]
    if len(known) < 2:
        return ""
    mean, deviation = statistics.mean(known), statistics.stdev(known)
    return f"{mean:.4f} ± {deviation:.4f} ({min(known):.4f} to {max(known):.4f}, {len(known)} draws)"


def notes(found: Results) -> list[list[str]]:
    """What failed, and which columns came back with another dtype."""
    lines = []
    for name, cells in found.items():
        for method in METHODS:
            cell = cells.get(method, {})
            for what in ("error", "sdmetrics_error"):
                if what in cell:
                    lines.append([name, method, cell[what].replace("|", "/")])
            if "error" not in cell and cell.get("other_dtypes"):
                lines.append([name, method, "; ".join(cell["other_dtypes"])])
    return lines


def versions(found: Results) -> str:
    """Of the packages of each environment, as its processes said."""
    parts = []
    for family, methods in (("flowlab", OURS), ("SDV's environment", SDV), ("arfpy's environment", (ARF,))):
        answers = [cells[m]["versions"] for cells in found.values() for m in methods if "versions" in cells.get(m, {})]
        if answers:
            packages = ", ".join(f"{package} {number}" for package, number in answers[-1].items())
            parts.append(f"{family}: {packages}")
    metrics = [cells[REAL]["version"] for cells in found.values() if "version" in cells.get(REAL, {})]
    return "; ".join([*parts, *(f"SDMetrics {number}" for number in metrics[-1:])])


def markdown(found: Results) -> str:
    described = []
    for name, cells in found.items():
        source, rows = TABLES[name], cells["rows"]
        measure = next((cells[m]["tstr_measure"] for m in METHODS if "tstr_measure" in cells.get(m, {})), "")
        real = next((f"{cells[m]['tstr_real']:.3f}" for m in METHODS if "tstr_real" in cells.get(m, {})), "")
        size = f"{rows['train']} + {rows['test']}"
        left_out = ", ".join(source.dropped)
        described.append(
            [
                name,
                f"{source.package}: {source.item}",
                size,
                str(rows["columns"]),
                source.target,
                f"{measure} {real}",
                left_out,
            ]
        )
    header = ["table", "from", "training + test rows", "columns", "target (TSTR)", "trained on real rows", "left out"]
    sections = "\n".join(section(what, found) for what in METRICS)
    return f"""# Synthetic rows of real mixed tables

`python benchmarks/synthesis.py` on {machine()}, each method in a process of its own on one core. {versions(found)}; \
scores by flowlab {flowlab.__version__}. One split, seed 0, fixed in advance.

Peers are used as documented, with their defaults: SDV with its own detection of metadata, text (as objects) declared \
categorical and no keys; CTGAN and TVAE for 300 epochs; arfpy with missing numbers as medians beside a column that \
says so, and once more with each number and time moved to the nearest one of its column (ARF snapped; its times are \
ARF's). Each method draws 5,000 rows five times from one fit; of each draw as many as there are training rows are \
scored. SDMetrics' quality and the TSTR ratio, which vary most from draw to draw, are means over the five draws, \
whosever they are; all else is of the first one. Real rows: training rows taken for synthetic ones where test rows \
are the measure, and test rows where training rows are.

![Three metrics](synthesis.png)

## Bars: `FlowDensity()`

Where a bar is about peers, it is the best peer's value on that table (TSTR ratio: less 0.01), or the fixed limit \
where that is tighter. Limits of fitting times are for 5,000 rows of 11 columns, in proportion for tables of more \
cells.

{bars(found, FLOWLAB)}

## Bars: `FlowDensity(effort="fast")`

{bars(found, FAST)}

## How much scores vary from draw to draw

Mean ± standard deviation over the five draws from one fit. SDMetrics cuts the numbers of real and of synthetic rows \
into intervals of equal length apart, from least to greatest: where it compares a number with a category, one extreme \
value more or less moves all of them.

{spread(found)}

## Tables

{table(header, described)}

Also left out: constant columns. Text is categorical, time_hour a date without time zone. Tables of more than 6,000 \
rows: 6,000 at random.

{sections}
## Failures and other dtypes

{table(["table", "method", ""], notes(found))}
"""


def picture(found: Results, path: Path) -> None:
    """The main metrics of each method on each table."""
    figure = Figure(figsize=(11, 0.55 * len(found) + 1.8), layout="constrained")
    axes = figure.subplots(1, len(SHOWN), sharey=True)
    for axis, what in zip(axes, map(metric, SHOWN)):
        for k, method in enumerate(METHODS):
            points = [(i, value(cells.get(method), what.key)) for i, cells in enumerate(found.values())]
            points = [(i, x) for i, x in points if x is not None]
            ours = method in OURS
            axis.plot(
                [x for _, x in points],
                [i + (k - len(METHODS) / 2) * 0.09 for i, _ in points],
                "D" if ours else "o",
                markersize=6 if ours else 4.5,
                color=f"C{k}",
                label=method,
            )
        real = [(i, value(cells.get(REAL), what.key)) for i, cells in enumerate(found.values())]
        axis.plot(
            [x for _, x in real if x is not None],
            [i for i, x in real if x is not None],
            "|",
            color="#555555",
            markersize=16,
            label=REAL,
        )
        axis.set_title(f"{what.title} ({'higher' if what.better > 0 else 'lower'} is better)", fontsize=10)
        axis.grid(axis="x", color="#eeeeee")
    axes[0].set_yticks(range(len(found)), list(found))
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def write(found: Results, markdown_path: Path, picture_path: Path) -> None:
    markdown_path.write_text(markdown(found))
    picture(found, picture_path)
