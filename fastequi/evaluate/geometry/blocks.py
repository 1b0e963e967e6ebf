"""The tokens of every block as maps, of the ViTs of this library.

Of a network of another package only the last tokens are known: what its blocks are, and which of
their outputs are tokens, its package alone can say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fastequi.evaluate.checked import expect_finite
from fastequi.evaluate.encoder import Encoder
from fastequi.evaluate.geometry.grids import Grids, Maps, grids_of
from fastequi.functional.normalise import normalise
from fastequi.models.vit import VisionTransformer

EMBEDDING = "embedding"


def block_grids(encoder: Encoder, name: str | None = None) -> Grids:
    """An encoder's patch tokens before the first block and after each, and its z_equi if any.

    The names are "embedding" (patches with their positions), "block1", ..., "z_equi". The final
    norm is applied to all (:meth:`~fastequi.models.vit.VisionTransformer.forward_blocks`), so the
    last block's are the encoder's own "patch". Encoders that are no ViT of this library have
    "patch" in their place; :func:`unknown_blocks` tells.

    Args:
        encoder: see :func:`fastequi.evaluate.geometry.grids.grids_of`.
        name: in the rows; its own by default.
    """
    own, network = grids_of(encoder, name), encoder.network
    if not isinstance(network, VisionTransformer):
        return own
    blocks = [EMBEDDING, *(f"block{i}" for i in range(1, len(network.blocks) + 1))]
    others = tuple(n for n in own.names if n != "patch")

    def of(images: Tensor) -> Maps:
        x = normalise(images, encoder.mean, encoder.std)
        found = {n: t.patch for n, t in zip(blocks, network.forward_blocks(x), strict=True)}
        expect_finite(encoder.name, found)
        if others:
            tokens = encoder.features(x)
            found |= {n: tokens[n] for n in others}
        grid = network.grid_size(*x.shape[2:])
        return {n: tokens.float().unflatten(1, grid) for n, tokens in found.items()}

    return replace(own, names=(*blocks, *others), of=torch.no_grad()(of))


def with_blocks(grids: Sequence[Grids], encoders: Mapping[str, Encoder]) -> list[Grids]:
    """Baselines as they are, and encoders by :func:`block_grids`."""
    return [
        each if each.encoder is None else block_grids(encoders[each.encoder], each.encoder)
        for each in grids
    ]


def unknown_blocks(encoders: Mapping[str, Encoder]) -> list[str]:
    """A remark for each encoder of which the last tokens alone are known."""
    return [
        f"{name}: no ViT of this library, so only its last tokens are known"
        for name, encoder in encoders.items()
        if not isinstance(encoder.network, VisionTransformer)
    ]


def place(features: str) -> int | None:
    """How many blocks came before tokens of a name; None for other features."""
    if features == EMBEDDING:
        return 0
    digits = features.removeprefix("block")
    return int(digits) if digits != features and digits.isdecimal() else None
