"""Lists of names, a name a line, as DAVIS and Pascal VOC have them; and files found by their names,
whatever the case of the suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path


def text_of(file: Path) -> str:
    """Of a file in UTF-8, without a byte order mark.

    Raises:
        ValueError: it is no such text; names the file.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected text in UTF-8 ({error})") from error


def names_in(file: Path) -> list[str]:
    """The lines of a list, without blanks at their ends; empty ones are passed over.

    Raises:
        ValueError: a name stands there twice, or the file is no text; names file and line.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(text_of(file).split("\n"), 1):
        name = line.strip()
        if name and found.setdefault(name, number) != number:
            raise ValueError(
                f"{file}, line {number}: expected each name once, got {name} again, as in line "
                f"{found[name]}"
            )
    return list(found)


def by_stem(files: Iterable[Path], belongs: str | Callable[[str], bool]) -> dict[str, Path]:
    """The files with a suffix (".png"), in any case, or whose names belong, by the name without
    the suffix, in sorted order.

    Raises:
        ValueError: two of one name ("a.png" and "a.PNG"); names both.
    """
    found: dict[str, Path] = {}
    for file in sorted(files):
        named = file.suffix.lower() == belongs if isinstance(belongs, str) else belongs(file.name)
        if named and not file.is_dir():
            other = found.setdefault(file.stem, file)
            if other != file:
                raise ValueError(f"{file}: expected one file of this name, got {other.name} too")
    return found


def in_order(stems: Iterable[str]) -> list[str]:
    """Names that are numbers by these, with those that are missing between; others sorted.

    Raises:
        ValueError: two are one number ("1" and "01"); names both.
    """
    names = sorted(stems)
    if not names or not all(name.isascii() and name.isdecimal() for name in names):
        return names
    found: dict[int, str] = {}
    for name in names:
        other = found.setdefault(int(name), name)
        if other != name:
            raise ValueError(f"expected one file of number {int(name)}, got {other} and {name}")
    width = min(map(len, names))
    return [found.get(i, f"{i:0{width}d}") for i in range(min(found), max(found) + 1)]


def in_any_case(file: Path) -> Path:
    """A file, or where it is not there the one whose suffix is written in another case."""
    if not file.is_file():
        for letters in product(*zip(file.suffix.lower(), file.suffix.upper(), strict=True)):
            other = file.with_suffix("".join(letters))
            if other.is_file():
                return other
    return file
