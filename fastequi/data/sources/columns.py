"""The rows of an index as columns: a hundred million images are a few arrays and one blob."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from fastequi.data.sources.listing import Archive
from fastequi.data.sources.texts import Names, Texts

_CHUNK = 1 << 14  # rows that are made at once
_DIGITS = 16
_MORE = ("sha256", "spans", "of", "kinds")  # columns that may be missing


class Row(NamedTuple):
    """One image: relative name, encoded bytes, upright size in pixels, the first 16 hexadecimal
    digits of its SHA-256 ("" if it was never decoded), its first byte within its shard, and what
    its values are (`fastequi.data.sources.kinds`; 0: not known)."""

    name: str
    bytes: int
    height: int
    width: int
    sha256: str = ""
    offset: int | None = None
    kind: int = 0


@dataclass(frozen=True, eq=False)
class Columns:
    """Images as arrays, which may be pages of a mapped file.

    Attributes:
        names: [n].
        bytes: [n] int64, encoded.
        sizes: [n, 2] int32, upright height and width in pixels.
        sha256: [n] uint64, the first 8 bytes of each image's; 0 or None: never decoded.
        spans: [n, 2] int64, of members: first byte within the shard, and bytes.
        of: [n] int32, of members: the number of the shard.
        kinds: [n] uint16, what the values are (`fastequi.data.sources.kinds`); None: not known.
    """

    names: Texts
    bytes: NDArray[np.int64]
    sizes: NDArray[np.int32]
    sha256: NDArray[np.uint64] | None = None
    spans: NDArray[np.int64] | None = None
    of: NDArray[np.int32] | None = None
    kinds: NDArray[np.uint16] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of_rows(cls, rows: Iterable[Row], archives: Sequence[Archive], first: int = 0) -> Columns:
        """The columns of some rows.

        Args:
            rows: sorted; members shard by shard.
            archives: the shards; empty for files.
            first: number of the shard before which no member's lies.
        """
        every = list(rows)
        names = Names.of(row.name for row in every)
        counts = np.array([row.bytes for row in every], np.int64)
        sizes = np.array([row[2:4] for row in every], np.int32).reshape(-1, 2)
        digests = np.array([int(row.sha256 or "0", 16) for row in every], np.uint64)
        kinds = np.array([row.kind for row in every], np.uint16)
        if not archives:
            return cls(names, counts, sizes, digests, kinds=kinds)
        starts = np.array([row.offset or 0 for row in every], np.int64)
        of = np.fromiter(_numbers((row.name for row in every), archives, first), np.int32)
        return cls(names, counts, sizes, digests, np.stack([starts, counts], 1), of, kinds)

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """The images of several, at least one, which have the same columns."""
        names = Names.joined([Names.of(part.names) for part in parts])
        counts, sizes = (np.concatenate([getattr(p, c) for p in parts]) for c in ("bytes", "sizes"))
        more: list[Any] = []
        for column in _MORE:
            arrays = [getattr(part, column) for part in parts]
            more.append(None if arrays[0] is None else np.concatenate(arrays))
        return cls(names, counts, sizes, *more)

    @property
    def more(self) -> tuple[NDArray[Any] | None, ...]:
        """The columns that may be missing."""
        return tuple(getattr(self, name) for name in _MORE)

    def take(self, places: NDArray[np.int64]) -> Columns:
        """The images at these places."""
        chosen: list[Any] = [None if column is None else column[places] for column in self.more]
        return Columns(self.names.take(places), self.bytes[places], self.sizes[places], *chosen)

    def rows(self, start: int, stop: int) -> list[Row]:
        """The images from one place to before another, as rows."""
        part = slice(start, stop)
        names, counts = self.names.between(start, stop), self.bytes[part].tolist()
        heights, widths = self.sizes[part].T.tolist()
        digests = [0] * len(names) if self.sha256 is None else self.sha256[part].tolist()
        hexed = [f"{digest:0{_DIGITS}x}" if digest else "" for digest in digests]
        starts = [None] * len(names) if self.spans is None else self.spans[part, 0].tolist()
        kinds = [0] * len(names) if self.kinds is None else self.kinds[part].tolist()
        return list(map(Row, names, counts, heights, widths, hexed, starts, kinds))


class Rows(Sequence[Row]):
    """The rows of columns, made when they are asked for."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[Row]: ...
    def __getitem__(self, key: int | slice) -> Row | Sequence[Row]:
        if isinstance(key, slice):
            return Rows(self.columns.take(np.arange(*key.indices(len(self)))))
        if not -len(self) <= key < len(self):
            raise IndexError(f"expected a row below {len(self)}, got {key}")
        return self.columns.rows(key % len(self), key % len(self) + 1)[0]

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _CHUNK):
            yield from self.columns.rows(start, min(start + _CHUNK, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def in_parts(columns: Columns) -> Iterator[Columns]:
    """Columns, some thousand images at a time."""
    for start in range(0, len(columns), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(columns)))
        cut: list[Any] = [None if column is None else column[part] for column in columns.more]
        yield Columns(columns.names[part], columns.bytes[part], columns.sizes[part], *cut)


def of_many(rows: Iterable[Row], archives: Sequence[Archive]) -> Iterator[Columns]:
    """The columns of rows that are read once, some thousand at a time."""
    found, first = iter(rows), 0
    while part := list(islice(found, _CHUNK)):
        columns = Columns.of_rows(part, archives, first)
        first = 0 if columns.of is None else int(columns.of[-1])
        yield columns


def _numbers(names: Iterable[str], archives: Sequence[Archive], first: int) -> Iterator[int]:
    """The shard of each member: names are sorted shard by shard, as the archives are.

    Raises:
        ValueError: a member of none of them, or not in their order.
    """
    number = first
    for name in names:
        while not name.startswith(f"{archives[number].name}/"):
            number += 1
            if number == len(archives):
                raise ValueError(f"{name} is in none of the shards, or not in their order")
        yield number
