"""How far predicted images are from their targets: squared error, PSNR, SSIM, seams."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.functional.normalise import denormalise

_SIGMA, _RADIUS = 1.5, 5  # of SSIM's window, 11 x 11
LEAST_SIZE = 2 * _RADIUS + 1  # pixels that SSIM needs along each side
_C1, _C2 = 0.01**2, 0.03**2
_LEAST = 1e-10  # mean squared error that counts as none: 100 dB


def squared_error(
    pred: Tensor, target: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Mean over pixels and channels of normalised images [..., C, H, W], each in 0..1 first."""
    x, y = (denormalise(images, mean, std).clamp(0, 1) for images in (pred, target))
    return (x - y).square().mean((-1, -2, -3))


def neighbour_differences(images: Tensor, patch_size: int) -> Tensor:
    """[2]: mean squares of the differences of neighbouring pixels of images [..., C, H, W].

    Of those across an edge between patches, and of those inside patches; NaN where there are none.
    The first over the second is 1 where no edge shows, as in photographs, and above it where a
    block pattern does (blockiness, as of coded images: Wang et al., ICIP 2002).
    """
    sums, counts = [], []
    for axis in (-1, -2):
        squares = images.double().diff(dim=axis).square().movedim(axis, 0).flatten(1)
        places = torch.arange(1, len(squares) + 1, device=images.device)
        for chosen in (places % patch_size == 0, places % patch_size != 0):
            sums.append(squares[chosen].sum())
            counts.append(squares[chosen].numel())
    total = torch.stack(sums).view(2, 2).sum(0)
    return (total / total.new_tensor(counts).view(2, 2).sum(0)).cpu()


def decibels(error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors, the peak being 1."""
    return -10 * error.clamp(min=_LEAST).log10()


def ssim(pred: Tensor, target: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Structural similarity of normalised images [..., C, H, W], each in 0..1 first.

    Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE TIP
    2004: the mean over pixels and channels of
    (2·μx·μy + C1)(2·σxy + C2) / ((μx² + μy² + C1)(σx² + σy² + C2)), C1 = .01², C2 = .03², the
    moments under an 11x11 Gaussian window of σ = 1.5, where it lies inside the image.

    Raises:
        ValueError: images smaller than the window.
    """
    height, width = pred.shape[-2:]
    if min(height, width) < LEAST_SIZE:
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
