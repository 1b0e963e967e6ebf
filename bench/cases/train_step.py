"""The demo's training step beside its matrix products, and beside plain PyTorch.

Forward, backward, clipping and the optimiser's update on a batch that lies in memory. The floor is
the step's matrix products alone, of the same sizes on operands that lie in memory: what the
arithmetic takes here, in this run. "plain PyTorch" is the same step with our kernels' PyTorch paths
in their place, "compile" that step under torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from bench.opbench import Call, Inputs, Make, OpBench, Provider
from fastequi.build import build, build_optimizer
from fastequi.cli.dryrun import synthetic
from fastequi.config import Config
from fastequi.data.views.batch import Batch
from fastequi.kernels.backend import force
from fastequi.methods.method import Method
from fastequi.methods.tir import TIR
from fastequi.recipes import RECIPES

_CPU = torch.device("cpu")
_PRODUCTS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
Product = tuple[Tensor, Tensor]


def _inputs(recipe: str, B: int) -> Inputs:
    config = RECIPES[recipe]()
    data = replace(config.data, batch_size=B, samples_per_decode=1)  # nothing is decoded here
    return {"config": replace(config, data=data)}


def _prepared(config: Config) -> tuple[Method, Batch]:
    torch.manual_seed(0)
    return build(config).train(), synthetic(config, config.data.batch_size, _CPU)


def _provider(backend: str | None, compiled: bool = False) -> Make:
    def chosen() -> AbstractContextManager[None]:
        return nullcontext() if backend is None else force(backend)

    def make(inputs: Inputs, mode: str) -> Call:
        config = inputs["config"]
        method, batch = _prepared(config)
        optimizer = build_optimizer(method, config)
        for group in optimizer.param_groups:  # so that every call computes the loss that is checked
            group["lr"] = 0.0
        params = [p for p in method.parameters() if p.requires_grad]
        if compiled:
            method.compile()

        def step() -> dict[str, Tensor]:
            with chosen():
                loss = method(batch)["loss"]
                if mode == "fwdbwd":
                    loss.backward()
                    nn.utils.clip_grad_norm_(params, config.optim.clip)
                    optimizer.step()
                    optimizer.zero_grad()
            return {"loss": loss.detach()}

        return step

    return make


class _Products(TorchDispatchMode):
    """Keeps the operands of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in _PRODUCTS:
            first = _PRODUCTS[name]
            a, b = args[first : first + 2]
            self.found.append((a.clone(), b.clone()))  # of the same strides
        return func(*args, **(kwargs or {}))


class _LastLayer(nn.Module):
    """In the place of the loss that computes a decoder's last layer: the layer, for the eye."""

    def forward(self, hidden: Tensor, weight: Tensor, *others: Any, **options: Any) -> Tensor:
        return torch.einsum("bkld,kpd->bklp", hidden, weight).square().mean()


def _products(config: Config, mode: str) -> list[Product]:
    """Those of a forward, of its backward and of Muon's update, of attention too; convolutions are
    not counted.
    """
    method, batch = _prepared(config)
    optimizer = build_optimizer(method, config)
    if isinstance(method, TIR):
        method.linear_warp_loss = method.linear_blur_loss = _LastLayer()  # type: ignore[assignment]
    with _Products() as products, sdpa_kernel(SDPBackend.MATH):
        loss = method(batch)["loss"]
        if mode == "fwdbwd":
            loss.backward()
            optimizer.step()
    return products.found


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    products = _products(inputs["config"], mode)

    def run() -> None:
        for a, b in products:
            torch.matmul(a, b)

    return run


def _answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
    method, batch = _prepared(inputs["config"])
    with torch.no_grad(), force("torch"):
        return {"loss": method(batch)["loss"].double()}


def _flops(params: Mapping[str, Any], mode: str) -> float:
    products = _products(_inputs(**params)["config"], mode)
    return float(sum(2 * a.numel() * b.shape[-1] for a, b in products))


def _verdict(params: Mapping[str, Any], medians: Mapping[str, float]) -> str:
    share = 100 * medians["floor"] / medians["ours"]
    return f"the matrix products alone take {share:.0f} % of our step's time"


CASES = (
    OpBench(
        name="train_step_cpu",
        device="cpu",
        title="a training step, and its matrix products alone",
        inputs=_inputs,
        providers={
            "plain PyTorch": Provider(_provider("torch")),
            "compile": Provider(_provider("torch", compiled=True)),
            "ours": Provider(_provider(None)),
        },
        answer=_answer,
        bytes_moved=lambda params, mode: 0,
        formula="not counted",
        flops=_flops,
        floor=_floor,
        sweep=({"recipe": "demo", "B": 64}, {"recipe": "tir_vicreg_vits16", "B": 8}),
        verdict=_verdict,
    ),
)
