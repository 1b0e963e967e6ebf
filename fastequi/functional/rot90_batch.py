"""RotNet's network batch from uint8 or uint16 images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastequi.functional import checks
from fastequi.kernels import rot90_batch as _rot90
from fastequi.kernels.prepared import Calls

_CALLS = Calls()


def rot90_batch(
    images: Tensor,
    *,
    turns: Tensor | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Every image turned by 0, 90, 180 and 270 degrees, scaled to 0..1, normalised and cast.

    RotNet's network batch (Gidaris et al., ICLR 2018): image 0 in its four turns, then image 1.
    Turns are counter-clockwise and exact: `np.rot90(image, k)`.

    Args:
        images: [B, C, N, N] uint8 or uint16, any strides; square, since all turns share one batch.
        turns: [B] integers, taken modulo 4: then one turn per image instead of all four.
        mean, std: C floats each (or one for all) of values in 0..1: the result is (x - mean) / std.
            Or neither.
        dtype: of the result: float32, bfloat16, float16 or float64.
        memory_format: of the result: contiguous or channels-last.

    Returns:
        [4B, C, N, N], or [B, C, N, N] with `turns`. No gradient: integers have none.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    key, again = _CALLS.find((images, turns), (mean, std, dtype, memory_format))
    if again is not None:
        return again(images, turns)
    checks.check_dense("images", images)
    if images.dtype not in (torch.uint8, torch.uint16):
        raise TypeError(f"images: expected uint8 or uint16, got {images.dtype}")
    if images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise ValueError(f"images: expected square [B, C, N, N], got {tuple(images.shape)}")
    if dtype not in checks.FLOATS:
        raise TypeError(f"dtype: expected float32, bfloat16, float16 or float64, got {dtype!r}")
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(
            f"memory_format: expected contiguous_format or channels_last, got {memory_format}"
        )
    mean, std = checks.normalisation(images.shape[1], mean, std)
    if turns is not None:
        checks.check_integers("turns", turns)
        if turns.shape != images.shape[:1]:
            raise ValueError(
                f"turns: expected {len(images)} integers 0..3 as images has rows, "
                f"got shape {tuple(turns.shape)}"
            )
        checks.same_device(images=images, turns=turns)
        turns = (turns % 4).int().contiguous()
    last = memory_format == torch.channels_last
    if key is not None and turns is None:
        run = _rot90.prepared(images, mean, std, dtype, last)
        if run is not None:
            return _CALLS.keep(key, lambda images, turns: run(images))(images, None)
    return _rot90.rot90_batch(images.resolve_neg(), turns, mean, std, dtype, last)
