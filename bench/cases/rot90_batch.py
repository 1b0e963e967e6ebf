"""rot90_batch: RotNet's network batch from uint8 images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.cases.geometry import DTYPES, MEAN, STD, images, itemsize
from bench.opbench import Inputs, OpBench, Provider
from bench.providers import Signature
from fastequi.functional import rot90_batch
from fastequi.kernels.rot90_batch import rot90_batch_ref


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(B: int, size: int, dtype: str) -> Inputs:
        return {"images": images(B, size, device), "dtype": DTYPES[dtype]}

    return make


def chain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As one writes it: normalised, turned, stacked, cast."""
    return rot90_batch_ref(x, None, MEAN, STD, dtype)


_IMAGES = Signature(lambda inputs: (inputs["images"], inputs["dtype"]), result="batch")


def _ours(x: Tensor, dtype: torch.dtype) -> Tensor:
    return rot90_batch(x, mean=MEAN, std=STD, dtype=dtype)


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    return 3 * params["B"] * params["size"] ** 2 * (1 + 4 * itemsize(params))


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """The bytes read and four times as many values written."""
    x = inputs["images"]
    out = torch.empty(4 * len(x), *x.shape[1:], dtype=inputs["dtype"], device=x.device)
    return lambda: (x.sum(dtype=torch.int32), out.fill_(1.0))


def _case(name: str, device: str, backend: str, *sweep: Mapping[str, Any]) -> OpBench:
    return OpBench(
        name=name,
        device=device,
        title="four turned, normalised copies of uint8 images",
        inputs=_inputs(device),
        providers={
            "eager": Provider(_IMAGES.eager(chain)),
            "compile": Provider(_IMAGES.compiled(chain)),
            "ours": Provider(_IMAGES.ours(_ours, backend)),
        },
        answer=lambda inputs, mode: {"batch": chain(inputs["images"], torch.float64)},
        bytes_moved=_bytes,
        formula="images read once + four copies written",
        flops=lambda params, mode: 2.0 * 12 * params["B"] * params["size"] ** 2,
        floor=_floor,
        sweep=sweep,
    )


CASES = (
    _case(
        "rot90_batch_cpu",
        "cpu",
        "native",
        {"B": 16, "size": 224, "dtype": "float32"},
        {"B": 128, "size": 32, "dtype": "float32"},
        {"B": 16, "size": 224, "dtype": "bfloat16"},
    ),
    _case(
        "rot90_batch",
        "cuda",
        "triton",
        {"B": 192, "size": 224, "dtype": "bfloat16"},
        {"B": 128, "size": 32, "dtype": "bfloat16"},
    ),
)
