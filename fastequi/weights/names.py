"""Tables of names, ours beside theirs, that are read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
Theirs = str | tuple[str, ...]
"""A name, or several: their rows, one above the other, are our tensor's."""
Table = Mapping[str, Theirs]
"""Ours to theirs."""

_OURS = "blocks"


@dataclass(frozen=True)
class Names:
    """Our names and a layout's.

    A name is that of a tensor or of a module, whose tensors keep the rest of theirs: "norm1" stands
    for norm1.weight and norm1.bias. What is in no table keeps its name.

    Attributes:
        whole: ours to theirs, outside of blocks.
        block: ours to theirs, within a block.
        blocks: their name of the list of blocks; ours is "blocks".
        zero: their tensors that are left out where they are zero, of `block`; read, they are zeros.
        closed: what is in no table is an error in writing.
    """

    whole: Table = field(default_factory=dict)
    block: Table = field(default_factory=dict)
    blocks: str = _OURS
    zero: frozenset[str] = frozenset()
    closed: bool = False

    def ours(self, state: State) -> State:
        """Their tensors under our names, stacked where they are several.

        Raises:
            ValueError: one of several that belong together is missing, or of another width.
        """
        found: dict[str, dict[int, tuple[str, Tensor]]] = {}
        for name, tensor in state.items():
            own, place = self._ours(name)
            found.setdefault(own, {})[place] = name, tensor
        return {name: self._stacked(name, parts) for name, parts in found.items()}

    def theirs(self, state: State, options: Mapping[str, Any] | None = None) -> State:
        """Our tensors under their names; the reverse of :meth:`ours`.

        Args:
            options: of the network; not needed.

        Raises:
            ValueError: rows that cannot be divided, or a tensor that has no name of theirs.
        """
        found: State = {}
        for name, tensor in state.items():
            if self.closed and not self._listed(name):
                raise ValueError(f"{name}: the layout has no such tensor")
            names = self.spelled(name)
            if len(tensor) % len(names) and len(names) > 1:
                raise ValueError(f"{name}: expected rows for {len(names)}, got {len(tensor)}")
            parts = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
            for one, part in zip(names, parts, strict=True):
                if not self.may_miss(one) or bool(part.count_nonzero()):
                    found[one] = part.clone() if len(names) > 1 else part
        return found

    def spelled(self, name: str) -> tuple[str, ...]:
        """Their names of one of our tensors."""
        start, rest, table = _divided(name, _OURS, self.block, self.whole)
        head, tail = _longest(rest, table)
        begin = f"{self.blocks}.{start}." if start else ""
        return tuple(f"{begin}{one}{tail}" for one in _several(table.get(head, head)))

    def _listed(self, name: str) -> bool:
        _, rest, table = _divided(name, _OURS, self.block, self.whole)
        return _longest(rest, table)[0] in table

    def _ours(self, name: str) -> tuple[str, int]:
        """Our name of one of their tensors, and its place among those that belong together."""
        inverse = self._inverse
        start, rest, table = _divided(name, self.blocks, inverse[0], inverse[1])
        head, tail = _longest(rest, table)
        own, place = table.get(head, (head, 0))
        return (f"{_OURS}.{start}.{own}{tail}" if start else f"{own}{tail}"), place

    def _stacked(self, name: str, parts: Mapping[int, tuple[str, Tensor]]) -> Tensor:
        names = self.spelled(name)
        known, like = next(iter(parts.values()))
        if len(names) == 1:
            return like
        missing = [one for i, one in enumerate(names) if i not in parts]
        if lost := [one for one in missing if not self.may_miss(one)]:
            raise ValueError(f"no {', '.join(lost)}, which belongs to {known}")
        stacked = [parts[i][1] if i in parts else torch.zeros_like(like) for i in range(len(names))]
        if len({tensor.shape for tensor in stacked}) > 1:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in stacked)
            raise ValueError(f"{', '.join(names)}: expected equal shapes, got {shapes}")
        return torch.cat(stacked)

    def may_miss(self, their: str) -> bool:
        """Whether one of their tensors is left out where it is zero."""
        return any(their.endswith(f".{name}") for name in self.zero)

    @cached_property
    def _inverse(self) -> tuple[dict[str, tuple[str, int]], dict[str, tuple[str, int]]]:
        """Theirs to ours and the place, of `block` and of `whole`."""
        return dict(_pairs(self.block)), dict(_pairs(self.whole))


def _pairs(table: Table) -> Iterator[tuple[str, tuple[str, int]]]:
    for own, their in table.items():
        for place, one in enumerate(_several(their)):
            yield one, (own, place)


def _several(their: Theirs) -> tuple[str, ...]:
    return (their,) if isinstance(their, str) else their


def _divided(
    name: str, blocks: str, within: Mapping[str, Any], outside: Mapping[str, Any]
) -> tuple[str, str, Mapping[str, Any]]:
    """The number of a block ("" outside of blocks), the rest of a name, and its table."""
    found = re.match(rf"{re.escape(blocks)}\.(\d+)\.", name)
    if found is None:
        return "", name, outside
    return found[1], name[found.end() :], within


def _longest(name: str, table: Mapping[str, Any]) -> tuple[str, str]:
    """The longest beginning of a dotted name that is in a table, else all of it; and the rest."""
    head = name
    while head not in table and "." in head:
        head = head.rpartition(".")[0]
    return (head, name[len(head) :]) if head in table else (name, "")
