"""fused_views on a GPU: of photographs, and of tiles with other channels than three bytes.

The images lie there, the parameters on the host; the peer is our PyTorch reference, a view at a
time, which is also the answer. On a CPU: `views.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.cases.geometry import DTYPES, itemsize
from bench.cases.views import AREA, HEIGHT, WIDTH, arguments, parameters, photographs
from bench.opbench import Inputs, OpBench, Provider
from bench.providers import Signature
from fastequi.functional import fused_views

_SIDE = 256  # of a tile
_RANGE = 500.0, 40_000.0  # of a tile's values, cut off on both sides


def _of_photographs(B: int, size: int, dtype: str, blurred: bool) -> Inputs:
    arrays = [np.array(image) for image in photographs(B)]
    photos, windows, given = arguments("all", size, arrays, parameters(B, size))
    given["dtype"] = DTYPES[dtype]
    if not blurred:
        del given["sigma"]
    return {"photos": [photo.to("cuda") for photo in photos], "windows": windows, "given": given}


def _of_tiles(B: int, C: int, size: int, dtype: str) -> Inputs:
    draw = torch.Generator().manual_seed(0)
    tiles = torch.randint(0, 65536, (B, _SIDE, _SIDE, C), generator=draw).to(torch.uint16)
    area = torch.empty(B).uniform_(*AREA, generator=draw)
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


def _bytes_of(window: int, channels: int, params: Mapping[str, Any]) -> int:
    """Of windows of the mean area, whose whole has so many bytes a channel, and of views."""
    read = int(channels * window * sum(AREA) / 2)
    return params["B"] * (read + channels * params["size"] ** 2 * itemsize(params))


def _views(photos: list[Tensor], windows: Tensor, given: dict[str, Any]) -> Tensor:
    return fused_views(photos, windows, **given)


def _answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
    given = {**inputs["given"], "dtype": torch.float64}
    return {"views": _views(inputs["photos"], inputs["windows"], given)}


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """As many bytes of views written."""
    given, photos = inputs["given"], inputs["photos"]
    shape = len(inputs["windows"]), photos[0].shape[2], given["size"], given["size"]
    out = torch.empty(shape, dtype=given["dtype"], device=photos[0].device)
    return lambda: out.fill_(1)


_VIEWS = Signature(
    lambda inputs: (inputs["photos"], inputs["windows"], inputs["given"]), result="views"
)


def _case(name: str, title: str, **more: Any) -> OpBench:
    return OpBench(
        name=name,
        device="cuda",
        title=title,
        providers={
            "eager": Provider(_VIEWS.ours(_views, "torch")),
            "ours": Provider(_VIEWS.ours(_views, "triton")),
        },
        answer=_answer,
        formula="values of the window read once + view written once",
        flops=lambda params, mode: 0.0,
        floor=_floor,
        on_host=True,
        **more,
    )


_PHOTOGRAPHS: dict[str, Any] = {"B": 256, "size": 224, "dtype": "bfloat16", "blurred": True}

CASES = (
    _case(
        "views",
        "views of photographs of 500x375 on the GPU, normalised",
        inputs=_of_photographs,
        bytes_moved=lambda params, mode: _bytes_of(HEIGHT * WIDTH, 3, params),
        sweep=(
            _PHOTOGRAPHS,
            {**_PHOTOGRAPHS, "blurred": False},
            {**_PHOTOGRAPHS, "size": 96},
        ),
    ),
    _case(
        "view_channels",
        "views of tiles of 256x256 with channels of 16 bits on the GPU, normalised",
        inputs=_of_tiles,
        bytes_moved=lambda params, mode: _bytes_of(2 * _SIDE**2, params["C"], params),
        sweep=tuple(
            {"B": 768 // channels, "C": channels, "size": 224, "dtype": "bfloat16"}
            for channels in (12, 4, 1)
        ),
    ),
)
