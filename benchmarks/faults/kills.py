"""Fits that are killed by SIGKILL at random moments, and started again until they end: are the weights those bits?"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import table
from benchmarks.faults.kill_target import KINDS

KILLS = 20  # of each kind
OF_ONE = 5  # of one fit at most
SOON = 0.7  # of the time of a whole fit, within which a process is killed
LONG = 600  # seconds after which a fit hangs


@dataclass
class Outcome:
    """What became of the fits of one kind.

    Attributes:
        kills: Processes killed in their work.
        fits: Fits that ended after it.
        same: Those with the bits of the fit that was not killed.
        whole: Wall time of that one, seconds.
        rest: Mean wall time of the last process of a fit, seconds.
        damaged: Processes that ended in an error instead.
    """

    kills: int = 0
    fits: int = 0
    same: int = 0
    whole: float = 0.0
    rest: float = 0.0
    damaged: int = 0


def section(scale: float = 1.0) -> str:
    """Kill fits of every kind, and say what is lost.

    Args:
        scale: Kills, as a part of those of a full run.
    """
    outcomes = {kind: tried(kind, max(round(KILLS * scale), 1)) for kind in KINDS}
    rows = [
        [kind.replace("_", " "), str(o.kills), f"{o.same} of {o.fits}", str(o.damaged), f"{o.rest / o.whole:.2f}"]
        for kind, o in outcomes.items()
    ]
    total = sum(o.kills for o in outcomes.values())
    lost = sum(o.fits - o.same + o.damaged for o in outcomes.values())
    head = ["fit", "kills", "ended with the same bits", "ended in an error", "time of the last process / whole fit"]
    return "\n\n".join(
        [
            "## Kills",
            f"{total} processes were killed by SIGKILL at moments drawn at random, half of the time with all their "
            f"child processes, and started again with the same arguments. Lost: {lost}. Times include the import of "
            "torch and everything that is computed anew.",
            table(head, rows, "lr"),
        ]
    )


def tried(kind: str, kills: int) -> Outcome:
    """Fits of a kind, until so many processes were killed."""
    outcome, rng = Outcome(), random.Random(kind)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        started = time.perf_counter()
        expected = finish(kind, place / "whole")
        outcome.whole = time.perf_counter() - started
        while outcome.kills < kills:
            own = place / str(outcome.fits)
            for _ in range(OF_ONE):
                killed(kind, own, rng, outcome)
            started = time.perf_counter()
            with suppress(subprocess.CalledProcessError):
                outcome.same += finish(kind, own) == expected
            outcome.rest += time.perf_counter() - started
            outcome.fits += 1
        outcome.rest /= outcome.fits
    return outcome


def command(kind: str, place: Path) -> Sequence[str]:
    """What runs a fit in a folder, and writes its digest there."""
    place.mkdir(exist_ok=True)
    return [sys.executable, "-m", "benchmarks.faults.kill_target", kind, str(place), str(place / "digest")]


def finish(kind: str, place: Path) -> str:
    """The digest of a fit that is left alone."""
    subprocess.run(command(kind, place), check=True, capture_output=True, timeout=LONG)
    return (place / "digest").read_text()


def killed(kind: str, place: Path, rng: random.Random, outcome: Outcome) -> None:
    """One process that is killed somewhere in its work, or has ended before."""
    process = subprocess.Popen(
        command(kind, place), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    with suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0, SOON * outcome.whole))
    if process.poll() is not None:
        outcome.damaged += process.returncode != 0
    else:
        outcome.kills += 1
        if rng.random() < 0.5:
            process.send_signal(signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # those that the process had started, at the latest now
    process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    print(section(parser.parse_args().scale))
