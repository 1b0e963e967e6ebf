"""Ctrl-C during a command: the first one ends it (a run saves first), the second one at once.

Python handles signals between its own instructions only, and loses a KeyboardInterrupt raised
during garbage collection. So a thread reads the signals and ends the process, even while the main
thread waits for another process, a disk or a compiler.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from fastequi.runtime.preempt import INTERRUPTED, Presses, say

outlook: Callable[[], str] = str  # how to continue what was stopped; "" if there is no more to say
_leaving = threading.RLock()  # only one thread prints the last line


@contextmanager
def heard(whole: bool) -> Iterator[None]:
    """Within the block Ctrl-C ends the process with exit code 130 and one line.

    Another handler (`fastequi.runtime.preempt.PreemptionHandler`) keeps the first Ctrl-C;
    the second one ends the process. Where SIGINT was ignored before, it stays ignored.

    Args:
        whole: the process ends after the block; Ctrl-C then has the system's default effect.
    """
    global outlook
    main = threading.current_thread() is threading.main_thread()  # only it can set handlers
    if not main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    handler = signal.signal(signal.SIGINT, _came)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(reader,), name="interrupts", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGINT, signal.SIG_DFL if whole else handler)
        os.close(writer)
        outlook = str


def last_word(message: str) -> None:
    """Prints one line: how a command was stopped, and how to continue."""
    if os.isatty(2):
        with suppress(OSError):
            os.write(2, b"\033[?25h")  # a progress bar hides the cursor
    after = outlook()
    say(f"{message}; {after}" if after else message)


def stop(message: str) -> NoReturn:
    """Ends the process now, after printing the last line."""
    with _leaving:
        last_word(message)
        os._exit(INTERRUPTED)


def _listen(reader: int) -> None:
    presses = Presses()
    while numbers := os.read(reader, 64):
        if any(presses.again(number) for number in numbers):
            stop("stopped at once")
        if signal.SIGINT in numbers and signal.getsignal(signal.SIGINT) is _came:
            stop("stopped")
    os.close(reader)


def _came(number: int, frame: FrameType | None) -> None:
    stop("stopped")
