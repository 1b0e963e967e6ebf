"""The order of an epoch without a table: any position in constant time and memory, on any rank.

Position to image is a bijection on [0, n): a Feistel network over the counter-based generator
(`fastequi.philox`), whose halves are numbers below a and b with a b >= n as closely as integers
allow; a result of n or more is put through the network again until it is smaller (cycle walking).
Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002: methods 2 and 3.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastequi.philox import philox4x32

MOST = 1 << 62  # images: halves then fit into 32 bits
_ROUNDS = 16  # of the network for few images: with 8 some orders of 6 came twice as often as others
_FEW = 1 << 12  # from here on half of them; with 8 no statistic of 60 images or more shows anything
_STREAM = zlib.crc32(b"order/feistel")
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def shuffled(
    positions: ArrayLike, n: int, seed: int, epoch: int, turn: ArrayLike = 0
) -> NDArray[np.int64]:
    """Where the bijection of an epoch takes positions.

    Args:
        positions: [N] integers in [0, n).
        n: 1 to 2^62.
        seed: of the run, any 64-bit integer.
        epoch: 0, 1, ..., below 2^32.
        turn: [N] or one: of the epoch's orders, which differ; below 2^29.

    Returns:
        [N] int64 in [0, n), all different where the positions of a turn are.

    Raises:
        ValueError: n or a position is out of range.
    """
    x = np.atleast_1d(np.asarray(positions, np.int64))
    if not 1 <= n <= MOST:
        raise ValueError(f"n: expected 1 to 2^62 images, got {n}")
    if len(x) and (x.min() < 0 or x.max() >= n):
        raise ValueError(f"positions: expected 0 to {n - 1}, got {x.min()} to {x.max()}")
    turns = np.broadcast_to(np.asarray(turn, np.uint64), x.shape)
    key = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    found = x.astype(np.uint64)
    walking = np.arange(len(found))
    while len(walking):
        found[walking] = _network(found[walking], n, turns[walking], epoch, key)
        walking = walking[found[walking] >= n]
    return found.astype(np.int64)


def _network(
    x: NDArray[np.uint64], n: int, turns: NDArray[np.uint64], epoch: int, key: tuple[int, int]
) -> NDArray[np.uint64]:
    """A bijection on [0, a b)."""
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    sides = np.uint64(a), np.uint64(b)
    halves = [x % sides[0], x // sides[0]]
    counter = np.empty((len(x), 4), np.uint64)
    counter[:, 1], counter[:, 3] = _STREAM, epoch
    for i in range(_ROUNDS if n < _FEW else _ROUNDS // 2):
        to, of = i % 2, 1 - i % 2
        counter[:, 0], counter[:, 2] = halves[of], turns * np.uint64(_ROUNDS) + np.uint64(i)
        words = philox4x32(counter, key).astype(np.uint64)
        drawn = (words[:, 0] | words[:, 1] << _SHIFT) % sides[to]
        halves[to] = (halves[to] + drawn) % sides[to]
    return halves[0] + sides[0] * halves[1]
