"""What the reconstruction losses share: the error of one value, the order of patch tokens, and how
images get a gradient."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels.autograd import refuse
from fastequi.kernels.backend import tl, triton

LOSSES = ("mse", "l1", "smooth_l1")


@triton.jit
def pixel_error(d, LOSS: tl.constexpr, weight):
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
def pixel_of(offs, W, GW, PATCH: tl.constexpr):
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
def pred_offsets(y, x, token, inner, stride_0, stride_1, stride_2, C, PATCH: tl.constexpr):
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


def unpatchify(tokens: Tensor, size: tuple[int, int], patch_size: int) -> Tensor:
    """[B, K, C, H, W], the inverse of :func:`patchify`; images pass."""
    if not patch_size:
        return tokens
    (height, width), p = size, patch_size
    lead, channels = tokens.shape[:2], tokens.shape[-1] // p**2
    grid = tokens.reshape(*lead, height // p, width // p, p, p, channels)  # h w p q C
    return grid.permute(0, 1, 6, 2, 4, 3, 5).reshape(*lead, channels, height, width)


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
    if dense and (not patch_size or pred.stride(-1) == 1):
        return pred
    return _like(pred, patch_size).copy_(pred)


def _like(pred: Tensor, patch_size: int) -> Tensor:
    """Unwritten, dense: the prediction's own order of axes where the kernels read that."""
    if patch_size and pred.stride(-1) != 1:
        return torch.empty_like(pred, memory_format=torch.contiguous_format)
    return torch.empty_like(pred)


def loss_outputs(
    pred: Tensor, steps: tuple[int, ...], patch_size: int, grad: bool
) -> tuple[Tensor, Tensor]:
    """(total of that shape, gradient in the layout that the kernels read or empty), unwritten."""
    dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
    total = pred.new_empty(steps, dtype=dtype)
    return total, _like(pred, patch_size) if grad else pred.new_empty(0)


def with_image_gradient(
    name: str, pred: Tensor, image: Tensor, adjoint: Callable[..., Tensor], *given: Tensor | None
) -> Tensor:
    """The prediction for a loss of pred - target(image) that has a gradient by it alone: what comes
    back to the prediction, in float32, goes to the image too.

    d loss / d target = -d loss / d pred, so that the image's gradient is `adjoint` of that.

    Args:
        name: of the loss, for the error of a second derivative.
        adjoint: of the map from the image to the target: called with a gradient in the prediction's
            layout and with what is `given`, which must not change until then.
    """
    # PyTorch's own without a look for torch.func's transforms, under which references run
    apply = super(torch.autograd.Function, _Followed).apply
    followed: Tensor = apply(name, pred.float(), image, adjoint, *given)
    return followed


class _Followed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        pred: Tensor,
        image: Tensor,
        adjoint: Callable[..., Tensor],
        *given: Any,
    ) -> Tensor:
        ctx.save_for_backward(*given)
        ctx.name, ctx.adjoint, ctx.dtype = name, adjoint, image.dtype
        return pred.view_as(pred)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        given = ctx.saved_tensors  # once: activation checkpointing gives them no second time
        by_image = None
        if ctx.needs_input_grad[2]:
            by_image = -ctx.adjoint(slope, *given).to(ctx.dtype)
            if torch.is_grad_enabled():  # create_graph=True
                by_image = by_image + refuse(ctx.name, slope).to(ctx.dtype)
        return None, slope, by_image, None, *[None] * len(given)
