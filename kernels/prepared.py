"""Calls that are made again with tensors of the same kind.

Most of a small call's time is Python: checks, the choice of an implementation, the struct that C
reads. All that depends on shapes, strides, types and options, which are its signature, and not on
values. So it is done once for each signature, and a later call fills in the pointers.

A function looks its signature up first (:meth:`Calls.find`) and, once all was checked, leaves what
is to be called from then on (:meth:`Calls.keep`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from fastequi.kernels import backend, native

Key = tuple[Any, ...]
Again = Callable[..., Tensor]

_PLAIN = (Tensor, Parameter)
_NUMBERS = frozenset((int, float, bool, str, type(None), torch.dtype, torch.memory_format))
_SEVERAL = frozenset((list, tuple))
_KINDS = _NUMBERS | _SEVERAL
_MOST = 256  # signatures of a function; training has a few


class Calls:
    """What to call for each signature of one function."""

    def __init__(self) -> None:
        self._known: dict[Key, Again] = {}
        self._changes = threading.Lock()

    def find(
        self, tensors: tuple[Tensor | None, ...], options: tuple[Any, ...]
    ) -> tuple[Key | None, Again | None]:
        """(the key for :meth:`keep`, or None if nothing is to be kept; what to call, or None)."""
        key = signature(tensors, options)
        if key is None:
            return None, None
        return key, self._known.get(key)

    def keep(self, key: Key, again: Again) -> Again:
        """`again`, which takes the tensors and returns what the function does."""
        with self._changes:
            while len(self._known) >= _MOST:
                del self._known[next(iter(self._known))]
            self._known[key] = again
        return again


def signature(tensors: tuple[Tensor | None, ...], options: tuple[Any, ...]) -> Key | None:
    """All that a call depends on beside values; None where a call is not like the next one: under
    compilers, tracers, modes, transforms, for tensor subclasses and options of unusual types."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
    ):
        return None
    kinds = tuple(map(type, options))
    if not _KINDS.issuperset(kinds):
        return None
    found: list[Any] = [
        backend.forced,
        native.load()[2],
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        kinds,
    ]
    for tensor in tensors:
        if tensor is None:
            found.append(None)
        elif type(tensor) in _PLAIN and tensor.layout is torch.strided:
            address = tensor.data_ptr()
            if not address and tensor.numel():  # its memory was freed, or never there
                return None
            found += (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
            found += (tensor.requires_grad, tensor.is_neg(), address % 16)
        else:
            return None
    for option, kind in zip(options, kinds, strict=True):
        if kind in _SEVERAL:
            inside = tuple(map(type, option))
            if not _NUMBERS.issuperset(inside):
                return None
            option = *option, inside
        found.append(option)
    return tuple(found)


def relaunched(
    kernel: Any, grid: tuple[int, ...], constants: Mapping[str, Any]
) -> Callable[..., None]:
    """What launches `kernel[grid](*arguments, **constants)` again and again.

    Triton finds out in every launch which compiled kernel its arguments need, 25 µs on a GPU's
    host; here the first launch's is kept. So later arguments need the same types, integers and
    alignment to 16 bytes, on the same device, as they have for one signature.
    """
    grid = *grid, *[1] * (3 - len(grid))
    first = kernel[grid]
    known: list[Any] = []  # the compiled kernel's launch, and the constants among its arguments

    def launch(*arguments: Any) -> None:
        if known:
            known[0](*arguments, *known[1])
            return
        compiled = first(*arguments, **constants)
        if not backend.INTERPRETED:
            rest = (constants[name] for name in kernel.arg_names[len(arguments) :])
            known[:] = compiled[grid], tuple(rest)

    return launch
