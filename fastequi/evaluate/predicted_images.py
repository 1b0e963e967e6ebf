"""How good predicted images are: their errors beside the nearer view's, and seams of patches.

The baseline of a predicted image is the nearer of the two views, copied into its place. The first
figure is the gain over it in the squared error of all pixels, in dB. A mean of decibels over images
stands beside it: it is ruled by images without texture, where both errors are near zero. So the
gain is also given by texture (how good the copies are) and by the path's angle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fastequi.data.views.batch import Batch
from fastequi.evaluate.checked import expect_finite
from fastequi.evaluate.image_quality import decibels, neighbour_differences, squared_error, ssim
from fastequi.evaluate.intervals import middle95, resampled_mean
from fastequi.functional.normalise import denormalise
from fastequi.methods.tir import TIR

_DRAWS = 1000  # of the bootstrap
_ANGLES = (0.0, 10.0, 20.0, 30.0)  # degrees, where the parts by angle begin


def nearer_view(v1: Tensor, v2: Tensor, num_steps: int) -> Tensor:
    """[B, K, C, H, W]: for every step the view it lies closer to, v1 for a draw."""
    ahead = [k / (num_steps + 1) > 0.5 for k in range(1, num_steps + 1)]
    return torch.stack([v2 if later else v1 for later in ahead], 1)


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One measure of N images' K steps.

    Attributes:
        predicted, nearer_view: means over images, of every step k = 1 .. K; the second is the
            baseline.
        gain: mean over images and steps of predicted - nearer_view.
        low, high: its 95 % interval over photographs, see `fastequi.evaluate.intervals`; None of
            one photograph, whose windows say nothing of others.
    """

    predicted: tuple[float, ...]
    nearer_view: tuple[float, ...]
    gain: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """The squared error of all pixels of all images and steps, in dB.

    Attributes:
        predicted, nearer_view: PSNR of that error; the second is the baseline.
        gain: predicted - nearer_view.
        low, high: its 95 % interval over photographs; None of one photograph.
    """

    predicted: float
    nearer_view: float
    gain: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class PartGain:
    """The gain over the nearer view on a part of the images.

    Attributes:
        name: of the part.
        images: how many.
        nearer_view: mean over images and steps of the nearer view's PSNR.
        gain: mean over images and steps of the difference in PSNR.
        pooled: in dB, by the squared error of all pixels of the part.
    """

    name: str
    images: int
    nearer_view: float
    gain: float
    pooled: float


@dataclass(frozen=True, kw_only=True)
class Seams:
    """Mean squared differences of neighbouring pixels across edges of patches over those inside.

    Attributes:
        predicted, target: 1 where no edge shows; None where patches have one pixel or are single.
    """

    predicted: float | None
    target: float | None


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """How good predicted images are.

    Attributes:
        pooled: by the squared error of all pixels.
        psnr, ssim: means over images.
        seams: how far a block pattern shows.
        by_texture: quarters of the images, by the nearer view's PSNR, the lowest first.
        by_angle: of a path with an angle, parts by its size; else empty.
    """

    pooled: Pooled
    psnr: Quality
    ssim: Quality
    seams: Seams
    by_texture: tuple[PartGain, ...]
    by_angle: tuple[PartGain, ...]


def predictions(
    method: TIR,
    batches: Iterable[Batch],
    n: int,
    images_of: Callable[[Tensor], Tensor] = torch.clone,
) -> Predictions:
    """How good the predictions are for the first n images or a little more.

    Args:
        method: with decoders.
        batches: as :func:`path_loader` makes them.
        n: images.
        images_of: sample ids to the photographs that they show, as
            `Loader.photographs_of`; one each by default.
    """
    mean, std = method.views.mean, method.views.std
    errors: list[Tensor] = []
    similarities: list[Tensor] = []
    photographs, paths, edges = [], [], []
    count = 0
    for batch in batches:
        views = method.reconstruct(batch)
        target = views["target"]
        expect_finite("decoders", {"predictions": views["pred"]})
        both = views["pred"], nearer_view(views["v1"], views["v2"], target.shape[1])
        for measure, found in ((squared_error, errors), (ssim, similarities)):
            found.append(torch.stack([measure(x, target, mean, std).cpu() for x in both], 1))
        edges.append(torch.stack([_differences(x, method) for x in (views["pred"], target)]))
        photographs.append(images_of(batch.sample_ids))
        paths.append(batch.path.cpu())
        count += len(batch)
        if count >= n:
            break
    error, groups = torch.cat(errors), torch.cat(photographs)
    psnr = decibels(error)
    names = method.path.names
    angle = torch.cat(paths)[:, names.index("angle")].abs() if "angle" in names else None
    return Predictions(
        pooled=_pooled(error, groups),
        psnr=_quality(psnr, groups),
        ssim=_quality(torch.cat(similarities), groups),
        seams=_seams(torch.stack(edges).mean(0)),
        by_texture=_by_texture(error, psnr),
        by_angle=() if angle is None else _by_angle(error, psnr, angle),
    )


# of squared errors or their decibels [N, (predicted, nearer view), K]


def _pooled(error: Tensor, photographs: Tensor) -> Pooled:
    predicted, copied = error.mean((0, 2))
    drawn = [resampled_mean(each, photographs, _DRAWS) for each in error.mean(2).unbind(1)]
    low, high = _interval(decibels(drawn[0]) - decibels(drawn[1]), photographs)
    return Pooled(
        predicted=decibels(predicted).item(),
        nearer_view=decibels(copied).item(),
        gain=(decibels(predicted) - decibels(copied)).item(),
        low=low,
        high=high,
    )


def _quality(values: Tensor, photographs: Tensor) -> Quality:
    predicted, copied = values.mean(0).tolist()
    gains = (values[:, 0] - values[:, 1]).mean(1)
    low, high = _interval(resampled_mean(gains, photographs, _DRAWS), photographs)
    return Quality(
        predicted=tuple(predicted),
        nearer_view=tuple(copied),
        gain=gains.mean().item(),
        low=low,
        high=high,
    )


def _interval(drawn: Tensor, photographs: Tensor) -> tuple[float | None, float | None]:
    """The ends of the draws' middle 95 %; None of one photograph."""
    if len(photographs.unique()) == 1:
        return None, None
    low, high = middle95(drawn)
    return low.item(), high.item()


def _differences(images: Tensor, method: TIR) -> Tensor:
    """[2] of images as they are shown, see :func:`neighbour_differences`."""
    shown = denormalise(images, method.views.mean, method.views.std).clamp(0, 1)
    return neighbour_differences(shown, method.encoder.patch_size)


def _seams(edges: Tensor) -> Seams:
    """Of mean squares [(predicted, target), (across edges, inside)]."""
    ratios = [x if math.isfinite(x) else None for x in (edges[:, 0] / edges[:, 1]).tolist()]
    return Seams(predicted=ratios[0], target=ratios[1])


def _by_texture(error: Tensor, psnr: Tensor) -> tuple[PartGain, ...]:
    order = psnr[:, 1].mean(1).argsort()
    names = "most texture", "second quarter", "third quarter", "least texture"
    quarters = order.tensor_split(len(names))
    return tuple(
        _part(n, error[q], psnr[q]) for n, q in zip(names, quarters, strict=True) if len(q)
    )


def _by_angle(error: Tensor, psnr: Tensor, angle: Tensor) -> tuple[PartGain, ...]:
    parts = []
    for low, high in pairwise((*_ANGLES, math.inf)):
        inside = (low <= angle) & (angle < high)
        if inside.any():
            end = min(high, max(math.ceil(angle[inside].max().item()), low + 1))
            parts.append(_part(f"{low:.0f}..{end:.0f}°", error[inside], psnr[inside]))
    return tuple(parts)


def _part(name: str, error: Tensor, psnr: Tensor) -> PartGain:
    predicted, copied = decibels(error.mean((0, 2)))
    return PartGain(
        name=name,
        images=len(error),
        nearer_view=psnr[:, 1].mean().item(),
        gain=(psnr[:, 0] - psnr[:, 1]).mean().item(),
        pooled=(predicted - copied).item(),
    )
