"""Interleaved uint8 images, read a texel at a time: the device functions.

An image whose channels lie side by side (channels-last, three bytes a texel, or four with one
unused) gives up all three channels of a bilinear tap in one 32-bit load. With four bytes a texel
the taps of one row are two words; with three they begin at any byte, and lie in two words or, in a
quarter of all cases, three.

A byte becomes a float without a conversion instruction, which run at an eighth of the rate: one
byte permutation puts it into the mantissa of 1.0, and gives 1 + byte / 2^15. Where the weights of
the taps sum to one the 1 is a constant of the target and costs nothing; elsewhere their sum is
subtracted. Half precision predictions take these as they are (the error is below a hundredth of a
grey level); for float32 the byte goes to the end of 2^23's mantissa and comes out exact, for one
more addition.
"""

from functools import lru_cache

import torch
from torch import Tensor

from fastequi.kernels.backend import INTERPRETED, tl, triton
from fastequi.kernels.sampling import load_theta

try:
    from triton.language.extra.cuda.libdevice import byte_perm
except Exception:  # without Triton nothing here is ever called
    byte_perm = None

_LONGEST = 2**15  # a side's pixels: float32 then places them to a few thousandths of a pixel

if INTERPRETED:

    @triton.jit
    def _byte(word, at: tl.constexpr, EXACT: tl.constexpr):
        """What the permutations below give, for the interpreter, which has none."""
        byte = (word >> (8 * at)) & 255
        if EXACT:
            out = (byte | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
        else:
            out = ((byte << 8) | 0x3F800000).to(tl.float32, bitcast=True)
        return out

else:

    @triton.jit
    def _byte(word, at: tl.constexpr, EXACT: tl.constexpr):
        """Byte `at` of a word as a float: the byte itself, or 1 + byte / 2^15."""
        if EXACT:
            out = byte_perm(word, 0x4B000000, 0x7650 + at).to(tl.float32, bitcast=True) - 8388608.0
        else:
            out = byte_perm(word, 0x3F80, 0x5406 + 16 * at).to(tl.float32, bitcast=True)
        return out


@triton.jit
def _funnel(low, high, skip):
    """Four of the eight bytes of two words, from the skip-th on."""
    both = (high.to(tl.uint64) << 32) | low.to(tl.uint32, bitcast=True).to(tl.uint64)
    return (both >> (8 * skip).to(tl.uint64)).to(tl.int32)


@triton.jit
def _pair(ptr, skip, TEXEL: tl.constexpr, EXACT: tl.constexpr):
    """Channels of the texel `skip` bytes after the word at ptr, and of the one to its right."""
    first = tl.load(ptr)
    second = tl.load(ptr + 1)
    if TEXEL == 4:
        r0 = _byte(first, 0, EXACT)
        g0 = _byte(first, 1, EXACT)
        b0 = _byte(first, 2, EXACT)
        r1 = _byte(second, 0, EXACT)
        g1 = _byte(second, 1, EXACT)
        b1 = _byte(second, 2, EXACT)
    else:
        third = tl.load(ptr + 2, mask=skip == 3, other=0)
        left = _funnel(first, second, skip)  # r0 g0 b0 r1
        right = _funnel(second, third, skip)  # g1 b1
        r0 = _byte(left, 0, EXACT)
        g0 = _byte(left, 1, EXACT)
        b0 = _byte(left, 2, EXACT)
        r1 = _byte(left, 3, EXACT)
        g1 = _byte(right, 0, EXACT)
        b1 = _byte(right, 1, EXACT)
    return r0, g0, b0, r1, g1, b1


@triton.jit
def _word(image, offset, TEXEL: tl.constexpr):
    """The word that holds a byte of an image, as a pointer, and the byte's place in it."""
    skip = offset & 3
    if TEXEL == 3:
        offset = offset - skip
    return (image + offset).to(tl.pointer_type(tl.int32)), skip


@triton.jit
def _hat(x, top):
    """The lower of two taps around x, within 0..top, and both weights, 0 if out of reach."""
    low = tl.floor(x)
    low = tl.where(low > 0.0, tl.where(low < top, low, top), 0.0)  # NaN becomes 0
    left = 1.0 - tl.abs(x - low)
    right = 1.0 - tl.abs(x - (low + 1.0))
    return low, tl.where(left > 0.0, left, 0.0), tl.where(right > 0.0, right, 0.0)


@triton.jit
def _sample(
    image, ix, iy, HS, WS, row, start,
    TEXEL: tl.constexpr, WHOLE_ROWS: tl.constexpr, EXACT: tl.constexpr, INSIDE: tl.constexpr,
):  # fmt: skip
    """Bilinear samples at pixels (ix, iy) of an image that is zero outside, in UNITs, plus `start`.

    Args:
        image: the image's first byte.
        row: bytes from row to row.
        start: what is added to each channel.
        WHOLE_ROWS: a row's bytes are whole words.
        INSIDE: all taps are known to lie inside, where their weights sum to one.
    """
    r, g, b = start
    if INSIDE:
        if not EXACT:
            r -= 1.0
            g -= 1.0
            b -= 1.0
        x = tl.floor(ix)
        y = tl.floor(iy)
        right = ix - x
        lower = iy - y
        w11 = right * lower
        w01 = right - w11
        w10 = lower - w11
        w00 = (1.0 - right) - w10
    else:
        x, left, right = _hat(ix, WS - 2.0)
        y, upper, lower = _hat(iy, HS - 2.0)
        w00 = left * upper
        w01 = right * upper
        w10 = left * lower
        w11 = right * lower
    offset = y.to(tl.int32) * row + x.to(tl.int32) * TEXEL
    upper_ptr, skip = _word(image, offset, TEXEL)
    r00, g00, b00, r01, g01, b01 = _pair(upper_ptr, skip, TEXEL, EXACT)
    if WHOLE_ROWS:
        lower_ptr = (upper_ptr.to(tl.pointer_type(tl.uint8)) + row).to(tl.pointer_type(tl.int32))
    else:
        lower_ptr, skip = _word(image, offset + row, TEXEL)
    r10, g10, b10, r11, g11, b11 = _pair(lower_ptr, skip, TEXEL, EXACT)
    r = r + w00 * r00 + w01 * r01 + w10 * r10 + w11 * r11
    g = g + w00 * g00 + w01 * g01 + w10 * g10 + w11 * g11
    b = b + w00 * b00 + w01 * b01 + w10 * b10 + w11 * b11
    if not INSIDE and not EXACT:
        weights = (left + right) * (upper + lower)
        r -= weights
        g -= weights
        b -= weights
    return r, g, b


@triton.jit
def pixel_affine(theta_ptr, H, W, HS, WS, ALIGN: tl.constexpr):
    """θ in pixels between centres: ix - (WS-1)/2 = a0 (x - cx) + a1 (y - cy) + a2; iy with a3..a5.

    Returns (a0..a5, cx, cy, poison: 0, or NaN where θ is not finite).
    """
    t0, t1, t2, t3, t4, t5, poison = load_theta(theta_ptr)
    # pixels of the source per normalised unit, and of the output
    unit_x = (WS - 1) * 0.5 if ALIGN else WS * 0.5
    unit_y = (HS - 1) * 0.5 if ALIGN else HS * 0.5
    span_x = tl.maximum(W - 1, 1) * 0.5 if ALIGN else W * 0.5
    span_y = tl.maximum(H - 1, 1) * 0.5 if ALIGN else H * 0.5
    a0 = t0 * (unit_x / span_x)
    a1 = t1 * (unit_x / span_y)
    a2 = t2 * unit_x
    a3 = t3 * (unit_y / span_x)
    a4 = t4 * (unit_y / span_y)
    a5 = t5 * unit_y
    return a0, a1, a2, a3, a4, a5, (W - 1) * 0.5, (H - 1) * 0.5, poison


@triton.jit
def room(a0, a1, a3, a4, HS, WS, mid_w, mid_h):
    """How far from the source's centre a tile's middle may lie for all of its taps to lie inside.

    mid_w and mid_h are half a tile; a sixteenth of a pixel is kept for rounding, which it covers
    for sides below _LONGEST.
    """
    room_x = (WS - 1) * 0.5 - tl.abs(a0) * mid_w - tl.abs(a1) * mid_h - 0.0625
    room_y = (HS - 1) * 0.5 - tl.abs(a3) * mid_w - tl.abs(a4) * mid_h - 0.0625
    return room_x, room_y


@triton.jit
def target_constants(
    color_ptr, mean0, mean1, mean2, gain0, gain1, gain2, poison,
    EXACT: tl.constexpr, HAS_COLOR: tl.constexpr,
):  # fmt: skip
    """Of targets (color · x - mean) · gain: the matrix and bias for samples, and their start."""
    UNIT: tl.constexpr = 1 / 255 if EXACT else 32768 / 255  # one of `_byte`, in 0..1
    if HAS_COLOR:
        m = (
            tl.load(color_ptr) * gain0 * UNIT,
            tl.load(color_ptr + 1) * gain0 * UNIT,
            tl.load(color_ptr + 2) * gain0 * UNIT,
            tl.load(color_ptr + 4) * gain1 * UNIT,
            tl.load(color_ptr + 5) * gain1 * UNIT,
            tl.load(color_ptr + 6) * gain1 * UNIT,
            tl.load(color_ptr + 8) * gain2 * UNIT,
            tl.load(color_ptr + 9) * gain2 * UNIT,
            tl.load(color_ptr + 10) * gain2 * UNIT,
        )
        bias = (
            (tl.load(color_ptr + 3) - mean0) * gain0 + poison,
            (tl.load(color_ptr + 7) - mean1) * gain1 + poison,
            (tl.load(color_ptr + 11) - mean2) * gain2 + poison,
        )
        start = (0.0, 0.0, 0.0)
    else:
        m = (gain0 * UNIT, gain1 * UNIT, gain2 * UNIT)  # type: ignore[assignment]
        bias = (0.0, 0.0, 0.0)
        start = (poison - mean0 / UNIT, poison - mean1 / UNIT, poison - mean2 / UNIT)
    return m, bias, start


@triton.jit
def packed_target(
    image, ix, iy, HS, WS, row, m, bias, start,
    TEXEL: tl.constexpr, WHOLE_ROWS: tl.constexpr, EXACT: tl.constexpr, INSIDE: tl.constexpr,
    HAS_COLOR: tl.constexpr,
):  # fmt: skip
    """Sampled, recoloured, normalised: three channels at pixels (ix, iy); see `_sample`."""
    r, g, b = _sample(image, ix, iy, HS, WS, row, start, TEXEL, WHOLE_ROWS, EXACT, INSIDE)
    if HAS_COLOR:
        v0 = m[0] * r + m[1] * g + m[2] * b + bias[0]
        v1 = m[3] * r + m[4] * g + m[5] * b + bias[1]
        v2 = m[6] * r + m[7] * g + m[8] * b + bias[2]
    else:
        v0 = m[0] * r
        v1 = m[1] * g
        v2 = m[2] * b
    return v0, v1, v2


def interleaved(image: Tensor) -> int:
    """Bytes per texel, 3 or 4, of an image [B, 3, H, W] that these functions read, else 0.

    Each image must begin at a word; taps come in pairs, so two texels a side are the least; their
    places are computed in float32, whose rounding `room` allows for, and in 32-bit integers.
    """
    if image.itemsize != 1 or image.shape[1] != 3:
        return 0
    height, width = image.shape[2:]
    per_image, per_channel, per_row, texel = image.stride()
    laid_out = per_channel == 1 and texel in (3, 4) and per_row > 0
    aligned = image.data_ptr() % 4 == 0 and (per_image % 4 == 0 or len(image) == 1)
    aligned = aligned and (texel == 3 or per_row % 4 == 0)
    small = min(height, width) >= 2 and max(height, width) < _LONGEST and height * per_row < 2**31
    return texel if laid_out and aligned and small else 0


def registers(capability: int, exact: bool, color: bool, plain: int = 80) -> int:
    """Of a thread: so few that no variant spills (Triton 3.6 to 3.8, compute capability 8 to 10).

    A multiprocessor has room for 32 warps of 64 registers, 24 of 80, 20 of 96, 18 of 112, 16 of
    128. `plain`: of half precision without colour, before capability 10.
    """
    newer = capability >= 10
    return (112 if color else 96 if exact else 80 if newer else plain) + (16 if newer else 0)


@lru_cache
def capability(device: torch.device) -> int:
    """A GPU's compute capability, its first number."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
