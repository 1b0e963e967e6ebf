"""The side at which encoders see images: what cannot be is refused before the first one."""

from __future__ import annotations

import torch

from fastequi.evaluate.geometry.grids import Grids
from fastequi.runtime.devices import expect_size

_BYTES = 48  # of a pixel at least: the image, the same normalised, tokens and what is made of them


def expect_side(side: int, grids: Grids, *, patches: int = 1, images: int = 1) -> None:
    """Raises ValueError unless squares of `--side` have tokens and fit into the free memory.

    Args:
        side: pixels.
        grids: that see them.
        patches: that a side has at least.
        images: at a time.
    """
    least = patches * grids.patch_size
    if side < least:
        size = "the patch size" if patches == 1 else f"{patches} times the patch size"
        raise ValueError(f"--side: expected at least {least}, {size} of {_name(grids)}, got {side}")
    for device in (_CPU, grids.device):
        expect_size("--side", side, lambda x: images * _BYTES * x * x, device)


def expect_scale(scale: float, side: int, grids: Grids) -> None:
    """The same of a factor of `--scales`, of a side in pixels."""
    if scale * side < grids.patch_size:
        raise ValueError(
            f"--scales: expected at least {grids.patch_size / side:.3g}, which makes {side} px the "
            f"patch size of {_name(grids)}, got {scale:g}"
        )
    for device in (_CPU, grids.device):
        expect_size("--scales", scale, lambda x: _BYTES * (x * side) * (x * side), device)


_CPU = torch.device("cpu")


def _name(grids: Grids) -> str:
    return grids.encoder or grids.names[0]
