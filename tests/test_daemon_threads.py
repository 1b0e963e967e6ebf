"""A pool whose threads end with it, and never keep a process waiting."""

import gc
import threading
import time

import pytest

from fastequi.data.sources.daemon_threads import DaemonThreads


class Owner:
    def __init__(self):
        self.pool = DaemonThreads(3)

    def double(self, x):
        return 2 * x


def settled(count):
    end = time.monotonic() + 10
    while threading.active_count() > count:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_jobs_are_done_by_a_few_threads_that_end_with_their_owner():
    before = threading.active_count()
    owner = Owner()
    results = [owner.pool.submit(owner.double, i) for i in range(20)]
    assert [one.result() for one in results] == list(range(0, 40, 2))
    assert threading.active_count() <= before + 3
    del owner, results
    gc.collect()
    settled(before)


def test_what_a_job_raises_is_told_and_waiting_ones_are_cancelled():
    pool, held = DaemonThreads(1), threading.Event()
    first, second = pool.submit(held.wait), pool.submit(pytest.fail)
    assert second.cancel()
    held.set()
    assert first.result()
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda: 1 / 0).result()
    assert pool.submit(int, "3").result() == 3  # it goes on
