"""Sheets of picture tiles, and their PNG files, made with Pillow.

A sheet is data, so that a page can lay out the same tiles for any width of the screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastequi.data.channels import RGB
from fastequi.functional.normalise import denormalise
from fastequi.report.false_colors import FalseColors, said

_GAP, _HEADER, _CAPTION = 6, 26, 22

Tile = NDArray[np.uint8]
"""[H, W, 3]."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Rows of tiles under column titles.

    Attributes:
        title: what it shows, in a few words.
        note: how to read it, in a sentence or two.
        columns: titles of the tiles of a row.
        rows: tiles; every row has as many as there are columns.
        captions: below every tile, or none.
        side: of a tile on paper, in pixels; smaller tiles are scaled up.
        smooth: how: interpolated, or every pixel as a square.
        wrap: rows are short and may stand beside each other.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Tile, ...], ...] = field(repr=False)
    captions: tuple[tuple[str, ...], ...] = ()
    side: int = 128
    smooth: bool = False
    wrap: bool = False

    def png(self) -> Image.Image:
        """The whole sheet on white."""
        across = max(1, min(len(self.rows), 8 // len(self.columns))) if self.wrap else 1
        caption = _CAPTION if self.captions else 0
        step = self.side + _GAP
        width = _GAP + across * len(self.columns) * step
        down = -(-len(self.rows) // across)
        sheet = Image.new("RGB", (width, _HEADER + down * (step + caption) + _GAP), "white")
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
        how = Image.Resampling.BICUBIC if self.smooth else Image.Resampling.NEAREST
        for i, row in enumerate(self.rows):
            line, place = divmod(i, across)
            top = _HEADER + _GAP + line * (step + caption)
            for j, tile in enumerate(row):
                left = _GAP + (place * len(self.columns) + j) * step
                middle = left + self.side / 2
                if line == 0:
                    title = _ascii(self.columns[j])
                    draw.text((middle, _HEADER / 2), title, "black", font, anchor="mm")
                picture = Image.fromarray(tile).resize((self.side, self.side), how)
                sheet.paste(picture, (left, top))
                if self.captions:
                    place_at = (middle, top + self.side + _CAPTION / 2)
                    draw.text(place_at, _ascii(self.captions[i][j]), "black", font, anchor="mm")
        return sheet


def _ascii(text: str) -> str:
    """Pillow's own font has no minus sign."""
    return text.replace("−", "-")


def path_sheet(
    views: dict[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    channels: str = RGB,
    picked: tuple[int, ...] = (),
) -> Sheet:
    """One row per image: v1, then target and prediction of every step, then v2.

    Args:
        views: "v1", "v2" [B, C, H, W]; "target", "pred" [B, K, C, H, W], all normalised.
        mean, std: of the normalisation, in 0..1.
        channels: of the images, as `data.channels` has them; of others than RGB false colours are
            shown, stretched as v1 and v2 need it.
        picked: of these channels, as of :meth:`FalseColors.of`.
    """
    steps = views["target"].shape[1]
    columns = [("v1", views["v1"])]
    for k in range(steps):
        columns.append((f"target {k + 1}", views["target"][:, k]))
        columns.append((f"prediction {k + 1}", views["pred"][:, k]))
    columns.append(("v2", views["v2"]))
    note = "From the features of v1 and v2 the decoders predict the images between them."
    if channels == RGB:
        tiles = [to_uint8(images, mean, std) for _, images in columns]
    else:
        note = f"{note} {said(channels, len(mean), picked)}"
        units = [denormalise(images.float(), mean, std).clamp(0, 1) for _, images in columns]
        colors = FalseColors.of(torch.stack([units[0], units[-1]]), picked)
        tiles = [colors.pictures(unit) for unit in units]
    return Sheet(
        title="Reconstructions along the path",
        note=note,
        columns=tuple(title for title, _ in columns),
        rows=tuple(zip(*tiles, strict=True)),
        side=views["v1"].shape[-1] * 4,
    )


def path_grid(
    views: dict[str, Tensor], mean: Sequence[float], std: Sequence[float], scale: int = 4
) -> Image.Image:
    """:func:`path_sheet` as a picture; every pixel becomes scale × scale of them."""
    sheet = path_sheet(views, mean, std)
    return replace(sheet, side=views["v1"].shape[-1] * scale).png()


def heat(image: Tile, weights: Tensor) -> Tile:
    """An image [H, W, 3] with a map [h, w] over it: bright where its weights are large.

    The brightest place has the largest weight, or twice the mean if that is more: a uniform map is
    half bright everywhere.
    """
    size = image.shape[:2]
    share = (weights / torch.maximum(weights.max(), 2 * weights.mean())).float()[None, None]
    share = F.interpolate(share, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
    w = share[0, 0, :, :, None].cpu().numpy()
    glow = np.array([255.0, 214.0, 92.0])
    grey = image.mean(-1, keepdims=True) * 0.35
    mixed = grey * (1 - w) + (0.65 * image + 0.35 * glow) * w
    return mixed.round().clip(0, 255).astype(np.uint8)


def to_uint8(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised [B, 3, H, W] to uint8 [B, H, W, 3]."""
    scaled = denormalise(images.float(), mean, std).clamp(0, 1) * 255
    return scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy()
