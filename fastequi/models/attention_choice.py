"""The fastest attention backend for a shape: measured once, then read from a file.

No backend is the fastest everywhere: it depends on the length and its parity, the head width and
the GPU. The choice is kept per GPU and library versions, so that a resumed run uses the same
backend and gives the same bits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastequi import choices

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

_SAMPLES = 15
_VALUES = 1 << 24  # of q, k or v: batches are measured no larger than this


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
    key = f"N={queries} M={keys} H={heads} D={width} {dtype} {'fwdbwd' if grad else 'fwd'}"

    def measure() -> dict[str, float]:
        some = max(min(batch, _VALUES // max(queries, keys) // heads // width), 1)
        shapes = [(some, n, heads, width) for n in (queries, keys, keys)]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            leaves = [torch.randn(s, device=device, dtype=dtype) for s in shapes]
        return _times(candidates, [leaf.requires_grad_(grad) for leaf in leaves], grad)

    return choices.fastest("attention", key, candidates, device, versions, measure)


def _times(candidates: Mapping[str, Attend], leaves: list[Tensor], grad: bool) -> dict[str, float]:
    """Median seconds of each, interleaved; three warm-up rounds are not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(_SAMPLES + 3):
        for name, attend in candidates.items():
            choices.wait(leaves[0].device)
            start = time.perf_counter()
            with torch.set_grad_enabled(grad):
                out = attend(*leaves)
                if grad:
                    torch.autograd.grad(out, leaves, torch.ones_like(out))
            choices.wait(leaves[0].device)
            if round_ >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(samples) for name, samples in times.items()}
