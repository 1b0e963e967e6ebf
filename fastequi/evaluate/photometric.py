"""Photometric change of a pair's two images, independently: light, colours, sharpness and noise.

What a feature is for is reading geometry although the light changed; it is also what training with
augmented views asks for. Raw pixels of two images that were changed alike still match, those of two
images that were changed independently do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastequi.functional import gaussian_blur
from fastequi.paths import DEFAULT_MAX_SIGMA, color_matrix, recolored


@dataclass(frozen=True)
class Photometric:
    """Ranges; every image draws its own values, uniformly, in this order of changes.

    Attributes:
        brightness, contrast, saturation: factors 1 ± this; see `fastequi.paths.color_matrix`.
        hue: ± this share of 360°.
        blur: σ from 0 to this, in pixels of a 224 px image: to blur · W / 224 of the image's own.
        noise: standard deviation of normal noise on every value in 0..1.
        gain, offset: of images that are not RGB, instead of the first four: every channel times a
            factor 1 ± gain, plus ± offset.
        rgb: images are RGB.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    blur: float = 2.0
    noise: float = 0.02
    gain: float = 0.4
    offset: float = 0.1
    rgb: bool = True

    def change(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images [N, C, H, W] in 0..1, each changed by draws of its own.

        Args:
            generator: on the CPU; the draws are the same for every device of the images.
        """
        number = 4 if self.rgb else 2 * images.shape[1]
        unit = torch.rand(len(images), number + 1, generator=generator).to(images.device)
        signed = 2 * unit[:, :-1] - 1
        mixed = self._coloured(images, signed) if self.rgb else self._scaled(images, signed)
        width = images.shape[-1]
        sigma = unit[:, -1] * self.blur * width / 224
        most = max(DEFAULT_MAX_SIGMA, math.ceil(self.blur * width / 224))
        blurred = gaussian_blur(mixed.clamp(0, 1), sigma, max_sigma=most)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        return (blurred + self.noise * noise).clamp(0, 1)

    def _coloured(self, images: Tensor, signed: Tensor) -> Tensor:
        """RGB in other light and colours, by numbers [N, 4] in -1..1."""
        color = color_matrix(
            1 + self.brightness * signed[:, 0],
            1 + self.contrast * signed[:, 1],
            1 + self.saturation * signed[:, 2],
            self.hue * signed[:, 3],
        )
        return recolored(images, color)

    def _scaled(self, images: Tensor, signed: Tensor) -> Tensor:
        """Every channel with a gain and an offset of its own, by numbers [N, 2C] in -1..1."""
        gain, offset = signed[..., None, None].chunk(2, 1)
        return images * (1 + self.gain * gain) + self.offset * offset
