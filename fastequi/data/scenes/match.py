"""`match/`: pairs of views of a plane whose homography is exact, in HPatches' layout, with masks.

The plane is a photograph with pieces on it. The second view is another one of the same plane, its
corners up to a quarter of the side away in x and in y, in another light. Over each view lies a
piece that does not belong to the plane; masks say which pixels do and are seen in both views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastequi.data.pillow import Pixels
from fastequi.data.scenes.files import Job, save_png
from fastequi.data.scenes.homographies import (
    Mask,
    Matrix,
    between,
    middles,
    moved,
    shift,
    similarity,
    warped,
)
from fastequi.data.scenes.photographs import Photographs
from fastequi.data.scenes.pieces import any_id, piece
from fastequi.data.scenes.settings import Settings

_OFFSET = 0.25  # of the side
_PIECES = 4, 8


@dataclass(frozen=True)
class Pair:
    """Two views of a plane.

    Attributes:
        views: [S, S, 3] each.
        masks: [S, S] each, where the plane is seen in both views.
        homography: [3, 3] from places in the first to places in the second, in pixels.
    """

    views: tuple[Pixels, Pixels]
    masks: tuple[Mask, Mask]
    homography: Matrix


def pair(generator: np.random.Generator, photographs: Photographs, size: int) -> Pair:
    """See the module."""
    margin = math.ceil(_OFFSET * size)
    plane = _plane(generator, photographs, size + 2 * margin)
    square = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float64)
    offsets = generator.uniform(-_OFFSET, _OFFSET, (4, 2)) * size
    homography = between(square + offsets, square)
    first = warped(plane, shift(-margin, -margin), (size, size))
    second = warped(plane, homography @ shift(-margin, -margin), (size, size))
    gain, level = generator.uniform(0.75, 1.25), generator.uniform(-20, 20)
    second = np.clip(second * gain + level, 0, 255).round().astype(np.uint8)
    free = [_covered(generator, photographs, view) for view in (first, second)]
    back = np.linalg.inv(homography).astype(np.float64)
    masks = free[0] & _seen(free[1], homography), free[1] & _seen(free[0], back)
    return Pair((first, second), masks, homography)


def _plane(generator: np.random.Generator, photographs: Photographs, size: int) -> Pixels:
    image = photographs.window(generator, size, size)
    ids = np.zeros((size, size), np.uint8)
    for _ in range(generator.integers(_PIECES[0], _PIECES[1] + 1)):
        _paste(generator, photographs, image, ids)
    return image


def _covered(generator: np.random.Generator, photographs: Photographs, view: Pixels) -> Mask:
    """Pastes a piece over a view; [S, S], what it leaves free."""
    ids = np.zeros(view.shape[:2], np.uint8)
    _paste(generator, photographs, view, ids)
    return np.asarray(ids == 0)


def _paste(
    generator: np.random.Generator, photographs: Photographs, image: Pixels, ids: Pixels
) -> None:
    size = len(image)
    side = round(size * generator.uniform(0.15, 0.3))
    each = piece(generator, photographs, any_id(generator), side)
    x, y = generator.uniform(0, size, 2)
    each.paste(image, ids, similarity(x, y, generator.uniform(-180, 180), 1, side), 1)


def _seen(free: Mask, homography: Matrix) -> Mask:
    """[S, S] the pixels of a view whose place in the other view lies in a pixel that is free."""
    size = free.shape[0], free.shape[1]
    places = np.floor(moved(middles(size), homography)).astype(np.int64)
    x, y = places[..., 0], places[..., 1]
    inside = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
    return np.asarray(inside & free[np.where(inside, y, 0), np.where(inside, x, 0)])


def of_pixels(homography: Matrix) -> Matrix:
    """Between pixels counted from 0, whose middles are whole numbers, as HPatches has it."""
    found = shift(-0.5, -0.5) @ homography @ shift(0.5, 0.5)
    return np.asarray(found / found[2, 2])


def jobs(
    folder: Path, settings: Settings, train: Photographs, validation: Photographs
) -> Iterator[Job]:
    """Each writes a pair, of photographs for validation."""
    for item in range(settings.images):

        def job(item: int = item) -> None:
            made = pair(settings.generator("match", item), validation, settings.size)
            at = folder / f"v_{item:05d}"
            for number, (view, mask) in enumerate(zip(made.views, made.masks, strict=True), 1):
                save_png(at / f"{number}.png", view)
                save_png(at / f"mask_{number}.png", mask.astype(np.uint8) * 255)
            np.savetxt(at / "H_1_2", of_pixels(made.homography), "%.17g")

        yield job
