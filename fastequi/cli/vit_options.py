"""The options for what a file of weights does not say of its ViT, the same for every command."""

from __future__ import annotations

from dataclasses import dataclass

from fastequi.models.timm_names import Stated


@dataclass(frozen=True, kw_only=True)
class VitOptions:
    """Options of a command that takes a *.safetensors file."""

    num_heads: int | None = None
    """Attention heads of the file's ViT, where no config.json beside it says so (or wrongly)."""
    img_size: tuple[int, ...] = ()
    """Image size that its position embeddings are for: side, or height and width, in pixels;
    likewise."""

    def stated(self) -> Stated:
        """Both options' values.

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
