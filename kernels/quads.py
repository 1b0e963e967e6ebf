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
        even, odd = tl.split(values.to(tl.float32).reshape([T, 2, 2]))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _join4(x0, x1, x2, x3):
    """[T] four times as [T, 2, 2]: the order of columns when reshaped to [T, 4]."""
    return tl.join(tl.join(x0, x2), tl.join(x1, x3))


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
