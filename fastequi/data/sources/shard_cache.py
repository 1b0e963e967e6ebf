"""A bounded folder of whole remote shards on a local disk, shared by the processes of a machine.

A shard is written to a temporary file beside the others and renamed when it is complete; its name
holds the version that was listed, so that a changed shard is another file. What was not used for
longest is removed first, by times of use that we set ourselves (a file's time of access is often
not kept). A shard that is removed while another process reads it stays readable for that process.

Of processes that want one shard, one fetches it (flock, which ends with its holder, however that
happens). A temporary file belongs to whoever holds its lock: those of killed processes are removed
when room is next made. It has the shard's size from the beginning, which reserves its room.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastequi.data.sources.listing import Archive

logger = logging.getLogger(__name__)

GB = 10**9
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOCKS = 256  # files; two shards that share one are fetched one after the other
_USED_EVERY = 5.0  # seconds between writes of a shard's time of use
_PAUSE = 60.0  # seconds without another try after the disk was full


class ShardCache:
    """Whole shards in a folder.

    Args:
        folder: on a local disk; made if it is not there.
        capacity: bytes of all its shards, those that are being fetched among them.

    Raises:
        OSError: the folder cannot be written, or its file system has no locks.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        self.folder, self.capacity = folder, capacity
        self._used: dict[str, float] = {}
        self._paused, self._warned = -_PAUSE, False
        try:
            (folder / "locks").mkdir(parents=True, exist_ok=True)
            with self._locked("room"):
                pass
        except OSError as error:
            raise type(error)(
                error.errno,
                f"data.cache_dir: {folder} cannot be used ({error.strerror}); expected a folder on "
                f"a local disk",
            ) from error

    def find(self, url: str, archive: Archive) -> Path | None:
        """The file of a shard, which is thereby used; None if it is not here.

        It may be removed before it is opened: be ready for FileNotFoundError.
        """
        path = self._path(url, archive)
        try:
            size = path.stat().st_size
            if size != archive.bytes:  # it was damaged behind our back
                path.unlink(missing_ok=True)
                return None
            now = time.monotonic()
            if now - self._used.get(path.name, -_USED_EVERY) >= _USED_EVERY:
                self._used[path.name] = now
                os.utime(path)
        except OSError:
            return None
        return path

    def fetch(self, url: str, archive: Archive, fill: Callable[[BinaryIO], None]) -> bool | None:
        """Has a shard written here unless it is here already.

        Args:
            url, archive: the shard as it was listed.
            fill: writes all its bytes; what it raises leaves no trace here.

        Returns:
            True: it is here. False: there is no room, or none on the disk, which is logged once.
            None: another process or thread is fetching it.
        """
        if self.find(url, archive) is not None:
            return True
        if time.monotonic() - self._paused < _PAUSE:
            return False
        path = self._path(url, archive)
        number = int(path.name[:8], 16) % _LOCKS
        with self._locked(f"{number:03}", wait=False) as ours:
            if not ours:
                return None
            if self.find(url, archive) is not None:
                return True
            try:
                return self._written(path, archive.bytes, fill)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._pause(f"no space is left on the disk of {self.folder}")
                return False

    def _written(self, path: Path, size: int, fill: Callable[[BinaryIO], None]) -> bool:
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.part")
        with self._locked("room"):
            if not self._make_room(size):
                self._pause(f"{size / GB:.3g} GB find no room in {self.folder} (data.cache_gb)")
                return False
            file = temporary.open("xb")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(size)
        try:
            with file:
                fill(file)
                if file.tell() != size:
                    raise OSError(f"{file.tell()} bytes were written of {size}")
                file.flush()
                os.fdatasync(file.fileno())
                temporary.replace(path)  # while its lock is held: nobody takes it for left behind
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _make_room(self, size: int) -> bool:
        """Removes what was left behind, and what was used longest ago, until `size` fits."""
        total, shards = size, []
        for entry in os.scandir(self.folder):
            if not entry.name.endswith((".tar", ".part")):
                continue
            try:
                status = entry.stat()
            except FileNotFoundError:  # renamed or removed meanwhile
                continue
            if entry.name.endswith(".tar"):
                shards.append((status.st_mtime_ns, status.st_size, entry.path))
            elif _left_behind(entry.path):
                Path(entry.path).unlink(missing_ok=True)
                continue
            total += status.st_size
        for _, bytes_, path in sorted(shards):
            if total <= self.capacity:
                break
            Path(path).unlink(missing_ok=True)
            total -= bytes_
        return total <= self.capacity

    def _pause(self, why: str) -> None:
        self._paused = time.monotonic()
        if not self._warned:
            self._warned = True
            logger.warning("%s: what is not here is read by byte ranges, which is slower", why)

    def _path(self, url: str, archive: Archive) -> Path:
        known = f"{url}\0{archive.bytes}\0{archive.etag}"
        return self.folder / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.tar"

    @contextmanager
    def _locked(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Whether the lock was taken; each thread has a descriptor of its own."""
        descriptor = os.open(self.folder / "locks" / name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)


def _left_behind(path: str) -> bool:
    """Whether nobody writes a temporary file any more."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
