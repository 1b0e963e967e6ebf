"""Faults of the machine or of a network, which say nothing of an image.

Where memory or file descriptors are short for a moment, or a network file system fails, a sound
image cannot be read. It is neither damaged nor left out of an index for that: what was asked for is
tried again, and where it fails on, the error ends what was begun.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NUMBERS = {
    *(errno.EINTR, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
    *(errno.ESTALE, errno.ENOLCK, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
}
_WAITS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds


class Unreadable(OSError):
    """An object that cannot be read: gone, changed, refused, or failing in spite of retries."""


def is_trouble(error: BaseException) -> bool:
    """Whether an error is a fault of the machine or of a network."""
    if isinstance(error, OSError) and error.errno in _NUMBERS:
        return True
    return isinstance(error, MemoryError | Unreadable)


def patiently(call: Callable[..., T], *arguments: Any, path: str = "") -> T:
    """What a call returns, which is made again for some seconds where the machine has no memory or
    no descriptors for it, or a network file system fails; of other networks it was made again.

    Args:
        call: made with the arguments.
        path: of the image, which an error of memory does not name; "" where it is not known.

    Raises:
        MemoryError, OSError: the last fault; or any other error of the call, at once.
    """
    for wait in _WAITS:
        try:
            return call(*arguments)
        except (MemoryError, OSError) as error:
            if isinstance(error, Unreadable) or not is_trouble(error):
                raise
            _tell(getattr(error, "strerror", None) or type(error).__name__)
        time.sleep(wait)
    try:
        return call(*arguments)
    except MemoryError as error:
        if not path:
            raise
        raise MemoryError(f"{path}: {str(error) or type(error).__name__}") from error


def expect_read(file: object) -> None:
    """Raises the fault that reading a remote file ended with before, which libraries that find
    their way in damaged files take for the end of one."""
    fault = getattr(file, "fault", None)
    if fault is not None:
        raise fault


@cache
def _tell(reason: str) -> None:
    logger.warning("an image cannot be read just now (%s): trying again (said once)", reason)
