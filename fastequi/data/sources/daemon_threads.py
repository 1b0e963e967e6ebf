"""A pool of threads that a process does not wait for when it ends.

Python's own pool joins its threads at exit, and works off all that was queued before: a run that
ends while a server hangs would wait for every image that was asked for ahead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """At most `count` threads, started when there is work."""

    def __init__(self, count: int) -> None:
        self._left, self._lock = count, threading.Lock()
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]]
        self._jobs = SimpleQueue()

    def submit(self, job: Callable[..., T], *args: Any) -> Future[T]:
        """Its result, or what it raises; may be cancelled before it begins."""
        future: Future[T] = Future()
        self._jobs.put((future, job, args))
        with self._lock:
            start, self._left = self._left > 0, max(self._left - 1, 0)
        if start:
            threading.Thread(target=self._work, daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            future, job, args = self._jobs.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job(*args))
            except BaseException as error:
                future.set_exception(error)
