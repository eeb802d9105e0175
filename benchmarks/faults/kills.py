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

TRIALS = 4  # of each kind
KILLS = 5  # of each trial
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
        scale: Trials, as a part of those of a full run.
    """
    outcomes = {kind: tried(kind, max(round(TRIALS * scale), 1), KILLS) for kind in KINDS}
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


def tried(kind: str, trials: int, kills: int) -> Outcome:
    """Fits of a kind, each killed so many times."""
    outcome, rng = Outcome(), random.Random(kind)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        started = time.perf_counter()
        expected = finish(kind, place / "whole")
        outcome.whole = time.perf_counter() - started
        for trial in range(trials):
            for _ in range(kills):
                killed(kind, place / str(trial), rng, outcome)
            started = time.perf_counter()
            with suppress(subprocess.CalledProcessError):
                outcome.same += finish(kind, place / str(trial)) == expected
            outcome.rest += (time.perf_counter() - started) / trials
            outcome.fits += 1
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
        process.wait(rng.uniform(0, outcome.whole))
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
