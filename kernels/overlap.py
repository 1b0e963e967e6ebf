"""Windows of patch tokens that reach over their patches' edges, added up where they overlap.

A token's window has p + 2·o pixels along each side: its patch and o pixels of every neighbour. With
windows that fade towards their edges, no edge of a patch shows in the image that they make up
(overlap-add; as a lapped transform's, Malvar and Staelin, IEEE Trans. ASSP 1989). What reaches
beyond the image is mirrored back into it, so that windows whose fading sides add up to one do so at
the image's border as well. The adjoint gives each of a window's pixels the gradient of the image's
pixel it was added to.

A linear map, its weights all one: a pixel is a sum of one, two or four values. The kernels gather:
of every pixel its values, of every value its pixel.
"""

import torch
from torch import Tensor

from fastequi.kernels.backend import tl, triton, use_triton


@triton.jit
def _place(ROWS, COLUMNS, C: tl.constexpr, SIDE: tl.constexpr, BLOCK: tl.constexpr):
    # a program's token, its tile (i, j), and of its values the places: channel, column, row
    token = tl.program_id(0).to(tl.int64)
    i, j = (token // COLUMNS % ROWS).to(tl.int32), (token % COLUMNS).to(tl.int32)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    return token, i, j, offs, offs % C, offs // C % SIDE, offs // C // SIDE


@triton.jit
def _partner(at, tile, tiles, P: tl.constexpr, OVER: tl.constexpr):
    # of a patch's pixel `at`: the other window that reaches it, and where in that
    low = at < OVER
    high = at >= P - OVER
    step = tl.where(low & (tile > 0), -1, tl.where(high & (tile + 1 < tiles), 1, 0))
    mirrored = tl.where(low, OVER - 1 - at, 2 * P + OVER - 1 - at)
    return low | high, tile + step, tl.where(step == 0, mirrored, at + OVER - step * P)


@triton.jit
def overlap_add_kernel(
    # pointers
    windows_ptr,
    patches_ptr,
    # shapes
    ROWS,
    COLUMNS,
    # constants
    C: tl.constexpr,
    P: tl.constexpr,
    OVER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # patches[b, (i j), (p q c)] = Σ of the windows that reach this pixel
    W: tl.constexpr = P + 2 * OVER
    VALUES: tl.constexpr = P * P * C
    token, i, j, offs, c, q, p = _place(ROWS, COLUMNS, C, P, BLOCK)
    mask = offs < VALUES
    over_rows, row, at_row = _partner(p, i, ROWS, P, OVER)
    over_columns, column, at_column = _partner(q, j, COLUMNS, P, OVER)
    up, left = (row - i) * COLUMNS, column - j
    window = W * W * C
    start = windows_ptr + token * window
    at = ((p + OVER) * W + q + OVER) * C + c
    value = tl.load(start + at, mask=mask, other=0.0).to(tl.float32)
    at = up * window + (at_row * W + q + OVER) * C + c
    value += tl.load(start + at, mask=mask & over_rows, other=0.0)
    at = left * window + ((p + OVER) * W + at_column) * C + c
    value += tl.load(start + at, mask=mask & over_columns, other=0.0)
    at = (up + left) * window + (at_row * W + at_column) * C + c
    value += tl.load(start + at, mask=mask & over_rows & over_columns, other=0.0)
    tl.store(patches_ptr + token * VALUES + offs, value, mask=mask)


@triton.jit
def _reached(at, tile, tiles, P: tl.constexpr, OVER: tl.constexpr):
    # of a window's pixel `at`: the patch that it reaches, and the pixel of that
    at -= OVER
    step = tl.where(at < 0, -1, tl.where(at >= P, 1, 0))
    inside = (tile + step >= 0) & (tile + step < tiles)
    mirrored = tl.where(at < 0, -1 - at, 2 * P - 1 - at)
    return tl.where(inside, tile + step, tile), tl.where(inside, at - step * P, mirrored)


@triton.jit
def overlap_spread_kernel(
    # pointers
    patches_ptr,
    windows_ptr,
    # shapes
    ROWS,
    COLUMNS,
    # constants
    C: tl.constexpr,
    P: tl.constexpr,
    OVER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # windows[b, (i j), (p q c)] = patches at the pixel that this value was added to
    W: tl.constexpr = P + 2 * OVER
    VALUES: tl.constexpr = W * W * C
    token, i, j, offs, c, q, p = _place(ROWS, COLUMNS, C, W, BLOCK)
    mask = offs < VALUES
    row, p = _reached(p, i, ROWS, P, OVER)
    column, q = _reached(q, j, COLUMNS, P, OVER)
    patch = P * P * C
    at = ((row - i) * COLUMNS + column - j) * patch + (p * P + q) * C + c
    value = tl.load(patches_ptr + token * patch + at, mask=mask, other=0.0)
    tl.store(windows_ptr + token * VALUES + offs, value, mask=mask)


ADD = {"BLOCK": 512, "num_warps": 4}
_ROWS, _COLUMNS = (-5, -3), (-4, -2)  # axes of tiles and of pixels in [..., i, j, p, q, C]


def overlap_add(windows: Tensor, grid: tuple[int, int], patch_size: int, overlap: int) -> Tensor:
    """Patch tokens [..., L, p·p·C] of windows [..., L, (p + 2·o)²·C]; both in order (p q c).

    Sums in float32 at least, rounded once. What wants a gradient, and float64, takes the reference.
    """
    wanted = torch.is_grad_enabled() and windows.requires_grad
    if use_triton(windows) and not wanted and windows.dtype != torch.float64:
        return _launched(overlap_add_kernel, windows, grid, patch_size, overlap, patch_size)
    return overlap_add_ref(windows, grid, patch_size, overlap)


def overlap_spread(patches: Tensor, grid: tuple[int, int], patch_size: int, overlap: int) -> Tensor:
    """The adjoint of :func:`overlap_add`: windows of patch tokens."""
    if use_triton(patches):
        side = patch_size + 2 * overlap
        return _launched(overlap_spread_kernel, patches, grid, patch_size, overlap, side)
    return overlap_spread_ref(patches, grid, patch_size, overlap)


def overlap_add_ref(
    windows: Tensor, grid: tuple[int, int], patch_size: int, overlap: int
) -> Tensor:
    """See :func:`overlap_add`, in plain PyTorch: one axis after the other."""
    x = windows.to(torch.promote_types(windows.dtype, torch.float32))
    x = _tiles(x, grid, patch_size + 2 * overlap)
    for axes in (_ROWS, _COLUMNS):
        x = _added(x, *axes, patch_size, overlap)
    return x.flatten(-3).flatten(-3, -2).to(windows.dtype)


def overlap_spread_ref(
    patches: Tensor, grid: tuple[int, int], patch_size: int, overlap: int
) -> Tensor:
    """See :func:`overlap_spread`, in plain PyTorch."""
    x = _tiles(patches, grid, patch_size)
    for axes in (_COLUMNS, _ROWS):
        x = _spread(x, *axes, patch_size, overlap)
    return x.flatten(-3).flatten(-3, -2)


def _tiles(tokens: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """[..., i, j, p, q, C] of [..., L, side·side·C]."""
    return tokens.unflatten(-1, (side, side, -1)).unflatten(-4, grid)


def _added(x: Tensor, tile: int, pixel: int, patch: int, over: int) -> Tensor:
    """Along one axis: p of p + 2·o pixels, to which the neighbours' overlapping ones are added."""
    before, out, after = x.split((over, patch, over), pixel)
    out = out.clone(memory_format=torch.contiguous_format)
    low, high = out.narrow(pixel, 0, over), out.narrow(pixel, patch - over, over)
    others = x.shape[tile] - 1
    low.narrow(tile, 1, others).add_(after.narrow(tile, 0, others))
    low.narrow(tile, 0, 1).add_(before.narrow(tile, 0, 1).flip(pixel))
    high.narrow(tile, 0, others).add_(before.narrow(tile, 1, others))
    high.narrow(tile, others, 1).add_(after.narrow(tile, others, 1).flip(pixel))
    return out


def _spread(x: Tensor, tile: int, pixel: int, patch: int, over: int) -> Tensor:
    """The adjoint of :func:`_added`."""
    low, high = x.narrow(pixel, 0, over), x.narrow(pixel, patch - over, over)
    others = x.shape[tile] - 1
    shape = list(x.shape)
    shape[pixel] += 2 * over
    out = x.new_empty(shape)
    before, middle, after = out.split((over, patch, over), pixel)
    middle.copy_(x)
    after.narrow(tile, 0, others).copy_(low.narrow(tile, 1, others))
    before.narrow(tile, 0, 1).copy_(low.narrow(tile, 0, 1).flip(pixel))
    before.narrow(tile, 1, others).copy_(high.narrow(tile, 0, others))
    after.narrow(tile, others, 1).copy_(high.narrow(tile, others, 1).flip(pixel))
    return out


def _launched(
    kernel, tokens: Tensor, grid: tuple[int, int], patch_size: int, overlap: int, side: int
) -> Tensor:
    """What a kernel makes of tokens: as many, of `side` by `side` pixels."""
    given = patch_size if side != patch_size else patch_size + 2 * overlap
    channels = tokens.shape[-1] // given**2
    tokens, values = tokens.contiguous(), side * side * channels
    out = tokens.new_empty(*tokens.shape[:-1], values)
    count = out.numel() // max(values, 1)
    if out.numel():
        blocks = count, triton.cdiv(values, ADD["BLOCK"])
        with torch.cuda.device_of(tokens):
            kernel[blocks](tokens, out, *grid, C=channels, P=patch_size, OVER=overlap, **ADD)
    return out
