"""One synthesizer in a process of its own, on one core: `python worker.py METHOD TRAIN ROWS OUTPUT...`.

Fits the method to the parquet file TRAIN, draws ROWS rows for each of the parquet files OUTPUT, and answers with one
line of JSON: CPU-seconds (of all threads and processes) and seconds of `fit` and of the first `sample`, the peak
memory of the process until then and what it had taken before `fit`, in bytes, and versions. Runs with the interpreter
of the method's environment.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEED = 0
CTGAN_EPOCHS = 300
VERSIONS = {
    "flowlab": ("flowlab", "torch"),
    "CART": ("scikit-learn",),
    "SDV": ("sdv", "ctgan", "copulas", "rdt", "torch"),
    "ARF": ("arfpy",),
    "ARGN": ("mostlyai-engine", "torch"),
    "Unmasking": ("utrees", "xgboost", "scikit-learn"),
}
MISSING = "(missing)"


def flowlab(effort: str) -> Callable:
    """flowlab's estimator."""
    sys.path.insert(0, str(ROOT))
    from flowlab import FlowDensity

    def fit(train):
        model = FlowDensity(random_state=SEED, effort=effort).fit(train)
        return lambda n, draw: model.sample(n, random_state=SEED + draw)

    return fit


def cart(leaf: int) -> Callable:
    """Sequential trees with leaves of so many rows."""
    import numpy as np
    from cart import fitted

    def fit(train):
        sample = fitted(train, leaf, SEED)
        return lambda n, draw: sample(n, np.random.default_rng([SEED, draw]))

    return fit


def sdv(synthesizer: str, **options) -> Callable:
    """One of SDV's synthesizers, with its defaults.

    Metadata are as SDV detects them, with text declared categorical, keys and personal data ruled out.

    Whole numbers with few values stay what SDV makes of them. Text goes in as objects, as SDV wants it: given pandas'
    categories, it draws far too many missing cells wherever a few are missing.
    """
    import numpy as np
    import torch
    from sdv import single_table
    from sdv.metadata import Metadata

    torch.set_num_threads(1)

    def fit(train):
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        categories = train.select_dtypes("category").dtypes.to_dict()
        train = train.astype(dict.fromkeys(categories, object))
        metadata = Metadata.detect_from_dataframes({"rows": train}, infer_keys=None)
        for name, found in metadata.tables["rows"].columns.items():
            if name in categories:
                metadata.update_column(name, sdtype="categorical")
            elif train[name].dtype.kind in "if" and found["sdtype"] not in ("numerical", "categorical"):
                metadata.update_column(name, sdtype="numerical")
        model = getattr(single_table, synthesizer)(metadata, **options)
        model.fit({"rows": train})
        return lambda n, draw: model.sample(n)["rows"].astype(categories)  # its generators go on

    return fit


def arf() -> Callable:
    """arfpy's adversarial random forest, with its defaults."""
    import numpy as np
    from arfpy import arf as library

    def fit(train):
        np.random.seed(SEED)
        model = library.arf(x=encoded(train), verbose=False, random_state=SEED)
        model.forde()
        return lambda n, draw: decoded(model.forge(n), train)  # numpy's global generator goes on

    return fit


def argn(value_protection: bool) -> Callable:
    """MOSTLY AI's TabularARGN, with its defaults but for the protection of rare values."""
    import torch
    from mostlyai.engine import TabularARGN

    torch.set_num_threads(1)

    def fit(train):
        model = TabularARGN(value_protection=value_protection, random_state=SEED, device="cpu").fit(train)
        return lambda n, draw: typed(model.sample(n), train)  # its generators go on

    return fit


def typed(rows, train):
    """Rows as TabularARGN draws them, with the training rows' dtypes where nothing is lost.

    Its word for a rare value is a category of its own.
    """
    import pandas as pd

    out = rows[list(train.columns)].copy()
    for name, column in train.items():
        if column.dtype == "category":
            new = set(rows[name].dropna().astype(str)) - set(column.cat.categories)
            out[name] = rows[name].astype(object).astype(pd.CategoricalDtype([*column.cat.categories, *sorted(new)]))
        elif column.dtype.kind != "i" or not rows[name].isna().any():
            out[name] = rows[name].astype(column.dtype)
    return out


def unmasking_trees() -> Callable:
    """Unmasking Trees, with its defaults, told which columns are categories and which are whole numbers.

    It takes missing cells but never draws one: a column says which cells are missing, as for arfpy.
    """
    import numpy as np
    import pandas as pd
    from utrees import UnmaskingTrees

    def fit(train):
        table = encoded(train, filled=False)
        levels = {name: column.dtype for name, column in table.items() if column.dtype == "category"}
        kinds = [
            "categorical" if name in levels else "integer" if column.dtype.kind == "i" else "continuous"
            for name, column in table.items()
        ]
        x = np.column_stack([column.cat.codes if name in levels else column for name, column in table.items()])
        model = UnmaskingTrees(random_state=SEED).fit(x.astype(float), quantize_cols=kinds)

        def sample(n, draw):  # its generator goes on
            rows = pd.DataFrame(model.generate(n), columns=table.columns)
            for name, dtype in levels.items():
                rows[name] = pd.Categorical.from_codes(rows[name].astype(int), dtype=dtype)
            return decoded(rows, train)

        return sample

    return fit


def encoded(train, filled=True):
    """Tables without missing categories and times, and a column that says which numbers are missing.

    Missing numbers are medians, as arfpy takes none, or stay missing where not to be `filled`.
    """
    out = train.copy()
    for name, column in train.items():
        if column.dtype == "category":
            if column.isna().any():
                out[name] = column.cat.add_categories(MISSING).fillna(MISSING)
            continue
        if column.dtype.kind == "M":
            out[name] = column.astype("datetime64[ns]").astype("int64") / 1e9
        if column.isna().any():
            out[name] = out[name].fillna(column.median()) if filled else out[name]
            out[f"{name} {MISSING}"] = column.isna().map({True: "yes", False: "no"}).astype("category")
    return out


def decoded(rows, train):
    """Rows as drawn of `encoded` ones, with missing cells and times again; numbers stay as drawn."""
    import pandas as pd

    out = rows[list(train.columns)].copy()
    for name, column in train.items():
        if column.dtype == "category":
            present = rows[name].astype(object).where(rows[name].astype(object) != MISSING)
            out[name] = present.astype(column.dtype)
        elif column.dtype.kind == "M":
            out[name] = pd.to_datetime(rows[name].astype(float), unit="s").astype(column.dtype)
        else:
            out[name] = rows[name].astype(float)
        if f"{name} {MISSING}" in rows:
            out[name] = out[name].mask(rows[f"{name} {MISSING}"] == "yes")
    return out


METHODS = {
    "flowlab": ("flowlab", lambda: flowlab("default")),
    "flowlab fast": ("flowlab", lambda: flowlab("fast")),
    "CART 5": ("CART", lambda: cart(5)),
    "CART 20": ("CART", lambda: cart(20)),
    "SDV copula": ("SDV", lambda: sdv("GaussianCopulaSynthesizer")),
    "CTGAN": ("SDV", lambda: sdv("CTGANSynthesizer", epochs=CTGAN_EPOCHS, enable_gpu=False)),
    "TVAE": ("SDV", lambda: sdv("TVAESynthesizer", enable_gpu=False)),
    "ARF": ("ARF", arf),
    "ARGN": ("ARGN", lambda: argn(value_protection=True)),
    "ARGN unprotected": ("ARGN", lambda: argn(value_protection=False)),
    "Unmasking Trees": ("Unmasking", unmasking_trees),
}


def main(method: str, train_path: str, rows: int, outputs: list[str]) -> dict:
    import pandas as pd

    family, method_of = METHODS[method]
    train = pd.read_parquet(train_path)
    fit = method_of()
    before = memory("VmRSS")
    clocks = [clock()]
    sample = fit(train)
    clocks.append(clock())
    drawn = sample(rows, 0)
    clocks.append(clock())
    peak = memory("VmHWM")
    drawn.to_parquet(outputs[0])
    for draw, output in enumerate(outputs[1:], start=1):
        sample(rows, draw).to_parquet(output)
    steps = list(itertools.pairwise(clocks))
    return {
        **{f"{step}_cpu": end[0] - start[0] for step, (start, end) in zip(("fit", "sample"), steps)},
        **{f"{step}_wall": end[1] - start[1] for step, (start, end) in zip(("fit", "sample"), steps)},
        "peak": peak,
        "before": before,
        "versions": {package: version(package) for package in (*VERSIONS[family], "pandas", "numpy")},
    }


def clock() -> tuple[float, float]:
    """CPU-seconds so far, and the time."""
    return sum(os.times()[:4]), time.perf_counter()


def memory(what: str) -> int:
    """Bytes held now (VmRSS) or at most so far (VmHWM); getrusage would begin with the peak of the parent process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{what}:")[1].split()[0])


if __name__ == "__main__":
    # Only the answer goes to standard output: whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Pinned before anything counts the cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    try:
        answer = main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
