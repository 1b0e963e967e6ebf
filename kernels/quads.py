"""Four neighbouring pixels of three channels, read and written by one thread.

Device functions. The twelve values lie pixel by pixel (patch tokens, channels-last) or in three
planes; a pixel alone would mean accesses of two bytes. Pixel by pixel a thread's values are
neighbours, and it reads and writes them itself: a sector of memory is then written in parts, which
the L2 cache puts together, and no thread waits for another.
"""

from fastequi.kernels.backend import tl, triton


@triton.jit
def _quad(ptr, offs, live):
    """Four neighbouring values from offs [T] on, as they lie in memory: [T, 4], or [T, 2] words."""
    if ptr.dtype.element_ty == tl.bfloat16:  # two to a word, which is half a float32 each
        places = (ptr + offs).to(tl.pointer_type(tl.int32))[:, None] + tl.arange(0, 2)[None, :]
    else:
        places = (ptr + offs)[:, None] + tl.arange(0, 4)[None, :]
    if live is None:
        values = tl.load(places)
    else:
        values = tl.load(places, mask=live[:, None], other=0)
    return values


@triton.jit
def _four(values, T: tl.constexpr):
    """Those as four float32 tensors [T]."""
    if values.dtype == tl.int32:
        low, high = tl.split(values)
        x0 = (low << 16).to(tl.float32, bitcast=True)
        x1 = (low & -65536).to(tl.float32, bitcast=True)
        x2 = (high << 16).to(tl.float32, bitcast=True)
        x3 = (high & -65536).to(tl.float32, bitcast=True)
    else:
        even, odd = tl.split(values.to(tl.float32).reshape([T, 2, 2]))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _join4(x0, x1, x2, x3):
    """[T] four times as [T, 2, 2]: the order of columns when reshaped to [T, 4]."""
    return tl.join(tl.join(x0, x2), tl.join(x1, x3))


@triton.jit
def load_group(ptr, offs, stride_c, live, INTERLEAVED: tl.constexpr):
    """Channels of four neighbouring pixels from offs [T] on, as they lie in memory."""
    step = 4 if INTERLEAVED else stride_c
    return _quad(ptr, offs, live), _quad(ptr + step, offs, live), _quad(ptr + 2 * step, offs, live)


@triton.jit
def unpacked(quads, INTERLEAVED: tl.constexpr, T: tl.constexpr):
    """What :func:`load_group` loaded: twelve float32 tensors, pixel by pixel."""
    a0, a1, a2, a3 = _four(quads[0], T)
    b0, b1, b2, b3 = _four(quads[1], T)
    c0, c1, c2, c3 = _four(quads[2], T)
    if INTERLEAVED:
        return a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3
    else:
        return a0, b0, c0, a1, b1, c1, a2, b2, c2, a3, b3, c3


@triton.jit
def store_group(ptr, offs, stride_c, live, v, INTERLEAVED: tl.constexpr, T: tl.constexpr):
    """Writes twelve tensors, pixel by pixel, to where :func:`load_group` reads them."""
    step = 4 if INTERLEAVED else stride_c
    for c in tl.static_range(3):
        if INTERLEAVED:
            group = _join4(v[4 * c], v[4 * c + 1], v[4 * c + 2], v[4 * c + 3])
        else:
            group = _join4(v[c], v[3 + c], v[6 + c], v[9 + c])
        places = (ptr + offs)[:, None] + tl.arange(0, 4)[None, :] + c * step
        values = group.to(ptr.dtype.element_ty).reshape([T, 4])
        if live is None:
            tl.store(places, values)
        else:
            tl.store(places, values, mask=live[:, None])
