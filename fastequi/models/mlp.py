"""The MLP of a transformer block: GELU's, or SwiGLU (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.kernels.gelu import gelu

MLPS = ("gelu", "swiglu")


class Mlp(nn.Module):
    """fc2(gelu(fc1 x))."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """fc2(silu(gate) * up), where fc1 x = [gate, up].

    One matrix for gate and up, under the names of timm's SwiGLUPacked, which are DINOv2's w12 and
    w3. Of a network that has two (timm's fc1_g and fc1_x, DINOv3's w1 and w2, transformers'
    gate_proj and up_proj) fc1 is the first above the second.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.fc1(x).chunk(2, -1)
        return self.fc2(F.silu(gate) * up)


def hidden_width(kind: str, dim: int, ratio: float) -> int:
    """Hidden channels of an MLP.

    With SwiGLU two thirds of ratio · dim, rounded up to a multiple of 8, as in DINOv2 and DINOv3:
    its three matrices then have as many weights as the two of a GELU MLP.
    """
    width = int(dim * ratio)
    return width if kind == "gelu" else -(-(2 * width // 3) // 8) * 8


def make_mlp(kind: str, dim: int, hidden: int) -> Mlp | SwiGLU:
    """The MLP of a kind of MLPS."""
    return Mlp(dim, hidden) if kind == "gelu" else SwiGLU(dim, hidden)
