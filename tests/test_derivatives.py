"""The losses under autocast, second derivatives, torch.func, a loss scale in float16.

One table of calls, each of one differentiable tensor; the others are closed over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastequi
from fastequi.kernels import backend as backends
from fastequi.kernels import constants

PIECEWISE = {"correspondence_loss"}  # its gradient is constant between changes of the matches
PLAIN = {"koleo_loss", "crop_align_loss"}  # autograd's own graph, on a CPU


class Call(NamedTuple):
    leaf: Tensor
    loss: Callable[[Tensor], Tensor]


def _calls(dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Call]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(device, dtype)

    image = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=g).to(device)
    params = (torch.rand(4, 3, generator=g, dtype=torch.float32) * 20 - 10).to(device)
    path = fastequi.SE2().at(params, [1 / 3, 2 / 3], 32)
    shift = torch.full((4, 4), 0.1, dtype=torch.float32, device=device)
    color = fastequi.Color().at(shift, [1 / 3, 2 / 3], 32)
    theta = path.theta.to(torch.float64) if dtype == torch.float64 else path.theta
    options = {"color": color.color, "mean": (0.5, 0.4, 0.3), "std": 0.25}
    weight = randn(768, 16) / 4
    student, teacher, prototypes = randn(3, 4, 64), randn(2, 4, 64), randn(64, 16)
    rows, others, z = randn(3, 4, 16), randn(2, 4, 16), randn(8, 16)
    maps, box = randn(1, 2, 6, 6, 8), torch.tensor([0.1, 0.2, 0.8, 0.9], dtype=torch.float32)
    boxes = box.expand(1, 2, 4).to(device)
    turns = torch.zeros(1, 2, dtype=torch.long, device=device)
    patches, matched = randn(2, 9, 8), randn(2, 9, 8)
    anchor = randn(2, 9, 6)
    return {
        "warp_recon_loss": Call(
            randn(4, 2, 3, 32, 32), lambda x: fastequi.warp_recon_loss(x, image, theta, **options)
        ),
        "linear_warp_recon_loss": Call(
            randn(4, 2, 4, 16),
            lambda x: fastequi.linear_warp_recon_loss(
                x, weight.to(x.dtype), None, image, theta, patch_size=16
            ),
        ),
        "blur_recon_loss": Call(
            randn(4, 2, 3, 32, 32), lambda x: fastequi.blur_recon_loss(x, image, 0.7)
        ),
        "linear_blur_recon_loss": Call(
            randn(4, 2, 4, 16),
            lambda x: fastequi.linear_blur_recon_loss(
                x, weight.to(x.dtype), None, image, 0.7, patch_size=16
            ),
        ),
        "dino_loss": Call(student, lambda x: fastequi.dino_loss(x, teacher.to(x.dtype))),
        "dino_loss, sinkhorn": Call(
            student, lambda x: fastequi.dino_loss(x, teacher.to(x.dtype), targets="sinkhorn")
        ),
        "ibot_loss": Call(student, lambda x: fastequi.ibot_loss(x, student.flip(0).to(x.dtype))),
        "linear_dino_loss": Call(
            rows,
            lambda x: fastequi.linear_dino_loss(
                x, prototypes.to(x.dtype), others.to(x.dtype), prototypes.to(x.dtype)
            ),
        ),
        "nt_xent_loss": Call(z, lambda x: fastequi.nt_xent_loss(x, z.roll(1, 0).to(x.dtype))),
        "koleo_loss": Call(z, fastequi.koleo_loss),
        "vicreg_loss": Call(z, lambda x: fastequi.vicreg_loss(x, z.flip(0).to(x.dtype))),
        "crop_align_loss": Call(
            maps,
            lambda x: fastequi.crop_align_loss(
                x, maps.flip(2).to(x.dtype), boxes, boxes, turns, bins=3, scale=6.0
            ),
        ),
        "correspondence_loss": Call(
            patches, lambda x: fastequi.correspondence_loss(x, matched.to(x.dtype), top=4)
        ),
        "gram_loss": Call(
            patches, lambda x: fastequi.gram_loss(x, anchor.to(x.dtype), clamp="both")
        ),
    }


NAMES = tuple(_calls())


def _gradient(call: Call, leaf: Tensor | None = None) -> tuple[Tensor, Tensor]:
    leaf = (call.leaf if leaf is None else leaf).clone().requires_grad_()
    value = call.loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def _off(got: Tensor, wanted: Tensor) -> float:
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


# what autocast is meant for, as F.linear is: the layer inside is multiplied in its type
CAST = {"linear_warp_recon_loss", "linear_blur_recon_loss", "linear_dino_loss"}


@pytest.mark.slow("triton-warp_recon_loss")
@pytest.mark.slow("triton", every=2)
@pytest.mark.parametrize("name", [name for name in NAMES if name not in CAST])
def test_autocast_changes_nothing(backend, device, name):
    if backend == "triton" and device.type == "cpu" and name in PLAIN:
        pytest.skip("covered by their own interpreter tests")
    call = _calls(device=device.type)[name]
    value, grad = _gradient(call)
    with torch.autocast(device.type, torch.bfloat16):  # the backward too
        cast, cast_grad = _gradient(call)
    assert torch.equal(cast, value)
    assert torch.equal(cast_grad, grad)


@pytest.mark.slow("triton")
def test_autocast_changes_no_image_and_no_gradient_through_one(backend, device):
    g = torch.Generator().manual_seed(0)
    for channels, dtype in ((3, torch.uint8), (5, torch.uint8), (3, torch.float16)):
        image = torch.randint(256, (2, channels, 40, 40), dtype=torch.uint8, generator=g).to(device)
        image = image if dtype == torch.uint8 else (image / 255).to(dtype)
        params = torch.tensor([[20.0, 3, 4], [-30.0, 2, -5]], device=device)
        theta = fastequi.SE2(45, 10).at(params, 0.5, 40).theta
        plain = fastequi.warp(image, theta), fastequi.gaussian_blur(image, 1.0)
        with torch.autocast(device.type, torch.bfloat16):
            cast = fastequi.warp(image, theta), fastequi.gaussian_blur(image, 1.0)
        assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
    color = torch.eye(3, 4, device=device).expand(2, 1, 3, 4).contiguous() * 0.9
    leaves = [torch.rand(2, 3, 40, 40, generator=g).to(device), theta, color]

    def through(run: Callable[..., Tensor]) -> list[Tensor]:
        given = [t.clone().requires_grad_() for t in leaves]
        return list(torch.autograd.grad(run(*given).square().sum(), given, allow_unused=True))

    for run in (
        lambda image, theta, color: fastequi.warp(image, theta, color=color),
        lambda image, theta, color: fastequi.warp_recon_loss(
            torch.zeros(2, 1, 3, 40, 40, device=device), image, theta, color=color
        ),
        lambda image, theta, color: fastequi.gaussian_blur(image, color[:, 0, 0, 0]),
    ):
        plain = through(run)
        with torch.autocast(device.type, torch.bfloat16):
            cast = through(run)
        for a, b in zip(plain, cast, strict=True):
            if device.type == "cuda" and a is not None:  # grid_sample's backward adds in any order
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            else:
                assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("path", [fastequi.SE2(), fastequi.Color(), fastequi.Blur()])
def test_autocast_changes_no_path(path):
    params = torch.full((4, len(path.names)), 0.3)
    plain = path.at(params, [1 / 3], 32)
    with torch.autocast("cpu", torch.bfloat16):
        cast = path.at(params, [1 / 3], 32)
    for a, b in zip(plain, cast, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(name, dtype):
    value, grad = _gradient(_calls()[name])
    torch.set_default_dtype(dtype)
    try:
        other, other_grad = _gradient(_calls()[name])
    finally:
        torch.set_default_dtype(torch.float32)
    assert other.dtype == value.dtype
    assert torch.equal(other, value)
    assert torch.equal(other_grad, grad)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_penalty_is_right_or_refused_by_name(name):
    call = _calls(torch.float64)[name]
    x = call.leaf.clone().requires_grad_()

    def penalised(x: Tensor, graph: bool) -> Tensor:
        value = call.loss(x)
        (first,) = torch.autograd.grad(value, x, create_graph=graph)
        return value + 10 * first.square().sum()

    if name not in PIECEWISE | PLAIN:
        total = penalised(x, True)
        with pytest.raises(RuntimeError, match=name.split(",")[0]):
            torch.autograd.grad(total, x)
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            penalised(x, True).backward()
        return
    (got,) = torch.autograd.grad(penalised(x, True), x)
    direction = torch.randn_like(x)
    ends = [
        penalised((call.leaf + step * direction).requires_grad_(), False).item()
        for step in (1e-5, -1e-5)
    ]
    wanted = (ends[0] - ends[1]) / 2e-5
    assert abs((got * direction).sum().item() - wanted) < 1e-3 * abs(wanted)


def test_the_operator_refuses_a_second_derivative_too():
    z = torch.randn(8, 16, dtype=torch.float64, requires_grad=True)
    value, _, _ = torch.ops.fastequi.vicreg_loss(z, z.flip(0), 25.0, 25.0, 1.0, True)
    (first,) = torch.autograd.grad(value, z, create_graph=True)
    with pytest.raises(RuntimeError, match="vicreg_loss"):
        torch.autograd.grad(first.square().sum(), z)


def test_create_graph_alone_changes_no_gradient():
    for name in NAMES:
        call = _calls()[name]
        x = call.leaf.clone().requires_grad_()
        (grad,) = torch.autograd.grad(3 * call.loss(x), x, create_graph=True)
        torch.testing.assert_close(grad.detach(), 3 * _gradient(call)[1], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_torch_func_differentiates(name):
    call = _calls(torch.float64)[name]
    grad = _gradient(call)[1]
    torch.testing.assert_close(torch.func.grad(call.loss)(call.leaf), grad, rtol=1e-6, atol=1e-9)
    stacked = torch.stack([call.leaf, 0.9 * call.leaf])
    each = torch.vmap(torch.func.grad(call.loss))(stacked)
    wanted = torch.stack([_gradient(call, leaf)[1] for leaf in stacked])
    torch.testing.assert_close(each, wanted, rtol=1e-6, atol=1e-9)
    direction = torch.randn_like(call.leaf)
    _, tangent = torch.func.jvp(call.loss, (call.leaf,), (direction,))
    torch.testing.assert_close(tangent, (grad * direction).sum(), rtol=1e-6, atol=1e-9)
    through_vmap = torch.func.grad(lambda x: torch.vmap(call.loss)(x).sum())(stacked)
    torch.testing.assert_close(through_vmap, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_tangent_has_its_values_type(name):
    call = _calls(torch.float32)[name]
    value, tangent = torch.func.jvp(call.loss, (call.leaf,), (torch.ones_like(call.leaf),))
    assert tangent.dtype == value.dtype == torch.float32


def test_torch_func_differentiates_twice_and_says_once_what_it_runs(caplog):
    backends.say_plain.cache_clear()
    call = _calls(torch.float64)["vicreg_loss"]
    with caplog.at_level(logging.WARNING):
        hessian = torch.func.hessian(call.loss)(call.leaf)
    assert [r.message for r in caplog.records].count(
        "under torch.func and forward-mode differentiation plain PyTorch runs, slower"
    ) == 1
    direction = torch.randn_like(call.leaf)
    step = 1e-5
    ends = [_gradient(call, call.leaf + s * direction)[1] for s in (step, -step)]
    wanted = (ends[0] - ends[1]) / (2 * step)
    got = torch.einsum("ijkl,kl->ij", hessian, direction)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_per_sample_gradients_of_the_path_loss():
    pred, image = torch.randn(3, 1, 3, 16, 16), torch.rand(3, 3, 16, 16)
    theta = torch.eye(2, 3).expand(3, 1, 2, 3).contiguous()

    def loss(p: Tensor, i: Tensor, t: Tensor) -> Tensor:
        return fastequi.warp_recon_loss(p[None], i[None], t[None], mean=0.5, std=0.5)

    each = torch.vmap(torch.func.grad(loss, argnums=(0, 2)))(pred, image, theta)
    for k in range(3):
        p, t = pred[k].clone().requires_grad_(), theta[k].clone().requires_grad_()
        wanted = torch.autograd.grad(loss(p, image[k], t), (p, t))
        for a, b in zip(each, wanted, strict=True):
            torch.testing.assert_close(a[k], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_float16_gradients_survive_a_loss_scale(name, scale):
    call = _calls()[name]
    leaf = call.leaf.half()
    exact = _gradient(call, leaf.float())[1]
    x = leaf.clone().requires_grad_()
    (grad,) = torch.autograd.grad(call.loss(x) * scale, x)
    scaled = exact.double() * scale
    fits = scaled.abs() < 65504  # what float16 holds; beyond, PyTorch's own is infinite too
    assert grad.isfinite()[fits].all()
    small = 6e-5 * fits.sum().sqrt() * 1e-3  # half a subnormal's step, where nothing is scaled
    error = (grad.double() / scale - exact.double())[fits].norm()
    assert error < 1e-2 * exact.double()[fits].norm() + small / scale


def test_float16_gradients_of_many_rows_do_not_vanish():
    """The sizes at which 1 / rows inside took 43 % of the gradient: most values became zero."""
    g = torch.Generator().manual_seed(0)
    student = torch.randn(4096, 512, generator=g) / 16
    teacher = 0.4 * student + 0.004 * torch.randn(4096, 512, generator=g)
    student, teacher = student.half(), teacher.half()
    x = student.float().requires_grad_()
    logp = F.log_softmax(x / 0.1, -1)
    plain = -(F.softmax(teacher.float() / 0.04, -1) * logp).sum(-1).mean()
    (wanted,) = torch.autograd.grad(plain, x)
    x = student.clone().requires_grad_()
    (got,) = torch.autograd.grad(fastequi.ibot_loss(x, teacher) * 2.0**16, x)
    assert _off(got.double() / 2.0**16, wanted) < 0.005
    z = torch.randn(128, 98, 16, generator=g).half()
    y = (z.float() + 0.5 * torch.randn(z.shape, generator=g)).half()
    x = z.float().requires_grad_()
    cosine = F.normalize(x, dim=-1) @ F.normalize(y.float(), dim=-1).mT
    best = [cosine.amax(axis).topk(49, -1).values.mean() for axis in (-1, -2)]
    (wanted,) = torch.autograd.grad(-sum(best) / 2, x)
    x = z.clone().requires_grad_()
    (got,) = torch.autograd.grad(fastequi.correspondence_loss(x, y, top=49) * 2.0**16, x)
    assert _off(got.double() / 2.0**16, wanted) < 0.005


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
def test_nt_xent_is_exact_near_zero(device, temperature):
    g = torch.Generator().manual_seed(0)
    first = torch.linalg.qr(torch.randn(64, 64, generator=g)).Q  # no negative is alike
    z1, z2 = first[:16], first[:16] + 0.02 * torch.randn(16, 64, generator=g)
    z1, z2 = z1.to(device), z2.to(device)

    def oracle(z1: Tensor, z2: Tensor) -> Tensor:
        z = F.normalize(torch.cat([z1, z2]).double(), dim=-1)
        s = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
        return F.cross_entropy(s, torch.arange(32, device=device).roll(16))

    for name in ("torch", "triton"):
        leaf, exact = z1.clone().requires_grad_(), z1.double().requires_grad_()
        with backends.force(name):
            value = fastequi.nt_xent_loss(leaf, z2, temperature=temperature)
        value.backward()
        wanted = oracle(exact, z2)
        wanted.backward()
        assert value.item() >= 0
        assert abs(value.item() - wanted.item()) < 1e-5 * wanted.item()
        assert _off(leaf.grad, exact.grad) < 2e-4


@pytest.mark.parametrize(
    "name",
    ["warp_recon_loss", "linear_warp_recon_loss", "blur_recon_loss", "linear_blur_recon_loss"],
)
def test_image_sizes_may_change_under_compile(name):
    def given(n: int) -> Call:
        image, theta = torch.rand(4, 3, 8 * n, 8 * n), torch.eye(2, 3).repeat(4, 2, 1, 1)
        if name == "blur_recon_loss":
            sigma = torch.full((4, 2), 0.7)
            leaf = torch.randn(4, 2, 3, 8 * n, 8 * n)
            return Call(leaf, lambda p: fastequi.blur_recon_loss(p, image, sigma))
        if name == "warp_recon_loss":
            patches = {"layout": "patch", "patch_size": 8}
            leaf = torch.randn(4, 2, n * n, 192)
            return Call(leaf, lambda p: fastequi.warp_recon_loss(p, image, theta, **patches))
        weight, leaf = torch.ones(192, 192), torch.randn(4, 2, n * n, 192)
        if name == "linear_blur_recon_loss":
            return Call(
                leaf,
                lambda p: fastequi.linear_blur_recon_loss(
                    p, weight, None, image, 0.7, patch_size=8
                ),
            )
        return Call(
            leaf,
            lambda p: fastequi.linear_warp_recon_loss(p, weight, None, image, theta, patch_size=8),
        )

    torch._dynamo.reset()
    compiled = torch.compile(lambda loss, x: loss(x), fullgraph=True, backend="aot_eager")
    for n in (4, 3, 5):
        call = given(n)
        x = call.leaf.clone().requires_grad_()
        value = compiled(call.loss, x)
        torch.testing.assert_close(value, call.loss(x))
        value.backward()
        torch.testing.assert_close(x.grad, _gradient(call)[1])


def test_one_number_stands_for_all():
    image = torch.rand(2, 3, 16, 16)
    theta = fastequi.SE2().at(torch.ones(2, 3), 0.5, 16).theta
    assert torch.equal(theta, fastequi.SE2().at(torch.ones(2, 3), [0.5], (16, 16)).theta)
    assert torch.equal(
        fastequi.warp(image, theta, size=8), fastequi.warp(image, theta, size=(8, 8))
    )
    blurred = fastequi.gaussian_blur(image, 1.0, mean=0.5, std=0.25)
    sigma, each = torch.ones(2), {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    assert torch.equal(blurred, fastequi.gaussian_blur(image, sigma, **each))
    pred = torch.zeros(2, 3, 16, 16)
    assert torch.equal(
        fastequi.blur_recon_loss(pred, image, 1.0), fastequi.blur_recon_loss(pred, image, sigma)
    )
    half = fastequi.SE2().at(torch.ones(2, 3), torch.tensor(0.5), np.int64(16)).theta
    assert torch.equal(theta, half)
    several = fastequi.warp(image, theta, mean=np.full(3, 0.5), std=[0.25] * 3, size=np.int64(8))
    assert torch.equal(several, fastequi.warp(image, theta, mean=0.5, std=0.25, size=8))
    for size in ((8, 8, 8), 8.5, 0):
        with pytest.raises(ValueError, match="size: expected a size or"):
            fastequi.warp(image, theta, size=size)
    with pytest.raises(ValueError, match="mean: expected a finite number, or 3 of them"):
        fastequi.warp(image, theta, mean=float("nan"), std=1.0)


def test_an_empty_batch_of_crops_costs_nothing():
    student = torch.zeros(1, 0, 4, 4, 8, requires_grad=True)
    boxes, turns = torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.long)
    loss = fastequi.crop_align_loss(student, student.detach(), boxes, boxes, turns, bins=2)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.shape == student.shape


def test_a_mask_is_no_weight_and_defaults_agree():
    logits = torch.randn(4, 8)
    with pytest.raises(TypeError, match=r"weight: expected floats, got torch\.bool"):
        fastequi.ibot_loss(logits, logits, weight=torch.ones(4, dtype=torch.bool))
    student, teacher = torch.randn(3, 4, 8), torch.randn(2, 4, 8)
    module = fastequi.DINOLoss(8)
    assert torch.equal(
        module(student, teacher), fastequi.dino_loss(student, teacher, center=torch.zeros(8))
    )


def test_tensors_without_values_leave_no_constants_behind():
    """Under a fake mode the losses give shapes; what they keep for later calls stays real."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    color = fastequi.Color(hue=0.123)
    for mode in (FakeTensorMode(), torch.device("cpu")):
        with mode:
            params, pred = torch.rand(2, 4), torch.zeros(2, 1, 3, 16, 16, requires_grad=True)
            found = color.at(params, 0.5, 16)
            image = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
            loss = fastequi.warp_recon_loss(
                pred, image, found.theta, color=found.color, mean=0.123, std=0.321
            )
            loss.backward()
            assert pred.grad.shape == pred.shape
    assert loss.isfinite()


@pytest.mark.parametrize("align", [False, True])
def test_outside_of_a_source_one_pixel_wide(device, align):
    image, theta = torch.rand(2, 3, 5, 1), torch.eye(2, 3).repeat(2, 1, 1, 1)
    theta[1, 0, 0, 2] = 0.5
    pred = torch.zeros(2, 1, 3, 5, 8)
    image, theta, pred = (t.to(device) for t in (image, theta, pred))
    found = []
    names = [n for n in backends.NAMES if n != "native" or device.type == "cpu"]
    for name in names:
        with backends.force(name):
            found.append(
                fastequi.warp_recon_loss(
                    pred, image, theta, mask_outside=True, align_corners=align, reduction="none"
                )
            )
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("name", NAMES)
def test_several_incoming_gradients_at_once(name):
    call = _calls()[name]
    factors, wanted = torch.tensor([1.0, 2.0, -1.0]), _gradient(call)[1]
    for kept in (True, False):
        x = call.leaf.clone().requires_grad_()
        value = call.loss(x)
        each = torch.autograd.grad(value, x, factors, is_grads_batched=True, retain_graph=kept)[0]
        torch.testing.assert_close(
            each, torch.stack([f * wanted for f in factors]), rtol=1e-4, atol=1e-7
        )
    rows = torch.autograd.functional.jacobian(call.loss, call.leaf, vectorize=True)
    torch.testing.assert_close(rows, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_meta_tensors_give_shapes(name):
    call = _calls(device="meta")[name]
    value, grad = _gradient(call)
    assert value.shape == ()
    assert value.is_meta
    assert value.dtype == torch.float32
    assert grad.shape == call.leaf.shape


def test_torch_func_runs_inside_autocast():
    for name in set(NAMES) - CAST:
        call = _calls()[name]
        wanted = torch.func.grad(call.loss)(call.leaf)
        with torch.autocast("cpu", torch.bfloat16):
            got = torch.func.grad(call.loss)(call.leaf)
        assert _off(got, wanted) < 0.02, name


def _with_constants(std: float) -> dict[str, Call]:
    """What reads shared constants where autograd keeps them; of a std of their own."""
    g = torch.Generator().manual_seed(0)
    image, pred = torch.rand(2, 3, 8, 8, generator=g), torch.rand(2, 1, 3, 8, 8, generator=g)
    theta = fastequi.SE2().at(torch.ones(2, 3), 0.5, 8).theta
    both = {"mean": (0.5, 0.4, 0.3), "std": std}
    return {
        "Color.at": Call(
            torch.full((2, 4), std),
            lambda x: fastequi.Color().at(x, 0.5, 8).color.square().sum(),  # type: ignore[union-attr]
        ),
        "warp": Call(image, lambda x: fastequi.warp(x, theta, **both).square().sum()),
        "gaussian_blur": Call(image, lambda x: fastequi.gaussian_blur(x, 1.0, **both).sum()),
        "warp_recon_loss": Call(image, lambda x: fastequi.warp_recon_loss(pred, x, theta, **both)),
        "blur_recon_loss": Call(image, lambda x: fastequi.blur_recon_loss(pred, x, 1.0, **both)),
    }


@pytest.mark.parametrize("name", _with_constants(0.5))
def test_training_follows_a_validation_in_inference_mode(name):
    constants._kept.cache_clear()  # as in a new process
    call = _with_constants(0.271)[name]
    with torch.inference_mode():
        call.loss(call.leaf)
    after = _gradient(call)[1]
    constants._kept.cache_clear()
    assert torch.equal(after, _gradient(call)[1])


@pytest.mark.slow(every=3)
@pytest.mark.parametrize("name", _with_constants(0.5))
def test_constants_are_part_of_a_compiled_graph(name):
    torch._dynamo.reset()
    for std in (0.25, 0.35):
        call = _with_constants(std)[name]
        compiled = torch.compile(call.loss, fullgraph=True, backend="aot_eager")
        value, grad = _gradient(call)
        got, got_grad = _gradient(call._replace(loss=compiled))
        torch.testing.assert_close(got, value)
        torch.testing.assert_close(got_grad, grad)

    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call.loss(x)

    leaf = call.leaf.clone().requires_grad_()
    exported = torch.export.export(Module(), (leaf,), strict=True).module()
    torch.testing.assert_close(exported(leaf), value)
