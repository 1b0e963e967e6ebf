"""How an encoder's images are read from files: 8-bit RGB, or the channels and values it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.data.channels import DTYPE, RGB, chosen, ranges
from fastequi.data.single import read_image
from fastequi.data.sources.encoded import Header, header, is_array_name, is_image_name, why
from fastequi.data.sources.kinds import Kind
from fastequi.data.sources.wanted import Wanted
from fastequi.evaluate.encoders import Encoder, expect_the_same_images
from fastequi.evaluate.geometry.image_files import (
    Size,
    image_of,
    in_threads,
    pixels_of,
    whole_size,
)
from fastequi.evaluate.photo_windows import images_for
from fastequi.functional.normalise import in_range, in_unit


@dataclass(frozen=True)
class Reading:
    """See the module.

    Attributes:
        wanted: which images can be taken, and which of their channels.
        value_range: of their values, as `data.value_range` of a run.
    """

    wanted: Wanted = Wanted()  # noqa: RUF009
    value_range: str = DTYPE

    @classmethod
    def of(cls, encoders: Mapping[str, Encoder]) -> Reading:
        """That of all encoders of a table; 8-bit RGB without any.

        Raises:
            ValueError: they take different images.
        """
        if not encoders:
            return cls()
        *_, encoder = encoders.values()  # behind what it is compared with
        expect_the_same_images(encoder, encoders)
        return cls(images_for(encoder), encoder.value_range)

    @property
    def is_rgb(self) -> bool:
        """Whether 8-bit RGB is made of images."""
        return self.wanted.channels == RGB

    def is_image(self, name: str) -> bool:
        """Whether a file's name is an image's: of other channels than RGB may be arrays, too."""
        return is_image_name(name) or (not self.is_rgb and is_array_name(name))

    def size_of(self, file: Path) -> Size:
        """Of an image, which is decoded to see that it is whole.

        Raises:
            ValueError: it is not there, no such image, or damaged; names it.
        """
        if self.is_rgb:
            self._expect_fits(file, _header(file))
            return whole_size(file)
        _, height, width = self(file).shape
        return height, width

    def sizes_of(self, files: Iterable[Path]) -> list[Size]:
        """Of several; see :meth:`size_of`."""
        return in_threads(self.size_of, files)

    def at(self, file: Path, size: Size) -> Tensor:
        """The same as a call gives, each side resized alone: bicubic, with antialiasing."""
        if self.is_rgb:
            return image_of(file, size)
        resized = F.interpolate(self(file)[None], size, mode="bicubic", antialias=True)
        return resized[0].clamp(0, 1)

    def __call__(self, file: Path) -> Tensor:
        """[3, H, W] uint8 RGB, or [C, H, W] float32 whose range is 0..1, upright.

        The pages of a TIFF are channels where the first has fewer than are taken.

        Raises:
            ValueError: it cannot be decoded, or has other channels; names it.
        """
        if self.is_rgb:
            return torch.from_numpy(pixels_of(file)).permute(2, 0, 1)
        channels = self.wanted.channels
        needed = self.wanted.count or 1 + max(chosen(channels) or (0,))
        found = _header(file)
        first = Kind.of(found.kind)
        by_page = first is not None and first.channels < needed
        self._expect_fits(file, _header(file, True) if by_page else found)
        try:
            image = read_image(file, channels, pages_are_channels=by_page)
        except Exception as error:  # whatever damaged bytes make a library raise
            raise ValueError(f"{file}: expected an image ({why(error, str(file))})") from error
        ends = ranges(self.value_range)
        return in_unit(image) if ends is None else in_range(image, ends)

    def _expect_fits(self, file: Path, found: Header) -> None:
        """Raises ValueError for an image whose channels or depth the encoder does not take."""
        for reason in self.wanted.unfit(np.array([found.kind], np.uint16)).values():
            raise ValueError(f"{file}: expected an image that the encoder takes ({reason})")


def _header(file: Path, pages_are_channels: bool = False) -> Header:
    if not file.is_file():
        raise ValueError(f"{file}: expected an image, there is no such file")
    found = header(str(file), pages_are_channels)
    if isinstance(found, str):
        raise ValueError(f"{file}: expected an image ({found})")
    return found
