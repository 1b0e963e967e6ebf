"""Strings by a rule: paths of names or of shards, others at a few places; and where strings are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastequi.data.sources.texts import Taken, Texts, taken, within

_CHUNK = 1 << 14  # strings that are compared at once


class Joined(Texts):
    """Paths: a folder and names relative to it."""

    def __init__(self, folder: str, names: Texts) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def at(self, places: NDArray[np.int64]) -> list[str]:
        return [os.path.join(self.folder, name) for name in self.names.at(places)]

    def take(self, places: ArrayLike) -> Texts:
        return Joined(self.folder, self.names.take(places))


class Numbered(Texts):
    """One of a few values for each place, by [n] numbers."""

    def __init__(self, values: Sequence[str], numbers: NDArray[np.int32]) -> None:
        self.values, self.numbers = values, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def at(self, places: NDArray[np.int64]) -> list[str]:
        return [self.values[i] for i in self.numbers[places].tolist()]

    def take(self, places: ArrayLike) -> Texts:
        return Numbered(self.values, self.numbers[within(places, len(self))])


class Patched(Texts):
    """Other strings at a few places.

    Args:
        of: the strings.
        other: {place: string}.
    """

    def __init__(self, of: Texts, other: Mapping[int, str]) -> None:
        self.of, self.other = of, other

    def __len__(self) -> int:
        return len(self.of)

    def at(self, places: NDArray[np.int64]) -> list[str]:
        pairs = zip(places.tolist(), self.of.at(places), strict=True)
        return [self.other.get(place, string) for place, string in pairs]

    def take(self, places: ArrayLike) -> Texts:
        return Taken(self, within(places, len(self)))


def places_of(wanted: Sequence[str], among: Sequence[str]) -> NDArray[np.int64]:
    """[n] the place of each wanted string among others, -1 where it is none of them.

    Takes 16 bytes for each string and no dictionary of them.
    """
    known, hashes = (np.fromiter(map(hash, each), np.int64, len(each)) for each in (among, wanted))
    order = np.argsort(known, kind="stable")
    known = known[order]
    found = np.full(len(wanted), -1, np.int64)
    at = np.searchsorted(known, hashes)
    left = np.flatnonzero(at < len(known))
    while len(left := left[known[at[left]] == hashes[left]]):
        candidates = order[at[left]]
        for i in range(0, len(left), _CHUNK):
            ours, theirs = left[i : i + _CHUNK], candidates[i : i + _CHUNK]
            pairs = zip(taken(wanted, ours), taken(among, theirs), strict=True)
            same = np.array([a == b for a, b in pairs], bool)
            found[ours[same]] = theirs[same]
        left = left[found[left] < 0]  # another string of the same hash
        at[left] += 1
        left = left[at[left] < len(known)]
    return found
