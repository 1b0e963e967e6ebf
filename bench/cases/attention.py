"""attention: the wrapper against every backend it could have taken, at the encoders' lengths; and
of few tokens on a CPU, from the rows of a qkv projection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.geometry import DTYPES, itemsize
from bench.opbench import Call, Inputs, Make, OpBench, Provider, Unavailable
from bench.providers import Signature
from fastequi.models.attention import attention, self_attention

LENGTHS = (197, 37, 201, 257, 261)


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(B: int, N: int, H: int, D: int, dtype: str) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        leaves = [torch.randn(B, N, H, D, generator=generator) for _ in range(4)]
        *qkv, grad = (leaf.to(device, DTYPES[dtype]) for leaf in leaves)
        return {"qkv": [leaf.requires_grad_() for leaf in qkv], "grad": grad}

    return make


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2)


_QKV = Signature(
    arguments=lambda inputs: inputs["qkv"],
    leaves=lambda inputs: dict(zip(("dq", "dk", "dv"), inputs["qkv"], strict=True)),
    result="out",
    upstream=lambda inputs: inputs["grad"],
)


def _named(name: str) -> Make:
    def make(inputs: Inputs, mode: str) -> Call:
        call = _QKV.eager(lambda q, k, v: attention(q, k, v, backend=name))(inputs, mode)
        try:
            call()
        except RuntimeError as reason:
            raise Unavailable(str(reason)) from None
        return call

    return make


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    one = params["B"] * params["N"] * params["H"] * params["D"] * itemsize(params)
    return one * (12 if mode == "fwdbwd" else 4)  # q k v out; then those, out's and three gradients


def _flops(params: Mapping[str, Any], mode: str) -> float:
    """Two matrix products forward, five backward (the scores are made again)."""
    product = 2 * params["B"] * params["H"] * params["N"] ** 2 * params["D"]
    return product * (7 if mode == "fwdbwd" else 2)


def _case(name: str, device: str, batch: int, dtype: str) -> OpBench:
    return OpBench(
        name=name,
        device=device,
        title="softmax(q kT / sqrt D) v, head dim 64",
        inputs=_inputs(device),
        providers={
            "plain": Provider(_QKV.eager(_plain), tolerance=2e-2),
            "SDPA": Provider(_QKV.eager(_sdpa), tolerance=2e-2),
            "FlashAttention-3": Provider(_named("flash3"), tolerance=2e-2),
            "xformers": Provider(_named("xformers"), tolerance=2e-2),
            "ours (auto)": Provider(_named("auto"), tolerance=2e-2),
        },
        answer=_QKV.exact(_plain),
        bytes_moved=_bytes,
        formula="q, k, v read, out written; backward: those and out's gradient read, three written",
        flops=_flops,
        sweep=tuple({"B": batch, "N": n, "H": 6, "D": 64, "dtype": dtype} for n in LENGTHS),
    )


def _packed(B: int, N: int, H: int, D: int, dtype: str) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(B, N, 3, H, D, generator=generator, dtype=DTYPES[dtype])
    grad = torch.randn(B, N, H, D, generator=generator, dtype=DTYPES[dtype])
    return {"qkv": qkv.requires_grad_(), "grad": grad}


_ROWS = Signature(
    arguments=lambda inputs: [inputs["qkv"]],
    leaves=lambda inputs: {"dqkv": inputs["qkv"]},
    result="out",
    upstream=lambda inputs: inputs["grad"],
)


def _of_rows(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda qkv: attend(*qkv.unbind(2))


SHORT = OpBench(
    name="short_attention_cpu",
    device="cpu",
    title="softmax(q kT / sqrt D) v of few tokens, from the rows of a qkv projection",
    inputs=_packed,
    providers={
        "eager": Provider(_ROWS.eager(_of_rows(_plain))),
        "SDPA": Provider(_ROWS.eager(_of_rows(_sdpa))),
        "compile": Provider(_ROWS.compiled(_of_rows(_plain))),
        "ours": Provider(_ROWS.ours(self_attention, "native")),
    },
    answer=_ROWS.exact(_of_rows(_plain)),
    bytes_moved=_bytes,
    formula="q, k, v read, out written; backward: those and out's gradient read, three written",
    flops=_flops,
    sweep=(
        {"B": 128, "N": 16, "H": 2, "D": 64, "dtype": "float32"},  # the demo's
        {"B": 64, "N": 37, "H": 6, "D": 64, "dtype": "float32"},  # a 96 px crop of ViT-S/16
        {"B": 64, "N": 64, "H": 3, "D": 32, "dtype": "float32"},
        {"B": 24, "N": 100, "H": 6, "D": 64, "dtype": "float32"},
        {"B": 1, "N": 16, "H": 2, "D": 64, "dtype": "float32"},
    ),
)

CASES = (
    _case("attention_cpu", "cpu", 4, "bfloat16"),
    SHORT,
    _case("attention", "cuda", 256, "bfloat16"),
)
