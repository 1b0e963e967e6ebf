"""Jobs side by side: results in order, threads restored, an error or Ctrl-C ends the others."""

import os
import signal
import threading
import time

import pytest
import torch

from fastequi.evaluate.probes import Fit, mlp_probe
from fastequi.runtime.side_by_side import expect_wanted, side_by_side

CPU = torch.device("cpu")


@pytest.fixture(params=[2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("jobs", [0, 1, 2, 3, 7])
def test_results_come_in_order_with_the_threads_split(jobs, threads):
    def job(i):
        time.sleep(0.01 * (jobs - i))  # the last ends first
        return i, torch.get_num_threads()

    found = side_by_side([lambda i=i: job(i) for i in range(jobs)], CPU)
    split = threads // min(jobs, threads) if jobs else None
    assert found == [(i, split) for i in range(jobs)]
    assert torch.get_num_threads() == threads


def test_two_run_at_once(threads):
    both = threading.Barrier(2, timeout=20)  # broken unless two wait at it
    assert len(side_by_side([both.wait, both.wait], CPU)) == 2


def test_on_a_gpu_they_run_in_turn_in_the_calling_thread(threads):
    found = side_by_side([threading.current_thread] * 3, torch.device("cuda"))
    assert found == [threading.current_thread()] * 3


def test_ctrl_c_is_noticed_where_another_thread_is_told_of_it(threads, with_handler):
    """As the kernel may do where the process was stopped and goes on."""

    def told():
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        endless()

    with pytest.raises(KeyboardInterrupt):
        side_by_side([told, endless], CPU)
    assert torch.get_num_threads() == threads


def endless():
    while True:
        expect_wanted()
        time.sleep(0.001)


def test_an_error_ends_the_others(threads):
    def fails():
        raise ValueError("x: expected better")

    with pytest.raises(ValueError, match="expected better"):
        side_by_side([fails, endless, endless, endless], CPU)
    assert torch.get_num_threads() == threads
    expect_wanted()  # says nothing outside


@pytest.fixture
def with_handler():
    """A job in the background has none, and Ctrl-C would never come."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_fit(threads, with_handler):
    x, y = torch.randn(400, 20), torch.randn(400, 1)
    sent = []

    def fit():
        if not sent:  # by the first one, so that it comes while they are waited for
            sent.append(threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)))
            sent[0].start()
        return mlp_probe(x, y, x, Fit(epochs=100_000, width=8, seeds=1))

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        side_by_side([fit] * 2, CPU)
    assert time.monotonic() - start < 60  # the fits would take many minutes
    assert torch.get_num_threads() == threads


def test_a_probe_is_the_same_beside_others(threads):
    x, y = torch.randn(300, 20), torch.randn(300, 2)
    fits = [Fit(epochs=2, width=32, seed=seed) for seed in range(3)]
    together = side_by_side([lambda f=f: mlp_probe(x, y, x[:50], f) for f in fits], CPU)
    torch.set_num_threads(threads // min(3, threads))
    for fit, found in zip(fits, together, strict=True):
        assert torch.equal(mlp_probe(x, y, x[:50], fit), found)
