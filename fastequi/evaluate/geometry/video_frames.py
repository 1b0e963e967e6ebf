"""Frames of videos as encoders see them, and their maps of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.data.pillow import decoded
from fastequi.data.sources.encoded import read, why
from fastequi.evaluate.geometry.grids import Grids


def expect_side(side: int, grids: Grids) -> None:
    """Raises ValueError for frames without a token."""
    if side < grids.patch_size:
        raise ValueError(
            f"--side: expected at least {grids.patch_size}, the patch size of "
            f"{grids.encoder or grids.names[0]}, got {side}"
        )


def frame_of(file: Path, size: tuple[int, int]) -> Tensor:
    """[3, H, W] uint8, resized bilinearly, without antialiasing.

    Raises:
        ValueError: it cannot be decoded; names it.
    """
    try:
        pixels = torch.from_numpy(decoded(read(str(file))))
    except Exception as error:  # whatever damaged bytes make Pillow raise
        raise ValueError(f"{file}: expected an image ({why(error, str(file))})") from error
    frame = pixels.permute(2, 0, 1)[None].float()
    return F.interpolate(frame, size, mode="bilinear")[0].round().byte()


def maps_of(
    grids: Grids, frames: Sequence[Path], size: tuple[int, int]
) -> Iterator[dict[str, Tensor]]:
    """Tokens [h, w, D] of frame after frame at (H, W) pixels, by the name of the features."""
    for file in frames:
        maps = grids(frame_of(file, size)[None])
        yield {name: tokens[0] for name, tokens in maps.items()}
