"""Self-supervised pretraining whose features keep the geometry of an image, on fused kernels.

The drop-in names load on first use, so that `import fastequi` costs nothing::

    import fastequi
    loss = fastequi.warp_recon_loss(pred, image, theta)
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastequi.export.pretrained import load
    from fastequi.functional import (
        blur_recon_loss,
        correspondence_loss,
        crop_align_loss,
        dino_loss,
        fused_views,
        gaussian_blur,
        gram_loss,
        ibot_loss,
        koleo_loss,
        linear_blur_recon_loss,
        linear_dino_loss,
        linear_ibot_loss,
        linear_warp_recon_loss,
        nt_xent_loss,
        rot90_batch,
        vicreg_loss,
        warp,
        warp_recon_loss,
    )
    from fastequi.losses import (
        BlurReconLoss,
        DINOLoss,
        GramLoss,
        IBOTLoss,
        KoLeoLoss,
        LinearBlurReconLoss,
        LinearWarpReconLoss,
        NTXentLoss,
        VICRegLoss,
        WarpReconLoss,
    )
    from fastequi.paths import SE2, Blur, Color, Gain, Rotation, Transform, Translation

__version__ = "0.1.0"

_HOME = {
    "load": "fastequi.export.pretrained",
    "linear_dino_loss": "fastequi.functional",
    "linear_ibot_loss": "fastequi.functional",
    "linear_warp_recon_loss": "fastequi.functional",
    "linear_blur_recon_loss": "fastequi.functional",
    "warp_recon_loss": "fastequi.functional",
    "warp": "fastequi.functional",
    "blur_recon_loss": "fastequi.functional",
    "fused_views": "fastequi.functional",
    "gaussian_blur": "fastequi.functional",
    "correspondence_loss": "fastequi.functional",
    "crop_align_loss": "fastequi.functional",
    "dino_loss": "fastequi.functional",
    "gram_loss": "fastequi.functional",
    "ibot_loss": "fastequi.functional",
    "koleo_loss": "fastequi.functional",
    "nt_xent_loss": "fastequi.functional",
    "rot90_batch": "fastequi.functional",
    "vicreg_loss": "fastequi.functional",
    "DINOLoss": "fastequi.losses",
    "IBOTLoss": "fastequi.losses",
    "GramLoss": "fastequi.losses",
    "KoLeoLoss": "fastequi.losses",
    "NTXentLoss": "fastequi.losses",
    "VICRegLoss": "fastequi.losses",
    "WarpReconLoss": "fastequi.losses",
    "BlurReconLoss": "fastequi.losses",
    "LinearWarpReconLoss": "fastequi.losses",
    "LinearBlurReconLoss": "fastequi.losses",
    "Rotation": "fastequi.paths",
    "Translation": "fastequi.paths",
    "SE2": "fastequi.paths",
    "Color": "fastequi.paths",
    "Gain": "fastequi.paths",
    "Blur": "fastequi.paths",
    "Transform": "fastequi.paths",
}

__all__ = [
    "SE2",
    "Blur",
    "BlurReconLoss",
    "Color",
    "DINOLoss",
    "Gain",
    "GramLoss",
    "IBOTLoss",
    "KoLeoLoss",
    "LinearBlurReconLoss",
    "LinearWarpReconLoss",
    "NTXentLoss",
    "Rotation",
    "Transform",
    "Translation",
    "VICRegLoss",
    "WarpReconLoss",
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
    "load",
    "nt_xent_loss",
    "rot90_batch",
    "vicreg_loss",
    "warp",
    "warp_recon_loss",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fastequi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
