"""Gaussian blur and the loss against blurred images in C: blur.c through ctypes."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import Structure, c_float, c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from fastequi.kernels import native, native_warp
from fastequi.kernels.blur import radius
from fastequi.kernels.native_warp import (
    CHANNELS,
    IMAGES,
    LOSSES,
    ImageStruct,
    gain_and_bias,
    image_struct,
    rows_of,
)
from fastequi.kernels.sampling import unit
from fastequi.kernels.target import BlurTarget

_MOST = 256  # pixels that a blurred pixel may depend on at a side
_FLOATS = (torch.float32, torch.bfloat16)
TAKES = f"{native_warp.TAKES}, max_sigma up to {_MOST // 4}"
MAKES = (
    f"results in float16, float32 or bfloat16, of 1 to {CHANNELS} channels, max_sigma up to "
    f"{_MOST // 4}"
)


class BlurStruct(Structure):
    _fields_ = (
        ("image", ImageStruct),
        *((name, c_void_p) for name in ("sigma", "out", "pred", "grad", "total")),
        ("pred_stride", c_int64 * 5),
        ("grad_bytes", c_int64),
        *((name, c_void_p) for name in ("gain", "bias")),
        *((name, c_float) for name in ("weight", "most")),
        *((name, c_int32) for name in ("batch", "steps", "reach")),
        *((name, c_int32) for name in ("dtype", "loss", "patch", "planar", "stream", "threads")),
    )


def makes(image: Tensor, dtype: torch.dtype, max_sigma: float) -> bool:
    """Whether C blurs such an image into that type."""
    fits = (
        image.dtype in IMAGES
        and not image.is_neg()
        and 1 <= image.shape[1] <= CHANNELS
        and dtype in _FLOATS
    )
    return fits and radius(max_sigma) <= _MOST


def compares(pred: Tensor, image: Tensor, target: BlurTarget, compute: torch.dtype) -> bool:
    """Whether C takes such a prediction: its type, and rows without gaps."""
    fits = (
        makes(image, pred.dtype, target.max_sigma)
        and compute == torch.float32
        and not pred.is_neg()
    )
    return fits and rows_of(pred, target.patch_size) is not None


def blur(out: Tensor, image: Tensor, sigma: Tensor, target: BlurTarget) -> None:
    """Fills `out` [B, K, C, H, W], dense, float32 or bfloat16."""
    sigma = native.floats(sigma)
    native.call("blur", _struct(image, sigma, target, out=out))


def blur_recon(
    pred: Tensor,
    image: Tensor,
    sigma: Tensor,
    target: BlurTarget,
    weight: float,
    total: Tensor,
    grad: Tensor | None,
) -> None:
    """Fills total [B, K], `weight` times the sums of errors, and their gradient if there is one."""
    sigma = native.floats(sigma)
    op = _struct(image, sigma, target, pred=pred, weight=weight, total=total, grad=grad)
    native.call("blur", op)


def _struct(
    image: Tensor,
    sigma: Tensor,
    target: BlurTarget,
    *,
    out: Tensor | None = None,
    pred: Tensor | None = None,
    weight: float = 1.0,
    total: Tensor | None = None,
    grad: Tensor | None = None,
) -> BlurStruct:
    """Of images that are made, `out`, or of what a prediction is compared with."""
    patch, made = target.patch_size, out if pred is None else pred
    assert made is not None
    gain, bias = gain_and_bias(target.mean, target.std, image.shape[1])
    gain = [value * unit(image.dtype) for value in gain]
    inner = (made.stride(2), 1, 1) if patch else made.stride()[2:]
    grad_bytes = 0 if grad is None else grad.numel() * grad.element_size()
    written = grad_bytes if out is None else out.numel() * out.element_size()
    op = BlurStruct(
        image_struct(image),
        *(native.pointer(t) for t in (sigma, out, pred, grad, total)),
        (c_int64 * 5)(*made.stride()[:2], *inner),
        grad_bytes,
        None,
        None,
        weight,
        target.most,
        *sigma.shape,
        radius(target.max_sigma),
        native.DTYPES[made.dtype],
        LOSSES.get(target.loss, 0),
        patch,
        rows_of(made, patch) == "planar",
        written > native.STREAM_BYTES,
        native.threads(made.numel()),
    )
    return native.with_floats(op, {"gain": gain, "bias": bias})


def prepared_blur(
    image: Tensor, sigma: Tensor, target: BlurTarget, dtype: torch.dtype, single: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """(image, sigma) to the blurred images, for tensors like these; `single`: without the axis of
    steps."""
    shape = (*sigma.shape, *image.shape[1:])
    out = image.new_empty(shape, dtype=dtype)
    op = _struct(image, sigma, target, out=out)
    run = native.Filled("blur", op, "image.data", "sigma", "out")
    shape = (shape[0], *shape[2:]) if single else shape

    def call(image: Tensor, sigma: Tensor) -> Tensor:
        out = torch.empty(shape, dtype=dtype, device="cpu")
        run(image, sigma, out)
        return out

    return call


def prepared_loss(
    pred: Tensor, image: Tensor, sigma: Tensor, target: BlurTarget, weight: float, grad: bool
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """(pred, image, sigma) to (the sum of all errors times `weight`, its gradient or None), for
    tensors like these."""
    shape = sigma.shape
    total = pred.new_empty(shape, dtype=torch.float32)
    slopes = torch.empty_like(pred) if grad else None
    op = _struct(image, sigma, target, pred=pred, weight=weight, total=total, grad=slopes)
    run = native.Filled("blur", op, "pred", "image.data", "sigma", "total", "grad")

    def call(pred: Tensor, image: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor | None]:
        total = torch.empty(shape, dtype=torch.float32, device="cpu")
        slope = torch.empty_like(pred) if grad else None
        run(pred, image, sigma, total, slope)
        return total.sum(), slope

    return call
