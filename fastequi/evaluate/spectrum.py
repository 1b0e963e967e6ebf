"""How many of their dimensions features use: collapse shows in the spectrum of their covariance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
