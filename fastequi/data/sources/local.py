"""Local paths: everything is read and written on this machine; URLs are refused."""

from __future__ import annotations

import os
import re

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def expect_local(option: str, place: str | os.PathLike[str]) -> str:
    """Returns a path unchanged, or refuses a URL.

    Args:
        option: named in the error.
        place: the given path.

    Raises:
        ValueError: it is a URL ("s3://bucket/folder"); the message says what to do instead.
    """
    given = os.fspath(place)
    found = _URL.match(given)
    if found is None:
        return given
    if found[1].lower() == "file":
        instead = f"name the path itself, {re.sub(r'^[^:]*:/+', '/', given)}"
    else:
        instead = "copy it to this machine or mount it, and name that folder"
    raise ValueError(
        f"{option}: {given} is a URL; only paths on this machine are read and written: {instead}"
    )
