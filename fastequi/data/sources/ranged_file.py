"""A remote object as a file for tarfile: read on where that is cheaper than asking again.

To walk an archive is to read 512 bytes, skip a member, and so on. Of large members only these bytes
are asked for, with the beginning of the member behind them, where an image has its header. Of small
ones the skipped bytes cost less than another request, and the blocks grow until the archive is read
as a whole.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from fastequi.data.sources.trouble import Unreadable

LEAST = 1 << 17  # bytes of a request; the header of nearly every photograph ends before
MOST = 1 << 23


class RangedFile(io.RawIOBase):
    """A readable, seekable file of byte ranges.

    Args:
        fetch: gives the bytes of (first, count).
        size: of the object in bytes.

    Attributes:
        requests: how many were made.
        fault: the last error of one; a library that reads a damaged file to its end may hide it.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        super().__init__()
        self._fetch, self._size, self._at = fetch, size, 0
        self._first, self._data, self._block = 0, b"", LEAST
        self.requests = 0
        self.fault: Unreadable | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        found = self.span(self._at, self._size if size < 0 else size)
        self._at += len(found)
        return found

    def span(self, first: int, count: int) -> bytes:
        """At most `count` bytes from `first` on; fewer where the object ends."""
        end = min(first + count, self._size)
        if first >= end:
            return b""
        if not (self._first <= first and end <= self._first + len(self._data)):
            self._fill(first, end)
        return self._data[first - self._first : end - self._first]

    def known(self, first: int, count: int) -> bytes:
        """As many of these bytes, from the first on, as are here already."""
        if not self._first <= first < self._first + len(self._data):
            return b""
        return self._data[first - self._first :][:count]

    def _fill(self, first: int, end: int) -> None:
        skipped = first - (self._first + len(self._data))
        if self._data and -len(self._data) < skipped <= len(self._data):
            self._block = min(2 * self._block, MOST)
        elif self._data:
            self._block = max(self._block // 2, LEAST)
        count = min(max(end - first, self._block), self._size - first)
        try:
            data = self._fetch(first, count)
        except Unreadable as error:
            self.fault = error
            raise
        self._first, self._data = first, data
        self.requests += 1
