"""BatchNorm over the rows of several processes.

torch.nn.SyncBatchNorm runs on GPUs only, and its forward syncs with the host. Here mean and
variance are two differentiable all-reduces, on any device. On GPUs it is used in the heads, which
have few rows; convolutional networks use torch's, which is fused.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm


def share_statistics(module: nn.Module, group: ProcessGroup) -> None:
    """Makes every BatchNorm of a module take its statistics over a group of processes.

    Parameters and state dicts do not change.
    """
    on_gpu = next(module.parameters()).is_cuda
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, _BatchNorm):
                continue
            if on_gpu and not isinstance(child, nn.BatchNorm1d):
                shared = nn.SyncBatchNorm.convert_sync_batchnorm(child, group)
            else:
                shared = SharedBatchNorm(child, group)
            setattr(parent, name, shared)


class SharedBatchNorm(nn.Module):
    """A BatchNorm's parameters and running statistics, with batch statistics over a group.

    Args:
        own: the BatchNorm that it replaces.
        group: its processes.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, own: _BatchNorm, group: ProcessGroup) -> None:
        super().__init__()
        if own.momentum is None or not own.affine or not own.track_running_stats:
            raise ValueError(f"own: expected momentum, weights and running statistics, got {own}")
        self.momentum, self.eps = own.momentum, own.eps
        self.group: ProcessGroup | None = group  # None after a run: this process's rows only
        self.weight, self.bias = own.weight, own.bias
        for name, buffer in own.named_buffers():
            self.register_buffer(name, buffer)
        self.train(own.training)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to the same; N may differ between processes."""
        mean, var = self.running_mean, self.running_var
        if not self.training:
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = wide.new_full((1,), wide.numel() // wide.shape[1])
        total = _Sum.apply(torch.cat([wide.sum(axes), count]), self.group)
        rows = total[-1].detach()
        batch_mean = total[:-1] / rows
        centred = wide - batch_mean.view(shape)
        batch_var = _Sum.apply(centred.square().sum(axes), self.group) / rows
        with torch.no_grad():
            mean.lerp_(batch_mean.to(mean.dtype), self.momentum)
            unbiased = batch_var * rows / (rows - 1).clamp(min=1)
            var.lerp_(unbiased.to(var.dtype), self.momentum)
            self.num_batches_tracked += 1
        out = centred * torch.rsqrt(batch_var + self.eps).view(shape)
        return (out * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}, momentum={self.momentum}"


class _Sum(torch.autograd.Function):
    """Sum over processes; its gradient is summed too, since every process's loss depends on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        out = x.clone()
        if group is not None:
            dist.all_reduce(out, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        if ctx.group is not None:
            dist.all_reduce(grad, group=ctx.group)
        return grad, None
