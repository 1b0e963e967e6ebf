"""What `fastequi data scenes` makes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

KINDS = ("segment", "clips", "depth", "match")
VERSION = 1  # of what the same settings make

_LEAST = {"images": 4, "clips": 1, "frames": 3, "size": 64, "seed": 0}


@dataclass(frozen=True)
class Settings:
    """What is made; the same settings and photographs make the same bytes.

    Attributes:
        kinds: of KINDS.
        images: of segment and of depth, a quarter of them for validation; and pairs of match.
        clips: how many.
        frames: of each clip.
        size: side of images in pixels, and shorter side of clips.
        seed: of everything that is drawn.
    """

    kinds: tuple[str, ...] = KINDS
    images: int = 64
    clips: int = 6
    frames: int = 24
    size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            got = " ".join(self.kinds) or "none"
            raise ValueError(f"--kinds: expected some of {', '.join(KINDS)}, got {got}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"--{name}: expected >= {least}, got {value}")

    @property
    def validation(self) -> int:
        """How many of the images are for validation."""
        return self.images // 4

    def generator(self, kind: str, item: int) -> np.random.Generator:
        """That draws one image, clip or pair, whatever else is made."""
        return np.random.default_rng([self.seed, KINDS.index(kind), item])

    def to_json(self) -> dict[str, Any]:
        """Its fields, kinds in the order of KINDS."""
        kinds = [kind for kind in KINDS if kind in self.kinds]
        return {**asdict(self), "kinds": kinds, "version": VERSION}
