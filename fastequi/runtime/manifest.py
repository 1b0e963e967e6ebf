"""Folders that appear complete or not at all: written aside, synced, hashed, renamed.

safetensors and torch.distributed.checkpoint detect a truncated file, but not a flipped bit. So
`manifest.json` lists every file of a folder with its size and SHA-256, and a folder is valid only
if all of its files match.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastequi.atomic import sync

NAME = "manifest.json"
_BLOCK = 1 << 22


def publish(temporary: Path, final: Path, about: Mapping[str, Any]) -> None:
    """Publishes a written folder under its final name, replacing an existing one.

    Args:
        temporary: all files written, on the same file system as `final`.
        about: further entries of the manifest, in JSON types.
    """
    files = {}
    for file in sorted(temporary.rglob("*")):
        if file.is_file():
            files[str(file.relative_to(temporary))] = {
                "bytes": file.stat().st_size,
                "sha256": sha256(file),
            }
            sync(file)
    document = {**about, "python": platform.python_version(), "files": files}
    (temporary / NAME).write_text(json.dumps(document, indent=1) + "\n")
    sync(temporary / NAME)
    for folder in [p for p in temporary.rglob("*") if p.is_dir()] + [temporary]:
        sync(folder)
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    sync(final.parent)


def problems(folder: Path) -> list[str]:
    """What is wrong with a published folder; empty if every file matches its manifest."""
    try:
        files = json.loads((folder / NAME).read_text())["files"]
        found = []
        for name, expected in files.items():
            file = folder / name
            if not file.is_file():
                found.append(f"{name} is missing")
            elif file.stat().st_size != expected["bytes"]:
                size = file.stat().st_size
                found.append(f"{name} has {size} bytes instead of {expected['bytes']}")
            elif sha256(file) != expected["sha256"]:
                found.append(f"{name} has another SHA-256: its bytes have changed")
        return found
    except FileNotFoundError:
        return [f"no {NAME}: it was never finished"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{NAME} cannot be read ({type(error).__name__}: {error})"]


def sha256(file: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
