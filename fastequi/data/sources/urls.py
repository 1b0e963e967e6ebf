"""URLs of images: which are read, and how one is named without what is secret in it.

Read are tar shards, by `fastequi.data.sources.remote`. Credentials are never part of a URL here:
they would stand in logs, in the process list and in result files, and a signed URL expires while a
run goes on. fsspec finds them by its own means, the environment and files below ~/.
"""

from __future__ import annotations

import os
import re

READ = ("s3", "gs", "gcs", "http", "https", "hf")
# pathlib leaves one slash of two; what begins as one of ours is one without any
_URL = re.compile(rf"({'|'.join(READ)}|file|ftp)(?=:)|([A-Za-z][A-Za-z0-9+.-]+):/", re.IGNORECASE)
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+:/+)\S*@")  # up to the last @: a password may hold any
_QUERY = re.compile(r"(?<=[^\s?])[?#][^\s'\")>]*")


def scheme(place: str | os.PathLike[str]) -> str:
    """Of a URL "s3://..." the "s3", in lower case; "" of a path."""
    found = _URL.match(os.fspath(place))
    return (found[1] or found[2]).lower() if found else ""


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL rather than a path on this machine."""
    return scheme(place) != ""


def shown(text: str) -> str:
    """A URL, or a text with URLs in it, without user, password and query."""
    return _QUERY.sub("", _USER.sub(r"\1", text))


def bare(place: str) -> str:
    """A URL that is given, up to its query or fragment, and without what stands before an @."""
    head = re.split("[?#]", place)[0]
    return f"{scheme(head)}://{head.rpartition('@')[2]}" if "@" in head else head


def expect_shards(option: str, place: str) -> str:
    """Returns the URL of tar shards, or a range or glob of them, unchanged.

    Args:
        option: named in the error.
        place: a URL.

    Raises:
        ValueError: it is none that can be read, or carries credentials; none of them is repeated.
    """
    clean = f"{option}: {bare(place)}"
    if scheme(place) not in READ or "://" not in place:
        raise ValueError(
            f"{clean} is a URL; read are tar shards by {' '.join(f'{name}://' for name in READ)} "
            f"and paths on this machine: copy it to this machine or mount it, and name that folder"
        )
    first, _, rest = place.split("://", 1)[1].partition("/")
    if "@" in first or ("@" in rest and scheme(place) != "hf"):  # hf names revisions by it
        raise ValueError(
            f"{clean} carries a user or password, or an @ that may end one; expected a URL "
            f"without: credentials are taken from the environment or from fsspec's own files"
        )
    if "?" in place or "#" in place:
        raise ValueError(
            f"{clean} has a query or a fragment behind it; expected a URL without: signed ones "
            f"expire, and would be kept in results (in patterns * and [...] work, ? does not)"
        )
    if not place.endswith(".tar"):
        raise ValueError(
            f"{clean} is a URL of no tar shard; expected one that ends with .tar, or a range such "
            f"as {bare(place).rstrip('/')}/{{000..012}}.tar; copy other images to this machine or "
            f"mount them, and name that folder"
        )
    if scheme(place) in ("http", "https") and re.search(r"[*\[]", place):
        raise ValueError(
            f"{clean} is a glob, but a web server lists nothing; expected a range such as "
            f"{{000..012}}.tar"
        )
    return place
