"""A lock on a run's folder, so that only one process group writes to it.

A scheduler may restart a run while the previous process is still saving; two of them in one folder
would overwrite each other's logs and checkpoints. The operating system holds the lock (flock) and
releases it when its process ends, however that happens, so nothing has to be cleaned up.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

NAME = ".lock"  # its text names the last holder; the lock itself is the kernel's
PATIENCE = 120.0  # seconds: the time that torchrun gives a run to save


@contextmanager
def alone(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Holds the folder's lock within the block.

    Args:
        folder: created if missing.
        patience: seconds to wait for another holder; the wait is logged once.

    Raises:
        BlockingIOError: another process still holds it; names its host and process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        message = f"--run-dir: {folder} cannot be written to ({error.strerror})"
        raise type(error)(error.errno, message) from error
    try:
        _take(descriptor, folder, patience)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path, patience: float) -> None:
    end, logged = time.monotonic() + patience, False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            if time.monotonic() >= end:
                raise BlockingIOError(
                    f"--run-dir: {folder} is in use by {holder}, expected a folder that no other "
                    f"run writes to; waited {patience:g} s for it"
                ) from None
            if not logged:
                logger.warning("%s is in use by %s: waiting", folder, holder)
                logged = True
            time.sleep(min(0.2, patience))
        except OSError as error:  # some network file systems have no locks
            logger.warning(
                "%s cannot be locked (%s): do not start a second run in it", folder, error
            )
            return
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
