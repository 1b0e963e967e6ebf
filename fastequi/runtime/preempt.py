"""Preemption: a run that receives a signal saves and exits; one whose torchrun dies exits too.

Schedulers send the signals, or a user presses Ctrl-C. A second Ctrl-C stops without saving.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: no failure, run it again
INTERRUPTED = 128 + signal.SIGINT  # the shells' exit code after Ctrl-C
SIGNALS = (  # SIGUSR2 is submitit's
    *(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGINT, signal.SIGHUP),
)
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)  # ignored in the background, and under nohup
_LAUNCHER = "TORCHELASTIC_RUN_ID"  # in the environment of processes that torchrun starts
_PR_SET_PDEATHSIG = 1  # of prctl(2)


class Preempted(Exception):
    """Raised by a run that has saved and stopped because of a signal.

    Attributes:
        exit_code: 75; 130 after Ctrl-C.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.exit_code = INTERRUPTED if number == signal.SIGINT else EXIT_CODE


class Presses:
    """Distinguishes a second Ctrl-C from a first one that is delivered twice.

    A key press reaches all processes of a terminal, and a launcher's processes once more through
    the launcher. torchrun forwards the first one as SIGINT, the second one as SIGTERM.
    """

    def __init__(self) -> None:
        self.near = 0.5 if _LAUNCHER in os.environ else 0.05  # seconds between those of one press
        self.first: float | None = None

    def again(self, number: int) -> bool:
        """Whether this signal belongs to a second key press."""
        now = time.monotonic()
        if self.first is None:
            self.first = now if number == signal.SIGINT else None
            return False
        return number in (signal.SIGINT, signal.SIGTERM) and now - self.first > self.near


class PreemptionHandler:
    """Within its block the first signal only sets `number`, which the loop reads after each step.

    A second Ctrl-C raises KeyboardInterrupt. SIGINT and SIGHUP stay ignored if they were ignored
    before.

    Args:
        first: whether this process prints that it is about to save.

    Attributes:
        number: of the first signal received, or 0.
    """

    def __init__(self, first: bool = True) -> None:
        self.number, self.first, self.presses = 0, first, Presses()
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> PreemptionHandler:
        if threading.current_thread() is threading.main_thread():  # only it can have handlers
            for number in SIGNALS:
                if number in _OF_TERMINALS and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self.before[number] = signal.signal(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self.presses.again(number):
            raise KeyboardInterrupt
        if not self.number and number == signal.SIGINT and self.first:
            say("saving after this step; Ctrl-C again stops at once")
        self.number = self.number or number

    @staticmethod
    def name(number: int) -> str:
        """The name of a signal; "" for 0."""
        return signal.Signals(number).name if number else ""


def say(message: str) -> None:
    """Writes a line to standard error; safe in a signal handler."""
    begin = "\n" if os.isatty(2) else ""  # a terminal shows ^C on its line
    with suppress(OSError):  # standard error is closed
        os.write(2, f"{begin}fastequi: {message}\n".encode())


def leave_with_launcher() -> None:
    """Has this process receive SIGTERM if torchrun dies, so that it cannot run beside a restart.

    Call it early: a launcher that died before is recognised by init having become the parent.

    Raises:
        RuntimeError: the launcher has died already.
    """
    if _LAUNCHER not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    launched = b"python" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    if os.getppid() == 1 and not launched:  # in a container the launcher itself may be process 1
        raise RuntimeError("torchrun, which started this process, is gone")
