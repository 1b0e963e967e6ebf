"""What an evaluation needs of a network: tokens by name, and which images it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fastequi.config import Config
from fastequi.data.channels import DTYPE, RGB, plain, written
from fastequi.data.config import DataConfig
from fastequi.evaluate.checked import Checked, Features
from fastequi.methods.method import Method

Floats = tuple[float, ...]
_DEFAULTS = DataConfig()


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A frozen network in eval mode.

    Attributes:
        name: for tables.
        features: normalised images [B, C, H, W], floats on `device`, to tokens by name: "patch"
            [B, L, D] and, where there are such, "cls" [B, 1, D], "z_inv", "z_equi" [B, L, ·],
            "block1", ... Images need not be of `image_size`: a ViT takes any sides that are
            multiples of its patch size, and its positions are interpolated for them.
        names: of those that it gives.
        image_size: side of the images it is made for, in pixels.
        patch_size: side of a patch in pixels; None where tokens are no grid of patches.
        mean, std: of the normalisation, in 0..1, one for each of C channels (ImageNet's by
            default).
        channels, value_range: of its images, as `data.channels` and `data.value_range` of a run;
            "" for channels: rgb if there are three, else the first of a file.
        colors: whether the channels are red, green and blue; None: where channels is rgb.
        device: where images have to be.
        network: a run's encoder or a file's ViT, whose tokens are "patch" and "cls"; None for
            others.
        method: of a run, None for others.
        config: of the run, if known.
        fresh: makes the same architecture with fresh weights; see :func:`random_init`.
        is_baseline: no training went into its weights.
    """

    name: str
    features: Features
    names: tuple[str, ...]
    image_size: int
    patch_size: int | None = None
    mean: Floats = _DEFAULTS.mean
    std: Floats = _DEFAULTS.std
    channels: str = ""
    value_range: str = DTYPE
    colors: bool | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    network: nn.Module | None = None
    method: Method | None = None
    config: Config | None = None
    fresh: Callable[[], Encoder] | None = None
    is_baseline: bool = False

    def __post_init__(self) -> None:
        """Wrong images and features that are not finite are errors, in every evaluation."""
        found = self.features
        unchecked = found.features if isinstance(found, Checked) else found
        takes = self.in_chans, self.image_size, self.patch_size, self.device
        object.__setattr__(self, "features", Checked(self.name, unchecked, *takes))
        for name in ("channels", "value_range"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        if not self.channels:
            own = RGB if self.in_chans == 3 else written(tuple(range(self.in_chans)))
            object.__setattr__(self, "channels", own)
        if self.colors is None:
            object.__setattr__(self, "colors", self.channels == RGB)

    @property
    def in_chans(self) -> int:
        """Channels of its images."""
        return len(self.mean)

    def expect_photographs(self) -> None:
        """Raises ValueError unless its images are RGB, as the embedded photographs are."""
        if self.channels != RGB:
            raise ValueError(
                f"--data: expected images with channels {self.channels}, as {self.name} takes; the "
                f"embedded photographs are RGB"
            )
