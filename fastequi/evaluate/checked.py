"""Features that are checked: of images that an encoder takes, and finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Features = Callable[[Tensor], dict[str, Tensor]]
"""Normalised images [B, C, H, W] to tokens [B, L, D] by name ("patch", "z_inv", "z_equi")."""


@dataclass(frozen=True)
class Checked:
    """Features, unless they are not finite or of images that the encoder does not take."""

    name: str
    features: Features
    in_chans: int
    image_size: int
    patch_size: int | None
    device: torch.device

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        self._expect_images(images)
        height, width = images.shape[-2:]
        try:
            tokens = self.features(images)
        except torch.cuda.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError, IndexError) as error:
            if height == width == self.image_size:
                raise
            own = f"{self.image_size}x{self.image_size}"
            raise ValueError(
                f"images: expected {own} px, which {self.name} is made for, got {height}x{width} "
                f"({error})"
            ) from error
        expect_finite(self.name, tokens)
        return tokens

    def _expect_images(self, images: Tensor) -> None:
        """Raises ValueError or TypeError unless they are floats [B, C, H, W] on the device."""
        if images.ndim != 4 or images.shape[1] != self.in_chans:
            raise ValueError(
                f"images: expected [B, {self.in_chans}, H, W], got {list(images.shape)}"
            )
        if not images.is_floating_point():
            raise TypeError(
                f"images: expected floats, normalised by the encoder's mean and std, got "
                f"{images.dtype}"
            )
        if images.device.type != self.device.type:
            raise ValueError(f"images: expected them on {self.device}, got {images.device}")
        height, width = images.shape[-2:]
        patch = self.patch_size
        if min(height, width) < 1 or (patch and (height % patch or width % patch)):
            sides = f"multiples of the patch size {patch}" if patch else "sides of 1 px or more"
            raise ValueError(f"images: expected {sides}, got {height}x{width}")


def expect_finite(name: str, values: Mapping[str, Tensor]) -> None:
    """Raises FloatingPointError where a network gives NaN or infinity; says how much of it.

    Args:
        name: of the network.
        values: what it gives, by name.
    """
    lost = {
        kind: int((~value.isfinite()).sum())
        for kind, value in values.items()
        if value.numel() and not torch.stack(value.aminmax()).isfinite().all()  # one pass
    }
    if lost:
        counts = ", ".join(f"{n:,} of {values[kind].numel():,} {kind}" for kind, n in lost.items())
        raise FloatingPointError(
            f"{name}: its features are not finite (NaN or infinite: {counts}), so they cannot be "
            f"evaluated; are its weights sound?"
        )


def noise(size: int | tuple[int, int], device: torch.device, in_chans: int = 3) -> Tensor:
    """One image [1, C, H, W], square for one size, to find out which features an encoder gives."""
    sides = (size, size) if isinstance(size, int) else size
    return torch.randn(1, in_chans, *sides, generator=torch.Generator().manual_seed(0)).to(device)
