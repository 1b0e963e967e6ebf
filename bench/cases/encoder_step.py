"""A training step of the encoder alone, beside timm's ViT of the same weights.

Forward of all tokens, backward and AdamW (fused) on images that lie in memory, under autocast to
bfloat16 on a GPU. The loss is the mean square of the tokens' difference from fixed numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.opbench import Call, Inputs, Make, OpBench, Provider, Unavailable
from fastequi.models.vit import VisionTransformer, create

_WIDTHS = {"vit_small": 384, "vit_base": 768}
_PATCH, _DEPTH, _RATIO = 16, 12, 4


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(model: str, B: int, size: int) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        tokens = (size // _PATCH) ** 2 + 1
        return {
            "model": model,
            "size": size,
            "images": torch.randn(B, 3, size, size, generator=generator).to(device),
            "target": torch.randn(B, tokens, _WIDTHS[model], generator=generator).to(device),
        }

    return make


def _ours(inputs: Inputs) -> VisionTransformer:
    torch.manual_seed(0)
    return create(inputs["model"], img_size=inputs["size"]).to(inputs["images"].device)


def _timm(inputs: Inputs) -> nn.Module:
    """timm's network with our weights."""
    try:
        import timm
    except Exception as error:
        raise Unavailable(f"timm: {error}") from None
    name = f"{inputs['model']}_patch16_224"
    model = timm.create_model(name, num_classes=0, img_size=inputs["size"], global_pool="")
    model.load_state_dict(_ours(inputs).state_dict())
    return model.to(inputs["images"].device)


def _loss(model: nn.Module, inputs: Inputs) -> Tensor:
    return F.mse_loss(model(inputs["images"]).float(), inputs["target"])


def _provider(make_model: Callable[[Inputs], nn.Module], device: str, compiled: bool) -> Make:
    def make(inputs: Inputs, mode: str) -> Call:
        model = make_model(inputs).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
        if compiled:  # a rate of 0: every call computes the loss that is checked
            torch._dynamo.reset()
            model.compile()

        def forward() -> Tensor:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                return _loss(model, inputs)

        def step() -> dict[str, Tensor]:
            if mode == "fwd":
                with torch.no_grad():
                    return {"loss": forward()}
            loss = forward()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return {"loss": loss.detach()}

        return step

    return make


def _answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
    """In float32, by our network."""
    model = _ours(inputs)
    with torch.no_grad():
        parts = zip(inputs["images"].split(8), inputs["target"].split(8), strict=True)
        losses = [_loss(model, {"images": x, "target": y}) * len(x) for x, y in parts]
    return {"loss": torch.stack(losses).double().sum() / len(inputs["images"])}


def _flops(params: Mapping[str, Any], mode: str) -> float:
    """Of the matrix products, attention's too; a backward takes twice the forward."""
    width, tokens = _WIDTHS[params["model"]], (params["size"] // _PATCH) ** 2 + 1
    block = tokens * width**2 * (4 + 2 * _RATIO) + 2 * tokens**2 * width
    embedding = (tokens - 1) * 3 * _PATCH**2 * width
    return 2.0 * params["B"] * (_DEPTH * block + embedding) * (3 if mode == "fwdbwd" else 1)


def _verdict(params: Mapping[str, Any], medians: Mapping[str, float]) -> str:
    rates = ", ".join(
        f"{name} {1e3 * params['B'] / medians[name]:,.0f}"
        for name in ("timm", "timm, compiled", "ours", "ours, compiled")
        if name in medians
    )
    return f"{params['model']}, images a second: {rates}"


def _case(name: str, device: str, *sweep: Mapping[str, Any]) -> OpBench:
    return OpBench(
        name=name,
        device=device,
        title="a step of the encoder alone",
        inputs=_inputs(device),
        providers={
            "timm": Provider(_provider(_timm, device, False), tolerance=1e-2),
            "timm, compiled": Provider(_provider(_timm, device, True), tolerance=1e-2),
            "ours": Provider(_provider(_ours, device, False), tolerance=1e-2),
            "ours, compiled": Provider(_provider(_ours, device, True), tolerance=1e-2),
        },
        answer=_answer,
        bytes_moved=lambda params, mode: 0,
        formula="not counted",
        flops=_flops,
        sweep=sweep,
        verdict=_verdict,
    )


CASES = (
    _case("encoder_step_cpu", "cpu", {"model": "vit_small", "B": 2, "size": 224}),
    _case(
        "encoder_step",
        "cuda",
        {"model": "vit_small", "B": 256, "size": 224},
        {"model": "vit_base", "B": 128, "size": 224},
    ),
)
