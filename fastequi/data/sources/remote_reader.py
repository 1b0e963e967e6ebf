"""Members of remote shards, read as byte ranges or from whole shards in a cache.

The bytes are the same either way; a shard that is being fetched is read by ranges until it is here.
Before a shard's first use, and every _CHECK_EVERY seconds of it, its size and version are compared
with those of the index; also when one of its requests fails, or one of its images to decode. A
shard that is gone, has changed, or cannot be read after all retries is lost: none of its images can
be read from then on, and the loader replaces all of them as it does damaged ones. What replaces an
image depends on which are lost alone, so ranks that know of a loss replace alike. A shard in the
cache is as it was listed, and its server is not asked again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fastequi.data.sources import pages, remote
from fastequi.data.sources.daemon_threads import DaemonThreads
from fastequi.data.sources.encoded import MAX_BYTES, Span
from fastequi.data.sources.encoded import read as read_file
from fastequi.data.sources.listing import Archive
from fastequi.data.sources.parts import WHOLE, FilePart
from fastequi.data.sources.ranged_file import RangedFile
from fastequi.data.sources.remote import Gone
from fastequi.data.sources.shard_cache import GB, ShardCache
from fastequi.data.sources.trouble import Unreadable

logger = logging.getLogger(__name__)

_CHECK_EVERY = 600.0  # seconds
_READERS = 16  # requests of images at a time that are made ahead
_FETCHERS = 4  # whole shards at a time
_BLOCK = 1 << 23  # bytes of a request for a whole shard
_HELD = 1 << 28  # bytes of members of which pages were read, or the last of them alone
_TURNS = 64  # locks; two members that share one are fetched one after the other
_BUSY = 0.1  # seconds until a shard that another process fetches is looked at again


def same(archive: Archive, now: remote.State) -> bool:
    """Whether an object is what was listed."""
    return (archive.bytes, archive.etag) == now


class RemoteShards:
    """The shards of a set, as they were listed.

    Args:
        root: the URL that their names are relative to.
        archives: the shards.
        cache: for whole shards, if any.

    Attributes:
        lost: {URL: reason} of the shards that cannot be used any more.
        requests: how many byte ranges were asked for.
    """

    def __init__(
        self, root: str, archives: Sequence[Archive], cache: ShardCache | None = None
    ) -> None:
        self._archives = {f"{root}/{archive.name}": archive for archive in archives}
        self.cache = cache
        self.lost: dict[str, str] = {}
        self.requests = 0
        self._lock = threading.Lock()
        self._checks: dict[str, threading.Lock] = {}
        self._checked: dict[str, float] = {}
        self._pool = DaemonThreads(_READERS)
        self._coming: dict[tuple[str, int], Future[NDArray[np.uint8]]] = {}
        self._held: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._turns = [threading.Lock() for _ in range(_TURNS)]
        self._dropped: set[str] = set()
        self._wanted: deque[str] = deque()
        self._fetching: set[str] = set()
        self._called = threading.Condition(self._lock)
        self._workers: list[threading.Thread] = []
        self._total = sum(archive.bytes for archive in archives)
        self._fits = cache is not None and self._total <= cache.capacity

    @property
    def total(self) -> int:
        """Bytes of all shards."""
        return self._total

    @property
    def count(self) -> int:
        """Of all shards."""
        return len(self._archives)

    def largest(self, count: int) -> int:
        """Bytes of the largest shards, so many of them."""
        return sum(sorted((one.bytes for one in self._archives.values()), reverse=True)[:count])

    def read(self, url: str, span: Span, part: FilePart = WHOLE) -> NDArray[np.uint8]:
        """The bytes of a member, or the .npy of a part of it.

        Of a shard in the cache a page is read alone, else with all of its member, of which the last
        ones are held.

        Raises:
            Unreadable: its shard is lost or unknown; OSError: the span is none of an image, or the
                page cannot be read.
        """
        with self._lock:
            coming = self._coming.pop((url, span[0]), None)
        if part != WHOLE:
            return self._part(url, span, part, coming)
        return self._member(url, span, coming)

    def member(self, url: str, span: Span) -> BinaryIO:
        """A member as a file, of which what is asked for is fetched."""
        first, count = span
        version = self._archives[url].etag

        def fetch(start: int, some: int) -> bytes:
            self.requests += 1
            return remote.read(url, first + start, some, version=version)

        return cast(BinaryIO, RangedFile(fetch, count))

    def file(self, url: str) -> RangedFile:
        """A shard as a file."""
        return RangedFile(partial(remote.read, url), self._archives[url].bytes)

    def ahead(self, places: Sequence[tuple[str, Span]]) -> None:
        """Begins to read members that will be read soon; what was begun and is not in it is let go.

        Those of shards that are here whole, or about to be, are left to their readers.
        """
        known = {(url, span[0]): span for url, span in places}
        with self._lock:
            for left in set(self._coming) - set(known):
                self._coming.pop(left).cancel()
            about = self._fetching.union(self._wanted)
            new = [(k, s) for k, s in known.items() if k not in self._coming and k[0] not in about]
        for (url, first), span in new:
            if url in self.lost or self._cached(url) is not None:
                continue
            future = self._pool.submit(self._read, url, span)
            with self._lock:
                self._coming[url, first] = future

    def want(self, urls: Iterable[str]) -> None:
        """Fetches shards into the cache, in this order and instead of what was wanted before."""
        if self.cache is None:
            return
        wanted = [url for url in urls if url in self._archives and url not in self.lost]
        with self._called:
            self._wanted = deque(url for url in wanted if url not in self._fetching)
            self._start()

    def why_lost(self, url: str) -> str:
        """Why no image of a shard can be read; "" if they can, as far as is known."""
        known = "" if url in self._archives else "its shard was gone when the run went on"
        return self.lost.get(url, known)

    def recheck(self, urls: Iterable[str]) -> None:
        """Compares shards with the index, as one of their images does not decode."""
        for url in set(urls) & set(self._archives):
            with suppress(Unreadable):  # it is lost, which is noted
                self._compare(url, remote.ONCE)

    def drop(self, urls: Iterable[str]) -> bool:
        """Removes shards from the cache, as one of their images does not decode: a disk may fail.

        Each once, or a damaged image would have its shard fetched again and again.

        Returns:
            Whether one was there, so that its images are worth another try.
        """
        found = False
        for url in set(urls) - self._dropped:
            path = self._cached(url)
            if path is not None:
                self._dropped.add(url)
                path.unlink(missing_ok=True)
                logger.warning("%s is removed from data.cache_dir: an image in it is damaged", url)
                found = True
        return found

    def _part(
        self, url: str, span: Span, part: FilePart, coming: Future[NDArray[np.uint8]] | None
    ) -> NDArray[np.uint8]:
        if why := self.why_lost(url):
            raise Unreadable(why)
        path = self._cached(url)
        if path is not None:
            with suppress(FileNotFoundError):  # removed just now
                return read_file(str(path), span, part)
        if part.page is None:  # nothing else is read of it
            return pages.of_bytes(self._member(url, span, coming).tobytes(), part)
        key = url, span[0]
        with self._turns[hash(key) % _TURNS]:
            with self._lock:
                held = self._held.get(key)
            if held is None:
                held = self._member(url, span, coming).tobytes()
            with self._lock:
                self._held[key] = held
                self._held.move_to_end(key)
                while len(self._held) > 1 and sum(map(len, self._held.values())) > _HELD:
                    self._held.popitem(last=False)
        return pages.of_bytes(held, part)

    def _member(
        self, url: str, span: Span, coming: Future[NDArray[np.uint8]] | None
    ) -> NDArray[np.uint8]:
        """All of a member, by what was begun ahead if that was not given up."""
        if coming is not None:
            with suppress(CancelledError):
                return coming.result()
        return self._read(url, span)

    def _read(self, url: str, span: Span) -> NDArray[np.uint8]:
        if why := self.why_lost(url):
            raise Unreadable(why)
        archive, (first, count) = self._archives[url], span
        if first + count > archive.bytes or not 0 < count <= MAX_BYTES:
            raise OSError(f"no span of an image: {count} bytes from {first} on")
        path = self._cached(url)
        if path is not None:
            try:
                return read_file(str(path), span)
            except OSError:  # removed just now, or the disk has a fault: by range then
                logger.debug("%s is read by ranges", url)
        if self._fits:
            self._add(url)
        self._expect_same(url)
        try:
            self.requests += 1
            check = partial(self._compare, url, remote.ONCE)
            data = remote.read(url, first, count, check, archive.etag)
        except Unreadable as error:
            self._compare(url, remote.ONCE)  # a change is a better reason than what came of it
            raise self._lose(url, str(error)) from None
        return np.frombuffer(bytearray(data), np.uint8)

    def _cached(self, url: str) -> Path | None:
        if self.cache is None or url not in self._archives:
            return None
        return self.cache.find(url, self._archives[url])

    def _expect_same(self, url: str) -> None:
        """Raises OSError if the shard is lost; compares it with the index where that is due."""
        with self._lock:
            check = self._checks.setdefault(url, threading.Lock())
        with check:  # the others wait for the first answer
            if url in self.lost:
                raise Unreadable(self.lost[url])
            if time.monotonic() - self._checked.get(url, -_CHECK_EVERY) >= _CHECK_EVERY:
                try:
                    self._compare(url, remote.PATIENCE)
                except Unreadable as error:
                    raise self._lose(url, str(error)) from None
                self._checked[url] = time.monotonic()
                if url in self.lost:
                    raise Unreadable(self.lost[url])

    def _compare(self, url: str, tries: remote.Patience) -> None:
        """Loses a shard that is gone or changed; what cannot be learnt now is left open.

        Raises:
            Unreadable: it is lost.
        """
        archive = self._archives[url]
        try:
            now = remote.state(url, tries)
            if not same(archive, now):  # one odd answer of a server in trouble is not enough
                now = remote.state(url, tries)
        except Gone as error:
            raise self._lose(url, str(error)) from None
        except Unreadable:
            if tries is remote.ONCE:
                return
            raise
        if not same(archive, now):
            was = f"{archive.bytes} bytes {archive.etag}", f"{now.bytes} bytes {now.etag}"
            raise self._lose(url, f"{url}: it changed since it was listed ({' -> '.join(was)})")

    def _lose(self, url: str, reason: str) -> Unreadable:
        with self._lock:
            new = url not in self.lost
            self.lost.setdefault(url, reason)
        if new:
            logger.warning("a shard is lost: %s", reason)
        return Unreadable(self.lost[url])

    def _add(self, url: str) -> None:
        with self._called:
            if url not in self._fetching and url not in self._wanted:
                self._wanted.append(url)
                self._start()

    def _start(self) -> None:
        while self._wanted and len(self._workers) < _FETCHERS:
            # daemons, so that a run never waits for a download when it ends
            self._workers.append(threading.Thread(target=self._work, daemon=True))
            self._workers[-1].start()
        self._called.notify_all()

    def _work(self) -> None:
        while True:
            with self._called:
                while not self._wanted:
                    self._called.wait()
                url = self._wanted.popleft()
                self._fetching.add(url)
            try:
                busy = self._fetch(url) is None
            except Unreadable:
                busy = False  # whoever reads it by ranges finds out whether it is lost
            except Exception as error:  # this thread is the only one that would say it
                busy = False
                logger.warning("%s is not kept in data.cache_dir: %s", url, error)
            with self._called:
                self._fetching.discard(url)
                if busy and url not in self._wanted:
                    self._wanted.append(url)
            if busy:
                time.sleep(_BUSY)

    def _fetch(self, url: str) -> bool | None:
        assert self.cache is not None
        archive = self._archives[url]

        def fill(file: BinaryIO) -> None:
            check = partial(self._compare, url, remote.ONCE)
            self._compare(url, remote.PATIENCE)
            for first in range(0, archive.bytes, _BLOCK):
                count = min(_BLOCK, archive.bytes - first)
                file.write(remote.read(url, first, count, check, archive.etag))
            self._compare(url, remote.PATIENCE)

        return self.cache.fetch(url, archive, fill)


def expect_room(shards: RemoteShards, window: int) -> None:
    """Raises ValueError unless a cache holds the window in use and the next one."""
    cache, both = shards.cache, min(2 * window, shards.count)
    if cache is not None and (needed := shards.largest(both)) > cache.capacity:
        raise ValueError(
            f"data.cache_gb: expected at least {needed / GB:.6g}, the {needed} bytes of the "
            f"largest {both} shards, two windows of data.window={window}; "
            f"got {cache.capacity / GB:.6g}"
        )
