"""SIGTERM and SIGUSR1 ask a run to save and go: schedulers send them before they take a machine."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not a failure, to be run again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(Exception):
    """A run that was asked to stop and has saved; `--resume` goes on. Exit code 75."""


class Notice:
    """Within its block the signals set a flag, and nothing else, until the loop looks.

    Attributes:
        number: of the signal that came, or 0.
    """

    def __init__(self) -> None:
        self.number = 0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Notice:
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
            for number in SIGNALS:
                self.before[number] = signal.signal(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _came(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    @staticmethod
    def name(number: int) -> str:
        """Of a signal; "" for 0."""
        return signal.Signals(number).name if number else ""
