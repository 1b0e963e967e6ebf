"""The base that TIR is added to: a self-supervised method that also returns z_equi."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from fastequi.data.views.batch import Batch
from fastequi.models.encoder import TokenEncoder


class BaseOutput(NamedTuple):
    """One step of a base.

    Attributes:
        parts: "loss", and other scalars to log.
        patch: [2B, L, D] the learning encoder's tokens of v1, then of v2.
        z_equi: [2B, L, d_equi] of the same patches, zero where masked; None if the base has no
            equivariant channels.
    """

    parts: dict[str, Tensor]
    patch: Tensor
    z_equi: Tensor | None


class Base(nn.Module):
    """Owns the encoder (or a student's and a teacher's), the heads and the loss."""

    @property
    def backbone(self) -> TokenEncoder:
        """The encoder that is trained."""
        raise NotImplementedError

    @property
    def find_unused_parameters(self) -> bool:
        """See `Method`."""
        return False

    @property
    def encoder(self) -> TokenEncoder:
        """The encoder whose features are used: the teacher's, if there is one."""
        raise NotImplementedError

    def forward(self, v1: Tensor, v2: Tensor, batch: Batch) -> BaseOutput:
        """Takes both views [B, C, H, W], normalised; local crops and masks come from the batch."""
        raise NotImplementedError

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Token features [B, L, ·] of normalised images: "patch", "z_inv", "z_equi", "cls"."""
        raise NotImplementedError

    def equivariant(self, images: Tensor) -> Tensor:
        """z_equi [B, L, d_equi] of normalised images, as the decoders see them in training."""
        raise NotImplementedError

    def before_step(self, progress: float) -> None:
        """Schedules; see `Method`."""

    def after_step(self, progress: float, taken: Tensor | None = None) -> None:
        """EMA updates; see `Method`."""
