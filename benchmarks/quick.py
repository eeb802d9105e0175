"""Is a step slower than last recorded? flowlab's time relative to zuko's and to that of the MLPs alone, in two minutes.

    python benchmarks/quick.py            # exit status 1 where a ratio is above 1.25 × the recorded one, twice
    python benchmarks/quick.py --record   # write what is measured now to benchmarks/results/quick.json

The workers of `benchmarks/speed.py` on one core, round-robin. Without zuko only the ratios to the MLPs count. Ratios
depend on the processor, too (matrix products are of different speed): each has its own record, made while nothing else
runs. Where there is none yet, this run makes it.
"""

import argparse
import os
import platform
import sys
import time
from datetime import date

from common import RESULTS, processor, read_json, write_json
from frameworks import CASES, FRAMEWORKS
from speed import Worker, measure, start

RECORD = RESULTS / "quick.json"
LIMIT = 1.25
WHOM = ("zuko", "bound")
Cell = tuple[str, int, str]  # case, features, operation
SCORED = ("real_nvp", "nsf", "maf", "nsf_ar")
CELLS: list[Cell] = [
    *((case, features, op) for case in SCORED for features in (6, 21, 63) for op in ("train",)),
    *((case, 21, "log_prob") for case in SCORED),
    ("nsf_ar", 21, "sample"),
]
ORDER = [cell for case in SCORED for d in (6, 21, 63) for cell in CELLS if cell[:2] == (case, d)]  # a model at a time
Ratios = dict[str, dict[str, float]]  # of each cell, by whom it is compared with


def ratios(workers: dict[str, Worker], cells: list[Cell], recorded: Ratios, rounds: int, seconds: float) -> Ratios:
    """Divide the lower quartile of flowlab's times by the others'.

    Other programs on the machine disturb it less than the median.
    """
    found: Ratios = {}
    for case, features, op in cells:
        measured = measure(workers, case, features, op, rounds, seconds)
        key = f"{case}/{features}/{op}"
        if "median" not in measured["flowlab"]:
            sys.exit(f"{key}: flowlab gives no time: {measured['flowlab']['missing']}")
        own = measured["flowlab"]["quartiles"][0]
        times = {whom: measured[whom]["quartiles"][0] for whom in WHOM if "median" in measured.get(whom, {})}
        found[key] = {whom: own / value for whom, value in times.items()}
        texts = []
        for whom, value in found[key].items():
            before = recorded.get(key, {}).get(whom)
            texts.append(f"{value:6.3f} × {FRAMEWORKS[whom][2]}" + ("" if before is None else f" (was {before:.3f})"))
        name = f"{op}, {CASES[case].title}, {features} features"
        print(f"{name:55} {1000 * own:8.2f} ms {', '.join(texts)}", flush=True)
    return found


def slower(found: Ratios, recorded: Ratios) -> dict[tuple[str, str], str]:
    """Cell and opponent where the ratio has grown beyond the limit, and by how much in words."""
    worse = {}
    for key, now in found.items():
        for whom, value in now.items():
            before = recorded.get(key, {}).get(whom)
            if before is not None and value > LIMIT * before:
                change = f"{value:.3f} × {FRAMEWORKS[whom][2]}, was {before:.3f}: {value / before:.2f} × as much"
                worse[key, whom] = f"{key}: {change}"
    return worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep what is measured for later comparisons")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.2, help="of calls per framework and round")
    options = parser.parse_args()

    began = time.perf_counter()
    records = read_json(RECORD)
    recording = options.record or processor() not in records
    if recording and not options.record:
        print(f"no record of this processor, {processor()}, to compare with: this run becomes it")
    recorded = records.get(processor(), {}).get("ratios", {})
    workers = start(["flowlab", *WHOM], 1, sys.executable)
    if "flowlab" not in workers:
        return 1
    if "zuko" not in workers:
        print("no zuko here: compared with the MLPs alone")
    try:
        rounds = options.rounds * (2 if recording else 1)
        found = ratios(workers, ORDER, recorded, rounds, options.seconds)
        worse = {} if recording else slower(found, recorded)
        if worse:
            print("once more, since it may be noise:")
            again = [cell for cell in ORDER if any("/".join(map(str, cell)) == key for key, _ in worse)]
            second = ratios(workers, again, recorded, 2 * options.rounds, options.seconds)
            worse = {place: text for place, text in slower(second, recorded).items() if place in worse}
    finally:
        for worker in workers.values():
            worker.close()
    print(f"{time.perf_counter() - began:.0f} s")
    if recording:
        records[processor()] = {
            "date": date.today().isoformat(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "versions": {name: worker.hello["version"] for name, worker in workers.items()},
            "ratios": {key: {whom: round(value, 4) for whom, value in now.items()} for key, now in found.items()},
        }
        write_json(RECORD, records)
        return 0
    for text in worse.values():
        print(f"slower: {text}")
    if not worse:
        print(f"no ratio is above {LIMIT} × the recorded one")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
