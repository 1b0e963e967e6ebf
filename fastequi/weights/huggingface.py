"""Layouts of transformers: ViT and ViTMAE, DeiT, Dinov2 with and without registers, DINOv3 ViT.

Published files name blocks encoder.layer.0; in transformers 5 the modules in memory have other
names, which its save_pretrained turns back and a plain torch.save does not.
"""

from __future__ import annotations

from dataclasses import replace

from fastequi.weights.layouts import GATED, PLAIN, Layout, Step
from fastequi.weights.names import Names, Table
from fastequi.weights.steps import ClassPosition, MaskToken, UnitGains

_WHOLE: Table = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_QKV = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_PROJ = ("attention.q_proj", "attention.k_proj", "attention.v_proj")

_VIT: Table = {
    "norm1": "layernorm_before",
    "attn.qkv": _QKV,
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
VIT = Layout(
    name="Hugging Face ViT or ViTMAE",
    marks=(r"^encoder\.layer\.\d+\.layernorm_before\.",),
    steps=(Names(_WHOLE, _VIT, "encoder.layer", closed=True), ClassPosition()),
    unused=r"^pooler\.|^embeddings\.mask_token$",
    heads={192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16},
    norm_eps=1e-12,
    written={**PLAIN, "reg_tokens": 0},
)
_VIT_MODULES: Table = {
    "norm1": "layernorm_before",
    "attn.qkv": _PROJ,
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp": "mlp",
}
VIT_MODULES = replace(
    VIT,
    name="Hugging Face ViT or ViTMAE, modules of transformers 5",
    marks=(r"^layers\.\d+\.layernorm_before\.",),
    steps=(Names(_WHOLE, _VIT_MODULES, "layers", closed=True), ClassPosition()),
)
_DISTILLED: Table = {**_WHOLE, "reg_token": "embeddings.distillation_token"}
DEIT = replace(
    VIT,
    name="Hugging Face DeiT",
    marks=(*VIT.marks, r"^embeddings\.distillation_token$"),
    steps=(Names(_DISTILLED, _VIT, "encoder.layer", closed=True),),
    written={**PLAIN, "reg_tokens": 1, "no_embed_class": False},
)

_DINOV2: Table = {
    "norm1": "norm1",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2": "norm2",
    "ls2.gamma": "layer_scale2.lambda1",
}
_DINOV2_FILES: Table = {**_DINOV2, "attn.qkv": _QKV, "attn.proj": "attention.output.dense"}
_REGISTERS: Table = {**_WHOLE, "reg_token": "embeddings.register_tokens"}
_MASK = MaskToken("embeddings.mask_token")


def _dinov2(block: Table) -> tuple[Step, ...]:
    names = Names(_REGISTERS, block, "encoder.layer", closed=True)
    return _MASK, names, ClassPosition(), UnitGains()


DINOV2 = Layout(
    name="Hugging Face Dinov2",
    marks=(r"\.layer_scale1\.lambda1$", r"\.attention\.attention\.query\."),
    lacks=(r"\.mlp\.weights_in\.",),
    steps=_dinov2({**_DINOV2_FILES, "mlp": "mlp"}),
    unused=r"^embeddings\.mask_token$",
    heads={384: 6, 768: 12, 1024: 16, 1536: 24},
)
DINOV2_SWIGLU = replace(
    DINOV2,
    marks=(*DINOV2.marks, r"\.mlp\.weights_in\."),
    lacks=(),
    steps=_dinov2({**_DINOV2_FILES, "mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}),
    written=GATED,
)
_GATED: Table = {"mlp.fc1": ("mlp.gate_proj", "mlp.up_proj"), "mlp.fc2": "mlp.down_proj"}
_DINOV2_MODULES: Table = {**_DINOV2, "attn.qkv": _PROJ, "attn.proj": "attention.o_proj"}
DINOV2_MODULES = replace(
    DINOV2,
    name="Hugging Face Dinov2, modules of transformers 5",
    marks=(r"^encoder\.layer\.\d+\.layer_scale1\.", r"\.attention\.q_proj\."),
    lacks=(r"\.mlp\.gate_proj\.",),
    steps=_dinov2({**_DINOV2_MODULES, "mlp": "mlp"}),
)
DINOV2_SWIGLU_MODULES = replace(
    DINOV2_MODULES,
    marks=(*DINOV2_MODULES.marks, r"\.mlp\.gate_proj\."),
    lacks=(),
    steps=_dinov2({**_DINOV2_MODULES, **_GATED}),
    written=GATED,
)

_DINOV3_WHOLE: Table = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "norm": "norm",
}
_DINOV3_MASK = MaskToken("embeddings.mask_token", axes=3)
_NO_KEY_BIAS = frozenset({"attention.k_proj.bias"})


def _dinov3(block: Table, blocks: str = "layer") -> tuple[Step, ...]:
    table = {**_DINOV2_MODULES, **block}
    names = Names(_DINOV3_WHOLE, table, blocks, _NO_KEY_BIAS, closed=True)
    return _DINOV3_MASK, names, UnitGains()


_UP: Table = {"mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
DINOV3 = Layout(
    name="Hugging Face DINOv3 ViT",
    marks=(r"^layer\.\d+\.layer_scale1\.", r"^embeddings\.patch_embeddings\.weight$"),
    lacks=(r"\.mlp\.gate_proj\.",),
    steps=_dinov3(_UP),
    unused=r"^embeddings\.mask_token$",
    heads={192: 3, 384: 6, 768: 12, 1024: 16, 1280: 20, 4096: 32},
    norm_eps=1e-5,
    rope=True,
)
DINOV3_SWIGLU = replace(
    DINOV3,
    marks=(*DINOV3.marks, r"\.mlp\.gate_proj\."),
    lacks=(),
    steps=_dinov3(_GATED),
    written=GATED,
)
_IN_MODEL = (r"^model\.layer\.\d+\.layer_scale1\.", DINOV3.marks[1])
DINOV3_MODULES = replace(
    DINOV3,
    name="Hugging Face DINOv3 ViT, modules of transformers 5",
    marks=_IN_MODEL,
    steps=_dinov3(_UP, "model.layer"),
)
DINOV3_SWIGLU_MODULES = replace(
    DINOV3_SWIGLU,
    name=DINOV3_MODULES.name,
    marks=(*_IN_MODEL, r"\.mlp\.gate_proj\."),
    steps=_dinov3(_GATED, "model.layer"),
)

LAYOUTS = (
    *(DINOV3_SWIGLU, DINOV3, DINOV3_SWIGLU_MODULES, DINOV3_MODULES),
    *(DINOV2_SWIGLU, DINOV2, DINOV2_SWIGLU_MODULES, DINOV2_MODULES),
    *(DEIT, VIT, VIT_MODULES),
)
