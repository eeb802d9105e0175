"""Pictures: the training curve, pairs of columns, and how noise becomes data."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torch import Tensor

from flowlab.flow import Flow
from flowlab.writing import written_whole

DATA, MODEL = "#1f4e79", "#c8553d"
LABEL = 8  # points of axis labels
Array = NDArray[np.float64]


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure in the format of the path's suffix, .png without one, and return the path."""
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".png")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight", format=path.suffix[1:])
    return path


def training_curve(history: pd.DataFrame, title: str = "") -> Figure:
    """Draw training and validation loss (nats per row) against steps, with the best step marked."""
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    axes.tick_params(labelsize=LABEL)
    axes.plot(history["step"], history["train"], color=DATA, label="training rows")
    axes.plot(history["step"], history["validation"], color=MODEL, label="held-out rows")
    best = history.loc[history["validation"].idxmin()]
    axes.axvline(
        best["step"],
        color="0.6",
        linestyle=":",
        linewidth=1,
        label=f"weights kept: step {best['step']:.0f} of {history['step'].max():.0f}",
    )
    shown = history["validation"].iloc[len(history) // 20 :]
    low, high = (
        min(history["train"].min(), shown.min()),
        max(history["train"].iloc[len(history) // 20 :].max(), shown.max()),
    )
    margin = 0.05 * (high - low) or 1.0  # a curve that is flat, or a point
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("step", fontsize=LABEL)
    axes.set_ylabel("negative log-likelihood, nats per row", fontsize=LABEL)
    axes.set_title(title, fontsize=LABEL + 2)
    axes.legend(frameon=False, fontsize=LABEL)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def pairs(
    data: Array, samples: Array, names: Sequence[str], title: str = "", most: int = 4, rows: int = 1500
) -> Figure:
    """Draw pairs of columns, data below the diagonal and samples above, with both histograms on it.

    Axes run from the data's 0.5 % to its 99.5 % quantile. The first `most` columns are shown, `rows` points of each
    kind.
    """
    count = min(most, data.shape[1])
    limits = np.quantile(data[:, :count], [0.005, 0.995], axis=0)
    margin = 0.04 * (limits[1] - limits[0])
    limits = np.stack([limits[0] - margin, limits[1] + margin])
    figure = Figure(figsize=(2.1 * count + 0.6, 2.1 * count + 0.4))
    grid = figure.subplots(count, count, squeeze=False)
    for i in range(count):
        for j in range(count):
            axes = grid[i][j]
            axes.set_xlim(limits[0, j], limits[1, j])
            if i == j:
                bins = np.linspace(limits[0, j], limits[1, j], 40)
                axes.hist(data[:, j], bins, density=True, color=DATA, alpha=0.55)
                axes.hist(samples[:, j], bins, density=True, color=MODEL, histtype="step", linewidth=1.5)
                axes.set_yticks([])
            else:
                source, color = (data, DATA) if i > j else (samples, MODEL)
                axes.plot(source[:rows, j], source[:rows, i], ".", color=color, markersize=1.6, alpha=0.5)
                axes.set_ylim(limits[0, i], limits[1, i])
            _label(axes, i, j, count, names)
    left_out = f", {count} of {data.shape[1]} columns" if data.shape[1] > count else ""
    figure.suptitle(f"{title}{left_out}", y=0.985, fontsize=11)
    keys = [Patch(color=DATA, label="data, below the diagonal"), Patch(color=MODEL, label="samples, above")]
    figure.legend(handles=keys, loc="upper center", bbox_to_anchor=(0.5, 0.965), ncols=2, frameon=False, fontsize=9)
    figure.subplots_adjust(wspace=0.08, hspace=0.08, top=0.92)
    return figure


def _label(axes: Axes, i: int, j: int, count: int, names: Sequence[str]) -> None:
    """Label panel (i, j) of a grid of pairs where it is at the grid's edge.

    The scale of the first row stands to the right, beside its points.
    """
    axes.tick_params(labelsize=7)
    if i < count - 1:
        axes.set_xticklabels([])
    else:
        axes.set_xlabel(names[j], fontsize=9)
    if j == 0:
        axes.set_ylabel(names[i], fontsize=9)
    elif i < j == count - 1:
        axes.yaxis.tick_right()
    elif i != j:
        axes.set_yticks([])


@torch.no_grad()
def morph(flow: Flow, data: Tensor, steps: Sequence[int] | None = None, points: int = 3000, title: str = "") -> Figure:
    """Draw how a 2-D flow turns noise into data layer by layer, beside its density and the data themselves.

    Points keep the colour of their noise's angle through all panels. `steps` are the numbers of layers after which to
    look.
    """
    layers = list(flow)
    steps = (
        sorted({0, *(round(len(layers) * share) for share in (0.34, 0.67)), len(layers)}) if steps is None else steps
    )
    z = flow.base.sample((points,), torch.Generator().manual_seed(0))
    color = torch.atan2(z[:, 1], z[:, 0]).numpy()
    figure = Figure(figsize=(2.6 * (len(steps) + 2), 2.9))
    grid = figure.subplots(1, len(steps) + 2)
    low, high = data.quantile(0.001, dim=0).numpy(), data.quantile(0.999, dim=0).numpy()
    margin = 0.12 * (high - low)
    low, high = low - margin, high + margin
    for axes, step in zip(grid, steps, strict=False):
        x = z
        for layer in layers[:step]:
            x = layer(x)[0]
        axes.scatter(x[:, 0], x[:, 1], c=color, cmap="twilight", s=1.2, linewidths=0)
        axes.set_title("noise" if step == 0 else f"after {step} of {len(layers)} layers", fontsize=9)
    lines = [torch.linspace(float(low[i]), float(high[i]), 200) for i in range(2)]
    mesh = torch.stack(torch.meshgrid(*lines, indexing="xy"), -1)
    density = flow.log_prob(mesh.to(flow.dtype)).exp().numpy()
    grid[-2].imshow(density, origin="lower", extent=(low[0], high[0], low[1], high[1]), cmap="magma", aspect="auto")
    grid[-2].set_title("density", fontsize=9)
    grid[-1].plot(data[:points, 0], data[:points, 1], ".", color=DATA, markersize=1.2)
    grid[-1].set_title("data", fontsize=9)
    for axes in grid[len(steps) - 1 :]:
        axes.set_xlim(low[0], high[0])
        axes.set_ylim(low[1], high[1])
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
    figure.suptitle(title)
    figure.subplots_adjust(wspace=0.06, top=0.8)
    return figure
