"""A member of a tar shard as a file of its own: of a large stack one page is read, not all."""

from __future__ import annotations

import io
import os
import stat
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from typing_extensions import Buffer


def opened_span(file: str, span: tuple[int, int] | None) -> BinaryIO:
    """A file, or a span of one: its first byte and number of bytes.

    Raises:
        OSError: it cannot be opened, is no regular file, or is empty.
    """
    if span is None:
        return _regular(file)
    return cast(BinaryIO, io.BufferedReader(MemberFile(file, *span)))


def _regular(file: str) -> BinaryIO:
    opened = open(file, "rb", opener=_without_waiting)  # noqa: SIM115
    status = os.fstat(opened.fileno())
    if not stat.S_ISREG(status.st_mode):
        opened.close()
        raise OSError("not a regular file")
    if not status.st_size:
        opened.close()
        raise OSError("empty file")
    return opened


def _without_waiting(file: str, flags: int) -> int:
    """For a writer of a pipe."""
    return os.open(file, flags | os.O_NONBLOCK)


class MemberFile(io.RawIOBase):
    """See the module.

    Args:
        file: the shard.
        first, count: the member's first byte in it, and its number of bytes.

    Attributes:
        name: for libraries that ask for one; no file of that name is there.
    """

    def __init__(self, file: str, first: int, count: int) -> None:
        super().__init__()
        self._descriptor = os.open(file, os.O_RDONLY)
        self._first, self._count, self._at = first, count, 0
        self.name = f"{file}, {count} bytes from {first} on"

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._count}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        room = memoryview(buffer)[: max(self._count - self._at, 0)]
        got = os.preadv(self._descriptor, [room], self._first + self._at)
        self._at += got
        return got

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()
