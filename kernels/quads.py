"""Four neighbouring pixels of three channels, read and written by one thread.

Device functions. The twelve values lie pixel by pixel (patch tokens, channels-last) or in three
planes; a pixel alone would mean accesses of two bytes.
"""

from fastequi.kernels.backend import tl, triton


@triton.jit
def _load4(ptr, offs, live, T: tl.constexpr):
    """Four neighbouring values from offs [T] on, as four float32 tensors."""
    if ptr.dtype.element_ty == tl.bfloat16:  # two to a word, which is half a float32 each
        places = (ptr + offs).to(tl.pointer_type(tl.int32))[:, None] + tl.arange(0, 2)[None, :]
        if live is None:
            words = tl.load(places)
        else:
            words = tl.load(places, mask=live[:, None], other=0)
        low, high = tl.split(words)
        x0 = (low << 16).to(tl.float32, bitcast=True)
        x1 = (low & -65536).to(tl.float32, bitcast=True)
        x2 = (high << 16).to(tl.float32, bitcast=True)
        x3 = (high & -65536).to(tl.float32, bitcast=True)
    else:
        places = (ptr + offs)[:, None] + tl.arange(0, 4)[None, :]
        if live is None:
            values = tl.load(places)
        else:
            values = tl.load(places, mask=live[:, None], other=0.0)
        x0, x1, x2, x3 = _split4(values.to(tl.float32), T)
    return x0, x1, x2, x3


@triton.jit
def _join4(x0, x1, x2, x3):
    """[T] four times as [T, 2, 2]: the order of columns when reshaped to [T, 4]."""
    return tl.join(tl.join(x0, x2), tl.join(x1, x3))


@triton.jit
def _split4(values, T: tl.constexpr):
    """[T, 4] as its four columns."""
    even, odd = tl.split(values.reshape([T, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


# Compact places: a warp's first pixels are 8×4 neighbours (fewer in a small tile), so that their
# samples meet few cache lines however the image is turned; the same of its second to fourth ones.
# LX · LY lanes take QX · QY pixels each, that far apart.


@triton.jit
def compact_places(TILE_W: tl.constexpr, TILE_H: tl.constexpr):
    """(x, y) of a thread's first pixel; the others lie :func:`compact_step` further."""
    QX: tl.constexpr = 2 if TILE_H >= 8 or TILE_W < 32 else 4
    QY: tl.constexpr = 4 // QX
    LX: tl.constexpr = 8 if TILE_W >= 8 * QX else TILE_W // QX
    LY: tl.constexpr = 4 if TILE_H >= 4 * QY else TILE_H // QY
    BX: tl.constexpr = TILE_W // (LX * QX)
    t = tl.arange(0, TILE_W * TILE_H // 4)
    block = t // (LX * LY)
    x = block % BX * (LX * QX) + t % LX
    y = block // BX * (LY * QY) + t % (LX * LY) // LX
    return x, y


@triton.jit
def compact_step(q: tl.constexpr, TILE_W: tl.constexpr, TILE_H: tl.constexpr):
    """How far a thread's q-th pixel lies from its first one: columns, rows."""
    QX: tl.constexpr = 2 if TILE_H >= 8 or TILE_W < 32 else 4
    QY: tl.constexpr = 4 // QX
    LX: tl.constexpr = 8 if TILE_W >= 8 * QX else TILE_W // QX
    LY: tl.constexpr = 4 if TILE_H >= 4 * QY else TILE_H // QY
    return q % QX * LX, q // QX * LY


@triton.jit
def to_rows(v, TILE_W: tl.constexpr, TILE_H: tl.constexpr):
    """A thread's four values at compact places, exchanged for those of four neighbours in a row."""
    QX: tl.constexpr = 2 if TILE_H >= 8 or TILE_W < 32 else 4
    QY: tl.constexpr = 4 // QX
    LX: tl.constexpr = 8 if TILE_W >= 8 * QX else TILE_W // QX
    LY: tl.constexpr = 4 if TILE_H >= 4 * QY else TILE_H // QY
    T: tl.constexpr = TILE_W * TILE_H // 4
    shape: tl.constexpr = [TILE_H // (LY * QY), TILE_W // (LX * QX), LY, LX, QY, QX]
    values = _join4(v[0], v[1], v[2], v[3]).reshape(shape).permute(0, 4, 2, 1, 5, 3)
    return _split4(values.reshape([T, 4]), T)


@triton.jit
def load_group(ptr, offs, stride_c, live, INTERLEAVED: tl.constexpr, T: tl.constexpr):
    """Channels of four neighbouring pixels from offs [T] on: twelve tensors, pixel by pixel."""
    step = 4 if INTERLEAVED else stride_c
    a0, a1, a2, a3 = _load4(ptr, offs, live, T)
    b0, b1, b2, b3 = _load4(ptr + step, offs, live, T)
    c0, c1, c2, c3 = _load4(ptr + 2 * step, offs, live, T)
    if INTERLEAVED:
        return a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3
    else:
        return a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3


@triton.jit
def store_group(ptr, offs, stride_c, live, v, INTERLEAVED: tl.constexpr, T: tl.constexpr):
    """The inverse of :func:`load_group`."""
    if INTERLEAVED:
        # sixteen columns, four of them not stored: a warp's stores fill whole sectors
        values = _join4(
            _join4(v[0], v[4], v[8], v[8]),
            _join4(v[1], v[5], v[9], v[9]),
            _join4(v[2], v[6], v[10], v[10]),
            _join4(v[3], v[7], v[11], v[11]),
        )
        column = tl.arange(0, 16)[None, :]
        mask = column < 12
        if live is not None:
            mask = mask & live[:, None]
        values = values.to(ptr.dtype.element_ty).reshape([T, 16])
        tl.store(ptr + (offs[:, None] + column), values, mask=mask)
    else:
        column = tl.arange(0, 4)[None, :]
        for c in tl.static_range(3):
            group = _join4(v[c], v[3 + c], v[6 + c], v[9 + c]).to(ptr.dtype.element_ty)
            places = ptr + offs[:, None] + column + c * stride_c
            if live is None:
                tl.store(places, group.reshape([T, 4]))
            else:
                tl.store(places, group.reshape([T, 4]), mask=live[:, None])
