"""warp: images along a path, recoloured, normalised and cast in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import cv2_warp
from bench.cases.geometry import DTYPES, MEAN, STD, images, in_pixels, itemsize, theta
from bench.opbench import Call, Inputs, OpBench, Provider, Unavailable
from bench.providers import Signature
from fastequi.functional import warp


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(B: int, K: int, size: int, dtype: str, family: str) -> Inputs:
        return {
            "image": images(B, size, device),
            "theta": theta(family, B, K, device),
            "dtype": DTYPES[dtype],
        }

    return make


def warped(image: Tensor, matrices: Tensor) -> Tensor:
    """[B, K, C, H, W] samples of floats."""
    wide = image.repeat_interleave(matrices.shape[1], 0)
    grid = F.affine_grid(matrices.flatten(0, 1), list(wide.shape), False)
    return F.grid_sample(wide, grid, align_corners=False).unflatten(0, matrices.shape[:2])


def chain(image: Tensor, matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """What a user writes today."""
    return _normalised(warped(image.to(matrices.dtype) / 255, matrices)).to(dtype)


def _normalised(views: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).to(views)[:, None, None] for v in (MEAN, STD))
    return (views - mean) / std


def _kornia(inputs: Inputs, mode: str) -> Call:
    try:
        from kornia.geometry.transform import warp_affine
    except Exception as error:
        raise Unavailable(str(error)) from None
    size, steps = inputs["image"].shape[-1], inputs["theta"].shape[1]
    # kornia takes input-to-output matrices in pixels
    pixels = torch.linalg.inv(in_pixels(inputs["theta"], size))[..., :2, :]
    pixels = pixels.flatten(0, 1).to(inputs["image"].device)

    def views(image: Tensor, matrices: Tensor, dtype: torch.dtype) -> Tensor:
        wide = (image.float() / 255).repeat_interleave(steps, 0)
        out = warp_affine(wide, pixels, (size, size), align_corners=True)
        return _normalised(out).unflatten(0, (len(image), steps)).to(dtype)

    return _VIEWS.eager(views)(inputs, mode)


_VIEWS = Signature(
    lambda inputs: (inputs["image"], inputs["theta"], inputs["dtype"]), result="views"
)


def _ours(image: Tensor, matrices: Tensor, dtype: torch.dtype) -> Tensor:
    return warp(image, matrices, mean=MEAN, std=STD, dtype=dtype)


def _answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
    return {"views": chain(inputs["image"], inputs["theta"].double(), torch.float64)}


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    pixels = 3 * params["size"] ** 2 * params["B"]
    return pixels * params["K"] * itemsize(params) + pixels


def _flops(params: Mapping[str, Any], mode: str) -> float:
    """A value: 7 sampled, 2 normalised; a third of 12 of its pixel."""
    return 13 * 3 * params["size"] ** 2 * params["B"] * params["K"]


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    image, steps = inputs["image"], inputs["theta"].shape[1]
    out = torch.empty((len(image), steps, *image.shape[1:]), dtype=inputs["dtype"]).to(image.device)
    return lambda: out.fill_(1)


def _case(
    name: str,
    device: str,
    ours: Mapping[str, Provider],
    headline: Mapping[str, Any],
    *others: Mapping[str, Any],
) -> OpBench:
    return OpBench(
        name=name,
        device=device,
        title="views of uint8 images, normalised",
        inputs=_inputs(device),
        providers={
            "eager": Provider(_VIEWS.eager(chain)),
            "compile": Provider(_VIEWS.compiled(chain)),
            "kornia": Provider(_kornia, tolerance=2e-2),
            **ours,
        },
        answer=_answer,
        bytes_moved=_bytes,
        formula="views written + uint8 source read once per image",
        flops=_flops,
        floor=_floor,
        sweep=tuple(
            {**headline, "family": "mixed", **change} for change in ({}, {"family": "45"}, *others)
        ),
    )


CASES = (
    _case(
        "warp_cpu",
        "cpu",
        {
            **cv2_warp.ALONE,
            "ours": Provider(_VIEWS.ours(_ours, "native")),
        },
        {"B": 16, "K": 2, "size": 224, "dtype": "float32"},
        {"B": 1},
        {"B": 64, "size": 32},
    ),
    _case(
        "warp",
        "cuda",
        {"ours": Provider(_VIEWS.ours(_ours, "triton"))},
        {"B": 256, "K": 2, "size": 224, "dtype": "bfloat16"},
    ),
)
