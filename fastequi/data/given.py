"""What DALI is given of a source's images: paths, encoded bytes, or pixels that Pillow decoded.

DALI reads files itself where all are of formats that it decodes. Members of shards come as bytes,
and so does everything once an image may need Pillow: what DALI refuses and Pillow decodes is handed
on as plain pixels, and only what both refuse is damaged. Which of the two decodes an image depends
on its bytes only, so every process and every resumed run has the same pixels.

What is known to be refused never reaches DALI: one such image beside others in a batch was seen to
end the process (DALI 2.4, a segmentation fault once in some hundred batches).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from fastequi.data import dali
from fastequi.data.pillow import as_ppm, decoded, is_for_pillow
from fastequi.data.sources.encoded import why
from fastequi.data.sources.images import Source

logger = logging.getLogger(__name__)

_DIRECT = {"JPEG", "MPO", "PNG", "BMP", "PPM", "JPEG2000"}  # formats of which DALI decodes all


def usable_threads(asked: int) -> int:
    """As many as were asked for; for 0 every usable core, at most 16."""
    return asked or min(len(os.sched_getaffinity(0)), 16)


class Given:
    """The images of a source in the form that DALI takes them.

    Args:
        source: the images.
        threads: that read and decode beside DALI's.
    """

    def __init__(self, source: Source, threads: int) -> None:
        self.source = source
        self._pool = ThreadPoolExecutor(threads)
        self._threads = threads
        self._refused: set[int] = set()  # by DALI, not by Pillow
        self.as_bytes = source.spans is not None or not set(source.formats) <= _DIRECT

    def files(self, places: Sequence[int]) -> list[dali.File]:
        """Of these images; what cannot be read is one byte, which cannot be decoded."""
        if not self.as_bytes:
            return [self.source.paths[i] for i in places]
        return list(self._pool.map(self._bytes, places))

    def examine(self, places: Sequence[int], device: torch.device) -> tuple[dict[int, str], bool]:
        """Which of the images cannot be decoded, after a batch with them failed.

        Those that DALI alone refuses are given as Pillow decodes them from now on.

        Returns:
            {place: why}, and whether any other is given in another form than before.
        """
        bad: dict[int, str] = {}
        images: dict[int, NDArray[np.uint8]] = {}
        for i, image in zip(places, self._pool.map(self._read, places), strict=True):
            if isinstance(image, str):
                bad[i] = image
            else:
                images[i] = image
        changed = False
        made = _sizes(list(images.values()), device, self._threads)
        for i, (size, by_pillow) in zip(images, made, strict=True):
            if isinstance(size, str):
                bad[i] = size
            elif by_pillow and i not in self._refused:
                changed |= not (self.as_bytes and is_for_pillow(images[i]))
                self._refused.add(i)
        if changed and not self.as_bytes:
            some = self.source.names[min(self._refused)]
            logger.info("%s and the like are decoded by Pillow, as DALI refuses them", some)
            self.as_bytes = True
        return bad, changed

    def close(self) -> None:
        self._pool.shutdown()

    def _read(self, i: int) -> NDArray[np.uint8] | str:
        """The bytes of an image, or why it has none."""
        try:
            return self.source.encoded(i)
        except OSError as error:
            return why(error, self.source.paths[i])

    def _bytes(self, i: int) -> NDArray[np.uint8]:
        image = self._read(i)
        if isinstance(image, str):
            return np.zeros(1, np.uint8)
        if i not in self._refused and not is_for_pillow(image):
            return image
        try:
            return as_ppm(decoded(image))
        except Exception:  # then DALI says what is wrong with it
            return image


def decoded_sizes(
    images: Sequence[NDArray[np.uint8]], device: torch.device, num_threads: int
) -> list[tuple[int, int] | str]:
    """What is made of encoded images: (height, width) upright, or in words why nothing is."""
    return [size for size, _ in _sizes(images, device, num_threads)]


def _sizes(
    images: Sequence[NDArray[np.uint8]], device: torch.device, num_threads: int
) -> list[tuple[tuple[int, int] | str, bool]]:
    """As :func:`decoded_sizes`, and whether it is Pillow that decodes it."""
    known = [is_for_pillow(image) for image in images]
    others = [image for image, is_known in zip(images, known, strict=True) if not is_known]
    by_dali = iter(dali.decoded_sizes(others, device, num_threads))
    found: list[tuple[tuple[int, int] | str, bool]] = []
    for image, is_known in zip(images, known, strict=True):
        size = "" if is_known else next(by_dali)
        if not isinstance(size, str):
            found.append((size, False))
            continue
        try:
            height, width, _ = decoded(image).shape
            found.append(((height, width), True))
        except Exception as error:  # whatever damaged bytes make Pillow raise
            found.append((size or why(error), True))
    return found
