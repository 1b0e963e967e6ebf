"""Ctrl-C at a command: once ends it (a run saves first), twice at once, whatever it is doing.

Python looks at signals between instructions of its own. A thread hears them while the others wait
for another process, a disk or a compiler.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from fastequi.preempt import INTERRUPTED, Presses, say

outlook: Callable[[], str] = str  # how what was stopped can go on; "" if there is nothing to say
_once = threading.Lock()  # taken by whoever has the last word


@contextmanager
def heard() -> Iterator[None]:
    """Within the block a second Ctrl-C ends the process with exit code 130 and one line."""
    global outlook
    if threading.current_thread() is not threading.main_thread():  # others cannot listen
        yield
        return
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    before = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(hears,), name="interrupts", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(tells)
        outlook = str
        if _once.locked():
            _once.release()


def _listen(hears: int) -> None:
    presses = Presses()
    while numbers := os.read(hears, 64):
        if any(map(presses.again, numbers)):
            last_word("stopped at once")
            os._exit(INTERRUPTED)
    os.close(hears)


def last_word(told: str) -> None:
    """One line on how a command was stopped, and how it can go on; the first call's alone."""
    if not _once.acquire(blocking=False):
        return
    if os.isatty(2):
        with suppress(OSError):
            os.write(2, b"\033[?25h")  # a progress bar hides the cursor
    after = outlook()
    say(f"{told}; {after}" if after else told)
