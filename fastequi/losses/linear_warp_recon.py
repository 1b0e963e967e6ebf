"""A decoder's last linear layer and the path loss as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastequi.functional import arguments, checks, linear_warp_recon_loss


class LinearWarpReconLoss(nn.Module):
    """:func:`fastequi.functional.linear_warp_recon_loss` as a module, its keyword options fixed.

    The layer stays where it is: its weight and bias are arguments of every call.

    Args:
        patch_size, overlap, loss, mean, std, padding_mode, align_corners, mask_outside, reduction,
            size: as there.

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
        padding_mode: str = "zeros",
        align_corners: bool = False,
        mask_outside: bool = False,
        reduction: str = "mean",
        size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        patch_size = arguments.integer("patch_size", patch_size)
        overlap = arguments.integer("overlap", overlap, 0, patch_size // 2)
        arguments.one_of("reduction", reduction, ("mean", "sum"))
        checks.recon_options(loss, "patch", patch_size, mean, std, reduction)
        checks.check_names(padding_mode=padding_mode)
        arguments.flags(align_corners=align_corners, mask_outside=mask_outside)
        if size is not None:
            checks.check_size(arguments.two_sizes("size", size), patch_size)
        self.options: dict[str, Any] = {
            "patch_size": patch_size,
            "overlap": overlap,
            "loss": loss,
            "mean": mean,
            "std": std,
            "padding_mode": padding_mode,
            "align_corners": align_corners,
            "mask_outside": mask_outside,
            "reduction": reduction,
            "size": size,
        }

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        image: Tensor,
        theta: Tensor,
        color: Tensor | None = None,
    ) -> Tensor:
        """hidden [B, K, L, D], weight [K, w·w·C, D], bias [K, w·w·C]; the rest as WarpReconLoss."""
        return linear_warp_recon_loss(
            hidden, weight, bias, image, theta, color=color, **self.options
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
