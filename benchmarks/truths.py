"""How far `FlowDensity()` stays from densities whose truth is known, as rows grow.

    python benchmarks/truths.py               # resumes; half an hour
    python benchmarks/truths.py --rows 1000

The gap is the mean of log p(x) - log q(x) over 10,000 fresh rows: the Kullback-Leibler divergence, in nats per column. Writes
benchmarks/results/truths.md.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import stats

import flowlab
from flowlab import FlowDensity

HERE = Path(__file__).parent
STORE, RESULT = HERE / "cache" / "truths.json", HERE / "results" / "truths.md"
ROWS = (1_000, 10_000, 100_000)
FRESH = 10_000
WANTED = 0.05  # nats per column at 100,000 rows

Array = np.ndarray
Truth = tuple[Callable[[int, np.random.Generator], Array], Callable[[Array], Array]]


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
    lost = (log_p(new) - model.score_samples(new)) / x.shape[1]
    return {"gap": float(lost.mean()), "error": float(lost.std() / FRESH**0.5), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), choices=ROWS)
    parser.add_argument("--again", action="store_true", help="also what is in the cache")
    options = parser.parse_args()
    STORE.parent.mkdir(exist_ok=True)
    found: dict[str, dict] = json.loads(STORE.read_text()) if STORE.exists() else {}
    for rows in options.rows:
        for name, truth in TRUTHS.items():
            key = f"{name} @ {rows}"
            if key not in found or options.again:
                found[key] = gap(truth, rows)
                STORE.write_text(json.dumps(found, indent=1))
                print(key, found[key], flush=True)
    lines = [
        "| truth | " + " | ".join(f"{rows:,} rows" for rows in ROWS) + " | |",
        "|---|" + "---:|" * len(ROWS) + "---|",
    ]
    for name in TRUTHS:
        cells = [found.get(f"{name} @ {rows}") for rows in ROWS]
        last = cells[-1]
        verdict = "" if last is None else "reached" if last["gap"] < WANTED else "missed"
        shown = [f"{c['gap']:.4f} ± {c['error']:.4f} ({c['seconds']:.0f} s)" if c else "" for c in cells]
        lines.append(f"| {name} | " + " | ".join(shown) + f" | {verdict} |")
    machine = f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"
    RESULT.write_text(
        f"# Gap to known truths\n\n`python benchmarks/truths.py`: flowlab {flowlab.__version__}, {machine}. `FlowDensity(random_state=0)`; "
        f"KL divergence from the truth in nats per column, over {FRESH:,} fresh rows, and the time of the fit. Wanted at 100,000 rows: "
        f"below {WANTED}.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main()
