"""Losses on the statistics of a batch's channels: VICReg."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastequi.functional import arguments, checks, distributed
from fastequi.functional.distributed import Group
from fastequi.kernels import vicreg as _vicreg
from fastequi.kernels.precision import autocast_off, widened
from fastequi.kernels.prepared import Calls

_CALLS = Calls()


def vicreg_loss(
    z1: Tensor,
    z2: Tensor,
    *,
    inv_weight: float = 25.0,
    var_weight: float = 25.0,
    cov_weight: float = 1.0,
    group: Group = None,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """Weighted sum of invariance, variance and covariance, in float32 whatever autocast says.

    The variance term is the mean over the two views and the covariance term their sum, as in the
    authors' code, whose formula `kernels/vicreg.py` opens with. Of the covariance and the Gram
    matrix the smaller is formed: N²D operations where N < D.

    Args:
        z1, z2: [N, D] embeddings of two views, N >= 2 in all; floating.
        inv_weight, var_weight, cov_weight: of the three terms.
        group: the processes whose images make up the batch: "world" for all, or some of them;
            None: this one alone. Value and gradients are as `fastequi.functional.distributed` says.
        sizes: images of every process, where known; else they are gathered, with a host sync.

    Returns:
        A float32 scalar (float64 for float64 embeddings).

    Raises:
        TypeError, ValueError: arguments that do not fit, or one image, which has no variance.
    """
    group = distributed.current(group)
    options = inv_weight, var_weight, cov_weight, group, sizes
    z1, z2 = widened(z1, z2)
    key, again = _CALLS.find((z1, z2), options)
    if again is not None:
        return again(z1, z2)
    weights = _checked(z1, z2, (inv_weight, var_weight, cov_weight), group, sizes)
    if key is not None and len(z1) > 1 and (run := _vicreg.prepared(z1, z2, *weights)) is not None:
        return _CALLS.keep(key, run)(z1, z2)
    return _terms(z1, z2, weights, group, sizes)[0]


def vicreg_terms(
    z1: Tensor,
    z2: Tensor,
    weights: tuple[float, float, float],
    group: Group = None,
    sizes: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`vicreg_loss`, and its unweighted terms [3] (inv, var, cov) without a gradient."""
    group = distributed.current(group)
    return _terms(z1, z2, _checked(z1, z2, weights, group, sizes), group, sizes)


def _checked(
    z1: Tensor,
    z2: Tensor,
    weights: tuple[float, float, float],
    group: ProcessGroup | None,
    sizes: Sequence[int] | None,
) -> tuple[float, float, float]:
    """The weights as numbers; raises an error for arguments that do not fit."""
    for name, z in (("z1", z1), ("z2", z2)):
        checks.check_floating(name, z)
    if z1.shape != z2.shape or z1.ndim != 2:
        shapes = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise ValueError(f"z1, z2: expected two [N, D] of one shape, got {shapes}")
    checks.same_device(z1=z1, z2=z2)
    if z1.shape[1] < 1:
        raise ValueError(f"z1, z2: expected at least one channel, got {tuple(z1.shape)}")
    weights = checked_weights(*weights)
    distributed.check_group(group, sizes)
    return weights


def _terms(
    z1: Tensor,
    z2: Tensor,
    weights: tuple[float, float, float],
    group: ProcessGroup | None,
    sizes: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """Of checked arguments."""
    with autocast_off(z1.device):
        wide = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
        z1, z2 = (distributed.all_gather_rows(z.to(wide), group, sizes) for z in (z1, z2))
        if len(z1) < 2:
            raise ValueError(f"z1: VICReg needs at least 2 images in a batch, got {len(z1)}")
        return _vicreg.vicreg_loss(z1, z2, *weights)


def checked_weights(
    inv_weight: float, var_weight: float, cov_weight: float
) -> tuple[float, float, float]:
    return (
        arguments.number("inv_weight", inv_weight),
        arguments.number("var_weight", var_weight),
        arguments.number("cov_weight", cov_weight),
    )
