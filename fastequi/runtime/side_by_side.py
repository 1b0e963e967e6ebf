"""Independent jobs side by side on a CPU, each with its share of the threads.

Small networks are fitted by thousands of matrix products of less than a millisecond. Two threads in
each of them meet at as many barriers, and wait there for the slower one. On two quiet cores the
four probes of a row of the demo took 2.1 s one after the other, each with both threads, and 1.4 s
two at once; on cores that others use as well the difference is larger.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")

_this_thread = threading.local()


def side_by_side(jobs: Sequence[Callable[[], T]], device: torch.device) -> list[T]:
    """What the jobs return, in their order; on a GPU they run one after the other.

    torch's number of threads is split among as many jobs as there are threads, at most, and is
    afterwards as it was. If one fails, or at Ctrl-C, the others end where they next ask
    :func:`expect_wanted`.

    Args:
        jobs: they share no random generator and write nothing that another one reads.
        device: that their tensors are on.
    """
    threads = torch.get_num_threads()
    workers = min(len(jobs), threads)
    if workers < 2 or device.type != "cpu":
        return [job() for job in jobs]
    each, stopped = threads // workers, threading.Event()

    def begin() -> None:
        torch.set_num_threads(each)  # of this thread, and of new ones
        _this_thread.stopped = stopped

    try:
        with ThreadPoolExecutor(workers, initializer=begin) as pool:
            waiting = [pool.submit(job) for job in jobs]
            try:
                return [_result(one) for one in waiting]
            except BaseException:
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(threads)


def _result(one: Future[T]) -> T:
    """Of a job that is waited for in steps: the kernel may tell another thread of Ctrl-C, and this
    one, which has to act on it, would not wake."""
    while not wait([one], timeout=0.5).done:
        pass
    return one.result()


def expect_wanted() -> None:
    """Raises CancelledError in a job whose result nobody waits for any more."""
    stopped: threading.Event | None = getattr(_this_thread, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise CancelledError
