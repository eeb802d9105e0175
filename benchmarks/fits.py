"""Whole fits against zuko: the time in which `flowlab.fit` reaches the best validation likelihood of zuko's own recipe.

Diamonds' numeric columns, standardised for both; the same architecture; three seeds of split, dequantisation and fits, taken in
turns on one thread. Writes benchmarks/results/fits.md and .png; five to ten minutes. To pin it to a core: taskset -c 0.
"""

import argparse
import copy
import math
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import flowlab
from flowlab import demo, presets
from flowlab.flow import CHUNK
from flowlab.runtime import threads

SEEDS = (0, 1, 2)
HELD_OUT = 0.1  # share of the training rows that both are validated on
LAYERS, HIDDEN, BOUND = 3, (64, 64), 5.0
BATCH, RATE = 64, 1e-3  # zuko's tutorial
EPOCHS, PATIENCE = 25, 5
CAP = 150.0  # seconds that zuko may train per seed
WANTED = 0.3  # flowlab's time, as a share of zuko's
RESULTS = Path(__file__).parent / "results"


@dataclass
class Run:
    """One fit: seconds and mean validation log-likelihood after each epoch, and the held-out one of the weights kept."""

    seconds: list[float]
    validation: list[float]
    test: float
    total: float
    parameters: int
    note: str

    @property
    def best(self) -> int:
        return max(range(len(self.validation)), key=self.validation.__getitem__)


def data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows, standardised by the training rows."""
    test, rest = (torch.tensor(part.to_numpy()) for part in demo.split(demo.continuous("diamonds", seed)))
    held = round(HELD_OUT * len(rest))
    train, validation = rest[held:], rest[:held]
    mean, deviation = train.mean(0), train.std(0)
    train, validation, test = (((x - mean) / deviation).float() for x in (train, validation, test))
    return train, validation, test


def zuko_fit(train: Tensor, validation: Tensor, test: Tensor, seed: int) -> Run:
    """The loop of zuko's basics tutorial, until validation is stale; evaluations are not timed."""
    import zuko

    torch.manual_seed(seed)
    flow = zuko.flows.NSF(train.shape[1], transforms=LAYERS, hidden_features=HIDDEN)
    loader = DataLoader(TensorDataset(train), batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.Adam(flow.parameters(), lr=RATE)
    seconds, scores, spent, kept, note = [], [], 0.0, flow.state_dict(), ""
    while not note:
        started = time.perf_counter()
        for (x,) in loader:
            loss = -flow().log_prob(x).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        spent += time.perf_counter() - started
        with torch.no_grad():
            score = float(flow().log_prob(validation).double().mean())
        if score > max(scores, default=-math.inf):
            kept = copy.deepcopy(flow.state_dict())
        seconds.append(spent)
        scores.append(score)
        if len(scores) - scores.index(max(scores)) > PATIENCE:
            note = "stale"
        elif len(scores) == EPOCHS or spent > CAP:
            note = "all epochs" if len(scores) == EPOCHS else f"stopped by the cap of {CAP:.0f} s"
    flow.load_state_dict(kept)
    with torch.no_grad():
        held_out = float(flow().log_prob(test).double().mean())
    return Run(seconds, scores, held_out, spent, sum(p.numel() for p in flow.parameters()), note)


def flowlab_fit(train: Tensor, validation: Tensor, test: Tensor, seed: int) -> Run:
    """`flowlab.fit` as it is by default. Its times hold everything, evaluations as well."""
    generator = torch.Generator().manual_seed(seed)
    options = {"layers": LAYERS, "hidden": HIDDEN, "bound": BOUND, "generator": generator}
    flow = presets.nsf(train.shape[1], autoregressive=True, **options)
    history = flowlab.fit(flow, train, validation=validation, generator=generator, progress=False)
    with torch.no_grad():
        started = time.perf_counter()
        for part in (validation, train[:CHUNK]):  # what an evaluation in `fit` scores
            flow.log_prob(part)
        evaluations = len(history.records) * (time.perf_counter() - started)
        held_out = float(flow.log_prob(test).double().mean())
    seconds = [record["seconds"] for record in history.records]
    scores = [-record["validation"] for record in history.records]
    note = f"{evaluations:.1f} s of evaluations"
    return Run(seconds, scores, held_out, history.seconds, sum(p.numel() for p in flow.parameters()), note)


def lines(seed: int, peer: Run, own: Run) -> tuple[list[str], list[list[str]], float]:
    """A row of the first table, two of the second, and flowlab's share of zuko's time (infinite where it does not get there)."""
    target, needed = peer.validation[peer.best], peer.seconds[peer.best]
    reached = next((i for i, value in enumerate(own.validation) if value >= target), None)
    share = math.inf if reached is None else own.seconds[reached] / needed
    when = f"{needed:.1f} s, epoch {peer.best + 1} of {len(peer.seconds)} ({peer.note})"
    own_when = "not reached" if reached is None else f"{own.seconds[reached]:.1f} s, epoch {reached + 1}"
    ends = []
    for name, run in (("zuko", peer), ("flowlab", own)):
        best = f"{run.validation[run.best]:.3f} at {run.seconds[run.best]:.1f} s"
        end = f"{len(run.seconds)} in {run.total:.1f} s ({run.note})"
        ends.append([f"{seed}", name, f"{run.parameters:,}", best, f"{run.test:.3f}", end])
    return [f"{seed}", f"{target:.3f}", when, own_when, f"{share:.2f}"], ends, share


def table(header: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines))


def markdown(runs: dict[int, tuple[Run, Run]]) -> str:
    found = [lines(seed, *pair) for seed, pair in runs.items()]
    shares = [share for _, _, share in found]
    verdict = "reached" if max(shares) <= WANTED else "missed"
    packages = ", ".join(f"{p} {version(p)}" for p in ("zuko", "torch", "numpy"))
    return f"""# Whole fits: diamonds' numeric columns, NSF autoregressive

`python benchmarks/fits.py`: flowlab {flowlab.__version__}, {packages}; Python {platform.python_version()}, \
{platform.machine()}, one thread. Mean log-likelihoods in nats per row of the standardised data; both have {LAYERS} transforms \
with {HIDDEN} hidden units, and the same training, validation and test rows. zuko as in its tutorial: Adam at {RATE:g}, batches \
of {BATCH} from a shuffled DataLoader; until {PATIENCE} epochs brought nothing, at most {EPOCHS} epochs or {CAP:.0f} s. flowlab: \
`fit` with its defaults. zuko's times are without its evaluations, flowlab's with them.

![Validation against time](fits.png)

## Time to zuko's best validation log-likelihood

{table(["seed", "zuko's best", "zuko needed", "flowlab needed", "flowlab / zuko"], [row for row, _, _ in found])}

Wanted: ≤ {WANTED} on every seed; median {median(shares):.2f}, largest {max(shares):.2f}: {verdict}.

## At the end

{table(["seed", "library", "parameters", "best validation", "test", "epochs"], [row for _, pair, _ in found for row in pair])}
"""


def picture(runs: dict[int, tuple[Run, Run]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    options = {"figsize": (4 * len(runs), 3.6), "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(runs), **options)
    for axis, (seed, pair) in zip(axes[0], runs.items(), strict=True):
        for name, run, colour in zip(("zuko", "flowlab"), pair, ("#d9822b", "#1f5fa8")):
            axis.plot(run.seconds, run.validation, color=colour, marker=".", markersize=4, linewidth=1, label=name)
        axis.axhline(pair[0].validation[pair[0].best], color="#888888", linewidth=0.8, linestyle="--")
        axis.set(xscale="log", xlabel="seconds of training", title=f"seed {seed}", xlim=(pair[0].seconds[0] / 4, None))
        axis.grid(color="#eeeeee")
    top = max(run.validation[run.best] for pair in runs.values() for run in pair)
    low = min(pair[0].validation[0] for pair in runs.values())
    axes[0][0].set_ylim(low - 0.3 * (top - low), top + 0.1 * (top - low))
    axes[0][0].set_ylabel("validation, nats per row")
    axes[0][-1].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    runs: dict[int, tuple[Run, Run]] = {}
    with threads(1):
        for seed in parser.parse_args().seeds:
            parts = data(seed)
            peer = zuko_fit(*parts, seed)
            runs[seed] = (peer, flowlab_fit(*parts, seed))
            print(" | ".join(lines(seed, *runs[seed])[0]), flush=True)
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "fits.md").write_text(markdown(runs))
            picture(runs, RESULTS / "fits.png")


if __name__ == "__main__":
    main()
