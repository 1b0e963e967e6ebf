"""The options that say what a file's ViT does not, the same for every command that takes files."""

from __future__ import annotations

from dataclasses import dataclass

from fastequi.models.timm_names import Stated


@dataclass(frozen=True, kw_only=True)
class VitOptions:
    """Of a command that takes a *.safetensors file."""

    num_heads: int | None = None
    """Of the file's ViT, where no config.json beside it says so (or says it wrong)."""
    img_size: tuple[int, ...] = ()
    """Side in pixels, or height and width, that its positions are for, likewise."""

    def stated(self) -> Stated:
        """What they say.

        Raises:
            ValueError: a number below 1, or more than two sides.
        """
        if self.num_heads is not None and self.num_heads < 1:
            raise ValueError(f"--num-heads: expected >= 1, got {self.num_heads}")
        sides = self.img_size
        if len(sides) > 2 or min(sides, default=1) < 1:
            shown = " ".join(map(str, sides))
            raise ValueError(f"--img-size: expected one or two sides >= 1, got {shown}")
        return Stated(self.num_heads, (sides[0], sides[-1]) if sides else None)
