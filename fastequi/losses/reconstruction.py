"""The path losses as modules: they hold the options, `fastequi.functional` does the work."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastequi.functional import blur_recon_loss, warp_recon_loss


class _ReconLoss(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class WarpReconLoss(_ReconLoss):
    """:func:`fastequi.functional.warp_recon_loss` with its keyword options held.

    Args:
        **options: loss, layout, patch_size, mean, std, padding_mode, align_corners, mask_outside,
            reduction, size.
    """

    def forward(
        self, pred: Tensor, image: Tensor, theta: Tensor, color: Tensor | None = None
    ) -> Tensor:
        return warp_recon_loss(pred, image, theta, color=color, **self.options)


class BlurReconLoss(_ReconLoss):
    """:func:`fastequi.functional.blur_recon_loss` with its keyword options held.

    Args:
        **options: loss, layout, patch_size, mean, std, reduction, max_sigma.
    """

    def forward(self, pred: Tensor, image: Tensor, sigma: Tensor) -> Tensor:
        return blur_recon_loss(pred, image, sigma, **self.options)
