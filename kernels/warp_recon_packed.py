"""Launches of the path loss over interleaved uint8 images: which tiles, constants and sums.

The kernel is `warp_recon_packed_kernel.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastequi.kernels.backend import triton
from fastequi.kernels.packed import capability, interleaved, registers
from fastequi.kernels.prepared import relaunched
from fastequi.kernels.target import Sums, Target
from fastequi.kernels.warp_recon_packed_kernel import warp_recon_packed_kernel

REGISTERS = 64  # of a thread, in half precision without colour
_PIXELS = 4096  # of one program, about


class Tiles(NamedTuple):
    """How a prediction is cut up: tiles of pixels, and whether values lie pixel by pixel."""

    width: int
    height: int
    interleaved: bool


def tiles_of(pred: Tensor, image: Tensor, target: Target) -> Tiles | None:
    """None where the general kernel has to run."""
    if not interleaved(image) or target.height * target.width * 3 >= 2**31:
        return None
    if pred.data_ptr() % 4:  # values are read a word at a time
        return None
    patch = target.patch_size
    if patch:
        tokens = target.width // patch
        side_by_side = tokens & -tokens  # the largest power of two that divides them
        if patch not in (4, 8, 16, 32):
            return None
        return Tiles(min(side_by_side, max(256 // patch**2, 1)) * patch, patch, True)
    by_pixel = (pred.stride(2), pred.stride(4)) == (1, 3)
    if target.width % 4 or not (by_pixel or pred.stride(4) == 1):
        return None
    return Tiles(32, 8, by_pixel)


class Plan(NamedTuple):
    """What a launch is made of beside its tensors.

    Attributes:
        programs: in the grid.
        partial: shape of the programs' sums; those of errors, then of values where some are left
            out.
        numbers: the kernel's arguments from its shapes on, in order.
        constants: its constants and compiler options.
    """

    programs: int
    partial: tuple[int, ...]
    numbers: tuple[float, ...]
    constants: dict[str, Any]


def plan_of(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    has_color: bool,
    target: Target,
    weight: float,
    tiles: Tiles,
    grad: bool,
    reduce: bool,
) -> Plan:
    """For tensors like these."""
    batch, steps = theta.shape[:2]
    tile_rows = triton.cdiv(target.height, tiles.height)
    rows = min(max(_PIXELS // (target.width * tiles.height), 1), tile_rows)
    parts = triton.cdiv(tile_rows, rows)
    patch = target.patch_size
    std = target.std or (1.0, 1.0, 1.0)
    exact = pred.dtype == torch.float32
    numbers = (
        steps,
        *target.size,
        *image.shape[2:],
        parts,
        rows,
        *pred.stride()[:2],
        *((0, 0, pred.stride(2)) if patch else (*pred.stride()[2:4], 0)),
        image.stride(0),
        image.stride(2),
        *theta.stride()[:2],
        *(target.mean or (0.0, 0.0, 0.0)),
        *(1 / value for value in std),
        weight,
    )
    constants = {
        "TEXEL": image.stride(3),
        "WHOLE_ROWS": image.stride(2) % 4 == 0,
        "EXACT": exact,
        "PATCH": patch,
        "TILE_W": tiles.width,
        "TILE_H": tiles.height,
        "INTERLEAVED": tiles.interleaved,
        "LOSS": target.loss,
        "PADDING": target.padding_mode,
        "ALIGN": target.align_corners,
        "HAS_COLOR": has_color,
        "MASK_OUTSIDE": target.mask_outside,
        "GRAD": grad,
        "REDUCE": reduce,
        "num_warps": max(tiles.width * tiles.height // 128, 1),
        "maxnreg": registers(capability(pred.device), exact, has_color, REGISTERS),
    }
    sums = 2 if target.mask_outside else 1
    return Plan(batch * steps * parts, (sums, batch, parts, steps), numbers, constants)


def warp_recon_packed(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    weight: float,
    sums: Sums,
    tiles: Tiles,
) -> None:
    """Fills total and counted, [B, K] or scalars, and the gradient by pred, if not empty."""
    reduce = sums.total.ndim == 0
    theta = theta if theta.stride()[2:] == (3, 1) else theta.contiguous()
    color = color if color is None else color.float().contiguous()
    grad = sums.grad if sums.grad.numel() else None
    given = pred, image, theta, color is not None, target, weight, tiles, grad is not None, reduce
    counted = sums.counted if target.mask_outside else None
    partial = launch(plan_of(*given), pred, image, theta, color, grad, sums.total, counted)
    if not reduce:
        torch.sum(partial[0], 1, out=sums.total)
        if target.mask_outside:
            torch.sum(partial[1], 1, out=sums.counted)


def launch(
    plan: Plan,
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    grad: Tensor | None,
    total: Tensor,
    counted: Tensor | None,
    run: Callable[..., None] | None = None,
) -> Tensor:
    """The programs' sums; total and counted are filled where the plan reduces them. `run`: of
    :func:`relaunched`."""
    partial = torch.empty(plan.partial, dtype=torch.float32, device=pred.device)
    run = run or relaunched(warp_recon_packed_kernel, (plan.programs,), plan.constants)
    with torch.cuda.device_of(pred):
        run(
            pred,
            image,
            theta,
            color,
            grad,
            partial[0],
            None if counted is None else partial[1],
            total,
            counted,
            _arrivals(pred.device) if plan.constants["REDUCE"] else None,
            *plan.numbers,
        )
    return partial


def prepared(plan: Plan) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """(pred, image, theta, color) to (the sum of all errors times the weight, its gradient or
    None), for tensors like those of the plan, which reduces; theta and color are dense, color
    float32."""
    run = relaunched(warp_recon_packed_kernel, (plan.programs,), plan.constants)

    def call(
        pred: Tensor, image: Tensor, theta: Tensor, color: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        total = torch.empty((), dtype=torch.float32, device=pred.device)
        slope = torch.empty_like(pred) if plan.constants["GRAD"] else None
        launch(plan, pred, image, theta, color, slope, total, None, run)
        return total, slope

    return call


_ARRIVALS: dict[tuple[torch.device, int], Tensor] = {}


def _arrivals(device: torch.device) -> Tensor:
    """A zero that a launch counts its programs with and leaves a zero.

    Launches on one stream follow each other and share it; a CUDA graph, which may be replayed on
    any stream, gets its own.
    """
    if device.type != "cuda":
        return torch.zeros(1, dtype=torch.int32)
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    key = device, torch.cuda.current_stream(device).cuda_stream
    if key not in _ARRIVALS:
        _ARRIVALS[key] = torch.zeros(1, dtype=torch.int32, device=device)
    return _ARRIVALS[key]
