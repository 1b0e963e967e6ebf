"""The fastest attention backend for a shape: measured once, then read from a file.

No backend is the fastest everywhere: it depends on the length and its parity, the head width and
the GPU. The choice is kept per GPU and library versions, so that a resumed run uses the same
backend and gives the same bits.
"""

from __future__ import annotations

import fcntl
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastequi.atomic import replace_text
from fastequi.kernels.toolchain import cache_folder

logger = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

_SAMPLES = 15
_VALUES = 1 << 24  # of q, k or v: batches are measured no larger than this
_known: dict[Path, dict[str, str]] = {}


def fastest(
    candidates: Mapping[str, Attend],
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    grad: bool,
    versions: str,
) -> str:
    """The name of the fastest candidate for [B, N, H, D] queries and M keys.

    Args:
        candidates: at least one, all of which can run.
        shape: B, N, M, H, D. Choices are kept by all but B.
        grad: measure the backward too.
        versions: libraries and their versions, on which the choice depends beside the device.
    """
    if len(candidates) == 1:
        return next(iter(candidates))
    batch, queries, keys, heads, width = shape
    file = _file(device, versions)
    key = f"N={queries} M={keys} H={heads} D={width} {dtype} {'fwdbwd' if grad else 'fwd'}"
    known = _known.setdefault(file, _read(file))
    if known.get(key) not in candidates:
        batch = max(min(batch, _VALUES // max(queries, keys) // heads // width), 1)
        shapes = [(batch, n, heads, width) for n in (queries, keys, keys)]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            leaves = [torch.randn(s, device=device, dtype=dtype) for s in shapes]
        times = _times(candidates, [leaf.requires_grad_(grad) for leaf in leaves], grad)
        known[key] = min(times, key=times.__getitem__)
        words = ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in times.items())
        logger.info("attention %s: %s (%s)", key, known[key], words)
        known[key] = _settle(file, key, known[key], candidates)
    return known[key]


def _times(candidates: Mapping[str, Attend], leaves: list[Tensor], grad: bool) -> dict[str, float]:
    """Median seconds of each, interleaved; three warm-up rounds are not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(_SAMPLES + 3):
        for name, attend in candidates.items():
            _wait(leaves[0].device)
            start = time.perf_counter()
            with torch.set_grad_enabled(grad):
                out = attend(*leaves)
                if grad:
                    torch.autograd.grad(out, leaves, torch.ones_like(out))
            _wait(leaves[0].device)
            if round_ >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(samples) for name, samples in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _file(device: torch.device, versions: str) -> Path:
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    words = "".join(c if c.isalnum() or c in ".+-" else "_" for c in f"{named}-{versions}")
    return cache_folder() / f"attention-{words}.json"


def _read(file: Path) -> dict[str, str]:
    """Choices of earlier processes; empty if the file is missing or invalid."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: name for key, name in found.items() if isinstance(name, str)}


def _settle(file: Path, key: str, mine: str, candidates: Mapping[str, Attend]) -> str:
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
        logger.warning("attention's choices are not kept: %s", error)
    return mine
