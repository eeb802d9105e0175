"""Is the comparison a matter of the seed? Split, dequantisation, fits and peers all change with it.

    python benchmarks/seeds.py                      # three seeds of two tables, about two minutes a seed
    python benchmarks/seeds.py --seeds 1 --tables wine

Writes benchmarks/results/seeds.md.
"""

import argparse

from common import RESULTS, circumstances, continuous, table
from threadpoolctl import threadpool_limits

from flowlab.report.comparison import compare, paired_gain
from flowlab.runtime import threads

TABLES = ("wine", "diamonds")
SEEDS = (1, 2, 3)  # the demo prints seed 0
HEADER = ["table", "seed", "peer", "flowlab's gain, nats per row", "standard errors", "rows ahead"]


def lines_of(name: str, seed: int) -> list[list[str]]:
    """flowlab against each peer on one table."""
    rows, _ = compare(continuous(name, seed), seed)
    ours = rows[-1].log_prob
    lines = []
    for row in rows[:-1]:
        gain, error = paired_gain(ours, row.log_prob)
        ahead = (ours > row.log_prob).mean()
        lines.append([name, f"{seed}", row.method, f"{gain:+.3f} ± {error:.3f}", f"{gain / error:.1f}", f"{ahead:.0%}"])
        print(" | ".join(lines[-1]), flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    options = parser.parse_args()
    lines = []
    with threads(1), threadpool_limits(1):
        for name in options.tables:
            for seed in options.seeds:
                lines += lines_of(name, seed)
    page = f"`python benchmarks/seeds.py`, {circumstances('scikit-learn', 'numpy')}, one thread.\n\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "seeds.md").write_text(page + table(HEADER, lines, "lrlrrr") + "\n")


if __name__ == "__main__":
    main()
