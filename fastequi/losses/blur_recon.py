"""The path loss against blurred images as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastequi.functional import arguments, blur_recon_loss, checks


class BlurReconLoss(nn.Module):
    """:func:`fastequi.functional.blur_recon_loss` as a module, its keyword options fixed.

    Args:
        loss, layout, patch_size, mean, std, reduction, max_sigma: as there.

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
        reduction: str = "mean",
        max_sigma: float = 2.0,
    ) -> None:
        super().__init__()
        checks.recon_options(loss, layout, patch_size, mean, std, reduction)
        max_sigma = arguments.number("max_sigma", max_sigma, above=0)
        self.options: dict[str, Any] = {
            "loss": loss,
            "layout": layout,
            "patch_size": patch_size,
            "mean": mean,
            "std": std,
            "reduction": reduction,
            "max_sigma": max_sigma,
        }

    def forward(self, pred: Tensor, image: Tensor, sigma: Tensor | float) -> Tensor:
        """pred [B, K, ...], image [B, C, H, W], sigma [B, K] in pixels."""
        return blur_recon_loss(pred, image, sigma, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
