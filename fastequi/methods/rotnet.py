"""RotNet: predict by which of four angles an image was rotated (Gidaris et al., ICLR 2018).

Every image is cropped and flipped once, then enters the batch in all four rotations, which are
exact (`rot90_batch`); the loss is the mean four-way cross-entropy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.data.views.batch import Batch, Views
from fastequi.functional import rot90_batch
from fastequi.methods.method import Method
from fastequi.models.encoder import TokenEncoder

ANGLES = (0, 90, 180, 270)


class RotNet(Method):
    """A network and its four-way classifier.

    Args:
        encoder: returns a list of feature maps [B, C, h, w], one per block, or tokens.
        classifier: of the last map, or of the class token (mean token without one).
        views: normalisation of the images.
        all_rotations: every image in all four rotations; else in one, drawn anew in every step.
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
        """Loss and accuracies, in total and per rotation ("accuracy_90")."""
        u = batch.u
        drawn = None if self.all_rotations else torch.randint(4, (len(u),), device=u.device)
        logits = self.classify(self.rotated(u, drawn, batch.v1.dtype))
        labels = self.labels(len(u), u.device) if drawn is None else drawn
        loss = F.cross_entropy(logits.float(), labels)
        correct = (logits.detach().argmax(1) == labels).float()
        out = {"loss": loss, "accuracy": correct.mean()}
        each = torch.zeros(4, device=u.device).index_add_(0, labels, correct)
        count = torch.zeros(4, device=u.device).index_add_(0, labels, torch.ones_like(correct))
        shares = each / count.clamp(min=1)
        return {**out, **{f"accuracy_{a}": shares[i] for i, a in enumerate(ANGLES)}}

    def rotated(
        self, images: Tensor, rotations: Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """The network's batch of uint8 or uint16 images, rotated and normalised.

        Args:
            images: [B, C, N, N] uint8 or uint16.
            rotations: [B] integers 0..3, one per image; None: all four of image 0, then of 1, ...
            dtype: of the result.
        """
        mean, std = self.views.mean, self.views.std
        # convolutions are fastest on channels-last images; what another network does is not known
        last = not isinstance(self.network, TokenEncoder)
        memory = torch.channels_last if last else torch.contiguous_format
        return rot90_batch(
            images, turns=rotations, mean=mean, std=std, dtype=dtype, memory_format=memory
        )

    @staticmethod
    def labels(images: int, device: torch.device) -> Tensor:
        """[4B] the rotations of a batch of all four: 0, 1, 2, 3, 0, 1, ..."""
        return torch.arange(4, device=device).repeat(images)

    def classify(self, images: Tensor) -> Tensor:
        """Logits [B, 4] of normalised images."""
        return self.classifier(self._last(images))

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Tokens [B, L, C] of normalised images: "block1", ... or "patch" and "cls"."""
        if isinstance(self.network, TokenEncoder):
            tokens = self.network.forward_features(images)
            out = {"patch": tokens.patch}
            return out if tokens.cls is None else {**out, "cls": tokens.cls}
        maps = self.network(images)
        return {f"block{i}": m.flatten(2).transpose(1, 2) for i, m in enumerate(maps, 1)}

    def _last(self, images: Tensor) -> Tensor:
        if not isinstance(self.network, TokenEncoder):
            return self.network(images)[-1]
        tokens = self.network(images)
        cls = self.network.split(tokens).cls
        return tokens.mean(1) if cls is None else cls[:, 0]


def linear_classifier(channels: int) -> nn.Sequential:
    """Global average of a map [B, C, h, w] and a linear layer, as NIN's."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, len(ANGLES)))
