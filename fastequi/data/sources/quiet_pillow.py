"""Pillow's warnings of odd files kept from the user, to whom damage is told where it matters.

`warnings.catch_warnings` is for one thread: where several overlap, the filters of one stay behind
when all are gone, and every warning of the process is lost from then on. Here one filter is put in
front of all others and stays; it matches Pillow's modules, in the threads that are within.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

_within = threading.local()


class _OfPillowHere:
    """What stands in the filter where a pattern would."""

    def match(self, module: str) -> bool:
        return getattr(_within, "depth", 0) > 0 and module.startswith("PIL.")


_FILTER = ("ignore", None, Warning, _OfPillowHere(), 0)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warning of Pillow is shown, or raised, in this thread within; others are as ever."""
    _within.depth = getattr(_within, "depth", 0) + 1
    try:
        _come_first()
        yield
    finally:
        _within.depth -= 1


def _come_first() -> None:
    """Puts the filter before all others, if it is not there: a catch_warnings that ended took it
    away, or others came after it."""
    filters = cast(list[Any], warnings.filters)  # another list where a thread enters or leaves one
    if not filters or filters[0] is not _FILTER:
        with suppress(ValueError):
            filters.remove(_FILTER)
        filters.insert(0, _FILTER)
