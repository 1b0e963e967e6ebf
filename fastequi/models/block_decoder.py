"""A decoder of transformer blocks: every patch of a reconstruction can see all of both views.

The blocks work on the grid of tokens, one token for each place, made of both views' tokens there;
the last layer of every step is linear, so that it can be computed together with the loss. (The
shape of MAE's decoder: He et al., CVPR 2022, which also has fixed sine-cosine positions.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastequi.functional import arguments
from fastequi.models.decoder import StepLinear, expect_sizes, square
from fastequi.models.positions import sine_cosine
from fastequi.models.transformer import Block, BlockShape


class BlockDecoder(nn.Module):
    """Linear, positions, pre-norm transformer blocks, norm; then a linear layer for every step.

    Args:
        in_dim: channels of [z1_equi ; z2_equi].
        patch_size: p, side of the predicted patches in pixels.
        num_steps: K.
        width: channels of the blocks, a multiple of 4 · num_heads.
        depth: number of blocks.
        num_heads, mlp_ratio: attention heads of a block, width of its MLP over `width`.
        shared: one trunk of blocks for all steps; else each step has its own.
        in_chans: C, channels of the images.
        overlap: of the windows that the last layers make, see `StepLinear`.
        attention: backend of `fastequi.models.attention`.
    """

    def __init__(
        self,
        in_dim: int,
        patch_size: int,
        num_steps: int = 2,
        width: int = 256,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        shared: bool = True,
        in_chans: int = 3,
        overlap: int = 0,
        attention: str = "auto",
    ) -> None:
        super().__init__()
        expect_sizes(
            in_dim=in_dim,
            patch_size=patch_size,
            num_steps=num_steps,
            width=width,
            depth=depth,
            num_heads=num_heads,
            in_chans=in_chans,
        )
        arguments.number("mlp_ratio", mlp_ratio, above=0)
        if width % (4 * num_heads):
            raise ValueError(f"width: expected a multiple of {4 * num_heads}, got {width}")
        self.num_steps = num_steps
        self.trunks = nn.ModuleList(
            _Trunk(in_dim, width, depth, num_heads, mlp_ratio, attention)
            for _ in range(1 if shared else num_steps)
        )
        self.last = StepLinear(num_steps, width, patch_size, in_chans, overlap)

    def hidden(self, z: Tensor) -> Tensor:
        """What the last layer takes: [B, L, in_dim] tokens of a square grid to [B, K, L, width].

        Of a shared trunk it is one tensor, expanded over the steps.
        """
        if len(self.trunks) == 1:
            return self.trunks[0](z)[:, None].expand(-1, self.num_steps, -1, -1)
        return torch.stack([trunk(z) for trunk in self.trunks], 1)

    def forward(self, z: Tensor) -> Tensor:
        """[B, L, in_dim] tokens of a square grid to [B, K, L, p·p·C] in order (p q c)."""
        return self.last(self.hidden(z))


class _Trunk(nn.Module):
    def __init__(
        self,
        in_dim: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        attention: str,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, width)
        shape = BlockShape(width, num_heads, int(width * mlp_ratio), attention=attention)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, z: Tensor) -> Tensor:
        """[B, L, in_dim] to [B, L, width]."""
        batch, tokens, _ = z.shape
        x = self.linear(z)
        x = x + sine_cosine(square(tokens), x.shape[-1], x.device).to(x.dtype)
        x = x.flatten(0, 1)
        for block in self.blocks:
            x = block(x, [(batch, tokens)])
        return self.norm(x).unflatten(0, (batch, tokens))
