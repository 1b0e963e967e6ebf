"""Faults of the machine or of a network, which say nothing of an image.

Where memory or file descriptors are short for a moment, or a network file system fails, a sound
image cannot be read. It is neither damaged nor left out of an index for that: what was asked for is
tried again, and where it fails on, the error ends what was begun. An error of the disk (EIO), which
soft mounts of network file systems give too, is tried again and is the file's own then.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import numpy as np

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NUMBERS = {
    *(errno.EINTR, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
    *(errno.ESTALE, errno.ENOLCK, errno.ENOTCONN, errno.ESHUTDOWN, errno.EREMOTEIO),
    *(errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EKEYEXPIRED),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
}
_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds
_OF_DISKS = (0.2,)  # the same after EIO: of a bad sector it comes each time
_TIRED = 60.0  # seconds, after a fault that lasted, in which no other is waited for
_ENOUGH = 1 << 28  # bytes: who finds no memory while there are as many asked for too much
_tired_until = -math.inf


class Unreadable(OSError):
    """An object that cannot be read: gone, changed, refused, or failing in spite of retries."""


def is_trouble(error: BaseException, needed: int = _ENOUGH) -> bool:
    """Whether an error is a fault of the machine or of a network.

    Args:
        error: one of memory is one where there is none; damaged files ask for more than that.
        needed: bytes that what was read may take.
    """
    if isinstance(error, MemoryError):
        return lacks_memory(needed)
    return isinstance(error, Unreadable) or getattr(error, "errno", None) in _NUMBERS


def lacks_memory(count: int) -> bool:
    """Whether this many bytes cannot be had."""
    try:
        np.empty(count, np.uint8)
    except MemoryError:
        return True
    return False


def raise_trouble(error: BaseException, path: str = "", needed: int = _ENOUGH) -> None:
    """Raises an error again that is a fault of the machine or of a network; others say something
    of what was read.

    Args:
        error, needed: as of :func:`is_trouble`.
        path: of the image, which an error of memory does not name; "" where it is not known.
    """
    if not is_trouble(error, needed):
        return
    if path and isinstance(error, MemoryError):
        raise MemoryError(f"{path}: {str(error) or type(error).__name__}") from error
    raise error


def patiently(call: Callable[..., T], *arguments: Any) -> T:
    """What a call returns, which is made again for some seconds where the machine has no memory or
    no descriptors for it, or a file system fails. `Unreadable` is raised at once: who raises it has
    tried again. Where a fault of the machine lasts, others are not waited for in the next minute.

    Raises:
        MemoryError, OSError: the last fault; or any other error of the call, at once.
    """
    global _tired_until
    waits = iter(() if time.monotonic() < _tired_until else _WAITS)
    of_disks = iter(_OF_DISKS)
    while True:
        try:
            return call(*arguments)
        except (MemoryError, OSError) as error:
            number = getattr(error, "errno", None)
            if not (isinstance(error, MemoryError) or number in _NUMBERS or number == errno.EIO):
                raise
            wait = next(of_disks if number == errno.EIO else waits, None)
            if wait is None:
                if number in _NUMBERS:
                    _tired_until = time.monotonic() + _TIRED
                raise
            _tell(getattr(error, "strerror", None) or type(error).__name__)
        time.sleep(wait)


def expect_read(file: object) -> None:
    """Raises the fault that reading a remote file ended with before, which libraries that find
    their way in damaged files take for the end of one."""
    fault = getattr(file, "fault", None)
    if fault is not None:
        raise fault


@cache
def _tell(reason: str) -> None:
    logger.warning("an image cannot be read just now (%s): trying again (said once)", reason)
