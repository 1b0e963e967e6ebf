"""Decoding by Pillow, of images that DALI refuses and of images for display.

The pixels are as DALI decodes images: 8-bit RGB, upright, 16 bits scaled to 8, without an alpha
channel, the first picture of an animation. Pillow's own limit of 179 million pixels applies.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastequi.data.sources import tiff_tags
from fastequi.data.sources.encoded import FORMATS
from fastequi.data.sources.quiet_pillow import quiet_pillow

Pixels = NDArray[np.uint8]  # [H, W, 3]
Bytes = NDArray[np.uint8]  # encoded

_RIFF = 12  # bytes before the first chunk of a WebP file


def decoded(image: Bytes) -> Pixels:
    """The pixels of encoded bytes.

    Raises:
        OSError, ValueError: or any other error that Pillow raises on damaged bytes.
    """
    with quiet_pillow(), Image.open(BytesIO(image.data), formats=FORMATS) as opened:
        return upright(opened)


def upright(image: Image.Image) -> Pixels:
    """The pixels of an image of Pillow's, turned as its EXIF says.

    Raises:
        ValueError: of a kind that has no 8 bits a channel.
    """
    return _rgb(ImageOps.exif_transpose(image))


def as_ppm(pixels: Pixels) -> Bytes:
    """The pixels as a PPM file, which DALI reads: a header and the values."""
    height, width, _ = pixels.shape
    head = np.frombuffer(b"P6\n%d %d\n255\n" % (width, height), np.uint8)
    return np.concatenate([head, pixels.reshape(-1)])


def is_for_pillow(image: Bytes) -> bool:
    """Whether DALI is known to refuse the bytes, GIF, AVIF, DIB, or to make something else of them.

    That is of a WebP whose EXIF stands behind a chunk of odd length, as DALI takes no notice of the
    byte that fills it up; of a TIFF that does not say how many bits a pixel has, one then; and of
    one whose colours DALI multiplies by alpha.
    """
    start = image[:_RIFF].tobytes()
    if start[:4] in (b"GIF8", b"\x28\0\0\0") or start[4:] in (b"ftypavif", b"ftypavis"):
        return True
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return _exif_is_lost(image)
    if not tiff_tags.is_tiff(start):
        return False
    try:
        tags = tiff_tags.tags_of(BytesIO(image.data))
    except Exception:
        tags = {}
    if not tags:  # damaged: DALI says how
        return False
    return tiff_tags.BITS not in tags or tiff_tags.multiplies_by_alpha(tags)


def _exif_is_lost(webp: Bytes) -> bool:
    at, odd = _RIFF, False
    while at + 8 <= len(webp):
        name, size = webp[at : at + 4].tobytes(), int(webp[at + 4 : at + 8].view("<u4")[0])
        if name == b"EXIF":
            return odd
        odd |= size % 2 == 1
        at += 8 + size + size % 2
    return False


def _rgb(image: Image.Image) -> Pixels:
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16 bits; "I" may hold them too
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("more than 16 bits a pixel")
        grey = (values.astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[..., None], 3, -1)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    return np.array(image.convert("RGB"))
