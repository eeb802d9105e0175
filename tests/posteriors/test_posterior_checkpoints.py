"""Fits of posteriors that are broken off, and followed."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowlab import TrainingState, fit_posterior


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
def test_a_posterior_that_was_broken_off_ends_with_the_same_bits(stage: str, tmp_path: Path) -> None:
    stages: list[str] = []
    whole = fitted(None, lambda state: stages.append(state.stage))
    if stage not in stages:
        pytest.skip(f"this fit has no {stage}")

    def callback(state: TrainingState) -> None:
        if state.stage == stage:
            raise Broken

    with pytest.raises(Broken):
        fitted(tmp_path / "fit", callback)
    again: list[str] = []
    assert same_bits(whole, fitted(tmp_path / "fit", lambda state: again.append(state.stage)))
    assert 0 < len(again) <= len(stages) - (stage != "affine")
    with pytest.raises(ValueError, match="another fit, whose gradient, log_prob"):
        fit_posterior(lambda z: banana(z) * 2, features=2, steps=24, draws=16, checkpoint=tmp_path / "fit",
                      progress=False)  # fmt: skip


def test_an_amortised_posterior_goes_on_also_after_ctrl_c(tmp_path: Path) -> None:
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
            signal.raise_signal(signal.SIGINT)

    whole = run(None)
    with pytest.raises(Broken):
        run(tmp_path / "fit", callback)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore the signal
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "fit", press)
    assert same_bits(whole, run(tmp_path / "fit"))
