"""Quarter turns of square images as the affine maps that an image operator takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def turn_matrices(turns: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    """[N, 2, 3] where np.rot90's pixels come from: (x, y) of an output point to the input's.

    Args:
        turns: [N] quarter turns counter-clockwise, 0 .. 3.
        size: side of the images in pixels.
    """
    of_turn = np.array(
        [
            [[1, 0, 0], [0, 1, 0]],
            [[0, -1, size], [1, 0, 0]],
            [[-1, 0, size], [0, -1, size]],
            [[0, 1, 0], [-1, 0, size]],
        ],
        np.float32,
    )
    return of_turn[turns]
