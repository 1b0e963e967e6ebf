"""From an image to what an encoder takes: resized, cropped, normalised."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastequi.data.channels import DTYPE, RGB, percentiles, ranges
from fastequi.data.pillow import upright
from fastequi.functional.normalise import in_range, normalise

logger = logging.getLogger(__name__)

_WIDE = 10.0  # upper end of a range in which 0..1 is nearly nothing
_DEEPER = (torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64)


class ImageTransform:
    """An image or a batch of images to normalised floats [..., C, H, W] of one size.

    Values are divided by 255 (of uint16 by 65535), or cut off at the ends of the range and brought
    from it into 0..1. The image is resized with antialiasing (bilinear), so that it just covers
    H x W, its centre is cut out, and it is normalised. For a square of RGB this is what
    transformers' BitImageProcessor does with `shortest_edge`, and timm's evaluation with
    `crop_pct` 1.

    Args:
        size: height and width in pixels.
        mean, std: of the normalisation, of values in 0..1, one for each of C channels.
        channels, value_range: which of a file's channels these are, and which of its values become
            0 and 1, as `data.channels` and `data.value_range` of a run say: with numbers there, an
            image is given as the files have it.

    Raises:
        ValueError: `value_range` is of percentiles, whose numbers a run's config.json has.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        channels: str = RGB,
        value_range: str = DTYPE,
    ) -> None:
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)
        self.channels, self.value_range = channels, value_range
        if percentiles(value_range) is not None:
            raise ValueError(f"value_range: expected numbers, got {value_range}")
        self._ends, self._said = ranges(value_range), False

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """The input of an encoder.

        Args:
            image: one of Pillow's, of any mode, which is turned upright as its EXIF says, for RGB;
                or uint8 [..., C, h, w], for other channels also uint16 or floats (in 0..1, or in
                the range's numbers, then int16 and int32 too), which stays on its device; of a
                file :func:`fastequi.data.read_image` gives it. Pillow and PyTorch round
                differently, by one of 255 levels at most.

        Returns:
            [C, H, W] float32, or [..., C, H, W] of a tensor.

        Raises:
            TypeError, ValueError: it is neither.
        """
        channels, rgb = len(self.mean), self.channels == RGB
        if isinstance(image, Image.Image):
            if not rgb:
                raise TypeError(
                    f"image: expected a tensor [..., {channels}, H, W] of the channels "
                    f"{self.channels}, got one of Pillow's; fastequi.data.read_image(FILE, "
                    f"{self.channels!r}) gives it of a file"
                )
            pixels = Image.fromarray(upright(image))
            height, width = self._covering(pixels.height, pixels.width)
            found = np.array(pixels.resize((width, height), Image.Resampling.BILINEAR))
            return self._finished(torch.from_numpy(found).permute(2, 0, 1))
        limits = "in 0..1" if self._ends is None else f"in the range {self.value_range}"
        whole = "uint8, uint16" if self._ends is None else "uint8, uint16, int16, int32"
        kinds = "uint8" if rgb else f"{whole} or floats {limits}"
        if not isinstance(image, Tensor):
            wanted = "one of Pillow's or a uint8 tensor" if rgb else f"a tensor of {kinds}"
            raise TypeError(f"image: expected {wanted}, got {type(image).__name__}")
        deeper = _DEEPER if self._ends is None else (*_DEEPER, torch.int16, torch.int32)
        if image.dtype != torch.uint8 and (rgb or image.dtype not in deeper):
            raise TypeError(f"image: expected {kinds}, got {image.dtype}")
        if image.ndim < 3 or image.shape[-3] != channels or not image.numel():
            raise ValueError(f"image: expected [..., {channels}, H, W], got {list(image.shape)}")
        *others, height, width = image.shape
        size = self._covering(height, width)
        flat = image.reshape(-1, channels, height, width).float()
        if self._ends is not None or image.is_floating_point():
            if self._ends is not None and image.is_floating_point():
                self._say_unit(flat)
            flat = in_range(flat, self._ends or [(0, 1)])
        resized = F.interpolate(flat, size, mode="bilinear", antialias=True)
        if self._ends is None and not image.is_floating_point():
            resized = resized.round().to(image.dtype)
        return self._finished(resized.reshape(*others, *size))

    def _say_unit(self, values: Tensor) -> None:
        """Warns, once, of values that are in 0..1 where the range is in a file's numbers."""
        widest = max(high for _, high in self._ends or ())
        if self._said or widest <= _WIDE or values.device.type != "cpu":  # nor wait for a GPU
            return
        if values.amin() >= 0 and values.amax() <= 1:
            self._said = True
            logger.warning(
                "image: floats in 0..1 are nearly 0 in the range %s; it is in the files' numbers, "
                "as fastequi.data.read_image gives them",
                self.value_range,
            )

    def __repr__(self) -> str:
        more = f", {self.channels!r}, {self.value_range!r}" if self.channels != RGB else ""
        return f"ImageTransform(size={self.size}, mean={self.mean}, std={self.std}{more})"

    def _covering(self, height: int, width: int) -> tuple[int, int]:
        """The size to which an image is resized before its centre is cut out."""
        rows, columns = self.size
        if rows * width <= columns * height:  # the width is what limits
            return max(int(columns * height / width), rows), columns
        return rows, max(int(rows * width / height), columns)

    def _finished(self, pixels: Tensor) -> Tensor:
        """The normalised centre of pixels [..., C, h, w]."""
        rows, columns = self.size
        # of odd rests the half is rounded to even, as torchvision's CenterCrop does
        top, left = round((pixels.shape[-2] - rows) / 2), round((pixels.shape[-1] - columns) / 2)
        centre = pixels[..., top : top + rows, left : left + columns]
        return normalise(centre, self.mean, self.std)
