"""One seed, the same bits: in fresh processes, whatever the hash seed, in threads, forks and workers.

Costly cases are slow; tests of single fits in one process are beside what they test.
"""

import os
import pickle
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch

import flowlab
from benchmarks.faults import determinism
from flowlab import FlowDensity, Member
from flowlab.tables.ensemble import running
from helpers import ROOT, seeded

TOLERANCE = 1e-4  # relative, of what a fit leaves under another number of threads: sums are rounded in another order


@pytest.fixture(scope="module")
def model():
    return determinism.mixed_model()


def assert_equal(one, other):
    apart = determinism.differences(one, other)
    assert not {name: value for name, value in apart.items() if value}


@pytest.mark.slow
def test_a_flow_fitted_in_two_processes_is_the_same():
    one, other = (determinism.in_new_process(["flow and split"], hash_seed=seed) for seed in (1, 2))
    assert_equal(one, other)
    assert len(one) == 8
    assert all(bool(value) for name, value in one.items() if "global state" in name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(determinism.ACTIONS)[1:])
def test_everything_is_the_same_in_two_processes(name):
    one, other = (determinism.in_new_process([name], hash_seed=seed) for seed in (1, 2))
    assert_equal(one, other)
    assert all(bool(value) for key, value in one.items() if "global state" in key)
    if name == "command line":
        fields = determinism.fields_that_differ(
            *(found["command line: model file"].tobytes() for found in (one, other))
        )
        assert all("seconds" in field for field in fields), fields


@pytest.mark.slow
@pytest.mark.parametrize("name", determinism.QUICK)
def test_another_number_of_threads_changes_little(name):
    one, other = (determinism.in_new_process([name], threads=count) for count in (1, 2))
    assert max(determinism.differences(one, other).values()) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numeric table", "mixed table"])
def test_processes_of_an_ensemble_change_nothing(name):
    assert_equal(determinism.in_new_process([name], jobs=1), determinism.in_new_process([name], jobs=2))


def test_comparisons_see_differences():
    a = np.array([1.0, np.nan, 3.0])
    assert determinism.difference(a, a.copy()) == 0
    assert determinism.difference(a, a + np.array([0, 0, 0.4])) == pytest.approx(0.1, rel=0.1)
    assert determinism.difference(a, a[:2]) == np.inf
    assert determinism.difference(a, np.array([1.0, 2.0, 3.0])) == np.inf
    assert determinism.difference(np.array(["a"]), np.array(["b"])) == np.inf
    assert determinism.difference(np.array([0.0]), np.array([-0.0])) == 0
    for disturb in (lambda: torch.rand(1), lambda: np.random.rand(), random.random):
        with determinism.states_kept() as kept:
            disturb()
        assert sorted(kept.values()) == [False, True, True]
    for seed in (lambda: torch.manual_seed(0), lambda: np.random.seed(0), lambda: random.seed(0)):
        seed()


def test_public_verbs_leave_global_generators_alone(tmp_path):
    flow = flowlab.presets.real_nvp(2, layers=2, hidden=(8,), generator=seeded())
    x = flow.sample((40,), generator=seeded(1))
    with determinism.states_kept() as kept:
        flowlab.fit(flow, x, epochs=2, generator=seeded(2), progress=False)
        flow.log_prob(x), flow.to_noise(x), flow.from_noise(x), flow.to_normal(x, generator=seeded(3))
        flow.sample((3,), generator=seeded(4))
        flowlab.check_layer(flow)
        flowlab.check_flow(flow, draws=500)
        flowlab.save(flow, tmp_path / "f.flow")
        flowlab.load(tmp_path / "f.flow")
        pickle.loads(pickle.dumps(flow))
        flowlab.FlowMixture([flow, flow]).sample((3,), generator=seeded(5))
    assert all(kept.values()), kept


@pytest.mark.slow
def test_eight_threads_have_the_numbers_of_one(model):
    assert determinism.in_threads(model, count=8, calls=16) == 0


def test_eight_threads_score_and_draw_from_one_flow_as_one_does():
    flow = flowlab.presets.maf(4, layers=3, hidden=(32,), generator=seeded())
    x = torch.empty(500, 4).normal_(generator=seeded(1))

    def job(i):
        loss = -flow.log_prob(x).mean()  # each thread records a graph of its own
        grads = torch.autograd.grad(loss, list(flow.parameters()))
        return [*grads, loss.detach(), flow.sample((50,), generator=seeded(i))]

    serial = [job(i) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(serial, pool.map(job, range(24)), strict=True):
            assert all(map(torch.equal, one, other))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_forks_made_after_threads_have_the_same_numbers():
    program = """
import torch
from benchmarks.faults import determinism
torch.set_num_threads(2)
if __name__ == "__main__":
    model = determinism.mixed_model()
    a = torch.randn(1500, 1500); a @ a
    determinism.in_threads(model, 4, 8)
    print(determinism.in_forks(model))
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout.strip() == "0.0", done.stderr


@pytest.mark.slow
def test_joblib_workers_have_the_same_numbers(model):
    assert determinism.in_workers(model) == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_worker_is_an_error_that_says_what_to_do(monkeypatch):
    def run(task):
        """What workers get, by value."""
        os.kill(os.getpid(), signal.SIGKILL)

    members = [Member("autoregressive", "none", steps=30, hidden=(8,)), "copula"]
    x = determinism.numbers(100)
    with monkeypatch.context() as patch:
        patch.setattr(running, "run", run)
        with pytest.raises(RuntimeError, match=r"killed from outside.*n_jobs=1") as caught:
            FlowDensity(members=members, n_jobs=2, random_state=0).fit(x)
    assert isinstance(caught.value.__cause__, joblib.externals.loky.process_executor.BrokenProcessPool)
    # The next fit gets new workers, and the right numbers.
    one, two = (FlowDensity(members=members, n_jobs=jobs, random_state=0).fit(x) for jobs in (1, 2))
    assert np.array_equal(one.score_samples(x), two.score_samples(x))
