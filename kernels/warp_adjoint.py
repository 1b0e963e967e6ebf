"""The adjoint of `warp.py`: gradients of warped images become the gradient of their image.

Replaces the backward of::

    grid = F.affine_grid(theta, size, align_corners)
    x = F.grid_sample(image, grid, "bilinear", padding_mode, align_corners)
    out = (color[..., :C] @ x + color[..., C] - mean) / std

Each value goes, with the four weights of its sample, to the four pixels that were read. C on a CPU,
in a fixed order; PyTorch elsewhere, whose order on a GPU is not fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastequi.kernels import native, native_warp
from fastequi.kernels.autograd import batched, needs_operator
from fastequi.kernels.backend import use_native
from fastequi.kernels.constants import constants
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.sampling import PADDING_MODES, as_matrices, base_grid, bounded, is_gain, mix
from fastequi.kernels.target import Target


def warp_adjoint(
    slope: Tensor, theta: Tensor, color: Tensor | None, target: Target, size: Sequence[int]
) -> Tensor:
    """The gradient of Σ slope · warp(image) by the image, [B, C, Hs, Ws] float32 (float64).

    NaN where θ is not finite and the slope not 0.

    Args:
        slope: [B, K, C, H, W] floating.
        theta, color, target: as of :func:`fastequi.kernels.warp.warp`.
        size: (Hs, Ws) of the image.
    """
    color = as_matrices(color, slope.shape[2])
    fits = not needs_operator(slope, theta, color) and not batched(slope) and slope.numel()
    if fits and use_native(slope) and native_warp.adjoins(slope, theta, size):
        return native_warp.warp_adjoint(slope, theta, color, target, size)
    return warp_adjoint_ref(slope, theta, color, target, size)


@without_autocast
def warp_adjoint_ref(
    slope: Tensor, theta: Tensor, color: Tensor | None, target: Target, size: Sequence[int]
) -> Tensor:
    """:func:`warp_adjoint` in plain PyTorch: the backward of `F.grid_sample`."""
    compute = torch.float64 if torch.float64 in (slope.dtype, theta.dtype) else torch.float32
    slope, theta = slope.to(compute), theta.to(compute)
    batch, steps, channels = slope.shape[:3]
    if not slope.numel() or not all(size):
        return slope.sum() * 0 + slope.new_zeros((batch, channels, *size))
    by_sample = color_adjoint(slope, color, target.std)
    points = bounded(theta) @ base_grid(target.size, target.align_corners, theta)
    high = steps * target.height  # the steps of one image stacked along height
    grid = points.transpose(2, 3).reshape(batch, high, target.width, 2)
    by_image, _ = torch.ops.aten.grid_sampler_2d_backward(
        by_sample.transpose(1, 2).reshape(batch, channels, high, target.width),
        slope.new_zeros(()).expand(batch, channels, *size),
        grid, 0, PADDING_MODES.index(target.padding_mode), target.align_corners, [True, False],
    )  # fmt: skip
    poison = (theta * 0).sum((-1, -2))[:, :, None, None, None]  # NaN where θ is not finite
    poison = torch.where(slope == 0, 0.0, poison).sum((1, 2, 3, 4))
    return by_image + poison[:, None, None, None]


def color_adjoint(by_target: Tensor, color: Tensor | None, std: Sequence[float] | None) -> Tensor:
    """Gradients by samples [B, K, C, H, W], of those by what colour and normalisation make."""
    if std is not None:
        gains = constants(tuple(std), by_target.device, by_target.dtype)
        by_target = by_target / gains[:, None, None]
    if color is not None:
        color = color.to(by_target.dtype)
        if is_gain(color, by_target.shape[2]):
            return by_target * color[..., 0, None, None]
        by_target = mix(color[..., :-1].transpose(-1, -2), by_target)
    return by_target


class Way(NamedTuple):
    """How a warp runs and its gradient comes back.

    Attributes:
        warp: (image, theta, color, target, dtype) to the views, differentiable by the image.
        target, dtype: of the views.
        size: (Hs, Ws) of the image.
        single: views, θ and colours have no axis of steps.
        run, back: (image, theta, color) to the views, and (slope, theta, color) to
            :func:`warp_adjoint`, for tensors like these, or None.
    """

    warp: Callable[..., Tensor]
    target: Target
    dtype: torch.dtype
    size: Sequence[int]
    single: bool = False
    run: Callable[..., Tensor] | None = None
    back: Callable[..., Tensor] | None = None


def with_gradient(image: Tensor, theta: Tensor, color: Tensor | None, way: Way) -> Tensor:
    """Warped images that give their image a gradient, and so does that."""
    # PyTorch's own without a look for torch.func's transforms, under which the reference runs
    warped: Tensor = super(torch.autograd.Function, _Warp).apply(image, theta, color, way)
    return warped


class _Warp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, theta: Tensor, color: Tensor | None, way: Way) -> Tensor:
        ctx.save_for_backward(savable(theta), savable(color))
        ctx.way, ctx.dtype = way, image.dtype
        if way.run is not None:
            return way.run(image, theta, color)
        return way.warp(image, theta, color, way.target, way.dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Any, ...]:
        way, graph = ctx.way, torch.is_grad_enabled()  # create_graph=True
        theta, color = ctx.saved_tensors
        if way.back is not None and not graph and as_prepared(slope, theta, color):
            by_image = way.back(slope, theta, color)
        else:
            if way.single:
                slope, theta, color = with_steps(slope, theta, color)
            # a batch of gradients goes by PyTorch alone, which has the rules for it
            again = graph and not batched(slope)
            adjoint: Callable[..., Tensor] = _Adjoint.apply if again else _adjoint
            by_image = adjoint(slope, theta, color, way)
        return by_image.to(ctx.dtype), None, None, None


class _Adjoint(torch.autograd.Function):
    """:func:`warp_adjoint`, whose own gradient is a warp without what does not depend on images."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, theta: Tensor, color: Tensor | None, way: Way) -> Tensor:
        ctx.save_for_backward(theta, color)
        ctx.way, ctx.dtype = way, slope.dtype
        return _adjoint(slope, theta, color, way)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (theta, color), target = ctx.saved_tensors, ctx.way.target
        if color is not None:
            color = torch.cat([color[..., :-1], torch.zeros_like(color[..., -1:])], -1)
        if target.mean is not None:
            target = target._replace(mean=(0.0,) * len(target.mean))
        return ctx.way.warp(grad, theta, color, target, ctx.dtype), None, None, None


def _adjoint(slope: Tensor, theta: Tensor, color: Tensor | None, way: Way) -> Tensor:
    return warp_adjoint(slope, theta, color, way.target, way.size)


def savable(tensor: Tensor | None) -> Tensor | None:
    """What a backward can keep: of tensors made in inference mode, a copy."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def as_prepared(slope: Tensor, theta: Tensor, color: Tensor | None) -> bool:
    """Whether a prepared backward can read these; hooks on saved tensors may have changed those."""
    matrices = (theta,) if color is None else (theta, color)
    return all(map(native.plain, matrices)) and not needs_operator(slope) and not batched(slope)


def with_steps(
    slope: Tensor, theta: Tensor, color: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of what has no axis of steps."""
    color = color[:, None] if color is not None and color.ndim == 3 else color
    return slope[:, None], theta[:, None], color
