"""dino_loss: multi-crop cross-entropy over the prototypes, and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.geometry import DTYPES, itemsize
from bench.opbench import Call, Inputs, Make, OpBench, Provider, Unavailable
from fastequi.functional import dino_loss
from fastequi.kernels import backend

TEMPS = 0.1, 0.05


def _inputs(device: str) -> Callable[..., Inputs]:
    def make(S: int, T: int, B: int, N: int, dtype: str) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(v, B, N, generator=generator) for v in (S, T))
        return {
            "student": student.to(device, DTYPES[dtype]).requires_grad_(),
            "teacher": (0.3 * teacher).to(device, DTYPES[dtype]),
            "center": (0.1 * torch.randn(N, generator=generator)).to(device),
        }

    return make


def official(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    """The authors' form, in the precision of `center`: every pair of different views."""
    student, teacher = student.to(center.dtype), teacher.to(center.dtype)
    total, terms = torch.zeros((), device=student.device, dtype=center.dtype), 0
    for t in range(len(teacher)):
        q = F.softmax((teacher[t] - center) / TEMPS[1], -1)
        for s in range(len(student)):
            if s != t:
                logp = F.log_softmax(student[s] / TEMPS[0], -1)
                total = total - (q * logp).sum(-1).mean()
                terms += 1
    return total / terms


def _of(loss: Callable[..., Tensor]) -> Make:
    """A provider from a loss of (student, teacher, center)."""

    def make(inputs: Inputs, mode: str) -> Call:
        given = [inputs[name] for name in ("student", "teacher", "center")]

        def forward() -> dict[str, Tensor]:
            with torch.no_grad():
                return {"loss": loss(*given)}

        def both() -> dict[str, Tensor]:
            value = loss(*given)
            (grad,) = torch.autograd.grad(value, given[0])
            return {"loss": value, "grad": grad}

        return both if mode == "fwdbwd" else forward

    return make


def _compiled(inputs: Inputs, mode: str) -> Call:
    tuning = "max-autotune-no-cudagraphs" if inputs["student"].is_cuda else None
    torch._dynamo.reset()
    return _of(torch.compile(official, dynamic=False, mode=tuning))(inputs, mode)


def _ours(name: str) -> Make:
    def make(inputs: Inputs, mode: str) -> Call:
        def loss(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
            with backend.force(name):
                return dino_loss(
                    student, teacher, student_temp=TEMPS[0], teacher_temp=TEMPS[1], center=center
                )

        try:
            with backend.force(name):
                pass
        except RuntimeError as reason:
            raise Unavailable(str(reason)) from None
        return _of(loss)(inputs, mode)

    return make


def _answer(inputs: Inputs, mode: str) -> dict[str, Tensor]:
    """In float64, an image at a time."""
    student, teacher, center = (inputs[name].detach() for name in ("student", "teacher", "center"))
    losses, grads = [], []
    for b in range(student.shape[1]):
        leaf = student[:, b : b + 1].double().requires_grad_()
        loss = official(leaf, teacher[:, b : b + 1].double(), center.double())
        losses.append(loss.detach())
        if mode == "fwdbwd":
            (grad,) = torch.autograd.grad(loss, leaf)
            grads.append((grad / student.shape[1]).to(student.dtype))
    answer = {"loss": torch.stack(losses).mean()}
    return {**answer, "grad": torch.cat(grads, 1).double()} if grads else answer


def _bytes(params: Mapping[str, Any], mode: str) -> int:
    row = params["B"] * params["N"] * itemsize(params)
    return row * (params["S"] * (2 if mode == "fwdbwd" else 1) + params["T"])


def _flops(params: Mapping[str, Any], mode: str) -> float:
    """A value: scaled, exponential, summed; and its product with the teachers' sum."""
    values = params["B"] * params["N"] * (params["S"] + params["T"])
    return values * (8 if mode == "fwdbwd" else 5)


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """Student and teacher read and, for the gradient, as much as the student written."""
    student, teacher = inputs["student"].detach(), inputs["teacher"]
    out = torch.empty_like(student)
    if mode == "fwdbwd":
        return lambda: (torch.mul(student, 2, out=out), teacher.sum())
    return lambda: (student.sum(), teacher.sum())


def _case(name: str, device: str, ours: str, **headline: Any) -> OpBench:
    return OpBench(
        name=name,
        device=device,
        title="DINO's loss, multi-crop, centred teacher",
        inputs=_inputs(device),
        providers={
            "eager": Provider(_of(official), tolerance=5e-3),
            "compile": Provider(_compiled, tolerance=5e-3),
            "ours": Provider(_ours(ours), tolerance=5e-3),
        },
        answer=_answer,
        bytes_moved=_bytes,
        formula="student and teacher read once + (fwdbwd) gradient written",
        flops=_flops,
        floor=_floor,
        sweep=(headline, {**headline, "S": headline["T"]}, {**headline, "dtype": "float32"}),
    )


CASES = (
    _case("dino_cpu", "cpu", "torch", S=4, T=2, B=8, N=8192, dtype="bfloat16"),
    _case("dino", "cuda", "triton", S=10, T=2, B=64, N=65536, dtype="bfloat16"),
)
