"""SimCLR's cross-entropy over all pairs of a batch, whose similarities are not stored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fastequi.functional import arguments, checks, distributed
from fastequi.functional.distributed import Group
from fastequi.kernels import nt_xent as _nt_xent
from fastequi.kernels.precision import widened
from fastequi.kernels.prepared import Calls

_LEAST = 1e-6  # of temperatures
_CALLS = Calls()


def nt_xent_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float = 0.1,
    group: Group = None,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """Cross-entropy of finding an image's other view among all views of all images by cosine.

    Equals `F.cross_entropy(z @ z.T / temperature with -inf on its diagonal, other view)` for
    z = F.normalize(cat[z1, z2]), whose [2N, 2N] similarities are not stored.

    Args:
        z1, z2: [N, D] embeddings of two views, N >= 1, normalised here; floating. Of two types both
            are taken in the one that holds both. Of half precision the unit rows are rounded to
            it, as under autocast, and their products added up in float32.
        temperature: .1 to .5 in the paper; at least 1e-6, where float32 still tells cosines apart.
        group: the processes whose images are each other's negatives: "world" for all, or some of
            them; None: this one alone. The value is that of the whole batch on each of them,
            gradients as `fastequi.functional.distributed` says.
        sizes: N of every process, where known; else they are gathered, with a host sync.

    Returns:
        A float32 scalar (float64 for float64 embeddings).

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
    """
    group = distributed.current(group)
    z1, z2 = widened(z1, z2)
    key, again = _CALLS.find((z1, z2), (temperature, group, sizes))
    if again is not None:
        return again(z1, z2)
    for name, z in (("z1", z1), ("z2", z2)):
        checks.check_floating(name, z)
    if z1.ndim != 2 or z1.shape != z2.shape or z1.numel() < 1:
        shapes = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise ValueError(f"z1, z2: expected two [N, D] of one shape, not empty, got {shapes}")
    checks.same_device(z1=z1, z2=z2)
    temperature = arguments.number("temperature", temperature, least=_LEAST)
    distributed.check_group(group, sizes)
    common = torch.promote_types(z1.dtype, z2.dtype)
    shard = None
    if group is not None and group.size() > 1:
        key = None  # sizes may be others next time
        sizes = distributed.all_gather_sizes(z1, group) if sizes is None else sizes
        gather = partial(distributed.all_gather_rows, group=group, sizes=sizes)
        first = sum(sizes[: group.rank()])
        shard = _nt_xent.Shard(first, sum(sizes), group.size(), gather)

    def run(z1: Tensor, z2: Tensor) -> Tensor:
        return _nt_xent.nt_xent_loss(z1.to(common), z2.to(common), temperature, shard)

    if key is None:
        return run(z1, z2)
    return _CALLS.keep(key, _nt_xent.prepared(z1, z2, temperature) or run)(z1, z2)
