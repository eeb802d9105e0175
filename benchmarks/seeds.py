"""The demo's comparison over several seeds: split, dequantisation, fits and peers all change with the seed.

Writes benchmarks/results/seeds.md. About two minutes per seed.
"""

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from flowlab import demo
from flowlab.runtime import threads

SEEDS = (1, 2, 3)  # the demo prints seed 0
RESULTS = Path(__file__).parent / "results" / "seeds.md"


def main() -> None:
    lines = [
        "| table | seed | peer | flowlab's gain, nats per row | standard errors | rows ahead |",
        "|---|---:|---|---:|---:|---:|",
    ]
    with threads(1), threadpool_limits(1):
        for name in ("wine", "diamonds"):
            for seed in SEEDS:
                rows, _ = demo.compare(demo.continuous(name, seed), seed)
                for row in rows[:-1]:
                    gain = rows[-1].log_prob - row.log_prob
                    error = gain.std(ddof=1) / np.sqrt(len(gain))
                    lines.append(
                        f"| {name} | {seed} | {row.method} | {gain.mean():+.3f} ± {error:.3f} | {gain.mean() / error:.1f} | "
                        f"{(gain > 0).mean():.0%} |"
                    )
                    print(lines[-1], flush=True)
    packages = ", ".join(f"{p} {version(p)}" for p in ("flowlab", "torch", "scikit-learn", "numpy"))
    machine = f"Python {platform.python_version()}, {platform.machine()}, one thread"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join([f"`python benchmarks/seeds.py`: {packages}; {machine}.", "", *lines]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
