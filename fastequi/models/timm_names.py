"""The architecture of a ViT, read from the shapes of a state dict under timm's names."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor


def timm_options(state: dict[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """The arguments of :class:`VisionTransformer` that a state dict under timm's names is of.

    Args:
        state: the tensors.
        num_heads: the one thing no shape tells; None: channels / 64, as in every ViT of timm's
            tiny, small, base and large.

    Raises:
        ValueError: a name is missing, or the shapes are not a ViT's.
    """
    missing = [n for n in ("patch_embed.proj.weight", "pos_embed", "norm.weight") if n not in state]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if missing or not depth:
        raise ValueError(f"state: no ViT under timm's names: no {', '.join(missing) or 'blocks'}")
    dim, chans, patch = state["patch_embed.proj.weight"].shape[:3]
    if num_heads is None and dim % 64:
        raise ValueError(
            f"state: {dim} channels, so how many heads? say num_heads, or in config.json beside"
        )
    class_token, registers = "cls_token" in state, state.get("reg_token")
    prefix = int(class_token) + (0 if registers is None else registers.shape[1])
    embedded, grid = state["pos_embed"].shape[1], 0
    for in_embedding in (prefix, 0):
        side = math.isqrt(embedded - in_embedding)
        if side * side == embedded - in_embedding:
            grid = side
            break
    if not grid:
        raise ValueError(f"state: pos_embed of {embedded} places is no square of patches")
    gain, classes = state.get("blocks.0.ls1.gamma"), state.get("head.weight")
    return {
        "img_size": grid * patch,
        "patch_size": patch,
        "in_chans": chans,
        "num_classes": 0 if classes is None else len(classes),
        "embed_dim": dim,
        "depth": depth,
        "num_heads": num_heads or dim // 64,
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "init_values": None if gain is None else 1e-5,
        "class_token": class_token,
        "reg_tokens": prefix - class_token,
        "no_embed_class": in_embedding == 0 and prefix > 0,
    }
