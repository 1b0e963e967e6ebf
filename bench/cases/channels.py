"""warp_recon_loss of images with other channels than three bytes: grey, four, twelve of 16 bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.geometry import DTYPES, itemsize, theta
from bench.opbench import Call, Inputs, OpBench, Provider, Unavailable
from bench.providers import Signature
from fastequi.functional import warp_recon_loss
from fastequi.kernels.pixel_loss import patchify

_PATCH = 16
_DEPTHS = {"uint8": torch.uint8, "uint16": torch.uint16, "float16": torch.float16}
_MOST = {"uint8": 255.0, "uint16": 65535.0, "float16": 1.0}


def _inputs(B: int, K: int, C: int, size: int, depth: str, dtype: str) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    shape = (B, K, (size // _PATCH) ** 2, _PATCH * _PATCH * C)
    coarse = torch.rand(B, C, size // 4, size // 4, generator=generator)
    fine = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return {
        "three": _inputs(B, K, 3, size, depth, dtype) if C == 1 else None,
        "pred": torch.randn(shape, generator=generator).to(DTYPES[dtype]).requires_grad_(),
        "image": (fine * _MOST[depth]).to(_DEPTHS[depth]),
        "theta": theta("mixed", B, K, "cpu"),
        "most": _MOST[depth],
    }


def _scale(channels: int) -> tuple[list[float], list[float]]:
    return [0.45] * channels, [0.25] * channels


def _chain(pred: Tensor, image: Tensor, matrices: Tensor, most: float) -> Tensor:
    """What a user writes today, in the precision of `matrices`."""
    (batch, steps), (_, channels, *size) = matrices.shape[:2], image.shape
    wide = image.to(matrices.dtype) / most
    grid = F.affine_grid(matrices.flatten(0, 1), [batch * steps, channels, *size], False)
    target = F.grid_sample(wide.repeat_interleave(steps, 0), grid, align_corners=False)
    target = ((target - 0.45) / 0.25).unflatten(0, (batch, steps))
    return F.mse_loss(pred.to(matrices.dtype), patchify(target, _PATCH))


def _ours(pred: Tensor, image: Tensor, matrices: Tensor, most: float) -> Tensor:
    mean, std = _scale(image.shape[1])
    options: dict[str, Any] = {"layout": "patch", "patch_size": _PATCH, "mean": mean, "std": std}
    return warp_recon_loss(pred, image, matrices, **options)


_CALL = Signature(
    arguments=lambda inputs: tuple(inputs[name] for name in ("pred", "image", "theta", "most")),
    leaves=lambda inputs: {"grad": inputs["pred"]},
)


def _answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
    wide = {name: inputs[name].detach().double() for name in ("pred", "theta")}
    wide["pred"].requires_grad_()
    found = _CALL.eager(_chain)({**inputs, **wide}, mode)()
    return {name: value.detach() for name, value in found.items()}


def _three(inputs: Inputs, mode: str) -> Call:
    """Ours of three channels: one channel should take a third of it."""
    given = inputs["three"]
    if given is None:
        raise Unavailable("stands beside one channel alone")
    call = _CALL.ours(_ours, "native")(given, mode)
    found = call()
    for name, right in _answer(given, mode).items():
        if (found[name].double() - right).norm() > 1e-3 * right.norm():
            raise Unavailable(f"its {name} is wrong")
    return call


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    source = params["B"] * params["C"] * params["size"] ** 2
    values = source * params["K"] * itemsize(params) * (2 if mode == "fwdbwd" else 1)
    return values + source * _DEPTHS[params["depth"]].itemsize


def _floor(inputs: Inputs, mode: str) -> Any:
    """The prediction read and, for its gradient, as much written, into memory that stays."""
    pred = inputs["pred"].detach()
    out = torch.empty_like(pred)
    if mode == "fwdbwd":
        return lambda: torch.mul(pred, 2, out=out)
    return lambda: pred.sum()


_HEADLINE = {"B": 16, "K": 4, "C": 3, "size": 224, "depth": "uint8", "dtype": "float32"}

CASES = (
    OpBench(
        name="warp_recon_channels_cpu",
        device="cpu",
        title="path loss of images with any number of channels, planes, normalised, mse",
        inputs=_inputs,
        providers={
            "eager": Provider(_CALL.eager(_chain)),
            "compile": Provider(_CALL.compiled(_chain)),
            "ours": Provider(_CALL.ours(_ours, "native")),
            "ours of three channels": Provider(_three, partial=True),
        },
        answer=_answer,
        bytes_moved=_bytes,
        formula="pred read + (fwdbwd) gradient written + source read once per image",
        flops=lambda params, mode: (
            16.0 * params["B"] * params["K"] * params["C"] * params["size"] ** 2
        ),
        floor=_floor,
        sweep=(
            _HEADLINE,
            {**_HEADLINE, "C": 1},
            {**_HEADLINE, "C": 1, "depth": "uint16"},
            {**_HEADLINE, "C": 4},
            {**_HEADLINE, "C": 12, "depth": "uint16"},
            {**_HEADLINE, "C": 12, "depth": "float16"},
            {**_HEADLINE, "B": 64},  # where the host's share of a call is small
            {**_HEADLINE, "B": 64, "C": 1},
        ),
    ),
)
