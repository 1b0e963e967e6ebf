"""An anchor: patch features stay near those that the encoder had when the run began.

A frozen copy of the encoder sees both views, unmasked, and a loss beside the method's own compares
its patch tokens with the student's. It is part of the method's state: each checkpoint is larger by
the encoder, and evaluation never calls it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.functional import gram_loss
from fastequi.models.encoder import TokenEncoder

KINDS = ("cosine", "gram")


class Anchor(nn.Module):
    """The frozen encoder and its loss.

    "cosine": the mean of 1 - cos over the patches that the student saw, so that masked ones, which
    a method predicts anyway, are left to it. Every feature stays where it was.
    "gram": the mean squared difference of cosines between any two such patches of a view
    (`gram_loss`, DINOv3's Gram anchoring). Features may turn together, as long as patches stay as
    alike as they were.

    Args:
        encoder: the learning encoder; :meth:`begin` copies its weights once they are there.
        kind: one of KINDS.
        weight: of the loss in the method's sum.
    """

    def __init__(self, encoder: TokenEncoder, kind: str, weight: float) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        self.kind, self.weight = kind, weight
        self.frozen = copy.deepcopy(encoder).requires_grad_(False).eval()

    def begin(self, encoder: TokenEncoder) -> None:
        """Takes over the weights of an encoder of the same architecture."""
        self.frozen.load_state_dict(encoder.state_dict())

    def train(self, mode: bool = True) -> Anchor:
        """The copy stays in eval mode: it drops no path."""
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(
        self, views: Sequence[Tensor], patches: Tensor, hidden: Tensor | None = None
    ) -> Tensor:
        """The loss [], not weighted.

        Args:
            views: [B, C, H, W] each, normalised.
            patches: [V B, L, D] the student's tokens of all views, one after the other.
            hidden: [V B, L] bool, what the student did not see; None: nothing.
        """
        with torch.no_grad():
            target = self.frozen.forward_features(torch.cat(list(views))).patch
        distance = _cosine if self.kind == "cosine" else _gram
        return distance(patches, target, hidden)


def _cosine(patches: Tensor, target: Tensor, hidden: Tensor | None) -> Tensor:
    distance = 1 - F.cosine_similarity(patches.float(), target.float(), dim=-1)
    if hidden is None:
        return distance.mean()
    seen = (~hidden).to(distance.dtype)
    return (distance * seen).sum() / seen.sum().clamp(min=1)


def _gram(patches: Tensor, target: Tensor, hidden: Tensor | None) -> Tensor:
    """Hidden rows become zeros, whose cosines are zero on both sides."""
    if hidden is None:
        return gram_loss(patches, target)
    both = (x.masked_fill(hidden[..., None], 0) for x in (patches, target))
    pairs = (~hidden).sum(1).square().sum()
    return gram_loss(*both, reduction="sum") / pairs.clamp(min=1)


def add_anchor(
    parts: dict[str, Tensor],
    anchor: Anchor | None,
    views: Sequence[Tensor],
    patches: Tensor,
    hidden: Tensor | None = None,
) -> None:
    """Adds "anchor" to a method's parts, and it times its weight to "loss"; nothing without one."""
    if anchor is not None:
        parts["anchor"] = anchor(views, patches, hidden)
        parts["loss"] = parts["loss"] + anchor.weight * parts["anchor"]
