"""Whole fits against zuko: the time in which `flowlab.fit` reaches the best validation likelihood of zuko's own recipe.

    python benchmarks/fits.py             # five to ten minutes; to pin it to a core: taskset -c 0
    python benchmarks/fits.py --seeds 0

Diamonds' numeric columns, standardised for both; the same architecture; three seeds of split, dequantisation and fits,
taken in turns on one thread. Writes benchmarks/results/fits.md and .png.
"""

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from common import RESULTS, circumstances, continuous, table
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import flowlab
from flowlab import Flow, presets
from flowlab.layers import Whitening
from flowlab.report.comparison import split
from flowlab.runtime import threads

SEEDS = (0, 1, 2)
HELD_OUT = 0.1  # share of the training rows that both are validated on
LAYERS, HIDDEN, BOUND = 3, (64, 64), 5.0
BATCH, RATE = 64, 1e-3  # zuko's tutorial
EPOCHS, PATIENCE = 25, 5
CAP = 150.0  # seconds that zuko may train per seed
WANTED = 0.3  # flowlab's time, as a share of zuko's
OWN = {"flowlab": False, "flowlab, whitened": True}
REACHED = ["seed", "zuko's best", "zuko needed", "", "needed", "of zuko's time"]
ENDS = ["seed", "", "parameters", "best validation", "test", "epochs"]


@dataclass
class Run:
    """One fit: seconds and mean validation log-likelihood after each epoch, and the test one of the weights kept."""

    seconds: list[float]
    validation: list[float]
    test: float
    total: float
    parameters: int
    note: str

    @property
    def best(self) -> int:
        return max(range(len(self.validation)), key=self.validation.__getitem__)


Runs = dict[int, dict[str, Run]]  # by seed, then by name


def data(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test rows, standardised by the training rows."""
    test, rest = (torch.tensor(part.to_numpy()) for part in split(continuous("diamonds", seed)))
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
        if len(scores) - scores.index(max(scores)) > PATIENCE or len(scores) == EPOCHS:
            note = "stale" if len(scores) < EPOCHS else "all epochs"
        elif spent > CAP:
            note = f"stopped by the cap of {CAP:.0f} s"
    flow.load_state_dict(kept)
    with torch.no_grad():
        held_out = float(flow().log_prob(test).double().mean())
    return Run(seconds, scores, held_out, spent, sum(p.numel() for p in flow.parameters()), note)


def flowlab_fit(train: Tensor, validation: Tensor, test: Tensor, seed: int, whiten: bool) -> Run:
    """`flowlab.fit` as it is by default. Its times hold everything: evaluations, and the whitening's fit as well."""
    generator = torch.Generator().manual_seed(seed)
    options = {"layers": LAYERS, "hidden": HIDDEN, "bound": BOUND, "autoregressive": True}
    flow = presets.nsf(train.shape[1], generator=generator, **options)
    if whiten:
        flow = Flow(flow.base, [*flow, Whitening(train.shape[1])])
    history = flowlab.fit(flow, train, validation=validation, generator=generator, progress=False)
    with torch.no_grad():
        held_out = float(flow.log_prob(test).double().mean())
    seconds = [record["seconds"] for record in history.records]
    scores = [-record["validation"] for record in history.records]
    size, reason = sum(p.numel() for p in flow.parameters()), history.reason.split(";")[0]
    return Run(seconds, scores, held_out, history.seconds, size, reason)


def against(seed: int, peer: Run, name: str, own: Run) -> tuple[list[str], float]:
    """A row of the first table, and the share of zuko's time (infinite where its likelihood is not reached)."""
    target, needed = peer.validation[peer.best], peer.seconds[peer.best]
    reached = next((i for i, value in enumerate(own.validation) if value >= target), None)
    share = math.inf if reached is None else own.seconds[reached] / needed
    when = f"{needed:.1f} s, epoch {peer.best + 1} of {len(peer.seconds)} ({peer.note})"
    own_when = "not reached" if reached is None else f"{own.seconds[reached]:.1f} s, epoch {reached + 1}"
    return [f"{seed}", f"{target:.3f}", when, name, own_when, f"{share:.2f}"], share


def markdown(runs: Runs) -> str:
    found = {name: [against(seed, run["zuko"], name, run[name]) for seed, run in runs.items()] for name in OWN}
    verdicts = []
    for name, rows in found.items():
        shares = [share for _, share in rows]
        verdict = "reached" if max(shares) <= WANTED else "missed"
        verdicts.append(f"{name}: median {median(shares):.2f}, largest {max(shares):.2f}, {verdict}.")
    ends = []
    for seed, name, run in ((seed, name, run) for seed, named in runs.items() for name, run in named.items()):
        best = f"{run.validation[run.best]:.3f} at {run.seconds[run.best]:.1f} s"
        total = f"{len(run.seconds)} in {run.total:.1f} s ({run.note})"
        ends.append([f"{seed}", name, f"{run.parameters:,}", best, f"{run.test:.3f}", total])
    return f"""# Whole fits: diamonds' numeric columns, NSF autoregressive

`python benchmarks/fits.py`, {circumstances("zuko", "numpy")}, one thread. Mean log-likelihoods in nats per row of \
the standardised data; both have {LAYERS} transforms with {HIDDEN} hidden units, and the same training, validation \
and test rows. zuko as in its tutorial: Adam at {RATE:g}, batches of {BATCH} from a shuffled DataLoader; until \
{PATIENCE} epochs brought nothing, at most {EPOCHS} epochs or {CAP:.0f} s. flowlab: `fit` with its defaults, on the \
flow alone and with the layer that whitens the columns in front, which has nothing to train; densities are of the \
same columns. zuko's times are without its evaluations, flowlab's with them, and with the whitening.

![Validation against time](fits.png)

## Time to zuko's best validation log-likelihood

{table(REACHED, [row for rows in zip(*found.values()) for row, _ in rows])}

Wanted: ≤ {WANTED} on every seed. {" ".join(verdicts)}

## At the end

{table(ENDS, ends)}
"""


def picture(runs: Runs, path: Path) -> None:
    figure = Figure(figsize=(4 * len(runs), 3.6), layout="constrained")
    axes = figure.subplots(1, len(runs), sharey=True, squeeze=False)
    for axis, (seed, named) in zip(axes[0], runs.items(), strict=True):
        for (name, run), colour in zip(named.items(), ("#d9822b", "#1f5fa8", "#2e8b57"), strict=True):
            axis.plot(run.seconds, run.validation, color=colour, marker=".", markersize=4, linewidth=1, label=name)
        peer = named["zuko"]
        axis.axhline(peer.validation[peer.best], color="#888888", linewidth=0.8, linestyle="--")
        axis.set(xscale="log", xlabel="seconds of training", title=f"seed {seed}")
        axis.grid(color="#eeeeee")
    axes[0][0].set_ylim(min(named["zuko"].validation[0] for named in runs.values()) - 0.5)
    axes[0][0].set_ylabel("validation, nats per row")
    axes[0][-1].legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    options = parser.parse_args()
    runs: Runs = {}
    with threads(1):
        for seed in options.seeds:
            parts = data(seed)
            peer = zuko_fit(*parts, seed)
            runs[seed] = {"zuko": peer} | {name: flowlab_fit(*parts, seed, whiten) for name, whiten in OWN.items()}
            for name in OWN:
                print(" | ".join(against(seed, peer, name, runs[seed][name])[0]), flush=True)
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "fits.md").write_text(markdown(runs))
            picture(runs, RESULTS / "fits.png")


if __name__ == "__main__":
    main()
