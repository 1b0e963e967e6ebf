"""RotNet: tell which of four turns an image was given (Gidaris et al., ICLR 2018).

Every image is cropped and flipped once, then goes into the batch in all four turns, which are exact
(`rot90_batch`); the loss is the four-way cross-entropy, the mean over all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.data.views.batch import Batch, Views
from fastequi.functional import rot90_batch
from fastequi.methods.method import Method
from fastequi.models.vit import VisionTransformer

ANGLES = (0, 90, 180, 270)


class RotNet(Method):
    """A network and its four-way classifier.

    Args:
        encoder: gives a list of feature maps [B, C, h, w], one per block, or is a ViT.
        classifier: of the last map, or of a ViT's class token (mean token without one).
        views: normalisation of the images; a ViT's patches are its features' places.
        all_rotations: every image in all four turns; else one turn each, drawn anew in every step.
    """

    def __init__(
        self, encoder: nn.Module, classifier: nn.Module, views: Views, all_rotations: bool = True
    ) -> None:
        super().__init__()
        self.network, self.classifier = encoder, classifier
        self.views, self.all_rotations = views, all_rotations

    @property
    def backbone(self) -> nn.Module:
        return self.network

    @property
    def encoder(self) -> nn.Module:
        return self.network

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss and accuracies, total and per turn ("accuracy_90")."""
        u = batch.u
        turns = None if self.all_rotations else torch.randint(4, (len(u),), device=u.device)
        logits = self.classify(self.rotated(u, turns, batch.v1.dtype))
        labels = self.labels(len(u), u.device) if turns is None else turns
        loss = F.cross_entropy(logits.float(), labels)
        right = (logits.detach().argmax(1) == labels).float()
        out = {"loss": loss, "accuracy": right.mean()}
        each = torch.zeros(4, device=u.device).index_add_(0, labels, right)
        count = torch.zeros(4, device=u.device).index_add_(0, labels, torch.ones_like(right))
        shares = each / count.clamp(min=1)
        return {**out, **{f"accuracy_{a}": shares[i] for i, a in enumerate(ANGLES)}}

    def rotated(
        self, images: Tensor, turns: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The network's batch of uint8 images: all four turns, sample by sample, or one each."""
        mean, std = self.views.mean, self.views.std
        # convolutions are fastest on channels-last images; a ViT cuts patches from either
        last = not isinstance(self.network, VisionTransformer)
        memory = torch.channels_last if last else torch.contiguous_format
        return rot90_batch(
            images, turns=turns, mean=mean, std=std, dtype=dtype, memory_format=memory
        )

    @staticmethod
    def labels(images: int, device: torch.device) -> Tensor:
        """[4B] the turn of every image of the batch: 0, 1, 2, 3, 0, 1, ..."""
        return torch.arange(4, device=device).repeat(images)

    def classify(self, images: Tensor) -> Tensor:
        """Logits [B, 4] of normalised images."""
        return self.classifier(self._last(images))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Tokens [B, L, C] of normalised images: "block1", ... or a ViT's "patch" and "cls"."""
        if isinstance(self.network, VisionTransformer):
            tokens = self.network.forward_features(images)
            out = {"patch": tokens.patch}
            return out if tokens.cls is None else {**out, "cls": tokens.cls}
        maps = self.network(images)
        return {f"block{i}": m.flatten(2).transpose(1, 2) for i, m in enumerate(maps, 1)}

    def _last(self, images: Tensor) -> Tensor:
        if not isinstance(self.network, VisionTransformer):
            return self.network(images)[-1]
        tokens = self.network(images)
        cls = self.network.split(tokens).cls
        return tokens.mean(1) if cls is None else cls[:, 0]


def linear_classifier(channels: int) -> nn.Sequential:
    """Global average of a map [B, C, h, w] and a linear layer, as NIN's."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, len(ANGLES)))
