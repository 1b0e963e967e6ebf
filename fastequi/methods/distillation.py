"""Distillation as a base: the tokens of a frozen teacher are regressed from a student's.

Of a teacher's and a student's token t and s, with a linear map W (one of class tokens, one of
patches): `cosine` · (1 - cos(W s, t)) + `smooth_l1` · smooth_l1(W s, t), means over images, tokens
and channels (Ranzinger et al., AM-RADIO, CVPR 2024, section 3.3, with one teacher). The teacher's
tokens are first divided by their standard deviation over a batch's tokens, so that the second term
does not depend on their scale.

The teacher sees the student's views, normalised as its own weights want it, and resized so that its
patches are as many as the student's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastequi.data.views.batch import Batch
from fastequi.methods.base import Base, BaseOutput
from fastequi.models.encoder import TokenEncoder, Tokens
from fastequi.models.heads import EquiHead
from fastequi.models.vit import VisionTransformer

Floats = tuple[float, ...]


class TermWeights(NamedTuple):
    """Of the terms of the loss."""

    cosine: float = 0.9
    smooth_l1: float = 0.1
    cls: float = 1.0
    patch: float = 1.0


class FrozenTeacher(nn.Module):
    """An encoder that is not trained, for images that are normalised for another.

    Args:
        encoder: its parameters will need no gradient; it stays in eval mode.
        mean, std: that it is made for, in 0..1.
        own_mean, own_std: those of the images that it is given.
    """

    gain: Tensor
    bias: Tensor

    def __init__(
        self,
        encoder: VisionTransformer,
        mean: Floats,
        std: Floats,
        own_mean: Floats,
        own_std: Floats,
    ) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        # (x · own_std + own_mean - mean) / std
        gain = [a / b for a, b in zip(own_std, std, strict=True)]
        bias = [(a - b) / c for a, b, c in zip(own_mean, mean, std, strict=True)]
        self.register_buffer("gain", torch.tensor(gain)[:, None, None])
        self.register_buffer("bias", torch.tensor(bias)[:, None, None])

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tokens:
        """The tokens of images [B, C, H, W], whose patches form `grid`."""
        size = tuple(n * self.encoder.patch_size for n in grid)
        x = images.float() * self.gain + self.bias
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True)
        return self.encoder.forward_features(x.to(images.dtype))


class Distillation(Base):
    """A student whose tokens, mapped linearly, are those of a teacher in both views.

    The teacher is no part of the method's state: :meth:`attach` gives it before training; features
    do not need it.

    Args:
        encoder: the student; a ViT where `equi_head` takes tokens of an earlier block.
        teacher_dim: channels of the teacher's tokens.
        class_tokens: the teacher's class token is regressed too; the student has one.
        weights: of the loss's terms.
        equi_head: gives z_equi, or None.
    """

    def __init__(
        self,
        encoder: TokenEncoder,
        teacher_dim: int,
        class_tokens: bool,
        weights: TermWeights,
        equi_head: EquiHead | None = None,
    ) -> None:
        super().__init__()
        self._encoder, self.weights, self.equi_head = encoder, weights, equi_head
        self.patch_map = nn.Linear(encoder.embed_dim, teacher_dim)
        self.cls_map = nn.Linear(encoder.embed_dim, teacher_dim) if class_tokens else None
        self._teacher: tuple[FrozenTeacher, ...] = ()  # not registered

    @property
    def backbone(self) -> TokenEncoder:
        return self._encoder

    @property
    def encoder(self) -> TokenEncoder:
        return self._encoder

    def attach(self, teacher: FrozenTeacher) -> None:
        """Gives the teacher, on the device of the student."""
        self._teacher = (teacher,)

    def forward(self, v1: Tensor, v2: Tensor, batch: Batch) -> BaseOutput:
        if not self._teacher:
            raise RuntimeError("attach: the teacher has not been given")
        images = torch.cat([v1, v2])
        tokens, z_equi = self._encode(images)
        grid = self.backbone.grid_size(*images.shape[-2:])
        theirs = self._teacher[0](images, grid)
        terms = {"patch": self._distance(self.patch_map(tokens.patch), theirs.patch)}
        if self.cls_map is not None:
            assert tokens.cls is not None
            assert theirs.cls is not None
            terms["cls"] = self._distance(self.cls_map(tokens.cls), theirs.cls)
        parts: dict[str, Tensor] = {}
        loss = images.new_zeros((), dtype=torch.float32)
        for name, (cosine, smooth_l1) in terms.items():
            parts |= {f"{name}_cosine": cosine.detach(), f"{name}_smooth_l1": smooth_l1.detach()}
            both = self.weights.cosine * (1 - cosine) + self.weights.smooth_l1 * smooth_l1
            loss = loss + getattr(self.weights, name) * both
        return BaseOutput({"loss": loss, **parts}, tokens.patch, z_equi)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """As the base says; z_inv is what is regressed onto the teacher's patch tokens."""
        tokens, z_equi = self._encode(images)
        out = {"patch": tokens.patch, "z_inv": self.patch_map(tokens.patch)}
        out["z_equi"] = tokens.patch[..., :0] if z_equi is None else z_equi
        return out if tokens.cls is None else {**out, "cls": tokens.cls}

    def equivariant(self, images: Tensor) -> Tensor:
        z_equi = self._encode(images)[1]
        assert z_equi is not None
        return z_equi

    def _encode(self, images: Tensor) -> tuple[Tokens, Tensor | None]:
        encoder, equi = self.backbone, self.equi_head
        if equi is None or not isinstance(encoder, VisionTransformer):
            tokens = encoder.forward_features(images)
            return tokens, None if equi is None else equi(tokens.patch)
        (last,), (middle,) = encoder.encode_both([encoder.embed(images)], equi.block)
        return encoder.split(last), equi(encoder.split(middle).patch)

    def _distance(self, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cosine, and mean smooth L1 distance of the teacher's tokens divided by their std."""
        with torch.autocast(ours.device.type, enabled=False):
            wide = torch.promote_types(ours.dtype, torch.float32)
            ours, theirs = ours.to(wide), theirs.to(wide)
            theirs = theirs / theirs.std().clamp(min=1e-6)
            cosine = F.cosine_similarity(ours, theirs, dim=-1).mean()
            return cosine, F.smooth_l1_loss(ours, theirs)
