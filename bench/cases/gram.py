"""Gram anchoring: the cosines of an image's patches against a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.geometry import DTYPES, itemsize
from bench.opbench import Inputs, OpBench, Provider
from bench.providers import Signature
from fastequi.functional import gram_loss


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(B: int, N: int, D: int, dtype: str) -> Inputs:
        """A student that has moved by a fifth from its anchor."""
        generator = torch.Generator().manual_seed(0)
        teacher = torch.randn(B, N, D, generator=generator)
        student = teacher + 0.2 * torch.randn(B, N, D, generator=generator)
        both = {"student": student, "teacher": teacher}
        both = {name: x.to(device, DTYPES[dtype]) for name, x in both.items()}
        both["student"].requires_grad_()
        return both

    return make


def gram(student: Tensor, teacher: Tensor) -> Tensor:
    """mse of the cosines, every one stored, in float32 as DINOv3 computes it."""
    wide = torch.promote_types(student.dtype, torch.float32)
    x, y = (F.normalize(z.to(wide), dim=-1) for z in (student, teacher))
    return F.mse_loss(x @ x.mT, y @ y.mT)


_FEATURES = Signature(
    arguments=lambda inputs: (inputs["student"], inputs["teacher"]),
    leaves=lambda inputs: {"student": inputs["student"]},
)


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    features = params["B"] * params["N"] * params["D"] * itemsize(params)
    return features * (3 if mode == "fwdbwd" else 2)


def _flops(params: Mapping[str, Any], mode: str) -> float:
    """Similarities of two networks, the same both ways; the gradient's product with the rows."""
    products = 1 + 2 * (mode == "fwdbwd") / 2
    return 2.0 * params["B"] * params["N"] ** 2 * params["D"] * products


def _case(name: str, device: str, sweep: tuple[Mapping[str, Any], ...]) -> OpBench:
    backend = "triton" if device == "cuda" else "native"
    return OpBench(
        name=name,
        device=device,
        title="Gram anchoring",
        inputs=_inputs(device),
        providers={
            "eager": Provider(_FEATURES.eager(gram)),
            "compile": Provider(_FEATURES.compiled(gram)),
            "ours": Provider(_FEATURES.ours(gram_loss, backend), tolerance=5e-3),
        },
        answer=_FEATURES.exact(gram),
        bytes_moved=_bytes,
        formula="both features read + (fwdbwd) the student's gradient written; it is bound by "
        "arithmetic",
        flops=_flops,
        sweep=sweep,
    )


def _sizes(dtype: str, *sizes: tuple[int, int, int]) -> tuple[dict[str, Any], ...]:
    return tuple({"B": b, "N": n, "D": d, "dtype": dtype} for b, n, d in sizes)


CASES = (
    _case("gram_cpu", "cpu", _sizes("float32", (64, 196, 384), (8, 1024, 768), (4, 16, 64))),
    _case("gram", "cuda", _sizes("bfloat16", (64, 196, 384), (64, 256, 1024), (64, 1024, 1024))),
)
