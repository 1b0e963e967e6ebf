"""The architecture of a ViT, read from a state dict under timm's names.

Shapes determine everything but the number of attention heads and the grid of the positions. Those
may be given (:class:`Stated`). Otherwise they are assumed, and reported: heads as in all published
networks of that width (`published.py`), a square grid. If that is not possible, an error asks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastequi.weights.published import usual_heads
from fastequi.models.vit import VisionTransformer

State = dict[str, Tensor]

_PATCHES = "patch_embed.proj.weight"
_NO_VIT = "not the tensors of a plain ViT under timm's names"
_NAMED = 3  # tensors named in a message

_AXES = {_PATCHES: 4, "pos_embed": 3, "reg_token": 3, "blocks.0.mlp.fc1.weight": 2}
_KINDS = {  # of networks that are no plain ViT, by the names of their tensors
    r"\.(attns|ffns)\.": "parallel blocks",
    r"\.attn\.([qkv]|[qkv]_proj|[qkv]_bias)\b": "q, k and v are apart",
    r"\.(q_norm|k_norm)\.": "q and k are normalised",
    r"\.mlp\.(fc1_g|fc1_x|w12|w1|w2|w3)\.": "a gated MLP (SwiGLU)",
    r"^norm_pre\.": "a norm before the blocks (CLIP's)",
    r"^fc_norm\.": "the last norm comes after the mean over tokens",
}


@dataclass(frozen=True)
class Stated:
    """Given properties of a ViT that its tensors do not determine; None: not given.

    Attributes:
        num_heads: of every block.
        img_size: height and width in pixels of the images that the positions are for.
    """

    num_heads: int | None = None
    img_size: tuple[int, int] | None = None

    def over(self, other: Stated) -> Stated:
        """This, with missing values from the other."""
        return Stated(self.num_heads or other.num_heads, self.img_size or other.img_size)


UNSTATED = Stated()


def plain(state: State) -> tuple[State, list[str]]:
    """The tensors that tokens are computed from, under timm's names, and a list of the changes.

    A prefix of all names is removed (DistributedDataParallel's `module.`, `backbone.`), with the
    tensors outside; heads and other tensors after the tokens or for training only are removed;
    DeiT's distillation token becomes a register token, as it acts outside of the loss.

    Raises:
        ValueError: no ViT, or several.
    """
    prefixes = [name.removesuffix(_PATCHES) for name in state if name.endswith(_PATCHES)]
    prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    if not prefixes:
        raise ValueError(f"{_NO_VIT}: no {_PATCHES}, but {_some(list(state)) or 'nothing'}")
    if len(prefixes) > 1:
        below = _some([repr(prefix) for prefix in prefixes])
        raise ValueError(f"expected one network, got {len(prefixes)}, below {below}")
    (prefix,) = prefixes
    changes = []
    if prefix:
        outside = [name for name in state if not name.startswith(prefix)]
        without = f", without {_some(outside)}" if outside else ""
        changes.append(f"read below the prefix {prefix!r}{without}")
    state = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    linear = {"head.weight", "head.bias"}
    kept = linear if linear <= state.keys() else set()
    after = re.compile(r"(head|head_dist|attn_pool)\.|(mask_token|masked_embed)$")
    unused = [name for name in state if after.match(name) and name not in kept]
    if unused:
        changes.append(f"left out tensors that no token depends on: {_some(unused)}")
        state = {name: t for name, t in state.items() if name not in unused}
    if "dist_token" in state and "reg_token" not in state:
        changes.append("dist_token is read as a register")
        state["reg_token"] = state.pop("dist_token")
    return state, changes


def from_shapes(state: State) -> dict[str, Any]:
    """The arguments of :class:`VisionTransformer` that follow from a state dict's shapes.

    `num_heads` and the positions' `img_size` and `no_embed_class` do not, and are missing.

    Args:
        state: from :func:`plain`.

    Raises:
        ValueError: a tensor is missing or not a plain ViT's.
    """
    missing = [n for n in ("pos_embed", "blocks.0.mlp.fc1.weight") if n not in state]
    if missing:
        raise ValueError(_unlike(state, missing))
    for name, axes in _AXES.items():
        if name in state and state[name].ndim != axes:
            raise ValueError(f"{_NO_VIT}: {name} has {state[name].ndim} axes, expected {axes}")
    dim, chans, patch, across = state[_PATCHES].shape
    if patch != across:
        raise ValueError(f"{_PATCHES}: expected square patches, got {patch}x{across}")
    registers, classes = state.get("reg_token"), state.get("head.weight")
    options: dict[str, Any] = {
        "patch_size": patch,
        "in_chans": chans,
        "num_classes": 0 if classes is None else len(classes),
        "embed_dim": dim,
        "depth": _depth(state),
        "mlp_ratio": _ratio(len(state["blocks.0.mlp.fc1.weight"]), dim),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "class_token": "cls_token" in state,
        "reg_tokens": 0 if registers is None else registers.shape[1],
    }
    of_any_grid = {**options, "num_heads": 1, "img_size": patch}
    expect_tensors(state, lambda: VisionTransformer(**of_any_grid), but="pos_embed")
    return options


def settled(
    state: State, options: dict[str, Any], stated: Stated = UNSTATED
) -> tuple[dict[str, Any], list[str]]:
    """All arguments of :class:`VisionTransformer`, and a list of those that are assumed.

    Args:
        state: the tensors.
        options: from :func:`from_shapes`.
        stated: given properties.

    Raises:
        ValueError: a property is neither given nor usual, or does not fit.
    """
    heads, assumed = _heads(options["embed_dim"], options["class_token"], stated)
    prefix = options["class_token"] + options["reg_tokens"]
    places = state["pos_embed"].shape[1]
    img_size, embedded, more = _img_size(places, prefix, options["patch_size"], stated)
    found = {"num_heads": heads, "img_size": img_size, "no_embed_class": embedded < prefix}
    return {**options, **found}, assumed + more


def _heads(dim: int, class_token: bool, stated: Stated) -> tuple[int, list[str]]:
    heads, assumed = stated.num_heads, []
    if heads is None:
        heads = usual_heads(dim, class_token)
        assumed = [f"num_heads {heads} (usual at {dim} channels)"]
    if heads is None:
        raise ValueError(
            f"num_heads: unknown for {dim} channels; expected --num-heads, or num_heads in a "
            f"config.json beside the file"
        )
    if dim % heads:
        raise ValueError(f"num_heads: expected a divisor of its {dim} channels, got {heads}")
    return heads, assumed


def _img_size(
    places: int, prefix: int, patch: int, stated: Stated
) -> tuple[tuple[int, int], int, list[str]]:
    """The images' height and width, the number of prefix positions, and what is assumed."""
    if stated.img_size is not None:
        rows, columns = (side // patch for side in stated.img_size)
        for others in (prefix, 0):
            if rows * columns == places - others:
                return (rows * patch, columns * patch), others, []
        raise ValueError(
            f"img_size: {'x'.join(map(str, stated.img_size))} px (--img-size or config.json) "
            f"are {rows}x{columns} patches of {patch} px, but pos_embed has {places} positions "
            f"(with or without those of {prefix} prefix tokens)"
        )
    squares = {n: math.isqrt(places - n) for n in (prefix, 0) if places > n}
    squares = {n: side for n, side in squares.items() if side * side == places - n}
    if len(squares) != 1:
        raise ValueError(
            f"img_size: unknown for {places} positions in pos_embed; expected --img-size, or "
            f"img_size in a config.json beside the file"
        )
    ((others, side),) = squares.items()
    size = side * patch
    return (size, size), others, [f"img_size {size}x{size} (a square of {side}x{side} patches)"]


def _depth(state: State) -> int:
    numbers = {int(found[1]) for n in state if (found := re.match(r"blocks\.(\d+)\.", n))}
    depth = max(numbers) + 1
    gaps = [f"blocks.{i}" for i in range(depth) if i not in numbers]
    if gaps:
        raise ValueError(f"{_some(gaps)} missing of blocks.0 to blocks.{depth - 1}")
    return depth


def _ratio(hidden: int, dim: int) -> float:
    """The MLP ratio that reproduces a width; hidden / dim itself may miss it by rounding."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def expect_tensors(state: State, make: Callable[[], VisionTransformer], but: str = "") -> None:
    """Raises ValueError if names or shapes differ from those of the ViT that `make` builds.

    Args:
        but: a tensor whose shape may differ.
    """
    with torch.device("meta"):
        expected = make().state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        raise ValueError(_unlike(state, missing, unknown))
    wrong = [n for n, tensor in expected.items() if n != but and tensor.shape != state[n].shape]
    if wrong:
        shapes = [f"{n} {tuple(state[n].shape)}, not {tuple(expected[n].shape)}" for n in wrong]
        gated = "a gated MLP (SwiGLU); " if all(".mlp.fc2." in name for name in wrong) else ""
        raise ValueError(f"{_NO_VIT}: {gated}{_some(shapes)}")


def _unlike(state: State, missing: list[str], unknown: Sequence[str] = ()) -> str:
    kinds = [kind for how, kind in _KINDS.items() if any(re.search(how, name) for name in state)]
    parts = [", ".join(kinds)] if kinds else []
    parts += [f"no {_some(missing)}"] if missing else []
    parts += [f"unknown {_some(unknown)}"] if unknown else []
    return f"{_NO_VIT}: {'; '.join(parts)}"


def _some(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
