"""K independent decoders from the two views' z_equi tokens to the images between them.

The paper's decoder is one linear layer and four convolutions per step. The K decoders run as one
set of operations: their linear layers stacked into one GEMM, their convolutions grouped. In
channels-last memory a token row already holds its patch, so the prediction is a view, not a copy.

A decoder that ends in a linear layer has it as `last` (:class:`StepLinear`), and gives what goes
into it by `hidden(z)`; `fastequi.linear_warp_recon_loss` computes that layer and the loss together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.functional import arguments
from fastequi.kernels.overlap import overlap_add

if TYPE_CHECKING:
    from typing_extensions import Self


class StepLinear(nn.Module):
    """A linear layer for each of K steps, to the pixels of a patch or of a window around it.

    It is trained in the patch's cosine transform, whose coefficients fall with the frequency in
    images as they do in :func:`cosine_patterns`: AdamW, which moves all weights alike, then moves
    each in proportion to its part of an image. The function is that of any linear layer.

    With an `overlap` the patterns go on beyond the patch and fade there, and windows of neighbours
    are added up: as many coefficients as without, and no edges of patches in the image.

    Args:
        num_steps: K.
        in_dim: channels of the tokens.
        patch_size, in_chans: p, and the channels of the images.
        overlap: o, pixels by which a window reaches beyond its patch, at most p/2.

    Attributes:
        coefficients: [K, p·p·C, in_dim], trained, of patterns in order (u v k).
        patterns: [w·w, p·p], fixed, of places; w = p + 2·o.
        channels: [C, C], fixed, the cosine transform of the channels.
        weight: [K, w·w·C, in_dim], of pixels in order (p q c): patterns ⊗ channels · coefficients.
        bias: [K, w·w·C], of pixels.
    """

    patterns: Tensor
    channels: Tensor

    def __init__(
        self, num_steps: int, in_dim: int, patch_size: int, in_chans: int, overlap: int = 0
    ) -> None:
        super().__init__()
        self.patch_size, self.in_chans = patch_size, in_chans
        self.overlap = arguments.integer("overlap", overlap, 0, patch_size // 2)
        count = patch_size**2 * in_chans
        self.coefficients = nn.Parameter(torch.empty(num_steps, count, in_dim))
        for name, fixed in zip(("patterns", "channels"), self._fixed(), strict=True):
            # of numbers that are known no checkpoint has to hold them
            self.register_buffer(name, fixed.to(self.coefficients.device), persistent=False)
        self.bias = nn.Parameter(torch.zeros(num_steps, len(self.patterns) * in_chans))
        for one in self.coefficients:
            nn.init.xavier_uniform_(one)

    def _fixed(self) -> tuple[Tensor, Tensor]:
        """Patterns and channels, with memory even where the default device has none."""
        found = cosine_patterns(self.patch_size, self.overlap), cosines(self.in_chans)
        patterns, channels = (one.to(torch.get_default_dtype()) for one in found)
        return patterns, channels

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moved or cast, the fixed tensors are made again: `to_empty` leaves them without values,
        a half type rounds them, and no checkpoint brings them back."""
        super()._apply(fn, recurse)
        self._fix()
        return self

    def _fix(self) -> None:
        """Patterns and channels where the coefficients are."""
        place, dtype = self.coefficients.device, self.coefficients.dtype
        self.patterns, self.channels = (one.to(place, dtype) for one in self._fixed())

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Takes a plain layer's weight, of a patch's pixels, as well: the same function; and what
        was saved with the product of patterns and channels as `basis`."""
        basis = state.pop(f"{prefix}basis", None)
        if isinstance(basis, Tensor) and not basis.is_meta:
            patterns, channels = self._fixed()
            ours = torch.kron(patterns, channels).to(basis)
            if basis.shape != ours.shape or not torch.allclose(basis, ours, rtol=1e-2, atol=1e-4):
                rest[-1].append(f"{prefix}basis: saved with other patterns than this layer's")
        known = self.overlap or f"{prefix}coefficients" in state
        weight = None if known else state.pop(f"{prefix}weight", None)
        if weight is not None and weight.shape != self.coefficients.shape:
            expected, got = tuple(self.coefficients.shape), tuple(weight.shape)
            rest[-1].append(f"{prefix}weight: expected {expected}, got {got}")
        elif weight is not None:
            patterns, channels = (one.to(weight) for one in self._fixed())
            inverse = (patterns / patterns.square().sum(0)).T  # of orthogonal columns
            state[f"{prefix}coefficients"] = _product(inverse, channels.T, weight)
        super()._load_from_state_dict(state, prefix, *rest)
        self._fix()  # where the coefficients of the state are, perhaps

    @property
    def weight(self) -> Tensor:
        kind = self.patterns.device.type
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return _product(self.patterns, self.channels, self.coefficients)
        with torch.autocast(kind, enabled=False):  # weights are rounded once, by who uses them
            return _product(self.patterns, self.channels, self.coefficients)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, K, L, in_dim] of a square grid to [B, K, L, p·p·C]."""
        rows = torch.einsum("bkld,kpd->bklp", hidden, self.weight)
        rows = rows + self.bias[:, None].to(rows.dtype)
        if not self.overlap:
            return rows
        return overlap_add(rows, square(rows.shape[2]), self.patch_size, self.overlap)


def _product(patterns: Tensor, channels: Tensor, coefficients: Tensor) -> Tensor:
    """[K, x·C, D]: patterns [x, y] ⊗ channels [C, C] · coefficients [K, y·C, D]."""
    values = coefficients.unflatten(1, (-1, len(channels)))
    if len(channels) > 1:
        values = channels @ values
    return (patterns @ values.flatten(2)).view(len(values), -1, values.shape[3])


_MOST_PIXELS = 1 << 14  # of a window; the patterns take the square


def cosine_patterns(patch_size: int, overlap: int = 0) -> Tensor:
    """[w·w, p·p] float64: pixels (p q) of the cosine transform's patterns (DCT-II of both axes).

    A pattern of frequencies u, v has the norm 1 / (1 + √(u² + v²)) in its patch, as amplitudes in
    natural images fall (Field, JOSA A 1987). In a window, w = p + 2·o px wide, it goes on by o
    pixels on every side, and falls to zero over the 2·o around the patch's edge as a squared sine,
    which adds up to one with the neighbour's.
    """
    window = patch_size + 2 * overlap
    if window**2 > _MOST_PIXELS:
        most = math.isqrt(_MOST_PIXELS) - 2 * overlap
        raise ValueError(
            f"patch_size: expected at most {most} with an overlap of {overlap}, got {patch_size}"
        )
    side = cosines(patch_size, overlap)
    patterns = torch.einsum("pu,qv->pquv", side, side)
    u = torch.arange(patch_size, dtype=torch.float64, device="cpu")
    frequency = (u[:, None] ** 2 + u[None, :] ** 2).sqrt()
    return (patterns / (1 + frequency)).reshape(window**2, -1)


def cosines(n: int, over: int = 0) -> Tensor:
    """[n + 2·over, n]: the orthonormal DCT-II's patterns, which go on and fade, in float64."""
    x = torch.arange(-over, n + over, dtype=torch.float64, device="cpu") + 0.5
    k = torch.arange(n, dtype=torch.float64, device="cpu")
    columns = torch.cos(torch.pi * x[:, None] * k / n)
    columns = columns / columns[over : n + over].norm(dim=0)
    if not over:
        return columns
    inside = torch.minimum(x, n - x).clamp(-over, over) / over  # of the edge: -1 .. 1
    return columns * torch.sin(torch.pi / 4 * (1 + inside))[:, None] ** 2


class PathDecoder(nn.Module):
    """Linear to `width` channels per step, convolutions on the token grid, patch tokens out.

    Args:
        in_dim: channels of [z1_equi ; z2_equi].
        patch_size: p, side of the predicted patches in pixels.
        num_steps: K.
        width: channels of one decoder.
        num_convs: convolutions, the last of which gives the p·p·C patch; 4 in the paper. With 0
            a second linear layer, `last`, gives it.
        in_chans: C, channels of the images.
        kernel_size: of the convolutions, odd.
        overlap: of the windows that `last` makes, see :class:`StepLinear`; 0 with convolutions.
    """

    def __init__(
        self,
        in_dim: int,
        patch_size: int,
        num_steps: int = 2,
        width: int = 256,
        num_convs: int = 4,
        in_chans: int = 3,
        kernel_size: int = 3,
        overlap: int = 0,
    ) -> None:
        super().__init__()
        expect_sizes(
            in_dim=in_dim,
            patch_size=patch_size,
            num_steps=num_steps,
            width=width,
            in_chans=in_chans,
            kernel_size=kernel_size,
        )
        arguments.integer("num_convs", num_convs, 0)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        self.num_steps, self.patch_dim = num_steps, patch_size**2 * in_chans
        self.linear = nn.Linear(in_dim, num_steps * width)
        self.last: StepLinear | None = None
        if not num_convs:
            self.last = StepLinear(num_steps, width, patch_size, in_chans, overlap)
        elif overlap:
            raise ValueError(f"overlap: expected 0 with convolutions, got {overlap}")
        self.convs = nn.Sequential()
        for i, out in enumerate([width] * (num_convs - 1) + [self.patch_dim] * bool(num_convs)):
            if i:
                self.convs.append(nn.GELU())
            channels = num_steps * width, num_steps * out
            conv = nn.Conv2d(*channels, kernel_size, padding=kernel_size // 2, groups=num_steps)
            self.convs.append(conv)
        _channels_last(self.convs)

    def hidden(self, z: Tensor) -> Tensor:
        """What `last` takes: [B, L, in_dim] tokens to [B, K, L, width]."""
        x = F.gelu(self.linear(z)).unflatten(2, (self.num_steps, -1))
        return x.transpose(1, 2)

    def forward(self, z: Tensor) -> Tensor:
        """[B, L, in_dim] tokens of a square grid to [B, K, L, p·p·C] in order (p q c)."""
        if self.last is not None:
            return self.last(self.hidden(z))
        x = self.linear(z).transpose(1, 2).unflatten(2, square(z.shape[1]))
        x = _convolved(self.convs, x, self.num_steps).contiguous(memory_format=torch.channels_last)
        x = x.permute(0, 2, 3, 1).flatten(1, 2)
        return x.unflatten(2, (self.num_steps, self.patch_dim)).transpose(1, 2)


class PixelShuffleDecoder(nn.Module):
    """Doubles the resolution once per factor of two in the patch size: conv, shuffle, GELU.

    The alternative to :class:`PathDecoder` that predicts images; `width` halves at every stage.

    Args:
        in_dim, patch_size, num_steps, width, in_chans: as there; patch_size a power of two.
        num_convs: convolutions on the token grid before the first doubling.
    """

    def __init__(
        self,
        in_dim: int,
        patch_size: int,
        num_steps: int = 2,
        width: int = 256,
        num_convs: int = 0,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        expect_sizes(in_dim=in_dim, num_steps=num_steps, width=width, in_chans=in_chans)
        arguments.integer("num_convs", num_convs, 0)
        arguments.integer("patch_size", patch_size, 2)
        stages = round(math.log2(patch_size))
        if 2**stages != patch_size:
            raise ValueError(f"patch_size: expected a power of two, got {patch_size}")
        self.num_steps, self.in_chans = num_steps, in_chans
        self.linear = nn.Linear(in_dim, num_steps * width)
        self.convs = nn.Sequential()

        def conv(dim: int, out: int) -> nn.Conv2d:
            return nn.Conv2d(num_steps * dim, num_steps * out, 3, padding=1, groups=num_steps)

        for _ in range(num_convs):
            self.convs.extend([nn.GELU(), conv(width, width)])
        for stage in range(stages):
            out = in_chans if stage == stages - 1 else max(width // 2, 8)
            self.convs.extend([nn.GELU(), conv(width, 4 * out), nn.PixelShuffle(2)])
            width = out
        _channels_last(self.convs)

    def forward(self, z: Tensor) -> Tensor:
        """[B, L, in_dim] tokens of a square grid to images [B, K, C, H, W]."""
        x = self.linear(z).transpose(1, 2).unflatten(2, square(z.shape[1]))
        x = _convolved(self.convs, x, self.num_steps)
        return x.unflatten(1, (self.num_steps, self.in_chans))


def expect_sizes(**values: int) -> None:
    """Raises TypeError or ValueError, with the argument's name, unless all are integers >= 1."""
    for name, value in values.items():
        arguments.integer(name, value)


def _convolved(convs: nn.Sequential, x: Tensor, num_steps: int) -> Tensor:
    """What the layers give, whose convolutions have a group of channels a step.

    On a GPU a step at a time: for groups cuDNN's gradients by the weights take four times as long
    (the paper's decoder, B=128, forward and backward in bfloat16 on an H200: 11.8 ms, so 3.2).
    """
    if not x.is_cuda or num_steps == 1:
        found: Tensor = convs(x)
        return found
    return torch.cat([_of_step(convs, x, k, num_steps) for k in range(num_steps)], 1)


def _of_step(convs: nn.Sequential, x: Tensor, step: int, num_steps: int) -> Tensor:
    x = x.chunk(num_steps, 1)[step].contiguous(memory_format=torch.channels_last)
    for layer in convs:
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.chunk(num_steps)[step]
            bias = None if layer.bias is None else layer.bias.chunk(num_steps)[step]
            x = F.conv2d(x, weight, bias, padding=layer.padding)
        else:
            x = layer(x)
    return x


def _channels_last(convs: nn.Sequential) -> None:
    for layer in convs:
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def square(tokens: int) -> tuple[int, int]:
    """Height and width of a square grid of so many tokens."""
    side = 1
    while side * side < tokens:  # torch.compile follows comparisons of a size, not math.isqrt
        side += 1
    if side * side != tokens:
        raise ValueError(f"z: expected a square number of tokens, got {tokens}")
    return side, side
