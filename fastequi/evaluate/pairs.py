"""Pairs of an image and its transformed twin, with the transformation as label.

Border-free: both images of a pair are cut from a window with a margin, so that no empty corner
gives the angle away (with zero-filled corners, raw pixels of the rotated image alone reach an R² of
0.83). Colours change on the same pixels; a blurred image is cut from the blurred window, so that
the pixels around it take part in the blur of its edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastequi.data.views.batch import Batch, Views
from fastequi.evaluate.photometric import Photometric
from fastequi.functional import gaussian_blur, warp
from fastequi.functional.normalise import denormalise, normalise
from fastequi.paths import Blur, Path


@dataclass(frozen=True)
class Pairs:
    """Images and their transformed twins.

    Attributes:
        before, after: [N, C, H, W], normalised, float16: 24,000 RGB pairs of 224 px take 14 GB.
        params: [N, P] of the transformation, from the middle of their ranges and over their
            half-widths: in [-1, 1].
        names: of the parameters.
        scales: their half-widths, in their units.
        photographs: [N] int64 on the CPU, which photograph each pair is from.
    """

    before: Tensor
    after: Tensor
    params: Tensor
    names: tuple[str, ...]
    scales: tuple[float, ...]
    photographs: Tensor

    def __len__(self) -> int:
        return len(self.params)


def collect_pairs(
    batches: Iterable[Batch],
    path: Path,
    views: Views,
    n: int,
    images_of: Callable[[Tensor], Tensor] = torch.clone,
    *,
    photometric: Photometric | None = None,
    seed: int = 0,
) -> Pairs:
    """The first n pairs of un-augmented batches: the view in u as it is, and transformed.

    Args:
        batches: as the loader makes them.
        path: the transformation whose parameters they carry.
        views: their geometry.
        n: how many.
        images_of: sample ids to the photographs that they show, as
            `Loader.photographs_of`; one each by default.
        photometric: changes both images of a pair, independently.
        seed: of these changes.

    Raises:
        ValueError: fewer than n images.
    """
    middle, scales = _ranges(path, views.image_size)
    before, after, params, photographs = [], [], [], []
    generator = torch.Generator().manual_seed(seed % 2**64)
    count = 0
    for batch in batches:
        both = _both(batch, path, views)
        if photometric is not None:
            unit = denormalise(both, views.mean, views.std).clamp(0, 1).flatten(0, 1)
            unit = photometric.change(unit, generator).view_as(both)
            both = normalise(unit, views.mean, views.std)
        both = both.half()
        before.append(both[:, 0])
        after.append(both[:, 1])
        photographs.append(images_of(batch.sample_ids))
        shift, scale = (torch.tensor(v, device=batch.path.device) for v in (middle, scales))
        params.append((batch.path - shift) / scale)
        count += len(batch)
        if count >= n:
            break
    if count < n:
        raise ValueError(f"batches: expected at least {n} images, got {count}")
    return Pairs(
        before=torch.cat(before)[:n],
        after=torch.cat(after)[:n],
        params=torch.cat(params)[:n],
        names=path.names,
        scales=scales,
        photographs=torch.cat(photographs)[:n],
    )


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Pairs of one transformation, one after the other."""
    first = parts[0]
    if len(parts) == 1:
        return first
    before, after, params, photographs = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("before", "after", "params", "photographs")
    )
    return replace(first, before=before, after=after, params=params, photographs=photographs)


def _ranges(path: Path, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Middle and half-width of every parameter's range, in its unit."""
    if isinstance(path, Blur):
        return ((path.high + path.low) / 2,), ((path.high - path.low) / 2,)
    scales = path.scales(size)
    return (0.0,) * len(scales), scales


def _both(batch: Batch, path: Path, views: Views) -> Tensor:
    """[B, 2, C, H, W]: the view and its twin."""
    size = (views.image_size, views.image_size)
    points = path.at(batch.path, (0.0, 1.0), size, zoom=views.zoom)
    scale: dict[str, Any] = {"mean": views.mean, "std": views.std}
    if points.sigma is None:
        options = {"size": size, "padding_mode": views.padding_mode, **scale}
        return warp(batch.u, points.theta, color=points.color, **options)
    margin = views.source_size - views.image_size
    if margin % 2:
        raise ValueError(f"source_size: expected image_size plus an even margin, got {margin}")
    inside = slice(margin // 2, margin // 2 + views.image_size)
    assert isinstance(path, Blur)
    blurred = gaussian_blur(batch.u, points.sigma, max_sigma=path.max_sigma, **scale)
    return blurred[..., inside, inside]
