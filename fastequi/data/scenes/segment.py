"""`segment/`: images with a class for each pixel, as `images/` and `masks/` in train/ and val/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastequi.data.pillow import Pixels
from fastequi.data.scenes.files import Job, save_ids
from fastequi.data.scenes.homographies import similarity
from fastequi.data.scenes.image_jobs import image_jobs
from fastequi.data.scenes.photographs import Photographs
from fastequi.data.scenes.pieces import any_id, piece
from fastequi.data.scenes.settings import Settings

_PIECES = 2, 5
_SIDE = 0.25, 0.5  # of the image's


def segment_scene(
    generator: np.random.Generator, photographs: Photographs, size: int
) -> tuple[Pixels, NDArray[np.uint8]]:
    """An image [S, S, 3] and its classes [S, S] uint8, places in CLASSES."""
    image = photographs.window(generator, size, size)
    ids = np.zeros((size, size), np.uint8)
    for _ in range(generator.integers(_PIECES[0], _PIECES[1] + 1)):
        side = round(size * generator.uniform(*_SIDE))
        each = piece(generator, photographs, any_id(generator), side)
        x, y = generator.uniform(0.1, 0.9, 2) * size
        each.paste(image, ids, similarity(x, y, generator.uniform(-30, 30), 1, side), each.id)
    return image, ids


def jobs(
    folder: Path, settings: Settings, train: Photographs, validation: Photographs
) -> Iterator[Job]:
    """Each writes an image and its mask."""

    def scene(
        generator: np.random.Generator, photographs: Photographs
    ) -> tuple[Pixels, Callable[[Path], None]]:
        image, truth = segment_scene(generator, photographs, settings.size)
        return image, lambda file: save_ids(file, truth)

    return image_jobs("segment", "masks", folder, settings, train, validation, scene)
