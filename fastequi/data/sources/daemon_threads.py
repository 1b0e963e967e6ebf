"""A pool of threads that a process does not wait for when it ends.

Python's own pool joins its threads at exit, and works off all that was queued before: a run that
ends while a server hangs would wait for every image that was asked for ahead.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Jobs = SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]


class DaemonThreads:
    """At most `count` threads, started when there is work; they end when it is collected."""

    def __init__(self, count: int) -> None:
        self._left, self._lock = count, threading.Lock()
        self._jobs: _Jobs = SimpleQueue()
        weakref.finalize(self, _end, self._jobs, count).atexit = False

    def submit(self, job: Callable[..., T], *args: Any) -> Future[T]:
        """Its result, or what it raises; may be cancelled before it begins."""
        future: Future[T] = Future()
        self._jobs.put((future, job, args))
        with self._lock:
            start, self._left = self._left > 0, max(self._left - 1, 0)
        if start:
            threading.Thread(target=_work, args=(self._jobs,), daemon=True).start()
        return future


def _work(jobs: _Jobs) -> None:
    while (taken := jobs.get()) is not None:
        future, job, args = taken
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(job(*args))
            except BaseException as error:
                future.set_exception(error)
        del taken, future, job, args  # or the last job's owner would stay while this waits


def _end(jobs: _Jobs, count: int) -> None:
    for _ in range(count):
        jobs.put(None)
