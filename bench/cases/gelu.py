"""gelu: of a transformer's MLP, on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from bench.opbench import Inputs, OpBench, Provider
from bench.providers import Signature
from fastequi.kernels.gelu import gelu


def _inputs(rows: int, width: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(rows, width, generator=generator) for _ in range(2))
    return {"x": x.requires_grad_(), "grad": grad}


_X = Signature(
    arguments=lambda inputs: [inputs["x"]],
    leaves=lambda inputs: {"dx": inputs["x"]},
    result="out",
    upstream=lambda inputs: inputs["grad"],
)


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    return 4 * params["rows"] * params["width"] * (5 if mode == "fwdbwd" else 2)


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """The same values read and written."""
    x, out = inputs["x"].detach(), torch.empty_like(inputs["x"])
    if mode != "fwdbwd":
        return lambda: torch.neg(x, out=out)
    return lambda: (torch.neg(x, out=out), torch.add(x, inputs["grad"], out=out))


CASES = (
    OpBench(
        name="gelu_cpu",
        device="cpu",
        title="x Φ(x)",
        inputs=_inputs,
        providers={
            "eager": Provider(_X.eager(F.gelu)),
            "compile": Provider(_X.compiled(F.gelu)),
            "ours": Provider(_X.ours(gelu, "native")),
        },
        answer=_X.exact(F.gelu),
        bytes_moved=_bytes,
        formula="x read, the value written; backward: x and its gradient read, one written",
        flops=lambda params, mode: 20.0 * params["rows"] * params["width"],
        floor=_floor,
        sweep=(
            {"rows": 2048, "width": 256},  # the demo's
            {"rows": 3152, "width": 1536},  # 16 images of ViT-S/16
            {"rows": 16, "width": 256},
        ),
    ),
)
