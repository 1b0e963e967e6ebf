"""Pillow's warnings of odd files kept from the user, to whom damage is told where it matters.

`warnings.catch_warnings` is for one thread: where several overlap, the filters of one stay behind
when all are gone, and every warning of the process is lost from then on. Here the threads share one
filter, of Pillow's modules alone, which goes with the last of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, cast

_MODULES = r"PIL\."
_lock = Lock()
_inside = 0


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warning of Pillow is shown, or raised, within; others are as ever."""
    global _inside
    with _lock:
        if _inside == 0:
            warnings.filterwarnings("ignore", module=_MODULES)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _remove()


def _remove() -> None:
    filters = cast(list[Any], warnings.filters)  # another list where a thread enters catch_warnings
    for entry in [entry for entry in filters if _is_ours(entry[3])]:
        with suppress(ValueError):  # which a thread may empty, too
            filters.remove(entry)


def _is_ours(module: object) -> bool:
    return getattr(module, "pattern", module) == _MODULES
