"""The decoder's last linear and a path loss together: what warped and blurred targets share.

For `linear_warp_recon.py` and `linear_blur_recon.py`. Replaces, for K decoders with a linear layer
each::

    pred = torch.einsum("bkld,kpd->bklp", hidden, weight) + bias[:, None]    # B·K·L·p·p·C values
    pred = overlap_add(pred)                         # if its windows overlap; see overlap.py
    loss = error(pred, target(image, path))

Never materialised: the predictions and their gradient, both as large as all the target images. A
chunk of one step's is made, compared and turned into gradients by hidden, weight and bias; the
backward only scales those. On a CPU a chunk stays in the cache, so that hidden is moved twice, its
gradient once and the weight once per chunk; on a GPU it is as large as launches need to be. The
arithmetic is that of the three matrix products. Hidden tokens are read where they lie if those of a
step are a matrix there: with the steps next to the channels [B, L, K, D], as one linear layer for
all steps writes them, or the same for all steps, as `expand` leaves them. Others are copied, a step
at a time. Their gradient lies as [B, L, K, D], into which each step's product is written directly.

The gradient by the weight is summed in float32 whatever the inputs are; each chunk's share of it is
rounded to their type before, as each matrix product rounds its result.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels.autograd import FusedLoss
from fastequi.kernels.backend import tl, transformed, triton, use_triton
from fastequi.kernels.overlap import overlap_add, overlap_spread
from fastequi.kernels.precision import float16_divisor

Compare = Callable[[Tensor, slice, slice], tuple[Tensor, Tensor | None, Tensor]]
"""(predictions of some images and one step [b, 1, L, P], images, step) → (their error, number of
values or None for all, gradient by the predictions)."""


class Windows(NamedTuple):
    """How predictions of a layer make up an image.

    Attributes:
        rows, columns: patches of the image.
        patch_size: p.
        overlap: o, pixels by which a token's window reaches beyond its patch; 0: it is the patch.
    """

    rows: int
    columns: int
    patch_size: int
    overlap: int

    def added(self, windows: Tensor) -> Tensor:
        """Patch tokens of windows."""
        if not self.overlap:
            return windows
        return overlap_add(windows, self[:2], self.patch_size, self.overlap)

    def spread(self, patches: Tensor) -> Tensor:
        """Gradients by windows of those by patch tokens."""
        if not self.overlap:
            return patches
        return overlap_spread(patches, self[:2], self.patch_size, self.overlap)


_WORD = 16  # bytes
_PARTS = 128  # of a chunk's rows, which programs add up apart


@triton.jit
def column_sums_kernel(
    # pointers
    x_ptr,
    sums_ptr,
    # shapes
    N,
    P,
    PER_PART,
    # constants
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # sums[part, p] = Σ x[n, p] over the part's rows n, in float32
    part = tl.program_id(1)
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.arange(0, ROWS)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    end = tl.minimum((part + 1) * PER_PART, N)
    for start in range(part * PER_PART, end, ROWS):
        at = (start + rows).to(tl.int64)
        mask = (at < end)[:, None] & (offs < P)[None, :]
        acc += tl.load(x_ptr + at[:, None] * P + offs[None, :], mask=mask, other=0.0)
    tl.store(sums_ptr + part * P + offs, tl.sum(acc, 0), mask=offs < P)


SUMS = {"ROWS": 32, "BLOCK": 128, "num_warps": 4}


def images_per_chunk(image_bytes: int, cuda: bool) -> int:
    """So many that a step's prediction and gradient take 256 MB on a GPU, a third of a CPU's cache.

    A chunk that stayed in an H200's L2 cache (24 MB) took five times as long as predictions that
    are stored, since its dozen launches were shorter than the host's time to start them.
    """
    most = 256 << 20 if cuda else 8 << 20
    return max(most // max(2 * image_bytes, 1), 1)


def linear_recon(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    windows: Windows,
    compare: Compare,
    masked: bool,
    grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(the sum of errors, count if `masked` or empty, gradients by the first three or empty)."""
    total, count, d_hidden, d_weight, d_bias = outputs(hidden, weight, bias, masked, grad)
    steps, tokens, values = hidden.shape[1], hidden.shape[2], weight.shape[1]
    images = images_per_chunk(values * tokens * hidden.element_size(), hidden.is_cuda)
    starts = range(0, len(hidden) if tokens else 0, images)
    by_weight, by_bias = d_weight, d_bias
    if grad and len(starts) != 1:
        by_weight = torch.zeros_like(d_weight, dtype=total.dtype)
    if grad and bias is not None:
        by_bias = _space_for_sums(hidden, steps, len(starts), values)
    totals, counts = [], []
    for i, start in enumerate(starts):
        part = slice(start, start + images)
        for k in range(steps):
            source = _matrix(hidden[part, k])
            pred = F.linear(source, weight[k], None if bias is None else bias[k])
            pred = windows.added(pred.unflatten(0, (-1, 1, tokens)))
            part_total, part_count, by_pred = compare(pred, part, slice(k, k + 1))
            totals.append(part_total)
            if part_count is not None:
                counts.append(part_count)
            if not grad:
                continue
            by_pred = windows.spread(by_pred).flatten(0, 2)
            torch.mm(by_pred, weight[k], out=d_hidden[part, k].flatten(0, 1))
            if by_weight is d_weight:
                torch.mm(by_pred.T, source, out=d_weight[k])
            else:
                by_weight[k] += by_pred.T @ source
            if bias is not None:
                _sum_rows(by_pred, by_bias[k, i])
    for one, found in ((total, totals), (count, counts)):
        torch.sum(torch.stack(found), 0, out=one) if found else one.zero_()
    if by_weight is not d_weight:
        d_weight.copy_(by_weight)
    if by_bias is not d_bias:
        d_bias.copy_(by_bias.sum((1, 2)))
    return total, count, d_hidden, d_weight, d_bias


def _matrix(tokens: Tensor) -> Tensor:
    """[b, L, D] as [b · L, D], copied if the rows do not follow each other.

    On a GPU in words of 16 bytes: values that do not lie side by side are copied one by one, at
    40 % of the memory's speed for bfloat16's two bytes.
    """
    dtype, size = tokens.dtype, tokens.element_size()
    places = *tokens.stride()[:2], tokens.shape[2], tokens.storage_offset()
    if (
        tokens.is_cuda
        and tokens.stride(2) == 1
        and not tokens.is_neg()
        and not any(place * size % _WORD for place in places)
    ):
        tokens = tokens.view(torch.complex128)
    return tokens.flatten(0, 1).view(dtype)


def _space_for_sums(hidden: Tensor, steps: int, chunks: int, values: int) -> Tensor:
    """[K, chunks, parts, P] in float32, or float64."""
    parts = _PARTS if use_triton(hidden) else 1
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return torch.empty(steps, chunks, parts, values, dtype=wide, device=hidden.device)


def _sum_rows(x: Tensor, sums: Tensor) -> None:
    """Fills sums [parts, P], which add up to the sum of x [N, P] over its rows."""
    if len(sums) == 1:
        sums[0] = x.sum(0)
        return
    grid = triton.cdiv(x.shape[1], SUMS["BLOCK"]), len(sums)
    with torch.cuda.device_of(x):
        column_sums_kernel[grid](x, sums, *x.shape, triton.cdiv(len(x), len(sums)), **SUMS)


def outputs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, masked: bool, grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What :func:`linear_recon` returns, unwritten."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    total = hidden.new_empty((), dtype=wide)
    count = hidden.new_empty(() if masked else 0, dtype=wide)
    empty = hidden.new_empty(0)
    if not grad:
        return total, count, empty, empty.clone(), empty.clone()
    d_bias = (
        empty if bias is None else torch.empty_like(bias, memory_format=torch.contiguous_format)
    )
    return (
        total,
        count,
        hidden.new_empty([hidden.shape[at] for at in (0, 2, 1, 3)]).transpose(1, 2),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        d_bias,
    )


def linear_ref(hidden: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows) -> Tensor:
    """The predictions in plain PyTorch."""
    pred = torch.einsum("bkld,kpd->bklp", hidden, weight)
    return windows.added(pred if bias is None else pred + bias[:, None])


def needs_chain(hidden: Tensor, *others: Tensor | None) -> bool:
    """Whether the reference must run.

    Where a tensor that is not the layer's wants a gradient, under torch.func, in float64 on a GPU.
    """
    if transformed() or (hidden.dtype == torch.float64 and use_triton(hidden)):
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in others)


def run(
    op: FusedLoss,
    leaves: tuple[Tensor, Tensor, Tensor | None],
    others: Sequence[Tensor | None],
    target: tuple[Any, ...],
    divisor: int,
) -> tuple[Tensor, Tensor]:
    """(the sum of errors over `divisor`, count or empty) of an op with these inputs."""
    hidden = leaves[0]
    inside = _for_float16(*leaves[:2]) if hidden.dtype == torch.float16 else divisor
    wanted = any(t.requires_grad for t in leaves if t is not None)
    grad = torch.is_grad_enabled() and wanted
    total, count, *_ = op(*leaves, *others, *target, inside, grad)
    return total if inside is divisor else total * inside / divisor, count


def _for_float16(hidden: Tensor, weight: Tensor) -> int:
    """A divisor between that of pixels, with which sums could overflow, and of all values.

    The weight's gradient is a sum over B·L tokens, a token's over P values: such sums grow with the
    root of their length. Divided by all values, a value's share of the gradient would vanish before
    a scaler sees it.
    """
    longest = max(hidden.shape[0] * hidden.shape[2], weight.shape[1])
    return max(round(longest**0.5), float16_divisor(hidden.dtype, 1))
