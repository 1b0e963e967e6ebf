"""A folder that transformers opens: ViT, Dinov2, Dinov2WithRegisters or DINOv3ViT.

The first of them that has the network: ViT has neither registers nor LayerScale, the others have
gains of 1 where the network has none. Positions of prefix tokens become part of these tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fastequi.atomic import save_tensors
from fastequi.data.channels import RGB
from fastequi.export.subject import FOLDER, State, Subject, Written
from fastequi.weights import huggingface
from fastequi.weights.layouts import Layout

FILES = ("config.json", "preprocessor_config.json", "model.safetensors")

_CLASSES = {
    "vit": "ViTModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
}
_LARGEST_RATIO = 16


def obstacle(subject: Subject) -> str | None:
    """Why transformers has no such network; None if it has."""
    options = subject.options
    kind = _kind(options)
    if not options["class_token"]:
        return "transformers' ViTs have a class token, this network has none"
    if not options["final_norm"]:
        return "transformers' ViTs have a norm after the last block, this network has none"
    if kind.startswith("dinov2"):
        name = _CLASSES[kind]
        if not subject.is_square:
            height, width = subject.encoder.image_size
            return f"positions of {name} are a square, these are of {height}x{width} px"
        if _whole_ratio(options) is None:
            dim, hidden = options["embed_dim"], options["mlp_hidden"]
            return f"mlp_ratio of {name} is an integer, which {hidden} of {dim} channels is not"
    return None


def write(subject: Subject, folder: Path) -> Written:
    """Writes `FILES`; see :class:`Written`."""
    kind, file = _kind(subject.options), folder / "model.safetensors"
    layout = _layout(kind, subject.options)
    tensors = layout.theirs(subject.state, subject.options)
    config = _common(subject, kind) | _own(subject, kind, tensors)
    save_tensors(file, _completed(tensors, config), {"format": "pt"})
    files, rgb = {"config": config}, subject.encoder.channels == RGB
    if rgb:
        files["preprocessor_config"] = _preprocessor(subject)
    else:  # transformers' processors are of RGB
        config |= {"mean": subject.encoder.mean, "std": subject.encoder.std}
    for name, content in files.items():
        text = json.dumps(content, indent=1) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    notes = ["`pooler_output` is the class token, as of `last_hidden_state`."]
    if subject.options["pos"] == "learned":
        notes.append("For images of other sizes transformers interpolates positions otherwise.")
    if not rgb:
        notes.append("transformers has no processor of such images; config.json holds mean, std.")
    elif not subject.is_square:
        height, width = subject.encoder.image_size
        notes.append(f"The processor does not resize: give it images of {height}x{width} px.")
    return Written(
        what=f"transformers' {_CLASSES[kind]}",
        code=_CODE if rgb else _CODE_OF_TENSORS,
        difference=subject.read_back(layout, load_file(file)),
        checked="read back",
        notes=tuple(notes),
        library="transformers",
    )


_CODE = f"""from transformers import AutoImageProcessor, AutoModel

encoder = AutoModel.from_pretrained("{FOLDER}")
processor = AutoImageProcessor.from_pretrained("{FOLDER}")
tokens = encoder(**processor(image, return_tensors="pt")).last_hidden_state
"""
_CODE_OF_TENSORS = f"""from transformers import AutoModel

encoder = AutoModel.from_pretrained("{FOLDER}")
tokens = encoder(pixel_values=images).last_hidden_state
"""


def _kind(options: dict[str, Any]) -> str:
    """`model_type` of the network that this one is written as."""
    if options["pos"] == "rope":
        return "dinov3_vit"
    if options["reg_tokens"]:
        return "dinov2_with_registers"
    plain = options["mlp"] == "gelu" and options["init_values"] is None
    return "vit" if plain else "dinov2"


def _layout(kind: str, options: dict[str, Any]) -> Layout:
    gated = options["mlp"] == "swiglu"
    if kind == "dinov3_vit":
        return huggingface.DINOV3_SWIGLU if gated else huggingface.DINOV3
    if kind == "vit":
        return huggingface.VIT
    return huggingface.DINOV2_SWIGLU if gated else huggingface.DINOV2


def _common(subject: Subject, kind: str) -> dict[str, Any]:
    options = subject.options
    height, width = options["img_size"]
    return {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "hidden_size": options["embed_dim"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["num_heads"],
        "image_size": height if height == width else [height, width],
        "patch_size": options["patch_size"],
        "num_channels": options["in_chans"],
        **subject.values,
        "layer_norm_eps": options["norm_eps"],
        "hidden_act": "gelu",
        "torch_dtype": "float32",
    }


def _own(subject: Subject, kind: str, tensors: State) -> dict[str, Any]:
    """What the config of one kind has besides."""
    options = subject.options
    gated, bias = options["mlp"] == "swiglu", options["qkv_bias"]
    if kind == "vit":
        return {
            "intermediate_size": options["mlp_hidden"],
            "qkv_bias": bias,
            "pooler_output_size": options["embed_dim"],
            "pooler_act": "linear",
        }
    if kind != "dinov3_vit":
        registers = {"num_register_tokens": options["reg_tokens"]} if options["reg_tokens"] else {}
        ratio = {"mlp_ratio": _whole_ratio(options), "use_swiglu_ffn": gated}
        return {**ratio, "qkv_bias": bias, "layerscale_value": 1.0, **registers}
    rope = subject.encoder.network.rope
    assert rope is not None
    return {
        "intermediate_size": options["mlp_hidden"],
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "query_bias": bias,
        "key_bias": any(name.endswith(_KEY_BIAS) for name in tensors),
        "value_bias": bias,
        "layerscale_value": 1.0,
        "num_register_tokens": options["reg_tokens"],
        "rope_theta": options["rope_theta"],
        "pos_embed_rescale": rope.rescale if rope.rescale > 1 else None,
        "pos_embed_jitter": rope.jitter if rope.jitter > 1 else None,
        "pos_embed_shift": rope.shift if rope.shift > 0 else None,
    }


_KEY_BIAS = ".attention.k_proj.bias"


def _completed(tensors: State, config: dict[str, Any]) -> State:
    """With what transformers expects beside the encoder's own tensors."""
    dim, more = config["hidden_size"], {}
    if config["model_type"] == "vit":
        more["pooler.dense.weight"], more["pooler.dense.bias"] = torch.eye(dim), torch.zeros(dim)
    if config["model_type"] == "dinov3_vit":
        if not config["num_register_tokens"]:
            more["embeddings.register_tokens"] = torch.zeros(1, 0, dim)
        if config["key_bias"]:  # the layout leaves out those that are zero
            names = (f"layer.{i}{_KEY_BIAS}" for i in range(config["num_hidden_layers"]))
            more |= {name: torch.zeros(dim) for name in names if name not in tensors}
    return tensors | more


def _whole_ratio(options: dict[str, Any]) -> int | None:
    """Dinov2's mlp_ratio; None if no integer gives these hidden channels.

    Of SwiGLU's two thirds are taken, rounded up to a multiple of 8.
    """
    dim, hidden = options["embed_dim"], options["mlp_hidden"]
    for ratio in range(1, _LARGEST_RATIO + 1):
        found = ratio * dim
        if options["mlp"] == "swiglu":
            found = (int(found * 2 / 3) + 7) // 8 * 8
        if found == hidden:
            return ratio
    return None


def _preprocessor(subject: Subject) -> dict[str, Any]:
    """preprocessor_config.json, for what `fastequi.export.transform` does of a square."""
    encoder = subject.encoder
    height, width = encoder.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": subject.is_square,
        "size": {"shortest_edge": height},
        "resample": 2,  # bilinear
        "do_center_crop": subject.is_square,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }
