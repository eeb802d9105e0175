"""From the results of `benchmarks/synthesis.py` to tables, bars and a picture."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import machine, table
from matplotlib import colormaps
from matplotlib.figure import Figure

import flowlab

from . import ARF, ARGN, CART, FAST, FLOWLAB, METHODS, OURS, PEERS, REAL, SDV, SPREAD, UNMASKING
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


Limit = Callable[[str, Cells, str], float]  # of a table's name, its cells and one of flowlab's methods


@dataclass(frozen=True)
class Bar:
    """What flowlab should reach: a limit on each table, the best peer's value less a margin, or the tighter of both.

    Attributes:
        key: The metric.
        title: What is wanted, in words.
        limit: A number, one for each table, or how to compute it.
        margin: How much worse than the best peer is still good; without it peers do not matter. In units of the metric,
            or a function of the best peer's cell.
        peers: The peers that matter.
        methods: Those of flowlab's methods that it is for.
    """

    key: str
    title: str
    limit: float | dict[str, float] | Limit | None = None
    margin: float | Callable[[dict], float] | None = None
    peers: tuple[str, ...] = PEERS
    methods: tuple[str, ...] = OURS

    def wanted(self, name: str, cells: Cells, method: str) -> float | None:
        better = metric(self.key).better
        limit = self.limit.get(name) if isinstance(self.limit, dict) else self.limit
        if callable(limit):
            limit = limit(name, cells, method)
        given = [x for x in (limit, self.of_peers(cells)) if x is not None]
        return None if not given else max(given) if better > 0 else min(given)

    def of_peers(self, cells: Cells) -> float | None:
        """The best peer's value less the margin; None where there is no peer."""
        better = metric(self.key).better
        known = [cells[peer] for peer in self.peers if value(cells.get(peer), self.key) is not None]
        if self.margin is None or not known:
            return None
        best = max(known, key=lambda cell: better * value(cell, self.key))
        margin = self.margin(best) if callable(self.margin) else self.margin
        return value(best, self.key) - better * margin


def for_size(seconds: float, **others: float) -> Limit:
    """A limit that is set for 5,000 rows of 11 columns, in proportion to cells; tables with one of their own follow."""
    return lambda name, cells, method: others.get(
        name, seconds * cells["rows"]["train"] * cells["rows"]["columns"] / 55_000
    )


def deviation(key: str) -> Callable[[dict], float]:
    """The standard deviation of a method's score over its draws."""
    return lambda cell: statistics.stdev(cell["draws"][key])


FIXED_C2ST = {"diamonds": 0.62, "flights": 0.65, "weather": 0.72, "credit": 0.63}
FIXED_TSTR = {"diamonds": 0.985, "weather": 0.985, "flights": 0.955, "credit": 0.98}
OTHERS = tuple(peer for peer in PEERS if peer not in CART)
BARS = (
    Bar("c2st", "C2ST at most (peers: all but CART)", FIXED_C2ST, 0, OTHERS),
    Bar("c2st", "C2ST at most (the better CART and its sd)", None, deviation("c2st"), CART, (FLOWLAB,)),
    Bar("pair_tv", "Pair-TV at least", margin=0),
    Bar("quality", "SDMetrics quality at least", margin=0),
    Bar("tstr", "TSTR ratio at least", FIXED_TSTR, 0.01),
    Bar("tstr", "TSTR ratio at least (the better CART)", None, 0, CART, (FLOWLAB,)),
    Bar(
        "copies",
        "copied rows, at most as many as among test rows",
        lambda name, cells, method: cells[method]["copies_held_out"],
    ),
    Bar("dcr", "DCR share at most", 0.53, methods=(FLOWLAB,)),
    Bar("dcr", "DCR share at most (effort fast)", 0.55, methods=(FAST,)),
    Bar("unknown_categories", "invalid categories", 0),
    Bar("fractions", "fractional integers", 0),
    Bar("out_of_range", "values out of range", 0),
    Bar("dtypes", "columns with another dtype", 0),
    Bar("missing_rate", "missing rates off by at most", 0.01),
    Bar("missing_pattern", "missing-pattern distance at most", 0.015),
    Bar("fit_cpu", "fit, CPU-seconds at most", for_size(25, churn=60), methods=(FLOWLAB,)),
    Bar("fit_cpu", "fit, CPU-seconds at most (effort fast)", for_size(3), methods=(FAST,)),
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


def present(found: Results) -> list[str]:
    """The methods that have run on some table."""
    return [method for method in METHODS if any(method in cells for cells in found.values())]


def section(what: Metric, found: Results) -> str:
    """One metric of all methods on all tables, the best in bold."""
    methods, lines = present(found), []
    for name, cells in found.items():
        numbers = [value(cells.get(m), what.key) for m in methods]
        written = [text(cells[m], what.key) for m, x in zip(methods, numbers) if x is not None]
        ranked = [x for x in numbers if x is not None]
        best = format(max(ranked) if what.better > 0 else min(ranked), what.write) if ranked and what.better else None
        bold = best if len(set(written)) > 1 else None
        shown = [text(cells.get(m), what.key) for m in methods]
        lines.append([name, *(f"**{x}**" if x == bold else x for x in shown), text(cells.get(REAL), what.key)])
    return f"## {what.title}\n\n{what.note}\n\n{table(['table', *methods, REAL], lines)}\n"


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
    """How much scores vary over draws from one fit, a table for each score."""
    parts = []
    for key in SPREAD:
        methods = [*present(found), *([REAL] if key == "c2st" else [])]
        lines = [[method, *(spread_of(draws(cells, method, key)) for cells in found.values())] for method in methods]
        parts.append(f"### {metric(key).title}\n\n{table(['', *found], lines)}")
    return "\n\n".join(parts)


def against_cart(found: Results) -> str:
    """Scores of flowlab's methods less CART's, draw by draw."""
    lines = []
    for key in ("c2st", "pair_tv", "tstr"):
        for method in OURS:
            for peer in CART:
                pairs = [zip(draws(cells, method, key), draws(cells, peer, key)) for cells in found.values()]
                cells = [spread_of([ours - theirs for ours, theirs in pair], "+.4f") for pair in pairs]
                lines.append([f"{metric(key).title}: {method} less {peer}", *cells])
    return table(["", *found], lines)


def draws(cells: Cells, method: str, key: str) -> list[float]:
    """A score of each draw; none where there are none."""
    return cells.get(method, {}).get("draws", {}).get(key, [])


def spread_of(scores: list[float], form: str = ".4f") -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(scores):{form}} ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""


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
    environments = {
        "flowlab": OURS,
        "CART": CART,
        "SDV's environment": SDV,
        "arfpy's environment": (ARF,),
        "TabularARGN's environment": ARGN,
        "Unmasking Trees' environment": (UNMASKING,),
    }
    for family, methods in environments.items():
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
says so; TabularARGN (ARGN) also without its protection of rare values; Unmasking Trees told which columns are \
categories and which are whole numbers, with a column that says which numbers are missing. arfpy's and Unmasking \
Trees' rows are scored once more with each number and time moved to the nearest one of its column (snapped; the times \
are theirs). CART is the sequential synthesizer of Reiter (2005), as in R's synthpop, with scikit-learn's trees and \
leaves of at least 5 or 20 rows (benchmarks/synthesizers/cart.py): it gives back real values alone.

Each method draws 5,000 rows five times from one fit; of each draw as many as there are training rows are scored. \
C2ST, Pair-TV, SDMetrics' quality, the TSTR ratio and the DCR share are means over the five draws, whosever they are; \
all else is of the first one. Real rows: training rows taken for synthetic ones where test rows are the measure (C2ST: \
five random parts of them), and test rows where training rows are.

![Three metrics](synthesis.png)

## Bars: `FlowDensity()`

Where a bar is about peers, it is the best peer's value on that table (TSTR ratio: less 0.01), or the fixed limit \
where that is tighter. C2ST is compared with CART apart: with the lower of its two means, plus the standard deviation \
of that one over its five draws; the TSTR ratio also without a margin. Limits of fitting times are for 5,000 rows of \
11 columns, in proportion to cells (churn: 60 s).

{bars(found, FLOWLAB)}

## Bars: `FlowDensity(effort="fast")`

{bars(found, FAST)}

## How much scores vary from draw to draw

Mean ± standard deviation over the five draws from one fit. SDMetrics cuts the numbers of real and of synthetic rows \
into intervals of equal length apart, from least to greatest: where it compares a number with a category, one extreme \
value more or less moves all of them.

{spread(found)}

## Against CART, draw by draw

Mean ± standard deviation over five pairs of draws, which meet the same test rows and the same folds.

{against_cart(found)}

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
        methods = present(found)
        for k, method in enumerate(methods):
            points = [(i, value(cells.get(method), what.key)) for i, cells in enumerate(found.values())]
            points = [(i, x) for i, x in points if x is not None]
            ours = method in OURS
            axis.plot(
                [x for _, x in points],
                [i + 0.75 * (k / len(methods) - 0.5) for i, _ in points],
                "D" if ours else "o",
                markersize=6 if ours else 4.5,
                color=colormaps["tab20"](METHODS.index(method)),
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
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def write(found: Results, markdown_path: Path, picture_path: Path) -> None:
    markdown_path.write_text(markdown(found))
    picture(found, picture_path)
