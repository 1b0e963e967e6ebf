"""The drop-in surface: arguments are checked once, then the kernels have them."""

from __future__ import annotations

import torch

from fastequi.functional.contrastive import koleo_loss, nt_xent_loss
from fastequi.functional.crops import correspondence_loss, crop_align_loss
from fastequi.functional.distillation import (
    dino_loss,
    ibot_loss,
    linear_dino_loss,
    linear_ibot_loss,
)
from fastequi.functional.images import (
    blur_recon_loss,
    gaussian_blur,
    linear_warp_recon_loss,
    rot90_batch,
    warp,
    warp_recon_loss,
)
from fastequi.functional.redundancy import vicreg_loss
from fastequi.kernels import backend as _backend

__all__ = [
    "backend",
    "blur_recon_loss",
    "correspondence_loss",
    "crop_align_loss",
    "dino_loss",
    "gaussian_blur",
    "ibot_loss",
    "koleo_loss",
    "linear_dino_loss",
    "linear_ibot_loss",
    "linear_warp_recon_loss",
    "nt_xent_loss",
    "rot90_batch",
    "vicreg_loss",
    "warp",
    "warp_recon_loss",
]


def backend(device: torch.device | str) -> tuple[str, str]:
    """("triton", "native" or "torch", why): what the ops run as for tensors on a device."""
    return _backend.choose(torch.device(device))
