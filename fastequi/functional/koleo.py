"""KoLeo: the distance of every row to its nearest neighbour in the batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastequi.functional import arguments, checks, distributed
from fastequi.functional.distributed import Group
from fastequi.kernels import koleo as _koleo
from fastequi.kernels.precision import autocast_off, widened
from fastequi.kernels.prepared import Calls

_CALLS = Calls()


def koleo_loss(
    z: Tensor,
    *,
    eps: float = 1e-8,
    group: Group = None,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """Kozachenko-Leonenko regulariser: -mean log of the distance to the nearest other row.

    Spreads unit vectors over the sphere (Sablayrolles et al., ICLR 2019; as in DINOv2, which takes
    the neighbour by inner product and has eps in the distance and in the logarithm).

    Args:
        z: [N, D] embeddings, normalised here.
        eps: keeps the logarithm finite for rows that coincide.
        group, sizes: as in :func:`nt_xent_loss`: neighbours are sought among all processes' rows.

    Returns:
        A float32 scalar (float64 for float64 embeddings), the whole batch's on every process.

    Raises:
        TypeError, ValueError: arguments that do not fit; names the argument.
        ValueError: fewer than two rows in all, of which none has a neighbour.
    """
    group = distributed.current(group)
    (z,) = widened(z)
    key, again = _CALLS.find((z,), (eps, group, sizes))
    if again is not None:
        return again(z)
    checks.check_floating("z", z)
    if z.ndim != 2 or z.shape[1] < 1:
        raise ValueError(f"z: expected [N, D] with D >= 1, got {tuple(z.shape)}")
    eps = arguments.number("eps", eps, least=0)
    distributed.check_group(group, sizes)
    if group is None:
        if z.shape[0] < 2:
            raise ValueError(f"z: KoLeo needs at least 2 rows, got {z.shape[0]}")
        if key is None:
            return _koleo.koleo_loss(z, eps)
        again = _koleo.prepared(z, eps) or (lambda z: _koleo.koleo_loss(z, eps))
        return _CALLS.keep(key, again)(z)
    with autocast_off(z.device):
        every = distributed.all_gather_rows(_koleo.unit_rows(z, eps), group, sizes)
        if len(every) < 2:
            raise ValueError(f"z: KoLeo needs at least 2 rows, got {len(every)}")
        return _koleo.spread(every, eps)
