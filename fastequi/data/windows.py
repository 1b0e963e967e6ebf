"""The order of an epoch that goes through a few shards at a time: `data.shuffle=window`.

The shards stand in an order that the counter-based bijection of `fastequi.data.order` gives; W
consecutive ones of it are a window, and the members of a window come in a bijective order of their
own. A position needs the shards of its window and no other: a reader may fetch whole shards, one
window ahead of their use, and drop those of the window before. What it costs: images of different
windows are never in one step, unless the step crosses from one to the next.

A *round* visits every member once (an epoch has `data.repeat` of them), in an order of its own. In
a round a shard lies in exactly one window, and the positions of a window are consecutive. So
whoever keeps the shards of the window in use open, any rank of any number of them, opens a shard at
most once a round. That is the bound ceil(members of a shard / members of a window), since here a
window is never smaller than a shard.

A round's table has 16 bytes a shard and none of members; a position is found by two binary
searches. It depends on (seed, epoch, round, members of every shard) alone: not on ranks, their
number, what was read before, or where the shards lie.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastequi.data.order import shuffled
from fastequi.data.sources.images import Source
from fastequi.data.sources.made_texts import Numbered

_TURNS = 1 << 29  # that the order tells apart
_KEPT = 4  # rounds whose tables are kept: a step may cross from one to the next


def members_of(names: Iterable[str]) -> NDArray[np.int64]:
    """[shards] how many images each shard has, of images that are members of shards.

    A member's name begins with its shard's, which ends with ".tar"; the images are in the order of
    their names, so that those of a shard follow one another. What a shard is called in them is the
    same on every machine, and after a shard is gone.

    Raises:
        ValueError: an image is no member of a shard.
    """
    return np.array([sum(1 for _ in same) for _, same in groupby(names, _shard)], np.int64)


def members_in(source: Source) -> NDArray[np.int64]:
    """The same of a source; of a mapped index by its numbers of shards, without reading names."""
    if not isinstance(source.paths, Numbered):
        return members_of(source.names)
    ends = np.flatnonzero(np.diff(source.paths.numbers)) + 1
    return np.diff(ends, prepend=0, append=len(source))


def _shard(name: str) -> str:
    shard, found, _ = name.partition(".tar/")
    if not found:
        raise ValueError(
            f"data.shuffle: window needs images in tar shards, {name} is in none; expected global"
        )
    return shard


@dataclass(frozen=True)
class _Round:
    """One round's tables.

    Attributes:
        shards: [S] in their order.
        ends: [S] members up to the end of each, in that order.
        windows: [K] members up to the end of each window.
    """

    shards: NDArray[np.int64]
    ends: NDArray[np.int64]
    windows: NDArray[np.int64]


class Windows:
    """The order of windows over shards.

    Args:
        members: [S] images of every shard, in the order of the source; none is 0.
        window: shards in a window, W; the last window of a round has the rest.
        seed: of the run.

    Raises:
        ValueError: no shard, an empty one, or a window of less than one shard.
    """

    def __init__(self, members: ArrayLike, window: int, seed: int) -> None:
        self.members = np.asarray(members, np.int64)
        if self.members.ndim != 1 or not len(self.members) or self.members.min() < 1:
            raise ValueError("members: expected at least one shard, and of each at least one image")
        if window < 1:
            raise ValueError(f"data.window: expected at least 1 shard, got {window}")
        self.window, self.seed = window, seed
        self.num_images = int(self.members.sum())
        self.count = -(-len(self.members) // window)  # windows in a round
        self._first = np.cumsum(self.members) - self.members  # each shard's first image
        self._rounds: dict[tuple[int, int], _Round] = {}

    def images(self, positions: ArrayLike, epoch: int, turns: ArrayLike) -> NDArray[np.int64]:
        """[N] images at positions of rounds.

        Args:
            positions: [N] integers in [0, number of images).
            epoch: 0, 1, ...
            turns: [N] the round of each.

        Raises:
            ValueError: a position is out of range, or the rounds are too many.
        """
        places = np.atleast_1d(np.asarray(positions, np.int64))
        rounds = np.broadcast_to(np.asarray(turns, np.int64), places.shape)
        if len(places) and (places.min() < 0 or places.max() >= self.num_images):
            raise ValueError(
                f"positions: expected 0 to {self.num_images - 1}, "
                f"got {places.min()} to {places.max()}"
            )
        found = np.empty_like(places)
        for turn in np.unique(rounds).tolist():
            of = rounds == turn
            found[of] = self._images(places[of], epoch, turn)
        return found

    def window_at(self, position: int, epoch: int, turn: int) -> int:
        """The number within its round of the window that a position is in."""
        return int(np.searchsorted(self._round(epoch, turn).windows, position, "right"))

    def shards(self, window: int, epoch: int, turn: int) -> NDArray[np.int64]:
        """The shards of a window of a round, at most W."""
        first = window * self.window
        return self._round(epoch, turn).shards[first : first + self.window]

    def _images(self, places: NDArray[np.int64], epoch: int, turn: int) -> NDArray[np.int64]:
        table = self._round(epoch, turn)
        window = np.searchsorted(table.windows, places, "right")
        inside = places.copy()
        for k in np.unique(window).tolist():
            of, start = window == k, int(table.windows[k - 1]) if k else 0
            size = int(table.windows[k]) - start
            at = self._turn(turn, 1 + k)
            inside[of] = start + shuffled(places[of] - start, size, self.seed, epoch, at)
        slot = np.searchsorted(table.ends, inside, "right")
        shard = table.shards[slot]
        return self._first[shard] + inside - (table.ends[slot] - self.members[shard])

    def _round(self, epoch: int, turn: int) -> _Round:
        found = self._rounds.get((epoch, turn))
        if found is None:
            count = len(self.members)
            at = self._turn(turn, 0)
            shards = shuffled(np.arange(count), count, self.seed, epoch, at)
            ends = np.cumsum(self.members[shards])
            last = np.minimum(np.arange(1, self.count + 1) * self.window, count) - 1
            found = _Round(shards, ends, ends[last])
            while len(self._rounds) >= _KEPT:
                del self._rounds[next(iter(self._rounds))]
            self._rounds[epoch, turn] = found
        return found

    def _turn(self, turn: int, order: int) -> int:
        """A round has an order of shards (0) and of every window's members (1, 2, ...)."""
        number = turn * (1 + self.count) + order
        if number >= _TURNS:
            raise ValueError(
                f"data.window: expected fewer than 2^29 windows in an epoch, got "
                f"data.repeat x {self.count}; a larger window has fewer"
            )
        return number
