"""Communication of losses over the whole batch of all processes; without a group there is none.

Every process computes the loss of the whole batch, of which it holds some rows, and gets gradients
for those. They come as many times too large as there are processes, since data-parallel training
takes the mean of the processes' gradients: after that mean they are those of one process with all
rows. This is so for any split of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from fastequi.kernels.sinkhorn import log_sum_exp

Group: TypeAlias = ProcessGroup | Literal["world"] | None


def world() -> ProcessGroup | None:
    """All processes, if there are several."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return dist.group.WORLD
    return None


def current(group: Group) -> ProcessGroup | None:
    """The group itself; for "world" all processes that there are now, if there are several."""
    return world() if isinstance(group, str) and group == "world" else group


def check_group(group: Group, sizes: Sequence[int] | None = None) -> None:
    """The arguments `group` and `sizes` of a loss over all processes."""
    group = current(group)
    if group is not None and not isinstance(group, ProcessGroup):
        got = repr(group) if isinstance(group, str) else type(group).__name__
        raise TypeError(f'group: expected a ProcessGroup, "world" or None, got {got}')
    count = 1 if group is None else group.size()
    if sizes is not None and len(sizes) != count:
        raise ValueError(f"sizes: expected {count}, one of each process of group, got {sizes}")


def all_gather_sizes(x: Tensor, group: ProcessGroup | None) -> list[int]:
    """Rows of x on every process of a group; with a host sync."""
    if group is None:
        return [len(x)]
    mine = torch.tensor([len(x)], device=x.device)
    sizes = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(sizes, mine, group=group)
    return [int(n) for n in torch.cat(sizes).tolist()]


def even_sizes(x: Tensor, group: Group) -> list[int] | None:
    """Rows of x on every process if all hold as many, as with the loader; no communication."""
    group = current(group)
    return None if group is None else [len(x)] * group.size()


def all_gather_rows(
    x: Tensor, group: ProcessGroup | None, sizes: Sequence[int] | None = None
) -> Tensor:
    """Rows of all processes, in the order of their ranks; differentiable, see the module.

    Args:
        x: [N, ...], N may differ between processes.
        group: None: x alone.
        sizes: rows of every process, where known; else they are gathered, with a host sync.
    """
    if group is None or group.size() == 1:
        return x
    return _Gather.apply(x, group, list(sizes) if sizes is not None else all_gather_sizes(x, group))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, sizes: list[int]) -> Tensor:
        ctx.first = sum(sizes[: group.rank()])
        ctx.rows, ctx.processes = len(x), group.size()
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=group)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        mine = grad[ctx.first : ctx.first + ctx.rows]
        return mine * ctx.processes, None, None


def all_reduce_logsumexp(x: Tensor, temp: float, group: ProcessGroup | None) -> Tensor:
    """temp log Σ_processes exp(x / temp), elementwise; no gradient."""
    if group is None or group.size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(group.size())]
    dist.all_gather(parts, x.contiguous(), group=group)
    return log_sum_exp(torch.stack(parts), 0, temp)


def all_reduce_mean(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Mean over the rows of all processes in float32, [N, ...] to [...]; no gradient."""
    total = torch.cat([x.detach().float().sum(0).flatten(), x.new_tensor([len(x)]).float()])
    if group is not None and group.size() > 1:
        dist.all_reduce(total, group=group)
    return (total[:-1] / total[-1].clamp(min=1)).view(x.shape[1:])
