"""warp_recon_loss: reconstruction error against images warped on the fly, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases import cv2_warp
from bench.cases.geometry import (
    DTYPES,
    FAMILIES,
    MEAN,
    STD,
    images,
    in_pixels,
    itemsize,
    rotations,
    theta,
)
from bench.opbench import Call, Inputs, OpBench, Provider, Unavailable
from bench.providers import Signature
from fastequi.functional import warp_recon_loss
from fastequi.kernels.pixel_loss import patchify

PATCH = 16
MOST_CALLS = 128


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(B: int, K: int, size: int, dtype: str, family: str) -> Inputs:
        generator = torch.Generator(device).manual_seed(1)
        shape = (B, K, (size // PATCH) ** 2, PATCH * PATCH * 3)
        values = torch.randn(shape, generator=generator, device=device)
        return {
            "pred": values.to(DTYPES[dtype]).requires_grad_(),
            "image": images(B, size, device),
            "theta": theta(family, B, K, device),
            "size": size,
        }

    return make


def chain(pred: Tensor, image: Tensor, matrices: Tensor, size: int) -> Tensor:
    """What a user writes today, in the precision of `matrices`."""
    batch, steps = matrices.shape[:2]
    wide = image.to(matrices.dtype) / 255
    grid = F.affine_grid(matrices.flatten(0, 1), [batch * steps, 3, size, size], False)
    target = F.grid_sample(wide.repeat_interleave(steps, 0), grid, align_corners=False)
    mean, std = (torch.tensor(v, device=pred.device).to(target)[:, None, None] for v in (MEAN, STD))
    target = ((target - mean) / std).unflatten(0, (batch, steps))
    return F.mse_loss(pred.to(matrices.dtype), patchify(target, PATCH))


def _answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
    """In float64, an image at a time."""
    pred, losses, grads = inputs["pred"], [], []
    for b in range(len(pred)):
        leaf = pred[b : b + 1].detach().double().requires_grad_()
        image, matrices = inputs["image"][b : b + 1], inputs["theta"][b : b + 1].double()
        loss = chain(leaf, image, matrices, inputs["size"])
        losses.append(loss.detach())
        if mode == "fwdbwd":
            (grad,) = torch.autograd.grad(loss, leaf)
            grads.append((grad / len(pred)).to(pred.dtype))
    answer = {"loss": torch.stack(losses).mean()}
    return {**answer, "grad": torch.cat(grads).double()} if grads else answer


_PRED = Signature(
    arguments=lambda inputs: tuple(inputs[name] for name in ("pred", "image", "theta", "size")),
    leaves=lambda inputs: {"grad": inputs["pred"]},
)


def _ours(pred: Tensor, image: Tensor, matrices: Tensor, size: int) -> Tensor:
    return warp_recon_loss(
        pred, image, matrices, layout="patch", patch_size=PATCH, mean=MEAN, std=STD
    )


def _kornia(inputs: Inputs, mode: str) -> Call:
    try:
        from kornia.geometry.transform import warp_affine
    except Exception as error:
        raise Unavailable(f"kornia: {error}") from None
    # kornia takes input-to-output matrices in pixels
    pixels = torch.linalg.inv(in_pixels(inputs["theta"], inputs["size"]))[..., :2, :]
    pixels = pixels.flatten(0, 1).to(inputs["pred"].device)

    def loss(pred: Tensor, image: Tensor, matrices: Tensor, size: int) -> Tensor:
        wide = (image.float() / 255).repeat_interleave(matrices.shape[1], 0)
        return _normalised_mse(pred, warp_affine(wide, pixels, (size, size), align_corners=True))

    return _PRED.eager(loss)(inputs, mode)


def _torchvision(inputs: Inputs, mode: str) -> Call:
    """v2's affine takes one transformation a call: B·K calls, of which at most MOST_CALLS."""
    if inputs["theta"][..., 0, 0].numel() > MOST_CALLS:
        raise Unavailable(f"torchvision: a call a step of every image, more than {MOST_CALLS}")
    try:
        from torchvision.transforms.v2 import InterpolationMode
        from torchvision.transforms.v2.functional import affine
    except Exception as error:
        raise Unavailable(f"torchvision: {error}") from None
    degrees, shift, scale = (t.tolist() for t in rotations(inputs["theta"], inputs["size"]))

    def loss(pred: Tensor, image: Tensor, matrices: Tensor, size: int) -> Tensor:
        batch, steps = matrices.shape[:2]
        wide = image.float() / 255
        targets = [
            affine(
                wide[b],
                degrees[b][k],
                shift[b][k],
                scale[b][k],
                [0.0, 0.0],
                interpolation=InterpolationMode.BILINEAR,
            )
            for b in range(batch)
            for k in range(steps)
        ]
        return _normalised_mse(pred, torch.stack(targets))

    return _PRED.eager(loss)(inputs, mode)


def _triton_augment(inputs: Inputs, mode: str) -> Call:
    try:
        from triton_augment.functional import fused_augment
    except Exception as error:
        raise Unavailable(f"triton-augment: {error}") from None
    device = inputs["pred"].device
    degrees, shift, scale = (
        t.flatten(0, 1).float().to(device) for t in rotations(inputs["theta"], inputs["size"])
    )

    def loss(pred: Tensor, image: Tensor, matrices: Tensor, size: int) -> Tensor:
        batch, steps = matrices.shape[:2]
        wide = (image.float() / 255).repeat_interleave(steps, 0).contiguous()
        target = fused_augment(
            wide, 0, 0, size, size, angle=degrees, translate=shift, scale=scale,
            interpolation="bilinear", mean=MEAN, std=STD,
        )  # fmt: skip
        return F.mse_loss(pred.float(), patchify(target.unflatten(0, (batch, steps)), PATCH))

    return _PRED.eager(loss)(inputs, mode)


def _normalised_mse(pred: Tensor, target: Tensor) -> Tensor:
    """Of targets [B·K, 3, H, W] in 0..1."""
    mean, std = (torch.tensor(v, device=pred.device)[:, None, None] for v in (MEAN, STD))
    target = ((target - mean) / std).unflatten(0, pred.shape[:2])
    return F.mse_loss(pred.float(), patchify(target, PATCH))


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    values = params["B"] * params["K"] * 3 * params["size"] ** 2
    source = params["B"] * 3 * params["size"] ** 2
    return values * itemsize(params) * (2 if mode == "fwdbwd" else 1) + source


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """The prediction read and, for its gradient, as much written, into memory that stays."""
    pred = inputs["pred"].detach()
    out = torch.empty_like(pred)
    if mode == "fwdbwd":
        return lambda: torch.mul(pred, 2, out=out)
    return lambda: pred.sum()


def _flops(params: Mapping[str, Any], mode: str) -> float:
    """A value: 7 sampled, 2 normalised, 3 compared, 1 of gradient; a third of 12 of its pixel."""
    values = params["B"] * params["K"] * 3 * params["size"] ** 2
    return values * (17 if mode == "fwdbwd" else 16)


def _rgbx(inputs: Inputs, mode: str) -> Call:
    """Ours, from four bytes a texel."""
    image = inputs["image"]
    packed = torch.cat([image, image[:, :1]], 1).contiguous(memory_format=torch.channels_last)
    return _PRED.ours(_ours, "triton")({**inputs, "image": packed[:, :3]}, mode)


def _by_step(inputs: Inputs, mode: str) -> Call:
    """Ours, a pass for each step."""
    steps = inputs["pred"].detach().split(1, 1)
    leaves = [step.contiguous().requires_grad_() for step in steps]
    rest = [(inputs["image"], m.contiguous(), inputs["size"]) for m in inputs["theta"].split(1, 1)]

    def call() -> dict[str, Tensor]:
        total = torch.zeros((), device=inputs["pred"].device)
        for leaf, others in zip(leaves, rest, strict=True):
            if mode == "fwd":
                with torch.no_grad():
                    total += _ours(leaf, *others)
                continue
            loss = _ours(leaf, *others)
            torch.autograd.grad(loss, leaf)
            total += loss.detach()
        return {"loss": total / len(leaves)}

    return call


def _case(
    name: str, device: str, ours: Mapping[str, Provider], headline: Mapping[str, Any], *others: Any
) -> OpBench:
    families = [{"family": name} for name in FAMILIES if name != headline["family"]]
    return OpBench(
        name=name,
        device=device,
        title="path loss of uint8 images against patch-token predictions, normalised, mse",
        inputs=_inputs(device),
        providers={
            "eager": Provider(_PRED.eager(chain)),
            "compile": Provider(_PRED.compiled(chain)),
            "kornia": Provider(_kornia, tolerance=2e-2),
            "torchvision": Provider(_torchvision),
            **ours,
        },
        answer=_answer,
        bytes_moved=_bytes,
        formula="pred read + (fwdbwd) gradient written + uint8 source read once per image",
        flops=_flops,
        floor=_floor,
        sweep=({**headline}, *({**headline, **change} for change in (*families, *others))),
    )


CASES = (
    _case(
        "warp_recon_cpu",
        "cpu",
        {
            **cv2_warp.ALONE,
            "ours, PyTorch path": Provider(_PRED.ours(_ours, "torch")),
            "ours": Provider(_PRED.ours(_ours, "native")),
        },
        {"B": 16, "K": 4, "size": 224, "dtype": "float32", "family": "mixed"},
        {"dtype": "bfloat16"},
        {"K": 1},
        {"B": 1},
        {"B": 64, "K": 2, "size": 96},
        {"B": 64, "K": 2, "size": 32},
    ),
    _case(
        "warp_recon",
        "cuda",
        {
            "triton-augment": Provider(_triton_augment),
            "ours, PyTorch path": Provider(_PRED.ours(_ours, "torch")),
            "ours, packed RGBX": Provider(_rgbx),
            "ours, a pass per step": Provider(_by_step),
            "ours": Provider(_PRED.ours(_ours, "triton")),
        },
        {"B": 256, "K": 4, "size": 224, "dtype": "bfloat16", "family": "mixed"},
        {"dtype": "float32"},
        {"K": 1},
        {"K": 8},
        {"B": 8},
        {"B": 64},
        {"size": 96},
        {"size": 256},
    ),
)
