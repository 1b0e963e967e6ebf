"""Homographies [3, 3] between places in pixels: the middle of the first pixel is (0.5, 0.5).

They are used by Pillow, which has the same places (`Image.transform`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastequi.data.pillow import Pixels

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]
Size = tuple[int, int]
"""Height and width in pixels."""


def shift(x: float, y: float) -> Matrix:
    """Moves places by (x, y) pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def similarity(x: float, y: float, degrees: float, scale: float, side: float) -> Matrix:
    """Puts the middle of a square of `side` pixels at (x, y), turned and scaled."""
    c, s = (scale * f(math.radians(degrees)) for f in (math.cos, math.sin))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return np.asarray(shift(x, y) @ turn @ shift(-side / 2, -side / 2))


def between(source: Matrix, target: Matrix) -> Matrix:
    """The homography that takes four places [4, 2] to four others, with 1 as its last entry."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    found = np.linalg.solve(np.array(rows), np.asarray(target).reshape(-1))
    return np.append(found, 1.0).reshape(3, 3)


def moved(places: Matrix, matrix: Matrix) -> Matrix:
    """Places [..., 2] by a homography."""
    ones = np.ones((*places.shape[:-1], 1))
    found = np.concatenate([places, ones], -1) @ matrix.T
    return np.asarray(found[..., :2] / found[..., 2:])


def middles(size: Size) -> Matrix:
    """[H, W, 2] (x, y) of the middles of pixels."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.stack([x, y], -1)


def warped(image: Pixels, matrix: Matrix, size: Size) -> Pixels:
    """[H, W, 3] what an image shows when its places are moved; bilinear, black around it."""
    return np.array(_transformed(image, matrix, size, Image.Resampling.BILINEAR))


def covered(shape: Mask, matrix: Matrix, size: Size) -> Mask:
    """[H, W] the pixels whose middle lies in a pixel of the moved shape."""
    inside = _transformed(shape.astype(np.uint8) * 255, matrix, size, Image.Resampling.NEAREST)
    return np.array(inside) > 0


def _transformed(
    values: NDArray[np.uint8], matrix: Matrix, size: Size, resampling: Image.Resampling
) -> Image.Image:
    back = np.linalg.inv(matrix)
    return Image.fromarray(values).transform(
        (size[1], size[0]),
        Image.Transform.PERSPECTIVE,
        (back / back[2, 2]).reshape(-1)[:8].tolist(),
        resampling,
    )
