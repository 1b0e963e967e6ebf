"""Tensors in files: safetensors or PyTorch's, whole or in shards, and the JSON beside them.

No Python object of a file is made: PyTorch's files are read with weights_only=True, and of classes
only `argparse.Namespace`, which official checkpoints carry and which has no code of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastequi.runtime import manifest

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
INDEX = ".index.json"
_FIRST = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
_PICKLE = 0x80  # first byte of torch.save's older format
_NAMED = 3  # files or names in a message


@dataclass(frozen=True)
class Contents:
    """What a file or a folder of weights holds.

    Attributes:
        path: as it was given.
        files: those that the tensors are in.
        tensors: by name; names of nested dicts are joined by dots.
        metadata: of a safetensors file.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: State
    metadata: dict[str, str]

    def sha256(self) -> str:
        """Of the file; of shards, that of their names and hashes."""
        if len(self.files) == 1:
            return manifest.sha256(self.files[0])
        lines = [f"{file.name} {manifest.sha256(file)}\n" for file in sorted(self.files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def beside(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        """A JSON object in the same folder and its place; None if there is no such file.

        Raises:
            ValueError: it is no JSON object.
        """
        file = self.files[0].with_name(name)
        return (file, read_object(file)) if file.is_file() else None


def holds_weights(path: Path) -> bool:
    """Whether a path is a file of weights by its name, or a folder with such files."""
    if path.is_dir():
        return any(one.is_file() and holds_weights(one) for one in path.iterdir())
    return path.name.endswith((*SUFFIXES, INDEX))


def read_weights(path: Path) -> Contents:
    """The tensors of a file, of the shards that an index lists, or of a folder of either.

    Raises:
        FileNotFoundError: no such file, or no such shard.
        ValueError: what is there is not what was expected; names the file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    file = _of_folder(path) if path.is_dir() else path
    if file.name.endswith(INDEX):
        files, tensors = _shards(file)
        return Contents(path, files, tensors, {})
    if not file.name.endswith(SUFFIXES):
        raise ValueError(f"{file}: expected a file of {', '.join(SUFFIXES)}, or a folder with one")
    tensors, metadata = _read(file)
    return Contents(path, (file,), tensors, metadata)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: names the file.
    """
    try:
        text = file.read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: expected a JSON object, got {text.strip()[:80]}")
    return found


def _of_folder(folder: Path) -> Path:
    """The file, or the index of shards, that holds a folder's weights."""
    for name in _FIRST:
        if (folder / name).is_file():
            return folder / name
    names = sorted(one.name for one in folder.iterdir())
    for kind in (INDEX, ".safetensors", (".pth", ".pt", ".bin")):
        found = [name for name in names if name.endswith(kind)]
        if len(found) > 1:
            raise ValueError(f"{folder} holds several files ({some(found)}): name one of them")
        if found:
            return folder / found[0]
    expected = f"{_FIRST[0]}, or one file of {', '.join(SUFFIXES)}"
    raise ValueError(f"{folder} holds no weights: expected {expected}, got {some(names) or 'none'}")


def _shards(index: Path) -> tuple[tuple[Path, ...], State]:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(map(_is_name, places.values())):
        raise ValueError(f"{index}: expected weight_map, the file of every tensor")
    tensors: State = {}
    files = tuple(index.with_name(name) for name in sorted(set(places.values())))
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file.name} is missing, a shard that {index} lists")
        tensors |= _read(file)[0]
    lost = [name for name in places if name not in tensors]
    if lost:
        file = index.with_name(places[lost[0]])
        raise ValueError(f"{file} lacks {some(lost)}, which {index.name} says it holds")
    return files, tensors


def _is_name(value: object) -> bool:
    """Of a file in the same folder."""
    return isinstance(value, str) and Path(value).name == value and value.endswith(SUFFIXES)


def _read(file: Path) -> tuple[State, dict[str, str]]:
    """A file's tensors on the CPU, and the metadata of a safetensors file."""
    with file.open("rb") as handle:
        head = handle.read(40)
    if not head:
        raise ValueError(f"{file} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{file} is a pointer of Git LFS, not the file itself: fetch that")
    if file.suffix != ".safetensors":
        return _unpickled(file, head), {}
    try:
        with safe_open(file, "pt") as opened:
            return {n: opened.get_tensor(n) for n in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no safetensors file ({error})") from error


def _unpickled(file: Path, head: bytes) -> State:
    """The tensors of a file by torch.save, which begins with `head`."""
    zipped = head.startswith(b"PK")
    if zipped and not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is not whole: it is a zip archive without an end")
    if zipped and any(name.endswith("constants.pkl") for name in zipfile.ZipFile(file).namelist()):
        raise ValueError(f"{file} is a program (TorchScript), expected tensors by name")
    if not zipped and head[0] != _PICKLE:
        raise ValueError(f"{file} is no file by torch.save: it begins with {head[:20]!r}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # the unpickler's own class of errors may not be imported here
        raise ValueError(_refused(file, error)) from error
    if isinstance(found, Tensor) or not isinstance(found, Mapping):
        kind = type(found).__name__
        raise ValueError(f"{file} holds a {kind}, expected tensors by name (a state dict)")
    return dict(_flat(found))


def _flat(found: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in found.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")


def _refused(file: Path, error: Exception) -> str:
    """Why PyTorch did not read a file: objects of Python, or damage."""
    classes = re.findall(r"GLOBAL (\S+)", str(error))
    if classes:
        return (
            f"{file} holds objects of Python ({some(sorted(set(classes)))}), which can run code "
            f"when they are read, and is refused: where you trust it, save its tensors alone "
            f"(safetensors.torch.save_file)"
        )
    said = " ".join(str(error).split())
    shown = said if len(said) < 160 else f"{said[:160]} ..."
    return f"{file} is damaged, or no file by torch.save ({type(error).__name__}: {shown})"


def some(names: list[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
