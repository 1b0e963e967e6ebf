"""SimCLR as the base of TIR: mean over tokens, projector, NT-Xent loss (Chen et al., ICML 2020).

The paper's optimiser is LARS; TIR trains all of its bases with AdamW, and so do the recipes.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastequi.functional.distributed import even_sizes, world
from fastequi.losses.nt_xent import NTXentLoss
from fastequi.models.heads import Expander


class SimCLRCriterion(nn.Module):
    """The contrastive loss of two views' z_inv tokens.

    Args:
        in_dim: channels of z_inv.
        hidden_dims: widths of the projector's layers, output last; BatchNorm after each, as in the
            authors' code.
        temperature: of the cosines.
    """

    def __init__(
        self, in_dim: int, hidden_dims: tuple[int, ...] = (2048, 128), temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            Expander(in_dim, hidden_dims), nn.BatchNorm1d(hidden_dims[-1])
        )
        self.loss = NTXentLoss(temperature, world())

    def forward(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """z1, z2: [B, L, d_inv] tokens, B the same on every process.

        Batch statistics are per view, negatives from both.
        """
        h1, h2 = self.projector(z1.mean(1)), self.projector(z2.mean(1))
        loss = self.loss(h1, h2, even_sizes(h1, self.loss.group))
        return {"loss": loss, "std": h1.detach().float().std(0).mean()}
