"""How far `FlowDensity()` stays from densities whose truth is known, as rows grow.

    python benchmarks/truths.py               # resumes; half an hour
    python benchmarks/truths.py --rows 1000

The gap is the mean of log p(x) - log q(x) over 10,000 fresh rows: the Kullback-Leibler divergence, in nats per column.
Writes benchmarks/results/truths.md.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from common import RESULTS, circumstances, read_json, table, write_json
from scipy import stats

from flowlab import FlowDensity

STORE, RESULT = RESULTS / "truths.json", RESULTS / "truths.md"
ROWS = (1_000, 10_000, 100_000)
FRESH = 10_000
WANTED, WANTED_MIXED = 0.05, 0.02  # nats per column at 100,000 rows

Array = np.ndarray
Truth = tuple[Callable[[int, np.random.Generator], Any], Callable[[Any], Array]]


def mixture(features: int, components: int = 5) -> Truth:
    """Gaussians with random means and covariances."""
    rng = np.random.default_rng(features)
    means = 2.5 * rng.normal(size=(components, features))
    factors = np.linalg.qr(rng.normal(size=(components, features, features)))[0] * rng.uniform(
        0.3, 1.5, (components, 1, features)
    )
    weights = rng.dirichlet(np.full(components, 5.0))

    def draw(n: int, rng: np.random.Generator) -> Array:
        which = rng.choice(components, n, p=weights)
        return means[which] + np.einsum("nij,nj->ni", factors[which], rng.normal(size=(n, features)))

    def log_p(x: Array) -> Array:
        parts = [
            np.log(w) + stats.multivariate_normal(m, f @ f.T).logpdf(x)
            for w, m, f in zip(weights, means, factors, strict=True)
        ]
        return np.logaddexp.reduce(parts)

    return draw, log_p


def heavy_copula(features: int = 4, df: float = 4.0) -> Truth:
    """A Student-t copula (df 4, correlations 0.6) with Student-t margins of 3 degrees of freedom."""
    shape = 0.4 * np.eye(features) + 0.6
    joint, margin, own = stats.multivariate_t(shape=shape, df=df), stats.t(df), stats.t(3.0)

    def draw(n: int, rng: np.random.Generator) -> Array:
        return own.ppf(margin.cdf(joint.rvs(n, random_state=rng)))

    def log_p(x: Array) -> Array:
        t = margin.ppf(own.cdf(x))
        return joint.logpdf(t) - margin.logpdf(t).sum(1) + own.logpdf(x).sum(1)

    return draw, log_p


def funnel(features: int = 5) -> Truth:
    """Neal's funnel, with log-variances of standard deviation 2."""

    def draw(n: int, rng: np.random.Generator) -> Array:
        v = 2 * rng.normal(size=(n, 1))
        return np.hstack([v, np.exp(v / 2) * rng.normal(size=(n, features - 1))])

    def log_p(x: Array) -> Array:
        v = x[:, :1]
        return stats.norm(0, 2).logpdf(v[:, 0]) + stats.norm(0, np.exp(v / 2)).logpdf(x[:, 1:]).sum(1)

    return draw, log_p


def rings() -> Truth:
    """Two rings around the origin, of radius 2 and 4, with normal radii of standard deviation 0.2."""
    radii, width = np.array([2.0, 4.0]), 0.2

    def draw(n: int, rng: np.random.Generator) -> Array:
        r = rng.choice(radii, n) + width * rng.normal(size=n)
        angle = rng.uniform(0, 2 * np.pi, n)
        return np.column_stack([r * np.cos(angle), r * np.sin(angle)])

    def log_p(x: Array) -> Array:
        r = np.linalg.norm(x, axis=1)
        return np.logaddexp.reduce([stats.norm(m, width).logpdf(r) for m in radii]) - np.log(4 * np.pi * r)

    return draw, log_p


GROUPS, SHARES = np.array(["a", "b", "c", "d"]), np.array([0.4, 0.3, 0.2, 0.1])


def level(values: pd.Series, names: Array) -> Array:
    """The place of each level among names."""
    return values.map({name: k for k, name in enumerate(names)}).to_numpy()


def independent() -> Truth:
    """A category, a count, a flag and a normal number that know nothing of each other."""

    def draw(n: int, rng: np.random.Generator) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "group": rng.choice(GROUPS, n, p=SHARES),
                "count": rng.poisson(4, n),
                "flag": rng.random(n) < 0.2,
                "x": rng.normal(10, 3, n),
            }
        )

    def log_p(t: pd.DataFrame) -> Array:
        flag = np.log(np.where(t["flag"], 0.2, 0.8))
        return (
            np.log(SHARES)[level(t["group"], GROUPS)]
            + stats.poisson(4).logpmf(t["count"])
            + flag
            + stats.norm(10, 3).logpdf(t["x"])
        )

    return draw, log_p


def network() -> Truth:
    """A Bayesian network: group → kind, (group, kind) → x, x → y, y missing more often for large x."""
    rng = np.random.default_rng(0)
    kinds, given = np.array(["p", "q", "r"]), rng.dirichlet(np.ones(3), 4)
    mean, sd = rng.normal(0, 3, (4, 3)), rng.uniform(0.5, 2, 3)

    def parts(g: Array, k: Array, x: Array) -> Array:
        return 1 / (1 + np.exp(2 - x / 2))  # probability that y is missing

    def draw(n: int, rng: np.random.Generator) -> pd.DataFrame:
        g = rng.choice(4, n, p=SHARES)
        k = (given[g].cumsum(1) < rng.random((n, 1))).sum(1)
        x = rng.normal(mean[g, k], sd[k])
        y = np.where(rng.random(n) < parts(g, k, x), np.nan, 1 + 2 * x + rng.normal(0, 0.5, n))
        return pd.DataFrame({"group": GROUPS[g], "kind": kinds[k], "x": x, "y": y})

    def log_p(t: pd.DataFrame) -> Array:
        g, k, x, y = level(t["group"], GROUPS), level(t["kind"], kinds), t["x"].to_numpy(), t["y"].to_numpy()
        missing = parts(g, k, x)
        value = np.log1p(-missing) + stats.norm(1 + 2 * x, 0.5).logpdf(np.where(np.isnan(y), 0, y))
        return (
            np.log(SHARES)[g]
            + np.log(given[g, k])
            + stats.norm(mean[g, k], sd[k]).logpdf(x)
            + np.where(np.isnan(y), np.log(missing), value)
        )

    return draw, log_p


def zero_inflated() -> Truth:
    """An amount that is zero with a probability by group, else lognormal, and a count that follows it."""
    zero, centre = np.array([0.8, 0.5, 0.3, 0.1]), np.array([0.0, 1.0, 2.0, 3.0])

    def draw(n: int, rng: np.random.Generator) -> pd.DataFrame:
        g = rng.choice(4, n, p=SHARES)
        amount = np.where(rng.random(n) < zero[g], 0.0, np.exp(rng.normal(centre[g], 0.7)))
        return pd.DataFrame({"group": GROUPS[g], "amount": amount, "count": rng.poisson(1 + np.log1p(amount))})

    def log_p(t: pd.DataFrame) -> Array:
        g, a = level(t["group"], GROUPS), t["amount"].to_numpy()
        positive = np.log1p(-zero[g]) + stats.lognorm(0.7, scale=np.exp(centre[g])).logpdf(np.where(a > 0, a, 1))
        amount = np.where(a > 0, positive, np.log(zero[g]))
        return np.log(SHARES)[g] + amount + stats.poisson(1 + np.log1p(a)).logpmf(t["count"])

    return draw, log_p


def censored() -> Truth:
    """A number that is cut off at both ends, with point masses there, and another one that follows it."""
    low, high = -1.0, 1.5

    def draw(n: int, rng: np.random.Generator) -> pd.DataFrame:
        g = rng.choice(4, n, p=SHARES)
        x = np.clip(rng.normal(g / 2, 1), low, high)
        return pd.DataFrame({"x": x, "group": GROUPS[g], "y": rng.normal(np.sin(2 * x), 0.4)})

    def log_p(t: pd.DataFrame) -> Array:
        g, x = level(t["group"], GROUPS), t["x"].to_numpy()
        own = stats.norm(g / 2, 1)
        number = np.where(x <= low, own.logcdf(low), np.where(x >= high, own.logsf(high), own.logpdf(x)))
        return np.log(SHARES)[g] + number + stats.norm(np.sin(2 * x), 0.4).logpdf(t["y"])

    return draw, log_p


MIXED: dict[str, Truth] = {
    "independent columns": independent(),
    "Bayesian network, missing cells": network(),
    "zero-inflated": zero_inflated(),
    "censored": censored(),
}
TRUTHS: dict[str, Truth] = {
    **{f"5 Gaussians, {d} columns": mixture(d) for d in (2, 5, 10, 20)},
    "heavy-tailed copula, 4 columns": heavy_copula(),
    "funnel, 5 columns": funnel(),
    "rings, 2 columns": rings(),
}


def gap(truth: Truth, rows: int) -> dict:
    draw, log_p = truth
    x, new = draw(rows, np.random.default_rng(rows)), draw(FRESH, np.random.default_rng(1))
    started = time.perf_counter()
    model = FlowDensity(random_state=0).fit(x)
    seconds = time.perf_counter() - started
    lost = (log_p(new) - model.score_samples(new, measure="density")) / x.shape[1]
    return {"gap": float(lost.mean()), "error": float(lost.std() / FRESH**0.5), "seconds": seconds}


def table_of(truths: dict[str, Truth], found: dict[str, dict], wanted: float) -> str:
    """Gaps against rows, as Markdown."""
    lines = []
    for name in truths:
        cells = [found.get(f"{name} @ {rows}") for rows in ROWS]
        last = cells[-1]
        verdict = "" if last is None else "reached" if last["gap"] < wanted else "missed"
        shown = [f"{c['gap']:.4f} ± {c['error']:.4f} ({c['seconds']:.0f} s)" if c else "" for c in cells]
        lines.append([name, *shown, verdict])
    return table(["truth", *(f"{rows:,} rows" for rows in ROWS), ""], lines, "l" + "r" * len(ROWS) + "l")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), choices=ROWS)
    parser.add_argument("--again", action="store_true", help="also what is there")
    parser.add_argument("--truths", nargs="+", choices=[*TRUTHS, *MIXED], help="all when left out")
    options = parser.parse_args()
    found: dict[str, dict] = read_json(STORE)
    for rows in options.rows:
        for name, truth in (TRUTHS | MIXED).items():
            if options.truths and name not in options.truths:
                continue
            key = f"{name} @ {rows}"
            if key not in found or options.again:
                found[key] = gap(truth, rows)
                write_json(STORE, found)
                print(key, found[key], flush=True)
    tables = [table_of(TRUTHS, found, WANTED), table_of(MIXED, found, WANTED_MIXED)]
    RESULT.write_text(f"""# Gap to known truths

`python benchmarks/truths.py`, page written {circumstances()}. `FlowDensity(random_state=0)`; KL divergence from the \
truth in nats per column, over {FRESH:,} fresh rows, and the time of the fit, whatever else the machine did. Wanted \
at 100,000 rows: below {WANTED}, of mixed tables below {WANTED_MIXED}.

{tables[0]}

## Mixed tables

Probabilities of categories, counts, missing cells and point masses times densities.

{tables[1]}
""")


if __name__ == "__main__":
    main()
