"""Progress where output is no terminal: lines, not too many, with the time left."""

import re

import pytest
import torch

import flowlab
from flowlab import FlowDensity, Member, runtime


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(runtime.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_says_what_is_left(clock, capsys) -> None:
    with runtime.progress_bar(100, True, "fit") as bar:
        for _ in range(60):
            clock[0] += 1.0
            bar.set_postfix_str("loss 1.234")
            bar.update()
    out, lines = capsys.readouterr()
    assert out == ""
    assert lines.splitlines()[0] == "fit: 10%, 0:10, 1:30 left; loss 1.234"
    assert [line.split()[1] for line in lines.splitlines()] == [f"{p}%," for p in range(10, 70, 10)]


def test_without_progress_there_is_no_word(clock, capsys) -> None:
    with runtime.progress_bar(10, False) as bar:
        clock[0] += 100.0
        bar.update(10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_ensemble_has_one_progress_with_stages(jobs: int, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(runtime, "SECONDS", 0.0)  # a line at every update
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).numpy()
    members = [Member("mixed", steps=60, hidden=(8,), trees=0, gaussians=0), Member("copula", "marginal")]
    model = FlowDensity(members=members, effort="fast", random_state=0, n_jobs=jobs, progress=True).fit(x)
    lines = capsys.readouterr().err.splitlines()
    shares = [int(re.match(r"fit: +(\d+)%", line)[1]) for line in lines]  # type: ignore[index]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert any("member 1 of 2 (mixed), fold 3 of 3" in line for line in lines)
    model.sample(50, random_state=0)
    assert capsys.readouterr().err.splitlines()[-1].startswith("sample: 1")


def test_fit_writes_lines(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(runtime, "SECONDS", 0.0)
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    flowlab.fit(flowlab.presets.real_nvp(2, layers=2, hidden=(8,)), x, epochs=2)
    assert "validation" in capsys.readouterr().err
