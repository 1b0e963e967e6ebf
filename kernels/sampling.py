"""Bilinear sampling at an affine grid: the device functions and the PyTorch lines they equal.

The definition is `F.grid_sample(image, F.affine_grid(theta, size, align), "bilinear", padding,
align)`. Two differences, both so that bad numbers cannot pass for good ones: a θ with a NaN or an
infinity gives NaN (grid_sample gives some pixel under border and reflection), and coordinates are
bounded before they become integers, so no θ reads outside the image. And one by the arithmetic: an
infinite pixel can give NaN where grid_sample gives an infinity.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastequi.kernels.backend import tl, transformed, triton
from fastequi.kernels.constants import constants

MATRIX = 4  # channels at most, of which a colour matrix is read; of more a gain and an offset each
PADDING_MODES = ("zeros", "border", "reflection")  # 0, 1, 2 in C and in aten
# normalised coordinate up to which a point lies in the image, as `EDGE` in C: what float32 rounds
# must not put a border pixel of a flip outside
LAST_INSIDE = 1 + 2.0**-20
EDGE = tl.constexpr(LAST_INSIDE)


@triton.jit
def reflected_index(i, size, FAR: tl.constexpr):
    """Index reflected about the border pixels (the edge is not repeated), any distance away if FAR,
    else within the size."""
    if FAR:
        period = tl.maximum(2 * (size - 1), 1)
        i = tl.abs(i) % period
        i = tl.where(size > 1, tl.minimum(i, period - i), 0)
    else:
        i = size - 1 - tl.abs(size - 1 - tl.abs(i))
    return i


@triton.jit
def _base(i, size, ALIGN: tl.constexpr):
    """Normalised coordinate of output pixel i."""
    if ALIGN:
        step = tl.where(size > 1, 2.0 / tl.maximum(size - 1, 1), 0.0)
        x = i.to(tl.float32) * step - tl.where(size > 1, 1.0, 0.0)
    else:
        x = (2.0 * i.to(tl.float32) + 1.0) / size - 1.0
    return x


@triton.jit
def _to_pixels(x, size, ALIGN: tl.constexpr):
    """Normalised input coordinate to pixels of the source, and its derivative."""
    if ALIGN:
        slope = (size - 1) * 0.5
        out = (x + 1.0) * slope
    else:
        slope = size * 0.5
        out = ((x + 1.0) * size - 1.0) * 0.5
    return out, slope


@triton.jit
def padded(x, size, PADDING: tl.constexpr, ALIGN: tl.constexpr):
    """Coordinate after the padding rule, and the rule's derivative (0, 1 or -1)."""
    slope = tl.full(x.shape, 1.0, tl.float32)
    if PADDING == "reflection":
        low = 0.0 if ALIGN else -0.5
        span = (size - 1) * 1.0 if ALIGN else size * 1.0
        away = tl.abs(x - low)
        safe = tl.maximum(span, 1.0)  # a single pixel with align_corners has no span
        turns = tl.floor(away / safe)
        rest = away - turns * safe
        odd = (turns - 2.0 * tl.floor(turns * 0.5)) != 0.0
        slope = tl.where(odd, -1.0, 1.0) * tl.where(x < low, -1.0, 1.0)
        x = tl.where(odd, span - rest, rest) + low
        x = tl.where(span > 0, x, 0.0)
        slope = tl.where(span > 0, slope, 0.0)
    if PADDING != "zeros":
        inside = (x > 0.0) & (x < size - 1)
        x = tl.where(x > 0.0, tl.where(x < size - 1, x, (size - 1) * 1.0), 0.0)
        slope = tl.where(inside, slope, 0.0)
    return x, slope


@triton.jit
def load_theta(theta_ptr):
    """The six numbers of a matrix, and a poison: 0, or NaN where one of them is not finite."""
    t0 = tl.load(theta_ptr + 0).to(tl.float32)
    t1 = tl.load(theta_ptr + 1).to(tl.float32)
    t2 = tl.load(theta_ptr + 2).to(tl.float32)
    t3 = tl.load(theta_ptr + 3).to(tl.float32)
    t4 = tl.load(theta_ptr + 4).to(tl.float32)
    t5 = tl.load(theta_ptr + 5).to(tl.float32)
    poison = 0.0 * t0 + 0.0 * t1 + 0.0 * t2 + 0.0 * t3 + 0.0 * t4 + 0.0 * t5
    return t0, t1, t2, t3, t4, t5, poison


@triton.jit
def affine_taps(theta_ptr, x, y, H, W, HS, WS, ALIGN: tl.constexpr, PADDING: tl.constexpr):
    """Where output pixels (x, y) sample the source.

    Returns:
        ix, iy: pixels of the source after padding; dx, dy: their derivatives by the normalised
        coordinates; xn, yn: the output's normalised coordinates; outside: the sample point lies
        outside the image; poison: 0, or NaN where θ is not finite.
    """
    t0, t1, t2, t3, t4, t5, poison = load_theta(theta_ptr)
    xn = _base(x, W, ALIGN)
    yn = _base(y, H, ALIGN)
    xs = t0 * xn + t1 * yn + t2
    ys = t3 * xn + t4 * yn + t5
    outside = (tl.abs(xs) > EDGE) | (tl.abs(ys) > EDGE)
    ix, sx = _to_pixels(xs, WS, ALIGN)
    iy, sy = _to_pixels(ys, HS, ALIGN)
    ix, px = padded(ix, WS, PADDING, ALIGN)
    iy, py = padded(iy, HS, PADDING, ALIGN)
    return ix, iy, sx * px, sy * py, xn, yn, outside, poison


@triton.jit
def bilinear(ptr, ix, iy, HS, WS, stride_y, stride_x, live):
    """The four taps of one channel: value, and its derivatives by ix and iy."""
    fx = tl.floor(ix)
    fy = tl.floor(iy)
    wx = ix - fx
    wy = iy - fy
    # comparisons are false for NaN, so only indices inside the image are ever converted
    x0_in = live & (fx >= 0.0) & (fx < WS)
    x1_in = live & (fx >= -1.0) & (fx < WS - 1)
    y0_in = (fy >= 0.0) & (fy < HS)
    y1_in = (fy >= -1.0) & (fy < HS - 1)
    x0 = tl.where(x0_in | x1_in, fx, 0.0).to(tl.int32)
    y0 = tl.where(y0_in | y1_in, fy, 0.0).to(tl.int32)
    row0 = y0 * stride_y
    row1 = row0 + stride_y
    col0 = x0 * stride_x
    col1 = col0 + stride_x
    v00 = tl.load(ptr + row0 + col0, mask=x0_in & y0_in, other=0).to(tl.float32)
    v01 = tl.load(ptr + row0 + col1, mask=x1_in & y0_in, other=0).to(tl.float32)
    v10 = tl.load(ptr + row1 + col0, mask=x0_in & y1_in, other=0).to(tl.float32)
    v11 = tl.load(ptr + row1 + col1, mask=x1_in & y1_in, other=0).to(tl.float32)
    top = v00 + wx * (v01 - v00)
    bottom = v10 + wx * (v11 - v10)
    d_ix = (v01 - v00) + wy * ((v11 - v10) - (v01 - v00))
    return top + wy * (bottom - top), d_ix, bottom - top


def base_grid(size: tuple[int, int], align_corners: bool, like: Tensor) -> Tensor:
    """[3, H·W] homogeneous normalised coordinates (x, y, 1) of the output's pixels."""
    axes = []
    for n in (size[1], size[0]):
        if align_corners:
            wide = torch.linspace(-1, 1, n, dtype=torch.float64)
            axes.append(wide if n > 1 else torch.zeros_like(wide))
        else:
            axes.append((torch.arange(n, dtype=torch.float64) * 2 + 1) / n - 1)
    x, y = (axis.to(like.device, like.dtype) for axis in axes)
    x, y = x.expand(size).flatten(), y[:, None].expand(size).flatten()
    return torch.stack([x, y, torch.ones_like(x)])


def bounded(theta: Tensor) -> Tensor:
    """θ as grid_sample can bear it: its backward reads outside the image at NaN under border and
    reflection, and so may end the process. Who calls this poisons what was not finite."""
    return theta.nan_to_num(0.0, 1e30, -1e30).clamp(-1e30, 1e30)


def sample_ref(
    image: Tensor,
    theta: Tensor,
    size: tuple[int, int],
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Tensor:
    """Bilinear samples [B, K, C, H, W] of float images [B, C, Hs, Ws] at θ [B, K, 2, 3]."""
    batch, steps = theta.shape[:2]
    channels, (height, width) = image.shape[1], size
    if theta.numel() == 0:
        empty = image.new_zeros(batch, steps, channels, height, width)
        return empty + 0 * (image.sum() + theta.sum())  # a part of the graph
    shape = [batch * steps, channels, height, width]
    grid = F.affine_grid(bounded(theta.flatten(0, 1)), shape, align_corners)
    # the steps of one image stacked along height, so that the image is not repeated
    grid = grid.view(batch, steps * height, width, 2)
    if transformed():  # PyTorch 2.11 has no vmap over the gradient by a grid alone; 2.12.1 has
        none = torch.zeros((), dtype=torch.bool, device=grid.device)
        image = image + torch.where(none, grid.sum(), 0.0)  # 0, whatever θ is
    out = F.grid_sample(image, grid, "bilinear", padding_mode, align_corners)
    out = out.view(batch, channels, steps, height, width).transpose(1, 2)
    if torch.compiler.is_compiling():  # aot_eager takes the strides of its gradient for others
        out = out.contiguous()
    poison = (theta * 0).sum((-1, -2))  # NaN where θ is not finite
    return out + poison[:, :, None, None, None]


def color_ref(
    sampled: Tensor,
    color: Tensor | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Tensor:
    """Colour, then normalisation, of samples [B, K, C, H, W] in 0..1.

    The colour is a matrix [B, K, C, C + 1], or a gain and an offset each [B, K, C, 2].
    """
    if color is not None:
        color = color.to(sampled.dtype)
        if is_gain(color, sampled.shape[2]):
            sampled = sampled * color[..., 0, None, None]
        else:
            sampled = mix(color[..., :-1], sampled)
        sampled = sampled + color[..., -1, None, None]
    if mean is not None and std is not None:
        mean_t = constants(tuple(mean), sampled.device, sampled.dtype)[:, None, None]
        std_t = constants(tuple(std), sampled.device, sampled.dtype)[:, None, None]
        sampled = (sampled - mean_t) / std_t
    return sampled


def mix(matrix: Tensor, values: Tensor) -> Tensor:
    """Σ_j matrix[b, k, i, j] values[b, k, j]: [B, K, C, H, W] both. einsum has no rule for batches
    of gradients (is_grads_batched)."""
    shape = values.shape
    return (matrix @ values.reshape(*shape[:3], shape[3] * shape[4])).reshape(shape)


LARGEST = {torch.uint8: 255, torch.uint16: 65535}


def unit(dtype: torch.dtype) -> float:
    """What images of a type are multiplied by to lie in 0..1; floating ones do already."""
    return 1 / LARGEST.get(dtype, 1)


def to_float(image: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 0..255 and uint16 0..65535 to floats 0..1; other images cast."""
    largest = LARGEST.get(image.dtype)
    return image.to(dtype) / largest if largest else image.to(dtype)


def expect_narrow(name: str, tensor: Tensor, within: int) -> None:
    """Raises ValueError where places within an image pass 2^31, in which the kernels count.

    Args:
        within: the first axis of an image.
    """
    last = sum(
        (n - 1) * abs(s)
        for n, s in zip(tensor.shape[within:], tensor.stride()[within:], strict=True)
    )
    if last >= 2**31:
        shape = tuple(tensor.shape[within:])
        raise ValueError(f"{name}: expected places below 2^31 within an image, got {shape}")


def is_gain(color: Tensor, channels: int) -> bool:
    """Whether a colour [..., C, 2] is a gain and an offset of each channel, no matrix of C + 1."""
    return channels > 1 and color.shape[-1] == 2


def as_matrices(color: Tensor | None, channels: int) -> Tensor | None:
    """Gains and offsets of up to four channels as the matrices that kernels read for those."""
    if color is None or channels > MATRIX or not is_gain(color, channels):
        return color
    return torch.cat([torch.diag_embed(color[..., 0]), color[..., 1:]], -1)
