"""Nothing asks the network: neither the import of flowlab and of all its modules, nor what is done with it."""

import subprocess
import sys
from pathlib import Path

import pytest

GUARD = """
import sys

asked = []

def refuse(event, arguments):
    if event.startswith("socket."):
        asked.append((event, str(arguments)))
        raise RuntimeError(f"a socket is asked for: {event} {arguments}")

sys.addaudithook(refuse)  # sees the C code of the socket module, too
import socket
for ask, where in ((socket.socket, ()), (socket.create_connection, [("localhost", 9)]), (socket.getaddrinfo, "a9")):
    try:
        ask(*where)
        raise SystemExit("the guard sees nothing")
    except RuntimeError:
        asked.clear()
"""

# MLflow is a client of servers: its HTTP library looks whether the machine has IPv6 as it is imported.
IMPORTS = """
import importlib, pkgutil
import flowlab
names = [module.name for module in pkgutil.walk_packages(flowlab.__path__, "flowlab.") if "__main__" not in module.name]
names.remove("flowlab.interop.mlflow")
for name in names:
    importlib.import_module(name)
assert len(names) > 100
for name in flowlab.__all__:
    getattr(flowlab, name)
"""

USE = """
import sys
import numpy as np, pandas as pd, torch, flowlab
rng = np.random.default_rng(0)
frame = pd.DataFrame({"x": rng.normal(size=60), "d": rng.choice(["a", "b"], 60)})
member = flowlab.Member("mixed", "none", steps=3, hidden=(4,), trees=2)
model = flowlab.FlowDensity(members=[member], validation=0.0, random_state=0, n_jobs=1).fit(frame)
model.score_samples(frame), model.sample(5, given={"d": "a"}), model.impute(frame.mask(frame["x"] > 1)), model.summary()
model.save("m.flow")
flowlab.load("m.flow")
flowlab.datasets.load("wine")
flowlab.fit(flowlab.presets.maf(2, layers=1), torch.randn(64, 2), epochs=1, progress=False)
"""

COMMANDS = """
from flowlab.cli import main
flowlab.load("m.flow").report(frame, frame.iloc[:40], "r.html")
frame.to_csv("t.csv", index=False)
for line in (
    "fit t.csv -o n.flow --effort fast --time-limit 1 -q",
    "score m.flow t.csv -o s.csv",
    "sample m.flow -n 5 -o n.csv",
    "impute m.flow t.csv -o i.csv",
    "schema t.csv",
    "info m.flow",
    "--version",
    "report m.flow t.csv -o c.html -q",
):
    sys.argv = ["flowlab", *line.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, line
"""


def done_offline(code: str, folder: Path) -> None:
    """Run a program in a process that refuses sockets; a refusal that is swallowed counts, too."""
    whole = f"{GUARD}{code}\nassert not asked, asked\n"
    done = subprocess.run([sys.executable, "-c", whole], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_import_and_use_open_no_socket(tmp_path: Path):
    done_offline(USE, tmp_path)


@pytest.mark.slow
def test_no_module_opens_a_socket_when_imported(tmp_path: Path):
    done_offline(IMPORTS, tmp_path)


@pytest.mark.slow
def test_reports_and_the_command_line_open_no_socket(tmp_path: Path):
    done_offline(USE + COMMANDS, tmp_path)


def test_a_socket_would_be_seen(tmp_path: Path):
    with pytest.raises(AssertionError, match="a socket is asked for"):
        done_offline("import urllib.request; urllib.request.urlopen('http://localhost:9')", tmp_path)
    with pytest.raises(AssertionError, match=r"socket\.connect|socket\.__new__"):
        done_offline("try:\n    socket.socket()\nexcept RuntimeError:\n    pass", tmp_path)
