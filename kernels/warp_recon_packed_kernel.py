"""The path loss in one launch: Triton over interleaved uint8 images.

A thread owns four neighbouring pixels, whose twelve predicted values lie side by side; it writes
their gradient itself. Each tap's three channels come with one load; a tile whose samples all lie
inside the image goes without masks, bounds or padding (82 % of the tiles of the bench's mixed
transformations at 224², 73 % of the identity's, whose outer ones touch the edge); coordinates
advance by additions along the pixels; programs of one image follow each other, so its texels come
from the L2 cache for all but the first step.
The programs' sums are added by whichever program finishes last, in the order of the programs, so
the same input gives the same bits; one launch does everything.

Bytes per pixel in bf16, gradient included: 6 + 6, and 3/K to 4/K of the source. Instructions per
pixel inside (sm_90, counted in tests/test_offline_compile.py): 74 with four bytes a texel, 86 with
three. On an H200, B=256, K=4, 224², reading the prediction and writing the gradient alone take
158 µs, all of it 251: the taps keep the L1 cache's data pipe busy, and fewer instructions gain
nothing (bench/results/README.md). What does: more warps, and a tile's prediction loaded while the
one before is compared.
"""

from fastequi.kernels.backend import tl, triton
from fastequi.kernels.packed import packed_target, pixel_affine, room, target_constants
from fastequi.kernels.pixel_loss import pixel_error
from fastequi.kernels.quads import load_group, store_group, unpacked
from fastequi.kernels.sampling import EDGE, padded


@triton.jit
def _tile(
    # the prediction, loaded before where p is not None
    p,
    # pointers
    pred,
    grad,
    image,
    # places
    offs,
    live,
    ix,
    iy,
    a0,
    a3,
    # shapes
    HS,
    WS,
    row,
    stride_c,
    # the target: m · sample + bias
    m,
    bias,
    start,
    weight,
    total,
    count,
    # constants
    TEXEL: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    EXACT: tl.constexpr,
    INSIDE: tl.constexpr,
    LOSS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    HAS_COLOR: tl.constexpr,
    MASK_OUTSIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    GRAD: tl.constexpr,
    T: tl.constexpr,
):
    """Adds the errors of T groups of four pixels to total, their number to count; the gradient."""
    if p is None:
        p = unpacked(load_group(pred, offs, stride_c, live, INTERLEAVED), INTERLEAVED, T)
    slopes = ()
    for q in tl.static_range(4):
        x = ix
        y = iy
        if q > 0:
            x += a0 * q
            y += a3 * q
        keep = live
        if not INSIDE:
            if MASK_OUTSIDE:
                unit_x = EDGE * ((WS - 1) * 0.5 if ALIGN else WS * 0.5)
                unit_y = EDGE * ((HS - 1) * 0.5 if ALIGN else HS * 0.5)
                within = tl.abs(x - (WS - 1) * 0.5) <= unit_x
                within = within & (tl.abs(y - (HS - 1) * 0.5) <= unit_y)
                keep = within & live
            x, _ = padded(x, WS, PADDING, ALIGN)
            y, _ = padded(y, HS, PADDING, ALIGN)
        v = packed_target(
            image, x, y, HS, WS, row, m, bias, start, TEXEL, WHOLE_ROWS, EXACT, INSIDE, HAS_COLOR
        )
        for c in tl.static_range(3):
            value, slope = pixel_error(p[3 * q + c] - v[c], LOSS, weight)
            if not INSIDE:
                value = tl.where(keep, value, 0.0)
                slope = tl.where(keep, slope, 0.0)
            total += value
            slopes = slopes + (slope,)  # type: ignore[assignment]  # noqa: RUF005
        if MASK_OUTSIDE:
            if INSIDE:
                count += 3.0
            else:
                count += tl.where(keep, 3.0, 0.0)
    if GRAD:
        store_group(grad, offs, stride_c, live, slopes, INTERLEAVED, T)
    return total, count


@triton.jit
def _sum_all(ptr, n):
    """Of what other programs have written, past this processor's own cache."""
    offs = tl.arange(0, 1024)
    acc = tl.zeros([1024], tl.float32)
    for first in range(0, n, 1024):
        at = first + offs
        acc += tl.load(ptr + at, mask=at < n, other=0.0, cache_modifier=".cg")
    return tl.sum(acc, 0)


@triton.jit
def warp_recon_packed_kernel(
    # pointers
    pred_ptr,
    image_ptr,
    theta_ptr,
    color_ptr,
    grad_ptr,
    parts_ptr,
    counts_ptr,
    total_ptr,
    count_ptr,
    arrived_ptr,
    # shapes
    K,
    H,
    W,
    HS,
    WS,
    NB,
    ROWS,
    # strides
    stride_pb,
    stride_pk,
    stride_pc,
    stride_py,
    stride_pl,
    stride_ib,
    stride_iy,
    stride_tb,
    stride_tk,
    # normalisation
    mean0,
    mean1,
    mean2,
    gain0,
    gain1,
    gain2,
    weight,
    # constants
    TEXEL: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    EXACT: tl.constexpr,
    PATCH: tl.constexpr,
    TILE_W: tl.constexpr,
    TILE_H: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    LOSS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN: tl.constexpr,
    HAS_COLOR: tl.constexpr,
    MASK_OUTSIDE: tl.constexpr,
    GRAD: tl.constexpr,
    REDUCE: tl.constexpr,
):
    # total = weight Σ_{c,y,x} ℓ(pred - gain_c (color_c · image[b, :, θ_k (x, y)] - mean_c))
    T: tl.constexpr = TILE_W * TILE_H // 4
    pid = tl.program_id(0)
    k = pid % K  # the steps of one image innermost: they share its texels in L2
    part = (pid // K) % NB
    b = (pid // (K * NB)).to(tl.int64)
    a0, a1, a2, a3, a4, a5, cx, cy, poison = pixel_affine(
        theta_ptr + b * stride_tb + k * stride_tk, H, W, HS, WS, ALIGN
    )
    image = image_ptr + b * stride_ib
    m, bias, start = target_constants(
        color_ptr + (b * K + k) * 12 if HAS_COLOR else None,
        mean0, mean1, mean2, gain0, gain1, gain2, poison, EXACT, HAS_COLOR,
    )  # fmt: skip
    # four pixels of a thread: token by token, row by row
    t = tl.arange(0, T)
    SIDE: tl.constexpr = PATCH if PATCH > 0 else TILE_W
    token = t // (SIDE * TILE_H // 4)
    inner = t % (SIDE * TILE_H // 4)
    x = token * SIDE + (inner % (SIDE // 4)) * 4
    y = inner // (SIDE // 4)
    if PATCH > 0:
        place = token * stride_pl + inner * 12
        tile_step = (TILE_W // PATCH) * stride_pl
    else:
        place = y * stride_py + x * (3 if INTERLEAVED else 1)
        tile_step = TILE_W * (3 if INTERLEAVED else 1)
    # samples from the source's centre: of a tile's middle, and of a thread's first pixel from there
    mid_w = (TILE_W - 1) * 0.5
    mid_h = (TILE_H - 1) * 0.5
    from_x = a0 * (x - mid_w) + a1 * (y - mid_h) + (WS - 1) * 0.5
    from_y = a3 * (x - mid_w) + a4 * (y - mid_h) + (HS - 1) * 0.5
    room_x, room_y = room(a0, a1, a3, a4, HS, WS, mid_w, mid_h)
    total = tl.zeros([T], tl.float32)
    count = tl.zeros([T], tl.float32)
    step = b * stride_pb + k * stride_pk
    across = (W + TILE_W - 1) // TILE_W
    rows = tl.minimum(ROWS, (H + TILE_H - 1) // TILE_H - part * ROWS)
    if PATCH > 0:
        row_step = (W // PATCH) * stride_pl
        words = load_group(
            pred_ptr + step + part * ROWS * row_step, place, stride_pc, None, INTERLEAVED
        )
    else:
        row_step = TILE_H * stride_py
    at = step + part * ROWS * row_step
    top = part * ROWS * TILE_H
    left = 0
    for left_over in range(rows * across, 0, -1):
        # the next tile: to the right, or at the left of the next row
        ends = left + TILE_W >= W
        to = at + tl.where(ends, row_step - (across - 1) * tile_step, tile_step)
        p = None
        if PATCH > 0:
            # the next tile's values are on their way while this one's are used
            p = unpacked(words, INTERLEAVED, T)
            known = tl.where(left_over > 1, to, at)
            words = load_group(pred_ptr + known, place, stride_pc, None, INTERLEAVED)
        off_x = a0 * (left + (mid_w - cx)) + a1 * (top + (mid_h - cy)) + a2
        off_y = a3 * (left + (mid_w - cx)) + a4 * (top + (mid_h - cy)) + a5
        inside = (tl.abs(off_x) <= room_x) & (tl.abs(off_y) <= room_y)
        if PATCH == 0:
            inside = inside & (left + TILE_W <= W) & (top + TILE_H <= H)
        ix = off_x + from_x
        iy = off_y + from_y
        grad = grad_ptr
        if GRAD:
            grad += at
        if inside:
            total, count = _tile(
                p, pred_ptr + at, grad, image, place, None, ix, iy, a0, a3, HS, WS, stride_iy,
                stride_pc, m, bias, start, weight, total, count, TEXEL, WHOLE_ROWS, EXACT, True,
                LOSS, PADDING, ALIGN, HAS_COLOR, MASK_OUTSIDE, INTERLEAVED, GRAD, T,
            )  # fmt: skip
        else:
            live = (left + x < W) & (top + y < H)
            total, count = _tile(
                p, pred_ptr + at, grad, image, place, live, ix, iy, a0, a3, HS, WS, stride_iy,
                stride_pc, m, bias, start, weight, total, count, TEXEL, WHOLE_ROWS, EXACT, False,
                LOSS, PADDING, ALIGN, HAS_COLOR, MASK_OUTSIDE, INTERLEAVED, GRAD, T,
            )  # fmt: skip
        at = to
        left = tl.where(ends, 0, left + TILE_W)
        top += tl.where(ends, TILE_H, 0)
    tl.store(parts_ptr + pid, tl.sum(total, 0) * weight)
    if MASK_OUTSIDE:
        tl.store(counts_ptr + pid, tl.sum(count, 0))
    if REDUCE:
        tl.debug_barrier()
        arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel")
        if arrived == tl.num_programs(0) - 1:
            tl.store(total_ptr, _sum_all(parts_ptr, tl.num_programs(0)))
            if MASK_OUTSIDE:
                tl.store(count_ptr, _sum_all(counts_ptr, tl.num_programs(0)))
            tl.store(arrived_ptr, 0)  # for the next launch
