"""Rectangles of crops: what two of them share, and where that lies once a crop was rotated.

A box is (x0, y0, x1, y1) in pixels, x to the right and y down from the image's upper left corner,
pixel i covering [i, i + 1): the convention of RoIAlign. Rotations are np.rot90's,
counter-clockwise by multiples of 90 degrees.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shared_boxes(
    first: Tensor, second: Tensor, first_size: int, second_size: int
) -> tuple[Tensor, Tensor]:
    """The intersection of two crops of one image, in the pixels of each.

    Args:
        first, second: [..., 4] the crops' windows in any common coordinates, floating.
        first_size, second_size: side in pixels that each was resampled to.

    Returns:
        Two boxes [..., 4]. Of crops without a common part x1 < x0 or y1 < y0.
    """
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])

    def seen(window: Tensor, size: int) -> Tensor:
        scale = size / (window[..., 2:] - window[..., :2])
        return torch.cat([(x - window[..., :2]) * scale for x in (low, high)], -1)

    return seen(first, first_size), seen(second, second_size)


def rotate_boxes(boxes: Tensor, rotations: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Where boxes lie after their image was rotated.

    Args:
        boxes: [..., 4].
        rotations: [...] multiples of 90 degrees counter-clockwise, any integer.
        size: side of the image in pixels before the rotation, or (height, width).

    Returns:
        [..., 4], in the pixels of the rotated image.
    """
    height, width = (size, size) if isinstance(size, int) else size
    x0, y0, x1, y1 = boxes.unbind(-1)
    of_rotation = (
        (x0, y0, x1, y1),
        (y0, width - x1, y1, width - x0),
        (width - x1, height - y1, width - x0, height - y0),
        (height - y1, x0, height - y0, x1),
    )
    every = torch.stack([torch.stack(box, -1) for box in of_rotation], -2)
    place = (rotations.to(boxes.device) % 4)[..., None, None].expand(*boxes.shape[:-1], 1, 4)
    return every.gather(-2, place.long())[..., 0, :]
