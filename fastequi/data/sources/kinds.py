"""What the values of an image are, as its header says: how many channels, how deep, and if RGB.

A kind is one number of 16 bits in an index: the channels, four times the depth's place in DEPTHS
behind them, whether they are red, green and blue, and whether no RGB can be made of the image. 0 is
a kind that is not known, as in indices that were written before, or not read with its channels;
DEEPER one of more than 8 bits, of which 8-bit RGB alone can be made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DEPTHS = ("uint8", "uint16", "float32")  # other types than the first two are read as the last
MOST = 4095  # channels that a kind can say
_DEPTH, _RGB = 1 << 12, 1 << 14
NO_RGB = 1 << 15  # nothing here makes RGB of the image
DEEPER = _DEPTH  # no channels
MORE_BITS = "more than 8 bits, which nothing here reads of this kind of file"  # of DEEPER
_OF_MODES = {"1": 1, "L": 1, "LA": 2, "RGBA": 4, "La": 2, "RGBa": 4, "LAB": 3, "HSV": 3, "RGBX": 4}
_CHUNK = 1 << 20  # images
SIZ_WITHIN = 1 << 16  # bytes of a JPEG 2000, in which its SIZ segment lies
_GREY_ALPHA = 4
_COLOUR_TYPES = {0: 1, 2: 3, 3: 3, _GREY_ALPHA: 2, 6: 4}  # of PNG
_SLICES, _COMPLEX = 32997, (5, 6)  # a tag of TIFF; sample formats
_TYPES = {2: "int", 3: "float"}  # by sample format
_PHOTOMETRIC_RGB, _PHOTOMETRIC_PALETTE, _PHOTOMETRIC_CMYK, _PHOTOMETRIC_YCBCR = 2, 3, 5, 6


class Kind(NamedTuple):
    """Channels, the type of their values, and whether the first three are red, green and blue."""

    channels: int
    depth: str = "uint8"
    rgb: bool = False

    @property
    def code(self) -> int:
        """As a number; 0 of one with too many channels."""
        if self.channels > MOST:
            return 0
        return self.channels + _DEPTH * DEPTHS.index(self.depth) + _RGB * self.rgb

    @property
    def more_than_rgb8(self) -> bool:
        """Whether 8-bit RGB that is made of an image keeps less than it holds."""
        return self.depth == "uint16" or self.channels not in (1, 3)

    @classmethod
    def of(cls, code: int) -> Kind | None:
        """From a number; None of 0 and DEEPER."""
        if not code % _DEPTH:
            return None
        depth = DEPTHS[code // _DEPTH % 4]
        return cls(code % _DEPTH, depth, bool(code & _RGB))

    def __str__(self) -> str:
        what = "channel" if self.channels == 1 else "channels"
        rgb = " (RGB)" if self.rgb and self.channels == 3 else ""
        return f"{self.channels} {what}{rgb} of {self.depth}"


RGB8 = Kind(3, "uint8", True)


ARRAYS = frozenset(("NPY", "NPZ"))  # formats that do not say which axis is which


# behind their format: where a scan was told it of them; where they are made of other files
PLANES, TIFF_PAGE, DICOM_FRAME, FILLED_TIFF = "[C H W]", "TIFF page", "DICOM frame", "filled TIFF"
OF_OTHERS = frozenset((TIFF_PAGE, DICOM_FRAME, FILLED_TIFF))


def doubt_about_axes(kind: Kind, side: int, formats: Iterable[str]) -> str:
    """A doubt about files with more channels than the smallest side has pixels; "" without one.
    It is of arrays, and of TIFF that were written of them.

    Args:
        kind: of some.
        side: the smallest of all.
        formats: of the files, as of headers.
    """
    each = [form.split(", ") for form in formats]
    marks = [one for one in each if ARRAYS.intersection(one) and not OF_OTHERS.intersection(one)]
    if kind.channels <= side:
        return ""
    if not marks:
        many = f"more channels ({kind.channels}) than the {side} pixels of a side"
        written = f"{many}: were arrays [C, H, W] written to TIFF as if they were [H, W, C]?"
        return written if any("TIFF" in form for one in each for form in one) else ""
    planes = all(PLANES in one for one in marks)
    read, other, axes = "[H, W, C]", "[C, H, W]", "chw"
    if planes:
        read, other, axes = other, read, "hwc"
    return (
        f"more channels ({kind.channels}) than the {side} pixels of a side: is it {other}? "
        f"{read} is read; fastequi data scan PLACE --axes {axes}, or axes={axes!r} of read_image, "
        f"makes it that"
    )


def depth_of(dtype: np.dtype[Any]) -> str:
    """The one of DEPTHS in which values of a type are read.

    Raises:
        ValueError: they are no numbers.
    """
    if dtype.kind not in "buif":
        raise ValueError(f"values of type {dtype}, expected numbers")
    name = "uint8" if dtype.kind == "b" else dtype.newbyteorder("=").name
    return name if name in DEPTHS else "float32"


def of_shape(shape: Sequence[int], dtype: np.dtype[Any]) -> tuple[int, int, Kind]:
    """Height, width and kind of an array [H, W] or [H, W, C].

    Raises:
        ValueError: it is none, or its values are no numbers.
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"an array of shape {tuple(shape)}, expected [H, W] or [H, W, C]")
    return shape[0], shape[1], Kind(shape[2] if len(shape) == 3 else 1, depth_of(dtype))


def of_opened(image: Image.Image) -> Kind | None:
    """Of an image of Pillow's that is no TIFF; None where it makes 8 bits of more that nothing else
    here reads.

    Raises:
        ValueError: its values are signed, which Pillow shifts.
    """
    if image.format == "JPEG2000" and (found := _jpeg2000(image)) is not None:
        channels, bits, signed = found
        if signed:
            raise ValueError("a JPEG 2000 of signed values, which are not read")
        if bits > 8:
            return Kind(channels, "uint16", channels == 3) if channels in (1, 3) else None
    if image.format == "PNG":
        bits, colour = _png(image)
        if bits == 16 and colour == _GREY_ALPHA:
            return None
        return Kind(_COLOUR_TYPES[colour], "uint16" if bits == 16 else "uint8", colour in (2, 3, 6))
    mode = image.mode
    if mode.startswith("I;16"):
        return Kind(1, "uint16")
    if mode == "I" and image.format == "PPM":  # more than 8 bits, 16 at most
        return Kind(1, "uint16")
    if mode in ("I", "F"):
        return Kind(1, "float32")
    return Kind(_OF_MODES.get(mode, 3), "uint8", mode not in ("LAB", "HSV", "1", "L", "LA", "La"))


def of_tags(tags: Any) -> Kind | None:
    """Of a TIFF's first page, from its tags by number; None where the channels differ in width or
    have one that is not read as it is.

    Raises:
        ValueError: there is no channel, the values are complex, or it is a volume.
    """
    samples, bits = int(tags.get(277, 1)), tuple(tags.get(258, (1,)))
    formats, photometric = tuple(tags.get(339, (1,))), int(tags.get(262, 1))
    if samples < 1:
        raise ValueError(f"{samples} channels, expected at least one")
    if formats[0] in _COMPLEX:
        raise ValueError("complex values, which are not read")
    if (slices := int(tags.get(_SLICES, 1))) > 1:
        raise ValueError(f"a volume of {slices} slices in one page, which is not read")
    if photometric == _PHOTOMETRIC_PALETTE:
        return RGB8
    if len(set(bits)) > 1 or bits[0] not in (1, 2, 4, 8, 16, 32, 64):
        return None
    integer = formats[0] in (1, 4)  # 4: not said
    depth = "float32"
    if integer and bits[0] <= 16:
        depth = "uint16" if bits[0] == 16 else "uint8"
    if photometric in (_PHOTOMETRIC_CMYK, _PHOTOMETRIC_YCBCR) and samples >= 3:
        return RGB8 if depth == "uint8" else None  # which Pillow converts, to 8 bits
    return Kind(samples, depth, photometric == _PHOTOMETRIC_RGB and samples in (3, 4))


def type_of_tags(tags: Any) -> str:
    """The name of the type of a TIFF's values, as NumPy's."""
    bits, form = tags.get(258, (1,))[0], tags.get(339, (1,))[0]
    return f"{_TYPES.get(form, 'uint')}{bits}"


def tally(codes: NDArray[np.uint16] | None) -> dict[int, int]:
    """{number of a kind: images}, in one pass over the column that needs little memory."""
    if codes is None or not len(codes):
        return {}
    if codes.strides == (0,):  # all the same
        return {int(codes[0]): len(codes)}
    total = np.zeros(1 << 16, np.int64)
    for start in range(0, len(codes), _CHUNK):
        total += np.bincount(codes[start : start + _CHUNK], minlength=1 << 16)
    return {int(code): int(total[code]) for code in np.flatnonzero(total)}


def counts(codes: NDArray[np.uint16] | None) -> dict[Kind, int]:
    """{kind: images}, the most frequent first, of those that are known."""
    total: dict[Kind, int] = {}
    for code, count in tally(codes).items():
        if (kind := Kind.of(code)) is not None:
            total[kind] = total.get(kind, 0) + count
    return dict(sorted(total.items(), key=lambda one: -one[1]))


def _jpeg2000(image: Image.Image) -> tuple[int, int, bool] | None:
    """Channels, bits of the deepest, and whether any is signed, by the SIZ segment; or None."""
    file: Any = image.fp  # type: ignore[attr-defined]
    at = file.tell()
    file.seek(0)
    start = file.read(SIZ_WITHIN)
    file.seek(at)
    return siz_of(start)


def siz_of(start: bytes) -> tuple[int, int, bool] | None:
    """The same of the first bytes of a file; None where there is no SIZ segment among them."""
    first = start.find(b"\xff\x4f\xff\x51")  # of the codestream, then the segment
    if first < 0 or len(start) < first + 43:
        return None
    channels = int.from_bytes(start[first + 40 : first + 42], "big")
    each = start[first + 42 : first + 42 + 3 * channels : 3]
    return channels, max(bits & 0x7F for bits in each) + 1, any(bits & 0x80 for bits in each)


def _png(image: Image.Image) -> tuple[int, int]:
    """Bits and colour type, which stand in bytes 24 and 25 of the file."""
    file: Any = image.fp  # type: ignore[attr-defined]
    at = file.tell()
    file.seek(24)
    bits, colour = file.read(2)
    file.seek(at)
    return bits, colour
