"""Images whose channels are kept: which of them DALI decodes, and the values of the others.

DALI decodes JPEG, PNG and JPEG 2000 of one or three channels, PNG with an alpha channel, and TIFF
whose channels lie together in 8 or 16 bits. The rest is read by Pillow, tifffile, NumPy or pydicom,
in worker threads, and passed on as uncompressed TIFF. Of more than 32 channels all is passed as
.npy, which DALI reads too; so are sets of such files. (Of other combinations DALI makes RGB, or
ends the process.)
"""

from __future__ import annotations

import logging
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastequi.data.pixels import LARGEST, Pixels
from fastequi.data.sources import arrays, dicom, kinds, tiff, tiff_tags
from fastequi.data.sources.encoded import FORMATS, orientation_of
from fastequi.data.sources.quiet_pillow import quiet_pillow

logger = logging.getLogger(__name__)

Bytes = NDArray[np.uint8]  # encoded

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_JPEG2000 = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_WITH_ALPHA = 6
_OF_PNG = {0: 1, 2: 3, _WITH_ALPHA: 4}  # channels of the colour types that DALI decodes


def is_for_dali(image: Bytes, pixels: Pixels) -> bool:
    """Whether DALI decodes the bytes as they are."""
    start = image[: dicom.START].tobytes()
    if dicom.is_dicom(start):  # which may begin as a TIFF does
        return False
    if pixels.as_arrays:  # floats are looked at
        return pixels.depth != "float32" and arrays.is_plain(
            BytesIO(image.data), pixels.depth, pixels.count
        )
    if start.startswith(_PNG):
        if start[24] < 8 or _OF_PNG.get(start[25]) != pixels.count:
            return False
        # DALI 2.4 writes beyond the end of an image of four channels that it turns
        return start[25] != _WITH_ALPHA or b"eXIf" not in image.tobytes()
    if start.startswith(_JPEG) or start.startswith(_JPEG2000):
        return pixels.count in (1, 3)
    if tiff_tags.is_tiff(start):
        tags = tiff_tags.tags_of(BytesIO(image.data))
        # with fewer, several pages hold them
        return tiff_tags.is_for_dali(tags) and tags.get(tiff_tags.SAMPLES, 1) == pixels.count
    return False


def carried(image: Bytes, pixels: Pixels) -> Bytes:
    """Bytes that DALI decodes, of an image that it does not.

    Raises:
        Exception: as :func:`checked`.
    """
    values = checked(image, pixels)
    return arrays.encoded(values) if pixels.as_arrays else tiff.encoded(values)


def checked(image: Bytes, pixels: Pixels) -> NDArray[Any]:
    """The values [H, W, C] of an image, as a run takes them.

    Raises:
        ValueError: it has other channels than the run's, or values that are not finite.
        Exception: whatever damaged bytes make a library raise.
    """
    values = of_depth(decoded(image, pixels.count), pixels.depth)
    if values.shape[2] != pixels.count:
        raise ValueError(f"{values.shape[2]} channels, expected {pixels.count}")
    if values.dtype.kind == "f" and (wrong := int((~np.isfinite(values)).sum())):
        raise ValueError(
            f"{wrong} of its values are not finite; a scan with --nodata file fills them"
        )
    return values


def decoded(image: Bytes, channels: int | None = None) -> NDArray[Any]:
    """The values [H, W, C] of encoded bytes, upright, in their own type.

    Args:
        image: the bytes.
        channels: of the image, where several pages of a TIFF hold them.

    Raises:
        Exception: as :func:`carried`.
    """
    start, file = image[: dicom.START].tobytes(), BytesIO(image.data)
    if dicom.is_dicom(start):
        return dicom.decoded(file)
    if arrays.format_of_bytes(start):
        return arrays.decoded(file)
    if tiff_tags.is_tiff(start) and not tiff_tags.is_for_pillow(tiff_tags.tags_of(file)):
        file.seek(0)
        return tiff.decoded(file, channels)
    file.seek(0)
    if start.startswith(_PNG) and start[24] == 16 and start[25] == _WITH_ALPHA:
        raise ValueError("16 bits with alpha, which are not read with their depth here")
    with quiet_pillow(), Image.open(file, formats=FORMATS) as opened:
        exif, form, mode = opened.info.get("exif"), opened.format, opened.mode
        if form != "TIFF" and kinds.of_opened(opened) is None:
            raise ValueError(kinds.MORE_BITS)
        if mode in ("P", "CMYK", "YCbCr", "PA"):
            opened = opened.convert("RGB")
        values = np.asarray(opened)
    if mode == "I" and form == "PPM":
        values = values.astype(np.uint16)
    values = values.reshape(*values.shape[:2], -1)
    # Pillow turns a TIFF itself when it loads it
    return values if form == "TIFF" else tiff.turned(values, orientation_of(exif))


def is_array(image: Bytes) -> bool:
    """Whether neither DALI nor Pillow makes RGB of the bytes: NumPy's, DICOM, an odd TIFF."""
    start = image[: dicom.START].tobytes()
    if dicom.is_dicom(start):
        return True
    if tiff_tags.is_tiff(start):
        try:
            return tiff_tags.is_odd(tiff_tags.tags_of(BytesIO(image.data)))
        except Exception:  # damaged; who decodes it says so
            return False
    return bool(arrays.format_of_bytes(start))


def as_rgb(values: NDArray[Any]) -> NDArray[np.uint8]:
    """8-bit RGB [H, W, 3] of values [H, W, C] of 8 or 16 bits: grey, with alpha, RGB, with alpha.

    Raises:
        ValueError: they are others.
    """
    whole = of_depth(values, values.dtype.name if values.dtype != bool else "uint8")
    if whole.dtype.name not in ("uint8", "uint16") or whole.shape[2] > 4:
        raise ValueError(f"{whole.shape[2]} channels of {whole.dtype}, of which no RGB is made")
    if whole.dtype == np.uint16:
        whole = ((whole.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return whole[..., :3] if whole.shape[2] >= 3 else np.repeat(whole[..., :1], 3, -1)


def of_depth(values: NDArray[Any], depth: str) -> NDArray[Any]:
    """Values in one of `kinds.DEPTHS`: whole numbers of 8 and 16 bits scaled as the types' ranges
    are, others as they are; told where float32 rounds whole numbers."""
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype == bool:
        values = values.astype(np.uint8) * np.uint8(255)
    name = values.dtype.name
    if name == depth:
        return values
    if name == "uint8" and depth == "uint16":
        return values.astype(np.uint16) * np.uint16(257)
    if depth != "float32":
        raise ValueError(f"values of type {name}, expected {depth}")
    if name in ("uint8", "uint16"):
        return values.astype(np.float32) / np.float32(LARGEST[name])
    floats = values.astype(np.float32)
    if values.dtype.kind in "iu" and values.size and _may_round(values):
        beyond = floats >= 2.0 ** (8 * values.itemsize - (values.dtype.kind == "i"))
        with np.errstate(invalid="ignore"):  # of those, which become one or another number
            if (beyond | (floats.astype(values.dtype) != values)).any():
                _tell_rounded(name)
    return floats


def _may_round(values: NDArray[Any]) -> bool:
    """Whether a whole number lies beyond those that float32 holds without gaps."""
    return values.itemsize > 2 and max(-int(values.min()), int(values.max())) > 1 << 24


@cache
def _tell_rounded(name: str) -> None:
    """Said once of a type."""
    logger.warning("values of %s beyond 2^24 are rounded, as they become float32 (said once)", name)
