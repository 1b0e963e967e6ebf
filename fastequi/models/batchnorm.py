"""BatchNorm over the rows of several processes.

torch.nn.SyncBatchNorm runs on GPUs only, and its forward syncs with the host. Here mean and
variance are two differentiable all-reduces, on any device. On GPUs it is used in the heads, which
have few rows; convolutional networks use torch's, which is fused.

timm's BatchNormAct2d, a BatchNorm with an activation, is replaced with the activation. Other
subclasses of BatchNorm are refused: what else they compute is not known.
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

    Raises:
        ValueError: a BatchNorm of a kind that cannot be replaced; names it.
    """
    on_gpu = next(module.parameters()).is_cuda
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if not isinstance(child, _BatchNorm):
                continue
            if on_gpu and type(child) in _PLAIN and not isinstance(child, nn.BatchNorm1d):
                shared = nn.SyncBatchNorm.convert_sync_batchnorm(child, group)
            else:
                shared = SharedBatchNorm(child, group)
            setattr(parent, name, shared)


_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ACTIVATED = {"drop", "act"}  # modules of timm's BatchNormAct2d, applied one after the other


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
        inside = dict(own.named_children())
        if type(own) not in _PLAIN and inside.keys() != _ACTIVATED:
            raise ValueError(
                f"several processes: expected torch's BatchNorms, whose statistics they share, got "
                f"{type(own).__module__}.{type(own).__name__}"
            )
        self.drop = inside.get("drop", nn.Identity())
        self.act = inside.get("act", nn.Identity())
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
            out = F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
            return self.act(self.drop(out))
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
        out = (out * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)
        return self.act(self.drop(out))

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
