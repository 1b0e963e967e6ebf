"""Objects behind URLs, by fsspec: their size and version, and byte ranges of them, with retries.

A request that fails for a reason that may pass (no answer, a reset, fewer bytes than asked for,
HTTP 408, 429 and 5xx) is made again after a while that doubles each time, with jitter, so that a
thousand processes do not come back at once. One that fails for good (not found, no access, other
4xx) is not. Both end as :class:`Unreadable`, an OSError whose text names the URL and the reason and
never a query, a user or a password.

fsspec finds credentials and its other settings by its own means (environment, ~/.aws,
~/.config/fsspec, ...); none is taken from here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from fastequi.data.sources import http_ranges
from fastequi.data.sources.trouble import Unreadable
from fastequi.data.sources.urls import scheme, shown

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """How long a failing request is made again.

    Attributes:
        retries: after the first try.
        first, longest: seconds before the first retry, and at most before any.
        total: seconds of all tries together after which none begins.
        timeout: seconds without an answer, or without another byte of it, that end a try.
    """

    retries: int = 7
    first: float = 0.5
    longest: float = 30.0
    total: float = 180.0
    timeout: float = 30.0


PATIENCE = Patience()
ONCE = Patience(retries=0)
GREETING = Patience(retries=4, total=15.0)  # of a server that has not answered yet


class Unreachable(Unreadable):
    """An object whose server gave no answer at all, of any status."""


class Gone(Unreadable):
    """An object that is not there."""


class State(NamedTuple):
    """An object's size in bytes, and what names its version: an ETag, else a time of change."""

    bytes: int
    etag: str


_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
_VERSIONS = (  # in the order of their worth; by HTTP, S3, Google and Hugging Face
    *("ETag", "etag", "md5Hash", "blob_id", "Content-MD5"),
    *("Last-Modified", "LastModified", "updated", "mtime"),
)
_GONE = (404, 410)
_MAY_PASS = (408, 429)
_SAID_EVERY = 10.0  # seconds; retries of many threads are one line
_random = random.Random()  # not the global one, whose state belongs to the run
_lock = threading.Lock()
_filesystems: dict[tuple[int, str, float], Any] = {}
_said = -_SAID_EVERY


def state(url: str, tries: Patience | None = None) -> State:
    """Size and version of an object.

    Raises:
        Unreadable: it is not there, or nothing is known about it after all retries.
        ImportError: fsspec, or the package for this kind of URL, is not installed.
    """

    def ask() -> State:
        # of Hugging Face's the package keeps what it has listed, and tells no version of the rest
        fresh = {"refresh": True, "expand_info": True} if scheme(url) == "hf" else {}
        info = _filesystem(url).info(url, **fresh)
        if info.get("type") != "file":
            raise FileNotFoundError(url)
        if info.get("size") is None:
            raise Unreadable(f"{shown(url)}: the server tells no size (Content-Length)")
        found = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
        return State(int(info["size"]), found.strip('"'))

    return _patiently(url, ask, tries or PATIENCE, lambda: None)


def read(
    url: str,
    first: int,
    count: int,
    check: Callable[[], None] = lambda: None,
    version: str = "",
) -> bytes:
    """A byte range of an object.

    Args:
        url: the object.
        first, count: first byte and number of bytes; of those there have to be as many.
        check: called before every retry; what it raises ends them.
        version: of the object, as :func:`state` names it; another one, where an answer says it, is
            a failure.

    Raises:
        Unreadable: all tries failed; ImportError: as :func:`state`.
    """

    def ask() -> bytes:
        filesystem = _filesystem(url)
        if scheme(url) in ("http", "https"):
            try:
                data = http_ranges.read(filesystem, url, first, count, version)
            except http_ranges.NoRanges as error:
                raise Unreadable(
                    f"{shown(url)}: {error}; expected a server that knows byte ranges (python -m "
                    f"http.server does not)"
                ) from None
        else:
            data = filesystem.cat_file(url, start=first, end=first + count)
            if len(data) > count:
                raise Unreadable(f"{shown(url)}: {len(data)} bytes came of {count}")
        if len(data) < count:
            raise ConnectionError(f"{len(data)} bytes came of {count}")
        return data

    return _patiently(url, ask, PATIENCE, check)


def matches(url: str) -> list[str]:
    """The objects that a glob names, sorted.

    Raises:
        Unreadable, ImportError: as :func:`state`.
    """
    # fsspec gives them without the scheme
    head = url.partition("://")[0]
    found = _patiently(url, lambda: _filesystem(url).glob(url), PATIENCE, lambda: None)
    return sorted(f"{head}://{name}" for name in map(str, found))


def _patiently(url: str, call: Callable[[], T], tries: Patience, check: Callable[[], None]) -> T:
    start, tried = time.monotonic(), 0
    while True:
        try:
            return call()
        except (Unreadable, ImportError):
            raise
        except Exception as error:  # of aiohttp, botocore, ...: no package has them all
            last, reason = _final(error), _reason(error)
            answered = _status(_cause(error)) is not None
            kind = Gone if _is_gone(error) else Unreadable
        # outside, so that the chain of errors does not carry texts with secrets along
        tried += 1
        wait = min(tries.longest, tries.first * 2 ** (tried - 1)) * _random.uniform(0.5, 1.0)
        passed = time.monotonic() - start
        if last:
            raise kind(f"{shown(url)}: {reason}")
        if tried > tries.retries or passed + wait > tries.total:
            gives_up = Unreadable if answered else Unreachable
            tries_made = f"{tried} tr{'y' if tried == 1 else 'ies'}"
            raise gives_up(f"{shown(url)}: {reason}, after {tries_made} in {passed:.3g} s")
        _say(url, reason, tried, wait)
        time.sleep(wait)
        check()


def _say(url: str, reason: str, tried: int, wait: float) -> None:
    global _said
    with _lock:
        due = time.monotonic() - _said >= _SAID_EVERY
        if due:
            _said = time.monotonic()
    if due:
        logger.warning("%s: %s; try %d follows in %.2g s", shown(url), reason, tried + 1, wait)


def _cause(error: BaseException) -> BaseException:
    """fsspec says FileNotFoundError of every failure to learn a size by HTTP; its cause is why."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None or _status(cause) in _GONE:
        return error
    return error if isinstance(cause, FileNotFoundError) else cause


def _is_gone(error: BaseException) -> bool:
    cause = _cause(error)
    return isinstance(cause, FileNotFoundError) or _status(cause) in _GONE


def _status(error: BaseException) -> int | None:
    """The HTTP status in an error, wherever its package keeps it.

    s3fs has it in the cause alone. That of aiohttp's errors is no answer's: 400 after a reset.
    """
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if isinstance(answer, dict):  # botocore
        found = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif answer is not None:  # requests, huggingface_hub
        found = getattr(answer, "status_code", None)
    else:  # aiohttp, gcsfs
        name = "status" if hasattr(error, "status") else "code"
        found = getattr(error, name, None)
    return found if isinstance(found, int) and 100 <= found < 600 else None


def _final(error: BaseException) -> bool:
    """Whether a further try would fail alike."""
    error = _cause(error)
    if isinstance(error, FileNotFoundError | PermissionError):
        return True
    code = _status(error)
    if code is not None:
        return code < 500 and code not in _MAY_PASS
    if isinstance(error, OSError) and error.errno in (errno.ENOSYS, errno.EPERM):
        return True
    wrong = isinstance(error, ValueError | TypeError | NotImplementedError | AttributeError)
    return wrong or type(error).__name__.endswith("CredentialsError")


def _reason(error: BaseException) -> str:
    error = _cause(error)
    code = _status(error)
    if _is_gone(error):
        return "not found"
    if isinstance(error, PermissionError) or code in (401, 403):
        return "no access with the credentials that fsspec found"
    if code is not None:
        return f"HTTP {code}"
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "no answer in time"
    return shown(f"{type(error).__name__} {error}".strip())


def _filesystem(url: str) -> Any:
    """fsspec's object for a kind of URL; one of each process, since its connections are its own."""
    kind = scheme(url)
    name = os.getpid(), kind, PATIENCE.timeout
    with _lock:
        if name not in _filesystems:
            _filesystems[name] = _opened(kind, PATIENCE.timeout)
        return _filesystems[name]


def _opened(kind: str, timeout: float) -> Any:
    package = _PACKAGES.get(kind, "fsspec")
    try:
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False}
        given = fsspec.config.conf.get(kind, {})
        if kind in ("http", "https"):
            package = "aiohttp"
            import aiohttp

            limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
            options["client_kwargs"] = {"timeout": limits, **given.get("client_kwargs", {})}
        elif kind == "s3":
            each: dict[str, Any] = {"connect_timeout": timeout, "read_timeout": timeout}
            each["retries"] = {"total_max_attempts": 1}  # ours are enough
            options["config_kwargs"] = {**each, **given.get("config_kwargs", {})}
        opened = fsspec.filesystem(kind, skip_instance_cache=True, **options)
        if kind == "s3":
            opened.retries = 1
        return opened
    except ImportError as error:
        also = "" if package in ("fsspec", "aiohttp", "s3fs") else f" {package}"
        raise ImportError(
            f"{kind}:// URLs need {package}: pip install 'fastequi[remote]'{also} ({error})"
        ) from error
