"""What a loss compares with, and what images become, beside the tensors that have gradients.

A custom op's arguments must be flat: an op takes these one by one (`*target`) and, in its body,
puts them together again. Above and below they travel as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastequi.kernels.sampling import LARGEST


class Target(NamedTuple):
    """How targets are made of an image and compared.

    Attributes:
        height, width: of the targets in pixels.
        patch_size: of predictions in patch tokens; 0 for images.
        loss, mean, std, padding_mode, align_corners, mask_outside: as in
            `fastequi.functional.warp_recon_loss`.
    """

    height: int
    width: int
    patch_size: int = 0
    loss: str = "mse"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    padding_mode: str = "zeros"
    align_corners: bool = False
    mask_outside: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def eager(self) -> dict[str, Any]:
        """Where the samples lie, as keywords of the samplers in PyTorch."""
        return {"padding_mode": self.padding_mode, "align_corners": self.align_corners}


class BlurTarget(NamedTuple):
    """How blurred targets are made of an image and compared.

    Attributes:
        patch_size: of predictions in patch tokens; 0 for images.
        loss: as in `fastequi.functional.blur_recon_loss`, or "none": the images themselves.
        mean, std, max_sigma: as there.
    """

    patch_size: int = 0
    loss: str = "none"
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    max_sigma: float = 2.0

    @property
    def most(self) -> float:
        """The largest σ that is blurred: max_sigma, as half a type rounds it."""
        return self.max_sigma * (1 + 2**-8)


class DrawnViews(NamedTuple):
    """Views of photographs, before they are made.

    Attributes:
        photos: [H, W, C] uint8, uint16 or float32 each, pixels of a row side by side, all of one
            type on one device.
        photo: [V] int32, which one a view shows; on the CPU and dense, as are the others.
        window, color, sigma, solarize: [V, ...] float32, the last bool; the last three or None; as
            in `fastequi.functional.fused_views`.
        gain: [V, C, 3] float32, gain, offset and exponent of every channel, or None.
    """

    photos: Sequence[Tensor]
    photo: Tensor
    window: Tensor
    color: Tensor | None
    sigma: Tensor | None
    solarize: Tensor | None
    gain: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Of the photographs; the CPU where there are none."""
        return self.photos[0].device if self.photos else self.photo.device


class ViewTarget(NamedTuple):
    """What views of photographs become.

    Attributes:
        height, width: of a view in pixels.
        mean, std: of the normalisation, in 0..1.
        channels: the photographs' channels that are taken.
        ranges: (low, high) of each of those, which become 0 and 1; what lies outside is cut off
            before values are resampled. None for all that bytes hold, which stay 0 .. 255 until
            the end.
    """

    height: int
    width: int
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    channels: Sequence[int] = (0, 1, 2)
    ranges: Sequence[tuple[float, float]] | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def top(self) -> float:
        """What 1 is until the end."""
        return 255.0 if self.ranges is None else 1.0

    def rescaling(self, dtype: torch.dtype) -> tuple[bool, tuple[tuple[float, ...], ...]]:
        """How values of a type become 0 .. top.

        Returns:
            Whether they have to be cut off; and low, high, gain and offset of each channel. Values
            become gain x + offset; of those that are cut off x is what they are above low.
        """
        ranges = self.ranges or ((0.0, self.top),) * len(self.channels)
        most = LARGEST.get(dtype)
        cut = self.ranges is not None and (
            most is None or any(low > 0 or high < most for low, high in ranges)
        )
        each = ((low, high, self.top / (high - low)) for low, high in ranges)
        return cut, tuple(
            (low, high, gain, 0.0 if cut else -low * gain) for low, high, gain in each
        )


class DINOTarget(NamedTuple):
    """What the student's rows are compared with, beside the teacher's logits [Q, N].

    Attributes:
        pairs: [R, P] int32 rows of the teacher that each row of the student meets, -1 for none.
        weight: [R] float32 (float64 for float64 logits); rows of weight 0 are not read.
        row, column: [Q] and [N], or None, what makes exp((teacher - column - row) / teacher_temp) a
            distribution per row; without `row` it is found here, a softmax.
        student_temp, teacher_temp: temperatures.
    """

    pairs: Tensor
    weight: Tensor
    row: Tensor | None
    column: Tensor | None
    student_temp: float
    teacher_temp: float


class Sums(NamedTuple):
    """Outputs of a path loss, per image and step; empty where not needed.

    Attributes:
        total, counted: [B, K] of errors and of values.
        grad: d total/d pred, laid out as the prediction.
        dtheta: [B, K, 2, 3], d total/d θ.
    """

    total: Tensor
    counted: Tensor
    grad: Tensor
    dtheta: Tensor
