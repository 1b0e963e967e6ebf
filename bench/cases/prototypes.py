"""Losses over prototypes: DINO's with either teacher, iBOT's, and with the prototype layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.geometry import DTYPES, itemsize
from bench.opbench import Inputs, OpBench, Provider, Unavailable
from bench.providers import Signature, differentiable, lightly, products
from fastequi.functional import dino_loss, ibot_loss

TEMPS = 0.1, 0.05
_TEMPERATURES: dict[str, Any] = {"student_temp": TEMPS[0], "teacher_temp": TEMPS[1]}
_WIDTH = 256  # of the layer before the prototypes, in all three papers
_MASKED = 0.3  # share of iBOT's tokens that count


def _logits(device: str) -> Callable[..., Inputs]:
    def make(S: int, T: int, B: int, N: int, dtype: str) -> Inputs:
        generator = torch.Generator(device).manual_seed(0)
        drawn: dict[str, Any] = {"generator": generator, "device": device}
        student, teacher = (torch.randn(v, B, N, **drawn) for v in (S, T))
        return {
            "student": student.to(DTYPES[dtype]).requires_grad_(),
            "teacher": (0.3 * teacher).to(DTYPES[dtype]),
            "center": 0.1 * torch.randn(N, **drawn),
        }

    return make


def _tokens(device: str) -> Callable[..., Inputs]:
    """Rows are all patch tokens, of which some count: nothing is gathered."""

    def make(R: int, N: int, dtype: str) -> Inputs:
        inputs = dict(_logits(device)(1, 1, R, N, dtype))
        for name in ("student", "teacher"):
            inputs[name] = inputs[name].detach()[0]
        inputs["student"].requires_grad_()
        mask = torch.rand(R, generator=torch.Generator().manual_seed(1)) < _MASKED
        return {**inputs, "weight": (mask / mask.sum()).to(device)}

    return make


def _rows(device: str) -> Callable[..., Inputs]:
    """What enters the prototype layer, and its weights."""

    def make(S: int, T: int, B: int, N: int, dtype: str) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        shapes = {"student": (S, B), "layer": (N,), "teacher": (T, B), "teacher_layer": (N,)}
        inputs = {}
        for name, lead in shapes.items():
            rows = F.normalize(torch.randn(*lead, _WIDTH, generator=generator), dim=-1)
            inputs[name] = rows.to(device, DTYPES[dtype])
            inputs[name].requires_grad_(name in ("student", "layer"))
        return {**inputs, "center": (0.1 * torch.randn(N, generator=generator)).to(device)}

    return make


def pairs(student: Tensor, q: Tensor) -> Tensor:
    """The authors' loop over every pair of different views, for the teacher's distributions q."""
    total, terms = torch.zeros((), device=student.device, dtype=q.dtype), 0
    for t in range(len(q)):
        for s in range(len(student)):
            if s != t:
                logp = F.log_softmax(student[s] / TEMPS[0], -1)
                total = total - (q[t] * logp).sum(-1).mean()
                terms += 1
    return total / terms


def dino(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    """DINO's loss, multi-crop, centred teacher."""
    q = F.softmax((teacher.to(center.dtype) - center) / TEMPS[1], -1)
    return pairs(student.to(center.dtype), q)


def sinkhorn(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    """DINOv2's loss, multi-crop, Sinkhorn-Knopp teacher of three iterations."""
    q = torch.exp(teacher.to(center.dtype).flatten(0, 1) / TEMPS[1]).T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / len(q)
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    q = (q * q.shape[1]).T.unflatten(0, teacher.shape[:2])
    return pairs(student.to(center.dtype), q)


def ibot(student: Tensor, teacher: Tensor, center: Tensor, weight: Tensor) -> Tensor:
    """iBOT's loss on patch tokens, three in ten of which are masked."""
    q = F.softmax((teacher.to(center.dtype) - center) / TEMPS[1], -1)
    each = -(q * F.log_softmax(student.to(center.dtype) / TEMPS[0], -1)).sum(-1)
    return (each * weight).sum()


def linear(
    student: Tensor, layer: Tensor, teacher: Tensor, teacher_layer: Tensor, center: Tensor
) -> Tensor:
    """DINO's loss with the prototype layers before it."""
    return dino(student @ layer.T, teacher @ teacher_layer.T, center)


def _our_dino(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    return dino_loss(student, teacher, center=center, **_TEMPERATURES)


def _our_sinkhorn(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
    return dino_loss(student, teacher, targets="sinkhorn", **_TEMPERATURES)


def _our_ibot(student: Tensor, teacher: Tensor, center: Tensor, weight: Tensor) -> Tensor:
    return ibot_loss(student, teacher, weight=weight, center=center, **_TEMPERATURES)


def _our_linear(
    student: Tensor, layer: Tensor, teacher: Tensor, teacher_layer: Tensor, center: Tensor
) -> Tensor:
    layers: dict[str, Any] = {"prototypes": layer, "teacher_prototypes": teacher_layer}
    return dino_loss(student, teacher, **layers, center=center, **_TEMPERATURES)


def _stored(
    student: Tensor, layer: Tensor, teacher: Tensor, teacher_layer: Tensor, center: Tensor
) -> Tensor:
    logits = student @ layer.T, teacher @ teacher_layer.T
    return dino_loss(*logits, center=center, inplace=student.requires_grad, **_TEMPERATURES)


_GIVEN = Signature(arguments=lambda inputs: list(inputs.values()), leaves=differentiable)


def _answer(loss: Callable[..., Tensor], by_image: bool) -> Callable[..., dict[str, Tensor]]:
    """In float64; an image at a time where images do not see one another."""

    def whole(inputs: Inputs, mode: str) -> dict[str, Tensor]:
        wide = {
            name: value.detach().double().requires_grad_(value.requires_grad)
            for name, value in inputs.items()
        }
        return {name: value.detach() for name, value in _GIVEN.eager(loss)(wide, mode)().items()}

    def each(inputs: Inputs, mode: str) -> dict[str, Tensor]:
        count = inputs["student"].shape[1]
        losses, grads = [], []
        for b in range(count):
            student, teacher = (
                inputs[name].detach()[:, b : b + 1] for name in ("student", "teacher")
            )
            leaf = student.double().requires_grad_()
            value = loss(leaf, teacher.double(), inputs["center"].double())
            losses.append(value.detach())
            if mode == "fwdbwd":
                (grad,) = torch.autograd.grad(value, leaf)
                grads.append((grad / count).to(inputs["student"].dtype))
        answer = {"loss": torch.stack(losses).mean()}
        return {**answer, "student": torch.cat(grads, 1).double()} if grads else answer

    return each if by_image else whole


def _logit_bytes(params: Mapping[str, Any], mode: str) -> int:
    """Student and teacher read, the student's gradient written, of the rows that count."""
    row = params["N"] * itemsize(params)
    if "R" in params:
        written = params["R"] if mode == "fwdbwd" else 0
        return int(row * (2 * _MASKED * params["R"] + written))
    reads = params["S"] * (2 if mode == "fwdbwd" else 1) + params["T"]
    return params["B"] * row * reads


def _layer_bytes(params: Mapping[str, Any], mode: str) -> int:
    """Rows and weights read, gradients of the student's written."""
    times = 2 if mode == "fwdbwd" else 1
    rows = params["B"] * (times * params["S"] + params["T"])
    return (rows + (times + 1) * params["N"]) * _WIDTH * itemsize(params)


def _logit_flops(params: Mapping[str, Any], mode: str) -> float:
    """A value: scaled, exponential, summed; and its product with the teachers' sum."""
    rows = 2 * _MASKED * params["R"] if "R" in params else params["B"] * (params["S"] + params["T"])
    return rows * params["N"] * (8 if mode == "fwdbwd" else 5)


def _layer_flops(params: Mapping[str, Any], mode: str) -> float:
    """The products: one for each side, two more for the gradients."""
    rows = params["B"] * ((3 if mode == "fwdbwd" else 1) * params["S"] + params["T"])
    return 2 * rows * params["N"] * _WIDTH


def _floor(inputs: Inputs, mode: str) -> Callable[[], Any]:
    """Student and teacher read and, for the gradient, as much as the student written."""
    student, teacher = inputs["student"].detach(), inputs["teacher"]
    out = torch.empty_like(student)
    if mode == "fwdbwd":
        return lambda: (torch.mul(student, 2, out=out), teacher.sum())
    return lambda: (student.sum(), teacher.sum())


def _layer_products(inputs: Inputs, mode: str) -> Callable[[], None]:
    """Logits of both sides; for the gradient once more, as none are kept, and its two products."""
    student, teacher = (inputs[name].detach().flatten(0, 1) for name in ("student", "teacher"))
    layers = inputs["layer"].detach(), inputs["teacher_layer"]
    logits = (student, layers[0].mT), (teacher, layers[1].mT)
    if mode == "fwd":
        return products(*logits)
    grad = student.new_ones(len(student), len(layers[0]))
    return products(*logits, *logits, (grad, layers[0]), (grad.mT, student))


def _lightly_dino(losses: Any, inputs: Inputs) -> Callable[..., Tensor]:
    """Its centre is the case's, and stays."""
    if inputs["student"].dtype != torch.float32:
        raise Unavailable("lightly: takes float32 alone")
    loss = losses.DINOLoss(
        output_dim=len(inputs["center"]),
        warmup_teacher_temp=TEMPS[1],
        teacher_temp=TEMPS[1],
        student_temp=TEMPS[0],
        center_momentum=1.0,
    ).to(inputs["center"].device)
    loss.center.copy_(inputs["center"])

    def function(student: Tensor, teacher: Tensor, center: Tensor) -> Tensor:
        value: Tensor = loss(list(teacher), list(student), teacher_temp=TEMPS[1])
        return value

    return function


def _case(
    name: str,
    device: str,
    official: Callable[..., Tensor],
    ours: Callable[..., Tensor],
    inputs: Callable[[str], Callable[..., Inputs]],
    *sweep: Mapping[str, Any],
) -> OpBench:
    layer = official is linear
    backend = "triton" if device == "cuda" else "native"
    providers = {
        "eager": Provider(_GIVEN.eager(official), tolerance=2e-2),
        "compile": Provider(_GIVEN.compiled(official), tolerance=2e-2),
        "ours": Provider(_GIVEN.ours(ours, backend), tolerance=2e-2),
    }
    if official is dino:
        peer = Provider(lightly(_lightly_dino, _GIVEN), tolerance=2e-2)
        providers = {**providers, "lightly": peer, "ours": providers.pop("ours")}
    if layer:
        stored = Provider(_GIVEN.ours(_stored, backend), tolerance=2e-2)
        providers["ours, logits stored"] = stored
    return OpBench(
        name=name,
        device=device,
        title=(official.__doc__ or "").splitlines()[0].rstrip("."),
        inputs=inputs(device),
        providers=providers,
        answer=_answer(official, official is dino),
        bytes_moved=_layer_bytes if layer else _logit_bytes,
        formula="rows and weights read + (fwdbwd) their gradients; it is bound by arithmetic"
        if layer
        else "student and teacher read once + (fwdbwd) gradient written",
        flops=_layer_flops if layer else _logit_flops,
        floor=_layer_products if layer else _floor if official in (dino, sinkhorn) else None,
        sweep=sweep,
    )


_CPU = {"S": 4, "T": 2, "B": 8, "N": 8192, "dtype": "bfloat16"}
_GPU = {"S": 10, "T": 2, "B": 64, "N": 65536, "dtype": "bfloat16"}


def _sweep(headline: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return headline, {**headline, "S": headline["T"]}, {**headline, "dtype": "float32"}


_SMALL = {"S": 2, "T": 2, "B": 4, "N": 256, "dtype": "float32"}


CASES = (
    _case("dino_cpu", "cpu", dino, _our_dino, _logits, *_sweep(_CPU), _SMALL),
    _case("sinkhorn_cpu", "cpu", sinkhorn, _our_sinkhorn, _logits, _CPU, _SMALL),
    _case(
        "ibot_cpu",
        "cpu",
        ibot,
        _our_ibot,
        _tokens,
        {"R": 400, "N": 8192, "dtype": "bfloat16"},
        {"R": 160, "N": 65536, "dtype": "bfloat16"},
        {"R": 16, "N": 256, "dtype": "float32"},
    ),
    _case(
        "linear_dino_cpu", "cpu", linear, _our_linear, _rows, {**_CPU, "dtype": "float32"}, _SMALL
    ),
    _case("dino", "cuda", dino, _our_dino, _logits, *_sweep(_GPU)),
    _case("sinkhorn", "cuda", sinkhorn, _our_sinkhorn, _logits, _GPU),
    _case("ibot", "cuda", ibot, _our_ibot, _tokens, {"R": 6272, "N": 65536, "dtype": "bfloat16"}),
    _case("linear_dino", "cuda", linear, _our_linear, _rows, *_sweep(_GPU)),
)
