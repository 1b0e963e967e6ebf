"""Options for properties of a ViT that its file's tensors do not determine."""

from __future__ import annotations

from dataclasses import dataclass

from fastequi.weights.architecture import Stated


@dataclass(frozen=True, kw_only=True)
class VitOptions:
    """Options of a command that takes a *.safetensors file."""

    num_heads: int | None = None
    """Attention heads of the file's ViT, if a config.json beside it lacks them or is wrong."""
    img_size: tuple[int, ...] = ()
    """Image size in pixels that its position embedding is for: side, or height and width."""

    def stated(self) -> Stated:
        """The given values.

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
