"""Tokens as maps: images [B, 3, H, W] to [B, h, w, D], for encoders and for what needs no training.

Baselines, made for the evaluated encoder's grid: the pixels of each patch ("raw patches"), and a
code of nothing but a token's place ("position only"), whose cosine falls with distance. The same
encoder at random initialisation is one of the encoders (`fastequi.evaluate.encoders.load_all`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.evaluate.checked import noise
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.results import Row
from fastequi.functional.normalise import normalise

Maps = dict[str, Tensor]
"""[B, h, w, D] float32 by the name of the features ("patch", "z_equi")."""

_MOST_PIXELS = 8  # a raw patch's side: larger ones are averaged to it
_BATCH = 64


@dataclass(frozen=True)
class Grids:
    """What gives a map of tokens for each image.

    Attributes:
        encoder: its name in the rows; None for what is no network.
        names: of its features.
        patch_size: pixels from a token to the next.
        image_size: side of the squares that it is made for, in pixels; others are multiples of
            `patch_size`.
        is_baseline: no training went into it.
        device: where images go.
        of: images [B, 3, H, W], uint8 or floats in 0..1, on `device`, to maps.
        digest: of its weights; None where what it computes is not known, so that nothing is kept.
    """

    encoder: str | None
    names: tuple[str, ...]
    patch_size: int
    image_size: int
    is_baseline: bool
    device: torch.device
    of: Callable[[Tensor], Maps]
    digest: str | None = None

    def row(self, name: str, detail: str = "") -> Row:
        """Whose features are judged."""
        features = f"{name}, {detail}" if detail else name
        return Row(encoder=self.encoder, features=features, is_baseline=self.is_baseline)

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: int = _BATCH) -> Maps:
        """Maps of images [B, 3, H, W], uint8 or floats in 0..1, anywhere, on `device`.

        Args:
            batch: images at a time.
        """
        parts = [self.of(part.to(self.device)) for part in images.split(batch)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.names}


def grids_of(
    encoder: Encoder, name: str | None = None, only: Sequence[str] = ("patch", "z_equi")
) -> Grids:
    """An encoder's features that are a grid.

    Args:
        encoder: of which some features have a token for each place of a grid.
        name: in the rows; its own by default.
        only: features that are asked for, where it has them.

    Raises:
        ValueError: it has no such features, or says no patch size.
    """
    patch = encoder.patch_size
    if patch is None:
        raise ValueError(f"encoder: {encoder.name} says no patch_size, so its tokens are no grid")
    side = encoder.image_size // patch
    found = encoder.features(noise(encoder.image_size, encoder.device, encoder.in_chans))
    names = tuple(n for n in only if n in found and found[n].shape[1] == side * side)
    if not names:
        shapes = ", ".join(f"{n} {list(v.shape[1:])}" for n, v in found.items())
        raise ValueError(
            f"encoder: expected {' or '.join(only)} of {side}x{side} tokens, {encoder.name} gives "
            f"{shapes}"
        )

    def of(images: Tensor) -> Maps:
        tokens = encoder.features(normalise(images, encoder.mean, encoder.std))
        grid = images.shape[2] // patch, images.shape[3] // patch
        return {n: tokens[n].float().unflatten(1, grid) for n in names}

    return Grids(
        encoder=name or encoder.name,
        names=names,
        patch_size=patch,
        image_size=encoder.image_size,
        is_baseline=encoder.is_baseline,
        device=encoder.device,
        of=of,
    )


def raw_patches(like: Grids) -> Grids:
    """The pixels of each patch, averaged to at most 8x8.

    Values are in -1..1: cosines of bytes alone would say mostly how bright two patches are.
    """
    patch = like.patch_size
    each = min(patch, _MOST_PIXELS)

    def of(images: Tensor) -> Maps:
        x = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images * 2 - 1
        grid = x.shape[2] // patch, x.shape[3] // patch
        x = F.adaptive_avg_pool2d(x, (grid[0] * each, grid[1] * each))
        return {"raw patches": F.unfold(x, each, stride=each).mT.unflatten(1, grid)}

    return _without_network(like, "raw patches", of)


def position_only(like: Grids) -> Grids:
    """(cos, sin) of a quarter turn along each axis: a cosine of two says how near they are."""
    patch = like.patch_size

    def of(images: Tensor) -> Maps:
        grid = images.shape[2] // patch, images.shape[3] // patch
        axes = [
            math.pi / 2 * (torch.arange(n, device=images.device) + 0.5) / max(grid) for n in grid
        ]
        y, x = torch.meshgrid(*axes, indexing="ij")
        code = torch.stack([y.cos(), y.sin(), x.cos(), x.sin()], 2)
        return {"position only": code.expand(len(images), -1, -1, -1)}

    return _without_network(like, "position only", of)


def _without_network(like: Grids, name: str, of: Callable[[Tensor], Maps]) -> Grids:
    return replace(like, encoder=None, names=(name,), is_baseline=True, of=of, digest=None)


def all_grids(encoders: Mapping[str, Encoder], evaluated: str) -> list[Grids]:
    """Baselines of the evaluated encoder's grid, then every encoder's, by name."""
    own = grids_of(encoders[evaluated], evaluated)
    others = [own if name == evaluated else grids_of(e, name) for name, e in encoders.items()]
    return [raw_patches(own), position_only(own), *others]
