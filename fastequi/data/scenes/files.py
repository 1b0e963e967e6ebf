"""Files of scenes; the same values make the same bytes with the same Pillow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastequi.data.pillow import Pixels

Job = Callable[[], None]
"""Writes one image, clip or pair, whatever other jobs do."""

_QUALITY = 95


def save_jpeg(file: Path, image: Pixels) -> None:
    """[H, W, 3] as JPEG without subsampled colours; its folder is made."""
    _made(file)
    Image.fromarray(image).save(file, quality=_QUALITY, subsampling=0)


def save_png(file: Path, values: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """[H, W, 3] or [H, W] uint8, or [H, W] uint16, as PNG; its folder is made."""
    _made(file)
    Image.fromarray(values).save(file)


def save_ids(file: Path, ids: NDArray[np.uint8]) -> None:
    """[H, W] as a PNG with Pascal VOC's palette, which DAVIS uses too; its folder is made."""
    _made(file)
    image = Image.fromarray(ids)
    image.putpalette(_palette().tobytes())
    image.save(file)


def _palette() -> NDArray[np.uint8]:
    """[256, 3]: of the bits of an id, in threes, from the lowest, the colours' bits from the
    highest (VOC's development kit, VOClabelcolormap)."""
    ids = np.arange(256)[:, None]
    colours = np.zeros((256, 3), np.int64)
    for place in range(8):
        colours |= (ids >> (3 * place + np.arange(3)) & 1) << (7 - place)
    return colours.astype(np.uint8)


def _made(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
