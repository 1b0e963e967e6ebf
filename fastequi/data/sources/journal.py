"""What a scan has found so far: JSON lines that are appended as images are decoded.

A scan that was killed goes on behind the last counts of values (`fastequi.data.sources.measured`),
after it has made sure that the images before are as they were (name, bytes, time). The last line
of a finished journal says which part of which listing it is of. Journals are merged into an index
(`fastequi.data.sources.merge`).

    [name, bytes, mtime_ns, height, width, sha256, first byte in its shard, kind, format]
    [name, bytes, mtime_ns, reason]                              of an image that is left out
    {"values": {kind: counts}}            of the images before it, since the last such line
    {"fastequi scan": 2, "first": ..., ...}                      the end
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from fastequi.data.sources.columns import Row
from fastequi.data.sources.extras import readable_now
from fastequi.data.sources.index import stem
from fastequi.data.sources.listing import Archive, State
from fastequi.data.sources.measured import Counts

_VERSION = 3
_VALUES = "values"
_ENTRY, _LEFT_OUT = 9, 4  # values of a line


@dataclass(frozen=True)
class Share:
    """Part K of N of a set, counted from 1: a run of consecutive images, or of shards."""

    number: int = 1
    count: int = 1

    @classmethod
    def parsed(cls, text: str) -> Share:
        """From "3/8".

        Raises:
            ValueError: it is no such text.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        one = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= one.number <= one.count:
            raise ValueError(f"--part: expected K/N with 1 <= K <= N, such as 3/8, got {text}")
        return one

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, total: int) -> slice:
        """The places of this part."""
        return slice((self.number - 1) * total // self.count, self.number * total // self.count)

    def file(self, index: Path) -> Path:
        """Its journal, beside the index."""
        return index.with_name(f"{stem(index)}.part-{self.number}-of-{self.count}.jsonl")


@dataclass(frozen=True)
class End:
    """The last line of a finished journal.

    Attributes:
        share: which part of how many.
        unit: what was divided, "images" or "shards".
        first, stop, total: the units of this part, and the number of all.
        digest: of all units, alike in the parts of one set.
        images, name_bytes: of this part, and bytes of their names.
        formats: {name as of a header's format: images}.
        kinds: of the images' values (`fastequi.data.sources.kinds`), each once.
        archives: the shards of this part.
        left_out: {name: reason} of damage found while listing.
        passed_over: {kind: files}.
        pages: what those of a file are taken for, as a scan's --pages.
        part: what is taken of each file, as the end of a name (`fastequi.data.sources.parts`).
    """

    share: tuple[int, int]
    unit: str
    first: int
    stop: int
    total: int
    digest: str
    images: int = 0
    name_bytes: int = 0
    formats: Mapping[str, int] = field(default_factory=dict)
    kinds: tuple[int, ...] = ()
    archives: tuple[Archive, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)
    pages: str = "first"
    part: str = ""

    @property
    def words(self) -> str:
        return f"part {self.share[0]}/{self.share[1]}"


class Journal:
    """A journal to append to; one process at a time.

    Args:
        file: made unless it is there.

    Raises:
        BlockingIOError: another process scans the same part.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._opened: IO[bytes] = file.open("a+b")
        try:
            fcntl.flock(self._opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._opened.close()
            raise BlockingIOError(f"scan: another process is scanning it into {file}") from error
        except OSError:  # a file system without locks
            pass
        self.images = self.name_bytes = 0
        self.formats, self.kinds = Counter[str](), set[int]()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def resume(self, now: Iterable[tuple[str, State]]) -> int:
        """Keeps the lines of images that are as they were, up to the first that is not, or that was
        left out for a package that is there now.

        Args:
            now: name and state of the images of the listing, in order.

        Returns:
            How many images were scanned before; what is appended follows them.
        """
        done, kept, length = 0, 0, 0
        waiting: list[list[Any]] = []  # until their values follow
        states = iter(now)
        self._opened.seek(0)
        for line in self._opened:
            entry, length = _parsed(line), length + len(line)
            if isinstance(entry, dict) and _VALUES in entry:
                for one in waiting:
                    self._count(one)
                done, kept = done + len(waiting), length
                waiting.clear()
                continue
            name, state = next(states, ("", None))
            # others are the end, a torn line, or as an older version wrote them
            as_written = isinstance(entry, list) and len(entry) in (_ENTRY, _LEFT_OUT)
            if state is None or not as_written or entry[:3] != [name, *state]:
                break
            if len(entry) == _LEFT_OUT and readable_now({name: entry[-1]}):
                break
            waiting.append(entry)
        self._opened.truncate(kept)
        return done

    def add(
        self,
        entries: Iterable[tuple[State, Row | tuple[str, str], str]],
        values: Mapping[int, Counts],
    ) -> None:
        """Appends images: their states, their rows or (name, reason), their formats; and the counts
        of their values by kind."""
        for state, row, kind in entries:
            entry = [row[0], *state, *([*row[2:], kind] if isinstance(row, Row) else row[1:])]
            self._count(entry)
            self._opened.write(json.dumps(entry).encode("ascii") + b"\n")
        line = {_VALUES: {str(code): counts.to_json() for code, counts in sorted(values.items())}}
        self._opened.write(json.dumps(line).encode("ascii") + b"\n")
        self._opened.flush()

    def finish(self, end: End) -> None:
        """Appends the end, with the counts, and waits until all is on the disk."""
        counts = {
            "images": self.images,
            "name_bytes": self.name_bytes,
            "formats": dict(self.formats),
            "kinds": sorted(self.kinds),
        }
        line = {"fastequi scan": _VERSION, **asdict(end), **counts}
        self._opened.write(json.dumps(line).encode("ascii") + b"\n")
        self._opened.flush()
        os.fsync(self._opened.fileno())

    def _count(self, entry: list[Any]) -> None:
        if len(entry) == _ENTRY:
            self.images += 1
            self.name_bytes += len(entry[0].encode(errors="surrogateescape"))
            self.formats[entry[-1]] += 1
            self.kinds.add(entry[-2])


def rows_of(file: Path) -> Iterator[Row | tuple[str, str]]:
    """The images of a journal, or (name, reason)."""
    with file.open("rb") as lines:
        for line in lines:
            entry = _parsed(line)
            if isinstance(entry, dict):
                if _VALUES in entry:
                    continue
                return
            if not isinstance(entry, list):
                raise ValueError(f"merge: {file} is damaged: {line[:80]!r} is no image")
            name, count, _, *rest = entry
            yield Row(name, count, *rest[:-1]) if len(rest) > 1 else (name, rest[0])


def values_of(file: Path) -> Iterator[dict[int, Counts]]:
    """The counts of values in a journal, some images' at a time."""
    mark = f'{{"{_VALUES}"'.encode()
    with file.open("rb") as lines:
        for line in lines:
            if line.startswith(mark) and (entry := _parsed(line)) is not None:
                each = entry[_VALUES].items()
                yield {int(code): Counts.of_json(counts) for code, counts in each}


def end_of(file: Path) -> End | None:
    """The last line of a journal; None of one that is not finished.

    Raises:
        ValueError: it is of another version.
    """
    with file.open("rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        length = 1 << 12
        while True:  # the last line, however long
            opened.seek(max(0, size - length))
            tail = opened.read(length).rstrip(b"\n")
            if b"\n" in tail or length >= size:
                break
            length *= 4
    found = _parsed(tail.rpartition(b"\n")[2] + b"\n")
    if not isinstance(found, dict) or _VALUES in found:
        return None
    version = found.pop("fastequi scan", None)
    if version != _VERSION:
        raise ValueError(f"merge: {file} is of version {version}, expected {_VERSION}")
    found["archives"] = tuple(Archive(**entry) for entry in found["archives"])
    found["share"], found["kinds"] = tuple(found["share"]), tuple(found["kinds"])
    return End(**found)


def _parsed(line: bytes) -> Any:
    """A whole line; None of a torn one."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
