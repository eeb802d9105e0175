"""Threads: held where the work is small, and as they were afterwards."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: F401  # brings an OpenMP of its own
from threadpoolctl import threadpool_info, threadpool_limits

from flowlab.runtime import SHARED, threads, threads_for


def counts() -> list[int]:
    return [torch.get_num_threads(), *(library["num_threads"] for library in threadpool_info())]


@pytest.fixture(autouse=True)
def two() -> None:
    """Two threads of everything inside a test, what there was after it."""
    with threads(2), threadpool_limits(2):
        yield


def test_small_work_stays_on_one_thread_and_large_work_does_not():
    before = counts()
    assert set(before) == {2}
    with threads_for(SHARED - 1):
        assert set(counts()) == {1}
        with threads_for(10), threads(1):
            assert set(counts()) == {1}
        assert set(counts()) == {1}
        with threads_for(SHARED):
            assert set(counts()) == {1}
    assert counts() == before
    with threads_for(SHARED):
        assert counts() == before


def test_errors_leave_threads_as_they_were():
    before = counts()
    for hold in (lambda: threads_for(0), lambda: threads(1)):
        with pytest.raises(KeyError), hold():
            raise KeyError
        assert counts() == before


def test_blocks_in_many_threads_leave_threads_as_they_were():
    before = counts()

    def job(i: int) -> set[int]:
        with threads_for(1):
            time.sleep(0.002 * (i % 5))
            return {counts()[0]}

    with ThreadPoolExecutor(6) as pool:
        assert set().union(*pool.map(job, range(30))) == {1}
        later = list(pool.map(lambda _: (time.sleep(0.005), counts())[1], range(6)))
    assert {row[0] for row in later} == {2}
    assert counts() == before


def test_a_thread_that_first_meets_torch_inside_a_block_does_not_keep_one():
    found: list[int] = []

    def job() -> None:
        with threads(1):
            pass
        found.append(torch.get_num_threads())

    with threads(1):
        other = threading.Thread(target=job)
        other.start()
        other.join()
    assert found == [2]
    assert torch.get_num_threads() == 2
