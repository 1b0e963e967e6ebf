"""SimCLR's cross-entropy over all pairs of a batch, whose similarities are not stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from fastequi.functional import checks, distributed
from fastequi.kernels.autograd import refuse
from fastequi.kernels.backend import transformed
from fastequi.kernels.nt_xent import (
    EXACT,
    nt_xent_grad,
    nt_xent_logits,
    nt_xent_loss_ref,
    unit_rows,
)


def nt_xent_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float = 0.1,
    group: ProcessGroup | None = None,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """Cross-entropy of finding an image's other view among all views of all images by cosine.

    Equals `F.cross_entropy(z @ z.T / temperature with -inf on its diagonal, other view)` for
    z = F.normalize(cat[z1, z2]), whose [2N, 2N] similarities are not stored.

    Args:
        z1, z2: [N, D] embeddings of two views, N >= 1, normalised here; floating.
        temperature: .1 to .5 in the paper.
        group: the processes whose images are each other's negatives; None: this one alone. The
            value is that of the whole batch on each of them, gradients as
            `fastequi.functional.distributed` says.
        sizes: N of every process, where known; finding them out stalls a GPU.

    Returns:
        A float32 scalar (float64 for float64 embeddings).

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    for name, z in (("z1", z1), ("z2", z2)):
        checks.check_floating(name, z)
    if z1.ndim != 2 or z1.shape != z2.shape or len(z1) < 1:
        shapes = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise ValueError(f"z1, z2: expected two [N, D] of one shape with N >= 1, got {shapes}")
    checks.same_device(z1, z2=z2)
    if not temperature > 0:
        raise ValueError(f"temperature: expected > 0, got {temperature}")
    if transformed() and (group is None or group.size() == 1):
        return nt_xent_loss_ref(z1, z2, temperature)
    with torch.autocast(z1.device.type, enabled=False):
        unit = unit_rows(z1, z2)
        if group is not None and group.size() > 1 and sizes is None:
            sizes = distributed.sizes_of(z1, group)
        return _NTXent.apply(unit, z1.dtype, temperature, group, sizes)


class _NTXent(torch.autograd.Function):
    """Of the unit rows of this process, both views of an image N rows apart."""

    @staticmethod
    def forward(
        ctx: Any,
        unit: Tensor,
        dtype: torch.dtype,
        temp: float,
        group: ProcessGroup | None,
        sizes: Sequence[int] | None,
    ) -> Tensor:
        z = unit.to(dtype)
        n, first, total = len(z) // 2, 0, len(z) // 2
        every, processes = z, 1
        if group is not None and sizes is not None and group.size() > 1:
            first, total, processes = sum(sizes[: group.rank()]), sum(sizes), group.size()
            every = torch.cat([distributed.gather(part, group, sizes) for part in z.chunk(2)])
        local = torch.arange(first, first + n, device=z.device)
        ids = torch.cat([local, local + total])
        positives = torch.cat([local + total, local])
        both = torch.stack(nt_xent_logits(z, every, ids, positives, temp), 1)
        if processes > 1:
            both = torch.cat([distributed.gather(part, group, sizes) for part in both.chunk(2)])
        negative, positive = both.unbind(1)
        # of every row: its loss, its log-sum-exp, what its negatives weigh
        each = F.softplus(negative - positive, threshold=EXACT)
        lse, weight = positive + each, torch.sigmoid(negative - positive)
        loss = each.sum() / (2 * total)
        if ctx.needs_input_grad[0]:
            pull = weight[ids] + weight[positives]
            grad = nt_xent_grad(z, every, ids, positives, lse[ids], lse, pull, temp)
            ctx.save_for_backward(loss, grad * (processes / (2 * total)))
        return loss

    @staticmethod
    def backward(ctx: Any, g_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        loss, grad = ctx.saved_tensors
        found = grad * g_loss
        if torch.is_grad_enabled():  # create_graph=True
            found = found + refuse("nt_xent_loss", loss)
        return found, None, None, None, None
