"""What methods know of an encoder: images [B, C, H, W] to prefix tokens and a grid of patch tokens.

:class:`fastequi.models.vit.VisionTransformer` is one; `fastequi.models.foreign` makes one of any
other network. What a ViT can do beyond it (masked patches, tokens after an earlier block) is asked
of its type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fastequi.models.positions import Grid


class Tokens(NamedTuple):
    """The tokens of B images by name.

    Attributes:
        cls: [B, 1, D] class token, or None.
        registers: [B, R, D] other prefix tokens, or None.
        patch: [B, L, D] patch tokens, row by row.
    """

    cls: Tensor | None
    registers: Tensor | None
    patch: Tensor

    def summary(self) -> Tensor:
        """[B, D] of a whole image: the class token, or the mean of the patches without one."""
        return self.patch.mean(1) if self.cls is None else self.cls[:, 0]


class TokenEncoder(nn.Module):
    """Images to tokens, one for each cell of a grid on the image, and prefix tokens before them.

    Attributes:
        embed_dim: D, channels of a token.
        patch_size: pixels between neighbouring patch tokens along each axis: a ViT's patch size, a
            convolutional network's stride.
        num_prefix_tokens: class token and others before the patch tokens.
    """

    embed_dim: int
    patch_size: int
    num_prefix_tokens: int

    @property
    def has_class_token(self) -> bool:
        """Whether the first prefix token is a class token."""
        raise NotImplementedError

    @property
    def network(self) -> nn.Module:
        """The module under whose parameter names a run is saved: itself, or the one it wraps."""
        return self

    def grid_size(self, height: int, width: int) -> Grid:
        """Patch tokens along height and width of images of so many pixels.

        Raises:
            ValueError: it does not take such images, or gives no grid of whole pixels for them.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to tokens [B, num_prefix_tokens + L, D], prefix first."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tokens:
        """The tokens of images [B, C, H, W] by name."""
        return self.split(self(x))

    def forward_groups(self, groups: Sequence[Tensor]) -> list[Tokens]:
        """The tokens of groups of images [B_i, C, H_i, W_i] of different sizes (multi-crop)."""
        return [self.forward_features(images) for images in groups]

    def split(self, tokens: Tensor) -> Tokens:
        """Tokens [B, num_prefix_tokens + L, D], as `forward` gives them, by name."""
        prefix, first = self.num_prefix_tokens, int(self.has_class_token)
        return Tokens(
            tokens[:, :1] if first else None,
            tokens[:, first:prefix] if prefix > first else None,
            tokens[:, prefix:],
        )
