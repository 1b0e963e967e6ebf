"""Which of several ways is the fastest here: measured once, then read from a file.

A choice is kept per device and library versions in the cache folder, so that a resumed run does
what it did before, and so do processes of one machine.
"""

from __future__ import annotations

import fcntl
import json
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch

from fastequi.atomic import replace_text
from fastequi.kernels.toolchain import cache_folder

logger = logging.getLogger(__name__)

_known: dict[Path, dict[str, str]] = {}


def fastest(
    what: str,
    key: str,
    candidates: Collection[str],
    device: torch.device,
    versions: str,
    measure: Callable[[], Mapping[str, float]],
) -> str:
    """The name of the fastest candidate.

    Args:
        what: is chosen, one word, which begins the file's name: "attention".
        key: all else that the choice depends on.
        candidates: names of those that can run.
        device: where.
        versions: libraries and their versions, on which the choice depends too.
        measure: {name: seconds} of every candidate; called where none of them is known yet.
    """
    file = file_of(what, device, versions)
    known = _known.setdefault(file, _read(file))
    if known.get(key) not in candidates:
        times = measure()
        known[key] = min(times, key=times.__getitem__)
        words = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in times.items())
        logger.info("%s %s: %s (%s)", what, key, known[key], words)
        known[key] = _settle(file, what, key, known[key], candidates)
    return known[key]


def file_of(what: str, device: torch.device, versions: str) -> Path:
    """Where the choices of a device are kept."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    words = "".join(c if c.isalnum() or c in ".+-" else "_" for c in f"{named}-{versions}")
    return cache_folder() / f"{what}-{words}.json"


def wait(device: torch.device) -> None:
    """Until all that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read(file: Path) -> dict[str, str]:
    """Choices of earlier processes; empty if the file is missing or invalid."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: name for key, name in found.items() if isinstance(name, str)}


def _settle(file: Path, what: str, key: str, mine: str, candidates: Collection[str]) -> str:
    """The choice of the process that measured first, so that all processes use the same one.

    The file is replaced atomically; if it cannot be written, the next process measures again.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            known = _read(file)
            if known.get(key) in candidates:
                return known[key]
            replace_text(file, json.dumps({**known, key: mine}, indent=1) + "\n")
    except OSError as error:
        logger.warning("choices of %s are not kept: %s", what, error)
    return mine
