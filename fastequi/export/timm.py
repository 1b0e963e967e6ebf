"""timm: model.safetensors and config.json, as timm's own models lie on the Hub.

A ViT with learned positions has our names. One with rotary positions is timm's DINOv3 (Eva), whose
keys have no bias unless `attn_type` is "rope". Where timm's entry has LayerScale and the network
has none, gains are 1.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from fastequi.atomic import save_tensors
from fastequi.export.subject import FOLDER, Subject, Written, mlp_ratio
from fastequi.weights import timm
from fastequi.weights.layouts import Layout
from fastequi.weights.steps import UnitGains

FILES = ("config.json", "model.safetensors")

_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
# arguments of timm's vit_*_patch16_224; those of a size come first
_OF_SIZE = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12),
            "large": (1024, 24, 16)}  # fmt: skip
_PLAIN = {
    "img_size": 224, "patch_size": 16, "mlp_ratio": 4.0, "qkv_bias": True, "init_values": None,
    "class_token": True, "reg_tokens": 0, "no_embed_class": False, "global_pool": "token",
    "fc_norm": None, "final_norm": True,
}  # fmt: skip
_WITH_GAINS = replace(timm.VIT, steps=(UnitGains(),))
_GAIN = 1e-5  # of LayerScale before weights are loaded
_ROPE_EPS = {1e-5: "vit_{}_patch16_dinov3", 1e-6: "vit_{}_patch16_rope_224"}


def obstacle(subject: Subject) -> str | None:
    """Why timm has no such network; None if it has."""
    options = subject.options
    eps, rope = options["norm_eps"], options["pos"] == "rope"
    known = tuple(_ROPE_EPS) if rope else (1e-6,)
    if eps not in known:
        return f"the norms' epsilon of timm's is {' or '.join(map(str, known))}, here it is {eps:g}"
    if rope and not options["class_token"]:
        return "timm's DINOv3 has a class token, this network has none"
    if rope and not options["final_norm"]:
        return "timm's DINOv3 has a norm after the last block, this network has none"
    return None


def write(subject: Subject, folder: Path) -> Written:
    """Writes `FILES`; see :class:`Written`."""
    options, file = subject.options, folder / "model.safetensors"
    layout = _layout(subject)
    name, arguments = _rotary(subject) if layout.rope else _learned(options)
    if options["in_chans"] != 3:
        arguments["in_chans"] = options["in_chans"]
    save_tensors(file, layout.theirs(subject.state, options), {"format": "pt"})
    config = _config(subject, name, arguments)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    words = "".join(f", {key}={value!r}" for key, value in arguments.items() if key != "img_size")
    size = subject.encoder.image_size
    called = f'timm.create_model("{name}", img_size={size}{words}, num_classes=0'
    return Written(
        what=f"timm's {name}",
        code=(
            f"import timm\n\n"
            f'encoder = timm.create_model("local-dir:{FOLDER}", pretrained=True).eval()\n'
            f"tokens = encoder.forward_features(images)\n"
        ),
        difference=subject.read_back(layout, load_file(file)),
        checked="read back",
        notes=(f'Without config.json: `{called}, checkpoint_path="{FOLDER}/model.safetensors")`.',),
        library="timm",
    )


def _layout(subject: Subject) -> Layout:
    gated = subject.options["mlp"] == "swiglu"
    if subject.options["pos"] != "rope":
        return _WITH_GAINS if gated else timm.VIT
    if _keys_have_bias(subject):
        return timm.DINOV3_SWIGLU_KEY_BIAS if gated else timm.DINOV3_KEY_BIAS
    return timm.DINOV3_SWIGLU if gated else timm.DINOV3


def _keys_have_bias(subject: Subject) -> bool:
    return any(
        bool(tensor.chunk(3)[1].count_nonzero())
        for name, tensor in subject.state.items()
        if name.endswith("attn.qkv.bias")
    )


def _learned(options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """timm's name of a ViT with learned positions, and arguments that differ from that one's."""
    dim, gated = options["embed_dim"], options["mlp"] == "swiglu"
    classed = options["class_token"]
    size = _SIZES.get(dim, "base")
    hidden = options["mlp_hidden"] * (2 if gated else 1)
    height, width = options["img_size"]
    wanted = {
        **{name: options[name] for name in ("embed_dim", "depth", "num_heads", *_PLAIN)
           if name in options},
        "img_size": height if height == width else [height, width],
        "mlp_ratio": mlp_ratio(hidden, dim),
        "global_pool": "token" if classed else "avg",
        "fc_norm": None if classed else False,  # the norm is that of tokens, not of their mean
    }  # fmt: skip
    if gated:  # the one entry of timm's whose MLP is SwiGLU
        return "vit_giant_patch14_dinov2", {**wanted, "init_values": _GAIN}
    own = {**dict(zip(("embed_dim", "depth", "num_heads"), _OF_SIZE[size], strict=True)), **_PLAIN}
    differing = {name: value for name, value in wanted.items() if own[name] != value}
    return f"vit_{size}_patch16_224", differing


def _rotary(subject: Subject) -> tuple[str, dict[str, Any]]:
    """timm's name of a ViT with rotary positions whose norms have this epsilon, and arguments."""
    options = subject.options
    dim, gated = options["embed_dim"], options["mlp"] == "swiglu"
    size = {384: "small", 768: "base", 1024: "large"}.get(dim, "small")
    height, width = options["img_size"]
    arguments = {
        **{name: options[name] for name in ("patch_size", "embed_dim", "depth", "num_heads",
                                            "qkv_bias")},
        "init_values": _GAIN,
        "img_size": height if height == width else [height, width],
        "dynamic_img_size": True,
        "num_reg_tokens": options["reg_tokens"],
        "mlp_ratio": mlp_ratio(options["mlp_hidden"], dim),
        "swiglu_mlp": gated,
        "swiglu_align_to": 1 if gated else 0,
        "attn_type": "rope" if _keys_have_bias(subject) else "eva",
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_rotate_half": True,
        "rope_grid_indexing": "ij",
        "rope_temperature": options["rope_theta"],
        "global_pool": "token",
        "use_fc_norm": False,
    }  # fmt: skip
    return _ROPE_EPS[options["norm_eps"]].format(size), arguments


def _config(subject: Subject, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """config.json; `norm_eps` is for readers that do not know timm's networks by name."""
    encoder = subject.encoder
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": encoder.embed_dim,
        "norm_eps": subject.options["norm_eps"],
        "model_args": arguments,
        **subject.values,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [encoder.in_chans, *encoder.image_size],
            "fixed_input_size": subject.options["pos"] == "learned",
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "num_classes": 0,
            "pool_size": None,
            # timm would adapt weights of three channels to another number
            "first_conv": "patch_embed.proj" if encoder.in_chans == 3 else None,
            "classifier": "head",
        },
    }
