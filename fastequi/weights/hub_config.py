"""What a config.json beside a file of weights says of its ViT.

It is timm's, as on the Hub: `architecture` and `model_args` give the number of heads and the image
size, `pretrained_cfg` the normalisation. {"num_heads": 12, "img_size": [128, 512]} is enough.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class HubConfig:
    """What was found; None: not given.

    Attributes:
        stated: heads and image size, but for heads that only follow from the architecture.
        architecture: timm's name of it.
        embed_dim: channels, if they differ from the architecture's.
        mean, std: of the normalisation, in 0..1.
    """

    stated: Stated = UNSTATED
    architecture: str | None = None
    embed_dim: int | None = None
    mean: Floats | None = None
    std: Floats | None = None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> HubConfig:
        """From the object in the file.

        Raises:
            ValueError: a field that is read has a wrong type or value, or is no plain ViT's.
        """
        given = dict(found)
        for name in ("pretrained_cfg", "model_args"):  # what was asked for goes before defaults
            section = found.get(name, {})
            if not isinstance(section, dict):
                raise _unexpected(name, "an object", section)
            given |= section
        for name, plain in _PLAIN.items():
            if given.get(name) not in plain:
                raise _unexpected(name, f"{plain[-1] or 'none'}, a plain ViT's", given[name])
        if "img_size" not in given and "input_size" in given:
            given["img_size"] = _list("input_size", given["input_size"], int, 3)[1:]
        read = {
            "num_heads": lambda name, value: _list(name, [value], int, 1)[0],
            "embed_dim": lambda name, value: _list(name, [value], int, 1)[0],
            "img_size": _sides,
            "architecture": _name,
            "mean": lambda name, value: tuple(_list(name, value, float, 3)),
            "std": lambda name, value: tuple(_list(name, value, float, 3)),
        }
        values = {name: how(name, given[name]) for name, how in read.items() if name in given}
        if min(values.get("std", (1,))) <= 0:
            raise _unexpected("std", "numbers > 0", given["std"])
        stated = Stated(values.pop("num_heads", None), values.pop("img_size", None))
        return cls(stated, **values)


def _sides(name: str, value: Any) -> tuple[int, int]:
    """A side, or height and width."""
    sides = _list(name, value if isinstance(value, list) else [value] * 2, int, 2)
    return sides[0], sides[1]


def _name(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _unexpected(name, "a name", value)
    return value


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
