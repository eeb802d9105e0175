"""Measures one framework in a process of its own: `python worker.py FRAMEWORK THREADS`.

Reads one JSON request per line, {"case", "features", "op", "seconds"}, and answers each with one line: {"times":
seconds of each call, "parameters"} or {"missing": reason}. A request {"memory": bytes, "case", "features"} runs one
`rsample` in the slow direction, with at most so many bytes more than the process has, and answers {"peak": bytes}. A
request {"profile": calls, "case", "features", "op"} answers what the time of an operation goes to: {"seconds": a call,
"shares": {kind of work: share}}.
"""

import importlib
import json
import os
import resource
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = {
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"),
    "activations and their gradients": (
        "aten::relu_",
        "aten::relu",
        "aten::clamp_min_",
        "aten::clamp_min",
        "aten::threshold_backward",
    ),
    "copies and additions": ("aten::copy_", "aten::add_", "aten::add", "aten::index_select", "aten::cat", "aten::sum"),
    "optimizer": (
        "aten::_fused_adamw_",
        "aten::_fused_adam_",
        "aten::_foreach_lerp_",
        "aten::lerp_",
        "aten::linalg_vector_norm",
    ),
}


def main(framework: str, threads: int) -> None:
    # Only answers go to standard output: whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    sys.path[0:0] = [str(ROOT), str(ROOT / "benchmarks")]
    # Pinned before anything counts the cores. XLA takes one thread per core it may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)

    from frameworks import FRAMEWORKS

    name, distribution, _ = FRAMEWORKS[framework]
    try:
        module = importlib.import_module(f"frameworks.{name}")
    except ImportError as error:
        print(json.dumps({"missing": f"cannot be imported: {error}"}), file=answers)
        return
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    print(json.dumps({"version": installed(distribution)}), file=answers)
    bench = Bench(module)
    for line in sys.stdin:
        try:
            request = json.loads(line)
            kind = next((name for name in ("memory", "profile") if name in request), "measure")
            answer = getattr(bench, kind)(request)
        except NotImplementedError as error:
            answer = {"missing": str(error)}
        except Exception as error:  # one broken framework must not cost the others their run
            traceback.print_exc()
            answer = {"missing": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


class Bench:
    """The current model and which of its operations are warm."""

    def __init__(self, module: object) -> None:
        self.module, self.key, self.model, self.warm = module, None, None, set()

    def build(self, *key: object) -> None:
        """Builds a model, unless it is the current one; only one is kept."""
        if key == self.key:
            return
        from frameworks import CASES

        case, features, fast = key
        self.key = self.model = None
        self.warm = set()
        self.model = self.module.build(CASES[case], features, fast)
        self.key = key

    def measure(self, request: dict) -> dict:
        from frameworks import CASES, rows

        op, features = request["op"], request["features"]
        self.build(request["case"], features, "sampling" if op == "rsample" else "density")
        n = rows(op, CASES[request["case"]])
        argument = n if op in ("sample", "rsample") else self.model.array(data(n, features))
        function = getattr(self.model, op)
        if op not in self.warm:
            if timed(function, argument) < 2:
                timed(function, argument)
            self.warm.add(op)
        times = []
        while not times or sum(times) < request["seconds"]:
            times.append(timed(function, argument))
        return {"times": times, "parameters": self.model.parameters}

    def memory(self, request: dict) -> dict:
        from common import memory

        self.build(request["case"], request["features"], "density")
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + request["memory"], resource.RLIM_INFINITY))
        try:
            self.model.rsample(512)
        except (MemoryError, RuntimeError) as error:  # torch has no class of its own for it
            raise NotImplementedError(f"> {request['memory'] / 1e9:.0f} GB") from error
        return {"peak": memory("VmHWM")}

    def profile(self, request: dict) -> dict:
        from torch.profiler import ProfilerActivity, profile

        op, features = request["op"], request["features"]
        self.build(request["case"], features, "sampling" if op == "rsample" else "density")
        function = getattr(self.model, op)
        argument = 512 if op == "rsample" else self.model.array(data(512, features))
        steps = request["profile"]
        seconds = sorted(timed(function, argument) for _ in range(2 * steps))[steps]
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(steps):
                function(argument)
        shares: dict[str, float] = {}
        total = sum(event.self_cpu_time_total for event in found.key_averages())
        for event in found.key_averages():
            kind = next((kind for kind, names in WORK.items() if event.key in names), None)
            kind = kind or ("other torch operations" if "::" in event.key else "Python and autograd")
            shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total / total
        return {"seconds": seconds, "shares": shares}


def installed(distribution: str) -> str:
    try:
        found = version(distribution)
    except PackageNotFoundError:  # flowlab from a checkout
        found = importlib.import_module(distribution).__version__
    return found + (f" with jax {version('jax')}" if "jax" in sys.modules else "")


def data(n: int, features: int) -> object:
    import numpy as np

    return np.random.default_rng(0).standard_normal((n, features), np.float32)


def timed(function: object, argument: object) -> float:
    started = time.perf_counter()
    function(argument)
    return time.perf_counter() - started


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
