"""The samples of every step: a stateless order, so (epoch, index) resumes it exactly.

Every decode of a photograph gives M samples, and every photograph is decoded `repeat` times in an
epoch. Sample ids number all of them: file · repeat · M + r · M + j, so every random draw of an
epoch has an address of its own. An epoch has `repeat` rounds; each visits every file once in its
own order, so that a step of a small set has as many different photographs as possible. The order is
one of all files (`fastequi.data.order`) or, with `data.shuffle=window`, goes through a few shards
at a time (`fastequi.data.windows`).

The order is that of the global step; ranks take consecutive parts of each step. So a run may
continue on another number of ranks with the same steps. The rest of an epoch after its last whole
step is dropped (a different part in every epoch).
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastequi.data.config import DataConfig
from fastequi.data.order import shuffled
from fastequi.data.windows import Windows
from fastequi.philox import permutation

_AHEAD = 4096  # decodes whose place in the order is computed at once


class Step(NamedTuple):
    """One rank's part of a step.

    Attributes:
        epoch: of all its samples.
        used: samples of the epoch used up after this step, over all ranks.
        files: [D] file of each decode.
        sample_ids: [D · M] ids, M consecutive ones per decode.
    """

    epoch: int
    used: int
    files: NDArray[np.int64]
    sample_ids: NDArray[np.int64]


class Sampler:
    """An endless iterator of steps over `num_files` files.

    Args:
        num_files: of the source.
        cfg: batch_size, samples_per_decode, repeat, order, shuffle and window.
        seed: of the run.
        rank, world_size: this process and the number of them; batch_size is split evenly.
        members: [shards] files of every shard, for `cfg.shuffle=window`.

    Attributes:
        windows: the order of windows; None where the order is of all files.

    Raises:
        ValueError: the set is smaller than one step, the step does not split evenly, or windows
            have no shards.
    """

    def __init__(
        self,
        num_files: int,
        cfg: DataConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        members: NDArray[np.int64] | None = None,
    ) -> None:
        self.num_files, self.repeat, self.seed = num_files, cfg.repeat, seed
        self.order = cfg.order
        self.windows: Windows | None = None
        if cfg.shuffle == "window":
            if members is None or members.sum() != num_files:
                raise ValueError("data.shuffle: window needs images in tar shards; expected global")
            self.windows = Windows(members, cfg.window, seed)
        self.per_decode = cfg.samples_per_decode
        self.decodes = cfg.batch_size // cfg.samples_per_decode
        self.epoch = self.index = 0
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 <= rank < world_size={world_size}, got {rank}")
        if self.decodes % world_size:
            raise ValueError(
                f"data.batch_size: expected a multiple of world_size={world_size} (processes) × "
                f"samples_per_decode={self.per_decode} = {world_size * self.per_decode}, "
                f"got {cfg.batch_size}"
            )
        if len(self) == 0:
            raise ValueError(
                f"data.batch_size: got {cfg.batch_size}, more than an epoch of {num_files} files × "
                f"data.repeat={self.repeat} × data.samples_per_decode={self.per_decode}; expected "
                f"repeat >= {-(-self.decodes // num_files)}, or a smaller batch_size"
            )
        self.share = self.decodes // world_size  # decodes of this rank
        self._first = rank * self.share  # of them, in a step
        self._table: tuple[int, NDArray[np.int64]] | None = None
        self._ahead: tuple[int, int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self.num_files * self.repeat // self.decodes

    def __iter__(self) -> Sampler:
        return self

    def __next__(self) -> Step:
        batch = self.decodes * self.per_decode
        if self.index + batch > self.num_files * self.repeat * self.per_decode:
            self.epoch, self.index = self.epoch + 1, 0
        first = self.index // self.per_decode
        decodes = self._sorted(first) if self.order == "table" else self._computed(first)
        ids = decodes[:, None] * self.per_decode + np.arange(self.per_decode)
        self.index += batch
        return Step(self.epoch, self.index, decodes // self.repeat, ids.reshape(-1))

    def after(self, step: Step) -> Sampler:
        """The same sampler at the position after a step of it."""
        other = copy(self)  # the tables are shared, the position is not
        other.epoch, other.index = step.epoch, step.used
        return other

    def state_dict(self) -> dict[str, int]:
        """The position: {"epoch", "index"} and, to recognise another set, "num_files"."""
        return {"epoch": self.epoch, "index": self.index, "num_files": self.num_files}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a position.

        Raises:
            ValueError: the set or the number of samples per decode is not the one of the state.
        """
        if state["num_files"] != self.num_files:
            raise ValueError(
                f"cannot continue: the run had {state['num_files']} readable images, "
                f"now there are {self.num_files}"
            )
        if state["index"] % self.per_decode:
            raise ValueError(
                f"cannot continue: position {state['index']} of the epoch is no multiple of "
                f"samples_per_decode={self.per_decode}; was it changed?"
            )
        self.epoch, self.index = state["epoch"], state["index"]

    def _computed(self, first: int) -> NDArray[np.int64]:
        """[share] decodes (file · repeat + round) of the step whose first one is at `first`."""
        if self._ahead is not None:
            epoch, start, decodes = self._ahead
            step, between = divmod(first - start, self.decodes)
            if epoch == self.epoch and not between and 0 <= step < len(decodes):
                return decodes[step]
        left = (self.num_files * self.repeat - first) // self.decodes
        count = min(left, max(1, _AHEAD // self.share))
        starts = first + self._first + self.decodes * np.arange(count)
        turns, places = np.divmod(starts[:, None] + np.arange(self.share), self.num_files)
        at = places.ravel(), turns.ravel()
        if self.windows is not None:
            files = self.windows.images(at[0], self.epoch, at[1])
        else:
            files = shuffled(at[0], self.num_files, self.seed, self.epoch, at[1])
        decodes = files.reshape(places.shape) * self.repeat + turns
        self._ahead = self.epoch, first, decodes
        return decodes[0]

    def _sorted(self, first: int) -> NDArray[np.int64]:
        """The same, by an order of all decodes of the epoch, round after round."""
        if self._table is None or self._table[0] != self.epoch:
            order = permutation(self.num_files * self.repeat, self.seed, self.epoch)
            self._table = self.epoch, order[np.argsort(order % self.repeat, kind="stable")]
        return self._table[1][first + self._first :][: self.share]
