"""Image files: whether they are whole, what they hold, and their images at the size that an encoder
takes, which need not be square."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastequi.data.channels import RGB
from fastequi.data.pillow import Pixels, decoded, upright
from fastequi.data.single import read_image
from fastequi.data.sources.encoded import FORMATS, header, read, why
from fastequi.data.sources.quiet_pillow import quiet_pillow
from fastequi.data.values import is_array

Size = tuple[int, int]
"""Height and width in pixels."""

_BIT_DEPTH = 24  # the byte of a PNG's header that says it

A = TypeVar("A")
B = TypeVar("B")


def in_threads(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """What a function that opens images makes of each, in order; the first error is raised."""
    Image.init()  # registers the formats before threads ask for them

    def quietly(item: A) -> B:
        with quiet_pillow():
            return function(item)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(quietly, items))


def whole_size(file: Path) -> Size:
    """Of an image, which is decoded to see that it is whole: a header is there in a file that was
    cut off, too.

    Raises:
        ValueError: it is not there, no image, or damaged; names it.
    """
    size = size_of(file)
    try:
        with Image.open(file, formats=FORMATS) as opened:
            opened.draft(None, (1, 1))  # a JPEG at an eighth of its size: every byte, less time
            upright(opened)
    except Exception as error:  # whatever damaged bytes make Pillow raise
        raise ValueError(f"{file}: expected an image ({why(error, str(file))})") from error
    return size


def stored_values(file: Path, opened: Image.Image) -> NDArray[Any]:
    """The values [H, W] of a PNG or TIFF as they stand in the file, palettes not applied.

    Pillow scales grey of 1, 2 and 4 bits to 0..255; that is undone here of PNG.

    Raises:
        ValueError: a TIFF of such grey, or one in which 0 is white, whose values it changes.
    """
    values = np.array(opened)
    if opened.format == "TIFF" and opened.mode in ("1", "L", "P"):
        tags = getattr(opened, "tag_v2", {})
        bits, photometric = tags.get(258, (1,)), tags.get(262, 1)
        if tuple(bits) != (8,) or photometric == 0:
            raise ValueError(
                f"{file}: expected a TIFF of 8 bits in which 0 is black, got {bits[0]} bits of "
                f"photometric {photometric}"
            )
    if opened.mode not in ("1", "L") or opened.format == "TIFF":
        return values
    with file.open("rb") as stream:
        bits = stream.read(_BIT_DEPTH + 1)[_BIT_DEPTH]
    if bits == 1:
        return values.astype(bool).astype(np.uint8)
    return values // (255 // (2**bits - 1))


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
        data = read(str(file))
        if is_array(data):  # Pillow takes its channels for rows, or does not open it
            return read_image(file, RGB).permute(1, 2, 0).numpy()
        return decoded(data)
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
