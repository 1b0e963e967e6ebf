"""A method's input: two views of B images and the path between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Masks:
    """The patches of v1 and v2 that are masked for the student.

    Attributes:
        mask: [2, B, L] bool.
        index: [M] int64, the masked ones' places in the flattened mask.
        weight: [M] float32, 1 / (masked patches of the same view · 2B): with it a sum over rows is
            the mean over a view's masked patches and then over views.
    """

    mask: Tensor
    index: Tensor
    weight: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Masks:
        """From [2, B, L]; on the CPU, as the number of masked patches is not known beforehand."""
        index = mask.flatten().nonzero()[:, 0]
        views = mask.shape[0] * mask.shape[1]
        each = mask.sum(-1, keepdim=True).clamp(min=1).expand_as(mask).flatten()
        return cls(mask, index, 1 / (each[index] * views).float())

    def to(self, move: Callable[[Tensor], Tensor]) -> Masks:
        return Masks(move(self.mask), move(self.index), move(self.weight))


@dataclass(frozen=True)
class Shared:
    """The overlap of P pairs of a view and another, global view of the same images.

    Attributes:
        own: [P, B, 4] boxes (x0, y0, x1, y1) within the view as it is, rotated; float32 pixels.
        other: [P, B, 4] the same regions within the global view.
        rotations: [P, B] int64, from the global view to the view: multiples of 90 degrees,
            counter-clockwise.
    """

    own: Tensor
    other: Tensor
    rotations: Tensor

    def to(self, move: Callable[[Tensor], Tensor]) -> Shared:
        return Shared(move(self.own), move(self.other), move(self.rotations))


@dataclass(frozen=True)
class Overlaps:
    """The overlaps of all views; the global ones are v1 and u.

    Attributes:
        rotations: [2 + V, B] int64, of v1, u and every local crop: multiples of 90 degrees,
            counter-clockwise.
        of_globals: of the pairs (v1, u) and (u, v1).
        of_local_crops: of every local crop with v1 and with u, 2V pairs; None without local crops.
    """

    rotations: Tensor
    of_globals: Shared
    of_local_crops: Shared | None

    def to(self, move: Callable[[Tensor], Tensor]) -> Overlaps:
        of_local_crops = None if self.of_local_crops is None else self.of_local_crops.to(move)
        return Overlaps(move(self.rotations), self.of_globals.to(move), of_local_crops)


@dataclass(frozen=True)
class Batch:
    """One step's images, on the training device.

    Attributes:
        v1: [B, 3, H, W] first view A1(I), normalised, float32 or bfloat16.
        u: [B, 3, Hs, Ws] second view A2(I) before the path transformation, uint8 0..255,
            channels-last in memory; `fastequi.methods.tir` warps it to v2. It may show a margin
            around the view (Hs >= H), so that a rotated view has no empty corners.
        path: [B, P] parameters of g_θ in their units (`fastequi.paths`), float32.
        sample_ids: [B] int64 on the CPU, the address of every random draw of the sample.
        epoch: of all samples in the batch.
        local_crops: [V, B, 3, h, h] normalised, if the run has any.
        masks: of both views, if the run has any.
        overlaps: of all views, if the run asks for rotations or overlap; v1, u and local crops
            are then rotated.
    """

    v1: Tensor
    u: Tensor
    path: Tensor
    sample_ids: Tensor
    epoch: int
    local_crops: Tensor | None = None
    masks: Masks | None = None
    overlaps: Overlaps | None = None

    def __len__(self) -> int:
        return len(self.u)


@dataclass(frozen=True)
class Views:
    """The geometry and the normalisation of a batch's images.

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
        """Side of a view over the side of u."""
        return self.image_size / self.source_size
