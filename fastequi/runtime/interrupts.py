"""Ctrl-C at a command: once ends it (a run saves first), twice at once, whatever it is doing.

Python looks at signals between instructions of its own, and a KeyboardInterrupt that comes while it
collects garbage is lost. So a thread hears them, and ends the process: also where the main one
waits for another process, a disk or a compiler.
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

outlook: Callable[[], str] = str  # how what was stopped can go on; "" if there is nothing to say
_leaving = threading.RLock()  # so that only one says so


@contextmanager
def heard(whole: bool) -> Iterator[None]:
    """Within the block Ctrl-C ends the process with exit code 130 and one line.

    Another handler (`fastequi.runtime.preempt.PreemptionHandler`) keeps the first Ctrl-C;
    the second one ends the process. Where SIGINT was ignored before, it stays ignored.

    Args:
        whole: the block is all that the process does; what Ctrl-C then stops is its clearing up.
    """
    global outlook
    main = threading.current_thread() is threading.main_thread()  # others cannot listen
    if not main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    handler = signal.signal(signal.SIGINT, _came)
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    told = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(hears,), name="interrupts", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(told)
        signal.signal(signal.SIGINT, signal.SIG_DFL if whole else handler)
        os.close(tells)
        outlook = str


def last_word(told: str) -> None:
    """One line on how a command was stopped, and how it can go on."""
    if os.isatty(2):
        with suppress(OSError):
            os.write(2, b"\033[?25h")  # a progress bar hides the cursor
    after = outlook()
    say(f"{told}; {after}" if after else told)


def stop(told: str) -> NoReturn:
    """Ends the process now, with a last word."""
    with _leaving:
        last_word(told)
        os._exit(INTERRUPTED)


def _listen(hears: int) -> None:
    presses = Presses()
    while numbers := os.read(hears, 64):
        if any(presses.again(number) for number in numbers):
            stop("stopped at once")
        if signal.SIGINT in numbers and signal.getsignal(signal.SIGINT) is _came:
            stop("stopped")
    os.close(hears)


def _came(number: int, frame: FrameType | None) -> None:
    stop("stopped")
