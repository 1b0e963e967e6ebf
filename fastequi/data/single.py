"""One image file as a tensor, as runs and evaluations read it: for an encoder in Python."""

from __future__ import annotations

import logging
import numbers
import os

import torch
from PIL import Image
from torch import Tensor

from fastequi.data.channels import ALL, RGB, chosen
from fastequi.data.given import decoded_values
from fastequi.data.pixels import Pixels
from fastequi.data.sources import encoded, pages
from fastequi.data.sources.kinds import NO_RGB, PLANES, Kind, doubt_about_axes
from fastequi.data.sources.parts import WHOLE, FilePart, expect_array, nodata_of

logger = logging.getLogger(__name__)


def read_image(
    path: str | os.PathLike[str],
    channels: str = ALL,
    *,
    page: int | None = None,
    pages_are_channels: bool = False,
    axes: str = "hwc",
    array: str = "",
    nodata: str | float = "none",
) -> Tensor:
    """The values of an image file as runs have them before their value range and resizing.

    They are what `encoder.transform` takes::

        import fastequi
        from fastequi.data import read_image

        encoder = fastequi.load("runs/mine")
        image = read_image("tile.tif", encoder.channels)
        tokens = encoder(encoder.transform(image)[None])

    Upright, in the file's own numbers: of DICOM in the modality's units. MINISWHITE TIFF of whole
    numbers and MONOCHROME1 DICOM are inverted (0 is black then), as for runs.

    Args:
        path: of a file of any format that runs read.
        channels: which ones, as `data.channels` of a run and `encoder.channels` say: "all", numbers
            from 0 such as "3,2,1", or "rgb" for 8-bit RGB.
        page: a page of a TIFF, a frame of DICOM, from 0, or a plane of depth and time with all its
            channels of an OME-TIFF or ImageJ's; None: the image that the file is.
        pages_are_channels: all pages of a TIFF are channels of one image, as after a scan with
            `--pages channels`; those of OME-TIFF and ImageJ are where the file says so.
        axes: "hwc" or "chw": how a NumPy array of three axes lies, as `--axes` of a scan.
        array: name of the array of a .npz that has several, as `--array` of a scan.
        nodata: a number, or "file" for the one that a GeoTIFF says: its pixels and those that are
            not finite get the least value of their channel, as `--nodata` of a scan.

    Returns:
        [C, H, W] uint8, uint16, or float32 of all other types, in which whole numbers beyond 2^24
        are rounded; a warning says so.

    Raises:
        OSError: the file cannot be read.
        TypeError: an argument is of another type.
        ValueError: it is damaged, holds values that are not finite, or lacks the channels.
        ImportError: a library that the format needs is not installed.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: expected a file's, got {type(path).__name__}")
    if not isinstance(channels, str):
        raise TypeError(f'channels: expected a text such as "all" or "0,2", got {channels!r}')
    if page is not None and (not isinstance(page, numbers.Integral) or isinstance(page, bool)):
        raise TypeError(f"page: expected a whole number or None, got {page!r}")
    file, taken = os.fspath(path), chosen(channels)
    if page is not None and (page < 0 or pages_are_channels):
        beside = " beside pages_are_channels" if pages_are_channels else ""
        raise ValueError(f"page: expected {'None' if beside else '0 or more'}{beside}, got {page}")
    part = _part(file, page, axes, array, nodata, pages_are_channels)
    try:
        data = encoded.read(file) if part == WHOLE else pages.read(file, part)
    except OSError as error:
        if error.filename is not None:  # which names it
            raise
        raise OSError(f"path: {file}: {error}") from error
    Image.init()
    found = encoded.header(data, pages_are_channels)
    if isinstance(found, str):
        raise ValueError(f"path: {file} cannot be read ({found})")
    kind = Kind.of(found.kind)
    if channels == RGB and found.kind & NO_RGB:
        what = kind or "channels that are not read"
        raise ValueError(f"channels: {file} has {what}, of which no RGB is made; {ALL} keeps them")
    if channels != RGB and kind is None:
        raise ValueError(f"channels: {file} has channels that are not read as they are; try {RGB}")
    if taken is not None and kind is not None and max(taken) >= kind.channels:
        raise ValueError(
            f"channels: expected numbers below {kind.channels}, as {file} has {kind}, "
            f"got {max(taken)}"
        )
    if kind is not None and page is None and file.lower().endswith((".npy", ".npz")):
        form = ", ".join(["NPY", *[PLANES] * part.planes])
        if said := doubt_about_axes(kind, min(found.height, found.width), [form]):
            logger.warning("%s: %s", file, said)
    pixels = None if channels == RGB or kind is None else Pixels.whole(kind)
    try:
        values = decoded_values(data, pixels)
    except ValueError as error:
        raise ValueError(f"path: {file} cannot be decoded ({error})") from error
    if values.shape[:2] != (found.height, found.width):
        said, got = f"{found.width} × {found.height}", " × ".join(map(str, values.shape[1::-1]))
        raise ValueError(f"path: {file} is damaged: its header says {said} pixels, it has {got}")
    if taken is not None:
        values = values[..., list(taken)]
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def _part(
    file: str,
    page: int | None,
    axes: str,
    array: str,
    nodata: str | float,
    pages_are_channels: bool,
) -> FilePart:
    """What of a file is the image."""
    if not isinstance(array, str):
        raise TypeError(f"array: expected the name of one in a .npz, got {array!r}")
    if axes not in ("hwc", "chw"):
        raise ValueError(f'axes: expected "hwc" or "chw", got {axes!r}')
    expect_array("array", array)
    part = FilePart(None, array, axes == "chw", nodata_of("nodata", str(nodata)))
    if part != WHOLE and pages_are_channels:
        raise ValueError(f"pages_are_channels: expected False for {part.words}, got True")
    if part.of(file) != part:
        name = "array" if part.array else "axes" if part.planes else "nodata"
        of = {"array": ".npz", "axes": ".npy or .npz", "nodata": ".tif, .npy or .npz"}[name]
        raise ValueError(f"{name}: expected a file whose name ends with {of} beside it, got {file}")
    if page is None:
        return part
    if array or part.planes:
        raise ValueError(f"page: expected None for {part.words}, got {page}")
    return part._replace(page=int(page))
