"""Rotary positions of patches along both axes, as in DINOv3 (Siméoni et al., arXiv 2508.10104).

A head's D channels are D/2 pairs (i, i + D/2); those of the first half of pairs turn with the row,
of the second with the column:

    q'_i       = q_i cos a_i - q_{i+D/2} sin a_i
    q'_{i+D/2} = q_{i+D/2} cos a_i + q_i sin a_i
    a = 2π [y, x] / theta^(4j/D),  j = 0 .. D/4 - 1,

y and x being the patch's centre in the image, each from -1 to 1 whatever the size. So q·k depends
on positions by their difference alone (Su et al., arXiv 2104.09864), and any image size works.
There are no weights; periods are float32, as in timm and transformers, while the authors' weights
have them rounded to bfloat16.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastequi.functional import arguments
from fastequi.models.positions import Grid


class Rotation(NamedTuple):
    """Cosines and sines [N, D/2] of the angles of an image's tokens; 1 and 0 for those that stay.

    In float32 or wider.
    """

    cos: Tensor
    sin: Tensor


class AxialRope(nn.Module):
    """The rotation of the tokens of a grid.

    In training mode the box of coordinates is changed at random, by one draw from torch's generator
    for each call: shifted along each axis by U(-shift, shift), then stretched along each axis by
    exp U(-ln jitter, ln jitter), then as a whole by exp U(-ln rescale, ln rescale). DINOv3 rescales
    by 2 and does not shift or jitter. (Its code draws anew for each block; transformers', as here,
    once for all blocks.)

    Args:
        head_dim: D, a multiple of 4.
        theta: > 0; periods grow from 1 towards it, in coordinates, of which an image's side has 2.
        rescale, jitter: largest factors, at least 1; 1: none.
        shift: largest shift, in half images; 0: none.

    Raises:
        TypeError, ValueError: names the argument, as of :class:`VisionTransformer`.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float = 100.0,
        rescale: float = 1.0,
        jitter: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(
                f"num_heads: expected heads of a multiple of 4 channels for rotary positions, got "
                f"{head_dim} channels"
            )
        self.head_dim = head_dim
        self.theta = arguments.number("rope_theta", theta, above=0)
        self.rescale = arguments.number("rope_rescale", rescale, least=1)
        self.jitter = arguments.number("rope_jitter", jitter, least=1)
        self.shift = arguments.number("rope_shift", shift, least=0)

    def forward(self, grid: Grid, num_prefix: int, like: Tensor) -> Rotation:
        """The rotation of `num_prefix` tokens, which stay, and a grid's, row by row.

        Args:
            like: of the device, and of the type if that is wider than float32.
        """
        device, dtype = like.device, torch.promote_types(like.dtype, torch.float32)
        axes = [(torch.arange(n, device=device, dtype=dtype) + 0.5) / n * 2 - 1 for n in grid]
        if self.training:
            axes = self._augmented(axes)
        quarter = self.head_dim // 4
        exponents = torch.arange(quarter, device=device, dtype=dtype) / quarter
        rates = 2 * math.pi * self.theta**-exponents
        y, x = (axis[:, None] * rates for axis in axes)
        angles = [y[:, None].expand(-1, grid[1], -1), x[None].expand(grid[0], -1, -1)]
        both = torch.cat(angles, -1).flatten(0, 1)
        both = torch.cat([both.new_zeros(num_prefix, 2 * quarter), both])
        return Rotation(both.cos(), both.sin())

    def _augmented(self, axes: list[Tensor]) -> list[Tensor]:
        """Coordinates along both axes in a box that is drawn."""

        def drawn(number: int, bound: float) -> Tensor:
            return axes[0].new_empty(number).uniform_(-bound, bound)

        if self.shift > 0:
            axes = [x + by for x, by in zip(axes, drawn(2, self.shift), strict=True)]
        if self.jitter > 1:
            factors = drawn(2, math.log(self.jitter)).exp()
            axes = [x * by for x, by in zip(axes, factors, strict=True)]
        if self.rescale > 1:
            factor = drawn(1, math.log(self.rescale)).exp()
            axes = [x * factor for x in axes]
        return axes


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys [B, N, ..., D] turned by their tokens' angles; computed in float32, cast."""
    ones = (1,) * (x.ndim - 3)
    cos, sin = (table.unflatten(0, (-1, *ones)) for table in rotation)
    first, second = x.chunk(2, -1)
    parts = first * cos - second * sin, second * cos + first * sin
    return torch.cat([part.to(x.dtype) for part in parts], -1)
