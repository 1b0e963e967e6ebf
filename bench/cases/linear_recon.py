"""A last linear layer with a path loss, and all gradients: of warped and of blurred images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.cases import blur, warp_recon
from bench.cases.geometry import DTYPES, MEAN, STD, images, itemsize, theta
from bench.opbench import Inputs, OpBench, Provider
from bench.providers import Signature
from fastequi.functional import (
    blur_recon_loss,
    linear_blur_recon_loss,
    linear_warp_recon_loss,
    warp_recon_loss,
)

PATCH, VALUES = warp_recon.PATCH, warp_recon.PATCH**2 * 3


class Path(NamedTuple):
    """What the targets are.

    Attributes:
        title: of the loss.
        draw: (B, K, device) → θ [B, K, 2, 3] or σ [B, K].
        chain: (pred, image, path, size) → the loss as a user writes it, in the path's precision.
        loss, fused: ours, of predictions and of a layer.
    """

    title: str
    draw: Callable[[int, int, str], Tensor]
    chain: Callable[..., Tensor]
    loss: Callable[..., Tensor]
    fused: Callable[..., Tensor]


WARP = Path(
    "the path loss",
    lambda batch, steps, device: theta("mixed", batch, steps, device),
    warp_recon.chain,
    warp_recon_loss,
    linear_warp_recon_loss,
)
BLUR = Path(
    "the loss against blurred images",
    blur.sigmas,
    blur.blur_chain,
    blur_recon_loss,
    linear_blur_recon_loss,
)


def _inputs(path: Path, device: str) -> Callable[..., Inputs]:
    def make(B: int, K: int, D: int, size: int, dtype: str) -> Inputs:
        generator = torch.Generator().manual_seed(1)
        shapes = (B, K, (size // PATCH) ** 2, D), (K, VALUES, D), (K, VALUES)
        scales = 1.0, D**-0.5, 1.0
        leaves = [
            (scale * torch.randn(shape, generator=generator)).to(device, DTYPES[dtype])
            for shape, scale in zip(shapes, scales, strict=True)
        ]
        return {
            "leaves": [leaf.requires_grad_() for leaf in leaves],
            "image": images(B, size, device),
            "path": path.draw(B, K, device),
            "size": size,
        }

    return make


_LAYER = Signature(
    arguments=lambda inputs: (*inputs["leaves"], inputs["image"], inputs["path"], inputs["size"]),
    leaves=lambda inputs: dict(zip(("hidden", "weight", "bias"), inputs["leaves"], strict=True)),
)


def _after_layer(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The linear layers as they are, then a loss of (pred, image, path, size)."""

    def both(hidden: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        return loss(torch.einsum("bkld,kpd->bklp", hidden, weight) + bias[:, None], *rest)

    return both


def _two(path: Path) -> Callable[..., Tensor]:
    def loss(pred: Tensor, image: Tensor, steps: Tensor, size: int) -> Tensor:
        return path.loss(pred, image, steps, layout="patch", patch_size=PATCH, mean=MEAN, std=STD)

    return _after_layer(loss)


def _one(path: Path) -> Callable[..., Tensor]:
    def loss(
        hidden: Tensor, weight: Tensor, bias: Tensor, image: Tensor, steps: Tensor, size: int
    ) -> Tensor:
        return path.fused(hidden, weight, bias, image, steps, patch_size=PATCH, mean=MEAN, std=STD)

    return loss


def _answer(path: Path) -> Callable[[Inputs, str], dict[str, Tensor]]:
    """In float64, an image at a time."""
    chain = _after_layer(path.chain)

    def answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
        hidden, weight, bias = (t.detach().double() for t in inputs["leaves"])
        loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
        by = [torch.zeros_like(t) for t in (hidden, weight, bias)]
        for b in range(len(hidden)):
            leaves = [t.requires_grad_() for t in (hidden[b : b + 1], weight, bias)]
            image, steps = inputs["image"][b : b + 1], inputs["path"][b : b + 1].double()
            part = chain(leaves[0], weight, bias, image, steps, inputs["size"]) / len(hidden)
            grads = torch.autograd.grad(part, leaves)
            loss += part.detach()
            by[0][b : b + 1] = grads[0]
            by[1] += grads[1]
            by[2] += grads[2]
        return {"loss": loss, "hidden": by[0], "weight": by[1], "bias": by[2]}

    return answer


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    tokens = params["B"] * params["K"] * (params["size"] // PATCH) ** 2
    weights = params["K"] * VALUES * params["D"]
    passes = 3 if mode == "fwdbwd" else 1
    moved = tokens * params["D"] * passes + weights * (2 if mode == "fwdbwd" else 1)
    return moved * itemsize(params) + params["B"] * 3 * params["size"] ** 2


def _flops(params: Mapping[str, Any], mode: str) -> float:
    """Of the matrix products."""
    tokens = params["B"] * params["K"] * (params["size"] // PATCH) ** 2
    return 2 * tokens * params["D"] * VALUES * (3 if mode == "fwdbwd" else 1)


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """The bare matrix products, one per step, into memory that stays."""
    hidden, weight = (t.detach() for t in inputs["leaves"][:2])
    rows = hidden.transpose(0, 1).flatten(1, 2).contiguous()
    pred = torch.bmm(rows, weight.mT)
    by_hidden, by_weight = torch.empty_like(rows), torch.empty_like(weight)

    def call() -> None:
        torch.bmm(rows, weight.mT, out=pred)
        if mode == "fwdbwd":
            torch.bmm(pred, weight, out=by_hidden)
            torch.bmm(pred.mT, rows, out=by_weight)

    return call


def _case(name: str, path: Path, device: str, **headline: Any) -> OpBench:
    return OpBench(
        name=name,
        device=device,
        title=f"K last linear layers and {path.title}; the floor is the bare matrix products",
        inputs=_inputs(path, device),
        providers={
            "eager": Provider(_LAYER.eager(_after_layer(path.chain)), tolerance=1e-2),
            "linear, compiled loss": Provider(
                _LAYER.compiled(path.chain, _after_layer), tolerance=1e-2
            ),
            "linear, our loss": Provider(_LAYER.eager(_two(path)), tolerance=1e-2),
            "ours": Provider(_LAYER.eager(_one(path)), tolerance=1e-2),
        },
        answer=_answer(path),
        bytes_moved=_bytes,
        formula="hidden read twice, its gradient written, weight and its gradient; uint8 source",
        flops=_flops,
        floor=_floor,
        sweep=(headline,),
    )


ON_A_CPU = {"B": 16, "K": 2, "D": 256, "size": 224, "dtype": "bfloat16"}
ON_A_GPU = {"B": 256, "K": 4, "D": 512, "size": 224, "dtype": "bfloat16"}
CASES = (
    _case("linear_warp_recon_cpu", WARP, "cpu", **ON_A_CPU),
    _case("linear_warp_recon", WARP, "cuda", **ON_A_GPU),
    _case("linear_blur_recon_cpu", BLUR, "cpu", **ON_A_CPU),
    _case("linear_blur_recon", BLUR, "cuda", **ON_A_GPU),
)
