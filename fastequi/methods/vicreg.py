"""VICReg as the base of TIR: mean over tokens, expander, variance-invariance-covariance loss."""

from __future__ import annotations

from torch import Tensor, nn

from fastequi.functional.distributed import even_sizes, world
from fastequi.losses.vicreg import VICRegLoss
from fastequi.models.heads import Expander


class VICRegCriterion(nn.Module):
    """The invariance loss of two views' z_inv tokens.

    Args:
        in_dim: channels of z_inv.
        hidden_dims: widths of the expander's layers, output last.
        inv_weight, var_weight, cov_weight: of :class:`~fastequi.losses.vicreg.VICRegLoss`.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: tuple[int, ...] = (8192, 8192, 8192),
        inv_weight: float = 25.0,
        var_weight: float = 25.0,
        cov_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.expander = Expander(in_dim, hidden_dims)
        self.loss = VICRegLoss(inv_weight, var_weight, cov_weight, group=world())

    def forward(self, z1: Tensor, z2: Tensor) -> dict[str, Tensor]:
        """z1, z2: [B, L, d_inv] tokens, B the same on every process.

        Batch statistics are per view, as in the official code.
        """
        h1, h2 = self.expander(z1.mean(1)), self.expander(z2.mean(1))
        loss, terms = self.loss.with_terms(h1, h2, even_sizes(h1, self.loss.group))
        return {"loss": loss, **terms, "std": h1.detach().float().std(0).mean()}
