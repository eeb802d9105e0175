"""The package as a whole: the cost of importing it, the contents of wheel and source distribution, its metadata."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

import flowlab
from helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_importing_flowlab_stays_light():
    code = (
        "import sys, flowlab\n"
        "heavy = {'matplotlib', 'pandas', 'typer', 'sklearn', 'pyarrow', 'scipy', 'rich', 'polars', 'nflows', 'zuko',\n"
        "         'pyro', 'onnx', 'onnxruntime', 'onnxscript', 'normflows'} & set(sys.modules)\n"
        "print(sorted(heavy)); flowlab.FlowDensity; assert 'sklearn' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_flowlab_takes_hardly_longer_than_torch():
    code = (
        "import time; start = time.process_time()\n"  # of the processor: other processes' work does not count
        "import torch; middle = time.process_time()\n"
        "import flowlab; print((time.process_time() - start) / (middle - start))"
    )
    runs = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5))
    ratios = []
    for done in runs:
        ratios.append(float(done.stdout))
        if ratios[-1] < 1.3:
            return
    raise AssertionError(f"importing flowlab takes {min(ratios):.2f} times as long as importing torch")


def test_importing_flowlab_changes_nothing_in_torch():
    code = (
        "import torch\n"
        "before = (torch.random.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),\n"
        "          torch.distributions.Distribution._validate_args)\n"
        "import flowlab, flowlab.demo\n"
        "after = (torch.random.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),\n"
        "         torch.distributions.Distribution._validate_args)\n"
        "assert before == after"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[set[str], set[str], str]:
    """The names of the files in the wheel and in the source distribution, and the wheel's metadata."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    with tarfile.open(next(folder.glob("*.tar.gz"))) as source:
        return names, {name.partition("/")[2] for name in source.getnames()}, metadata


def test_wheel_and_sdist_hold_what_they_should(built):
    wheel, sdist, metadata = built
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "flowlab").rglob("*.py")}
    needed = code | {"flowlab/py.typed", "flowlab/report/report.html"}
    tables = {path.name for path in (ROOT / "datasets").iterdir() if path.suffix in (".parquet", ".md")}
    assert len(tables) >= 9
    assert wheel >= needed | {f"flowlab/_datasets/{name}" for name in tables}
    assert f"flowlab-{flowlab.__version__}.dist-info/licenses/LICENSE" in wheel
    assert sdist >= needed | {f"datasets/{name}" for name in tables}
    assert sdist >= {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"}
    assert {name.partition("/")[0] for name in wheel} == {"flowlab", f"flowlab-{flowlab.__version__}.dist-info"}
    for name in wheel | sdist:
        parts = set(Path(name).parts)
        assert not parts & {"tests", "benchmarks", "__pycache__", "demo", "site", "shared"}, name
        assert not any(part.startswith(".") and part != ".gitignore" for part in parts), name
    assert "License-Expression: MIT" in metadata
    for extra in PROJECT["optional-dependencies"]:
        assert f"Provides-Extra: {extra}" in metadata


def test_what_is_declared():
    extras = PROJECT["optional-dependencies"]
    assert {"nflows", "zuko", "pyro", "polars", "bench", "test", "all"} <= set(extras)
    everything = set(extras["all"][0].removeprefix("flowlab[").rstrip("]").split(","))
    assert everything == set(extras) - {"all", "test", "bench", "bench-jax", "data", "docs"}
    assert "Programming Language :: Python :: 3.11" in PROJECT["classifiers"]
    assert any(line.startswith("torch") and "extra" not in line for line in requires("flowlab") or ())


def test_the_citation_is_of_this_version():
    citation = dict(re.findall(r'^([a-z-]+): *"?(.*?)"?$', (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (flowlab.__version__, PROJECT["license"])


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_forked_processes_go_on_after_torch_used_threads():
    """The child of a fork has one thread of torch's, and waits for no others."""
    program = """
import multiprocessing, torch, flowlab
torch.set_num_threads(2)
flow, x = flowlab.presets.maf(8, hidden=(256, 256)), torch.randn(20_000, 8)
work = lambda _: float(flow.log_prob(x).sum().detach())
work(0)
def child(i): return work(i), torch.get_num_threads()
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print([n for _, n in pool.map_async(child, range(2)).get(60)], torch.get_num_threads())
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.strip() == "[1, 1] 2", done.stderr
