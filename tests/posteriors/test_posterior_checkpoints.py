"""Fits of posteriors that are broken off, and followed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowlab import TrainingState, fit_posterior
from flowlab.training.checkpoint import Checkpoint


class Broken(Exception):
    """What a test breaks a fit off with."""


def banana(z: Tensor) -> Tensor:
    return -z[..., 0].square() / 2 - (z[..., 1] - z[..., 0].square()).square()


def fitted(folder: Path | None, callback: Any = None, **options: Any) -> Any:
    chosen = {"features": 2, "steps": 24, "draws": 16, "progress": False, **options}
    return fit_posterior(options.pop("log_prob", banana), **chosen, checkpoint=folder, callback=callback)


def same_bits(a: Any, b: Any) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["flow", "affine", "tails"])
@pytest.mark.filterwarnings("ignore:this fit is not to be trusted")
def test_a_posterior_that_was_broken_off_ends_with_the_same_bits(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a stage, of which a checkpoint was written, and with all stages done."""
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)
    stages: list[str] = []
    whole = fitted(None, lambda state: stages.append(state.stage))
    assert stages.count(stage) > 1
    seen: list[str] = []

    def callback(state: TrainingState) -> None:
        seen.append(state.stage)
        if seen.count(stage) == 2:
            raise Broken

    with pytest.raises(Broken):
        fitted(tmp_path / "fit", callback)
    again: list[str] = []
    assert same_bits(whole, fitted(tmp_path / "fit", lambda state: again.append(state.stage)))
    assert len(again) == len(stages) - len(seen) + 1  # it goes on from the first evaluation of the stage
    assert same_bits(whole, fitted(tmp_path / "fit"))
    with pytest.raises(ValueError, match="another fit, whose gradient, log_prob"):
        fit_posterior(lambda z: banana(z) * 2, features=2, steps=24, draws=16, checkpoint=tmp_path / "fit",
                      progress=False)  # fmt: skip


def test_an_amortised_posterior_goes_on_also_after_ctrl_c(tmp_path: Path, ctrl_c: Callable[[], None]) -> None:
    context = torch.randn(80, 1, generator=torch.Generator().manual_seed(0))

    def log_prob(z: Tensor, context: Tensor) -> Tensor:
        return -(z - context).square().sum(-1)

    def run(folder: Path | None, callback: Any = None) -> Any:
        return fit_posterior(log_prob, features=1, context=context, steps=30, draws=64, progress=False,
                             checkpoint=folder, callback=callback)  # fmt: skip

    def callback(state: TrainingState) -> None:
        if state.step > 10:
            raise Broken

    def press(state: TrainingState) -> None:
        if state.step > 20:
            ctrl_c()

    whole = run(None)
    with pytest.raises(Broken):
        run(tmp_path / "fit", callback)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "fit", press)
    assert same_bits(whole, run(tmp_path / "fit"))
