"""Pictures of what a model reconstructs, composed with Pillow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP, _HEADER = 6, 26


def path_grid(
    views: dict[str, Tensor], mean: Sequence[float], std: Sequence[float], scale: int = 4
) -> Image.Image:
    """One row per image: v1, then target and prediction of every step, then v2.

    Args:
        views: "v1", "v2" [B, 3, H, W]; "target", "pred" [B, K, 3, H, W], all normalised.
        mean, std: of the normalisation, in 0..1.
        scale: every pixel becomes scale × scale pixels (nearest, so that nothing is smoothed).
    """
    steps = views["target"].shape[1]
    columns = [("v1", views["v1"])]
    for k in range(steps):
        columns.append((f"target {k + 1}", views["target"][:, k]))
        columns.append((f"prediction {k + 1}", views["pred"][:, k]))
    columns.append(("v2", views["v2"]))
    rows, side = len(views["v1"]), views["v1"].shape[-1] * scale
    width = len(columns) * (side + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEADER + rows * (side + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for x, (title, images) in enumerate(columns):
        left = _GAP + x * (side + _GAP)
        draw.text((left + side / 2, _HEADER / 2), title, "black", font, anchor="mm")
        for y, image in enumerate(to_uint8(images, mean, std)):
            tile = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, _HEADER + _GAP + y * (side + _GAP)))
    return sheet


def to_uint8(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised [B, 3, H, W] to uint8 [B, H, W, 3]."""
    shape = (3, 1, 1)
    mean_t, std_t = (torch.tensor(v, device=images.device).view(shape) for v in (mean, std))
    scaled = (images.float() * std_t + mean_t).clamp(0, 1) * 255
    return scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy()
