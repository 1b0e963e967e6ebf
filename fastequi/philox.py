"""Counter-based random numbers: every random choice is a pure function of its address.

The address is (seed, epoch, sample id, stream), where a stream names what is drawn ("v1/crop",
"path"). So a draw does not depend on the order of the draws, the number of workers or ranks, or on
what was drawn before a restart: a resumed run needs (epoch, cursor) and nothing else.

The generator is Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC
2011), vectorised over samples; tests/test_philox.py pins it to the authors' known answers.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32 on counters [..., 4] (32-bit words) under one 64-bit key."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1).astype(np.uint32)


@dataclass(frozen=True)
class Draws:
    """The random numbers of B samples in one epoch.

    Args:
        seed: of the run, any 64-bit integer.
        epoch: 0, 1, ...
        sample_ids: [B] integers in [0, 2^32).
    """

    seed: int
    epoch: int
    sample_ids: NDArray[np.int64]

    @classmethod
    def of(cls, seed: int, epoch: int, sample_ids: ArrayLike) -> Draws:
        return cls(seed, epoch, np.asarray(sample_ids, np.int64))

    def __len__(self) -> int:
        return len(self.sample_ids)

    def bits(self, stream: str, n: int) -> NDArray[np.uint32]:
        """[B, n] uniform 32-bit words. Counter: (block of four words, stream, sample, epoch)."""
        blocks = -(-n // 4)
        counter = np.empty((len(self.sample_ids), blocks, 4), np.uint64)
        counter[..., 0] = np.arange(blocks, dtype=np.uint64)
        counter[..., 1] = zlib.crc32(stream.encode())
        counter[..., 2] = self.sample_ids[:, None].astype(np.uint64)
        counter[..., 3] = self.epoch
        words = philox4x32(counter, (self.seed & 0xFFFFFFFF, (self.seed >> 32) & 0xFFFFFFFF))
        return words.reshape(len(self.sample_ids), blocks * 4)[:, :n]

    def uniform(
        self, stream: str, n: int = 1, low: float = 0.0, high: float = 1.0
    ) -> NDArray[np.float32]:
        """[B, n] floats in [low, high), 24 bits each."""
        unit = (self.bits(stream, n) >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
        return unit * np.float32(high - low) + np.float32(low)


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of n samples in an epoch: argsort of one word per sample (ties by index)."""
    return np.argsort(Draws.of(seed, epoch, np.arange(n)).bits("order", 1)[:, 0], kind="stable")
