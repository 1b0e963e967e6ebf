"""Every declared case."""

from __future__ import annotations

from collections.abc import Iterator

from bench.cases import (
    attention,
    blur,
    channels,
    crops,
    decode,
    embeddings,
    encoder_step,
    gelu,
    gram,
    image_gradients,
    linear_recon,
    multi_crop,
    overlap,
    prototypes,
    rot90_batch,
    tir_overhead,
    train_step,
    views,
    views_gpu,
    warp,
    warp_recon,
)
from bench.opbench import OpBench

_MODULES = (
    *(
        warp_recon,
        channels,
        linear_recon,
        overlap,
        warp,
        blur,
        rot90_batch,
        image_gradients,
        prototypes,
        embeddings,
        gram,
        crops,
    ),
    *(attention, gelu, encoder_step, tir_overhead, train_step, decode, views, views_gpu),
    multi_crop,
)


def all_cases() -> Iterator[OpBench]:
    """In the order of the list that `python -m bench --list` prints."""
    for module in _MODULES:
        yield from module.CASES
