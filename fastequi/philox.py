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

_M = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_W = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_ROUNDS = np.arange(10, dtype=np.uint64)[:, None]
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_ID_BITS = np.uint64(48)


def philox4x32(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32 on counters [..., 4] (32-bit words) under one 64-bit key."""
    words = np.moveaxis(counter, -1, 0).astype(np.uint64, order="C").reshape(2, 2, -1)
    even, odd = words[:, 0], words[:, 1]  # words 0 and 2, words 1 and 3
    keys = np.array(key, np.uint64) + _W * _ROUNDS & _LOW
    for round_key in keys[..., None]:
        product = even * _M[:, None]
        even, odd = (product >> _SHIFT)[::-1] ^ odd ^ round_key, (product & _LOW)[::-1]
    found = np.stack([even, odd], -1).astype(np.uint32)  # [2, N, 2]
    return found.swapaxes(0, 1).reshape(counter.shape)


@dataclass(frozen=True)
class Draws:
    """The random numbers of B samples in one epoch.

    Args:
        seed: of the run, any 64-bit integer.
        epoch: 0, 1, ...
        sample_ids: [B] integers in [0, 2^48).
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
        """[B, n] uniform 32-bit words.

        Counter: (block of four words and the sample's upper 16 bits, stream, the sample's lower 32
        bits, epoch).

        Raises:
            ValueError: n is above 2^18, or a sample's id is out of range.
        """
        blocks = -(-n // 4)
        if blocks > 1 << 16:
            raise ValueError(f"n: expected at most {1 << 18} words of a stream, got {n}")
        ids = self.sample_ids.astype(np.uint64)[:, None]  # a negative one is very large
        if len(ids) and ids.max() >> _ID_BITS:
            wrong = self.sample_ids[ids[:, 0].argmax()]
            raise ValueError(f"sample_ids: expected 0 to 2^48 - 1, got {wrong}")
        counter = np.empty((len(self.sample_ids), blocks, 4), np.uint64)
        counter[..., 0] = np.arange(blocks, dtype=np.uint64) | ids >> _SHIFT << np.uint64(16)
        counter[..., 1] = zlib.crc32(stream.encode())
        counter[..., 2] = ids & _LOW
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
