"""VICReg's three terms and their gradient: one Gram matrix, one product each way.

Replaces, for embeddings z1, z2 of two views (Bardes et al., ICLR 2022, equations 1 to 6)::

    inv = F.mse_loss(z1, z2)
    z1, z2 = z1 - z1.mean(0), z2 - z2.mean(0)
    var = sum(F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2 for z in (z1, z2))
    covs = [z.T @ z / (N - 1) for z in (z1, z2)]       # D·D values each
    cov = sum((c.square().sum() - c.diagonal().square().sum()) / D for c in covs)

The covariance matrix is needed for its norm alone, and ‖zᵀz‖ = ‖zzᵀ‖: where the batch is smaller
than the embedding the Gram matrix G = zzᵀ of N·N values takes its place, N²D operations for ND².
Its gradient is 4 G z up to a factor, so with z centred the whole gradient is one matrix product,
added to what works column by column::

    d/dz = a (z1 - z2) + coef[d] · z + b · G z

Autograd would make two products of a matrix with itself in its backward, and store what every line
above makes. Here a kernel reads both views, writes them centred, the column sums and the first two
summands of the gradient, in three passes over columns that stay in the L2 cache: 2 views read, 4
written; the products are the library's (cuBLAS, BLAS) and add to what was written. On a CPU
vicreg.c makes the same passes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels import native_vicreg
from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.backend import say_type, tl, transformed, triton, use_native, use_triton
from fastequi.kernels.precision import without_autocast
from fastequi.kernels.prepared import Again
from fastequi.kernels.rows import dense_rows

EPS = 1e-4  # inside the square root, as in the authors' code


@triton.jit
def vicreg_columns_kernel(
    # pointers
    z1_ptr,
    z2_ptr,
    centred_ptr,
    grad_ptr,
    sums_ptr,
    # shapes
    N,
    D,
    # strides
    stride_1,
    stride_2,
    # scalars
    slope_inv,
    slope_var,
    slope_cov,
    # constants
    GRAD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # sums[0..4, d]: Σ_n (z1 - z2)², 1 - std, 1 - std of z2, Σ_n centred², the same of z2
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = offs < D
    rows = tl.arange(0, ROWS)
    total_1 = tl.zeros([ROWS, BLOCK], tl.float32)
    total_2 = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, N, ROWS):
        at = (start + rows).to(tl.int64)
        mask = (at < N)[:, None] & live[None, :]
        total_1 += tl.load(z1_ptr + at[:, None] * stride_1 + offs[None, :], mask=mask, other=0.0)
        total_2 += tl.load(z2_ptr + at[:, None] * stride_2 + offs[None, :], mask=mask, other=0.0)
    mean_1 = tl.sum(total_1, 0) / N
    mean_2 = tl.sum(total_2, 0) / N
    apart = tl.zeros([ROWS, BLOCK], tl.float32)
    square_1 = tl.zeros([ROWS, BLOCK], tl.float32)
    square_2 = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, N, ROWS):
        at = (start + rows).to(tl.int64)
        mask = (at < N)[:, None] & live[None, :]
        places = at[:, None] * D + offs[None, :]
        z1 = tl.load(z1_ptr + at[:, None] * stride_1 + offs[None, :], mask=mask, other=0.0)
        z2 = tl.load(z2_ptr + at[:, None] * stride_2 + offs[None, :], mask=mask, other=0.0)
        apart += (z1 - z2) * (z1 - z2)
        z1 = tl.where(mask, z1 - mean_1[None, :], 0.0)
        z2 = tl.where(mask, z2 - mean_2[None, :], 0.0)
        square_1 += z1 * z1
        square_2 += z2 * z2
        tl.store(centred_ptr + places, z1, mask=mask)
        tl.store(centred_ptr + N.to(tl.int64) * D + places, z2, mask=mask)
    squares_1 = tl.sum(square_1, 0)
    squares_2 = tl.sum(square_2, 0)
    std_1 = tl.sqrt(squares_1 / (N - 1) + 1e-4)
    std_2 = tl.sqrt(squares_2 / (N - 1) + 1e-4)
    tl.store(sums_ptr + offs, tl.sum(apart, 0), mask=live)
    tl.store(sums_ptr + D + offs, tl.where(std_1 < 1.0, 1.0 - std_1, std_1 * 0.0), mask=live)
    tl.store(sums_ptr + 2 * D + offs, tl.where(std_2 < 1.0, 1.0 - std_2, std_2 * 0.0), mask=live)
    tl.store(sums_ptr + 3 * D + offs, squares_1, mask=live)
    tl.store(sums_ptr + 4 * D + offs, squares_2, mask=live)
    if GRAD:
        coef_1 = tl.where(std_1 < 1.0, slope_var / std_1, 0.0) - slope_cov * squares_1
        coef_2 = tl.where(std_2 < 1.0, slope_var / std_2, 0.0) - slope_cov * squares_2
        for start in range(0, N, ROWS):
            at = (start + rows).to(tl.int64)
            mask = (at < N)[:, None] & live[None, :]
            places = at[:, None] * D + offs[None, :]
            z1 = tl.load(centred_ptr + places, mask=mask, other=0.0)
            z2 = tl.load(centred_ptr + N.to(tl.int64) * D + places, mask=mask, other=0.0)
            apart_mean = (mean_1 - mean_2)[None, :]
            pull = slope_inv * (z1 - z2 + apart_mean)
            tl.store(grad_ptr + places, pull + coef_1[None, :] * z1, mask=mask)
            tl.store(grad_ptr + N.to(tl.int64) * D + places, coef_2[None, :] * z2 - pull, mask=mask)


ROWS, BLOCK, WARPS = 32, 32, 8


def _columns(z1: Tensor, z2: Tensor, slopes: tuple[float, float, float], grad: bool) -> tuple:
    """(both views centred [2, N, D], the gradient but for the product, sums [3] of (z1 - z2)², of
    relu(1 - std) of both, of the squares of the columns' squares)."""
    n, dim = z1.shape
    slope_inv, slope_var, slope_cov = slopes
    if use_triton(z1) and z1.dtype == torch.float32 and z1.numel():
        z1, z2 = dense_rows(z1), dense_rows(z2)
        centred = z1.new_empty(2, n, dim)
        out = torch.empty_like(centred) if grad else z1.new_empty(0)
        sums = z1.new_empty(5, dim)
        with torch.cuda.device_of(z1):
            vicreg_columns_kernel[(triton.cdiv(dim, BLOCK),)](
                z1, z2, centred, out, sums, n, dim, z1.stride(0), z2.stride(0), slope_inv,
                slope_var, slope_cov, GRAD=grad, ROWS=ROWS, BLOCK=BLOCK, num_warps=WARPS,
            )  # fmt: skip
        return centred, out, _totals(sums)
    if use_native(z1):
        if z1.dtype == torch.float32:
            return native_vicreg.columns(z1, z2, slopes, grad)
        say_type("vicreg_loss", z1.dtype, takes="float32 or bfloat16")
    apart = z1 - z2
    centred = torch.stack([z1 - z1.mean(0), z2 - z2.mean(0)])
    squares = centred.square().sum(1)
    std = (squares / (n - 1) + EPS).sqrt()
    sums = torch.cat([apart.square().sum(0)[None], F.relu(1 - std), squares])
    if not grad:
        return centred, z1.new_empty(0), _totals(sums)
    coef = torch.where(std < 1, slope_var / std, 0.0) - slope_cov * squares
    out = centred * coef[:, None]
    out[0].add_(apart, alpha=slope_inv)
    out[1].sub_(apart, alpha=slope_inv)
    return centred, out, _totals(sums)


def _totals(sums: Tensor) -> Tensor:
    """Of sums by column [5, D], in float64."""
    sums = sums.double()
    return torch.stack([sums[0].sum(), sums[1:3].sum(), sums[3:].square().sum()])


def _slopes(
    n: int, dim: int, inv_weight: float, var_weight: float, cov_weight: float
) -> tuple[float, float, float]:
    """Of the gradient: of z1 - z2, of 1 / std, of a column's squares and of G z."""
    by_cov = 4 * cov_weight / ((n - 1) ** 2 * dim)
    return 2 * inv_weight / (n * dim), -0.5 * var_weight / (dim * (n - 1)), by_cov


def _compute(
    z1: Tensor,
    z2: Tensor,
    inv_weight: float,
    var_weight: float,
    cov_weight: float,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(the weighted sum, (inv, var, cov), gradients [2, N, D] or empty)."""
    n, dim = z1.shape
    weights = inv_weight, var_weight, cov_weight
    slopes = _slopes(n, dim, *weights)
    centred, out, sums = _columns(z1, z2, slopes, grad)
    squared = _products(centred, out, slopes[2], grad)
    parts = _parts(n, dim, sums, squared)
    total = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return total.to(z1.dtype), torch.stack(parts).to(z1.dtype), out


def _parts(n: int, dim: int, sums: Any, squared: Any) -> tuple[Any, ...]:
    """(inv, var, cov) of sums, as tensors or numbers."""
    apart, flat, squares = sums
    return apart / (n * dim), flat / (2 * dim), (squared - squares) / ((n - 1) ** 2 * dim)


def _products(centred: Tensor, out: Tensor, by_cov: float, grad: bool) -> Tensor:
    """The sum of all squares of both Gram matrices; adds their products to the gradient."""
    small = centred.shape[1] < centred.shape[2]
    gram = torch.bmm(centred, centred.mT) if small else torch.bmm(centred.mT, centred)
    if grad:
        # G z, or z C where the covariance is the smaller
        out.baddbmm_(*((gram, centred) if small else (centred, gram)), alpha=by_cov)
    # by row, then in float64: a CPU adds up the squares of a whole matrix one after the other
    return torch.linalg.vector_norm(gram, dim=-1).double().square().sum()


def prepared(
    z1: Tensor, z2: Tensor, inv_weight: float, var_weight: float, cov_weight: float
) -> Again | None:
    """What :func:`vicreg_loss` does for the value of views like these, in C; or None."""
    dense = z1.stride(1) == z2.stride(1) == 1 and not (z1.is_neg() or z2.is_neg())
    if not use_native(z1) or not z1.dtype == z2.dtype == torch.float32 or not dense:
        return None
    n, dim = z1.shape
    weights = inv_weight, var_weight, cov_weight
    slopes = _slopes(n, dim, *weights)
    grad = torch.is_grad_enabled() and (z1.requires_grad or z2.requires_grad)

    def summed(sums: list[float], squared: float) -> Tensor:
        parts = _parts(n, dim, sums, squared)
        total = sum(by * part for by, part in zip(weights, parts, strict=True))
        # by float64, of which beyond float32 infinity comes, and no error
        return torch.scalar_tensor(total, dtype=torch.float64, device="cpu").float()

    if (whole := native_vicreg.prepared_whole(z1, z2, slopes, grad)) is not None:

        def run(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            out, sums = whole(z1, z2)
            *others, squared = sums.tolist()
            return summed(others, squared), sums, out

    else:
        columns = native_vicreg.prepared(z1, z2, slopes, grad)

        @without_autocast
        def run(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            centred, out, sums = columns(z1, z2)
            squared = _products(centred, out, slopes[2], grad).item()
            return summed(sums.tolist(), squared), sums, out

    if not grad:
        return lambda z1, z2: run(z1, z2)[0]
    return vicreg_op.again(run)


def _fake(z1, z2, inv_weight, var_weight, cov_weight, grad) -> tuple[Tensor, Tensor, Tensor]:
    return z1.new_empty(()), z1.new_empty(3), z1.new_empty((2, *z1.shape) if grad else 0)


vicreg_op = FusedLoss("vicreg_loss", _compute, _fake, {0: (2, 0), 1: (2, 1)})


@without_autocast
def vicreg_loss_ref(
    z1: Tensor, z2: Tensor, inv_weight: float, var_weight: float, cov_weight: float
) -> tuple[Tensor, Tensor]:
    """The chain in plain PyTorch, in float32 at least, differentiable: (total, (inv, var, cov))."""
    wide = torch.promote_types(torch.promote_types(z1.dtype, z2.dtype), torch.float32)
    z1, z2 = z1.to(wide), z2.to(wide)
    inv, (z1, z2) = F.mse_loss(z1, z2), (z1 - z1.mean(0), z2 - z2.mean(0))
    var = inv.new_zeros(())
    cov = inv.new_zeros(())
    for z in (z1, z2):
        var = var + F.relu(1 - (z.var(0) + EPS).sqrt()).mean() / 2
        matrix = z.T @ z / (len(z) - 1)
        cov = cov + (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]
    parts = torch.stack([inv, var, cov])
    # no number times a scalar tensor, of which the tangent is float64 (torch.func.jvp)
    return (parts * parts.new_tensor([inv_weight, var_weight, cov_weight])).sum(), parts


def vicreg_loss(
    z1: Tensor, z2: Tensor, inv_weight: float, var_weight: float, cov_weight: float
) -> tuple[Tensor, Tensor]:
    """(the weighted sum, (inv, var, cov) without a gradient); float32 or float64, N >= 2."""
    if transformed():
        total, parts = vicreg_loss_ref(z1, z2, inv_weight, var_weight, cov_weight)
        return total, parts.detach()
    grad = torch.is_grad_enabled() and (z1.requires_grad or z2.requires_grad)
    total, parts, _ = vicreg_op(z1, z2, inv_weight, var_weight, cov_weight, grad)
    return total, parts
