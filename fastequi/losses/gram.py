"""Gram anchoring as a module."""

from __future__ import annotations

from torch import Tensor, nn

from fastequi.functional import gram_loss
from fastequi.functional.gram import check_gram_options


class GramLoss(nn.Module):
    """:func:`fastequi.functional.gram_loss`.

    Args:
        across_images: whether patches of all images are compared.
        clamp: which negative similarities become 0: "none", "both" or "teacher".
        reduction: "mean", "sum" or "none".
        eps: the least length that a row is divided by.
    """

    def __init__(
        self,
        across_images: bool = False,
        clamp: str = "none",
        reduction: str = "mean",
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.eps = check_gram_options(across_images, clamp, reduction, eps)
        self.across_images, self.clamp, self.reduction = across_images, clamp, reduction

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features of a student [B, N, C] and its teacher [B, N, E], which gets no gradient."""
        return gram_loss(
            student,
            teacher,
            across_images=self.across_images,
            clamp=self.clamp,
            reduction=self.reduction,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"across_images={self.across_images}, clamp={self.clamp!r}, "
            f"reduction={self.reduction!r}"
        )
