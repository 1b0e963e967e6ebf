"""Heads on patch tokens: the split of invariant and equivariant channels, VICReg's expander."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class SplitHead(nn.Module):
    """One linear layer per token whose channels are split into z_inv and z_equi (TIR, section 3).

    Args:
        in_dim: channels of the encoder's tokens.
        dim: channels in all, d = d_inv + d_equi.
        equi_dim: the last channels, d_equi; 0 leaves z_equi empty.
    """

    def __init__(self, in_dim: int, dim: int, equi_dim: int) -> None:
        super().__init__()
        if not 0 <= equi_dim <= dim:
            raise ValueError(f"equi_dim: expected 0 .. dim={dim}, got {equi_dim}")
        self.inv_dim, self.equi_dim = dim - equi_dim, equi_dim
        self.proj = nn.Linear(in_dim, dim)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, in_dim] to z_inv [B, L, d_inv] and z_equi [B, L, d_equi]."""
        z_inv, z_equi = self.proj(tokens).split([self.inv_dim, self.equi_dim], -1)
        return z_inv, z_equi


class Expander(nn.Sequential):
    """VICReg's expander: linear, BatchNorm, ReLU for every layer but the last, linear without bias.

    Args:
        in_dim: channels of the pooled representation.
        dims: widths of the layers, output last; (8192, 8192, 8192) in the paper.
    """

    def __init__(self, in_dim: int, dims: Sequence[int]) -> None:
        if not dims:
            raise ValueError("dims: expected at least one width, got none")
        layers: list[nn.Module] = []
        for dim in dims[:-1]:
            layers += [nn.Linear(in_dim, dim), nn.BatchNorm1d(dim), nn.ReLU(inplace=True)]
            in_dim = dim
        super().__init__(*layers, nn.Linear(in_dim, dims[-1], bias=False))
