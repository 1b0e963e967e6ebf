"""Rotations of square images by multiples of 90 degrees: in place, or as affine maps for an image
operator."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def rotate(images: Tensor, rotations: NDArray[np.int64]) -> None:
    """Rotates images [N, C, S, S] in place, as np.rot90 does.

    Args:
        images: on any device; nothing waits for it.
        rotations: [N] quarters, counter-clockwise, 0 .. 3.
    """
    if images.dtype == torch.uint16:  # which PyTorch does not turn on a CPU
        images = images.view(torch.int16)
    for turns in (1, 2, 3):
        those = torch.from_numpy(np.flatnonzero(rotations == turns))
        if images.is_cuda:  # a copy that is not waited for
            those = those.pin_memory().to(images.device, non_blocking=True)
        images[those] = images[those].rot90(turns, (2, 3))


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
