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

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NUMBERS = {
    *(errno.EINTR, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
    *(errno.ESTALE, errno.ENOLCK, errno.ENOTCONN, errno.ESHUTDOWN, errno.EREMOTEIO),
    *(errno.ETIMEDOUT, errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EKEYEXPIRED),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET),
}
_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds
_TIRED = 60.0  # seconds, after all of them, in which nothing else is waited for
_tired_until = -math.inf


class Unreadable(OSError):
    """An object that cannot be read: gone, changed, refused, or failing in spite of retries."""


def is_trouble(error: BaseException) -> bool:
    """Whether an error is a fault of the machine or of a network."""
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    return isinstance(error, MemoryError | Unreadable)


def raise_trouble(error: BaseException) -> None:
    """Raises an error again that is a fault of the machine or of a network; others say something
    of what was read."""
    if is_trouble(error):
        raise error


def patiently(call: Callable[..., T], *arguments: Any, path: str = "") -> T:
    """What a call returns, which is made again for some seconds where the machine has no memory or
    no descriptors for it, or a file system fails. `Unreadable` is raised at once: who raises it has
    tried again. Where all waiting was for nothing, other calls do not wait for a minute.

    Args:
        call: made with the arguments.
        path: of the image, which an error of memory does not name; "" where it is not known.

    Raises:
        MemoryError, OSError: the last fault; or any other error of the call, at once.
    """
    global _tired_until
    for wait in () if time.monotonic() < _tired_until else _WAITS:
        try:
            return call(*arguments)
        except (MemoryError, OSError) as error:
            if not _may_pass(error):
                raise
            _tell(getattr(error, "strerror", None) or type(error).__name__)
        time.sleep(wait)
    try:
        return call(*arguments)
    except (MemoryError, OSError) as error:
        if _may_pass(error):
            _tired_until = time.monotonic() + _TIRED
        if not path or not isinstance(error, MemoryError):
            raise
        raise MemoryError(f"{path}: {str(error) or type(error).__name__}") from error


def expect_read(file: object) -> None:
    """Raises the fault that reading a remote file ended with before, which libraries that find
    their way in damaged files take for the end of one."""
    fault = getattr(file, "fault", None)
    if fault is not None:
        raise fault


def _may_pass(error: MemoryError | OSError) -> bool:
    own = isinstance(error, OSError) and error.errno == errno.EIO
    return own or (is_trouble(error) and not isinstance(error, Unreadable))


@cache
def _tell(reason: str) -> None:
    logger.warning("an image cannot be read just now (%s): trying again (said once)", reason)
