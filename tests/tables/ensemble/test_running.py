"""Fits of ensembles that are broken off, killed, followed and ended by a callback."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from flowlab import FlowClassifier, FlowDensity, Member, TrainingState
from flowlab.tables.ensemble import families
from flowlab.writing import UNFINISHED

RNG = np.random.default_rng(0)
X = RNG.normal(size=90)
NUMBERS = pd.DataFrame({"x": X, "y": X + RNG.normal(size=90)})
MIXED = NUMBERS.assign(city=RNG.choice(["Rome", "Oslo"], 90))
JOINT = [Member("autoregressive", "none", steps=40, hidden=(8,)), Member("copula", "marginal")]
CONDITIONAL = [Member("mixed", steps=40, hidden=(8,), trees=1, gaussians=2)]


class Broken(Exception):
    """What a test breaks a fit off with."""


def fitted(frame: pd.DataFrame, folder: Path | None = None, callback: Any = None, **options: Any) -> FlowDensity:
    members = CONDITIONAL if "city" in frame else [*JOINT, *CONDITIONAL]
    chosen = {"members": members, "effort": "fast", "random_state": 0, "n_jobs": 1, "checkpoint": folder, **options}
    return FlowDensity(**chosen).fit(frame, callback=callback)


def same_bits(a: FlowDensity, b: FlowDensity) -> bool:
    mine, other = (model._model.density().state_dict() for model in (a, b))
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.parametrize("frame", [NUMBERS, MIXED], ids=["numbers", "mixed"])
def test_an_ensemble_that_was_broken_off_ends_with_the_same_bits(frame: pd.DataFrame, tmp_path: Path) -> None:
    seen: list[TrainingState] = []

    def callback(state: TrainingState) -> None:
        seen.append(state)
        if "fold 2" in state.stage and state.step >= 25:
            raise Broken

    whole = fitted(frame)
    with pytest.raises(Broken):
        fitted(frame, tmp_path / "fit", callback)
    before = len(seen)
    seen.clear()
    resumed = fitted(frame, tmp_path / "fit", lambda state: seen.append(state))
    assert not any("fold 1" in state.stage and "member 1" in state.stage for state in seen)  # it is kept
    assert before
    assert seen
    assert same_bits(whole, resumed)
    assert whole.sample(20, random_state=0).equals(resumed.sample(20, random_state=0))
    assert [r.score for r in whole._model.reports] == [r.score for r in resumed._model.reports]
    seen.clear()
    assert same_bits(whole, fitted(frame, tmp_path / "fit", lambda state: seen.append(state)))
    assert not seen


@pytest.mark.parametrize("frame", [NUMBERS, MIXED], ids=["numbers", "mixed"])
def test_a_break_after_the_training_of_networks_loses_nothing(
    frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is learnt beside trained networks does not depend on whether these were trained just now."""

    def broken(*_: Any) -> None:
        raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(families, "with_others", broken)
        with pytest.raises(Broken):
            fitted(frame, tmp_path / "fit")
    assert same_bits(fitted(frame), fitted(frame, tmp_path / "fit"))


def test_ctrl_c_ends_an_ensemble_which_goes_on_with_the_same_bits(tmp_path: Path, ctrl_c: Callable[[], None]) -> None:
    def press(state: TrainingState) -> None:
        if "fold 2" in state.stage and state.step >= 25:
            ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        fitted(MIXED, tmp_path / "fit", press)
    assert same_bits(fitted(MIXED), fitted(MIXED, tmp_path / "fit"))


def test_a_folder_of_another_fit_is_refused(tmp_path: Path) -> None:
    fitted(MIXED, tmp_path / "fit")
    before = {path.name: path.read_bytes() for path in (tmp_path / "fit").iterdir()}
    for change, word in (
        ({"random_state": 1}, "random_state"),
        ({"members": [Member("mixed", steps=41)]}, "members"),
        ({"schema": {"city": "categorical"}}, "schema"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint of another fit, whose {word}"):
            fitted(MIXED, tmp_path / "fit", **change)
    with pytest.raises(ValueError, match="whose rows differ"):
        fitted(MIXED.assign(x=MIXED.x + 1), tmp_path / "fit")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "fit").iterdir()}
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / f"{UNFINISHED}0123").write_text("")  # what a process leaves that is killed as it begins
    fitted(MIXED, tmp_path / "killed")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        fitted(MIXED, tmp_path / "other")


def test_a_seed_that_was_drawn_is_kept(tmp_path: Path) -> None:
    one, two = (fitted(MIXED, tmp_path / "fit", random_state=None) for _ in range(2))
    assert same_bits(one, two)


def test_a_model_file_does_not_name_the_folder(tmp_path: Path) -> None:
    model = fitted(MIXED, tmp_path / "fit")
    model.save(tmp_path / "m.flow")
    assert str(tmp_path).encode() not in (tmp_path / "m.flow").read_bytes()


@pytest.mark.slow
def test_estimators_on_a_density_keep_its_folder(tmp_path: Path) -> None:
    density = FlowDensity(members=CONDITIONAL, random_state=0, n_jobs=1, checkpoint=tmp_path / "fit")
    one, two = (FlowClassifier(density).fit(NUMBERS, MIXED.city) for _ in range(2))
    assert (one.predict_proba(NUMBERS) == two.predict_proba(NUMBERS)).all()
    with pytest.raises(ValueError, match="another fit"):
        FlowClassifier(density).fit(NUMBERS, MIXED.city[::-1])


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_callback_hears_of_every_member_and_can_end_all(jobs: int) -> None:
    stages: list[str] = []

    def callback(state: TrainingState) -> None:
        stages.append(state.stage)
        if "member 1" in state.stage:
            state.stop("that will do")

    members = [Member("mixed", steps=4_000, hidden=(8,), trees=0, gaussians=0) for _ in range(2)]
    model = fitted(MIXED, callback=callback, members=members, n_jobs=jobs)
    assert any("member 1 of 2 (mixed), fold 1 of 3" in stage for stage in stages)
    assert {report.reason for report in model._model.reports} == {"that will do"}
    assert np.isfinite(model.score_samples(MIXED)).all()


@pytest.mark.slow
def test_a_callback_that_fails_ends_the_fit_in_its_own_words() -> None:
    def callback(state: TrainingState) -> None:
        raise Broken("by the callback")

    for jobs in (1, 2):
        with pytest.raises(Broken, match="by the callback"):
            fitted(MIXED, callback=callback, n_jobs=jobs)
    assert np.isfinite(fitted(MIXED, n_jobs=2).score_samples(MIXED)).all()  # the processes are as good as new


@pytest.mark.slow
def test_a_warm_start_trains_the_same_networks_further(tmp_path: Path) -> None:
    members = [Member("mixed", steps=30, hidden=(8,), trees=0, gaussians=0)]
    model = FlowDensity(members=members, n_jobs=1, warm_start=True, checkpoint=tmp_path / "one").fit(MIXED)
    first, scores = model._model.reports[0], model._model.held_out
    model.set_params(checkpoint=None).fit(MIXED)
    second = model._model.reports[0]
    assert second.score >= first.score
    assert second.history[: len(first.history)] == first.history
    assert len(second.history) > len(first.history)
    assert len(scores) == len(model._model.held_out)
    with pytest.raises(ValueError, match="rows differ"):
        model.fit(MIXED.iloc[:80])
    with pytest.raises(ValueError, match="round differ"):
        model.set_params(checkpoint=tmp_path / "one").fit(MIXED)
    cold = FlowDensity(members=members, n_jobs=1, random_state=0)
    assert same_bits(cold.fit(MIXED), cold.fit(MIXED))


KILLED = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from test_running import MIXED, NUMBERS, fitted
print("ready", flush=True)
fitted(NUMBERS, Path({path!r}), n_jobs={jobs}).save({result!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_process_loses_nothing(jobs: int, tmp_path: Path) -> None:
    path, result = tmp_path / "fit", tmp_path / "model.flow"
    folder, kills = str(Path(__file__).parent), 0
    code = KILLED.format(folder=folder, path=str(path), result=str(result), jobs=jobs)
    while not result.exists():
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if kills < 4:
            time.sleep(3 * float(np.random.default_rng(kills).random()))
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    from flowlab import load

    assert same_bits(fitted(NUMBERS), load(result))
