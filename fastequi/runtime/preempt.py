"""When a run goes: asked by a signal, as schedulers and people do; or with torchrun, if that dies.

Once asked, it saves and goes. A second Ctrl-C does not wait for that.
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

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not a failure, to be run again
INTERRUPTED = 128 + signal.SIGINT  # what shells say of a program that Ctrl-C ended
SIGNALS = (  # SIGUSR2 is submitit's
    *(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
    *(signal.SIGINT, signal.SIGHUP),
)
_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)  # ignored in the background, and under nohup
_LAUNCHER = "TORCHELASTIC_RUN_ID"  # in the environment of what torchrun starts
_PR_SET_PDEATHSIG = 1  # of prctl(2)


class Preempted(Exception):
    """A run that was asked to stop, and has.

    Attributes:
        exit_code: 75; 130 if it was Ctrl-C.
    """

    def __init__(self, told: str, number: int = signal.SIGTERM) -> None:
        super().__init__(told)
        self.exit_code = INTERRUPTED if number == signal.SIGINT else EXIT_CODE


class Presses:
    """Tells a second Ctrl-C from the first one that comes twice.

    A key press reaches all processes of a terminal, and those of a launcher again through it.
    torchrun passes the first one on as SIGINT, the second one as SIGTERM.
    """

    def __init__(self) -> None:
        self.near = 0.5 if _LAUNCHER in os.environ else 0.05  # seconds between those of one press
        self.first: float | None = None

    def again(self, number: int) -> bool:
        """Whether this signal says so for the second time."""
        now = time.monotonic()
        if self.first is None:
            self.first = now if number == signal.SIGINT else None
            return False
        return number in (signal.SIGINT, signal.SIGTERM) and now - self.first > self.near


class PreemptionHandler:
    """Within its block the signals set a flag, and nothing else, until the loop looks.

    A second Ctrl-C raises KeyboardInterrupt. What a terminal does is ignored where it was before.

    Args:
        first: whether this process says that it has heard of the first one.

    Attributes:
        number: of the signal that came, or 0.
    """

    def __init__(self, first: bool = True) -> None:
        self.number, self.first, self.presses = 0, first, Presses()
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> PreemptionHandler:
        if threading.current_thread() is threading.main_thread():  # others cannot have handlers
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
        """Of a signal; "" for 0."""
        return signal.Signals(number).name if number else ""


def say(message: str) -> None:
    """A line to standard error, wherever a signal finds the process writing."""
    begin = "\n" if os.isatty(2) else ""  # beside the ^C that a terminal shows
    with suppress(OSError):  # nobody is there
        os.write(2, f"{begin}fastequi: {message}\n".encode())


def leave_with_launcher() -> None:
    """SIGTERM to this process if torchrun dies: it would go on beside the run that is started next.

    To be called early: a launcher that died before is told by its place being taken by init.

    Raises:
        RuntimeError: it has died already.
    """
    if _LAUNCHER not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    launched = b"python" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    if os.getppid() == 1 and not launched:  # a launcher may be a container's first process
        raise RuntimeError("torchrun, which started this process, is gone")
