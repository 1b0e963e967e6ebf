"""Sequences of strings that are no Python objects until they are asked for.

The names of a hundred million images are one blob of bytes (`Names`), usually pages of a mapped
file; a choice of images is places in what it was chosen from (`Taken`). Each compares equal to a
tuple of the same strings. Those that are made by a rule: `fastequi.data.sources.made_texts`.
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CHUNK = 1 << 14  # strings that are made at once while iterating


class Texts(Sequence[str]):
    """An immutable sequence of strings; a slice is one too."""

    @abstractmethod
    def at(self, places: NDArray[np.int64]) -> list[str]:
        """The strings at these places, each 0 to the length less one."""

    @abstractmethod
    def take(self, places: ArrayLike) -> Texts:
        """A view of the strings at these places, in their order.

        Raises:
            IndexError: one is not within the length.
        """

    def between(self, start: int, stop: int) -> list[str]:
        """The strings from one place to before another."""
        return self.at(np.arange(start, stop))

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> Texts: ...
    def __getitem__(self, key: int | slice) -> str | Texts:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            cut = self._cut(start, max(start, stop)) if step == 1 else None
            return self.take(np.arange(start, stop, step)) if cut is None else cut
        return self.at(within([operator.index(key)], len(self)))[0]

    def _cut(self, start: int, stop: int) -> Texts | None:
        """A view without a table of places, where there can be one."""
        return None

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _CHUNK):
            yield from self.between(start, min(start + _CHUNK, len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) or not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.between(0, min(3, len(self)))))
        return f"{type(self).__name__}({len(self)}: {shown}{', ...' if len(self) > 3 else ''})"


class Names(Texts):
    """Strings in one blob of UTF-8, with surrogates for bytes that are none.

    Args:
        ends: [n] int64 where each ends in the blob.
        blob: bytes.
        first: where the first begins.
    """

    def __init__(self, ends: NDArray[np.int64], blob: NDArray[np.uint8], first: int = 0) -> None:
        self.ends, self.blob, self.first = ends, blob, first

    @classmethod
    def of(cls, strings: Iterable[str]) -> Names:
        """A blob of given strings; itself where they are one.

        Raises:
            UnicodeEncodeError: a string holds a surrogate that stands for no byte.
        """
        if isinstance(strings, Names):
            return strings
        grown = GrowingNames()
        for string in strings:
            grown.append(string)
        return grown.done()

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Names:
        """The strings of several, one after the other."""
        starts = np.cumsum([0, *(part.size for part in parts)])[:-1].tolist()
        pairs = list(zip(parts, starts, strict=True))
        ends = [part.ends - part.first + start for part, start in pairs]
        blobs = [part.blob[part.first : part.first + part.size] for part in parts]
        nothing = np.zeros(0, np.int64), np.zeros(0, np.uint8)
        return cls(np.concatenate([nothing[0], *ends]), np.concatenate([nothing[1], *blobs]))

    @property
    def size(self) -> int:
        """Bytes of all strings."""
        return int(self.ends[-1]) - self.first if len(self.ends) else 0

    def separated(self) -> bytes:
        """All strings, with a zero between two."""
        blob, ends = self.blob[self.first : self.first + self.size], self.ends[:-1] - self.first
        return np.insert(blob, ends, 0).tobytes()

    def __len__(self) -> int:
        return len(self.ends)

    def at(self, places: NDArray[np.int64]) -> list[str]:
        ends = self.ends[places].tolist()
        starts = np.where(places > 0, self.ends[places - 1], self.first).tolist()
        view = self.blob.data
        pairs = zip(starts, ends, strict=True)
        return [str(view[a:b], "utf-8", "surrogateescape") for a, b in pairs]

    def between(self, start: int, stop: int) -> list[str]:
        if stop <= start:
            return []
        first = int(self.ends[start - 1]) if start else self.first
        ends = (self.ends[start:stop] - first).tolist()
        raw = self.blob[first : first + ends[-1]].tobytes()
        pairs = zip([0, *ends], ends, strict=False)
        return [raw[a:b].decode("utf-8", "surrogateescape") for a, b in pairs]

    def take(self, places: ArrayLike) -> Texts:
        return Taken(self, within(places, len(self)))

    def _cut(self, start: int, stop: int) -> Texts:
        first = int(self.ends[start - 1]) if start else self.first
        return Names(self.ends[start:stop], self.blob, first)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names):
            return super().__eq__(other)
        if self is other:
            return True
        if len(self) != len(other) or self.size != other.size:
            return False
        step = 1 << 20  # the compared parts are the only memory it takes
        return all(
            np.array_equal(
                self.ends[i : i + step] - self.first, other.ends[i : i + step] - other.first
            )
            for i in range(0, len(self), step)
        ) and all(
            np.array_equal(
                self.blob[self.first + i : self.first + min(i + step, self.size)],
                other.blob[other.first + i : other.first + min(i + step, self.size)],
            )
            for i in range(0, self.size, step)
        )

    __hash__ = Texts.__hash__


class GrowingNames:
    """Strings that come one by one, kept as the bytes of a blob."""

    def __init__(self) -> None:
        self._ends, self._blob = array("q"), bytearray()

    def append(self, string: str) -> None:
        self._blob += string.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._blob))

    def __len__(self) -> int:
        return len(self._ends)

    def done(self) -> Names:
        """All of them; none can be added afterwards."""
        return Names(np.frombuffer(self._ends, np.int64), np.frombuffer(self._blob, np.uint8))


class Taken(Texts):
    """Some places of other strings."""

    def __init__(self, of: Texts, places: NDArray[np.int64]) -> None:
        self.of, self.places = of, places

    def __len__(self) -> int:
        return len(self.places)

    def at(self, places: NDArray[np.int64]) -> list[str]:
        return self.of.at(self.places[places])

    def take(self, places: ArrayLike) -> Texts:
        return Taken(self.of, self.places[within(places, len(self))])


def taken(strings: Sequence[str], places: NDArray[np.int64]) -> Sequence[str]:
    """Those at some places: a view, or a tuple of what are plain strings."""
    if isinstance(strings, Texts):
        return strings.take(places)
    return tuple(strings[i] for i in places.tolist())


def chunks(strings: Sequence[str], size: int = _CHUNK) -> Iterator[Sequence[str]]:
    """All strings in their order, a part at a time; of names a part is names."""
    for start in range(0, len(strings), size):
        stop = min(start + size, len(strings))
        if isinstance(strings, Texts) and not isinstance(strings, Names):
            yield strings.between(start, stop)
        else:
            yield strings[start:stop]


def within(places: ArrayLike, length: int) -> NDArray[np.int64]:
    """Places counted from the beginning.

    Raises:
        IndexError: one is outside the length.
    """
    chosen = np.asarray(places, np.int64).reshape(-1)
    if len(chosen) and (chosen.min() < -length or chosen.max() >= length):
        raise IndexError(f"expected places below {length}, got {chosen.min()} to {chosen.max()}")
    return np.where(chosen < 0, chosen + length, chosen) if (chosen < 0).any() else chosen
