"""Options for properties of a ViT that its file's tensors do not determine, and for changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastequi.weights.architecture import Stated


@dataclass(frozen=True, kw_only=True)
class VitOptions:
    """Options of a command that takes a file or a folder of weights."""

    num_heads: int | None = None
    """Attention heads of the file's ViT, if a config.json beside it lacks them or is wrong."""
    img_size: tuple[int, ...] = ()
    """Image size in pixels that its position embedding is for: side, or height and width."""
    network: Literal["teacher", "student"] | None = None
    """Which one is taken of a checkpoint that holds both; the teacher if it is not said."""
    patch_size: int | None = None
    """Resize its patch embedding to patches of this side, by FlexiViT's pseudo-inverse."""
    channels: tuple[int, ...] = ()
    """Its input channels, from 0, that an image's go to, in this order; of RGB images three."""

    def stated(self) -> Stated:
        """The given values.

        Raises:
            ValueError: a number below 1, more than two sides, or a channel below 0.
        """
        for name in ("num_heads", "patch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')}: expected >= 1, got {value}")
        sides = self.img_size
        if len(sides) > 2 or min(sides, default=1) < 1:
            shown = " ".join(map(str, sides))
            raise ValueError(f"--img-size: expected one or two sides >= 1, got {shown}")
        if min(self.channels, default=0) < 0:
            shown = " ".join(map(str, self.channels))
            raise ValueError(f"--channels: expected numbers >= 0, got {shown}")
        return Stated(
            self.num_heads,
            (sides[0], sides[-1]) if sides else None,
            self.network,
            self.patch_size,
            self.channels or None,
        )
