"""TIR: reconstruct the images between two views from the split features of both.

Wang et al., Self-Supervised Learning based on Transformed Image Reconstruction for
Equivariance-Coherent Feature Representation, AAAI 2026 (arXiv 2503.18753), section 3:
v2 = g_θ(u); û_k = decoder_k([z1_equi ; z2_equi]) for u_k = g_{kθ/(K+1)}(u), k = 1..K;
L = L_SSL(z1_inv, z2_inv) + λ · mean_k ‖û_k − u_k‖².

Our choices where the paper says nothing: bilinear sampling, zero fill, pixels outside counted
unless `mask_outside`; targets normalised like the input; the error is the mean over pixels and
channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastequi.data.views.batch import Batch, Views
from fastequi.functional import gaussian_blur, warp
from fastequi.losses.blur_recon import BlurReconLoss
from fastequi.losses.linear_blur_recon import LinearBlurReconLoss
from fastequi.losses.linear_warp_recon import LinearWarpReconLoss
from fastequi.losses.warp_recon import WarpReconLoss
from fastequi.methods.anchor import Anchor, add_anchor
from fastequi.methods.base import Base
from fastequi.methods.method import Method
from fastequi.models.block_decoder import BlockDecoder
from fastequi.models.decoder import PathDecoder, PixelShuffleDecoder
from fastequi.models.encoder import TokenEncoder
from fastequi.paths import DEFAULT_MAX_SIGMA, Blur, Path, Transform, fractions

Decoder = PathDecoder | BlockDecoder | PixelShuffleDecoder


class TIR(Method):
    """Transformed-image reconstruction beside a base.

    Args:
        base: encoder, heads and SSL loss, which gives z_equi of both views as well.
        decoder: K decoders on [B, L, 2·d_equi] tokens, or None for the base alone.
        path: the transformation path.
        views: sizes and normalisation of the batch's images.
        recon_weight: λ; the paper finds training unstable above 5.
        mask_outside: leave out target pixels that lie outside u.
        anchor: a further loss that holds the encoder near its first weights, or None.
    """

    def __init__(
        self,
        base: Base,
        decoder: Decoder | None,
        path: Path,
        views: Views,
        recon_weight: float = 1.0,
        mask_outside: bool = False,
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__()
        self.base, self.decoder, self.anchor = base, decoder, anchor
        self.path, self.views, self.recon_weight = path, views, recon_weight
        self.num_steps = decoder.num_steps if decoder is not None else 0
        scale: dict[str, Any] = {"mean": views.mean, "std": views.std}
        outside: dict[str, Any] = {"padding_mode": views.padding_mode, "mask_outside": mask_outside}
        patch: dict[str, Any] = {"patch_size": base.encoder.patch_size}
        images = isinstance(decoder, PixelShuffleDecoder)
        layout: dict[str, Any] = {} if images else {"layout": "patch", **patch}
        self.warp_loss = WarpReconLoss(**layout, **scale, **outside)
        self.max_sigma = path.max_sigma if isinstance(path, Blur) else DEFAULT_MAX_SIGMA
        self.blur_loss = BlurReconLoss(**layout, **scale, max_sigma=self.max_sigma)
        last = decoder.last if isinstance(decoder, PathDecoder | BlockDecoder) else None
        patch["overlap"] = 0 if last is None else last.overlap
        self.linear_warp_loss = LinearWarpReconLoss(**patch, **scale, **outside)
        self.linear_blur_loss = LinearBlurReconLoss(**patch, **scale, max_sigma=self.max_sigma)

    @property
    def backbone(self) -> TokenEncoder:
        return self.base.backbone

    @property
    def find_unused_parameters(self) -> bool:
        return self.base.find_unused_parameters

    @property
    def encoder(self) -> TokenEncoder:
        return self.base.encoder

    def begin(self) -> None:
        if self.anchor is not None:
            self.anchor.begin(self.backbone)

    def before_step(self, progress: float) -> None:
        self.base.before_step(progress)

    def after_step(self, progress: float, taken: Tensor | None = None) -> None:
        self.base.after_step(progress, taken)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One step's losses: "loss" (to minimise), "ssl", "recon" and the base's parts."""
        between, end = self._points(batch.path)
        v2 = self._view(batch.u, end, batch.v1.dtype)
        base, patches, z_equi = self.base(batch.v1, v2, batch)
        out = {name: value for name, value in base.items() if name != "loss"}
        out["ssl"] = out["loss"] = base["loss"]
        if self.decoder is not None:
            assert z_equi is not None
            out["recon"] = self._recon(torch.cat(z_equi.chunk(2), -1), batch.u, between)
            out["loss"] = out["ssl"] + self.recon_weight * out["recon"]
        hidden = None if batch.masks is None else batch.masks.mask.flatten(0, 1)
        add_anchor(out, self.anchor, (batch.v1, v2), patches, hidden)
        return out

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Token features [B, L, ·] of normalised images [B, C, H, W], for probes and users.

        Returns:
            "patch" (encoder), "z_inv", "z_equi" and, if the encoder has one, "cls" [B, 1, D].
        """
        return self.base.features(images)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> dict[str, Tensor]:
        """The images along the path, normalised, and their reconstructions.

        Returns:
            "v1", "v2" [B, C, H, W]; "target" and "pred" [B, K, C, H, W].
        """
        if self.decoder is None:
            raise ValueError("reconstruct: this model has no decoders (num_steps = 0)")
        between, end = self._points(batch.path)
        v2 = self._view(batch.u, end, batch.v1.dtype)
        z_equi = self.base.equivariant(torch.cat([batch.v1, v2]))
        pred = self.decoder(torch.cat(z_equi.chunk(2), -1)).float()
        return {
            "v1": batch.v1.float(),
            "v2": v2.float(),
            "target": self._view(batch.u, between, torch.float32),
            "pred": pred if pred.ndim == 5 else unpatchify(pred, self.encoder.patch_size),
        }

    def _points(self, params: Tensor) -> tuple[Transform, Transform]:
        """The K transformations between the views, and the one that makes v2."""
        size = (self.views.image_size, self.views.image_size)
        between = fractions(self.num_steps)
        every = self.path.at(params, [*between, 1.0], size, zoom=self.views.zoom)
        return _steps(every, slice(None, -1)), _steps(every, -1)

    def _view(self, u: Tensor, at: Transform, dtype: torch.dtype) -> Tensor:
        mean, std = self.views.mean, self.views.std
        if at.sigma is not None:
            options: dict[str, Any] = {"mean": mean, "std": std, "dtype": dtype}
            return gaussian_blur(u, at.sigma, max_sigma=self.max_sigma, **options)
        size = (self.views.image_size, self.views.image_size)
        return warp(
            u,
            at.theta,
            color=at.color,
            size=size,
            mean=mean,
            std=std,
            dtype=dtype,
            padding_mode=self.views.padding_mode,
        )

    def _recon(self, z: Tensor, u: Tensor, at: Transform) -> Tensor:
        """The mean error of what the decoders make of [z1_equi ; z2_equi] tokens."""
        decoder = self.decoder
        assert decoder is not None
        if isinstance(decoder, PixelShuffleDecoder) or decoder.last is None:
            pred = decoder(z)
            if at.sigma is not None:
                return self.blur_loss(pred, u, at.sigma)
            return self.warp_loss(pred, u, at.theta, color=at.color)
        last = decoder.last.weight, decoder.last.bias  # predictions are never stored
        if at.sigma is not None:
            return self.linear_blur_loss(decoder.hidden(z), *last, u, at.sigma)
        return self.linear_warp_loss(decoder.hidden(z), *last, u, at.theta, color=at.color)


def _steps(points: Transform, index: int | slice) -> Transform:
    theta, color, sigma = points
    return Transform(
        theta[:, index],
        None if color is None else color[:, index],
        None if sigma is None else sigma[:, index],
    )


def unpatchify(tokens: Tensor, patch_size: int) -> Tensor:
    """Patch tokens [..., L, p·p·C] in MAE's order to square images [..., C, H, W]."""
    side = round(tokens.shape[-2] ** 0.5)
    grid = tokens.unflatten(-1, (patch_size, patch_size, -1)).unflatten(-4, (side, side))
    return grid.movedim(-1, -5).transpose(-3, -2).flatten(-2).flatten(-3, -2)
