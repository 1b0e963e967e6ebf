"""Block-wise masks of a view's patches, as data: BEiT's and iBOT's, drawn by counter.

Rectangles of random area and aspect are added until the wanted share is masked or nothing fits any
more (Bao et al., ICLR 2022, algorithm 1; Zhou et al., ICLR 2022). Where the official codes differ:
every view is masked or not by a draw of its own, so a sample's masks do not depend on its batch
(DINOv2 masks exactly half of a batch, at evenly spaced ratios); the tries are bounded in all.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastequi.philox import Draws

_TRIES = 40  # rectangles per view, at most
_SMALLEST = 4  # patches of a rectangle
_ASPECT = math.log(0.3)  # .. log(1 / 0.3), height over width


def block_masks(
    draws: Draws, grid: int, share: float, ratio: tuple[float, float], view: str
) -> NDArray[np.bool_]:
    """[B, grid · grid] masks of one view of B samples, row by row.

    Args:
        grid: patches along a side.
        share: of the views that are masked at all.
        ratio: range of the share of patches to mask in those; not exceeded.
        view: names the draws.
    """
    unit = draws.uniform(f"{view}/mask", 2 + 4 * _TRIES).astype(np.float64)
    wanted = np.floor(grid * grid * (ratio[0] + unit[:, 1] * (ratio[1] - ratio[0])))
    left = np.where(unit[:, 0] < share, wanted, 0).astype(np.int64)
    mask = np.zeros((len(draws), grid, grid), bool)
    cells = np.arange(grid)
    for attempt in range(_TRIES):
        rows = np.flatnonzero(left)
        if not rows.size:
            break
        u = unit[rows, 2 + 4 * attempt : 6 + 4 * attempt]
        least = np.minimum(_SMALLEST, left[rows])
        area = least + u[:, 0] * (left[rows] - least)
        stretch = np.exp(_ASPECT * (1 - 2 * u[:, 1]) / 2)
        height = np.rint(np.sqrt(area) * stretch)[:, None]
        width = np.rint(np.sqrt(area) / stretch)[:, None]
        top = np.floor(u[:, 2:3] * (grid - height + 1))
        start = np.floor(u[:, 3:4] * (grid - width + 1))
        inside_y = (cells >= top) & (cells < top + height)
        inside_x = (cells >= start) & (cells < start + width)
        block = inside_y[:, :, None] & inside_x[:, None, :] & ~mask[rows]
        count = block.sum((1, 2))
        fits = (height < grid)[:, 0] & (width < grid)[:, 0] & (count <= left[rows])
        mask[rows] |= block & fits[:, None, None]
        left[rows] -= count * fits
    return mask.reshape(len(draws), -1)
