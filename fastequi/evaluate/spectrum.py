"""How many of their dimensions features use: a collapse shows in their covariance's spectrum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """How features [N, D] fill their channels, from the eigenvalues λ of their covariance.

    Attributes:
        channels: D.
        rank: number of λ above float32's rounding (√λ > √λ_max · max(N, D) · 1.2e-7).
        variance: of a channel, the mean over channels.
        participation: (Σλ)² / Σλ²: D if all are equal, 1 if a single one is not 0.
        entropy: exp(-Σ p·log p) of p = λ / Σλ, likewise (Roy and Vetterli, EUSIPCO 2007).
    """

    channels: int
    rank: int
    variance: float
    participation: float
    entropy: float


def spectrum(rows: Tensor) -> Spectrum:
    """Of features [N, D]; if all rows are equal, rank, participation and entropy are 0."""
    x = rows.double() - rows.double().mean(0)
    eigenvalues = torch.linalg.eigvalsh(x.T @ x / max(len(x) - 1, 1)).clamp(min=0)
    channels = x.shape[1]
    top, total = eigenvalues.max(), eigenvalues.sum()
    scale = rows.double().square().mean().item()
    if total <= 1e-14 * scale * channels:  # rounding of equal rows
        variance = total.item() / channels
        return Spectrum(
            channels=channels, rank=0, variance=variance, participation=0.0, entropy=0.0
        )
    rounding = top.sqrt() * max(x.shape) * torch.finfo(torch.float32).eps
    return Spectrum(
        channels=channels,
        rank=int((eigenvalues.sqrt() > rounding).sum()),
        variance=total.item() / channels,
        participation=(total.square() / eigenvalues.square().sum()).item(),
        entropy=torch.special.entr(eigenvalues / total).sum().exp().item(),
    )
