"""What the JSON files beside a file of weights say of its ViT: timm's or transformers'.

timm's config.json, as on the Hub: `architecture` and `model_args` give the number of heads and the
image size, `pretrained_cfg` the normalisation. {"num_heads": 12, "img_size": [128, 512]} is enough.
transformers' config.json has a `model_type`; the normalisation is in preprocessor_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastequi.weights.architecture import UNSTATED, Stated

Floats = tuple[float, ...]

# arguments that change a network without changing a shape, and the values that a plain ViT has
_PLAIN = {
    "act_layer": (None, "gelu"),
    "norm_layer": (None, "layernorm"),
    "mlp_layer": (None, "mlp"),
    "attn_layer": (None, "attn"),
    "block_fn": (None,),
    "embed_layer": (None,),
    "embed_norm_layer": (None,),
}
TYPES = ("vit", "deit", "vit_mae", "dinov2", "dinov2_with_registers", "dinov3_vit")
"""transformers' `model_type` of what is read."""


@dataclass(frozen=True)
class HubConfig:
    """What was found; None: not given.

    Attributes:
        stated: heads and image size, but for heads that only follow from the architecture.
        architecture: timm's name of it.
        embed_dim: channels, if they differ from the architecture's.
        norm_eps, rope_theta: of the network.
        rope_type: timm's name of the rotary positions, if it is not the architecture's.
        shapes: options of the network that its tensors have to have, by the field that says so.
    """

    stated: Stated = UNSTATED
    architecture: str | None = None
    embed_dim: int | None = None
    norm_eps: float | None = None
    rope_theta: float | None = None
    rope_type: str | None = None
    shapes: Mapping[str, tuple[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> HubConfig:
        """From the object in a config.json.

        Raises:
            ValueError: a field that is read has a wrong type or value, or is no plain ViT's.
        """
        if "model_type" in found and "architecture" not in found:
            return _of_transformers(found)
        given = _with_sections(found)
        for name, plain in _PLAIN.items():
            if given.get(name) not in plain:
                raise _unexpected(name, f"{plain[-1] or 'none'}, a plain ViT's", given[name])
        if "img_size" not in given and "input_size" in given:
            given["img_size"] = _list("input_size", given["input_size"], int, 3)[1:]
        values = {name: how(name, given[name]) for name, how in _TIMM.items() if name in given}
        stated = Stated(values.get("num_heads"), values.get("img_size"))
        shown: tuple[str, ...] = ("embed_dim", "depth", "patch_size", "reg_tokens")
        shapes = {name: (name, values[name]) for name in shown if name in values}
        return cls(
            stated,
            values.get("architecture"),
            values.get("embed_dim"),
            values.get("norm_eps"),
            values.get("rope_temperature"),
            values.get("rope_type"),
            shapes,
        )


def normalisation(
    found: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, chans: int
) -> tuple[Floats | None, Floats | None]:
    """Mean and std, in 0..1, of a network of `chans` channels; None where nothing says them.

    Args:
        found: the object in config.json.
        preprocessor: that in preprocessor_config.json, which goes first.

    Raises:
        ValueError: a field is not `chans` numbers (or one for all), or a std not above 0.
    """
    given, names, scale = _with_sections(found), ("mean", "std"), 1.0
    if preprocessor is not None:
        given, names = dict(preprocessor), ("image_mean", "image_std")
        # values are (pixel · factor - mean) / std; the usual factor is 1 / 255
        factor = given.get("rescale_factor", 1 / 255) if given.get("do_rescale", True) else 1.0
        scale = 255 * _list("rescale_factor", [factor], float, 1)[0]
        if not given.get("do_normalize", True):
            given |= {"image_mean": [0.0], "image_std": [1.0]}
    read: list[Floats | None] = []
    for name in names:
        if name not in given:
            read.append(None)
            continue
        value = given[name]
        if isinstance(value, list) and len(value) == 1:
            value = value * chans
        read.append(tuple(number / scale for number in _list(name, value, float, chans)))
    mean, std = read
    if std is not None and min(std) <= 0:
        raise _unexpected(names[1], "numbers > 0", given[names[1]])
    if mean is not None and max(mean) > 1:
        raise _unexpected(names[0], "numbers of values in 0..1", given[names[0]])
    for has, lacks in ((0, 1), (1, 0)):
        if read[has] is not None and read[lacks] is None:
            raise ValueError(f"{names[lacks]}: expected beside {names[has]}, got none")
    return mean, std


def _with_sections(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is said, and in timm's sections: what was asked for goes before defaults."""
    given = dict(found)
    for name in ("pretrained_cfg", "model_args"):
        section = found.get(name, {})
        if not isinstance(section, dict):
            raise _unexpected(name, "an object", section)
        given |= section
    return given


def _of_transformers(found: Mapping[str, Any]) -> HubConfig:
    kind = found["model_type"]
    if kind not in TYPES:
        raise _unexpected("model_type", f"one of {', '.join(TYPES)}", kind)
    gated = found.get("use_swiglu_ffn", False) or found.get("use_gated_mlp", False)
    activation = found.get("hidden_act", "gelu")
    if not found.get("use_swiglu_ffn", False) and activation != ("silu" if gated else "gelu"):
        raise _unexpected("hidden_act", "silu for a gated MLP, else gelu", activation)
    rope = found.get("rope_parameters") or {}
    given = {**(rope if isinstance(rope, dict) else {}), **found}
    values = {name: how(name, given[name]) for name, how in _HUGGING.items() if name in given}
    shapes = {name: (_SHAPES[name], value) for name, value in values.items() if name in _SHAPES}
    if "use_swiglu_ffn" in found or "use_gated_mlp" in found:
        name = "use_swiglu_ffn" if "use_swiglu_ffn" in found else "use_gated_mlp"
        shapes[name] = ("mlp", "swiglu" if gated else "gelu")
    if "mlp_ratio" in values and "hidden_size" in values:
        ratio = values["mlp_ratio"]
        hidden = _hidden(values["hidden_size"] * ratio, gated)
        shapes[f"mlp_ratio {ratio:g}, hidden channels"] = ("mlp_hidden", hidden)
    return HubConfig(
        Stated(values.get("num_attention_heads"), values.get("image_size")),
        norm_eps=values.get("layer_norm_eps"),
        rope_theta=values.get("rope_theta"),
        shapes=shapes,
    )


def _hidden(channels: float, gated: bool) -> int:
    """Channels within a DINOv2's MLP, whose gated form has two thirds, a multiple of 8."""
    return (int(int(channels) * 2 / 3) + 7) // 8 * 8 if gated else int(channels)


def _sides(name: str, value: Any) -> tuple[int, int]:
    """A side, or height and width."""
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    sides = _list(name, value if isinstance(value, list) else [value] * 2, int, 2)
    return sides[0], sides[1]


def _side(name: str, value: Any) -> int:
    """Of a square, as a number or twice."""
    height, width = _sides(name, value)
    if height != width:
        raise _unexpected(name, "a square", value)
    return height


def _name(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _unexpected(name, "a name", value)
    return value


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _unexpected(name, "true or false", value)
    return value


def _count(name: str, value: Any) -> int:
    return int(_list(name, [value], int, 1)[0])


def _number(name: str, value: Any) -> float:
    found = float(_list(name, [value], float, 1)[0])
    if found <= 0:
        raise _unexpected(name, "a number > 0", value)
    return found


def _amount(name: str, value: Any) -> int:
    """A count that may be 0."""
    return 0 if value == 0 and not isinstance(value, bool) else _count(name, value)


_TIMM: dict[str, Callable[[str, Any], Any]] = {
    "num_heads": _count,
    "embed_dim": _count,
    "depth": _count,
    "patch_size": _side,
    "reg_tokens": _amount,
    "img_size": _sides,
    "architecture": _name,
    "norm_eps": _number,
    "rope_temperature": _number,
    "rope_type": _name,
}
_HUGGING: dict[str, Callable[[str, Any], Any]] = {
    "num_attention_heads": _count,
    "image_size": _sides,
    "layer_norm_eps": _number,
    "rope_theta": _number,
    "hidden_size": _count,
    "num_hidden_layers": _count,
    "intermediate_size": _count,
    "patch_size": _side,
    "num_channels": _count,
    "num_register_tokens": _amount,
    "qkv_bias": _switch,
    "mlp_ratio": _number,
}
_SHAPES = {  # transformers' fields, and our options that tensors show
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "intermediate_size": "mlp_hidden",
    "patch_size": "patch_size",
    "num_channels": "in_chans",
    "num_register_tokens": "reg_tokens",
    "qkv_bias": "qkv_bias",
}


def _list(name: str, value: Any, kind: type, length: int) -> list[Any]:
    """`length` numbers, integers at least 1."""
    one = {int: "an integer >= 1", float: "a number"}[kind]
    if (
        not isinstance(value, list)
        or len(value) != length
        or any(isinstance(n, bool) or not isinstance(n, int | kind) for n in value)
        or (kind is int and min(value) < 1)
    ):
        shown = value[0] if isinstance(value, list) and length == 1 == len(value) else value
        raise _unexpected(name, one if length == 1 else f"{length} numbers, each {one}", shown)
    return value


def _unexpected(name: str, expected: str, came: Any) -> ValueError:
    return ValueError(f"{name}: expected {expected}, got {json.dumps(came)[:80]}")
