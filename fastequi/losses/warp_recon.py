"""The path loss against warped images as a module: it holds the options of its function."""

from __future__ import annotations

from torch import Tensor

from fastequi.functional import warp_recon_loss
from fastequi.losses.options import ReconLoss


class WarpReconLoss(ReconLoss):
    """:func:`fastequi.functional.warp_recon_loss` with its keyword options held.

    Args:
        **options: loss, layout, patch_size, mean, std, padding_mode, align_corners, mask_outside,
            reduction, size.
    """

    def forward(
        self, pred: Tensor, image: Tensor, theta: Tensor, color: Tensor | None = None
    ) -> Tensor:
        return warp_recon_loss(pred, image, theta, color=color, **self.options)
