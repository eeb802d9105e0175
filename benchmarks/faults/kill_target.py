"""A fit of some kind that keeps checkpoints, for `kills.py` to kill: `kill_target.py KIND FOLDER RESULT`.

At its end it writes a digest of all weights to RESULT.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import flowlab
from flowlab import FlowDensity, Member, datasets, snapshots


def flow(folder: Path) -> torch.nn.Module:
    """A flow of numbers, in epochs of eight steps."""
    x = torch.randn(1_000, 4, generator=torch.Generator().manual_seed(0)).cumsum(1)
    model = flowlab.presets.nsf(4, layers=2, hidden=(32,), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    flowlab.fit(model, x, epochs=40, batch_size=125, generator=generator, checkpoint=folder / "fit", progress=False)
    return model


def numbers(folder: Path, jobs: int = 1) -> torch.nn.Module:
    """An ensemble of a table of numbers, with a race, folds and both kinds of members."""
    x = np.random.default_rng(0).normal(size=(150, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
    members = [Member("autoregressive", steps=60, hidden=(16,)), Member("mixed", steps=60, hidden=(16,), trees=2)]
    options = {"members": [*members, "copula"], "random_state": 0, "n_jobs": jobs}
    return FlowDensity(**options, checkpoint=folder / "fit").fit(pd.DataFrame(x, columns=["a", "b"]))._model.density()


def two_processes(folder: Path) -> torch.nn.Module:
    """The same in two processes."""
    return numbers(folder, jobs=2)


def whole_table(folder: Path) -> torch.nn.Module:
    """A table with categories."""
    rows = datasets.load("diamonds")[["carat", "cut", "price"]].iloc[:300]
    members = [Member("mixed", rank=rank, steps=80, hidden=(16,), trees=2) for rank in (0, 1)]
    return FlowDensity(members=members, random_state=0, checkpoint=folder / "fit").fit(rows)._model.density()


def posterior(folder: Path) -> torch.nn.Module:
    """A posterior that needs affine maps and a flow."""

    def banana(z: torch.Tensor) -> torch.Tensor:
        return -z[..., 0].square() / 2 - (z[..., 1] - z[..., 0].square()).square()

    options = {"features": 2, "steps": 150, "draws": 64, "checkpoint": folder / "fit", "progress": False}
    return flowlab.fit_posterior(banana, **options)


def command_line(folder: Path) -> torch.nn.Module:
    """`flowlab fit --checkpoint`."""
    from flowlab.cli import app

    table, output = folder / "table.csv", folder / "model.flow"
    if not table.exists():
        datasets.load("diamonds")[["carat", "cut", "price"]].iloc[:300].to_csv(table, index=False)
    options = ["--effort", "fast", "--checkpoint", str(folder / "fit"), "--quiet", "--force"]
    app(["fit", str(table), "-o", str(output), *options], standalone_mode=False)
    return flowlab.load(output)._model.density()


KINDS: dict[str, Callable[[Path], torch.nn.Module]] = {
    f.__name__: f for f in (flow, numbers, two_processes, whole_table, posterior, command_line)
}


if __name__ == "__main__":
    kind, place, result = sys.argv[1:]
    print("ready", flush=True)
    trained = KINDS[kind](Path(place))
    Path(result).write_text(snapshots.digest(trained.state_dict()))
