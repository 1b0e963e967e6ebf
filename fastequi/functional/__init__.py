"""Public functions: check arguments, then call kernels/; to add one: kernels/README.md."""

from __future__ import annotations

import torch

from fastequi.functional.blur_recon import blur_recon_loss
from fastequi.functional.correspondence import correspondence_loss
from fastequi.functional.crop_align import crop_align_loss
from fastequi.functional.dino import dino_loss, ibot_loss
from fastequi.functional.fused_views import fused_views
from fastequi.functional.gaussian_blur import gaussian_blur
from fastequi.functional.gram import gram_loss
from fastequi.functional.koleo import koleo_loss
from fastequi.functional.linear_blur_recon import linear_blur_recon_loss
from fastequi.functional.linear_dino import linear_dino_loss, linear_ibot_loss
from fastequi.functional.linear_warp_recon import linear_warp_recon_loss
from fastequi.functional.nt_xent import nt_xent_loss
from fastequi.functional.rot90_batch import rot90_batch
from fastequi.functional.vicreg import vicreg_loss
from fastequi.functional.warp import warp
from fastequi.functional.warp_recon import warp_recon_loss
from fastequi.kernels import backend as _backend

__all__ = [
    "backend",
    "blur_recon_loss",
    "correspondence_loss",
    "crop_align_loss",
    "dino_loss",
    "fused_views",
    "gaussian_blur",
    "gram_loss",
    "ibot_loss",
    "koleo_loss",
    "linear_blur_recon_loss",
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
