"""A decoder's last linear layer and the loss against blurred images as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastequi.functional import arguments, checks, linear_blur_recon_loss


class LinearBlurReconLoss(nn.Module):
    """:func:`fastequi.functional.linear_blur_recon_loss` as a module, its keyword options fixed.

    The layer stays where it is: its weight and bias are arguments of every call.

    Args:
        patch_size, overlap, loss, mean, std, reduction, max_sigma: as there.

    Raises:
        TypeError, ValueError: options that cannot be, whatever the images; names the argument.
    """

    def __init__(
        self,
        *,
        patch_size: int,
        overlap: int = 0,
        loss: str = "mse",
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        reduction: str = "mean",
        max_sigma: float = 2.0,
    ) -> None:
        super().__init__()
        patch_size = arguments.integer("patch_size", patch_size)
        overlap = arguments.integer("overlap", overlap, 0, patch_size // 2)
        arguments.one_of("reduction", reduction, ("mean", "sum"))
        checks.recon_options(loss, "patch", patch_size, mean, std, reduction)
        max_sigma = arguments.number("max_sigma", max_sigma, above=0)
        self.options: dict[str, Any] = {
            "patch_size": patch_size,
            "overlap": overlap,
            "loss": loss,
            "mean": mean,
            "std": std,
            "reduction": reduction,
            "max_sigma": max_sigma,
        }

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        image: Tensor,
        sigma: Tensor | float,
    ) -> Tensor:
        """hidden [B, K, L, D], weight [K, w·w·C, D], bias [K, w·w·C]; the rest as BlurReconLoss."""
        return linear_blur_recon_loss(hidden, weight, bias, image, sigma, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
