"""The architecture of a ViT, read from a state dict under our names, which are timm's.

Shapes determine everything but the number of attention heads, the grid of the positions and the
norms' epsilon. Those may be given (:class:`Stated`). Otherwise heads are assumed, and reported, as
in all published networks of that width (`published.py`), and a square grid. If that is not
possible, an error asks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastequi.functional import arguments
from fastequi.models.mlp import SwiGLU
from fastequi.models.vit import VisionTransformer
from fastequi.weights.files import some
from fastequi.weights.published import usual_heads

State = dict[str, Tensor]

PATCHES = "patch_embed.proj.weight"
_AXES = {PATCHES: 4, "pos_embed": 3, "cls_token": 3, "reg_token": 3, "blocks.0.mlp.fc1.weight": 2,
         "blocks.0.mlp.fc2.weight": 2}  # fmt: skip
_KINDS = {  # of networks that are no plain ViT, by the names of their tensors
    r"\.(attns|ffns)\.": "parallel blocks",
    r"\.attn\.([qkv]|[qkv]_proj|[qkv]_bias)\b": "q, k and v are apart",
    r"\.(q_norm|k_norm)\.": "q and k are normalised",
    r"\.mlp\.(fc1_g|fc1_x|w12|w1|w2|w3)\.": "a gated MLP (SwiGLU)",
    r"relative_position": "relative positions (BEiT, Swin)",
    r"^norm_pre\.": "a norm before the blocks (CLIP's)",
    r"^cls_norm\.": "class and patch tokens have norms of their own",
    r"^(rope|freqs|rope_embed)\b": "rotary positions",
}


@dataclass(frozen=True)
class Stated:
    """What the caller says of a file's ViT that its tensors do not, and asks of it; None: nothing.

    Attributes:
        num_heads: of every block.
        img_size: height and width in pixels of the images that the positions are for.
        network: "teacher" or "student", of a file with both; by default the teacher.
        patch_size: that the patch embedding is resized to (`adapt.patches`).
        channels: of the patch embedding that are kept, in this order, from 0.
        in_chans: of the images that it is for. One channel of the weights is repeated for three of
            the images; else they have to be as many.
    """

    num_heads: int | None = None
    img_size: tuple[int, int] | None = None
    network: str | None = None
    patch_size: int | None = None
    channels: tuple[int, ...] | None = None
    in_chans: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_heads", 1), ("patch_size", 1), ("in_chans", 1)):
            value = getattr(self, name)
            if value is not None:
                arguments.integer(name, value, least=least)
        if self.img_size is not None and (len(self.img_size) != 2 or min(self.img_size) < 1):
            raise ValueError(f"img_size: expected (height, width) in pixels, got {self.img_size}")

    def over(self, other: Stated) -> Stated:
        """This, with missing values from the other."""
        names = vars(self)
        own = {name: getattr(other, name) if names[name] is None else names[name] for name in names}
        return Stated(**own)


UNSTATED = Stated()


@dataclass(frozen=True)
class Asked:
    """How the options that a message asks for are called.

    Attributes:
        file: that the file is named by.
        num_heads, img_size, network, channels: of :class:`Stated`.
        of_num_heads: why the number of heads has to be given, beside that the file lacks it.
    """

    file: str = "CHECKPOINT"
    num_heads: str = "--num-heads"
    img_size: str = "--img-size"
    network: str = "--network"
    channels: str = "--channels"
    of_num_heads: str = ""


ASKED = Asked()


class UnlikeError(ValueError):
    """Tensors are not those of a ViT of ours.

    Attributes:
        kinds: what the network is, if its names tell.
        missing, unknown: tensors.
        wrong: (tensor, its shape, the expected one).
    """

    def __init__(
        self,
        kinds: Sequence[str] = (),
        missing: Sequence[str] = (),
        unknown: Sequence[str] = (),
        wrong: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]] = (),
    ) -> None:
        self.kinds, self.missing, self.unknown, self.wrong = kinds, missing, unknown, wrong
        super().__init__(self.told("a plain ViT under timm's names", str))

    def told(self, what: str, spelled: Callable[[str], str]) -> str:
        """The message, for a layout that spells our names otherwise."""
        parts = [", ".join(self.kinds)] if self.kinds else []
        parts += [f"no {some([spelled(n) for n in self.missing])}"] if self.missing else []
        parts += [f"unknown {some([spelled(n) for n in self.unknown])}"] if self.unknown else []
        shapes = [f"{spelled(n)} {found}, not {expected}" for n, found, expected in self.wrong]
        parts += [some(shapes)] if shapes else []
        return f"not the tensors of {what}: {'; '.join(parts)}"


def from_shapes(state: State, *, rope: bool = False) -> dict[str, Any]:
    """The arguments of :class:`VisionTransformer` that follow from a state dict's shapes.

    `num_heads` and the positions' `img_size` and `no_embed_class` do not, and are missing.

    Args:
        state: the tensors that tokens are computed from.
        rope: positions are rotary; else there has to be an embedding.

    Raises:
        UnlikeError: a tensor is missing or not a ViT's.
        ValueError: one is of a wrong shape.
    """
    first = [PATCHES, "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"]
    missing = [name for name in [*first, *([] if rope else ["pos_embed"])] if name not in state]
    if missing:
        raise UnlikeError(_kinds(state), missing)
    for name, axes in _AXES.items():
        if name in state and state[name].ndim != axes:
            found = state[name].ndim
            raise ValueError(f"not a ViT's tensors: {name} has {found} axes, expected {axes}")
    dim, chans, patch, across = state[PATCHES].shape
    if patch != across:
        raise ValueError(f"{PATCHES}: expected square patches, got {patch}x{across}")
    registers, classes = state.get("reg_token"), state.get("head.weight")
    hidden = state["blocks.0.mlp.fc2.weight"].shape[1]
    gated = len(state["blocks.0.mlp.fc1.weight"]) == 2 * hidden
    options: dict[str, Any] = {
        "patch_size": patch,
        "in_chans": chans,
        "num_classes": 0 if classes is None else len(classes),
        "embed_dim": dim,
        "depth": _depth(state),
        "mlp": "swiglu" if gated else "gelu",
        "mlp_hidden": hidden,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "class_token": "cls_token" in state,
        "reg_tokens": 0 if registers is None else registers.shape[1],
        "final_norm": "norm.weight" in state,
        "pos": "rope" if rope else "learned",
    }
    if not options["final_norm"] and "fc_norm.weight" not in state:
        raise UnlikeError(_kinds(state), ["norm.weight"])
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("fc_norm.")}
    expect_tensors(rest, lambda: _of_any_grid(options), but="pos_embed")
    return options


def settled(
    state: State,
    options: dict[str, Any],
    stated: Stated = UNSTATED,
    asked: Asked = ASKED,
) -> tuple[dict[str, Any], list[str]]:
    """All arguments of :class:`VisionTransformer`, and a list of those that are assumed.

    Args:
        state: the tensors.
        options: from :func:`from_shapes`.
        stated: given properties.
        asked: how they are called in messages.

    Raises:
        ValueError: a property is neither given nor usual, or does not fit.
    """
    heads, assumed = _heads(options["embed_dim"], options["class_token"], stated, asked)
    if options["pos"] == "rope":
        size, more = stated.img_size, []
        if size is None:
            size = (_ROPE_SIDE, _ROPE_SIDE)
            more = [f"img_size {_ROPE_SIDE}x{_ROPE_SIDE} (rotary positions take any)"]
        patch = options["patch_size"]
        size = (size[0] // patch * patch, size[1] // patch * patch)
        return {**options, "num_heads": heads, "img_size": size}, assumed + more
    prefix = options["class_token"] + options["reg_tokens"]
    places = state["pos_embed"].shape[1]
    size, embedded, more = _img_size(places, prefix, options["patch_size"], stated, asked)
    found = {"num_heads": heads, "img_size": size, "no_embed_class": embedded < prefix}
    return {**options, **found}, assumed + more


_ROPE_SIDE = 224


def options_of(network: VisionTransformer) -> dict[str, Any]:
    """The arguments that a ViT's architecture was made with; not those of its training.

    `init_values` is 1e-5 where there is LayerScale: its first value is not kept.
    """
    found = {
        "img_size": network.img_size,
        "patch_size": network.patch_size,
        "in_chans": network.in_chans,
        "num_classes": getattr(network.head, "out_features", 0),
        "embed_dim": network.embed_dim,
        "depth": len(network.blocks),
        "num_heads": network.num_heads,
        "class_token": network.cls_token is not None,
        "reg_tokens": 0 if network.reg_token is None else network.reg_token.shape[1],
        "no_embed_class": network.no_embed_class,
        "pos": "learned" if network.rope is None else "rope",
        "final_norm": isinstance(network.norm, torch.nn.LayerNorm),
    }
    if network.rope is not None:
        found["rope_theta"] = network.rope.theta
    if len(network.blocks):
        block: Any = network.blocks[0]
        found |= {
            "mlp": "swiglu" if isinstance(block.mlp, SwiGLU) else "gelu",
            "mlp_hidden": block.mlp.fc2.in_features,
            "qkv_bias": block.attn.qkv.bias is not None,
            "init_values": 1e-5 if hasattr(block.ls1, "gamma") else None,
            "norm_eps": block.norm1.eps,
        }
    return found


def _of_any_grid(options: dict[str, Any]) -> VisionTransformer:
    """With heads of four channels, of which every network's are a multiple for rotary positions."""
    dim, patch = options["embed_dim"], options["patch_size"]
    heads = 1 if dim % 4 else dim // 4
    return VisionTransformer(**options, num_heads=heads, img_size=patch)


def _heads(dim: int, class_token: bool, stated: Stated, asked: Asked) -> tuple[int, list[str]]:
    heads, assumed = stated.num_heads, []
    if heads is None:
        heads = usual_heads(dim, class_token)
        assumed = [f"num_heads {heads} (usual at {dim} channels)"]
    if heads is None:
        why = f" ({asked.of_num_heads})" if asked.of_num_heads else ""
        raise ValueError(
            f"num_heads: unknown for {dim} channels; expected {asked.num_heads}{why}, or num_heads "
            f"in a config.json beside the file"
        )
    if dim % heads:
        raise ValueError(f"num_heads: expected a divisor of its {dim} channels, got {heads}")
    return heads, assumed


def _img_size(
    places: int, prefix: int, patch: int, stated: Stated, asked: Asked
) -> tuple[tuple[int, int], int, list[str]]:
    """The images' height and width, the number of prefix positions, and what is assumed."""
    if stated.img_size is not None:
        rows, columns = (side // patch for side in stated.img_size)
        for others in (prefix, 0):
            if rows * columns == places - others:
                return (rows * patch, columns * patch), others, []
        raise ValueError(
            f"img_size: {'x'.join(map(str, stated.img_size))} px ({asked.img_size} or config.json) "
            f"are {rows}x{columns} patches of {patch} px, but pos_embed has {places} positions "
            f"(with or without those of {prefix} prefix tokens)"
        )
    squares = {n: math.isqrt(places - n) for n in (prefix, 0) if places > n}
    squares = {n: side for n, side in squares.items() if side * side == places - n}
    if len(squares) != 1:
        raise ValueError(
            f"img_size: unknown for {places} positions in pos_embed; expected {asked.img_size}, or "
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
        raise ValueError(f"{some(gaps)} missing of blocks.0 to blocks.{depth - 1}")
    return depth


def expect_tensors(state: State, make: Callable[[], VisionTransformer], but: str = "") -> None:
    """Raises UnlikeError if names or shapes differ from those of the ViT that `make` builds.

    Args:
        but: a tensor whose shape may differ.
    """
    with torch.device("meta"):
        expected = make().state_dict()
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        raise UnlikeError(_kinds(state), missing, unknown)
    wrong = [
        (name, tuple(state[name].shape), tuple(tensor.shape))
        for name, tensor in expected.items()
        if name != but and tensor.shape != state[name].shape
    ]
    if wrong:
        raise UnlikeError(wrong=wrong)


def _kinds(state: State) -> list[str]:
    return [kind for how, kind in _KINDS.items() if any(re.search(how, name) for name in state)]
