"""What `benchmarks/density.py` compares with: functions of training and test rows.

Each returns the test rows' log-densities and how the fit ended. Rows are standardised columns; a tenth of the training
rows is for validation.

Flows get the recipe that serves them best: Adam at 1e-3 decaying as a cosine, gradients clipped, early stopping on
validation rows, best weights restored, and minutes of time.
"""

import copy
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from frameworks import Case, nflows_, normflows_, zuko_
from scipy.stats import truncnorm
from torch import Tensor

from flowlab.report import baselines

Array = np.ndarray
Peer = Callable[[Array, Array, float], tuple[Array, str]]
BATCH, RATE, STEPS, PATIENCE = 256, 1e-3, 20_000, 30
NSF_AR = Case("nsf_ar", "NSF autoregressive", "autoregressive", 3, spline=True)
NSF = Case("nsf", "NSF coupling", "coupling", 6, spline=True)
MAF = Case("maf", "MAF", "autoregressive", 5)
ARF_ROWS = 10_000


def flow(module: object, case: Case) -> Peer:
    """Train a peer's flow until validation rows gain nothing, or for `cap` CPU-seconds, the rate falling to zero."""

    def fit(train: Array, test: Array, cap: float) -> tuple[Array, str]:
        torch.manual_seed(0)
        model = module.build(case, train.shape[1], "density")  # type: ignore[attr-defined]
        held = len(train) // 10
        x, validation, test_rows = (torch.from_numpy(a).float() for a in (train[held:], train[:held], test))
        optimizer = torch.optim.Adam(model.weights, lr=RATE)
        generator = torch.Generator().manual_seed(0)
        per_epoch = max(len(x) // BATCH, 1)
        best, stale, step, kept = math.inf, 0, 0, copy.deepcopy(model.module.state_dict())
        started = time.process_time()
        ended = f"all {STEPS} steps"
        while step < STEPS:
            order = torch.randperm(len(x), generator=generator)
            for i in range(per_epoch):
                progress = min(max(step / STEPS, (time.process_time() - started) / cap), 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = RATE * (1 + math.cos(math.pi * progress)) / 2
                optimizer.zero_grad()
                loss = -model._log_prob(x[order[i * BATCH : (i + 1) * BATCH]]).mean()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.weights, 5.0)
                if torch.isfinite(norm):
                    optimizer.step()
                model.finish()
                step += 1
            if step % max(per_epoch, 25) >= per_epoch:
                continue
            score = -float(scores(model, validation).mean())
            if score < best:
                best, stale, kept = score, 0, copy.deepcopy(model.module.state_dict())
            else:
                stale += 1
            if stale >= PATIENCE:
                ended = f"stale after {step} steps"
                break
            if time.process_time() - started > cap:
                ended = f"cap of {cap:.0f} CPU-s after {step} steps"
                break
        model.module.load_state_dict(kept)
        return scores(model, test_rows).double().numpy(), ended

    return fit


def scores(model: object, rows: Tensor) -> Tensor:
    """Log-densities, in chunks."""
    return torch.cat([model.log_prob(chunk) for chunk in rows.split(4096)])  # type: ignore[attr-defined]


def classical(function: Callable[[Array, Array], Array]) -> Peer:
    """One of `flowlab.report.baselines`."""
    return lambda train, test, cap: (function(train, test), "")


def forest(train: Array, test: Array, cap: float) -> tuple[Array, str]:
    """An adversarial random forest (Watson et al. 2023): leaves' coverage times truncated normals, averaged over trees.

    arfpy has no likelihood of its own; this is the density of its `forde` parameters. A thousandth of a broad normal
    keeps rows that fall into no leaf from costing it everything.
    """
    import pandas as pd

    np.in1d = np.isin  # type: ignore[attr-defined]  # arfpy calls what numpy 2.4 has removed
    from arfpy import arf

    x = train[:ARF_ROWS]
    names = [f"x{j}" for j in range(x.shape[1])]
    model = arf.arf(x=pd.DataFrame(x, columns=names), verbose=False, random_state=0)
    model.forde()
    leaves = model.clf.apply(pd.DataFrame(test, columns=names).to_numpy())
    bounds = model.bnds.merge(
        model.params[["tree", "nodeid", "variable", "mean", "sd"]], on=["tree", "nodeid", "variable"]
    )
    density = np.zeros(len(test))
    for tree in range(leaves.shape[1]):
        own = bounds[bounds["tree"] == tree]
        table = {f: own.pivot_table(index="nodeid", columns="variable", values=f)[names] for f in ("mean", "sd", "cvg")}
        low, high = (own.pivot(index="nodeid", columns="variable", values=f)[names] for f in ("min", "max"))
        known = np.isin(leaves[:, tree], table["mean"].index)
        at = leaves[known, tree]
        mean, sd = table["mean"].loc[at].to_numpy(), np.maximum(np.nan_to_num(table["sd"].loc[at].to_numpy()), 1e-6)
        a, b = ((side.loc[at].to_numpy() - mean) / sd for side in (low, high))
        log_p = truncnorm.logpdf(test[known], a, b, loc=mean, scale=sd).sum(1)
        density[known] += table["cvg"].loc[at].to_numpy()[:, 0] * np.exp(log_p) / leaves.shape[1]
    broad = np.exp(-(test**2).sum(1) / 2 / 9) / (2 * np.pi * 9) ** (test.shape[1] / 2)
    note = f"{ARF_ROWS} rows" if len(train) > ARF_ROWS else ""
    return np.log(0.999 * density + 0.001 * broad + 1e-300), note


PEERS: dict[str, Peer] = {
    "Gaussian mixture": classical(baselines.mixture),
    "KDE": classical(baselines.kernel_density),
    "ARF": forest,
    "zuko NSF": flow(zuko_, NSF_AR),
    "zuko MAF": flow(zuko_, MAF),
    "nflows NSF": flow(nflows_, NSF),
    "normflows NSF": flow(normflows_, NSF),
}
