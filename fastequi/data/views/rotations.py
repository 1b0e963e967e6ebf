"""Rotations of square images by multiples of 90 degrees, as affine maps for an image operator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rotation_matrices(rotations: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    """[N, 2, 3] where np.rot90's pixels come from: (x, y) of an output point to the input's.

    Args:
        rotations: [N] quarters, counter-clockwise, 0 .. 3.
        size: side of the images in pixels.
    """
    of_rotation = np.array(
        [
            [[1, 0, 0], [0, 1, 0]],
            [[0, -1, size], [1, 0, 0]],
            [[-1, 0, size], [0, -1, size]],
            [[0, 1, 0], [-1, 0, size]],
        ],
        np.float32,
    )
    return of_rotation[rotations]
