"""Image files at the size that an encoder takes, which need not be square."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fastequi.data.pillow import Pixels, decoded
from fastequi.data.sources.encoded import header, read, why

Size = tuple[int, int]
"""Height and width in pixels."""


def size_of(file: Path) -> Size:
    """Of an image, from its header.

    Raises:
        ValueError: it is not there, or no image; names it.
    """
    if not file.is_file():
        raise ValueError(f"{file}: expected an image, there is no such file")
    found = header(str(file))
    if isinstance(found, str):
        raise ValueError(f"{file}: expected an image ({found})")
    return found.height, found.width


def fitting(size: Size, side: int, patch: int) -> Size:
    """The nearest size whose sides are multiples of a patch and whose shorter side is `side`,
    rounded to one."""
    scale = side / min(size)
    height, width = (max(round(length * scale / patch), 1) * patch for length in size)
    return height, width


def pixels_of(file: Path) -> Pixels:
    """[H, W, 3] uint8.

    Raises:
        ValueError: it cannot be decoded; names it.
    """
    try:
        return decoded(read(str(file)))
    except Exception as error:  # whatever damaged bytes make Pillow raise
        raise ValueError(f"{file}: expected an image ({why(error, str(file))})") from error


def image_of(file: Path, size: Size) -> Tensor:
    """[3, H, W] uint8, each side resized alone, with antialiasing.

    Raises:
        ValueError: it cannot be decoded; names it.
    """
    resized = Image.fromarray(pixels_of(file)).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return (
        torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
        .view(*size, 3)
        .movedim(-1, 0)
    )
