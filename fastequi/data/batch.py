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


@dataclass(frozen=True)
class Views:
    """The geometry and the units of a batch's images.

    Attributes:
        image_size: side of a view in pixels.
        source_size: side of u in pixels, the view plus its margin.
        mean, std: of the normalisation, in 0..1.
        padding_mode: how u continues beyond its edge: "zeros", "border" or "reflection".
    """

    image_size: int
    source_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding_mode: str = "zeros"

    @property
    def zoom(self) -> float:
        """Size of a view over that of u: how far into u a view reaches."""
        return self.image_size / self.source_size
