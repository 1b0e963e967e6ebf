"""From words to a command's options; every error is one line that names the option.

tyro prints its errors in boxes of several lines. Names and values are checked here first; what is
left of its errors is put into one line.
"""

from __future__ import annotations

import io
import math
import re
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar

import tyro

from fastequi.cli.hints import OF_SCANS, meant, nearest_option

Options = TypeVar("Options")

_MOST = 2**63 - 1  # a signed integer of 64 bits


def parse(
    kind: type[Options], prog: str, words: list[str], default: Options | None = None
) -> Options:
    """The options of a command, as given.

    Args:
        kind: a dataclass; its fields without a default are the words that are no options.
        prog: the command, for its --help.
        words: of the command line.
        default: what is not given.

    Raises:
        ValueError: an unknown option, with the nearest name; or a value that does not fit.
    """
    if {"-h", "--help"} & set(words):
        return _parsed(kind, prog, words, default)
    expect_known(kind, words)
    stderr = io.StringIO()
    try:
        with redirect_stderr(stderr):
            return _parsed(kind, prog, words, default)
    except SystemExit as stopped:
        if not stopped.code:
            raise
        said = _one_line(stderr.getvalue())
        if said.startswith("Unrecognized options") and "--data" in _options(kind):
            said += " (images are given by --data)"
        raise ValueError(said) from stopped


def expect_known(kind: type, words: list[str], other: tuple[type, str] | None = None) -> None:
    """Raises ValueError for an unknown option, with the nearest name, or a value that cannot be.

    Args:
        kind: as in :func:`parse`.
        words: of the command line.
        other: options and name of a command that may have those which this one lacks.
    """
    known = _options(kind)
    for i, word in enumerate(words):
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            flag = flag.replace("_", "-")
            positive = flag.replace("--no-", "--").replace(".no-", ".")
            name = flag if flag in known else positive
            if name not in known:
                if other is not None and {flag, positive} & set(_options(other[0])):
                    raise ValueError(
                        f"unknown option {flag}, which {other[1]} has (--help lists all)"
                    )
                if flag in OF_SCANS:
                    raise ValueError(
                        f"unknown option {flag}, which fastequi data scan has: it keeps it in the "
                        f"index of the images"
                    )
                near = nearest_option(flag, known)
                hint = f", did you mean {near}?" if near else ""
                raise ValueError(f"unknown option {flag}{hint} (--help lists all)")
            values = [value] if equals else _values(words[i + 1 :])
            if known[name] is bool and values and not (equals or _has_words(kind)):
                raise ValueError(f"{flag}: expected no value, got {' '.join(values)}")
            if known[name] is str and len(values) > 1 and not _has_words(kind):
                said = " ".join(values)
                parts = [part for part in re.split(r"[\s,]+", said) if part]
                numbers = all(re.fullmatch(r"[-+.:\deE]+", part) for part in parts)
                hint = f": {','.join(parts)}" if numbers else ""
                raise ValueError(f"{flag}: expected one value{hint}, got {said}")
            _check(flag, values, known[name])


def is_given(option: str, words: list[str]) -> bool:
    """Whether an option is among the words of a command line, rather than at its default."""
    return any(word.replace("_", "-").split("=")[0] == option for word in words)


def given(option: str, words: list[str]) -> str:
    """The last value that an option is given among the words of a command line, "" if none is."""
    found = ""
    for word, after in zip(words, (*words[1:], ""), strict=False):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") == option:
            found = value if equals else after
    return found


def at_least(options: object, least: int, *names: str, zero: str = "") -> None:
    """Raises ValueError for options, by the names of their fields, that are smaller.

    Args:
        zero: what 0 stands for, if it is the least.
    """
    for name in names:
        value = getattr(options, name)
        if value < least:
            meaning = f"0 ({zero}) or more" if zero else f">= {least}"
            raise ValueError(f"--{name.replace('_', '-')}: expected {meaning}, got {value}")


def _parsed(kind: type[Options], prog: str, words: list[str], default: Options | None) -> Options:
    if default is None:
        return tyro.cli(kind, prog=prog, args=words)
    return tyro.cli(kind, prog=prog, default=default, args=words)


def _options(kind: Any, prefix: str = "--") -> dict[str, Any]:
    """The types of all options by name; the config's sections are at the top level."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        name, hint = field.name.replace("_", "-"), hints[field.name]
        if is_dataclass(hint):
            found |= _options(hint, prefix if name == "config" else f"{prefix}{name}.")
        elif field.default is not MISSING or field.default_factory is not MISSING:
            found[prefix + name] = hint
    return found


def _has_words(kind: Any) -> bool:
    """Whether a command takes words that are no options, which may stand behind one."""
    hints = typing.get_type_hints(kind)
    return any(
        field.default is MISSING and field.default_factory is MISSING
        for field in fields(kind)
        if not is_dataclass(hints[field.name])
    )


def _values(words: list[str]) -> list[str]:
    """The words before the next option."""
    ends = (i for i, word in enumerate(words) if word.startswith("--"))
    return words[: next(ends, len(words))]


def _check(flag: str, values: list[str], hint: Any) -> None:
    """Raises ValueError for values that are no choice, no finite number where one is expected, or
    no seed."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    if types.NoneType in kinds and values[:1] == ["None"]:
        return
    kind, *more = [kind for kind in kinds if kind is not types.NoneType]
    if more:  # tyro knows which of them
        return
    count = 1
    if typing.get_origin(kind) is tuple:
        kind, *others = typing.get_args(kind)
        count = len(values) if Ellipsis in others else 1 + len(others)
    if kind is not bool and len(values) < count:
        wanted = "a value" if count == 1 else f"{count} values"
        raise ValueError(f"{flag}: expected {wanted}, got {' '.join(values) or 'none'}")
    for value in values[:count]:
        if typing.get_origin(kind) is Literal:
            choices = [str(choice) for choice in typing.get_args(kind)]
            if value not in choices:
                near = meant(value, choices)
                raise ValueError(f"{flag}: expected one of {', '.join(choices)}, got {value}{near}")
        elif kind in (int, float):
            what = "an integer" if kind is int else "a number"
            try:
                kind(value)
            except ValueError as error:
                raise ValueError(f"{flag}: expected {what}, got {value}") from error
            if kind is float and not math.isfinite(float(value)):
                raise ValueError(f"{flag}: expected a finite number, got {value}")
            if re.fullmatch(r"--(\w+\.)?seed", flag) and not 0 <= int(value) <= _MOST:
                raise ValueError(f"{flag}: expected 0 to 2^63 - 1, got {value}")
            if kind is int and abs(int(value)) > _MOST:
                raise ValueError(f"{flag}: expected an integer of 64 bits, got {value}")


def _one_line(box: str) -> str:
    """What tyro says in a box: the text below its title, up to the first rule after it."""
    said = ""
    for line in box.splitlines()[1:]:
        text = line.strip("╭╮╰╯│ ")
        if text.strip("─-"):
            said += f" {text}"
        elif said:
            break
    said = " ".join(said.split())
    # of a section: "Error parsing config.data: batch_size: expected ..."
    found = re.fullmatch(r"Error parsing (\S+): (.*)", said)
    if not found:
        return said
    where, what = found.groups()
    section = where.removeprefix("config").removeprefix(".")
    if where.startswith("--"):
        return f"{where}: {what}"
    return f"{section}.{what}" if section else what


@contextmanager
def memory_for(option: str, count: int, advice: str = "") -> Iterator[None]:
    """Raises ValueError that names the option where a GPU runs out of memory in the block."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        first = str(error).partition(". ")[0]
        said = f"; {advice}" if advice else ""
        raise ValueError(f"{option}: expected fewer than {count} images ({first}){said}") from error
