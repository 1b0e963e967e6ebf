"""fused_views of images with other channels than three bytes, such as satellite tiles, on a GPU.

The images lie there, the parameters on the host; the peer is our PyTorch reference, a view at a
time, which is also the answer. `views.py` has photographs, and the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.cases.geometry import DTYPES, itemsize
from bench.opbench import Inputs, OpBench, Provider
from bench.providers import Signature
from fastequi.functional import fused_views

_SIDE = 256  # of a tile
_AREA = 0.08, 1.0  # of a window, as a share of its tile
_RANGE = 500.0, 40_000.0  # of the values, cut off on both sides


def _inputs(B: int, C: int, size: int, dtype: str) -> Inputs:
    draw = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 65536, (B, _SIDE, _SIDE, C), generator=draw).to(torch.uint16)
    area = torch.empty(B).uniform_(*_AREA, generator=draw)
    side = area.sqrt()[:, None] * _SIDE
    start = torch.rand(B, 2, generator=draw) * (_SIDE - side)
    given: dict[str, Any] = {
        "size": size,
        "gain": torch.tensor([1.0, 0.0, 1.0]) + 0.1 * torch.rand(B, C, 3, generator=draw),
        "sigma": torch.empty(B).uniform_(0.1, 2.0, generator=draw),
        "value_range": _RANGE,
        "mean": 0.45,
        "std": 0.25,
        "dtype": DTYPES[dtype],
    }
    windows = torch.cat([start, start + side], 1)
    return {"photos": list(tiles.to("cuda")), "windows": windows, "given": given}


def _views(photos: list[Tensor], windows: Tensor, given: dict[str, Any]) -> Tensor:
    return fused_views(photos, windows, **given)


def _answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
    given = {**inputs["given"], "dtype": torch.float64}
    return {"views": _views(inputs["photos"], inputs["windows"], given)}


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    """Of windows of the mean area, two bytes a value, and of views."""
    window = int(2 * _SIDE**2 * sum(_AREA) / 2)
    return params["B"] * params["C"] * (window + params["size"] ** 2 * itemsize(params))


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """As many bytes of views written."""
    given, photos = inputs["given"], inputs["photos"]
    shape = len(photos), photos[0].shape[2], given["size"], given["size"]
    out = torch.empty(shape, dtype=given["dtype"], device=photos[0].device)
    return lambda: out.fill_(1)


_VIEWS = Signature(
    lambda inputs: (inputs["photos"], inputs["windows"], inputs["given"]), result="views"
)

CASES = (
    OpBench(
        name="view_channels",
        device="cuda",
        title="views of tiles of 256x256 with channels of 16 bits on the GPU, normalised",
        inputs=_inputs,
        providers={
            "eager": Provider(_VIEWS.ours(_views, "torch")),
            "ours": Provider(_VIEWS.ours(_views, "triton")),
        },
        answer=_answer,
        bytes_moved=_bytes,
        formula="values of the window read once + view written once",
        flops=lambda params, mode: 0.0,
        floor=_floor,
        sweep=tuple(
            {"B": 768 // channels, "C": channels, "size": 224, "dtype": "bfloat16"}
            for channels in (12, 4, 1)
        ),
        on_host=True,
    ),
)
