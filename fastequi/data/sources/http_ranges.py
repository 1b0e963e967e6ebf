"""A byte range by HTTP, checked before its body is read.

fsspec reads whatever comes: a server that knows no ranges would send the whole object into memory,
and one that answers with another range would pass unnoticed.
"""

from __future__ import annotations

from typing import Any


class NoRanges(Exception):
    """The server does not answer with the byte range that was asked for."""


def read(filesystem: Any, url: str, first: int, count: int, version: str = "") -> bytes:
    """At most `count` bytes from `first` on; fewer where the connection ends early.

    Args:
        filesystem: fsspec's, of http or https.
        version: the ETag that an answer with one has to have; "": any.

    Raises:
        NoRanges: as its text says.
        ConnectionError: the object has another ETag.
        Exception: those of aiohttp.
    """
    from fsspec.asyn import sync

    found: bytes = sync(filesystem.loop, _read, filesystem, url, first, count, version)
    return found


async def _read(filesystem: Any, url: str, first: int, count: int, version: str) -> bytes:
    wanted = {"Range": f"bytes={first}-{first + count - 1}", "Accept-Encoding": "identity"}
    options = {**filesystem.kwargs, "headers": {**filesystem.kwargs.get("headers", {}), **wanted}}
    session = await filesystem.set_session()
    async with session.get(filesystem.encode_url(url), **options) as answer:
        if answer.status == 404:
            raise FileNotFoundError(url)
        answer.raise_for_status()
        said = answer.headers.get("Content-Range", "")
        if answer.status == 206:
            if not said.replace(" ", "").startswith(f"bytes{first}-"):
                raise NoRanges(f"the range {said!r} came where byte {first} was asked for")
        elif first or not 0 <= (answer.content_length or -1) <= count:  # or all is what was wanted
            size = answer.headers.get("Content-Length", "some")
            raise NoRanges(f"{size} bytes came where {count} were asked for")
        etag = answer.headers.get("ETag", "").strip('"')
        if version and etag and etag != version:
            raise ConnectionError(f"its version is {etag}, {version} was listed")
        body, size = [], 0
        async for block in answer.content.iter_any():
            body.append(block)
            size += len(block)
            if size > count:
                raise NoRanges(f"more than the {count} bytes came that were asked for")
        return b"".join(body)
