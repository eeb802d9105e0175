"""How does the cost of flowlab's spline flows grow with features, layers, bins, batch and rows?

    python benchmarks/scaling.py                  # under four minutes; to pin it to a core: taskset -c 0
    python benchmarks/scaling.py --seconds 0.01   # noisy, and a little faster

One thread; on Linux, for memory. Writes benchmarks/results/scaling.md and .png.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import log
from pathlib import Path

import torch
from common import RESULTS, circumstances, memory, table
from frameworks.flowlab_ import Model
from matplotlib.figure import Figure

from flowlab import Flow, presets
from flowlab.runtime import threads

SETTING = {"features": 16, "layers": 4, "bins": 8, "hidden": (128, 128)}
SMALL = {"features": 2, "layers": 2, "bins": 8, "hidden": (16,)}
ROWS = {"train": 512, "log_prob": 8192, "sample": 8192}
LARGE = [(kind, op) for kind in ("coupling", "autoregressive") for op in ("log_prob", "sample")]
OPS = [("coupling", "train"), *LARGE[:2], ("autoregressive", "train"), LARGE[2]]
SLOW = [("autoregressive", "sample"), ("autoregressive", "rsample")]
FEATURES = (4, 8, 16, 32, 64, 128, 256)
TOLERANCE = 0.15  # of an exponent, for noise
COST = "µs per row"


@dataclass
class Panel:
    """Cost against one dimension: `slope` is the largest exponent expected, `why` says where it comes from."""

    title: str
    axis: str
    unit: str
    slope: float
    why: str
    since: int = 0  # from where on it should be so
    series: dict[str, dict[int, float]] = field(default_factory=dict)

    def add(self, name: str, x: int, value: float) -> None:
        self.series.setdefault(name, {})[x] = value
        print(f"{self.title}: {name} at {x:,}: {value:.4g} {self.unit}", flush=True)

    def exponents(self, name: str) -> dict[int, float]:
        """The exponent between each point and the one before."""
        points = list(self.series[name].items())
        return {x: log(y / before) / log(x / left) for (left, before), (x, y) in pairwise(points)}


def build(kind: str, setting: dict) -> Flow:
    options = SETTING | setting
    generator = torch.Generator().manual_seed(0)
    return presets.nsf(options.pop("features"), autoregressive=kind == "autoregressive", generator=generator, **options)


def fastest(function: Callable[[], object], seconds: float) -> float:
    """The least time of calls that take so many seconds together, after a first one; of very long ones, of one."""
    times = []
    while len(times) < 2 or sum(times[1:]) < seconds:
        started = time.process_time()  # waiting for other programs does not count
        function()
        times.append(time.process_time() - started)
        if times[0] > 20 * seconds:
            break
    return min(times)


def call(kind: str, op: str, rows: int, setting: dict) -> Callable[[], object]:
    """The operation, ready to run."""
    if op in ("train", "rsample"):
        model = Model(lambda: build(kind, setting))
        argument = rows if op == "rsample" else torch.randn(rows, model.module.features)
        return lambda: getattr(model, op)(argument)
    flow = build(kind, setting)
    argument = (rows,) if op == "sample" else torch.randn(rows, flow.features)
    return torch.no_grad()(lambda: getattr(flow, op)(argument))


def isolated(job: tuple[str, str, int, dict, float]) -> tuple[float, float]:
    """Measure microseconds per row, and megabytes beyond input and output.

    In a process of its own, since earlier calls change how memory is allocated.
    """
    kind, op, rows, setting, seconds = job
    call(kind, op, 16, setting)()  # what the first call loads and caches is not counted
    run = call(kind, op, rows, setting)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    took = fastest(run, seconds)
    output = 4 * rows * {"sample": (SETTING | setting)["features"], "log_prob": 1}.get(op, 0)
    return 1e6 * took / rows, max(memory("VmHWM") - before - output, 1e5) / 1e6


def measure(seconds: float) -> list[Panel]:
    features = Panel("Features", "features", COST, 1, "last product and spline are proportional, the rest is fixed")
    slow = Panel("Slow direction", "features", COST, 1, "one step per feature, all of one cost")
    slow_memory = Panel("Memory of the slow direction", "features", "MB", 1, "so many values per feature and row")
    layers = Panel("Layers", "layers", COST, 1, "all cost the same")
    bins = Panel("Bins", "bins", COST, 1, "last product and spline are proportional, the rest is fixed")
    batch = Panel("Batch", "rows per call", COST, 0, "fixed costs are spread over the rows, then nothing changes")
    rows = Panel("Rows, small flow", "rows", COST, 0, "chunks of one size cost the same")
    rows_memory = Panel("Memory, small flow", "rows", "MB", 0, "beyond input and output only a chunk is held", 10**5)

    jobs = [([slow, slow_memory], x, (*pair, 1024, {"features": x})) for pair in SLOW for x in FEATURES]
    jobs += [([rows, rows_memory], 10**i, (*pair, 10**i, SMALL)) for pair in LARGE for i in range(3, 8)]
    for kind, op in OPS:
        for panel, points in ((features, FEATURES), (layers, (1, 2, 4, 8, 16)), (bins, (4, 8, 16, 32, 64))):
            jobs += [([panel], x, (kind, op, ROWS[op], {panel.axis: x})) for x in points]
        jobs += [([batch], n, (kind, op, n, {})) for n in (32, 128, 512, 2048, 8192, 32768)]
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        results = pool.imap(isolated, [(*job, seconds) for _, _, job in jobs])
        for (panels, x, (kind, op, *_)), measured in zip(jobs, results, strict=True):
            for panel, value in zip(panels, measured):
                panel.add(f"{kind}, {op}", x, value)
    return [features, slow, slow_memory, layers, bins, batch, rows, rows_memory]


def table_of(panel: Panel) -> str:
    """Costs, with the local exponents."""
    lines = []
    for x in next(iter(panel.series.values())):
        found = [(values[x], panel.exponents(name).get(x)) for name, values in panel.series.items()]
        cells = [f"{value:.3g}" + ("" if exponent is None else f" ({exponent:+.2f})") for value, exponent in found]
        lines.append([f"{x:,}", *cells])
    return table([panel.axis, *panel.series], lines, "r")


def bent(panel: Panel) -> list[str]:
    """Where the cost grows faster than it should."""
    return [
        f"- {panel.title}, {name}: exponent {exponent:.2f} up to {x:,}, {panel.series[name][x]:.3g} {panel.unit}"
        for name in panel.series
        for x, exponent in panel.exponents(name).items()
        if exponent > panel.slope + TOLERANCE and x > panel.since
    ]


def markdown(panels: list[Panel]) -> str:
    heads = [f"## {p.title}: {p.unit}\n\nExpected exponent: at most {p.slope:g}; {p.why}." for p in panels]
    tables = "\n\n".join(f"{head}\n\n{table_of(panel)}" for head, panel in zip(heads, panels))
    return f"""# Scaling

`python benchmarks/scaling.py`, {circumstances()}, one thread, whose own time it is. Neural spline flows of \
{SETTING["layers"]} layers with {SETTING["hidden"]} hidden units, {SETTING["features"]} features and \
{SETTING["bins"]} bins where nothing else is said; training steps as in `fit` on {ROWS["train"]} rows, log_prob and \
sampling of {ROWS["log_prob"]:,} rows without gradient, the slow direction of 1,024 rows (rsample with gradient). The \
small flow has {SMALL["features"]} features and {SMALL["layers"]} layers with {SMALL["hidden"][0]} hidden units. Each \
number is the fastest of some calls in a fresh process; in parentheses the local exponent, log(cost ratio) / \
log(ratio of the dimension). Memory is the peak beyond input and output.

![Cost against each dimension](scaling.png)

## Steeper than it should be, by more than {TOLERANCE}

{chr(10).join(line for panel in panels for line in bent(panel)) or "Nothing."}

{tables}
"""


def picture(panels: list[Panel], path: Path) -> None:
    figure = Figure(figsize=(16, 8), layout="constrained")
    for axis, panel in zip(figure.subplots(2, 4).flat, panels, strict=True):
        for (name, values), marker in zip(panel.series.items(), "os^Dv"):
            axis.plot(list(values), list(values.values()), marker=marker, markersize=4, linewidth=1, label=name)
        last, highest = max(point for values in panel.series.values() for point in values.items())
        reference = [highest * (x / last) ** panel.slope for x in values]
        axis.plot(list(values), reference, "--", color="#888888", label=f"slope {panel.slope:g}")
        axis.set(xscale="log", yscale="log", title=panel.title, xlabel=panel.axis, ylabel=panel.unit)
        axis.set_xticks(list(values), [f"{x:,}" for x in values], fontsize=7)
        axis.set_xticks([], minor=True)
        axis.grid(color="#eeeeee")
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2, help="of calls per point")
    with threads(1):
        panels = measure(parser.parse_args().seconds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scaling.md").write_text(markdown(panels))
    picture(panels, RESULTS / "scaling.png")


if __name__ == "__main__":
    main()
