"""DICOM by pydicom (extra `dicom`): one frame, its modality's rescale or table applied.

MONOCHROME1, in which the largest value is black, is inverted. Values that a rescale or a table
changed (Hounsfield units, say) are floats in those units; others are whole numbers as stored. An
enhanced file of several frames says its rescale for all of them, or a frame at a time, where slope
and intercept may differ from frame to frame.
"""

from __future__ import annotations

import io
import os
import stat
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastequi.data.sources.kinds import Kind
from fastequi.data.sources.limits import expect_pixels
from fastequi.data.sources.tiff_tags import CutOff
from fastequi.data.sources.trouble import patiently, raise_trouble

_PREAMBLE = 128  # bytes before the mark
_MARK = b"DICM"
START = _PREAMBLE + len(_MARK)  # bytes that tell DICOM and every other format
_LEAST_BITS = 64  # of a frame, however it is compressed
_TABLE = "DICOMDIR"  # of what a medium holds, in the same form, without an image
_PHOTOMETRIC, _WHITE_IS_0 = "PhotometricInterpretation", "MONOCHROME1"


def is_dicom(start: bytes) -> bool:
    """By the first bytes, START of them."""
    return start[_PREAMBLE : _PREAMBLE + len(_MARK)] == _MARK


def may_be_named(name: str) -> bool:
    """Whether a file's name, without folders, is one that archives give DICOM: without extension,
    or a number of numbers (1.2.840.10008.1)."""
    extension = os.path.splitext(name)[1][1:]
    bare = not extension or (extension.isascii() and extension.isdecimal())
    return bare and not name.startswith(".") and name.upper() != _TABLE


def holds_dicom(path: str) -> bool:
    """Whether a file is DICOM by its bytes; False of one that cannot be read for a reason of its
    own."""
    try:
        return is_dicom(patiently(_start_of, path))
    except OSError as error:
        raise_trouble(error)
        return False


def _start_of(path: str) -> bytes:
    """The first bytes of a regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer waits
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.pread(descriptor, START, 0) if regular else b""
    finally:
        os.close(descriptor)


def shape_of(file: BinaryIO) -> tuple[int, int, Kind]:
    """Height, width and kind, without reading the values.

    Raises:
        ImportError: pydicom is not installed.
        ValueError: there are several frames, or no image.
    """
    found = _read(file, stop_before_pixels=True)
    frames = _frames(found)
    if "Rows" not in found:
        raise ValueError("a DICOM file without an image")
    if frames != 1:
        raise ValueError(
            f"{frames} frames in a DICOM file, expected one; fastequi data scan PLACE --pages "
            f"images, or page=N of read_image, takes them"
        )
    samples, rgb = int(found.get("SamplesPerPixel", 1)), found.get("PhotometricInterpretation", "")
    colours = str(rgb).startswith(("RGB", "YBR", "PALETTE"))
    if str(rgb).startswith("PALETTE"):
        samples = 3
    return int(found.Rows), int(found.Columns), Kind(samples, _depth(found), colours)


def count(file: BinaryIO) -> int:
    """How many frames it has.

    Raises:
        CutOff: it is too short for as many as it says.
    """
    found = _read(file, stop_before_pixels=True)
    frames, size = _frames(found), file.seek(0, io.SEEK_END)
    syntax = found.file_meta.get("TransferSyntaxUID") if hasattr(found, "file_meta") else None
    bits = int(found.get("Rows", 0)) * int(found.get("Columns", 0))
    bits *= int(found.get("SamplesPerPixel", 1)) * int(found.get("BitsAllocated", 16))
    if syntax is not None and (syntax.is_compressed or syntax.is_deflated):
        bits = _LEAST_BITS
    if frames > 1 and frames * max(bits, _LEAST_BITS) > 8 * size:
        raise CutOff(f"cut off: its {size} bytes do not hold the {frames} frames that it says")
    return frames


def is_inverted(file: BinaryIO) -> bool:
    """Whether its largest value is black."""
    file.seek(0)
    found = _read(file, stop_before_pixels=True, specific_tags=[_PHOTOMETRIC])
    return bool(found.get(_PHOTOMETRIC, "") == _WHITE_IS_0)


def decoded(file: BinaryIO, frame: int = 0) -> NDArray[Any]:
    """The values [H, W, C] of a frame.

    Raises:
        ImportError: pydicom is not installed.
        Exception: whatever damage makes it raise.
    """
    found = _read(file)
    samples = int(found.get("SamplesPerPixel", 1))
    expect_pixels(int(found.get("Rows", 0)), int(found.get("Columns", 0)), samples)

    from pydicom import pixels

    if frame >= (frames := _frames(found)):
        raise ValueError(f"the DICOM file's frames are 0 .. {frames - 1}")
    values = found.pixel_array if frames == 1 else pixels.pixel_array(found, index=frame)
    if str(found.PhotometricInterpretation).startswith("PALETTE"):
        values = pixels.apply_color_lut(values, found)
        if values.dtype == np.uint16:
            values = (values >> 8).astype(np.uint8)
    elif _changed(found):
        values = _in_units(values, found, frame).astype(np.float32)
    if found.PhotometricInterpretation == _WHITE_IS_0:
        values = _inverted(values, found, frame)
    depth = np.dtype(_depth(found))
    return values.reshape(*values.shape[:2], -1).astype(depth, copy=False)


def _frames(found: Any) -> int:
    return int(found.get("NumberOfFrames", 1) or 1)


def _inverted(values: NDArray[Any], found: Any, frame: int) -> NDArray[Any]:
    """Black becomes white: largest plus smallest value that can be stored, less each."""
    bits, signed = int(found.BitsStored), bool(found.get("PixelRepresentation", 0))
    ends = np.array([-(1 << (bits - 1)), (1 << (bits - 1)) - 1] if signed else [0, (1 << bits) - 1])
    if _changed(found):
        ends = _in_units(ends, found, frame)
    return (ends.sum() - values.astype(np.float64)).astype(values.dtype)


def _in_units(values: NDArray[Any], found: Any, frame: int) -> NDArray[Any]:
    """Stored numbers in the modality's units."""
    groups = _groups(found)
    if groups:
        if len(groups) not in (1, _frames(found)):
            raise ValueError(f"{len(groups)} rescales of {_frames(found)} frames, expected as many")
        own = groups[frame if len(groups) > 1 else 0]
        if own is None:
            raise ValueError(f"frame {frame} says no rescale, as others do")
        return values * float(own.RescaleSlope) + float(own.RescaleIntercept)

    from pydicom import pixels

    return pixels.apply_modality_lut(values, found)


def _changed(found: Any) -> bool:
    """Whether the stored numbers are not the modality's."""
    if "ModalityLUTSequence" in found:
        return True
    return any(_rescales(one) for one in _groups(found) or [found])


def _rescales(found: Any) -> bool:
    if found is None:
        return False
    slope, intercept = found.get("RescaleSlope"), found.get("RescaleIntercept")
    if slope in (None, "") or intercept in (None, ""):  # both are needed
        return False
    return float(slope) != 1 or float(intercept) != 0


def _groups(found: Any) -> list[Any]:
    """What an enhanced file says of its rescale: for all frames, or one after the other (None where
    it says nothing of one); [] of other files."""
    shared = [_rescale_in(one) for one in found.get("SharedFunctionalGroupsSequence") or []]
    if shared and shared[0] is not None:
        return shared[:1]
    each = [_rescale_in(one) for one in found.get("PerFrameFunctionalGroupsSequence") or []]
    return each if any(one is not None for one in each) else []


def _rescale_in(group: Any) -> Any:
    """The PixelValueTransformationSequence's one item, with both of its numbers; or None."""
    items = group.get("PixelValueTransformationSequence") or []
    if not items or any(
        items[0].get(n) in (None, "") for n in ("RescaleSlope", "RescaleIntercept")
    ):
        return None
    return items[0]


def _depth(found: Any) -> str:
    bits, signed = int(found.get("BitsAllocated", 16)), bool(found.get("PixelRepresentation", 0))
    if str(found.get("PhotometricInterpretation", "")).startswith("PALETTE"):
        return "uint8"
    if _changed(found) or signed or bits > 16:
        return "float32"
    return "uint8" if bits <= 8 else "uint16"


def _read(file: BinaryIO, **options: Any) -> Any:
    try:
        import pydicom  # takes most of a second
    except Exception as error:  # a broken install raises more than ImportError
        raise ImportError(
            f"DICOM needs pydicom: pip install 'fastequi[dicom]' (importing it: {error})"
        ) from error
    return pydicom.dcmread(file, **options)
