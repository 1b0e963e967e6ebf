"""Warping, its adjoint and the path loss in C: warp.c, warp_adjoint.c and warp_recon.c through
ctypes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native
from fastequi.kernels.sampling import PADDING_MODES
from fastequi.kernels.target import Sums, Target

LOSSES = {"mse": 0, "l1": 1, "smooth_l1": 2}


class ImageStruct(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("stride", c_int64 * 4),
        *((name, c_int32) for name in ("dtype", "channels", "height", "width")),
    )


class GridStruct(Structure):
    _fields_ = (
        ("theta", c_void_p),
        *((name, c_void_p) for name in ("color", "gain", "bias")),
        *((name, c_int32) for name in ("batch", "steps", "height", "width", "padding", "align")),
    )


class WarpStruct(Structure):
    _fields_ = (
        ("image", ImageStruct),
        ("grid", GridStruct),
        ("out", c_void_p),
        *((name, c_int32) for name in ("dtype", "stream", "threads")),
    )


class WarpAdjointStruct(Structure):
    _fields_ = (
        ("image", ImageStruct),
        ("grid", GridStruct),
        ("slope", c_void_p),
        *((name, c_int32) for name in ("dtype", "threads")),
    )


class WarpReconStruct(Structure):
    _fields_ = (
        ("image", ImageStruct),
        ("grid", GridStruct),
        *((name, c_void_p) for name in ("pred", "grad", "total", "count", "dtheta")),
        ("pred_stride", c_int64 * 5),
        ("grad_bytes", c_int64),
        ("weight", c_float),
        *((name, c_int32) for name in ("dtype", "loss", "patch", "planar")),
        *((name, c_int32) for name in ("stream", "whole", "threads")),
    )


_FLOATS = (torch.float32, torch.bfloat16)
IMAGES = {**native.DTYPES, torch.uint16: 3, torch.float16: 4}
CHANNELS = 4096  # at most
_SIDE_BY_SIDE = 1024  # at most, where the channels of a prediction's pixel are
TAKES = (
    f"predictions in float32 or bfloat16, of 1 to {CHANNELS} channels ({_SIDE_BY_SIDE} side by "
    "side), rows without gaps"
)
MAKES = f"results in uint8, float16, float32 or bfloat16, of 1 to {CHANNELS} channels"


NEGATIVE = "a negative view (resolve_neg())"


def said(image: Tensor) -> str:
    """What there is to say of an image that C does not take."""
    negative = f", {NEGATIVE}" if image.is_neg() else ""
    channels = image.shape[1]
    return f"{channels} channel{'' if channels == 1 else 's'}{negative}"


def samples(image: Tensor) -> bool:
    """Whether the C sampler takes such an image: type, and a size whose coordinates are exact."""
    known = image.dtype in IMAGES and not image.is_neg()
    return known and 1 <= image.shape[1] <= CHANNELS and _exact(*image.shape[2:])


def _exact(height: int, width: int) -> bool:
    """Bounds of half a pixel want sides below 2^22 in float32, texel indices an area below 2^31."""
    return (height + 4) * (width + 4) < 2**31 and 0 < height < 2**22 and 0 < width < 2**22


def warp(out: Tensor, image: Tensor, theta: Tensor, color: Tensor | None, target: Target) -> None:
    """Fills `out` [B, K, C, H, W], dense, uint8, float32 or bfloat16."""
    theta, color = native.floats(theta), None if color is None else native.floats(color)
    native.call("warp", _warp_struct(out, image, theta, color, target))


def _warp_struct(
    out: Tensor, image: Tensor, theta: Tensor, color: Tensor | None, target: Target
) -> WarpStruct:
    op = WarpStruct(
        image_struct(image),
        _grid(theta, color, target),
        native.pointer(out),
        native.DTYPES[out.dtype],
        out.numel() * out.element_size() > native.STREAM_BYTES,
        native.threads(out.numel()),
    )
    return _normalising(op, image, target)


def prepared_warp(
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    dtype: torch.dtype,
    single: bool,
) -> Callable[..., Tensor]:
    """(image, theta, color) to the views, for tensors like these; theta and color are dense and
    float32. `single`: without the axis of steps."""
    shape = (*theta.shape[:2], image.shape[1], *target.size)
    out = image.new_empty(shape, dtype=dtype)
    op = _warp_struct(out, image, theta, color, target)
    run = native.Filled("warp", op, "image.data", "grid.theta", "grid.color", "out")
    shape = (shape[0], *shape[2:]) if single else shape

    def call(image: Tensor, theta: Tensor, color: Tensor | None) -> Tensor:
        out = torch.empty(shape, dtype=dtype, device="cpu")
        run(image, theta, color, out)
        return out

    return call


def adjoins(slope: Tensor, theta: Tensor, size: Sequence[int]) -> bool:
    """Whether the C adjoint takes such gradients of warped images, of images of that size."""
    return torch.float64 not in (slope.dtype, theta.dtype) and _exact(*size)


def warp_adjoint(
    slope: Tensor, theta: Tensor, color: Tensor | None, target: Target, size: Sequence[int]
) -> Tensor:
    """[B, C, Hs, Ws] float32 of slopes [B, K, C, H, W]."""
    theta, color = native.floats(theta), None if color is None else native.floats(color)
    slope = slope if slope.dtype in _FLOATS else slope.float()
    channels, dtype = slope.shape[2], slope.dtype
    return prepared_adjoint(theta, color, target, size, channels, dtype)(slope, theta, color)


def prepared_adjoint(
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    size: Sequence[int],
    channels: int,
    dtype: torch.dtype,
) -> Callable[..., Tensor]:
    """(slope, theta, color) to the gradient of images, for slopes of that type, of any strides, and
    matrices like these, dense and float32; all with or without the axis of steps."""
    shape = len(theta), channels, *size
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    grid = _grid(theta if theta.ndim == 4 else theta[:, None], color, target)
    values = grid.batch * grid.steps * channels * target.height * target.width
    op = WarpAdjointStruct(
        image_struct(out), grid, None, native.DTYPES[dtype], native.threads(values)
    )
    op = _normalising(op, out, target)
    run = native.Filled("warp_adjoint", op, "image.data", "grid.theta", "grid.color", "slope")

    def call(slope: Tensor, theta: Tensor, color: Tensor | None) -> Tensor:
        slope = slope.resolve_neg().contiguous()
        out = torch.empty(shape, dtype=torch.float32, device="cpu")
        run(out, theta, color, native.readable(slope))
        return out

    return call


def reads(pred: Tensor, patch_size: int) -> bool:
    """Whether the C loss takes such a prediction: its type, and rows without gaps."""
    known, rows = pred.dtype in _FLOATS and not pred.is_neg(), rows_of(pred, patch_size)
    channels = pred.shape[3] // patch_size**2 if patch_size else pred.shape[2]
    return known and rows is not None and (rows == "planar" or channels <= _SIDE_BY_SIDE)


def rows_of(pred: Tensor, patch_size: int) -> str | None:
    """How a row of the prediction lies in memory: "planar", "interleaved" or, with gaps, None."""
    if patch_size:
        return "interleaved" if pred.stride(-1) == 1 else None
    channels, width = pred.shape[2], pred.shape[4]
    by_channel, by_pixel = pred.stride(2), pred.stride(4)
    one = width == 1 and channels > _SIDE_BY_SIDE  # either is true of a column: what C takes
    if channels > 1 and by_channel == 1 and (by_pixel == channels or width == 1) and not one:
        return "interleaved"
    return "planar" if by_pixel == 1 or width == 1 else None


def warp_recon(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    weight: float,
    sums: Sums,
) -> None:
    """Fills what of the sums is not empty; the gradient as pred lies, `weight` times as large.

    The total is that of every image and step, or of all where it is a scalar; so is the count.
    """
    theta, color = native.floats(theta), None if color is None else native.floats(color)
    native.call("warp_recon", _recon_struct(pred, image, theta, color, target, weight, sums))


def _recon_struct(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    weight: float,
    sums: Sums,
) -> WarpReconStruct:
    inner = (pred.stride(2), 1, 1) if target.patch_size else pred.stride()[2:]
    total, count, grad, dtheta = sums
    grad_bytes = grad.numel() * grad.element_size()
    op = WarpReconStruct(
        image_struct(image),
        _grid(theta, color, target),
        *(native.pointer(t) if t.numel() else None for t in (pred, grad, total, count, dtheta)),
        (c_int64 * 5)(*pred.stride()[:2], *inner),
        grad_bytes,
        weight,
        native.DTYPES[pred.dtype],
        LOSSES[target.loss],
        target.patch_size,
        rows_of(pred, target.patch_size) == "planar",
        grad_bytes > native.STREAM_BYTES,
        total.ndim == 0,
        native.threads(pred.numel()),
    )
    return _normalising(op, image, target)


def prepared_warp_recon(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    weight: float,
    grad: bool,
) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """(pred, image, theta, color) to (the sum of all errors times `weight`, its gradient or None).

    For tensors like these; theta and color are dense and float32.
    """
    total = pred.new_empty((), dtype=torch.float32)
    none = total.new_empty(0)
    sums = Sums(total, none, torch.empty_like(pred) if grad else none, none)
    op = _recon_struct(pred, image, theta, color, target, weight, sums)
    pointers = "pred", "image.data", "grid.theta", "grid.color", "total", "grad"
    run = native.Filled("warp_recon", op, *pointers)

    def call(
        pred: Tensor, image: Tensor, theta: Tensor, color: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        total = torch.empty((), dtype=torch.float32, device="cpu")
        slope = torch.empty_like(pred) if grad else None
        run(pred, image, theta, color, total, slope)
        return total, slope

    return call


def image_struct(image: Tensor) -> ImageStruct:
    return ImageStruct(
        native.pointer(image),
        (c_int64 * 4)(*image.stride()),
        IMAGES[image.dtype],
        *image.shape[1:],
    )


def _normalising(op: native.Op, image: Tensor, target: Target) -> native.Op:
    gain, bias = gain_and_bias(target.mean, target.std, image.shape[1])
    return native.with_floats(op, {"grid.gain": gain, "grid.bias": bias})


def _grid(theta: Tensor, color: Tensor | None, target: Target) -> GridStruct:
    return GridStruct(
        native.pointer(theta),
        native.pointer(color),
        None,
        None,
        *theta.shape[:2],
        *target.size,
        PADDING_MODES.index(target.padding_mode),
        target.align_corners,
    )


def gain_and_bias(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int
) -> tuple[list[float], list[float]]:
    """Of each channel: (x - mean) / std = gain x + bias."""
    if mean is None or std is None:
        return [1.0] * channels, [0.0] * channels
    return [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)]
