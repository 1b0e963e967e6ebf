"""Local paths: all but tar shards is read and written on this machine; URLs are refused."""

from __future__ import annotations

import os
import re

from fastequi.data.sources.urls import bare, scheme


def expect_local(option: str, place: str | os.PathLike[str]) -> str:
    """Returns a path unchanged, or refuses a URL.

    Args:
        option: named in the error.
        place: the given path.

    Raises:
        ValueError: it is a URL ("s3://bucket/folder"); the message says what to do instead.
    """
    given = os.fspath(place)
    kind = scheme(given)
    if not kind:
        return given
    if kind == "file":
        instead = f"name the path itself, {re.sub(r'^[^:]*:/+', '/', given)}"
    else:
        instead = "copy it to this machine or mount it, and name that folder"
    raise ValueError(
        f"{option}: {bare(given)} is a URL; only paths on this machine are read and written here: "
        f"{instead}"
    )
