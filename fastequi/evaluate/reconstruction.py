"""How near predicted images come to their targets, and how many dimensions features use.

PSNR and SSIM of what a model predicts between two views mean something beside the same figures of
the nearer view copied into its place. Features that have collapsed show in their spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SIGMA, _RADIUS = 1.5, 5  # of SSIM's window, 11 x 11
_C1, _C2 = 0.01**2, 0.03**2


def psnr(pred: Tensor, target: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Peak signal-to-noise ratio in dB of normalised images [..., 3, H, W], each in 0..1 first."""
    difference = (_unit(pred, mean, std).clamp(0, 1) - _unit(target, mean, std)).square()
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
    x, y = _unit(pred, mean, std).clamp(0, 1), _unit(target, mean, std).clamp(0, 1)
    images = torch.stack([x, y, x * x, y * y, x * y]).double()
    mx, my, xx, yy, xy = _window(images.flatten(0, -3)[:, None]).view(5, *x.shape[:-2], -1)
    vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
    value = (2 * mx * my + _C1) * (2 * cov + _C2)
    value = value / ((mx * mx + my * my + _C1) * (vx + vy + _C2))
    return value.mean((-1, -2)).float()


def _unit(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalised images in 0..1 again."""
    mean_t, std_t = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std))
    return images * std_t + mean_t


def _window(images: Tensor) -> Tensor:
    """[N, 1, H, W] under the Gaussian window, places inside only."""
    at = torch.arange(-_RADIUS, _RADIUS + 1, dtype=images.dtype, device=images.device)
    weight = torch.exp(-(at**2) / (2 * _SIGMA**2))
    weight = weight / weight.sum()
    return F.conv2d(F.conv2d(images, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))


@dataclass(frozen=True)
class Spectrum:
    """How rows of features fill their channels: from the eigenvalues λ of their covariance.

    Attributes:
        channels: D.
        rank: λ that stand out of float32's rounding (√λ over √λ_max · max(N, D) · 1.2e-7).
        variance: of a channel, the mean over channels.
        participation: (Σλ)² / Σλ²: D if all are equal, 1 if one is alone.
        entropy: exp(-Σ p·log p) of p = λ / Σλ, likewise (Roy and Vetterli, EUSIPCO 2007).
    """

    channels: int
    rank: int
    variance: float
    participation: float
    entropy: float


def spectrum(rows: Tensor) -> Spectrum:
    """Of features [N, D]; all the same, they have rank and dimensions 0."""
    x = rows.double() - rows.double().mean(0)
    eigenvalues = torch.linalg.eigvalsh(x.T @ x / max(len(x) - 1, 1)).clamp(min=0)
    channels = x.shape[1]
    top, total = eigenvalues.max(), eigenvalues.sum()
    scale = rows.double().square().mean().item()
    if total <= 1e-14 * scale * channels:  # rounding of equal rows
        return Spectrum(channels, 0, total.item() / channels, 0.0, 0.0)
    floor = top.sqrt() * max(x.shape) * torch.finfo(torch.float32).eps
    return Spectrum(
        channels,
        int((eigenvalues.sqrt() > floor).sum()),
        total.item() / channels,
        (total.square() / eigenvalues.square().sum()).item(),
        torch.special.entr(eigenvalues / total).sum().exp().item(),
    )
