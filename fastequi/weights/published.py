"""Heads and blocks of published ViTs, by timm's name, or by the width if they all agree."""

from __future__ import annotations

import re

# channels and heads by the word for the size in timm's names
_SIZES = {
    "tiny": (192, 3),
    "wee": (256, 4),
    "little": (320, 5),
    "small": (384, 6),
    "medium": (512, 8),
    "mediumd": (512, 8),
    "betwixt": (640, 10),
    "base": (768, 12),
    "so150m2": (832, 13),
    "so150m": (896, 14),
    "large": (1024, 16),
    "so400m": (1152, 16),
    "huge": (1280, 16),
    "giant": (1408, 16),
    "giantopt": (1536, 16),
    "gigantic": (1664, 16),
}
_NAME = re.compile(r"(?:vit|deit|deit3|flexivit|eva)_([a-z0-9]+)(?:_distilled)?((?:_[a-z0-9]+)*)")
# words of a name that affect only weights, or shapes that the tensors show
_WORDS = re.compile(
    r"patch\d+|\d+|gap|map|reg\d+|36x1|dino|dinov2|tipsv2|siglip|mae|miil|sam|in\d+k|in22ft1k"
)
# DINOv3's, whose names have further words; "plus" is a gated MLP there
_DINOV3 = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "large": (1024, 16),
           "huge": (1280, 20), "7b": (4096, 32)}  # fmt: skip
_DINOV3_WORDS = re.compile(r"patch16|dinov3|qkvb|plus")
# networks with a plain ViT's tensors but another computation: another GELU, norms elsewhere
_OTHERWISE = re.compile(
    r"quickgelu|_rpn_|(patch32|giantopt_patch16|so400m_patch16)_siglip|large_patch16_siglip.*_512"
)
_FILES = re.compile(
    r"dino_(?:deit|vit)(small|base)\d+_pretrain(?:_full_checkpoint)?|"
    r"mae_(?:pretrain|finetuned|visualize)_vit_(base|large|huge)\w*"
)
# the only published number of heads at a width: DeiT, DINO, MAE, timm. 384 channels have 6 heads
# there and 12 in MoCo v3; 768 without a class token 12 or 16.
_USUAL = {192: 3, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
# the only published number of blocks at a width: DeiT, DINO, MAE, DINOv2 and timm
_BLOCKS = {192: 12, 384: 12, 768: 12, 1024: 24, 1152: 27, 1280: 32, 1408: 40, 1536: 40, 1664: 48}


def named_size(architecture: str) -> tuple[int, int] | None:
    """Channels and heads of timm's network of a name; None if it is not a plain ViT."""
    name = _bare(architecture)
    if name == "vit_base_patch16_gap_224":
        return 768, 16
    found = _NAME.fullmatch(name)
    if found is None or computes_otherwise(architecture):
        return None
    size, words = found[1], found[2].split("_")[1:]
    if "dinov3" in words:
        known = all(_DINOV3_WORDS.fullmatch(word) for word in words)
        return _DINOV3.get(size) if known else None
    if size == "giant" and "dinov2" in words:
        return 1536, 24
    if size == "base" and "plus" in words:
        size, words = "so150m", [word for word in words if word != "plus"]  # 896 wide as well
    return _SIZES.get(size) if all(_WORDS.fullmatch(word) for word in words) else None


def file_size(stem: str) -> tuple[int, int] | None:
    """Channels and heads of a network that is published as a file of this name, or that is timm's
    of this name; None: unknown.

    Meta's names of tensors are timm's, and of 384 channels others have 12 heads.
    """
    found = _FILES.fullmatch(stem)
    return _SIZES[found[1] or found[2]] if found else named_size(stem)


def computes_otherwise(architecture: str) -> bool:
    """Whether timm's network of a name has a plain ViT's tensors but another computation."""
    return _OTHERWISE.search(_bare(architecture)) is not None


def usual_heads(dim: int, class_token: bool) -> int | None:
    """The number of heads of published plain ViTs of a width; None if they differ or unknown."""
    return None if dim == 768 and not class_token else _USUAL.get(dim)


def usual_depth(dim: int) -> int | None:
    """The number of blocks of published plain ViTs of a width; None: unknown."""
    return _BLOCKS.get(dim)


def _bare(architecture: str) -> str:
    return architecture.removeprefix("timm/").partition(".")[0]
