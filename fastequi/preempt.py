"""When a run goes: asked by a signal, as schedulers do; or with torchrun, if that dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not a failure, to be run again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # the last is submitit's
_PR_SET_PDEATHSIG = 1  # of prctl(2)


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


def leave_with_launcher() -> None:
    """SIGTERM to this process if torchrun dies: it would go on beside the run that is started next.

    To be called early: a launcher that died before is told by its place being taken by init.

    Raises:
        RuntimeError: it has died already.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    launched = b"python" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    if os.getppid() == 1 and not launched:  # a launcher may be a container's first process
        raise RuntimeError("torchrun, which started this process, is gone")
