"""What TIR is added to: a self-supervised method of its own, which gives z_equi beside its loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from fastequi.data.views.batch import Batch
from fastequi.models.vit import VisionTransformer


class BaseOutput(NamedTuple):
    """One step of a base.

    Attributes:
        parts: "loss", and whatever else it wants logged.
        z_equi: [2B, L, d_equi] patch tokens of v1, then of v2, zero where they were masked; None
            if the base has no such channels.
    """

    parts: dict[str, Tensor]
    z_equi: Tensor | None


class Base(nn.Module):
    """Owns the encoder, or the student's and the teacher's, the heads and the loss."""

    @property
    def backbone(self) -> VisionTransformer:
        """The encoder that learns."""
        raise NotImplementedError

    @property
    def find_unused_parameters(self) -> bool:
        """See `Method`."""
        return False

    @property
    def encoder(self) -> VisionTransformer:
        """The one whose features are used: the teacher's, if there is one."""
        raise NotImplementedError

    def forward(self, v1: Tensor, v2: Tensor, batch: Batch) -> BaseOutput:
        """Both views [B, 3, H, W], normalised; local crops and masks are the batch's."""
        raise NotImplementedError

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Token features [B, L, ·] of normalised images: "patch", "z_inv", "z_equi", "cls"."""
        raise NotImplementedError

    def equivariant(self, images: Tensor) -> Tensor:
        """z_equi [B, L, d_equi] as the decoders are trained to read them."""
        raise NotImplementedError

    def before_step(self, progress: float) -> None:
        """Schedules; see `Method`."""

    def after_step(self, progress: float, taken: Tensor | None = None) -> None:
        """Averages; see `Method`."""
