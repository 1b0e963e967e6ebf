"""The form in which DALI gets a source's images: paths, encoded bytes, or Pillow's pixels.

DALI reads files itself if it decodes all of their formats. Members of shards are passed as bytes,
and so is every image once one may need Pillow: what DALI refuses and Pillow decodes is passed as
plain pixels; an image that both refuse is damaged. Which of the two decodes an image depends on its
bytes alone, so every process and every resumed run has the same pixels. (Where a run keeps channels
there are more libraries beside Pillow, see `fastequi.data.values`.)

Images that DALI is known to refuse are never passed to it: in a batch with others, one such image
can end the process (DALI 2.4, a segmentation fault about once in some hundred batches).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastequi.data import decode, values
from fastequi.data.pillow import as_ppm, decoded, is_for_pillow
from fastequi.data.pixels import Pixels
from fastequi.data.sources.encoded import header, unmarked, why
from fastequi.data.sources.images import Source
from fastequi.data.sources.kinds import Kind
from fastequi.data.sources.trouble import Unreadable, lacks_memory, patiently, raise_trouble
from fastequi.data.values import as_rgb, carried, checked, is_array, is_for_dali

logger = logging.getLogger(__name__)

_DIRECT = {"JPEG", "MPO", "PNG", "BMP", "PPM", "JPEG2000"}  # formats of which DALI decodes all

_TIMES = 4  # an image as floats, that decoding may take
_ASKING = 16  # threads that read images behind URLs


def usable_threads(asked: int) -> int:
    """The given number; for 0 all usable cores, at most 16."""
    return asked or min(len(os.sched_getaffinity(0)), 16)


class Given:
    """A source's images in the form that DALI takes.

    Args:
        source: the images.
        threads: number of threads that read and decode, beside DALI's.
        pixels: what the run takes of them; None: 8-bit RGB.
    """

    def __init__(self, source: Source, threads: int, pixels: Pixels | None = None) -> None:
        self.source, self.pixels = source, pixels
        # of requests over a network many wait while few threads work
        self._pool = ThreadPoolExecutor(threads if source.remote is None else max(threads, _ASKING))
        self._threads = threads
        self._refused: set[int] = set()  # by DALI, not by Pillow
        direct = _DIRECT if pixels is None else set[str]()
        self.as_bytes = source.spans is not None or not set(map(unmarked, source.formats)) <= direct

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
        made = _sizes(list(images.values()), device, self._threads, self.pixels)
        for i, (size, by_library) in zip(images, made, strict=True):
            if isinstance(size, str):
                bad[i] = size
            elif by_library and i not in self._refused:
                changed |= not (self.as_bytes and self._is_known(images[i]))
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
            return patiently(self.source.encoded, i)
        except (MemoryError, OSError) as error:
            if not isinstance(error, Unreadable):  # which loses its shard
                raise_trouble(error, self.source.paths[i])
            return why(error, self.source.paths[i])

    def _bytes(self, i: int) -> NDArray[np.uint8]:
        image = self._read(i)
        if isinstance(image, str):
            return np.zeros(1, np.uint8)
        if i not in self._refused and not self._is_known(image):
            return image
        try:
            return _carried(image, self.pixels)
        except Exception:  # a batch with it fails, and then it is looked at by itself
            return image if self.pixels is None else np.zeros(1, np.uint8)

    def _is_known(self, image: NDArray[np.uint8]) -> bool:
        return _is_for_library(image, self.pixels)


def decoded_sizes(
    images: Sequence[NDArray[np.uint8]],
    device: torch.device,
    num_threads: int,
    pixels: Pixels | None = None,
    see: decode.See | None = None,
) -> list[tuple[int, int] | str]:
    """The decoded size (height, width) of each image, upright, or the reason why it fails.

    Args:
        images: encoded.
        device: where they are decoded.
        num_threads: at most.
        pixels: what is made of them; None: 8-bit RGB.
        see: called with the values [H, W, C] of each, by several threads.
    """
    return [size for size, _ in _sizes(images, device, num_threads, pixels, see)]


def decoded_values(image: NDArray[np.uint8], pixels: Pixels | None) -> NDArray[Any]:
    """The values [H, W, C] of one image as batches of it have them; without DALI, those of the
    other libraries, which are the same but for a JPEG's rounding.

    Args:
        image: encoded.
        pixels: what is made of it; None: 8-bit RGB.

    Raises:
        ValueError: it cannot be decoded.
        ImportError: a library that it needs is not installed.
        MemoryError: there is none for it.
    """
    found: list[NDArray[Any]] = []
    if decode.is_installed() and not _is_for_library(image, pixels):
        # DALI's memory is its own
        (size,) = decode.decoded_sizes(
            [image], torch.device("cpu"), 1, pixels, lambda values: found.append(np.array(values))
        )
        if not isinstance(size, str):
            return found[0]
    try:
        return np.array(_values(image, pixels))  # some are not writable
    except (ImportError, MemoryError, ValueError):
        raise
    except Exception as error:  # whatever damaged bytes make a library raise
        raise ValueError(why(error)) from error


def _is_for_library(image: NDArray[np.uint8], pixels: Pixels | None) -> bool:
    """Whether the bytes are never to be passed to DALI."""
    if pixels is None:
        return is_for_pillow(image) or is_array(image)
    try:
        return not is_for_dali(image, pixels)
    except Exception:  # damaged tags
        return True


def _carried(image: NDArray[np.uint8], pixels: Pixels | None) -> NDArray[np.uint8]:
    """What DALI gets instead of the bytes."""
    return as_ppm(_values(image, None)) if pixels is None else carried(image, pixels)


def _sizes(
    images: Sequence[NDArray[np.uint8]],
    device: torch.device,
    num_threads: int,
    pixels: Pixels | None,
    see: decode.See | None = None,
) -> list[tuple[tuple[int, int] | str, bool]]:
    """As :func:`decoded_sizes`, and whether a library other than DALI decodes it."""
    known = [_is_for_library(image, pixels) for image in images]
    others = [image for image, is_known in zip(images, known, strict=True) if not is_known]
    by_dali = iter(decode.decoded_sizes(others, device, num_threads, pixels, see))
    found: list[tuple[tuple[int, int] | str, bool]] = []
    for image, is_known in zip(images, known, strict=True):
        size = "" if is_known else next(by_dali)
        if not isinstance(size, str):
            found.append((size, False))
            continue
        try:
            if _of_memory(size) and lacks_memory(_needed(image)):
                raise MemoryError(size)  # which is no reason to decode it otherwise
            made = patiently(_values, image, pixels)
        except Exception as error:  # whatever damaged bytes make a library raise
            raise_trouble(error, needed=_needed(image))
            found.append((size or why(error), True))
            continue
        found.append((made.shape[:2], True))
        if see is not None:
            see(made)
    return found


def _of_memory(reason: str) -> bool:
    """Whether DALI failed for want of memory."""
    return any(word in reason.lower() for word in ("memory", "bad_alloc"))


def _needed(image: NDArray[np.uint8]) -> int:
    """Bytes that an image takes while it is decoded, by what it claims to be."""
    found = header(image)
    if isinstance(found, str):
        return 0
    kind = Kind.of(found.kind)
    return _TIMES * 4 * found.height * found.width * (4 if kind is None else kind.channels)


def _values(image: NDArray[np.uint8], pixels: Pixels | None) -> NDArray[Any]:
    """As a library other than DALI decodes the bytes."""
    return rgb_of(image) if pixels is None else checked(image, pixels)


def rgb_of(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """8-bit RGB [H, W, 3] of encoded bytes, upright, by another library than DALI.

    Raises:
        Exception: whatever damaged bytes make it raise.
    """
    return as_rgb(values.decoded(image)) if is_array(image) else decoded(image)
