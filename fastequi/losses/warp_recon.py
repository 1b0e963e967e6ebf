"""The path loss against warped images as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastequi.functional import arguments, checks, warp_recon_loss


class WarpReconLoss(nn.Module):
    """:func:`fastequi.functional.warp_recon_loss` as a module, its keyword options fixed.

    Args:
        loss, layout, patch_size, mean, std, padding_mode, align_corners, mask_outside, reduction,
            size: as there.

    Raises:
        TypeError, ValueError: options that cannot be, whatever the images; names the argument.
    """

    def __init__(
        self,
        *,
        loss: str = "mse",
        layout: str = "image",
        patch_size: int | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        padding_mode: str = "zeros",
        align_corners: bool = False,
        mask_outside: bool = False,
        reduction: str = "mean",
        size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        checks.recon_options(loss, layout, patch_size, mean, std, reduction)
        checks.check_names(padding_mode=padding_mode)
        arguments.flags(align_corners=align_corners, mask_outside=mask_outside)
        if size is not None:
            checks.check_size(arguments.two_sizes("size", size), patch_size)
        self.options: dict[str, Any] = {
            "loss": loss,
            "layout": layout,
            "patch_size": patch_size,
            "mean": mean,
            "std": std,
            "padding_mode": padding_mode,
            "align_corners": align_corners,
            "mask_outside": mask_outside,
            "reduction": reduction,
            "size": size,
        }

    def forward(
        self, pred: Tensor, image: Tensor, theta: Tensor, color: Tensor | None = None
    ) -> Tensor:
        """pred [B, K, ...], image [B, C, Hs, Ws], theta [B, K, 2, 3], color [B, K, C, ...]."""
        return warp_recon_loss(pred, image, theta, color=color, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
