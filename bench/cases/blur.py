"""gaussian_blur, a sigma per image and step; and the loss against images blurred so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.geometry import DTYPES, MEAN, STD, images, itemsize
from bench.opbench import Call, Inputs, OpBench, Provider, Unavailable
from bench.providers import Signature
from fastequi.functional import blur_recon_loss, gaussian_blur
from fastequi.kernels.pixel_loss import patchify

PATCH, MAX_SIGMA = 16, 2.0
RADIUS = 8  # ceil(4 max_sigma)


def sigmas(batch: int, steps: int, device: str) -> Tensor:
    return torch.linspace(0.3, MAX_SIGMA, batch * steps, device=device).view(batch, steps)


def blurred(image: Tensor, sigma: Tensor) -> Tensor:
    """[B, K, C, H, W] of floats: two grouped convolutions, a kernel for each image and step."""
    (batch, steps), channels = sigma.shape, image.shape[1]
    planes = batch * steps * channels
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=sigma.device)
    kernel = torch.exp(-offsets.square() / (2 * sigma.flatten()[:, None].square()))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    wide = image.repeat_interleave(steps, 0).flatten(0, 1)[None]
    wide = F.pad(wide, [RADIUS] * 4, mode="reflect")
    half = F.conv2d(wide, kernel[:, :, None], groups=planes)
    out = F.conv2d(half, kernel[:, :, :, None], groups=planes)
    return out.view(batch, steps, channels, *image.shape[2:])


def _in_unit(image: Tensor, like: Tensor) -> Tensor:
    """Bytes as floats in 0..1."""
    return image.to(like.dtype) / 255


def _normalised(target: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, device=target.device).to(target) for v in (MEAN, STD))
    return (target - mean[:, None, None]) / std[:, None, None]


def views(image: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    """What a user writes today."""
    return _normalised(blurred(_in_unit(image, sigma), sigma)).to(dtype)


def blur_chain(pred: Tensor, image: Tensor, sigma: Tensor, size: int) -> Tensor:
    """The same, and the error of patch tokens."""
    target = patchify(_normalised(blurred(_in_unit(image, sigma), sigma)), PATCH)
    return F.mse_loss(pred.to(sigma.dtype), target)


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(B: int, K: int, size: int, dtype: str) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        pred = torch.randn(B, K, (size // PATCH) ** 2, PATCH**2 * 3, generator=generator)
        return {
            "image": images(B, size, device),
            "sigma": sigmas(B, K, device),
            "pred": pred.to(device, DTYPES[dtype]).requires_grad_(),
            "dtype": DTYPES[dtype],
            "size": size,
        }

    return make


_VIEWS = Signature(
    lambda inputs: (inputs["image"], inputs["sigma"], inputs["dtype"]), result="views"
)
_PRED = Signature(
    arguments=lambda inputs: tuple(inputs[name] for name in ("pred", "image", "sigma", "size")),
    leaves=lambda inputs: {"grad": inputs["pred"]},
)


def _our_views(image: Tensor, sigma: Tensor, dtype: torch.dtype) -> Tensor:
    return gaussian_blur(image, sigma, mean=MEAN, std=STD, dtype=dtype, max_sigma=MAX_SIGMA)


def _our_loss(pred: Tensor, image: Tensor, sigma: Tensor, size: int) -> Tensor:
    return blur_recon_loss(
        pred, image, sigma, layout="patch", patch_size=PATCH, mean=MEAN, std=STD,
        max_sigma=MAX_SIGMA,
    )  # fmt: skip


def _kornia(signature: Signature, finish: Callable[..., Tensor], inputs: Inputs, mode: str) -> Call:
    try:
        from kornia.filters import gaussian_blur2d
    except Exception as error:
        raise Unavailable(str(error)) from None
    sigma = inputs["sigma"]
    each = sigma.flatten()[:, None].expand(-1, 2).contiguous()

    def function(*arguments: Any) -> Tensor:
        wide = (inputs["image"].float() / 255).repeat_interleave(sigma.shape[1], 0)
        target = gaussian_blur2d(wide, (2 * RADIUS + 1, 2 * RADIUS + 1), each)
        return finish(target.unflatten(0, sigma.shape), *arguments)

    return signature.eager(function)(inputs, mode)


def _cv2(name: str, inputs: Inputs, mode: str) -> Call:
    """A blur of OpenCV alone, of float32, into memory that stays: no normalisation, no loss."""
    try:
        import cv2
    except Exception as error:
        raise Unavailable(f"opencv: {error}") from None
    if not hasattr(cv2, name):
        raise Unavailable(f"opencv {cv2.__version__} has no {name}")
    import numpy as np

    cv2.setNumThreads(torch.get_num_threads())
    sources = (inputs["image"].float() / 255).permute(0, 2, 3, 1).contiguous().numpy()
    sigma, side = inputs["sigma"].tolist(), 2 * RADIUS + 1
    out = np.empty((len(sources), len(sigma[0]), *sources.shape[1:]), np.float32)

    def call() -> dict[str, Tensor]:
        for b, steps in enumerate(sigma):
            for k, width in enumerate(steps):
                if name == "GaussianBlur":
                    border = cv2.BORDER_REFLECT_101
                    cv2.GaussianBlur(sources[b], (side, side), width, out[b, k], borderType=border)
                else:  # its kernel's size stands for sigma
                    cv2.stackBlur(sources[b], (2 * round(2 * width) + 1,) * 2, out[b, k])
        return {}

    call()
    if name == "GaussianBlur":
        image = _in_unit(inputs["image"], inputs["sigma"])
        expected = blurred(image, inputs["sigma"]).permute(0, 1, 3, 4, 2)
        gap = (torch.from_numpy(out) - expected).norm() / expected.norm()
        if gap > 1e-3:
            raise Unavailable(f"cv2.GaussianBlur is off by {gap:.2g}")
    return call


def _answer_views(inputs: Inputs, mode: str) -> dict[str, Tensor]:
    return {"views": views(inputs["image"], inputs["sigma"].double(), torch.float64)}


def _answer_loss(inputs: Inputs, mode: str) -> dict[str, Tensor]:
    wide = dict(inputs)
    wide["pred"] = inputs["pred"].detach().double().requires_grad_()
    wide["sigma"] = inputs["sigma"].double()
    found = _PRED.eager(blur_chain)(wide, mode)()
    return {name: value.detach() for name, value in found.items()}


def _bytes_views(params: Mapping[str, Any], mode: str) -> int:
    pixels = 3 * params["size"] ** 2 * params["B"]
    return pixels * params["K"] * itemsize(params) + pixels


def _bytes_loss(params: Mapping[str, Any], mode: str) -> int:
    pixels = 3 * params["size"] ** 2 * params["B"]
    return pixels * params["K"] * itemsize(params) * (2 if mode == "fwdbwd" else 1) + pixels


def _flops(params: Mapping[str, Any], mode: str) -> float:
    """Of a value: two passes of a middle tap and of eight that stand for two pixels each."""
    return 2 * (2 + 3 * RADIUS) * 3 * params["size"] ** 2 * params["B"] * params["K"]


def _floor_views(inputs: Inputs, mode: str) -> Callable[[], Any]:
    image, steps = inputs["image"], inputs["sigma"].shape[1]
    out = torch.empty((len(image), steps, *image.shape[1:]), dtype=inputs["dtype"]).to(image.device)
    return lambda: out.fill_(1)


def _floor_loss(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """The prediction read and, for its gradient, as much written, into memory that stays."""
    pred = inputs["pred"].detach()
    out = torch.empty_like(pred)
    if mode == "fwdbwd":
        return lambda: torch.mul(pred, 2, out=out)
    return lambda: pred.sum()


def _peers(signature: Signature, finish: Callable[..., Tensor], device: str) -> dict[str, Provider]:
    peers = {"kornia": Provider(partial(_kornia, signature, finish), tolerance=1e-3)}
    for name in ("GaussianBlur", "stackBlur") if device == "cpu" else ():
        peers[f"cv2.{name} alone"] = Provider(partial(_cv2, name), partial=True)
    return peers


def _cases(suffix: str, device: str, **headline: Any) -> tuple[OpBench, ...]:
    backend = "native" if device == "cpu" else "triton"
    sweep = (headline, headline | {"B": 1, "K": 1}, headline | {"B": 64, "K": 2, "size": 32})
    return (
        OpBench(
            name=f"gaussian_blur{suffix}",
            device=device,
            title="blurred uint8 images, a sigma per image and step, normalised",
            inputs=_inputs(device),
            providers={
                "eager": Provider(_VIEWS.eager(views)),
                "compile": Provider(_VIEWS.compiled(views)),
                **_peers(_VIEWS, lambda out, *given: _normalised(out).to(given[2]), device),
                "ours": Provider(_VIEWS.ours(_our_views, backend)),
            },
            answer=_answer_views,
            bytes_moved=_bytes_views,
            formula="views written + uint8 source read once per image",
            flops=_flops,
            floor=_floor_views,
            sweep=sweep,
        ),
        OpBench(
            name=f"blur_recon{suffix}",
            device=device,
            title="the loss against blurred images, of patch tokens, normalised, mse",
            inputs=_inputs(device),
            providers={
                "eager": Provider(_PRED.eager(blur_chain)),
                "compile": Provider(_PRED.compiled(blur_chain)),
                **_peers(
                    _PRED,
                    lambda out, *given: F.mse_loss(
                        given[0].float(), patchify(_normalised(out), PATCH)
                    ),
                    device,
                ),
                "ours": Provider(_PRED.ours(_our_loss, backend)),
            },
            answer=_answer_loss,
            bytes_moved=_bytes_loss,
            formula="pred read + (fwdbwd) gradient written + uint8 source read once per image",
            flops=_flops,
            floor=_floor_loss,
            sweep=sweep,
        ),
    )


CASES = (
    *_cases("_cpu", "cpu", B=16, K=4, size=224, dtype="float32"),
    *_cases("", "cuda", B=256, K=4, size=224, dtype="bfloat16"),
)
