"""Speed against other flow libraries: the same architectures, round-robin in one run, one pinned process per framework.

    python benchmarks/speed.py                          # one core, all frameworks; under an hour, on Linux
    python benchmarks/speed.py --cores 2                # writes speed_2_cores.*
    python benchmarks/speed.py --cases nsf --ops train  # a part; with --merge into the results that are there

Writes benchmarks/results/speed.md, .json and .png. Frameworks that are not installed are left out, with a word;
FlowJAX may live in an environment of its own: --jax-python. What is measured how: benchmarks/frameworks.
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import median, quantiles

from common import RESULTS, machine, read_json, write_json
from frameworks import CASES, FEATURES, FRAMEWORKS, OPS, report

HERE = Path(__file__).parent
SLOW = 3.0  # seconds; slower calls are measured in one round only
MEMORY_CASE, MEMORY_FEATURES, MEMORY_LIMIT = "nsf_ar", 63, 12_000_000_000
MEMORY_FRAMEWORKS = ("flowlab", "zuko")
# Where bars are missed, and why.
PROFILED = (
    ("real_nvp", 63, "train"),
    ("nsf", 21, "train"),
    ("maf", 6, "train"),
    ("maf", 21, "train"),
    ("maf", 63, "train"),
    ("real_nvp", 63, "log_prob"),
    ("maf", 21, "log_prob"),
    ("real_nvp", 63, "rsample"),
    ("maf", 63, "rsample"),
)
PROFILED_FRAMEWORKS, PROFILED_STEPS = ("flowlab", "normflows", "freia", "pyro", "bound"), 50


class Worker:
    """A framework in a process of its own; see frameworks/worker.py for what it can be asked."""

    def __init__(self, framework: str, python: str, cores: int) -> None:
        command = [python, str(HERE / "frameworks" / "worker.py"), framework, str(cores)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.hello = self.answer()

    def ask(self, **request: object) -> dict:
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return {"missing": "its process has died"}
        return self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"missing": "its process has died"}

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def start(frameworks: list[str], cores: int, jax_python: str) -> dict[str, Worker]:
    """The frameworks that can be imported."""
    workers = {}
    for name in frameworks:
        worker = Worker(name, jax_python if name == "flowjax" else sys.executable, cores)
        if "missing" in worker.hello:
            print(f"without {name}: {worker.hello['missing']}")
            worker.close()
        else:
            workers[name] = worker
    return workers


def measure(workers: dict[str, Worker], case: str, features: int, op: str, rounds: int, seconds: float) -> dict:
    """Every framework's cell for one operation: in each round each takes its turn, and never two at once."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    cells: dict[str, dict] = {}
    for _ in range(rounds):
        for name, worker in workers.items():
            if "missing" in cells.get(name, {}) or (times[name] and median(times[name]) > SLOW):
                continue
            answer = worker.ask(case=case, features=features, op=op, seconds=seconds)
            if "missing" in answer:
                cells[name] = answer
                continue
            times[name] += answer["times"]
            low, middle, high = (
                quantiles(times[name], n=4, method="inclusive") if len(times[name]) > 1 else times[name] * 3
            )
            cells[name] = {
                "median": middle,
                "quartiles": [low, high],
                "calls": len(times[name]),
                "parameters": answer["parameters"],
            }
    return cells


def memory(frameworks: list[str], cores: int) -> dict[str, dict]:
    """Peak memory of samples with gradient in the slow direction, of each framework in a fresh process."""
    peaks = {}
    for name in frameworks:
        worker = Worker(name, sys.executable, cores)
        if "missing" not in worker.hello:
            peaks[name] = worker.ask(memory=MEMORY_LIMIT, case=MEMORY_CASE, features=MEMORY_FEATURES)
            print(f"memory {name}: {peaks[name]}", flush=True)
        worker.close()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=1, choices=(1, 2))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25, help="of calls per framework and round")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--features", nargs="+", type=int, default=list(FEATURES))
    parser.add_argument("--ops", nargs="+", default=list(OPS), choices=list(OPS))
    parser.add_argument("--frameworks", nargs="+", default=list(FRAMEWORKS), choices=list(FRAMEWORKS))
    parser.add_argument("--jax-python", default=sys.executable, help="the interpreter that has FlowJAX")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed", help="results without their suffix")
    parser.add_argument("--merge", action="store_true", help="keep what is in the results and not measured now")
    parser.add_argument("--no-memory", action="store_true", help="without the peak memory of the slow direction")
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) < options.cores:
        parser.error(f"there are only {len(os.sched_getaffinity(0))} cores to use")
    out = options.out if options.cores == 1 else options.out.with_name(f"{options.out.name}_{options.cores}_cores")
    out.parent.mkdir(parents=True, exist_ok=True)
    stored = out.with_name(out.name + ".json")
    results: dict = {"versions": {}, "groups": {}, "memory": {}}
    if options.merge:
        results |= read_json(stored)

    workers = start(options.frameworks, options.cores, options.jax_python)
    results |= {
        "machine": machine(),
        "date": date.today().isoformat(),
        **{name: getattr(options, name) for name in ("cores", "rounds", "seconds")},
    }
    results["versions"] |= {name: worker.hello["version"] for name, worker in workers.items()}
    try:
        for case in options.cases:
            for features in options.features:
                for op in options.ops:
                    cells = measure(workers, case, features, op, options.rounds, options.seconds)
                    results["groups"][f"{case}/{features}/{op}"] = cells
                    write_json(stored, results)  # an interrupted run keeps what it has
                    print(f"{case} {features} {op}: {report.line(cells)}", flush=True)
        for case, features, op in PROFILED:
            if case in options.cases and op in options.ops:
                for name in PROFILED_FRAMEWORKS:
                    if name in workers:
                        answer = workers[name].ask(profile=PROFILED_STEPS, case=case, features=features, op=op)
                        results.setdefault("profiles", {}).setdefault(f"{case}/{features}/{op}", {})[name] = answer
        write_json(stored, results)
    finally:
        for worker in workers.values():
            worker.close()
    wanted = (MEMORY_CASE in options.cases, MEMORY_FEATURES in options.features, "rsample" in options.ops)
    if all(wanted) and not options.no_memory:
        results["memory"] |= memory([name for name in MEMORY_FRAMEWORKS if name in workers], options.cores)
        write_json(stored, results)
    out.with_name(out.name + ".md").write_text(report.markdown(results, out.name))
    report.picture(results, out.with_name(out.name + ".png"))


if __name__ == "__main__":
    main()
