"""Pictures of the report: columns real against synthetic, heat maps, and SVG in the colours of the page."""

import io
import re
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flowlab.report.figures import DATA, MODEL
from flowlab.tables.frames.aligned import Array, Column

BARS = 8  # most frequent categories that get bars of their own
DISTINCT = 12  # values up to which numbers get bars
BINS = 36
NAMED = 40  # columns up to which heat maps name them
DAY = 86_400
LABEL = 9  # points; panels and maps are about as wide on the page as they are drawn, so that this is their size there
LINE = 31  # characters of that size below a panel


def svg(figure: Figure, name: str, title: str) -> Markup:
    """Write a figure as SVG for a page: black becomes the page's text colour, nothing refers to the outside.

    Args:
        figure: The figure.
        name: Prefix of its ids, so that figures of one page do not get into each other's way.
        title: What it shows, for those who cannot see it.
    """
    for patch in [figure.patch, *(axes.patch for axes in figure.axes)]:
        patch.set_alpha(0)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        box = "tight" if figure.get_layout_engine() is None else None
        figure.savefig(out, format="svg", bbox_inches=box, pad_inches=0.03, metadata=nothing)
    text = out.getvalue()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", lambda tag: _own(tag.group(), name), text)
    label = Markup('<svg role="img" aria-label="{}"').format(title)
    return Markup(text.replace("<svg", label, 1))  # matplotlib escapes what it writes


def plain(text: Any, most: int = 24) -> str:
    """Make a text from data safe for matplotlib: one line, not too long, without mathematics.

    Example:
        >>> plain("a\\nvery, very, very long name", most=12)
        'a very, ver…'
    """
    line = "".join(c if c.isprintable() else " " for c in str(text))
    line = line if len(line) <= most else line[: most - 1] + "…"
    return line.replace("$", r"\$")


def column_panel(column: Column) -> Figure:
    """Draw one column, real (filled) against synthetic (outlined).

    Numbers and times get a histogram, few values and categories get bars. Histograms span 99 % of the real values;
    shares are of the cells that are not missing, in bars of categories of all rows.
    """
    figure = Figure(figsize=(2.7, 1.8), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=LABEL, length=2)
    real, synthetic = (x[np.isfinite(x)] for x in column.values)
    if column.kind == "category":
        _bars(axes, *_category_shares(column))
    elif len(real) and column.kind == "number" and len(values := np.unique(real)) <= DISTINCT:
        labels = [f"{value:g}" for value in values]
        shares = [[float((x == value).mean()) if len(x) else 0.0 for value in values] for x in (real, synthetic)]
        other = 1 - sum(shares[1])
        if len(synthetic) and other > 1e-9:
            labels, shares = [*labels, "other"], [[*shares[0], 0.0], [*shares[1], other]]
        _bars(axes, labels, shares, upright=True)
    elif len(real):
        _histogram(axes, column.kind, real, synthetic)
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no values", ha="center", va="center", fontsize=LABEL)
    return figure


def heat_map(values: pd.DataFrame, title: str, low: float = 0.0, high: float = 1.0, colors: str = "viridis") -> Figure:
    """Draw a matrix of columns against columns."""
    count = len(values)
    figure = Figure(figsize=(3.6, 3.4), layout="constrained")  # maps of the same columns come out alike, and in line
    axes = figure.subplots()
    picture = axes.imshow(values.to_numpy(dtype=float), vmin=low, vmax=high, cmap=colors, interpolation="nearest")
    axes.set_title(title, fontsize=LABEL + 1)
    if count <= NAMED:
        names = [plain(name, 14) for name in values.columns]
        size = LABEL if count <= 12 else 7 if count <= 20 else 4.5
        axes.set_xticks(range(count), names, rotation=90, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
    axes.tick_params(length=0, labelsize=None if count <= NAMED else LABEL)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(picture, ax=axes, fraction=0.045, pad=0.03, format="% .2f")
    bar.ax.tick_params(labelsize=LABEL, length=2)
    bar.outline.set_visible(False)
    return figure


def _own(tag: str, name: str) -> str:
    """Rewrite a tag of an SVG for the page.

    Ids become its own, colours the page's and the width that of its place; name spaces go, since HTML implies them.
    """
    if tag.startswith("<svg"):
        tag = re.sub(r'\s(width|height|version)="[^"]*"', "", tag)
    tag = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag).replace("#000000", "currentColor")
    tag = tag.replace(DATA, "var(--real)").replace(MODEL, "var(--synthetic)")
    return re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{name}-", tag)


def _histogram(axes: Any, kind: str, real: Array, synthetic: Array) -> None:
    if kind != "number":
        real, synthetic = real / DAY, synthetic / DAY
    low, high = np.quantile(real, [0.005, 0.995], method="inverted_cdf")
    high = high if high > low else low + max(abs(low), 1.0) * 1e-6
    step = _grid(real)
    if step and high - low < 1000 * step:  # as many values of the grid in each bin
        bin_width = step * max(np.ceil((high - low + step) / (BINS * step)), 1)
        edges = np.arange(low - step / 2, high + bin_width + step / 4, bin_width)
    else:
        edges = np.linspace(low, high, BINS + 1)
    heights = [np.histogram(x, edges)[0] / max(len(x), 1) for x in (real, synthetic)]
    axes.stairs(heights[0], edges, fill=True, color=DATA, alpha=0.45)
    axes.stairs(heights[1], edges, color=MODEL, linewidth=1.3)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1.08 * max(h.max() for h in heights) or 1)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=4) if kind != "time" else None
    if kind == "time":
        locator = AutoDateLocator(minticks=2, maxticks=6)  # for any span some interval of its gives that many
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    elif kind == "duration":
        axes.set_xlabel("days", fontsize=LABEL)
    axes.xaxis.get_offset_text().set_fontsize(LABEL)


def _grid(values: Array) -> float:
    """The smallest difference of two values if all are whole multiples of it apart, else 0."""
    distinct = np.unique(values)
    step = float(np.diff(distinct).min()) if len(distinct) > 1 else 0.0
    places = (distinct - distinct[0]) / (step or 1.0)
    return step if step and np.abs(places - np.round(places)).max() < 1e-3 else 0.0


def _bars(axes: Any, labels: list[str], shares: list[list[float]], upright: bool = False) -> None:
    place: NDArray[np.float64] = np.arange(len(labels), dtype=float)
    draw = axes.bar if upright else axes.barh
    draw(place - 0.2, shares[0], 0.38, color=DATA, alpha=0.45)
    draw(place + 0.2, shares[1], 0.38, edgecolor=MODEL, facecolor="none")
    axis = axes.xaxis if upright else axes.yaxis
    axis.set_ticks(place, labels)
    if upright and (max(map(len, labels)) + 1) * len(labels) > LINE:
        axis.set_tick_params(rotation=90)
    (axes.yaxis if upright else axes.xaxis).set_major_locator(ticker.MaxNLocator(3))
    (axes.yaxis if upright else axes.xaxis).set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    if not upright:
        axes.invert_yaxis()


def _category_shares(column: Column) -> tuple[list[str], list[list[float]]]:
    """Compute labels and both tables' shares of rows.

    The most frequent real categories come first, then all others together, then missing cells.
    """
    counts = []
    for values in column.values:
        present = values[~np.isnan(values)].astype(int)
        counts.append(np.bincount(present, minlength=len(column.levels)) / max(len(values), 1))
    shown = np.argsort(-counts[0], kind="stable")[:BARS]
    labels = [plain(column.levels[level], 14) for level in shown]
    shares = [list(share[shown]) for share in counts]
    absent = [float(np.isnan(values).mean()) if len(values) else 0.0 for values in column.values]
    others = [float(share.sum()) - sum(some) for share, some in zip(counts, shares)]
    for label, extra in ((f"{len(column.levels) - len(shown)} others", others), ("missing", absent)):
        if max(extra) > 1e-9:
            labels.append(label)
            shares = [[*some, more] for some, more in zip(shares, extra)]
    return labels, shares
