"""From an image to what an encoder takes: resized, cropped, normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastequi.data.pillow import upright
from fastequi.functional.normalise import normalise


class ImageTransform:
    """An image or a batch of images to normalised floats [..., 3, H, W] of one size.

    The image is resized with antialiasing (bilinear), so that it just covers H x W, and its centre
    is cut out; values are divided by 255, then normalised. For a square this is what transformers'
    BitImageProcessor does with `shortest_edge`, and timm's evaluation with `crop_pct` 1.

    Args:
        size: height and width in pixels.
        mean, std: of the normalisation, of values in 0..1.
    """

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        self.size, self.mean, self.std = size, tuple(mean), tuple(std)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """The input of an encoder.

        Args:
            image: one of Pillow's, of any mode, which is turned upright as its EXIF says; or uint8
                [..., 3, h, w], which stays on its device. Pillow and PyTorch round differently, by
                one of 255 levels at most.

        Returns:
            [3, H, W] float32, or [..., 3, H, W] of a tensor.

        Raises:
            TypeError, ValueError: it is neither.
        """
        if isinstance(image, Image.Image):
            pixels = Image.fromarray(upright(image))
            height, width = self._covering(pixels.height, pixels.width)
            found = np.array(pixels.resize((width, height), Image.Resampling.BILINEAR))
            return self._finished(torch.from_numpy(found).permute(2, 0, 1))
        if not isinstance(image, Tensor):
            raise TypeError(
                f"image: expected one of Pillow's or a uint8 tensor, got {type(image).__name__}"
            )
        if image.dtype != torch.uint8:
            raise TypeError(f"image: expected uint8, got {image.dtype}")
        if image.ndim < 3 or image.shape[-3] != 3 or not image.numel():
            raise ValueError(f"image: expected [..., 3, H, W], got {list(image.shape)}")
        *others, height, width = image.shape
        size = self._covering(height, width)
        flat = image.reshape(-1, 3, height, width).float()
        resized = F.interpolate(flat, size, mode="bilinear", antialias=True).round()
        return self._finished(resized.to(torch.uint8).reshape(*others, *size))

    def __repr__(self) -> str:
        return f"ImageTransform(size={self.size}, mean={self.mean}, std={self.std})"

    def _covering(self, height: int, width: int) -> tuple[int, int]:
        """The size to which an image is resized before its centre is cut out."""
        rows, columns = self.size
        if rows * width <= columns * height:  # the width is what limits
            return max(int(columns * height / width), rows), columns
        return rows, max(int(rows * width / height), columns)

    def _finished(self, pixels: Tensor) -> Tensor:
        """The normalised centre of uint8 pixels [..., 3, h, w]."""
        rows, columns = self.size
        top, left = (pixels.shape[-2] - rows) // 2, (pixels.shape[-1] - columns) // 2
        centre = pixels[..., top : top + rows, left : left + columns]
        return normalise(centre, self.mean, self.std)
