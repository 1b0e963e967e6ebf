"""Heads on tokens: the split of invariant and equivariant channels, expander, prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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


class EquiHead(nn.Module):
    """z_equi from the tokens after one of the encoder's blocks: norm and linear layer per token.

    Args:
        in_dim: channels of the encoder's tokens.
        equi_dim: d_equi.
        block: how many blocks the tokens have passed.
    """

    def __init__(self, in_dim: int, equi_dim: int, block: int) -> None:
        super().__init__()
        self.block = block
        self.norm = nn.LayerNorm(in_dim, eps=1e-6)
        self.proj = nn.Linear(in_dim, equi_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, in_dim] to z_equi [B, L, d_equi]."""
        return self.proj(self.norm(tokens))


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


class DINOHead(nn.Module):
    """MLP to unit vectors, and their cosines with prototypes (DINO; iBOT's and DINOv2's too).

    The prototypes are unit vectors: the official weight-normalised layer, its gains held at 1.
    A head that also returns z_equi splits its channels in one of two places (TIR, section 3): the
    last `equi_dim` outputs of the last layer beside the prototypes' (iBOT), or of the last hidden
    layer, whose other channels lead to the prototypes (DINOv2).

    Args:
        in_dim: channels of the encoder's tokens.
        prototypes: N.
        hidden_dim, bottleneck_dim: widths; 2048 and 256 in all three papers.
        equi_dim: d_equi; 0: no z_equi.
        split: "prototypes" or "hidden".
    """

    def __init__(
        self,
        in_dim: int,
        prototypes: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        equi_dim: int = 0,
        split: str = "prototypes",
    ) -> None:
        super().__init__()
        if split not in ("prototypes", "hidden"):
            raise ValueError(f"split: expected 'prototypes' or 'hidden', got {split!r}")
        hidden_split = equi_dim if split == "hidden" else 0
        if not 0 <= hidden_split < hidden_dim:
            raise ValueError(f"equi_dim: expected 0 .. {hidden_dim - 1}, got {equi_dim}")
        self.prototypes, self.equi_dim, self.split = prototypes, equi_dim, split
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim), nn.GELU()
        )
        self.bottleneck = nn.Linear(hidden_dim - hidden_split, bottleneck_dim)
        outputs = prototypes + equi_dim - hidden_split
        self.last = nn.Linear(bottleneck_dim, outputs, bias=False)
        for layer in (*self.mlp, self.bottleneck):
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Cosines [R, N] of the rows [R, in_dim]."""
        return self.score(self.embed(tokens)[0])

    def embed(self, tokens: Tensor, equi: bool = False) -> tuple[Tensor, Tensor | None]:
        """Unit vectors [R, bottleneck_dim] of rows [R, in_dim]; if `equi`, z_equi [R, d_equi]."""
        hidden = self.mlp(tokens)
        z_equi = None
        if self.split == "hidden" and self.equi_dim:
            hidden, z_equi = hidden.split([hidden.shape[-1] - self.equi_dim, self.equi_dim], -1)
        unit = self.bottleneck(hidden)
        unit = F.normalize(unit.to(torch.promote_types(unit.dtype, torch.float32)), dim=-1)
        if equi and z_equi is None:
            equivariant = F.normalize(self.last.weight[self.prototypes :], dim=-1)
            z_equi = F.linear(unit, equivariant.to(unit.dtype))
        return unit, z_equi if equi else None

    def score(self, unit: Tensor, frozen: bool = False) -> Tensor:
        """Cosines [R, N] of unit vectors with the prototypes, which get no gradient if `frozen`."""
        return F.linear(unit, self.directions(frozen).to(unit.dtype))

    def directions(self, frozen: bool = False) -> Tensor:
        """[N, bottleneck_dim] unit prototypes."""
        weight = self.last.weight[: self.prototypes]
        return F.normalize(weight.detach() if frozen else weight, dim=-1)
