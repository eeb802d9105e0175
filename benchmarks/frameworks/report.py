"""From the results of `benchmarks/speed.py` to tables and a picture."""

import math
from pathlib import Path

from common import table

from . import CASES, FEATURES, FRAMEWORKS, OPS, TORCH_PEERS

SPLINES, AFFINES = ("nsf", "nsf_ar"), ("real_nvp", "maf")
PEER, JAX, BOUND = "best PyTorch peer", "FlowJAX", "MLPs alone"
MEMORY_BAR = 2e9

# What flowlab wants to reach: operation, cases, features, who, compared with whom, largest ratio of medians.
BARS = [
    ("train", ("nsf",), (21, 63), "flowlab", PEER, 0.45),
    ("train", ("nsf_ar",), (21, 63), "flowlab", PEER, 0.5),
    ("train", SPLINES, (6,), "flowlab", PEER, 0.6),
    ("train", AFFINES, (21, 63), "flowlab", PEER, 0.8),
    ("train", AFFINES, (6,), "flowlab", PEER, 0.85),
    ("train", ("nsf",), (21, 63), "flowlab", JAX, 1.0),
    ("train", ("nsf_ar",), (63,), "flowlab", JAX, 1.0),
    ("train", ("nsf_ar",), (21,), "flowlab", JAX, 1.2),
    ("train", SPLINES, (21, 63), "flowlab-compiled", JAX, 1.0),
    ("train", SPLINES, (6,), "flowlab-compiled", JAX, 1.5),
    ("train", AFFINES, FEATURES, "flowlab-compiled", JAX, 1.3),
    ("train", ("nsf",), FEATURES, "flowlab", BOUND, 1.7),
    ("train", ("real_nvp",), FEATURES, "flowlab", BOUND, 1.15),
    ("log_prob", SPLINES, (21, 63), "flowlab", PEER, 0.5),
    ("log_prob", SPLINES, (6,), "flowlab", PEER, 0.7),
    ("log_prob", AFFINES, FEATURES, "flowlab", PEER, 1.0),
    ("sample", ("nsf",), FEATURES, "flowlab", PEER, 0.5),
    ("sample", ("nsf_ar",), (63,), "flowlab", PEER, 1 / 50),
    ("sample", ("nsf_ar",), (63,), "flowlab", JAX, 1 / 20),
    ("rsample", SPLINES, FEATURES, "flowlab", PEER, 0.6),
    ("rsample", AFFINES, FEATURES, "flowlab", PEER, 0.9),
    ("rsample", ("planar",), FEATURES, "flowlab", PEER, 0.6),
]


def line(cells: dict[str, dict]) -> str:
    """One group for the terminal."""
    return ", ".join(f"{name} {spread(cell)}" for name, cell in cells.items() if "median" in cell)


def milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(cell: dict | None) -> str:
    """Median and half the interquartile range, in ms; a single call has none."""
    if cell is None or "median" not in cell:
        return "–"
    low, high = cell["quartiles"]
    middle = milliseconds(cell["median"])
    return middle if cell["calls"] == 1 else f"{middle} ± {milliseconds((high - low) / 2)}"


def ratio(cells: dict[str, dict], who: str, whom: str) -> tuple[float, str] | None:
    """The ratio of two medians and the name of the denominator, None where one is missing."""
    rivals = TORCH_PEERS if whom == PEER else {JAX: ("flowjax",), BOUND: ("bound",)}[whom]
    medians = {name: cells[name]["median"] for name in (who, *rivals) if "median" in cells.get(name, {})}
    if who not in medians or len(medians) == 1:
        return None
    own = medians.pop(who)
    best = min(medians, key=medians.__getitem__)
    return own / medians[best], FRAMEWORKS[best][2]


def group(results: dict, case: str, features: int, op: str) -> dict[str, dict]:
    return results["groups"].get(f"{case}/{features}/{op}", {})


def lines_of_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Markdown; columns of numbers, from the third on, are set right."""
    return table(header, rows, "llr").split("\n")


def operation_table(results: dict, op: str) -> list[str]:
    groups = {(case, d): group(results, case, d, op) for case in CASES for d in FEATURES}
    shown = [name for name in FRAMEWORKS if any("median" in cells.get(name, {}) for cells in groups.values())]
    rows = []
    for (case, d), cells in groups.items():
        if not cells:
            continue
        row = [CASES[case].title, str(d), *(spread(cells.get(name)) for name in shown)]
        for whom in (PEER, JAX, BOUND):
            found = ratio(cells, "flowlab", whom)
            row.append("–" if found is None else f"{found[0]:.2f}" + (f" ({found[1]})" if whom == PEER else ""))
        rows.append(row)
    header = ["case", "features", *(FRAMEWORKS[name][2] for name in shown)]
    return lines_of_table([*header, *(f"flowlab / {whom}" for whom in (PEER, JAX, BOUND))], rows) if rows else []


def parameter_table(results: dict) -> list[str]:
    """How many parameters each framework trains, which is the proof that all train the same."""
    counts: dict[tuple[str, int], dict[str, int]] = {}
    for key, cells in results["groups"].items():
        case, d, _ = key.split("/")
        found = {name: cell["parameters"] for name, cell in cells.items() if "parameters" in cell}
        counts.setdefault((case, int(d)), {}).update(found)
    names = [name for name in FRAMEWORKS if any(name in found for found in counts.values())]
    rows = [
        [CASES[case].title, str(d), *(f"{found[name]:,}" if name in found else "–" for name in names)]
        for (case, d), found in counts.items()
    ]
    return lines_of_table(["case", "features", *(FRAMEWORKS[name][2] for name in names)], rows)


def bar_table(results: dict) -> list[str]:
    """What was wanted, measured and reached. Of training steps, also the ratio when all use the same optimizer."""
    rows = []
    for op, cases, features, who, whom, limit in BARS:
        for case in cases:
            found = ratios(results, case, features, op, who, whom)
            same = ratios(results, case, features, "train_fused", who, whom) if op == "train" and whom == PEER else {}
            name = f"{op}, {CASES[case].title}" + (", compiled" if who == "flowlab-compiled" else "")
            wanted = f"≤ {limit:.3g} × {whom}"
            verdict = judge([value <= limit for value, _ in found.values()], len(features))
            rows.append([name, ", ".join(map(str, features)), wanted, shown(found, whom), shown(same, whom), verdict])
    cell = results["memory"].get("flowlab", {})
    verdict = judge([cell.get("peak", math.inf) <= MEMORY_BAR] if cell else [], 1)
    name = "peak memory, rsample in the slow direction, NSF autoregressive"
    rows.append([name, "63", "≤ 2 GB", gigabytes(cell), "", verdict])
    return lines_of_table(["bar", "features", "wanted", "measured", "with fused Adam for all", ""], rows)


def ratios(results: dict, case: str, features: tuple, op: str, who: str, whom: str) -> dict[int, tuple[float, str]]:
    found = {d: ratio(group(results, case, d, op), who, whom) for d in features}
    return {d: pair for d, pair in found.items() if pair is not None}


def shown(found: dict[int, tuple[float, str]], whom: str) -> str:
    return ", ".join(f"{value:.3g}" + (f" ({name})" if whom == PEER else "") for value, name in found.values())


def judge(verdicts: list[bool], wanted: int) -> str:
    if len(verdicts) < wanted:
        return "not measured" if not verdicts else "measured in part"
    return "reached" if all(verdicts) else "missed"


def gigabytes(cell: dict) -> str:
    return f"{cell['peak'] / 1e9:.2f} GB" if "peak" in cell else cell.get("missing", "–")


def profile_table(results: dict) -> list[str]:
    """What the time of an operation goes to, by the profiler's shares of the time without it, in milliseconds."""
    found = {
        (place, name): answer
        for place, answers in results["profiles"].items()
        for name, answer in answers.items()
        if "shares" in answer
    }
    kinds = sorted({kind for answer in found.values() for kind in answer["shares"]})
    rows = []
    for (place, name), answer in found.items():
        case, features, op = place.split("/")
        parts = [f"{1e3 * answer['seconds'] * answer['shares'].get(kind, 0.0):.2f}" for kind in kinds]
        rows.append([op, CASES[case].title, features, FRAMEWORKS[name][2], f"{1e3 * answer['seconds']:.2f}", *parts])
    return lines_of_table(["operation", "case", "features", "framework", "call", *kinds], rows)


def missing(results: dict) -> list[str]:
    """Why cells are empty, each reason once."""
    reasons: dict[tuple[str, str], None] = {}
    for cells in results["groups"].values():
        for name, cell in cells.items():
            if "missing" in cell:
                reasons[FRAMEWORKS[name][2], cell["missing"]] = None
    return [f"- {name}: {reason}." for name, reason in reasons]


def markdown(results: dict, name: str) -> str:
    versions = ", ".join(f"{FRAMEWORKS[key][2]} {version}" for key, version in results["versions"].items())
    parts = [
        f"# Speed on {results['cores']} core{'s' if results['cores'] > 1 else ''}",
        f"`python benchmarks/speed.py`, {results['date']}: {versions.replace('MLPs alone', 'torch')}. "
        f"{results['machine']}. Interleaved, {results['rounds']} rounds of {results['seconds']:g} s each; "
        "milliseconds per call, median ± half the interquartile range of all calls. FlowJAX is jitted, everything "
        "else eager unless it says so.",
        f"![Ratios of times]({name}.png)",
    ]
    lines = ["\n\n".join(parts), "", "## What was wanted", "", *bar_table(results)]
    for op, title in OPS.items():
        rows = operation_table(results, op)
        if rows:
            lines += ["", f"## {title}", "", *rows]
    if results.get("profiles"):
        note = (
            "Time without the profiler, divided by its shares. What is left besides matrix products, which all have to "
            "do, is some forty small torch operations a layer and their dispatch. log_prob is of 512 rows here. Other "
            "programs may have run beside: read the shares rather than the times."
        )
        lines += ["", "## Profiles of what misses its bar, milliseconds", "", note, "", *profile_table(results)]
    if results["memory"]:
        peaks = [[FRAMEWORKS[key][2], "63", gigabytes(cell)] for key, cell in results["memory"].items()]
        lines += ["", "## Peak memory of rsample in the slow direction, NSF autoregressive, 512 rows", ""]
        lines += lines_of_table(["framework", "features", "process"], peaks)
    lines += ["", "## Trained parameters", "", *parameter_table(results)]
    return "\n".join([*lines, "", "## Empty cells", "", *missing(results), ""])


def picture(results: dict, path: Path) -> None:
    """One panel per operation: flowlab's time relative to the others', below one where it is faster."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(OPS), 1, figsize=(9, 2.3 * len(OPS)), sharex=True, layout="constrained")
    places = [(case, d) for case in CASES for d in FEATURES]
    for axis, (op, title) in zip(axes, OPS.items(), strict=True):
        for whom, colour, marker in ((PEER, "#1f5fa8", "o"), (JAX, "#d9822b", "D")):
            found = [ratio(group(results, case, d, op), "flowlab", whom) for case, d in places]
            values = [math.nan if pair is None else pair[0] for pair in found]
            axis.plot(values, marker, color=colour, markersize=5, label=whom)
        axis.axhline(1, color="black", linewidth=0.8)
        for i in range(len(FEATURES), len(places), len(FEATURES)):
            axis.axvline(i - 0.5, color="#dddddd", linewidth=0.8)
        axis.set_yscale("log", base=2)
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, 0.4), max(high, 2.5))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}")
        axis.set_title(title, loc="left", fontsize=9)
        axis.grid(axis="y", color="#eeeeee")
        axis.set_axisbelow(True)
    labels = [f"{d}\n{CASES[case].title.split(',')[0]}" if d == FEATURES[1] else str(d) for case, d in places]
    axes[-1].set_xticks(range(len(places)), labels, fontsize=8)
    axes[-1].set_xlim(-0.5, len(places) - 0.5)
    axes[-1].set_xlabel("features")
    cores = f"{results['cores']} core{'s' if results['cores'] > 1 else ''}"
    figure.suptitle(f"Time of flowlab relative to others, {cores}: below one it is faster", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)
