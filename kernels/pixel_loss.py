"""What the reconstruction losses share: the error of one value, and the order of patch tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels.backend import tl, triton, use_triton

LOSSES = ("mse", "l1", "smooth_l1")
_RESCALE_PROGRAMS = 1024  # a few for each processor of the largest GPUs


@triton.jit
def _error(d, LOSS: tl.constexpr, weight):
    """Error of a difference d = pred - target, and `weight` times its derivative by d.

    smooth_l1 has beta 1.
    """
    if LOSS == "mse":
        value = d * d
        slope = d * (2.0 * weight)
    else:
        sign = tl.where(d > 0.0, weight, tl.where(d < 0.0, -weight, d * 0.0))
        if LOSS == "l1":
            value = tl.abs(d)
            slope = sign
        else:
            small = tl.abs(d) < 1.0
            value = tl.where(small, 0.5 * d * d, tl.abs(d) - 0.5)
            slope = tl.where(small, d * weight, sign)
    return value, slope


@triton.jit
def _pixel_of(offs, W, GW, PATCH: tl.constexpr):
    """Row and column of the offs-th pixel in the prediction's order, its token and place in it."""
    if PATCH > 0:
        token = offs // (PATCH * PATCH)
        inner = offs % (PATCH * PATCH)
        y = (token // GW) * PATCH + inner // PATCH
        x = (token % GW) * PATCH + inner % PATCH
    else:
        token = offs
        inner = offs
        y = offs // W
        x = offs % W
    return y, x, token, inner


@triton.jit
def _pred_offsets(y, x, token, inner, stride_0, stride_1, stride_2, C, PATCH: tl.constexpr):
    """Offset of a pixel's channel 0 in the prediction; image: strides of c, y, x; patch: of l."""
    if PATCH > 0:
        offset = token * stride_0 + inner * C
    else:
        offset = y * stride_1 + x * stride_2
    return offset


def error_ref(pred: Tensor, target: Tensor, loss: str) -> Tensor:
    """Elementwise error, the definition."""
    if loss == "mse":
        return F.mse_loss(pred, target, reduction="none")
    if loss == "l1":
        return F.l1_loss(pred, target, reduction="none")
    return F.smooth_l1_loss(pred, target, reduction="none")


def error_(d: Tensor, loss: str, out: Tensor | None, weight: float = 1.0) -> Tensor:
    """Sum of the error over all but the first two axes; `weight` times its derivative to `out`.

    d is used up: its memory holds the errors then.
    """
    if out is not None:
        slope = d if loss == "mse" else d.sign() if loss == "l1" else d.clamp(-1, 1)
        factor = 2 * weight if loss == "mse" else weight
        torch.mul(slope, factor, out=out) if out.dtype == d.dtype else out.copy_(slope * factor)
    axes = tuple(range(2, d.ndim))
    if loss == "mse":
        return d.square_().sum(axes)
    size = d.abs_()
    if loss == "l1":
        return size.sum(axes)
    return torch.where(size < 1, 0.5 * size * size, size - 0.5).sum(axes)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images [..., C, H, W] as patch tokens [..., L, p·p·C] in MAE's order: (h w) (p q c)."""
    x = images.unflatten(-1, (-1, patch_size)).unflatten(-3, (-1, patch_size))  # C h p w q
    x = x.movedim(-5, -1).transpose(-4, -3)  # h w p q C
    return x.flatten(-3).flatten(-3, -2)


def strides_of(pred: Tensor, patch_size: int) -> tuple[int, int, int]:
    """The kernels' three strides of a prediction within one (image, step)."""
    if patch_size:
        return pred.stride(2), 0, 0
    return pred.stride(2), pred.stride(3), pred.stride(4)


def kernel_layout(pred: Tensor, patch_size: int) -> Tensor:
    """The prediction as the kernels read it: dense, and with the patch axis innermost."""
    expected, dense = 1, True
    for stride, size in sorted(zip(pred.stride(), pred.shape, strict=True)):
        dense = dense and (size == 1 or stride == expected)
        expected *= size
    return pred if dense and (not patch_size or pred.stride(-1) == 1) else pred.contiguous()


def loss_outputs(pred: Tensor, steps: tuple[int, ...], grad: bool) -> tuple[Tensor, Tensor]:
    """(total of that shape, gradient in the prediction's layout or empty), unwritten."""
    dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
    return pred.new_empty(steps, dtype=dtype), torch.empty_like(pred) if grad else pred.new_empty(0)


@triton.jit
def _rescale_kernel(grad_ptr, factor_ptr, n, BLOCK: tl.constexpr):
    # grad *= factor, or nothing at all where factor is 1
    factor = tl.load(factor_ptr).to(tl.float32)
    if factor != 1.0:
        step = tl.num_programs(0).to(tl.int64) * BLOCK
        first = tl.program_id(0).to(tl.int64) * BLOCK
        for start in range(first, n, step):
            offs = start + tl.arange(0, BLOCK)
            grad = tl.load(grad_ptr + offs, mask=offs < n).to(tl.float32)
            tl.store(grad_ptr + offs, (grad * factor).to(grad_ptr.dtype.element_ty), mask=offs < n)


def scaled(ctx: Any, grad: Tensor, factor: Tensor) -> Tensor:
    """The gradient that the forward has written, times the incoming one, [] or [B, K].

    Usually that is one and there is no work: a CPU looks, a GPU asks a kernel of its own to look.
    What a kept graph will need again is left as it is, and so are an operator's outputs.
    """
    ours = getattr(ctx, "owned", False)
    ours = ours and not torch._C._autograd._get_current_graph_task_keep_graph()
    if ours and factor.device.type == "cpu" and (factor == 1).all():
        return grad
    if ours and factor.ndim == 0 and use_triton(grad) and grad.dtype != torch.float64:
        with torch.cuda.device_of(grad):
            _rescale_kernel[(_RESCALE_PROGRAMS,)](grad, factor, grad.numel(), BLOCK=1024)
        return grad
    factor = factor.view(*factor.shape, *[1] * (grad.ndim - factor.ndim))
    # without `out` a float32 factor would make a float32 product of it
    return torch.mul(grad, factor, out=grad if ours else torch.empty_like(grad))
