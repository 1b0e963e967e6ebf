"""Photographs that scenes are made of, for training and for validation apart."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from fastequi.data.pillow import Pixels, decoded
from fastequi.data.sources.encoded import why
from fastequi.data.sources.image_sets import embedded_photos, open_source
from fastequi.data.sources.images import Source
from fastequi.data.sources.selection import Selection
from fastequi.data.sources.splits import TEST_REGION, TRAIN_REGION, held_out

_KEPT = 32  # decoded photographs in memory
_SMALLEST = 0.6  # of the largest window that fits


class Photographs:
    """Windows of photographs.

    Attributes:
        source: the photographs; only its region is shown.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._seen = lru_cache(_KEPT)(self._opened)

    def window(self, generator: np.random.Generator, height: int, width: int) -> Pixels:
        """[height, width, 3] uint8, somewhere in one of them, resized with antialiasing.

        Raises:
            ValueError: a photograph cannot be decoded; names it.
        """
        image = self._seen(int(generator.integers(len(self.source))))
        fits = min(image.width / width, image.height / height)
        scale = fits * generator.uniform(_SMALLEST, 1)
        w, h = width * scale, height * scale
        x, y = generator.uniform(0, image.width - w), generator.uniform(0, image.height - h)
        box = (x, y, min(x + w, image.width), min(y + h, image.height))
        return np.array(image.resize((width, height), Image.Resampling.LANCZOS, box))

    def _opened(self, i: int) -> Image.Image:
        try:
            pixels = decoded(self.source.encoded(i))
        except Exception as error:  # whatever damaged bytes make Pillow raise
            path = self.source.paths[i]
            raise ValueError(f"--photos: {path} cannot be decoded ({why(error, path)})") from error
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = self.source.region
        box = (round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height))
        return Image.fromarray(pixels).crop(box)


def both(chosen: Selection | None) -> tuple[Photographs, Photographs]:
    """Those for training and those for validation, disjoint.

    Args:
        chosen: every fifth in sorted order is for validation; None: the embedded photographs, whose
            left 70 % are for training and right 30 % for validation.

    Raises:
        ValueError: fewer than two.
    """
    if chosen is None:
        parts = embedded_photos(TRAIN_REGION), embedded_photos(TEST_REGION)
    else:
        source = open_source(chosen)
        if len(source) < 2:
            raise ValueError(
                f"{chosen.option}: expected at least 2 photographs, one of them for validation, "
                f"{chosen} has {len(source)}"
            )
        tested = held_out(len(source))
        parts = source.pick(np.flatnonzero(~tested)), source.pick(np.flatnonzero(tested))
    train, validation = parts
    return Photographs(train), Photographs(validation)
