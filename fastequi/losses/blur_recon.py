"""The path loss against blurred images as a module: it holds the options of its function."""

from __future__ import annotations

from torch import Tensor

from fastequi.functional import blur_recon_loss
from fastequi.losses.options import ReconLoss


class BlurReconLoss(ReconLoss):
    """:func:`fastequi.functional.blur_recon_loss` with its keyword options held.

    Args:
        **options: loss, layout, patch_size, mean, std, reduction, max_sigma.
    """

    def forward(self, pred: Tensor, image: Tensor, sigma: Tensor) -> Tensor:
        return blur_recon_loss(pred, image, sigma, **self.options)
