"""The path loss in PyTorch without autograd: what runs where no kernel can.

No target, prediction or grid of the whole batch is made: a few images and steps at a time, the
gradient in the same pass. The definition is `warp_recon_loss_ref`; this is its cheaper twin.
"""

import itertools

import torch
from torch import Tensor

from fastequi.kernels.constants import constants
from fastequi.kernels.pixel_loss import error_, patchify, unpatchify
from fastequi.kernels.sampling import (
    LAST_INSIDE,
    PADDING_MODES,
    base_grid,
    bounded,
    color_ref,
    to_float,
)
from fastequi.kernels.target import Sums, Target
from fastequi.kernels.warp_adjoint import color_adjoint

_CHUNK = 1 << 18  # target values per chunk: 1 MB of float32


def warp_recon_eager(
    pred: Tensor,
    image: Tensor,
    theta: Tensor,
    color: Tensor | None,
    target: Target,
    weight: float,
    sums: Sums,
) -> None:
    """The CPU path: a few targets at a time, gradients by hand, no autograd graph."""
    (total, counted, grad, dtheta), size, patch_size = sums, target.size, target.patch_size
    mean, std, padding_mode, align_corners = (
        target.mean,
        target.std,
        target.padding_mode,
        target.align_corners,
    )
    compute = total.dtype
    steps = theta.shape[1]
    values, threads = max(pred[0, 0].numel(), 1), torch.get_num_threads()
    chunk = _CHUNK if pred.numel() > 2 * _CHUNK else pred.numel()
    images = max(chunk // (values * steps), min(threads, len(pred)))
    few = max(chunk // (values * images), -(-threads // images))  # steps at a time
    base = base_grid(size, align_corners, total)
    for first, k in itertools.product(range(0, len(pred), images), range(0, steps, few)):
        part = slice(first, first + images), slice(k, k + few)
        source, matrix = to_float(image[part[0]], compute), bounded(theta[part].to(compute))
        points = matrix @ base  # [b, k, 2, H·W] normalised sample points of this chunk
        grid = points.transpose(2, 3).unflatten(2, size)
        sampled = _grid_sample(source, grid, padding_mode, align_corners)
        mixing = None if color is None else color[part]
        wanted = sampled if mixing is None else color_ref(sampled, mixing, None, None)
        if mean is not None and std is not None:
            for values_of, change in ((mean, wanted.sub_), (std, wanted.div_)):
                change(constants(tuple(values_of), wanted.device, compute)[:, None, None])
        wanted = patchify(wanted, patch_size) if patch_size else wanted
        difference = torch.sub(pred[part], wanted, out=wanted)
        if counted.numel():
            keep = ~(points.abs() > LAST_INSIDE).any(2).unflatten(2, size)[:, :, None]
            counted[part] = keep.sum((2, 3, 4)).to(compute) * source.shape[1]
            left_out = ~keep.expand(-1, -1, source.shape[1], -1, -1)
            difference.masked_fill_(patchify(left_out, patch_size) if patch_size else left_out, 0.0)
        slope = grad[part] if grad.numel() else None
        if slope is None and dtheta.numel():
            slope = torch.empty_like(difference)
        total[part] = error_(difference, target.loss, slope, weight) * weight
        if dtheta.numel():
            assert slope is not None
            by_target = -unpatchify(slope.to(compute), size, patch_size)
            by_sample = color_adjoint(by_target, mixing, std)
            by_grid = _grid_backward(by_sample, source, grid, padding_mode, align_corners)
            by_points = by_grid.flatten(2, 3).transpose(2, 3)
            dtheta[part] = by_points @ base.T
    finite = theta.isfinite().all(-1).all(-1)
    if not finite.all():  # grid_sample gives some pixel there under border and reflection
        total[~finite] = torch.nan
        if grad.numel():
            grad[~finite] = torch.nan
        if dtheta.numel():
            dtheta[~finite] = torch.nan


def _grid_sample(image: Tensor, grid: Tensor, padding_mode: str, align: bool) -> Tensor:
    """[b, k, C, H, W] samples of [b, C, Hs, Ws] at [b, k, H, W, 2]."""
    batch, places = _batched(image, grid)
    out = torch.ops.aten.grid_sampler_2d(batch, places, 0, PADDING_MODES.index(padding_mode), align)
    if len(batch) == len(image):
        return out.unflatten(2, grid.shape[1:3]).transpose(1, 2)
    return out.unflatten(0, grid.shape[:2])


def _grid_backward(
    by_sample: Tensor, image: Tensor, grid: Tensor, padding_mode: str, align: bool
) -> Tensor:
    """Gradient by the grid, [b, k, H, W, 2]."""
    batch, places = _batched(image, grid)
    stacked = len(batch) == len(image)
    by_out = by_sample.transpose(1, 2).flatten(2, 3) if stacked else by_sample.flatten(0, 1)
    _, by_grid = torch.ops.aten.grid_sampler_2d_backward(
        by_out.contiguous(),
        batch,
        places,
        0,
        PADDING_MODES.index(padding_mode),
        align,
        [False, True],
    )
    return by_grid.view(grid.shape)


def _batched(image: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Steps stacked along the height, so that images are not repeated; but grid_sample's threads
    share a batch, so where there are fewer images than threads the steps are images too."""
    if len(image) >= torch.get_num_threads() or grid.shape[1] == 1:
        return image, grid.flatten(1, 2)
    return image[:, None].expand(-1, grid.shape[1], -1, -1, -1).flatten(0, 1), grid.flatten(0, 1)
