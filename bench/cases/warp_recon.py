"""warp_recon_loss: reconstruction error against images warped on the fly, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.geometry import DTYPES, FAMILIES, MEAN, STD, images, itemsize, theta
from bench.opbench import Call, Inputs, Make, OpBench, Provider, Unavailable
from fastequi.functional import warp_recon_loss
from fastequi.kernels import backend
from fastequi.kernels.pixel_loss import patchify

PATCH = 16


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(B: int, K: int, size: int, dtype: str, family: str) -> Inputs:
        generator = torch.Generator().manual_seed(1)
        tokens = (size // PATCH) ** 2
        values = torch.randn(B, K, tokens, PATCH * PATCH * 3, generator=generator)
        return {
            "pred": values.to(device, DTYPES[dtype]).requires_grad_(),
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


def _of(loss: Callable[..., Tensor]) -> Make:
    """A provider from a loss of (pred, image, theta, size)."""

    def make(inputs: Inputs, mode: str) -> Call:
        pred = inputs["pred"]
        rest = inputs["image"], inputs["theta"], inputs["size"]

        def forward() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"loss": loss(pred, *rest)}

        def both() -> dict[str, Tensor]:
            value = loss(pred, *rest)
            (grad,) = torch.autograd.grad(value, pred)
            return {"loss": value, "grad": grad}

        return both if mode == "fwdbwd" else forward

    return make


def _compiled(inputs: Inputs, mode: str) -> Call:
    cuda = inputs["pred"].is_cuda
    tuning = "max-autotune-no-cudagraphs" if cuda else None
    torch._dynamo.reset()
    return _of(torch.compile(chain, dynamic=False, mode=tuning))(inputs, mode)


def _ours(name: str | None = None) -> Make:
    def loss(pred: Tensor, image: Tensor, matrices: Tensor, size: int) -> Tensor:
        return warp_recon_loss(
            pred, image, matrices, layout="patch", patch_size=PATCH, mean=MEAN, std=STD
        )

    def forced(*args: Any) -> Tensor:
        assert name is not None
        with backend.force(name):
            return loss(*args)

    def make(inputs: Inputs, mode: str) -> Call:
        if name is None:
            return _of(loss)(inputs, mode)
        try:
            with backend.force(name):
                pass
        except RuntimeError as reason:
            raise Unavailable(str(reason)) from None
        return _of(forced)(inputs, mode)

    return make


def _kornia(inputs: Inputs, mode: str) -> Call:
    try:
        from kornia.geometry.transform import warp_affine
    except Exception as error:
        raise Unavailable(f"kornia: {error}") from None
    size = inputs["size"]
    # kornia takes input-to-output matrices in pixels
    half = torch.tensor([[2 / size, 0, 1 / size - 1], [0, 2 / size, 1 / size - 1], [0, 0, 1]])
    square = torch.eye(3).repeat(*inputs["theta"].shape[:2], 1, 1)
    square[..., :2, :] = inputs["theta"].cpu()
    pixels = torch.linalg.inv(torch.linalg.inv(half) @ square @ half)[..., :2, :]
    pixels = pixels.flatten(0, 1).to(inputs["pred"].device)

    def loss(pred: Tensor, image: Tensor, matrices: Tensor, size: int) -> Tensor:
        batch, steps = matrices.shape[:2]
        wide = (image.float() / 255).repeat_interleave(steps, 0)
        target = warp_affine(wide, pixels, (size, size), align_corners=True)
        mean, std = (torch.tensor(v, device=pred.device)[:, None, None] for v in (MEAN, STD))
        target = ((target - mean) / std).unflatten(0, (batch, steps))
        return F.mse_loss(pred.float(), patchify(target, PATCH))

    return _of(loss)(inputs, mode)


def _cv2(inputs: Inputs, mode: str) -> Call:
    """cv2.warpAffine alone, float32, into memory that stays: no normalisation, loss or gradient."""
    try:
        import cv2
    except Exception as error:
        raise Unavailable(f"opencv: {error}") from None
    import numpy as np

    cv2.setNumThreads(torch.get_num_threads())
    size, matrices = inputs["size"], inputs["theta"]
    sources = (inputs["image"].float() / 255).permute(0, 2, 3, 1).contiguous().numpy()
    # normalised output-to-input to pixels of input
    half = torch.tensor([[2 / size, 0, 1 / size - 1], [0, 2 / size, 1 / size - 1], [0, 0, 1]])
    square = torch.eye(3).repeat(*matrices.shape[:2], 1, 1)
    square[..., :2, :] = matrices
    pixels = (torch.linalg.inv(half) @ square @ half)[..., :2, :].double().numpy()
    out = np.empty((*matrices.shape[:2], size, size, 3), np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP

    def call() -> dict[str, Tensor]:
        for b in range(out.shape[0]):
            for k in range(out.shape[1]):
                cv2.warpAffine(sources[b], pixels[b, k], (size, size), out[b, k], flags=flags)
        return {}

    call()
    grid = F.affine_grid(
        matrices.flatten(0, 1), [matrices[..., 0, 0].numel(), 3, size, size], False
    )
    wide = torch.from_numpy(sources).permute(0, 3, 1, 2).repeat_interleave(matrices.shape[1], 0)
    expected = F.grid_sample(wide, grid, align_corners=False).permute(0, 2, 3, 1)
    gap = (torch.from_numpy(out).flatten(0, 1) - expected).norm() / expected.norm().clamp(min=1)
    if gap > 0.02:  # it interpolates in steps of a 32nd of a pixel
        raise Unavailable(f"cv2.warpAffine is off by {gap:.2g}")
    return call


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


FORMULA = "pred read + (fwdbwd) gradient written + uint8 source read once per image"


def _sweep(headline: Mapping[str, Any], *others: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    families = [{"family": name} for name in FAMILIES if name != headline["family"]]
    return ({**headline}, *({**headline, **change} for change in (*families, *others)))


_COMMON: dict[str, Provider] = {
    "eager": Provider(_of(chain)),
    "compile": Provider(_compiled),
    "kornia": Provider(_kornia, tolerance=2e-2),
}

CASES = (
    OpBench(
        name="warp_recon_cpu",
        device="cpu",
        title="path loss of uint8 images against patch-token predictions, normalised, mse",
        inputs=_inputs("cpu"),
        providers={
            **_COMMON,
            "cv2.warpAffine alone": Provider(_cv2, partial=True),
            "ours, PyTorch path": Provider(_ours("torch")),
            "ours": Provider(_ours("native")),
        },
        answer=_answer,
        bytes_moved=_bytes,
        formula=FORMULA,
        floor=_floor,
        sweep=_sweep(
            {"B": 16, "K": 4, "size": 224, "dtype": "float32", "family": "mixed"},
            {"dtype": "bfloat16"},
            {"K": 1},
            {"B": 1},
            {"B": 64, "K": 2, "size": 96},
            {"B": 64, "K": 2, "size": 32},
        ),
    ),
    OpBench(
        name="warp_recon",
        device="cuda",
        title="path loss of uint8 images against patch-token predictions, normalised, mse",
        inputs=_inputs("cuda"),
        providers={**_COMMON, "ours": Provider(_ours("triton"))},
        answer=_answer,
        bytes_moved=_bytes,
        formula=FORMULA,
        floor=_floor,
        sweep=_sweep(
            {"B": 256, "K": 4, "size": 224, "dtype": "bfloat16", "family": "mixed"},
            {"dtype": "float32"},
            {"K": 1},
            {"K": 8},
            {"B": 8},
        ),
    ),
)
