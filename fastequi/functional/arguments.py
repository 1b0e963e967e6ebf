"""Checks of arguments that are no tensors; errors name the argument, what came and was expected."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> float:
    """A finite number: int, float, numpy scalar, or an array or tensor of no dimensions.

    Args:
        name: of the argument, for errors.
        value: what the caller has passed. A tensor on a GPU is read with a host sync.
        above, below: limits that it may not equal.
        least, most: limits that it may equal.

    Raises:
        TypeError: not a number, or a tensor that requires a gradient, which would be lost.
        ValueError: NaN, infinite, or out of bounds.
    """
    if type(value) is not float:
        value = _scalar(name, value, "a number", (numbers.Real, torch.SymInt))
        try:
            value = float(value)
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
    if not (above < value < below and least <= value <= most):
        bounds = _bounds(above, least, most, below)
        raise ValueError(f"{name}: expected a finite number{bounds}, got {value}")
    return value


def integer(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """An integer from `least` to `most`, of the same kinds as in :func:`number`; no float."""
    if type(value) is not int:
        value = _scalar(name, value, "an integer", (numbers.Integral, torch.SymInt))
    if value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{name}: expected an integer in {least} .. {most}, got {value}")
    return value


def flags(**values: bool) -> None:
    """Options that are True or False, by their keyword."""
    for name, value in values.items():
        if value is not True and value is not False:
            raise TypeError(f"{name}: expected True or False, got {value!r}")


def _scalar(name: str, value: Any, what: str, kinds: tuple[type, ...]) -> Any:
    """The value of an argument, as a Python number."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{name}: it gets no gradient; pass {what}, {name}.item()")
    if getattr(value, "ndim", None) == 0:
        try:
            value = value.item()
        except RuntimeError as error:  # of a meta tensor, or under vmap
            raise TypeError(f"{name}: expected {what}, got a tensor without a value") from error
    if isinstance(value, bool) or not isinstance(value, kinds):
        came = repr(value) if isinstance(value, (str, bool, float)) else type(value).__name__
        raise TypeError(f"{name}: expected {what}, got {came}")
    return value


def _bounds(above: float, least: float, most: float, below: float) -> str:
    if least > -math.inf and most < math.inf:
        return f" in {least:g} .. {most:g}"
    given = ((">", above), (">=", least), ("<=", most), ("<", below))
    return " and".join(f" {sign} {n:g}" for sign, n in given if abs(n) < math.inf)


def two_sizes(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of one number or two."""
    several = isinstance(size, Iterable) and getattr(size, "ndim", 1) > 0
    both = tuple(size) if several else (size, size)  # type: ignore[arg-type]
    try:
        height, width = [integer(name, n) for n in both]
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}: expected a size or (height, width), each an integer >= 1, got {size!r}"
        ) from None
    return height, width


def one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}: expected one of {tuple(allowed)}, got {value!r}{hint}")
