"""A run's folder belongs to one run at a time.

A scheduler may start a run again while the one before still saves; two of them in one folder would
write over each other's logs and checkpoints. The lock is the kernel's (flock): it goes with its
process, however that ends, and needs no cleaning up.
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

NAME = ".lock"  # holds who took it last; whether it is taken, only the kernel knows
PATIENCE = 120.0  # seconds: what torchrun gives a run to save


@contextmanager
def alone(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Within the block no other process is in a block of the same folder.

    Args:
        folder: created.
        patience: how many seconds to wait for another one to leave; it is said once.

    Raises:
        BlockingIOError: another one is still there; names its host and process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        told = f"--run-dir: {folder} cannot be written to ({error.strerror})"
        raise type(error)(error.errno, told) from error
    try:
        _take(descriptor, folder, patience)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path, patience: float) -> None:
    end, said = time.monotonic() + patience, False
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
            if not said:
                logger.warning("%s is in use by %s: waiting", folder, holder)
                said = True
            time.sleep(min(0.2, patience))
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s): start no second run there", folder, error)
            return
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
