"""What a run reads of remote shards before it needs it: single images, or the next window's shards.

It changes no batch, only when bytes come. With a cache and `data.shuffle=window` the shards of the
window in use and of the next one are fetched whole; else, and until they are here, the images of
the next steps are asked for as byte ranges while the current one is made.
"""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import numpy as np

from fastequi.data.config import DataConfig
from fastequi.data.sampler import Sampler, Step
from fastequi.data.sources.images import Source
from fastequi.data.sources.local import expect_local
from fastequi.data.sources.remote_reader import RemoteShards, expect_room
from fastequi.data.sources.shard_cache import GB, ShardCache

logger = logging.getLogger(__name__)

_STEPS = 4  # that are asked for ahead
_IMAGES = 1024  # of them at most, as they are kept in memory


def cache_of(cfg: DataConfig) -> ShardCache | None:
    """The cache that settings ask for.

    Raises:
        OSError: `cache_dir` cannot be used; ValueError: it is a URL.
    """
    if not cfg.cache_dir:
        return None
    folder = Path(expect_local("data.cache_dir", cfg.cache_dir)).expanduser()
    return ShardCache(folder, int(cfg.cache_gb * GB))


class ReadAhead:
    """Follows a sampler and asks for what its next steps need.

    Args:
        source: remote images.
        shards: what reads them.
        sampler: at the position of its first step; it is not moved.

    Raises:
        ValueError: the cache holds less than two windows.
    """

    def __init__(self, source: Source, shards: RemoteShards, sampler: Sampler) -> None:
        self._source, self._shards, self._sampler = source, shards, sampler
        self._steps = min(_STEPS, _IMAGES // sampler.share)
        self._window: tuple[int, int, int] | None = None
        self._urls: list[str] = []
        windows = sampler.windows
        if windows is not None:
            firsts = np.cumsum(windows.members) - windows.members
            self._urls = [source.paths[i] for i in firsts.tolist()]
            expect_room(shards, windows.window)
        elif shards.cache is not None and shards.total > shards.cache.capacity:
            logger.info(
                "data.cache_dir is not used: %d bytes of shards do not fit (data.cache_gb), and "
                "with data.shuffle=global any of them may come next",
                shards.total,
            )

    def follow(self, step: Step) -> None:
        """Asks for a step, which is read next, and for those behind it."""
        self._want(step)
        if not self._steps:
            return
        steps = [step, *islice(self._sampler.after(step), self._steps)]
        places = []
        for i in np.concatenate([one.files for one in steps]).tolist():
            assert self._source.spans is not None
            first, count = self._source.spans[i].tolist()
            places.append((self._source.paths[i], (first, count)))
        self._shards.ahead(places)

    def _want(self, step: Step) -> None:
        windows, sampler = self._sampler.windows, self._sampler
        if windows is None or self._shards.cache is None:
            return
        turn, place = divmod(step.used // sampler.per_decode - 1, sampler.num_files)
        now = step.epoch, turn, windows.window_at(place, step.epoch, turn)
        if now != self._window:
            self._window = now
            both = [*self._of(*now), *self._of(*self._next(*now))]
            self._shards.want(dict.fromkeys(both))

    def _next(self, epoch: int, turn: int, window: int) -> tuple[int, int, int]:
        windows = self._sampler.windows
        assert windows is not None
        if window + 1 < windows.count:
            return epoch, turn, window + 1
        return (epoch, turn + 1, 0) if turn + 1 < self._sampler.repeat else (epoch + 1, 0, 0)

    def _of(self, epoch: int, turn: int, window: int) -> list[str]:
        windows = self._sampler.windows
        assert windows is not None
        return [self._urls[i] for i in windows.shards(window, epoch, turn).tolist()]
