"""What the data side hands to a method: two views of B images and the path between them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One step's images, on the training device.

    Attributes:
        v1: [B, 3, H, W] first view A1(I), normalised, float32 or bfloat16.
        u: [B, 3, Hs, Ws] second view A2(I) before the path transformation, uint8 0..255,
            channels-last in memory. It may show a margin around the view (Hs >= H), so that a
            rotated view has no empty corners.
        path: [B, P] parameters of g_θ in their units (`fastequi.paths`), float32.
        sample_ids: [B] int64 on the CPU, the address of every random draw of the sample.
        epoch: of all samples in the batch.
    """

    v1: Tensor
    u: Tensor
    path: Tensor
    sample_ids: Tensor
    epoch: int

    def __len__(self) -> int:
        return len(self.u)
