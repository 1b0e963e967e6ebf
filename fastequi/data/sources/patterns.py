"""Patterns that include or exclude images by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastequi.data.sources.parts import file_of, image_of

_TOKENS = re.compile(r"(\*+|\?|\[!?\]?[^\]]*\])")


@dataclass(frozen=True)
class Patterns:
    """Glob patterns of images' names, relative to their folder; case counts.

    A pattern without "/" matches any file or folder, as in .gitignore: "*.jpg", "thumbnails". One
    with "/" starts at the top: "cat/*", "**/masks". Everything in a matching folder matches, and
    what is taken of a matching file (`fastequi.data.sources.parts`).

    Attributes:
        include: if not empty, an image must match one of them.
        exclude: an image must match none of them.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option in ("include", "exclude"):
            for pattern in getattr(self, option):
                _regex(f"--{option}", pattern)

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def __str__(self) -> str:
        words = [f"--include {p!r}" for p in self.include]
        return " ".join(words + [f"--exclude {p!r}" for p in self.exclude])

    def chosen(self, names: Sequence[str]) -> list[bool]:
        """For every name, whether it is selected."""
        wanted, unwanted = (
            [re.compile(_regex(option, pattern)) for pattern in patterns]
            for option, patterns in (("--include", self.include), ("--exclude", self.exclude))
        )
        return [
            (not wanted or _matches(wanted, name)) and not _matches(unwanted, name)
            for name in names
        ]


def _matches(patterns: Sequence[re.Pattern[str]], name: str) -> bool:
    """Whether one of them matches an image's file, or its page."""
    file, image = file_of(name), image_of(name)
    both = (file,) if image == file else (file, image)
    return any(pattern.match(f"{one}/") for pattern in patterns for one in both)


def _regex(option: str, pattern: str) -> str:
    """Of a pattern, to match a name and "/" from its beginning to the end of one of its parts."""
    parts = [part for part in pattern.removeprefix("./").split("/") if part]
    if not parts:
        raise ValueError(f"{option}: expected a pattern such as '*.jpg', got {pattern!r}")
    if "/" not in pattern.rstrip("/"):
        parts.insert(0, "**")
    regex = "".join("(?:[^/]+/)*" if part == "**" else f"{_part(part)}/" for part in parts)
    try:
        re.compile(regex)
    except re.error as error:
        raise ValueError(f"{option}: {pattern!r} is no pattern ({error})") from error
    return regex


def _part(text: str) -> str:
    return "".join(map(_token, _TOKENS.split(text)))


def _token(text: str) -> str:
    if text.startswith("*"):
        return "[^/]*"
    if text == "?":
        return "[^/]"
    if text.startswith("[") and text.endswith("]") and len(text) > 2:
        inside = text[1:-1].replace("\\", r"\\")
        return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
    return re.escape(text)
