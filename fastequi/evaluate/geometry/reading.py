"""How an encoder's images are read from files: 8-bit RGB, or the channels and values it takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.data.channels import DTYPE, RGB, chosen, percentiles, ranges
from fastequi.data.single import read_image
from fastequi.data.sources.encoded import (
    Header,
    header,
    is_array_name,
    is_image_name,
    is_marked,
    why,
)
from fastequi.data.sources.kinds import ARRAYS, DEEPER, MORE_BITS, Kind
from fastequi.data.sources.parts import WHOLE, FilePart, name_of, part_named
from fastequi.data.sources.tiff_stacks import PAGES, PARTIAL
from fastequi.data.sources.wanted import Wanted
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.encoders import expect_the_same_images
from fastequi.evaluate.geometry.image_files import (
    Size,
    image_of,
    in_threads,
    pixels_of,
    whole_size,
)
from fastequi.evaluate.photo_windows import images_for
from fastequi.functional.normalise import in_range, in_unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """See the module.

    Attributes:
        wanted: which images can be taken, and which of their channels.
        value_range: of their values, as `data.value_range` of a run.
    """

    wanted: Wanted = Wanted()  # noqa: RUF009
    value_range: str = DTYPE
    _told: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, encoders: Mapping[str, Encoder]) -> Reading:
        """That of all encoders of a table; 8-bit RGB without any.

        Raises:
            ValueError: they take different images, or a range that has no numbers.
        """
        if not encoders:
            return cls()
        *_, encoder = encoders.values()  # behind what it is compared with
        expect_the_same_images(encoder, encoders)
        if percentiles(encoder.value_range) is not None:
            raise ValueError(
                f"CHECKPOINT: expected value_range in numbers, as config.json has it, got "
                f"{encoder.value_range}"
            )
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
            named, part = self._named(file)
            self._expect_fits(file, _header(file, part=part))
            if part == WHOLE:
                return whole_size(file)
            height, width, _ = pixels_of(named).shape
            return height, width
        _, height, width = self(file).shape
        return height, width

    def sizes_of(self, files: Iterable[Path]) -> list[Size]:
        """Of several of one kind; see :meth:`size_of` and :meth:`expect_one_kind`."""
        found = in_threads(self.size_of, files := list(files))
        self.expect_one_kind(files)
        return found

    def at(self, file: Path, size: Size) -> Tensor:
        """The same as a call gives, each side resized alone: bicubic, with antialiasing."""
        if self.is_rgb:
            return image_of(self._named(file)[0], size)
        resized = F.interpolate(self(file)[None], size, mode="bicubic", antialias=True)
        return resized[0].clamp(0, 1)

    def __call__(self, file: Path) -> Tensor:
        """[3, H, W] uint8 RGB, or [C, H, W] float32 whose range is 0..1, upright.

        The pages of a TIFF are channels where the first has fewer than are taken; a NumPy array is
        [C, H, W] where its first axis is as long as the encoder has channels, and the last is not.

        Raises:
            ValueError: it cannot be decoded, or has other channels; names it.
        """
        if self.is_rgb:
            return torch.from_numpy(pixels_of(self._named(file)[0])).permute(2, 0, 1)
        channels = self.wanted.channels
        found, how = self._found(file)
        self._expect_fits(file, found)
        try:
            image = read_image(file, channels, **how)
        except Exception as error:  # whatever damaged bytes make a library raise
            raise ValueError(f"{file}: expected an image ({why(error, str(file))})") from error
        ends = ranges(self.value_range)
        if ends is None:  # of floats 0..1, as of a run
            ends = ((0.0, 1.0),)
            image = in_unit(image)
        return in_range(image, ends)

    def _named(self, file: Path) -> tuple[Path, FilePart]:
        """An image's file and what of it, as the run took it, with that in its name."""
        part = part_named(self.wanted.part).of(file.name)
        return Path(name_of(str(file), part)), part

    def _found(self, file: Path) -> tuple[Header, dict[str, Any]]:
        """An image's header, and how `read_image` reads it."""
        if (part := self._named(file)[1]) != WHOLE:
            how = {"axes": "chw" if part.planes else "hwc", "array": part.array}
            found = _header(file, part=part)
            return found, {**how, "nodata": part.nodata or "none"}
        needed = self.wanted.count or 1 + max(chosen(self.wanted.channels) or (0,))
        found = _header(file)
        first = Kind.of(found.kind)
        last = None if first is None else first.channels
        if found.format in ARRAYS and last != self.wanted.count:
            turned = header(name_of(str(file), FilePart(planes=True)))
            if not isinstance(turned, str):
                other = Kind.of(turned.kind)
                if other is not None and other.channels == self.wanted.count:
                    return turned, {"axes": "chw"}
        by_page = first is not None and first.channels < needed
        if by_page:
            return _header(file, True), {"pages_are_channels": True}
        return found, {}

    def expect_one_kind(self, files: Iterable[Path]) -> None:
        """Refuses images of several kinds; of RGB they are made alike, which is told.

        Raises:
            ValueError: one has other channels than the first, or another depth where the range is
                in the files' own numbers; names it.
        """
        files = list(files)
        if self.is_rgb:
            self._tell(files)
            return
        kinds = [Kind.of(found.kind) for found, _ in in_threads(self._found, files)]
        in_numbers = ranges(self.value_range) is not None
        for file, kind in zip(files, kinds, strict=True):
            if kind is None or kinds[0] is None:  # which is no image, as reading it says
                continue
            if kind.channels != kinds[0].channels or (in_numbers and kind.depth != kinds[0].depth):
                raise ValueError(
                    f"{file}: expected an image of one kind with {files[0].name}, which has "
                    f"{kinds[0]}, got {kind}"
                )

    def _tell(self, files: list[Path]) -> None:
        """Logs what RGB does not keep of images, each once."""
        for file, found in zip(
            files, in_threads(lambda file: header(str(file)), files), strict=True
        ):
            if isinstance(found, str):  # as reading it says
                continue
            kind = Kind.of(found.kind)
            said = []
            if found.kind == DEEPER or (kind is not None and kind.more_than_rgb8):
                what = kind or MORE_BITS
                said += [f"images of {what} are made 8-bit RGB, which the encoder takes"]
            if is_marked(found.format, PAGES, PARTIAL):
                said += ["of files with several pages the first is the image"]
            for words in set(said) - self._told:
                self._told.add(words)
                logger.warning("%s and the like: %s", file, words)

    def _expect_fits(self, file: Path, found: Header) -> None:
        """Raises ValueError for an image whose channels or depth the encoder does not take."""
        for reason in self.wanted.unfit(np.array([found.kind], np.uint16)).values():
            raise ValueError(f"{file}: expected an image that the encoder takes ({reason})")


def _header(file: Path, pages_are_channels: bool = False, part: FilePart = WHOLE) -> Header:
    if not file.is_file():
        raise ValueError(f"{file}: expected an image, there is no such file")
    found = header(name_of(str(file), part), pages_are_channels)
    if isinstance(found, str):
        raise ValueError(f"{file}: expected an image ({found})")
    return found
