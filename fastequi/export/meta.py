"""The names of Meta's own code: DINOv2's, and DINOv3's of a ViT with rotary positions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fastequi.export.subject import FOLDER, Subject, Written, mlp_ratio
from fastequi.weights import meta
from fastequi.weights.layouts import Layout

FILES = ("config.json", "model.pth")

_ROPE_EPS = {1e-5: "layernormbf16", 1e-6: "layernorm"}  # DINOv3's names of norms


def obstacle(subject: Subject) -> str | None:
    """Why neither has such a network; None if one has."""
    options = subject.options
    rope, eps = options["pos"] == "rope", options["norm_eps"]
    known = tuple(_ROPE_EPS) if rope else (1e-6,)
    if not options["class_token"]:
        return "DINOv2 and DINOv3 have a class token, this network has none"
    if not options["final_norm"]:
        return "DINOv2 and DINOv3 have a norm after the last block, this network has none"
    if eps not in known:
        return f"the norms' epsilon there is {' or '.join(map(str, known))}, here it is {eps:g}"
    if not rope and not subject.is_square:
        height, width = subject.encoder.image_size
        return f"DINOv2's positions are a square, these are of {height}x{width} px"
    if options["mlp"] == "swiglu" and options["mlp_hidden"] % 8:
        return (
            f"the hidden channels of SwiGLU are a multiple of 8 there, here {options['mlp_hidden']}"
        )
    return None


def write(subject: Subject, folder: Path) -> Written:
    """Writes `FILES`; see :class:`Written`."""
    rope, file = subject.options["pos"] == "rope", folder / "model.pth"
    options = subject.options
    layout = _layout(options)
    # copies: what is saved must not share memory with a larger tensor
    written = {name: t.clone() for name, t in layout.theirs(subject.state, options).items()}
    torch.save(written, file)
    text = json.dumps(_unsaid(subject), indent=1) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    named = "dinov3" if rope else "dinov2"
    arguments = _dinov3(options) if rope else _dinov2(options)
    words = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    found = torch.load(file, map_location="cpu", weights_only=True)
    return Written(
        what=f"{layout.name}'s names",
        code=(
            f"import torch\nfrom {named}.models.vision_transformer import DinoVisionTransformer\n\n"
            f"encoder = DinoVisionTransformer({words})\n"
            f'encoder.load_state_dict(torch.load("{FOLDER}/model.pth", weights_only=True))\n'
            f"tokens = encoder.eval().forward_features(images)\n"
        ),
        difference=subject.read_back(layout, found),
        checked="read back",
        notes=(
            f"`{named}` is the code at github.com/facebookresearch/{named}.",
            "config.json is for `fastequi.load`: it holds what the tensors do not say.",
        ),
    )


def _unsaid(subject: Subject) -> dict[str, Any]:
    """What neither the tensors nor their names say."""
    encoder, options = subject.encoder, subject.options
    said = {name: options[name] for name in ("num_heads", "img_size", "norm_eps")}
    return {**said, "mean": encoder.mean, "std": encoder.std, **subject.values}


def _layout(options: dict[str, Any]) -> Layout:
    if options["pos"] == "rope":
        return meta.DINOV3_SWIGLU if options["mlp"] == "swiglu" else meta.DINOV3
    return meta.DINOV2_SWIGLU if options["mlp"] == "swiglu" else meta.DINOV2


def _ratio(options: dict[str, Any]) -> float:
    """mlp_ratio or ffn_ratio; of SwiGLU's two thirds are taken, then a multiple of 8."""
    hidden = options["mlp_hidden"]
    if options["mlp"] == "swiglu":
        hidden = hidden * 3 // 2
    return mlp_ratio(hidden, options["embed_dim"])


def _common(options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: options[name]
        for name in ("patch_size", "embed_dim", "depth", "num_heads", "qkv_bias")
    } | ({"in_chans": options["in_chans"]} if options["in_chans"] != 3 else {})


def _dinov2(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "img_size": options["img_size"][0],
        **_common(options),
        "mlp_ratio": _ratio(options),
        "init_values": 1.0,
        "ffn_layer": "swiglufused" if options["mlp"] == "swiglu" else "mlp",
        "block_chunks": 0,
        "num_register_tokens": options["reg_tokens"],
    }


def _dinov3(options: dict[str, Any]) -> dict[str, Any]:
    return {
        **_common(options),
        "ffn_ratio": _ratio(options),
        "layerscale_init": 1.0,
        "norm_layer": _ROPE_EPS[options["norm_eps"]],
        "ffn_layer": "swiglu" if options["mlp"] == "swiglu" else "mlp",
        "n_storage_tokens": options["reg_tokens"],
        "mask_k_bias": options["qkv_bias"],
        "pos_embed_rope_base": options["rope_theta"],
        "pos_embed_rope_dtype": "fp32",
    }
