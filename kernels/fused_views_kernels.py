"""Views of images in Triton: the kernels that `fused_views_triton.py` launches.

    views_resample_kernel   crop, resize, mirror, colour; for views that are not blurred also
                            solarize, normalise and cast
    views_blur_kernel       along rows; then along columns, solarize, normalise and cast

A program makes a tile of up to four channels of a view, whatever the photographs' sizes: a
photograph is an address in a table, not an argument.

Instructions per pixel, all channels, on sm_90 (tests/test_offline_compile.py): 16 for each pixel of
the photograph in a sample's triangles, (2 s)² of them where the window is s times as large as the
view, and about 100; 32 for each tap of a blur. Of four channels of 16 bits 20, or 38 where values
are cut off before they are resampled. Products of small matrices on tensor cores, as in
`blur.py`, would take three times as many here: windows of a few pixels fill no tile of theirs.
"""

from fastequi.kernels.backend import tl, triton
from fastequi.kernels.sampling import reflected_index

LAUNCH = {"TILE_H": 8, "TILE_W": 32, "num_warps": 2, "maxnreg": 96}  # four pixels a thread
WITH_ENDS = {"maxnreg": 128}  # of the first kernel, where it holds the ends of ranges


@triton.jit
def _axis(start, step, first, size, TILE: tl.constexpr):
    """Where samples first .. first + TILE - 1 of an axis lie; those behind the last are the last.

    Returns:
        origin: a pixel from which places count; middle: [TILE] places of the samples; radius: of
        their triangles; low: [TILE] the first pixel in each; count: of the pixels in one, at most.
    """
    place = start + (first + 0.5) * step - 0.5  # float64: thousands of pixels, and fractions
    origin = tl.floor(place)
    step = step.to(tl.float32)
    radius = tl.maximum(tl.abs(step), 1.0)
    samples = tl.minimum(tl.arange(0, TILE), size - 1 - first)
    middle = (place - origin).to(tl.float32) + samples * step
    low = tl.floor(middle - radius) + 1.0
    return origin.to(tl.int32), middle, radius, low, tl.ceil(2.0 * radius).to(tl.int32)


@triton.jit
def _value(at, low, high, CUT: tl.constexpr):
    """Of a channel, above the lower end of its range where it is cut off."""
    value = tl.load(at).to(tl.float32)
    if CUT:
        value = _within(value, low, high) - low
    return value


@triton.jit
def _within(value, low, high):
    """Cut off; NaN stays."""
    return tl.clamp(value, low, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _store_last(
    out_ptr, v, live, solarize, gain_ptr, mean_ptr, TOP: tl.constexpr, MOST: tl.constexpr
):
    """A channel as it leaves: solarized, normalised, cast; NaN of whole numbers is 0."""
    v = tl.where((solarize != 0) & (v >= 0.5 * TOP), TOP - v, v)
    v = v * tl.load(gain_ptr) - tl.load(mean_ptr)
    if MOST > 0:
        v = tl.floor(tl.minimum(tl.where(v > 0.0, v, 0.0), MOST) + 0.5)
    tl.store(out_ptr, v.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def views_resample_kernel(
    # pointers
    places_ptr,
    windows_ptr,
    numbers_ptr,
    each_ptr,
    taken_ptr,
    ranges_ptr,
    gains_ptr,
    means_ptr,
    out_ptr,
    # shapes
    H,
    W,
    TW,
    TILES,
    C,
    STORED,
    # strides
    stride_ov,
    stride_oc,
    stride_oy,
    stride_ox,
    # constants
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    TOGETHER: tl.constexpr,
    RANGE: tl.constexpr,
    CUT: tl.constexpr,
    COLOR: tl.constexpr,
    EACH: tl.constexpr,
    TOP: tl.constexpr,
    MOST: tl.constexpr,
    LAST: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    # x = range (Σ_pq w_pq photo[p, q] / Σ_pq w_pq), w_pq = (1 - |p - y| / r_y) (1 - |q - x| / r_x)
    # x = color x, then (gain x + offset)^exponent; range, color and each only where constants say
    # out[v] = gain solarized(x) - mean if LAST, else out[n] = x
    n, first, row, col = _place(TW, TILES, C, GROUP, TILE_H, TILE_W)
    place = places_ptr + n * 6
    kind = tl.uint8 if BITS == 8 else tl.uint16 if BITS == 16 else tl.float32
    photo = tl.load(place).to(tl.pointer_type(kind))
    pitch = tl.load(place + 1)
    bottom = tl.load(place + 2).to(tl.int32)
    right = tl.load(place + 3).to(tl.int32)
    window = windows_ptr + n * 4
    y_from, y_middle, y_radius, y_low, rows = _axis(
        tl.load(window), tl.load(window + 1), row, H, TILE_H
    )
    x_from, x_middle, x_radius, x_low, columns = _axis(
        tl.load(window + 2), tl.load(window + 3), col, W, TILE_W
    )
    y_share = 1.0 / y_radius
    x_share = 1.0 / x_radius
    taken = taken_ptr + first
    channel = tl.load(taken)
    photo += channel
    # the group's other channels, from the first; those there are not are never read
    at_1 = 1 if TOGETHER or GROUP < 2 else tl.load(taken + 1) - channel
    at_2 = 2 if TOGETHER or GROUP < 3 else tl.load(taken + 2) - channel
    at_3 = 3 if TOGETHER or GROUP < 4 else tl.load(taken + 3) - channel
    ends = ranges_ptr + first * 4  # low, high, gain and offset of each
    low_0 = tl.load(ends) if CUT else 0.0
    high_0 = tl.load(ends + 1) if CUT else 0.0
    low_1 = tl.load(ends + 4) if CUT and GROUP > 1 else 0.0
    high_1 = tl.load(ends + 5) if CUT and GROUP > 1 else 0.0
    low_2 = tl.load(ends + 8) if CUT and GROUP > 2 else 0.0
    high_2 = tl.load(ends + 9) if CUT and GROUP > 2 else 0.0
    low_3 = tl.load(ends + 12) if CUT and GROUP > 3 else 0.0
    high_3 = tl.load(ends + 13) if CUT and GROUP > 3 else 0.0
    v_0 = tl.zeros([TILE_H, TILE_W], tl.float32)
    v_1 = tl.zeros([TILE_H, TILE_W], tl.float32)
    v_2 = tl.zeros([TILE_H, TILE_W], tl.float32)
    v_3 = tl.zeros([TILE_H, TILE_W], tl.float32)
    mass = tl.zeros([TILE_H, TILE_W], tl.float32)
    for q in range(columns):
        x = x_low + q
        wx = tl.maximum(1.0 - tl.abs(x - x_middle) * x_share, 0.0)[None, :]
        x = tl.minimum(tl.maximum(x_from + x.to(tl.int32), 0), right).to(tl.int64) * STORED
        down_0 = tl.zeros([TILE_H, TILE_W], tl.float32)
        down_1 = tl.zeros([TILE_H, TILE_W], tl.float32)
        down_2 = tl.zeros([TILE_H, TILE_W], tl.float32)
        down_3 = tl.zeros([TILE_H, TILE_W], tl.float32)
        down = tl.zeros([TILE_H], tl.float32)
        for p in range(rows):
            y = y_low + p
            wy = tl.maximum(1.0 - tl.abs(y - y_middle) * y_share, 0.0)
            y = tl.minimum(tl.maximum(y_from + y.to(tl.int32), 0), bottom)
            at = photo + (y * pitch)[:, None] + x[None, :]
            down_0 += wy[:, None] * _value(at, low_0, high_0, CUT)
            if GROUP > 1:
                down_1 += wy[:, None] * _value(at + at_1, low_1, high_1, CUT)
            if GROUP > 2:
                down_2 += wy[:, None] * _value(at + at_2, low_2, high_2, CUT)
            if GROUP > 3:
                down_3 += wy[:, None] * _value(at + at_3, low_3, high_3, CUT)
            down += wy
        v_0 += wx * down_0
        v_1 += wx * down_1
        v_2 += wx * down_2
        v_3 += wx * down_3
        mass += wx * down[:, None]
    v_0 = _in_range(v_0 / mass, ends, RANGE, TOP)
    v_1 = _in_range(v_1 / mass, ends + 4, RANGE and GROUP > 1, TOP)
    v_2 = _in_range(v_2 / mass, ends + 8, RANGE and GROUP > 2, TOP)
    v_3 = _in_range(v_3 / mass, ends + 12, RANGE and GROUP > 3, TOP)
    i = row + tl.arange(0, TILE_H)[:, None]
    j = col + tl.arange(0, TILE_W)[None, :]
    live = (i < H) & (j < W)
    v = tl.load(place + 4) if LAST else n
    out = out_ptr + v * stride_ov + first * stride_oc + i * stride_oy + j * stride_ox
    for k in tl.static_range(GROUP):
        value = v_0 if k == 0 else v_1 if k == 1 else v_2 if k == 2 else v_3
        if COLOR:
            m = numbers_ptr + n * 13 + 4 * k
            value = tl.load(m) * v_0 + tl.load(m + 1) * v_1 + tl.load(m + 2) * v_2 + tl.load(m + 3)
            value = _within(value, 0.0, TOP)
        if EACH:
            by = each_ptr + ((n * C + first) + k) * 3
            value = _within(value * tl.load(by) + TOP * tl.load(by + 1), 0.0, TOP)
            exponent = tl.load(by + 2)
            power = TOP * tl.exp2(exponent * tl.log2(tl.where(value > 0.0, value / TOP, 1.0)))
            value = tl.where(exponent != 1.0, tl.where(value > 0.0, power, value), value)
        if LAST:
            solarize = tl.load(place + 5)
            gain = gains_ptr + first + k
            mean = means_ptr + first + k
            _store_last(out + k * stride_oc, value, live, solarize, gain, mean, TOP, MOST)
        else:
            tl.store(out + k * stride_oc, value, mask=live)


@triton.jit
def _place(TW, TILES, C, GROUP: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Of a program: its view; the first of its channels, the last group being moved back where it
    would end behind them; the first row and column of its tile. Groups of one tile are neighbours,
    as they read the same lines.
    """
    groups = tl.cdiv(C, GROUP)
    pid = tl.program_id(0)
    tile = pid // groups
    first = tl.minimum(pid % groups * GROUP, C - GROUP).to(tl.int64)
    row = (tile % TILES) // TW * TILE_H
    col = (tile % TILES) % TW * TILE_W
    return (tile // TILES).to(tl.int64), first, row, col


@triton.jit
def _in_range(value, ends, RANGE: tl.constexpr, TOP: tl.constexpr):
    if RANGE:
        value = _within(value * tl.load(ends + 2) + tl.load(ends + 3), 0.0, TOP)
    return value


@triton.jit
def views_blur_kernel(
    # pointers
    places_ptr,
    numbers_ptr,
    gains_ptr,
    means_ptr,
    planes_ptr,
    out_ptr,
    # shapes
    H,
    W,
    TW,
    TILES,
    C,
    # strides
    stride_ov,
    stride_oc,
    stride_oy,
    stride_ox,
    # constants
    GROUP: tl.constexpr,
    TOP: tl.constexpr,
    MOST: tl.constexpr,
    LAST: tl.constexpr,
    FAR: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
):
    # x = Σ_d w(d) planes[n, c, i, j + d] / Σ_d w(d), or i + d if LAST, w(d) = exp(-d² / 2σ²)
    # out[v] = gain solarized(x) - mean if LAST, else out[n] = x
    n, first, row, col = _place(TW, TILES, C, GROUP, TILE_H, TILE_W)
    i = row + tl.arange(0, TILE_H)[:, None]
    j = col + tl.arange(0, TILE_W)[None, :]
    live = (i < H) & (j < W)
    sigma = tl.load(numbers_ptr + n * 13 + 12)
    rate = tl.minimum(0.5 / (sigma * sigma), 1e30)
    reach = tl.ceil(3.0 * sigma.to(tl.float64)).to(tl.int32)  # in the host's precision
    plane = planes_ptr + (n * C + first) * H * W
    v_0 = tl.zeros([TILE_H, TILE_W], tl.float32)
    v_1 = tl.zeros([TILE_H, TILE_W], tl.float32)
    v_2 = tl.zeros([TILE_H, TILE_W], tl.float32)
    v_3 = tl.zeros([TILE_H, TILE_W], tl.float32)
    mass = 0.0
    for d in range(-reach, reach + 1):
        w = tl.exp(-(d * d) * rate)
        mass += w
        if LAST:
            at = reflected_index(i + d, H, FAR) * W + j
        else:
            at = i * W + reflected_index(j + d, W, FAR)
        v_0 += w * tl.load(plane + at, mask=live, other=0.0)
        if GROUP > 1:
            v_1 += w * tl.load(plane + H * W + at, mask=live, other=0.0)
        if GROUP > 2:
            v_2 += w * tl.load(plane + 2 * H * W + at, mask=live, other=0.0)
        if GROUP > 3:
            v_3 += w * tl.load(plane + 3 * H * W + at, mask=live, other=0.0)
    v = tl.load(places_ptr + n * 6 + 4) if LAST else n
    out = out_ptr + v * stride_ov + first * stride_oc + i * stride_oy + j * stride_ox
    for k in tl.static_range(GROUP):
        value = (v_0 if k == 0 else v_1 if k == 1 else v_2 if k == 2 else v_3) / mass
        if LAST:
            solarize = tl.load(places_ptr + n * 6 + 5)
            gain = gains_ptr + first + k
            mean = means_ptr + first + k
            _store_last(out + k * stride_oc, value, live, solarize, gain, mean, TOP, MOST)
        else:
            tl.store(out + k * stride_oc, value, mask=live)
