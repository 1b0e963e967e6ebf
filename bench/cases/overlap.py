"""overlap_add and its adjoint: windows of patch tokens that reach over their patches' edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.cases.geometry import DTYPES, itemsize
from bench.opbench import Inputs, OpBench, Provider
from bench.providers import Signature
from fastequi.kernels.overlap import (
    overlap_add,
    overlap_add_ref,
    overlap_spread,
    overlap_spread_ref,
)

PATCH = 16
_Map = Callable[[Tensor, tuple[int, int], int, int], Tensor]


def _values(side: int) -> int:
    return side * side * 3


def _inputs(adjoint: bool) -> Callable[..., Inputs]:
    def make(B: int, K: int, size: int, overlap: int, dtype: str) -> Inputs:
        side = PATCH if adjoint else PATCH + 2 * overlap
        grid = size // PATCH, size // PATCH
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randn(B, K, grid[0] * grid[1], _values(side), generator=generator)
        return {"tokens": tokens.to("cuda", DTYPES[dtype]), "grid": grid, "overlap": overlap}

    return make


_TOKENS = Signature(
    lambda inputs: (inputs["tokens"], inputs["grid"], PATCH, inputs["overlap"]), result="tokens"
)


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    tokens = params["B"] * params["K"] * (params["size"] // PATCH) ** 2
    return tokens * (_values(PATCH) + _values(PATCH + 2 * params["overlap"])) * itemsize(params)


def _floor(adjoint: bool) -> Callable[[Inputs, str], Callable[[], Any]]:
    """As many bytes read as tokens have, and written as the others have."""

    def make(inputs: Inputs, mode: str) -> Callable[[], Any]:
        given = inputs["tokens"]
        side = PATCH + 2 * inputs["overlap"] if adjoint else PATCH
        out = given.new_empty(*given.shape[:-1], _values(side))
        return lambda: (given.sum(), out.fill_(1.0))

    return make


def _case(name: str, title: str, ours: _Map, ref: _Map, adjoint: bool) -> OpBench:
    headline = {"B": 64, "K": 4, "size": 224, "overlap": 4, "dtype": "bfloat16"}
    return OpBench(
        name=name,
        device="cuda",
        title=title,
        inputs=_inputs(adjoint),
        providers={
            "eager": Provider(_TOKENS.eager(ref)),
            "compile": Provider(_TOKENS.compiled(ref)),
            "ours": Provider(_TOKENS.ours(ours, "triton")),
        },
        answer=lambda inputs, mode: {
            "tokens": ref(inputs["tokens"].double(), inputs["grid"], PATCH, inputs["overlap"])
        },
        bytes_moved=_bytes,
        formula="tokens read + tokens written",
        flops=lambda params, mode: _bytes(params, mode) / itemsize(params),
        floor=_floor(adjoint),
        sweep=(headline, {**headline, "overlap": 8}, {**headline, "dtype": "float32"}),
    )


CASES = (
    _case(
        "overlap_add",
        "overlapping windows added up to patch tokens",
        overlap_add,
        overlap_add_ref,
        adjoint=False,
    ),
    _case(
        "overlap_spread",
        "patch tokens' gradient spread over overlapping windows",
        overlap_spread,
        overlap_spread_ref,
        adjoint=True,
    ),
)
