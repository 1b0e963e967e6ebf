"""How near predicted images come to their targets: PSNR and SSIM.

What a model predicts between two views means something beside the same figures of the nearer view,
copied into its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.config import Config
from fastequi.data.loader import Loader, make_loader
from fastequi.data.sources.image_sets import Source
from fastequi.data.views.batch import Batch
from fastequi.evaluate.encoders import expect_finite
from fastequi.evaluate.intervals import middle95, resampled_mean
from fastequi.functional.normalise import denormalise
from fastequi.methods.tir import TIR

_BATCH = 64
_SIGMA, _RADIUS = 1.5, 5  # of SSIM's window, 11 x 11
_C1, _C2 = 0.01**2, 0.03**2


def psnr(pred: Tensor, target: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Peak signal-to-noise ratio in dB of normalised images [..., 3, H, W], each in 0..1 first."""
    x, y = (denormalise(images, mean, std).clamp(0, 1) for images in (pred, target))
    difference = (x - y).square()
    return -10 * difference.mean((-1, -2, -3)).clamp(min=1e-10).log10()


def nearer_view(v1: Tensor, v2: Tensor, num_steps: int) -> Tensor:
    """[B, K, 3, H, W]: for every step the view it lies closer to, u itself (v1) for a draw."""
    ahead = [k / (num_steps + 1) > 0.5 for k in range(1, num_steps + 1)]
    return torch.stack([v2 if later else v1 for later in ahead], 1)


def ssim(pred: Tensor, target: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Structural similarity of normalised images [..., 3, H, W], each in 0..1 first.

    Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP
    2004: the mean over pixels and channels of
    (2·μx·μy + C1)(2·σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2)), C1 = .01², C2 = .03², the
    moments under an 11x11 Gaussian window of σ = 1.5, where it lies inside the image.

    Raises:
        ValueError: images smaller than the window.
    """
    height, width = pred.shape[-2:]
    if min(height, width) <= 2 * _RADIUS:
        raise ValueError(f"pred: expected images of at least 11x11 for SSIM, got {height}x{width}")
    x, y = (denormalise(images, mean, std).clamp(0, 1) for images in (pred, target))
    images = torch.stack([x, y, x * x, y * y, x * y]).double()
    mx, my, xx, yy, xy = _window(images.flatten(0, -3)[:, None]).view(5, *x.shape[:-2], -1)
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    value = (2 * mx * my + _C1) * (2 * cov + _C2)
    value = value / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    return value.mean((-1, -2)).float()


def _window(images: Tensor) -> Tensor:
    """[N, 1, H, W] under the Gaussian window, places inside only."""
    at = torch.arange(-_RADIUS, _RADIUS + 1, dtype=images.dtype, device=images.device)
    weight = torch.exp(-(at**2) / (2 * _SIGMA**2))
    weight = weight / weight.sum()
    return F.conv2d(F.conv2d(images, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))


@dataclass(frozen=True)
class Quality:
    """One measure of N images' K steps.

    Attributes:
        predicted, nearer_view: means over images, of every step k = 1 .. K.
        gain: mean over images and steps of predicted - nearer_view.
        low, high: its 95 % interval over photographs, see `fastequi.evaluate.intervals`.
    """

    predicted: tuple[float, ...]
    nearer_view: tuple[float, ...]
    gain: float
    low: float
    high: float


def path_loader(config: Config, source: Source, device: torch.device, seed: int) -> Loader:
    """Batches along a run's path without augmentation: v1 is the centre of u's window.

    A run whose views are two crops is judged on views of one, which its path alone parts.
    """
    data = replace(config.data.plain(), shared_crop=True, num_threads=0)
    each = data.samples_per_decode
    batch = max(min(data.batch_size, _BATCH) // each, 1) * each
    repeat = max(data.repeat, -(-batch // (each * len(source))))
    data = replace(data, batch_size=batch, repeat=repeat)
    return make_loader(source, data, config.path.build(), seed=seed, device=device)


def quality(
    method: TIR, batches: Iterable[Batch], n: int, samples_per_file: int = 1
) -> dict[str, Quality]:
    """PSNR in dB and SSIM of the predictions for the first n images or a little more.

    Args:
        method: with decoders.
        batches: as :func:`path_loader` makes them.
        n: images.
        samples_per_file: sample ids of each photograph, `DataConfig.samples_per_file`.
    """
    mean, std = method.views.mean, method.views.std
    found: dict[str, list[Tensor]] = {}
    photographs = []
    count = 0
    for batch in batches:
        views = method.reconstruct(batch)
        target = views["target"]
        expect_finite("decoders", {"predictions": views["pred"]})
        copied = nearer_view(views["v1"], views["v2"], target.shape[1])
        for name, measure in (("psnr", psnr), ("ssim", ssim)):
            both = [measure(x, target, mean, std).cpu() for x in (views["pred"], copied)]
            found.setdefault(name, []).append(torch.stack(both, 1))
        photographs.append(batch.sample_ids // samples_per_file)
        count += len(batch)
        if count >= n:
            break
    groups = torch.cat(photographs)
    return {name: _quality(torch.cat(parts), groups) for name, parts in found.items()}


def _quality(values: Tensor, photographs: Tensor) -> Quality:
    """Of [N, (predicted, nearer view), K]."""
    predicted, copied = values.mean(0).tolist()
    gains = (values[:, 0] - values[:, 1]).mean(1)
    low, high = middle95(resampled_mean(gains, photographs))
    return Quality(tuple(predicted), tuple(copied), gains.mean().item(), low.item(), high.item())
