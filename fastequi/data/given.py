"""The form in which DALI gets a source's images: paths, encoded bytes, or Pillow's pixels.

DALI reads files itself if it decodes all of their formats. Members of shards are passed as bytes,
and so is every image once one may need Pillow: what DALI refuses and Pillow decodes is passed as
plain pixels; an image that both refuse is damaged. Which of the two decodes an image depends on its
bytes alone, so every process and every resumed run has the same pixels.

Images that DALI is known to refuse are never passed to it: in a batch with others, one such image
can end the process (DALI 2.4, a segmentation fault about once in some hundred batches).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from fastequi.data import decode
from fastequi.data.pillow import as_ppm, decoded, is_for_pillow
from fastequi.data.sources.encoded import why
from fastequi.data.sources.images import Source

logger = logging.getLogger(__name__)

_DIRECT = {"JPEG", "MPO", "PNG", "BMP", "PPM", "JPEG2000"}  # formats of which DALI decodes all

_ASKING = 16  # threads that read images behind URLs


def usable_threads(asked: int) -> int:
    """The given number; for 0 all usable cores, at most 16."""
    return asked or min(len(os.sched_getaffinity(0)), 16)


class Given:
    """A source's images in the form that DALI takes.

    Args:
        source: the images.
        threads: number of threads that read and decode, beside DALI's.
    """

    def __init__(self, source: Source, threads: int) -> None:
        self.source = source
        # of requests over a network many wait while few threads work
        self._pool = ThreadPoolExecutor(threads if source.remote is None else max(threads, _ASKING))
        self._threads = threads
        self._refused: set[int] = set()  # by DALI, not by Pillow
        self.as_bytes = source.spans is not None or not set(source.formats) <= _DIRECT

    def files(self, places: Sequence[int]) -> list[decode.File]:
        """These images for DALI; an unreadable one is a single byte, which fails to decode."""
        if not self.as_bytes:
            return [self.source.paths[i] for i in places]
        return list(self._pool.map(self._bytes, places))

    def examine(self, places: Sequence[int], device: torch.device) -> tuple[dict[int, str], bool]:
        """Finds the images that cannot be decoded, after a batch with them failed.

        Images that only DALI refuses are decoded by Pillow from now on.

        Returns:
            {place: reason}, and whether any other image now has another form than before.
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
        """The bytes of an image, or the reason why they cannot be read."""
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
        except Exception:  # DALI will report what is wrong with it
            return image


def decoded_sizes(
    images: Sequence[NDArray[np.uint8]], device: torch.device, num_threads: int
) -> list[tuple[int, int] | str]:
    """The decoded size (height, width) of each image, upright, or the reason why it fails."""
    return [size for size, _ in _sizes(images, device, num_threads)]


def _sizes(
    images: Sequence[NDArray[np.uint8]], device: torch.device, num_threads: int
) -> list[tuple[tuple[int, int] | str, bool]]:
    """As :func:`decoded_sizes`, and whether Pillow decodes it."""
    known = [is_for_pillow(image) for image in images]
    others = [image for image, is_known in zip(images, known, strict=True) if not is_known]
    by_dali = iter(decode.decoded_sizes(others, device, num_threads))
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
