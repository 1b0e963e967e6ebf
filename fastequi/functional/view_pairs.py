"""Pairs of a student's and a teacher's view, as losses between crops take them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

from torch import Tensor

Pairs = Sequence[tuple[int, int]]


def view_pairs(student: Tensor, teacher: Tensor, pairs: Pairs | None) -> list[tuple[int, int]]:
    """The pairs of views, checked against the views there are."""
    views = len(student), len(teacher)
    if pairs is None:
        if views[0] != views[1]:
            raise ValueError(f"teacher: expected {views[0]} views without pairs, got {views[1]}")
        return [(view, view) for view in range(views[0])]
    try:
        chosen = [(index(s), index(t)) for s, t in pairs]
    except (TypeError, ValueError):
        raise TypeError(f"pairs: expected pairs of integers, got {pairs!r}") from None
    if not chosen or any(not (0 <= s < views[0] and 0 <= t < views[1]) for s, t in chosen):
        raise ValueError(
            f"pairs: expected (student's, teacher's view) below {views[0]} and {views[1]}, "
            f"got {chosen}"
        )
    return chosen


def flat(pairs: list[tuple[int, int]]) -> list[int]:
    return [view for pair in pairs for view in pair]


def as_option(pairs: Pairs | None) -> object:
    """Pairs as a call's signature takes them (`fastequi.kernels.prepared`): their numbers in order;
    something that no signature takes where they are not plain."""
    if pairs is None:
        return None
    if type(pairs) not in (list, tuple):
        return object()
    if not all(type(pair) is tuple and len(pair) == 2 for pair in pairs):
        return object()
    return tuple(view for pair in pairs for view in pair)
