"""The layouts that weights are published in: how each is recognised, read and written.

A layout is a chain of reversible steps: the first is applied to its tensors first, the last leaves
ours (timm's names, as :class:`fastequi.models.vit.VisionTransformer` has them); backwards they
write it. Most steps are tables of names (`names.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from fastequi.weights.names import Names

State = dict[str, Tensor]
Options = Mapping[str, Any]
"""Arguments of :class:`fastequi.models.vit.VisionTransformer`."""

PATCHES = "patch_embed.proj.weight"
# what every ViT of ours has, of one block
_OURS = (
    PATCHES, "blocks.0.norm1.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight",
    "blocks.0.norm2.weight", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight", "norm.weight",
)  # fmt: skip
PLAIN: Mapping[str, Any] = {"class_token": True, "final_norm": True, "mlp": "gelu"}
GATED: Mapping[str, Any] = {**PLAIN, "mlp": "swiglu"}


class Step(Protocol):
    """One part of the way from a layout's tensors to ours."""

    def ours(self, state: State) -> State:
        """Their tensors as ours; raises ValueError where they cannot be."""

    def theirs(self, state: State, options: Options) -> State:
        """Our tensors, of a network with these options, as theirs."""

    def spelled(self, name: str) -> tuple[str, ...]:
        """Their names of one of our tensors."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Tensors of a network as somebody publishes them.

    Attributes:
        name: for people.
        marks, lacks: patterns; a network is of this layout if each of the first, and none of the
            second, is found in a name of one of its tensors.
        around: patterns, each of which is found in a name of any tensor of the file.
        steps: from theirs to ours.
        unused: pattern of their tensors that no token depends on.
        heads: attention heads by the number of channels, of all that is published in it.
        norm_eps: epsilon of its norms, unless a config.json says it.
        rope: rotary positions instead of a position embedding.
        facts: further options of the network, from tensors that are none of its weights.
        written: options of the networks that it is written for.
    """

    name: str
    marks: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    around: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    unused: str = r"(?!)"
    heads: Mapping[int, int] = field(default_factory=dict)
    norm_eps: float = 1e-6
    rope: bool = False
    facts: Callable[[State], dict[str, Any]] | None = None
    written: Mapping[str, Any] = field(default_factory=lambda: PLAIN)

    def ours(self, state: State) -> State:
        """Their tensors under our names.

        Raises:
            ValueError: some that belong together are not complete or do not fit.
        """
        for step in self.steps:
            state = step.ours(state)
        return state

    def theirs(self, state: State, options: Options) -> State:
        """Our tensors under their names; what :meth:`ours` leaves out is not among them.

        Args:
            state: of a :class:`fastequi.models.vit.VisionTransformer`.
            options: all that it was made with (`architecture.options_of`).

        Raises:
            ValueError: the network has something that the layout cannot express.
        """
        needed = {"pos": "rope" if self.rope else "learned", **self.written}
        for name, value in needed.items():
            if options[name] != value:
                raise ValueError(f"{name}: expected {value} for {self.name}, got {options[name]}")
        for step in reversed(self.steps):
            state = step.theirs(state, options)
        return state

    def spelled(self, name: str) -> str:
        """Their name of one of our tensors, for messages; several are joined by "+"."""
        names: tuple[str, ...] = (name,)
        for step in reversed(self.steps):
            names = tuple(one for each in names for one in step.spelled(each))
        return "+".join(names)

    def zero(self, name: str) -> list[str]:
        """Their names of one of our tensors that are left out where they are zero."""
        tables = [step for step in self.steps if isinstance(step, Names)]
        return [their for table in tables for their in table.spelled(name) if table.may_miss(their)]


@dataclass(frozen=True)
class Network:
    """A network in a file: its layout, and what all names of its tensors begin with."""

    layout: Layout
    prefix: str

    def within(self, state: State) -> State:
        """Its tensors, without the prefix."""
        start = self.prefix
        return {name.removeprefix(start): t for name, t in state.items() if name.startswith(start)}


def networks(names: Iterable[str], known: Iterable[Layout]) -> list[Network]:
    """The networks that are found in a file, each of the first layout it shows the marks of."""
    names = list(names)
    found: dict[str, Network] = {}
    for layout in known:
        patches = layout.spelled(PATCHES)
        for name in names:
            prefix = name.removesuffix(patches)
            if prefix == name or (prefix and not prefix.endswith(".")) or prefix in found:
                continue
            within = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
            if (
                all(_any(mark, within) for mark in layout.marks)
                and not any(_any(mark, within) for mark in layout.lacks)
                and all(_any(mark, names) for mark in layout.around)
            ):
                found[prefix] = Network(layout, prefix)
    return [found[prefix] for prefix in sorted(found)]


def _any(pattern: str, names: list[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


def nearest(names: Iterable[str], known: Iterable[Layout]) -> Layout | None:
    """The layout whose names are the most of those given; None if none is among them."""
    names = [f".{name}" for name in names]

    def common(layout: Layout) -> int:
        spelled = [one for name in _OURS for one in layout.spelled(name).split("+")]
        return sum(any(name.endswith(f".{one}") for name in names) for one in spelled)

    best = max(reversed([*known]), key=common)  # of equals the most general, which is tried last
    return best if common(best) else None
