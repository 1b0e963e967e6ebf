"""A transformer block on the tokens of groups of images.

Groups may differ in their numbers of tokens (multi-crop): what works on single tokens takes all of
them as one matrix, attention stays within an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastequi.models.attention import attention, self_attention
from fastequi.models.mlp import make_mlp
from fastequi.models.rope import Rotation, rotate

Size = tuple[int, int]
"""Images of a group and tokens of each."""

Rotations = Sequence[Rotation] | None
"""Of every group, or None: positions are not rotary."""


@dataclass(frozen=True)
class BlockShape:
    """What all blocks of a transformer have in common.

    Attributes:
        dim: channels.
        num_heads: attention heads.
        hidden: hidden channels of the MLP.
        mlp: its kind, of `fastequi.models.mlp`.
        qkv_bias: queries, keys and values have a bias.
        init_values: initial LayerScale gain; None leaves LayerScale out.
        norm_eps: epsilon of the norms.
        attention: backend of `fastequi.models.attention`.
    """

    dim: int
    num_heads: int
    hidden: int
    mlp: str = "gelu"
    qkv_bias: bool = True
    init_values: float | None = None
    norm_eps: float = 1e-6
    attention: str = "auto"


class Block(nn.Module):
    """x + ls(attn(norm x)); x + ls(mlp(norm x)), each residual dropped per sample by drop path."""

    def __init__(self, shape: BlockShape, drop_path: float = 0.0) -> None:
        super().__init__()
        dim, gain = shape.dim, shape.init_values
        self.norm1 = nn.LayerNorm(dim, eps=shape.norm_eps)
        self.attn = Attention(dim, shape.num_heads, shape.qkv_bias, shape.attention)
        self.ls1 = LayerScale(dim, gain) if gain is not None else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=shape.norm_eps)
        self.mlp = make_mlp(shape.mlp, dim, shape.hidden)
        self.ls2 = LayerScale(dim, gain) if gain is not None else nn.Identity()
        self.drop_path = drop_path

    def forward(self, x: Tensor, sizes: Sequence[Size], rotations: Rotations = None) -> Tensor:
        """x: [Σ B_i N_i, D], the tokens of groups of images, whose (B_i, N_i) are `sizes`."""
        x = x + self._drop(self.ls1(self.attn(self.norm1(x), sizes, rotations)), sizes)
        return x + self._drop(self.ls2(self.mlp(self.norm2(x))), sizes)

    def _drop(self, residual: Tensor, sizes: Sequence[Size]) -> Tensor:
        if not self.training or self.drop_path == 0:
            return residual
        keep = 1 - self.drop_path
        masks = [
            residual.new_empty(images, 1).bernoulli_(keep).expand(-1, tokens).reshape(-1, 1)
            for images, tokens in sizes
        ]
        return residual * (torch.cat(masks) / keep)


class Attention(nn.Module):
    """Multi-head self-attention with one qkv projection."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, backend: str) -> None:
        super().__init__()
        self.num_heads, self.backend = num_heads, backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, sizes: Sequence[Size], rotations: Rotations = None) -> Tensor:
        mixed = []
        for i, (part, size) in enumerate(parts(self.qkv(x), sizes)):
            if rotations is None:
                found = self_attention(self.packed(part, size), backend=self.backend)
            else:
                found = attention(*self.heads(part, size, rotations[i]), backend=self.backend)
            mixed.append(found.flatten(2).flatten(0, 1))
        return self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    def packed(self, projected: Tensor, size: Size) -> Tensor:
        """A group's rows [B N, 3 H D] of `qkv` as [B, N, 3, H, D]."""
        head_dim = projected.shape[-1] // (3 * self.num_heads)
        return projected.reshape(*size, 3, self.num_heads, head_dim)

    def heads(
        self, projected: Tensor, size: Size, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values [B, N, H, D] of a group's rows [B N, 3 H D] of `qkv`."""
        qkv = self.packed(projected, size)
        if rotation is None:
            q, k, v = qkv.unbind(2)
        else:
            q, k = rotate(qkv[:, :, :2], rotation).unbind(2)
            v = qkv[:, :, 2]
        return q, k, v


class LayerScale(nn.Module):
    """A learned gain per channel."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def parts(x: Tensor, sizes: Sequence[Size]) -> Iterator[tuple[Tensor, Size]]:
    """The rows of every group."""
    if len(sizes) == 1:
        return iter([(x, sizes[0])])
    return zip(x.split([images * tokens for images, tokens in sizes]), sizes, strict=True)
