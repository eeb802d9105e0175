"""What the loop of `fit` is made of: the schedule, when to stop, the way back."""

import math

import pytest
import torch

import flowlab
from flowlab.bases import Gaussian
from flowlab.layers import LULinear
from flowlab.training import loop
from flowlab.training.history import History
from flowlab.training.optimizer import Optimizer
from flowlab.training.schedule import FIRST_CYCLE, Schedule, doubling_cycles


def test_cycles_double_and_a_short_rest_lengthens_the_last():
    assert doubling_cycles(10, 29) == [(0, 29)]
    assert doubling_cycles(10, 30) == [(0, 10), (10, 30)]
    assert doubling_cycles(10, 75) == [(0, 10), (10, 30), (30, 75)]


def test_restarts_warm_up_once_and_fall_in_every_cycle():
    schedule = Schedule("restarts", 3 * FIRST_CYCLE, warmup=50)
    assert [schedule.share(step) for step in (0, 24, 49)] == [0.02, 0.5, 1.0]
    assert schedule.share(FIRST_CYCLE - 1) < 1e-4
    assert schedule.share(FIRST_CYCLE) == 1.0
    assert schedule.share(2 * FIRST_CYCLE) == pytest.approx(0.5)
    assert schedule.ends == {FIRST_CYCLE: 0, 3 * FIRST_CYCLE: FIRST_CYCLE}


def test_warm_up_takes_a_tenth_at_most_and_only_plateau_halves():
    shares = {}
    for name in ("cosine", "plateau", "constant"):
        schedule = Schedule(name, 100, warmup=50)
        assert schedule.warmup == 10
        schedule.stalled(1, patience=6)
        schedule.stalled(2, patience=6)
        shares[name] = schedule.share(55)
    assert shares == {"cosine": pytest.approx(0.5), "plateau": 0.5, "constant": 1.0}


def evaluations(stopper: loop.EarlyStopping, schedule: Schedule, losses: list[float]) -> list[tuple[bool, bool]]:
    """Of each evaluation, one for a step: whether it was the best, and whether training stops."""
    found = []
    for step, loss in enumerate(losses, 1):
        best = stopper.update({"step": step, "validation": loss}, schedule)
        found.append((best, stopper.reason_to_stop(step, schedule) is not None))
    return found


def test_training_stops_when_patience_is_used():
    stopper = loop.EarlyStopping(patience=2, total=10)
    found = evaluations(stopper, Schedule("constant", 10, 0), [3.0, 2.0, 2.5, 1.0, 1.5, 1.5])
    assert found == [(True, False), (True, False), (False, False), (True, False), (False, False), (False, True)]
    assert (stopper.best, stopper.best_step) == (1.0, 4)


def test_losses_that_do_not_compare_never_stop_and_the_last_is_kept():
    stopper = loop.EarlyStopping(patience=1, total=10, compares=False)
    assert evaluations(stopper, Schedule("constant", 10, 0), [1.0, 2.0, 3.0]) == [(True, False)] * 3
    assert stopper.best_step == 3


def test_restarts_stop_after_a_cycle_without_improvement():
    schedule = Schedule("restarts", 7 * FIRST_CYCLE, 0)
    stopper = loop.EarlyStopping(patience=1, total=7 * FIRST_CYCLE)
    for step, loss, stops in ((FIRST_CYCLE, 1.0, False), (1000, 2.0, False), (3 * FIRST_CYCLE, 2.0, True)):
        stopper.update({"step": step, "validation": loss}, schedule)
        assert (stopper.reason_to_stop(step, schedule) is not None) == stops


def test_the_way_back_halves_the_learning_rate_and_gives_up_at_last():
    flow = flowlab.Flow(Gaussian(2), [LULinear(2)])
    optimizer = Optimizer(flow, 0.1, 0.0, 1.0, 0.9)
    rows = loop.Rows(torch.tensor([[0.0, 1.0], [1.0, 2.0], [1e6, 3.0]]), None, torch.ones(3))
    best = loop.RollBack(optimizer, rows)
    stopper, schedule = loop.EarlyStopping(1, 10), Schedule("constant", 10, 0)
    source = torch.Generator()
    state = loop.State(optimizer, schedule, stopper, best, History(), source, source, step=3)
    with torch.no_grad():
        optimizer.weights[0].fill_(math.nan)
    for times in range(1, loop.ROLL_BACKS + 1):
        best.roll_back(state)
        assert state.history.roll_backs == times
        assert optimizer.rate == 0.1 / 2**times
        assert torch.equal(optimizer.weights[0], best.weights[0])
    with pytest.raises(flowlab.TrainingError, match=r"1e[+]06 in column 0, training row 2"):
        best.roll_back(state)
    best.keep(state)
    assert state.history.best_step == 3
    optimizer.release()
