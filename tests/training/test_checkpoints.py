"""Checkpoints, callbacks, Ctrl-C and warm starts of `fit`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flowlab
from flowlab import (
    FileError,
    Flow,
    ForwardKL,
    History,
    ReverseKL,
    Tempered,
    TrainingState,
    bases,
    fit,
    presets,
    snapshots,
)
from flowlab.layers import Layer


class Broken(Exception):
    """What a test breaks a fit off with."""


def break_off(step: int) -> Any:
    """A callback that breaks a fit off at its first evaluation from a step on."""

    def callback(state: TrainingState) -> None:
        if state.step >= step:
            raise Broken

    return callback


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ROWS = torch.randn(300, 3, generator=seeded(1)) @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])


def rows_fit(path: Path | None, seed: int = 0, **options: Any) -> tuple[nn.Module, History]:
    """A fit to rows in which layers learn from data, dropout draws, and epochs are longer than looks."""
    flow = presets.nsf(3, layers=2, hidden=(8,), generator=seeded(seed))
    chosen = {"epochs": 25, "batch_size": 30, "generator": 5, **options}
    if chosen["generator"] is not None:
        chosen["generator"] = seeded(chosen["generator"])
    return flow, fit(flow, ROWS, progress=False, checkpoint=path, **chosen)


def target(z: Tensor) -> Tensor:
    return -(z - 1).square().sum(-1)


def draws_fit(objective: Any) -> Any:
    def run(path: Path | None, seed: int = 0, **options: Any) -> tuple[nn.Module, History]:
        flow = presets.real_nvp(2, layers=2, hidden=(8,), generator=seeded(seed))
        chosen = {"steps": 90, "objective": objective(), "generator": seeded(5), **options}
        return flow, fit(flow, progress=False, checkpoint=path, **chosen)

    return run


class Noisy(Layer):
    """A shift that draws from torch's global generator in training, as a user's own module with nn.Dropout may."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.shift, self.dropout = nn.Parameter(torch.ones(features)), nn.Dropout(0.3)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z + self.dropout(self.shift), z.new_zeros(z.shape[:-1])

    def inverse(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x - self.dropout(self.shift), x.new_zeros(x.shape[:-1])


def own_dropout_fit(path: Path | None, seed: int = 0, **options: Any) -> tuple[nn.Module, History]:
    flow = Flow(bases.Gaussian(3), [Noisy(3)])
    torch.manual_seed(3)
    chosen = {"epochs": 25, "batch_size": 30, "generator": seeded(5), **options}
    return flow, fit(flow, ROWS, progress=False, checkpoint=path, **chosen)


def vae_fit(path: Path | None, seed: int = 0, **options: Any) -> tuple[nn.Module, History]:
    torch.manual_seed(seed)
    flow = presets.iaf(2, context_features=1, layers=1, hidden=(8,), generator=seeded(seed))
    model = flowlab.VAE(nn.Linear(3, 2 * 2 + 1), nn.Linear(2, 3), flow, likelihood="gaussian")
    chosen = {"epochs": 25, "batch_size": 30, "generator": seeded(5), **options}
    return model, model.fit(ROWS, progress=False, checkpoint=path, **chosen)


def bayesian_fit(path: Path | None, seed: int = 0, **options: Any) -> tuple[nn.Module, History]:
    torch.manual_seed(3)  # the network itself is not in the checkpoint: its weights have a posterior
    model = flowlab.BayesianModule(nn.Linear(2, 1), posterior="full", generator=seeded(seed))
    chosen = {"steps": 90, "generator": seeded(5), **options}
    return model, model.fit(ROWS[:, :2], ROWS[:, 2:], progress=False, checkpoint=path, **chosen)


FITS = {
    "VAE": vae_fit,
    "Bayesian module": bayesian_fit,
    "rows": rows_fit,
    "no generator": lambda path, seed=0, **options: rows_fit(path, seed, generator=None, **options),
    "pool of draws": draws_fit(lambda: ForwardKL(target, pool=64, refresh=10)),
    "tempered": draws_fit(lambda: Tempered(ReverseKL(target), steps=50)),
    "objective with a generator": draws_fit(lambda: ReverseKL(target, generator=seeded(8))),
    "own dropout": own_dropout_fit,
}


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def without_times(history: History) -> list[dict[str, float]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history.records]


@pytest.mark.parametrize(("kind", "step"), [("rows", 1), ("rows", 80), *((kind, 30) for kind in FITS)])
def test_a_fit_that_was_broken_off_ends_with_the_same_bits(kind: str, step: int, tmp_path: Path) -> None:
    torch.manual_seed(11)
    whole, history = FITS[kind](None)
    torch.manual_seed(11)
    path = tmp_path / "fit"
    with pytest.raises(Broken):
        FITS[kind](path, callback=break_off(step))
    torch.manual_seed(12)
    resumed, later = FITS[kind](path, seed=4)  # other weights at the start: the file's count
    assert same_bits(whole, resumed)
    assert without_times(later) == without_times(history)
    assert (later.reason, later.best_step, later.converged) == (history.reason, history.best_step, history.converged)
    again, finished = FITS[kind](path, seed=4, callback=break_off(0))  # no step is taken
    assert same_bits(whole, again)
    assert finished == later
    assert not again.training


def test_checkpoints_do_not_change_a_fit(tmp_path: Path) -> None:
    assert same_bits(rows_fit(None)[0], rows_fit(tmp_path / "fit")[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 31}, "options"),
        ({"validation": 0.2}, "validation"),
        ({"sample_weight": torch.arange(1.0, 301.0)}, "rows"),
        ({"objective": lambda flow, x, context: -flow.log_prob(x, context)}, "objective"),
        ({"generator": 6}, "another generator"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "fit"
    with pytest.raises(Broken):
        rows_fit(path, callback=break_off(1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=words):
        rows_fit(path, **options)
    assert path.read_bytes() == before
    flow, _ = rows_fit(path, resume=False, **{"epochs": 1, **options})
    assert same_bits(flow, rows_fit(None, **{"epochs": 1, **options})[0])


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fit"
    with pytest.raises(Broken):
        rows_fit(path, callback=break_off(1))
    with pytest.raises(FileError, match="another model"):
        fit(presets.maf(3), ROWS, epochs=25, batch_size=30, generator=seeded(5), checkpoint=path, progress=False)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "fit"
    with pytest.raises(Broken):
        rows_fit(path, callback=break_off(80))
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged.*the one before"):
        snapshots.read(path)
    assert snapshots.read(path) is not None  # it has taken the place of the damaged one
    resumed, _ = rows_fit(path)
    assert same_bits(resumed, rows_fit(None)[0])
    for place in tmp_path.iterdir():
        place.write_bytes(place.read_bytes()[:-50])
    with pytest.raises(FileError, match="damaged"):
        rows_fit(path)


@pytest.mark.parametrize("content", [b"", b"rows", b"\xff" * 100])
def test_what_is_no_checkpoint_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fit"
    path.write_bytes(content)
    with pytest.raises(FileError, match="fit is"):
        rows_fit(path)
    assert path.read_bytes() == content
    flowlab.save(presets.maf(3), tmp_path / "model.flow")
    with pytest.raises(FileError, match="not a checkpoint"):
        rows_fit(tmp_path / "model.flow")


def test_a_place_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    flow = presets.maf(3, hidden=(8,))
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    with pytest.raises(OSError, match="no such folder"):
        fit(flow, ROWS, epochs=1, checkpoint=tmp_path / "none" / "fit", callback=break_off(0), progress=False)
    assert all(torch.equal(before[name], value) for name, value in flow.state_dict().items() if "net" in name)


@pytest.mark.parametrize("most", [4, 1_000])  # room again later, or not even at the end
def test_a_disk_that_fills_up_does_not_end_a_fit(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, calls = snapshots.write, []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if 1 < len(calls) < most:
            raise OSError(28, "No space left on device", "fit")
        write(*arguments)

    monkeypatch.setattr(snapshots, "write", full)
    with pytest.warns(UserWarning, match="no checkpoint was written.*No space left"):
        flow, _ = rows_fit(tmp_path / "fit")
    assert same_bits(flow, rows_fit(None)[0])


def test_an_objective_that_keeps_its_state_to_itself_is_refused(tmp_path: Path) -> None:
    class Own(ReverseKL):
        def __call__(self, flow: Any, x: Any = None, context: Any = None) -> Tensor:
            return super().__call__(flow, x, context)

    with pytest.raises(ValueError, match="override its method `loss`"):
        draws_fit(lambda: Own(target))(tmp_path / "fit")


# ---- Ctrl-C and kills -----------------------------------------------------------------------------------------------


def test_ctrl_c_waits_for_the_step_and_keeps_the_best_weights(tmp_path: Path, ctrl_c: Callable[[], None]) -> None:
    path, evaluations = tmp_path / "fit", []

    def press(state: TrainingState) -> None:
        evaluations.append(state)
        if len(evaluations) == 4:
            ctrl_c()

    flow = presets.nsf(3, layers=2, hidden=(8,), generator=seeded(0))
    options = {"epochs": 25, "batch_size": 30, "generator": seeded(5), "checkpoint": path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        fit(flow, ROWS, callback=press, **options)
    *_, record = snapshots.read(path)  # type: ignore[misc]
    assert record["step"] == evaluations[-1].step
    assert not record["finished"]
    best = min(evaluations, key=lambda state: state.validation)
    # The weights are those of the best evaluation: a fit that ends there has the same.
    ended, _ = rows_fit(None, callback=lambda state: state.stop() if state.step == best.step else None)
    assert same_bits(flow, ended)
    assert same_bits(rows_fit(path)[0], rows_fit(None)[0])


KILLED = """
import sys, torch
sys.path.insert(0, {folder!r})
from test_checkpoints import rows_fit
print("ready", flush=True)
flow, history = rows_fit({path!r}, epochs=60)
torch.save(flow.state_dict(), {result!r})
"""


def start(path: Path, result: Path) -> "subprocess.Popen[str]":
    code = KILLED.format(folder=str(Path(__file__).parent), path=str(path), result=str(result))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_process_loses_nothing(seed: int, tmp_path: Path) -> None:
    path, result = tmp_path / "fit", tmp_path / "weights.pt"
    generator, kills = seeded(seed), 0
    while not result.exists():
        process = start(path, result)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if kills < 5:
            time.sleep(float(torch.rand((), generator=generator)) * 1.5)
            process.send_signal(signal.SIGKILL if kills % 2 else signal.SIGTERM)
            kills += 1
        process.wait()
    whole, _ = rows_fit(None, epochs=60)
    found = torch.load(result)
    assert all(torch.equal(found[name], value) for name, value in whole.state_dict().items())
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".") and kills == 0]


# ---- callbacks and warm starts --------------------------------------------------------------------------------------


def test_a_callback_sees_every_evaluation() -> None:
    seen: list[TrainingState] = []
    _, history = rows_fit(None, callback=seen.append)
    assert [state.step for state in seen] == [record["step"] for record in history.records]
    assert [state.validation for state in seen] == [record["validation"] for record in history.records]
    assert seen[-1].best == history.best
    assert seen[-1].best_step == history.best_step
    assert all(state.seconds_left >= 0 and state.steps == 225 and state.stage == "fit" for state in seen)
    assert seen[-1].seconds_left < seen[0].seconds_left


def test_a_callback_ends_training_with_its_reason() -> None:
    _, history = rows_fit(None, callback=lambda state: state.stop("enough") if state.step >= 50 else None)
    assert history.reason == "enough"
    assert not history.converged
    assert history.records[-1]["step"] == 50


def test_a_warm_start_goes_on_and_is_never_worse() -> None:
    held_out = torch.randn(100, 3, generator=seeded(2))
    flow, first = rows_fit(None, validation=held_out, epochs=5)
    score = -float(flow.log_prob(held_out).mean())
    second = fit(flow, ROWS, validation=held_out, epochs=5, batch_size=30, generator=seeded(6), progress=False,
                 learning_rate=10.0, history=first)  # fmt: skip
    assert -float(flow.log_prob(held_out).mean()) <= score + 1e-6
    assert second.records[: len(first.records)] == first.records
    assert len(second.records) > len(first.records)
    steps = [record["step"] for record in second.records]
    assert steps == sorted(set(steps))
    assert second.seconds > first.seconds
