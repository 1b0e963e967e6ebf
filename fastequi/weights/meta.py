"""Layouts of the authors' own code: DINO, iBOT, MAE, DINOv2, DINOv3.

DINO's and MAE's encoders have timm's names. What a whole training checkpoint of theirs adds (heads,
a decoder, a student beside the teacher) tells that it is one, and with it the number of heads.
"""

from __future__ import annotations

from dataclasses import replace

from fastequi.weights.layouts import GATED, Layout
from fastequi.weights.names import Names
from fastequi.weights.steps import (
    ClassPosition,
    KeyBiasMask,
    MaskToken,
    Periods,
    Unchunked,
    UnitGains,
)
from fastequi.weights.timm import UNUSED

_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DINO_HEAD = r"(^|\.)(teacher|student)\.(module\.)?head\.last_layer\."

MAE = Layout(
    name="MAE",
    marks=(r"^decoder_blocks\.",),
    unused=rf"^decoder_|{UNUSED}",
    heads=_HEADS,
)

# also DeiT III's
IBOT_GAINS = Layout(
    name="iBOT with LayerScale",
    marks=(r"^pos_embed$", r"\.gamma_1$"),
    lacks=(r"\.q_bias$",),  # BEiT's
    steps=(Names(block={"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}),),
    unused=UNUSED,
    heads=_HEADS,
)
IBOT = Layout(name="iBOT", marks=(r"^masked_embed$",), unused=UNUSED, heads=_HEADS)
DINO = Layout(name="DINO or iBOT, of training", around=(_DINO_HEAD,), unused=UNUSED, heads=_HEADS)

_MASK = MaskToken("mask_token")
_V2_TOKENS = {"reg_token": "register_tokens"}
DINOV2 = Layout(
    name="DINOv2",
    marks=(r"^mask_token$", r"\.ls1\.gamma$"),
    lacks=(r"\.mlp\.w12\.", r"^decoder_", r"^reg_token$"),
    steps=(_MASK, Unchunked(), Names(whole=_V2_TOKENS), ClassPosition(), UnitGains()),
    unused=UNUSED,
    heads={**_HEADS, 1536: 24},
)
DINOV2_SWIGLU = replace(
    DINOV2,
    marks=(*DINOV2.marks, r"\.mlp\.w12\."),
    lacks=DINOV2.lacks[1:],
    steps=(
        _MASK,
        Unchunked(),
        Names(whole=_V2_TOKENS, block={"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}),
        ClassPosition(),
        UnitGains(),
    ),
    written=GATED,
)

_PERIODS = Periods("rope_embed.periods")
_V3_TOKENS = {"reg_token": "storage_tokens"}
DINOV3 = Layout(
    name="DINOv3",
    marks=(r"^rope_embed\.periods$",),
    lacks=(r"\.mlp\.w1\.",),
    steps=(_MASK, _PERIODS, KeyBiasMask(), Names(whole=_V3_TOKENS), UnitGains()),
    unused=rf"^local_cls_norm\.|{UNUSED}",
    heads={192: 3, 384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32},
    norm_eps=1e-5,
    rope=True,
    facts=_PERIODS.facts,
)
DINOV3_SWIGLU = replace(
    DINOV3,
    marks=(*DINOV3.marks, r"\.mlp\.w1\."),
    lacks=(),
    steps=(
        _MASK,
        _PERIODS,
        KeyBiasMask(),
        Names(whole=_V3_TOKENS, block={"mlp.fc1": ("mlp.w1", "mlp.w2"), "mlp.fc2": "mlp.w3"}),
        UnitGains(),
    ),
    written=GATED,
)

LAYOUTS = (DINOV3_SWIGLU, DINOV3, DINOV2_SWIGLU, DINOV2, MAE, IBOT_GAINS, IBOT, DINO)
