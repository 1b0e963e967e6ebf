"""Steps between a layout's tensors and ours that are more than names; all are reversible."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
Options = Mapping[str, Any]


class Unchanged:
    """A step that changes no names."""

    def spelled(self, name: str) -> tuple[str, ...]:
        return (name,)


class Unchunked(Unchanged):
    """Blocks in chunks, as DINOv2 trains them: blocks.1.10. is block 10, in chunk 1."""

    def ours(self, state: State) -> State:
        return {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", n): t for n, t in state.items()}

    def theirs(self, state: State, options: Options) -> State:
        """One list of blocks, as the weights for others are published."""
        return state


class ClassPosition(Unchanged):
    """Positions of the class token and the patches, whether there are registers or not.

    Ours of a network with registers are of the patches alone; the class token has its own added.
    Written, a position that ours lacks is zero, and registers have theirs added.
    """

    def ours(self, state: State) -> State:
        if "reg_token" not in state or "pos_embed" not in state or "cls_token" not in state:
            return state
        positions = state["pos_embed"]
        token = state["cls_token"] + positions[:, :1]
        return {**state, "cls_token": token, "pos_embed": positions[:, 1:].contiguous()}

    def theirs(self, state: State, options: Options) -> State:
        positions, registers = state["pos_embed"], options.get("reg_tokens", 0)
        if options.get("no_embed_class", False):
            bare = torch.zeros_like(positions[:, :1])
            return {**state, "pos_embed": torch.cat([bare, positions], 1)}
        if not registers:
            return state
        first, own, rest = positions.split([1, registers, positions.shape[1] - 1 - registers], 1)
        return {
            **state,
            "reg_token": state["reg_token"] + own,
            "pos_embed": torch.cat([first, rest], 1),
        }


class UnitGains(Unchanged):
    """LayerScale in every block: a network without it is written with gains of 1."""

    def ours(self, state: State) -> State:
        return state

    def theirs(self, state: State, options: Options) -> State:
        if options.get("init_values") is not None:
            return state
        names = [f"blocks.{i}.ls{n}.gamma" for i in range(options["depth"]) for n in (1, 2)]
        return {**state, **{name: torch.ones(options["embed_dim"]) for name in names}}


class KeyBiasMask(Unchanged):
    """A mask on the biases of queries, keys and values that leaves out those of keys (DINOv3)."""

    def ours(self, state: State) -> State:
        masks = {n: t for n, t in state.items() if n.endswith("attn.qkv.bias_mask")}
        kept = {name: tensor for name, tensor in state.items() if name not in masks}
        for name, mask in masks.items():
            bias = name.removesuffix("_mask")
            kept[bias] = kept[bias] * mask.to(kept[bias].dtype)
        return kept

    def theirs(self, state: State, options: Options) -> State:
        masks = {}
        for name, bias in state.items():
            if name.endswith("attn.qkv.bias"):
                mask = torch.ones_like(bias)
                if not bias.chunk(3)[1].count_nonzero():
                    mask.chunk(3)[1].zero_()
                masks[f"{name}_mask"] = mask
        return {**state, **masks}


@dataclass(frozen=True)
class Periods(Unchanged):
    """The periods of rotary positions as a tensor: theta^(4j/D), j = 0 .. D/4 - 1, of D channels.

    Attributes:
        name: its name.
    """

    name: str

    def ours(self, state: State) -> State:
        return {name: tensor for name, tensor in state.items() if name != self.name}

    def theirs(self, state: State, options: Options) -> State:
        quarter = options["embed_dim"] // options["num_heads"] // 4
        exponents = torch.arange(quarter, dtype=torch.float32) / quarter
        return {**state, self.name: options.get("rope_theta", 100.0) ** exponents}

    def facts(self, state: State) -> dict[str, Any]:
        """Heads and theta.

        Raises:
            ValueError: the periods are not those of one theta.
        """
        periods = state[self.name].double()
        quarter, dim = len(periods), state["cls_token"].shape[-1]
        exponents = torch.arange(quarter, dtype=torch.float64) / quarter
        if dim % (4 * quarter) or not bool((periods > 0).all()):
            raise ValueError(f"{self.name}: expected a divisor of {dim // 4} periods > 0")
        found: dict[str, Any] = {"num_heads": dim // (4 * quarter)}
        if quarter > 1:  # by least squares; published ones are rounded to bfloat16
            theta = float(((exponents * periods.log()).sum() / exponents.square().sum()).exp())
            rounded = (float(f"{theta:.{digits}g}") for digits in (1, 2, 3, 6))
            fits = [t for t in rounded if (periods / t**exponents - 1).abs().max() < _BF16]
            if not fits:
                raise ValueError(f"{self.name}: expected theta^(j/{quarter}) of one theta")
            found["rope_theta"] = fits[0]
        return found


_BF16 = 2.0**-8  # relative error of rounding


@dataclass(frozen=True)
class MaskToken(Unchanged):
    """The token in the place of masked patches: no part of the encoder; written as zeros.

    Attributes:
        name: its name.
        axes: two or three.
    """

    name: str
    axes: int = 2

    def ours(self, state: State) -> State:
        return {name: tensor for name, tensor in state.items() if name != self.name}

    def theirs(self, state: State, options: Options) -> State:
        shape = (1,) * (self.axes - 1)
        return {**state, self.name: torch.zeros(*shape, options["embed_dim"])}
