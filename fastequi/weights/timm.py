"""timm's layouts: its ViTs, whose names are ours, and its DINOv3."""

from __future__ import annotations

from dataclasses import replace

from fastequi.weights.layouts import GATED, PLAIN, Layout
from fastequi.weights.names import Names, Table
from fastequi.weights.steps import UnitGains

UNUSED = r"^(head|head_dist|attn_pool)\.|^(mask_token|masked_embed)$"
# DeiT, AugReg, and Meta's DINO, MAE and iBOT as they publish encoders: names alone do not tell them
VIT = Layout(name="timm's ViT", unused=UNUSED, written={})

DEIT = Layout(
    name="timm's DeiT with a distillation token",
    marks=(r"^dist_token$",),
    lacks=(r"^reg_token$",),
    steps=(Names(whole={"reg_token": "dist_token"}),),
    unused=UNUSED,
    written={**PLAIN, "reg_tokens": 1},
)

_DINOV3_BLOCK: Table = {
    "ls1.gamma": "gamma_1",
    "ls2.gamma": "gamma_2",
    "attn.qkv.bias": ("attn.q_bias", "attn.k_bias", "attn.v_bias"),
}
_NO_KEY_BIAS = frozenset({"attn.k_bias"})
DINOV3 = Layout(
    name="timm's DINOv3",
    marks=(r"^cls_token$", r"^reg_token$", r"\.gamma_1$"),
    lacks=(r"^pos_embed$", r"^norm_pre\.", r"\.mlp\.fc1_g\."),
    steps=(Names(block=_DINOV3_BLOCK, zero=_NO_KEY_BIAS), UnitGains()),
    unused=UNUSED,
    heads={192: 3, 384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32},
    norm_eps=1e-5,
    rope=True,
)


def _without_bias(block: Table) -> Names:
    """A table of names in which biases of queries, keys and values are one, as ours."""
    return Names(block={own: their for own, their in block.items() if own != "attn.qkv.bias"})


_GATED: Table = {**_DINOV3_BLOCK, "mlp.fc1": ("mlp.fc1_g", "mlp.fc1_x")}
DINOV3_SWIGLU = replace(
    DINOV3,
    marks=(*DINOV3.marks, r"\.mlp\.fc1_g\."),
    lacks=DINOV3.lacks[:-1],
    steps=(Names(block=_GATED, zero=_NO_KEY_BIAS), UnitGains()),
    written=GATED,
)
# as timm's attn_type "rope" has it, for keys with a bias
_WITH_KEY_BIAS = (r"\.attn\.qkv\.bias$",)
DINOV3_KEY_BIAS = replace(
    DINOV3, marks=DINOV3.marks + _WITH_KEY_BIAS, steps=(_without_bias(_DINOV3_BLOCK), UnitGains())
)
DINOV3_SWIGLU_KEY_BIAS = replace(
    DINOV3_SWIGLU,
    marks=DINOV3_SWIGLU.marks + _WITH_KEY_BIAS,
    steps=(_without_bias(_GATED), UnitGains()),
)

LAYOUTS = (
    *(DINOV3_SWIGLU_KEY_BIAS, DINOV3_KEY_BIAS, DINOV3_SWIGLU, DINOV3),
    *(DEIT, VIT),
)
