"""The header of a .npy, read by a pattern.

`numpy.lib.format` evaluates it by `ast`, which in CPython 3.11 fails now and then where several
threads do so at once (CPython's issue 106905): a sound image would be taken for a damaged one.
"""

from __future__ import annotations

import re
from typing import Any, BinaryIO

import numpy as np

MAGIC = b"\x93NUMPY"
_LENGTHS = {(1, 0): 2, (2, 0): 4}  # bytes of the header's length by the format's version
_LONGEST = 10_000  # NumPy's own limit
_SHOWN = 60
_TYPE = re.compile(r"[<>|=]?[A-Za-z?]\d*|[a-z]+\d*")
_TEXT = r"""u?(?P<{0}quote>['"])(?P<{0}>[^'"]*)(?P={0}quote)"""
_ENTRY = re.compile(
    rf"\s*{_TEXT.format('key')}\s*:\s*"
    rf"(?:{_TEXT.format('type')}|(?P<order>True|False)|\((?P<shape>[\d\s,L]*)\))\s*(?:,|$)"
)
_KINDS = {"descr": "type", "fortran_order": "order", "shape": "shape"}


def read(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first axis changes fastest, and type; the values follow in the file.

    Raises:
        ValueError: it is no such header of an array of numbers.
    """
    text = _text(file)
    found = _entries(text)
    try:
        shape, dtype = _lengths(found["shape"]), _type(found["descr"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_said(text)} ({error})") from error
    return shape, found["fortran_order"] == "True", dtype


def is_plain(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether it is the header that NumPy writes of such an array, last axis first.

    Raises:
        ValueError: as :func:`read`.
    """
    descr = np.lib.format.dtype_to_descr(dtype)
    about = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    return _text(file).strip(" \n") == about


def _text(file: BinaryIO) -> str:
    start = file.read(len(MAGIC) + 2)
    if len(start) < len(MAGIC) + 2 or not start.startswith(MAGIC):
        raise ValueError("expected .npy by its bytes")
    major, minor = start[len(MAGIC) :]
    if (size := _LENGTHS.get((major, minor))) is None:
        raise ValueError(f"an array file of version {major}.{minor}, expected 1.0 or 2.0")
    count = int.from_bytes(file.read(size), "little")
    if count > _LONGEST:
        raise ValueError(f"a header of {count} bytes, more than {_LONGEST}")
    text = file.read(count).decode("latin1")
    if len(text) < count:
        raise ValueError("it ends within its header")
    return text


def _entries(text: str) -> dict[str, str]:
    """{key: the text of its value}."""
    inside, found, at = text.strip(), dict[str, str](), 1
    end = len(inside) - 1
    while inside.startswith("{") and (one := _ENTRY.match(inside, at, end)):
        value = one[_KINDS.get(one["key"], "key")]
        if one["key"] not in _KINDS or one["key"] in found or value is None:
            break
        found[one["key"]], at = value, one.end()
    if inside[max(at, 1) :].strip() != "}" or found.keys() != _KINDS.keys():
        raise ValueError(_said(text))
    return found


def _type(text: str) -> np.dtype[Any]:
    if not _TYPE.fullmatch(text):  # of a list of types NumPy asks `ast`
        raise ValueError(f"type {text!r}")
    return np.dtype(text)


def _lengths(text: str) -> tuple[int, ...]:
    """Of "(30, 26, 4)" and "(30L, 26L)" what is in the brackets; of one length a comma follows."""
    each = [one.strip().removesuffix("L") for one in text.split(",")]
    if each and not each[-1]:
        each.pop()
    elif len(each) == 1:
        raise ValueError("a number is no shape")
    return tuple(map(int, each))


def _said(text: str) -> str:
    short = " ".join(text.split())
    return f"its header is of no array of numbers: {short[:_SHOWN]}{'...' * (len(short) > _SHOWN)}"
