"""Loss modules, one per file, named like their function; to add one: kernels/README.md."""

from fastequi.losses.blur_recon import BlurReconLoss
from fastequi.losses.dino import DINOLoss, IBOTLoss
from fastequi.losses.gram import GramLoss
from fastequi.losses.koleo import KoLeoLoss
from fastequi.losses.linear_blur_recon import LinearBlurReconLoss
from fastequi.losses.linear_warp_recon import LinearWarpReconLoss
from fastequi.losses.nt_xent import NTXentLoss
from fastequi.losses.vicreg import VICRegLoss
from fastequi.losses.warp_recon import WarpReconLoss

__all__ = [
    "BlurReconLoss",
    "DINOLoss",
    "GramLoss",
    "IBOTLoss",
    "KoLeoLoss",
    "LinearBlurReconLoss",
    "LinearWarpReconLoss",
    "NTXentLoss",
    "VICRegLoss",
    "WarpReconLoss",
]
