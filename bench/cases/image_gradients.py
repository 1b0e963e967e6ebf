"""Images with a gradient, as maps of features have: warped, blurred, and compared after a warp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.blur import RADIUS, blurred, sigmas
from bench.cases.geometry import theta
from bench.cases.warp import warped
from bench.opbench import Inputs, OpBench, Provider
from bench.providers import Signature, differentiable
from fastequi.functional import gaussian_blur, warp, warp_recon_loss


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(B: int, K: int, C: int, size: int) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        image, *others = (
            torch.randn(shape, generator=generator).to(device)
            for shape in ((B, C, size, size), (B, K, C, size, size), (B, K, C, size, size))
        )
        pred, slope = others
        return {
            "image": image.requires_grad_(),
            "pred": pred.requires_grad_(),
            "slope": slope,
            "theta": theta("mixed", B, K, device),
            "sigma": sigmas(B, K, device),
        }

    return make


def compared(pred: Tensor, image: Tensor, matrices: Tensor) -> Tensor:
    """What a user writes today."""
    return F.mse_loss(pred, warped(image, matrices))


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    """Images read and their gradients written; views written and their gradients read."""
    each = 4 * params["B"] * params["C"] * params["size"] ** 2 * (2 if mode == "fwdbwd" else 1)
    return each * (1 + params["K"])


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    image, slope, both = inputs["image"].detach(), inputs["slope"], mode == "fwdbwd"
    views, back = torch.empty_like(slope), torch.empty_like(image)
    return lambda: (
        *(image.sum(), views.fill_(1)),
        *((slope.sum(), back.fill_(1)) if both else ()),
    )


class _Op(NamedTuple):
    """What is measured: name, title, the chain it equals, ours, and names of their arguments; how
    many operations a value of a view takes forward, and about as many backward."""

    name: str
    title: str
    chain: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    arguments: tuple[str, ...]
    flops: int


_OPS = (
    _Op("warp_of_maps", "maps warped, and their gradient", warped, warp, ("image", "theta"), 8),
    _Op(
        "warp_recon_of_maps",
        "maps compared after a warp, with both gradients",
        compared,
        warp_recon_loss,
        ("pred", "image", "theta"),
        11,
    ),
    _Op(
        "blur_of_maps",
        "maps blurred, and their gradient",
        blurred,
        gaussian_blur,
        ("image", "sigma"),
        6 * RADIUS + 2,
    ),
)


def _case(op: _Op, device: str, *sweep: Mapping[str, Any]) -> OpBench:
    compares = "pred" in op.arguments
    signature = Signature(
        arguments=lambda inputs: [inputs[name] for name in op.arguments],
        leaves=lambda inputs: (
            {f"d{name}": x for name, x in differentiable(inputs).items()}
            if compares
            else {"dimage": inputs["image"]}
        ),
        result="loss" if compares else "views",
        upstream=None if compares else lambda inputs: inputs["slope"],
    )

    def flops(params: Mapping[str, Any], mode: str) -> float:
        views = params["B"] * params["K"] * params["C"] * params["size"] ** 2
        return float(op.flops * views * (2 if mode == "fwdbwd" else 1))

    on_cpu = device == "cpu"
    return OpBench(
        name=f"{op.name}_cpu" if on_cpu else op.name,
        device=device,
        title=op.title,
        inputs=_inputs(device),
        providers={
            "eager": Provider(signature.eager(op.chain)),
            "compile": Provider(signature.compiled(op.chain)),
            "ours": Provider(signature.ours(op.ours, "native" if on_cpu else "triton")),
        },
        answer=signature.exact(op.chain),
        bytes_moved=_bytes,
        formula="images read, views written; their gradients read, the images' written",
        flops=flops,
        floor=_floor,
        sweep=sweep,
    )


_SWEEP = (
    {"B": 64, "K": 1, "C": 384, "size": 14},  # ViT-S/16 at 224 px
    {"B": 8, "K": 1, "C": 3, "size": 224},
    {"B": 8, "K": 3, "C": 3, "size": 224},
    {"B": 64, "K": 1, "C": 3, "size": 32},
    {"B": 1, "K": 1, "C": 3, "size": 224},
)

CASES = (
    *(_case(op, "cpu", *_SWEEP) for op in _OPS),
    *(_case(op, "cuda", {"B": 256, "K": 1, "C": 384, "size": 14}) for op in _OPS),
)
