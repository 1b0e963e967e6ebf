"""Maps of tokens of whole images, whatever their sizes.

An image is resized so that its shorter side is that of the encoder's squares (or a given one) and
the longer keeps the aspect, both to multiples of the patch size. The encoder sees it whole, its
positions interpolated; or square windows of its own size slide over it, by two thirds of their side
as in mmsegmentation's sliding tests (512 px by 341). Tokens where windows overlap are averaged:
their places are the same, so that what a linear layer makes of the mean is the mean of what it
makes of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.evaluate.geometry.grids import Grids, Maps
from fastequi.evaluate.geometry.pair_folders import Pair
from fastequi.evaluate.geometry.reading import Reading
from fastequi.evaluate.geometry.sides import expect_scale, expect_side
from fastequi.functional.normalise import in_unit
from fastequi.runtime.devices import expect_memory

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sizing:
    """At which sizes images are encoded.

    Attributes:
        side: the shorter side, pixels; 0: of the squares that the encoder is made for.
        windows: whether they slide; else an image is encoded whole.
        scales: of the side; each gives a map of its own.
    """

    side: int = 0
    windows: bool = False
    scales: tuple[float, ...] = (1.0,)

    def expect_fits(self, grids: Sequence[Grids]) -> None:
        """Raises ValueError for a side or a scale at which an image has no token, or does not fit
        into the free memory."""
        for each in grids:
            if self.side:
                expect_side(self.side, each)
            for scale in self.scales:
                expect_scale(scale, self.side or each.image_size, each)

    def maps(self, grids: Grids, image: Tensor) -> list[Maps]:
        """Of an image [C, H, W] one for each scale, of [h, w, D] tensors by name.

        What is no network has no window: it sees the image whole.
        """
        found = []
        for scale in self.scales:
            sized = resized(image, scale * (self.side or grids.image_size), grids.patch_size)
            slide = self.windows and grids.encoder is not None
            maps = by_windows(grids, sized) if slide else grids(sized[None])
            found.append({name: x[0] for name, x in maps.items()})
        return found


def resized(image: Tensor, side: float, patch: int) -> Tensor:
    """[C, H', W'] float32 in 0..1 of an image [C, H, W] uint8, or of floats in 0..1: antialiased,
    to multiples of a patch.

    Args:
        image: to be resized.
        side: that the shorter one should have, pixels.
        patch: size of a patch, pixels.
    """
    scale = side / min(image.shape[1:])
    size = [max(1, round(n * scale / patch)) * patch for n in image.shape[1:]]
    return F.interpolate(in_unit(image)[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def by_windows(grids: Grids, image: Tensor) -> Maps:
    """Maps [1, h, w, D] of an image [C, H, W], means over sliding windows."""
    patch, size = grids.patch_size, image.shape[1:]
    window = [min(grids.image_size, n) for n in size]
    places = [
        (top, left)
        for top in _starts(size[0], window[0], patch)
        for left in _starts(size[1], window[1], patch)
    ]
    cut = [image[:, y : y + window[0], x : x + window[1]] for y, x in places]
    parts = grids(torch.stack(cut))
    found = {}
    for name, tokens in parts.items():
        h, w = tokens.shape[1:3]
        total = tokens.new_zeros(size[0] // patch, size[1] // patch, tokens.shape[3])
        count = torch.zeros_like(total[..., :1])
        for (y, x), part in zip(places, tokens, strict=True):
            at = slice(y // patch, y // patch + h), slice(x // patch, x // patch + w)
            total[at] += part
            count[at] += 1
        found[name] = (total / count)[None]
    return found


def _starts(length: int, window: int, patch: int) -> list[int]:
    """Where windows begin: each two thirds after the one before, the last at the end."""
    step = max(1, 2 * window // (3 * patch)) * patch
    return [*range(0, length - window, step), length - window]


def held_maps(
    grids: Grids, pairs: Sequence[Pair], read: Reading, sizing: Sizing, option: str, say: Say
) -> dict[str, list[list[Tensor]]]:
    """Maps [h, w, D] in main memory by name: of every pair one for each scale.

    Args:
        grids: which encoder.
        pairs: whose images.
        read: how they are read.
        sizing: at which sizes.
        option: that limits their number, for the error.
        say: told how far it is.

    Raises:
        ValueError: they would not fit into the free memory; said after the first image.
    """
    found: dict[str, list[list[Tensor]]] = {name: [] for name in grids.names}
    label = grids.encoder or grids.names[0]
    for i, pair in enumerate(pairs):
        say(f"{label}: features of {i + 1} of {len(pairs)} images")
        maps = sizing.maps(grids, read(pair.image))
        if i == 0:
            each = sum(x.numel() * x.element_size() for part in maps for x in part.values())
            expect_memory(option, len(pairs), each, torch.device("cpu"))
        for name in grids.names:
            found[name].append([part[name].cpu() for part in maps])
    return found


def upsampled(scores: Tensor, size: Sequence[int]) -> Tensor:
    """[C, H, W] of scores [h, w, C] of tokens, bilinear."""
    return F.interpolate(scores.permute(2, 0, 1)[None], list(size), mode="bilinear")[0]
