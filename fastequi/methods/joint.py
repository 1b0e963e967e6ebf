"""Joint-embedding bases: one encoder for both views, and a criterion on their z_inv tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastequi.data.views.batch import Batch
from fastequi.methods.base import Base, BaseOutput
from fastequi.models.encoder import TokenEncoder, Tokens
from fastequi.models.heads import EquiHead, SplitHead
from fastequi.models.vit import VisionTransformer


class JointEmbedding(Base):
    """VICReg and SimCLR.

    Args:
        encoder: a ViT, or any other without `equi_head`.
        head: token head whose channels are split into z_inv and z_equi.
        equi_head: gives z_equi from tokens of an earlier block instead; `head` then has none.
        criterion: called with the z_inv tokens [B, L, d_inv] of both views; returns a dict with
            "loss" and other scalars to log.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        head: SplitHead,
        criterion: nn.Module,
        equi_head: EquiHead | None = None,
    ) -> None:
        super().__init__()
        if equi_head is not None and not isinstance(encoder, VisionTransformer):
            raise ValueError(f"encoder: expected a ViT beside equi_head, got {type(encoder)}")
        self._encoder, self.head, self.criterion = encoder, head, criterion
        self.equi_head = equi_head

    @property
    def backbone(self) -> TokenEncoder:
        return self._encoder

    @property
    def encoder(self) -> TokenEncoder:
        return self._encoder

    def forward(self, v1: Tensor, v2: Tensor, batch: Batch) -> BaseOutput:
        tokens, z_inv, z_equi = self.split(torch.cat([v1, v2]))
        return BaseOutput(self.criterion(*z_inv.chunk(2)), tokens.patch, z_equi)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        tokens, z_inv, z_equi = self.split(images)
        out = {"patch": tokens.patch, "z_inv": z_inv, "z_equi": z_equi}
        return out if tokens.cls is None else {**out, "cls": tokens.cls}

    def equivariant(self, images: Tensor) -> Tensor:
        return self.split(images)[2]

    def split(self, images: Tensor) -> tuple[Tokens, Tensor, Tensor]:
        """(the encoder's tokens, z_inv, z_equi of the patch tokens) of images [B, C, H, W]."""
        encoder, early = self.backbone, self.equi_head
        if early is None:
            tokens = encoder.forward_features(images)
            z_inv, z_equi = self.head(tokens.patch)
            return tokens, z_inv, z_equi
        assert isinstance(encoder, VisionTransformer)
        (last,), (middle,) = encoder.encode_both([encoder.embed(images)], early.block)
        tokens = encoder.split(last)
        return tokens, self.head(tokens.patch)[0], early(encoder.split(middle).patch)
