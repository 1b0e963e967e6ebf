"""Prototype layer and loss together: the layer and the official loss, in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastequi import DINOLoss, IBOTLoss
from fastequi.functional import dino_loss, ibot_loss, linear_dino_loss, linear_ibot_loss
from fastequi.kernels import linear_dino as kernel
from tests.support.allocations import sizes_of
from tests.support.dino import logits, near, official_dino, official_sinkhorn, storing
from tests.support.tolerances import GRAD


@pytest.fixture(params=[37, 10_000, 0], ids=["chunks", "one chunk", "few"])
def chunked(request, monkeypatch):
    """Chunks of 37 prototypes, all at once, and so few logits that they are stored."""
    if not request.param:
        storing(monkeypatch, 1 << 20)
        return
    storing(monkeypatch, 0)

    def chunks(prototypes, *_):
        for start in range(0, prototypes, request.param):
            yield slice(start, start + request.param)

    monkeypatch.setattr(kernel, "chunks_of", chunks)


def unit(shape, seed, dtype, device):
    return F.normalize(logits(shape, seed=seed).double(), dim=-1).to(device, dtype)


@pytest.mark.slow("triton", every=4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("targets", ["softmax", "centred", "sinkhorn"])
def test_equals_the_layer_and_the_official_loss(backend, device, chunked, dtype, targets):
    student, teacher = (unit((v, 3, 12), v, dtype, device) for v in (4, 2))
    layer, told = (unit((90, 12), seed, dtype, device) for seed in (7, 8))
    student.requires_grad_()
    layer.requires_grad_()
    center = logits((90,), 0.1, seed=2).to(device) if targets == "centred" else None
    options = {"center": center, "targets": "sinkhorn" if targets == "sinkhorn" else "softmax"}
    layers = {"prototypes": layer, "teacher_prototypes": told}
    loss = dino_loss(student, teacher, **layers, teacher_temp=0.07, **options)
    (3 * loss).backward()
    exact, weight = (t.detach().double().requires_grad_() for t in (student, layer))
    answers = teacher.double() @ told.double().T
    q = None
    if targets == "sinkhorn":
        q = official_sinkhorn(answers.flatten(0, 1), 0.07, 3).view(answers.shape)
    shift = center.double() if targets == "centred" else 0.0
    expected = official_dino(exact @ weight.T, answers, 0.1, 0.07, shift, q)
    (3 * expected).backward()
    rounding = 2e-2 if dtype == torch.bfloat16 else 1e-5  # of the logits, over a temperature
    torch.testing.assert_close(loss.double(), expected, rtol=rounding, atol=1e-6)
    allowed = 5e-2 if dtype == torch.bfloat16 else GRAD[dtype]
    assert student.grad.dtype == layer.grad.dtype == dtype
    near(student.grad, exact.grad, allowed)
    near(layer.grad, weight.grad, allowed)


@pytest.mark.parametrize("targets", ["softmax", "sinkhorn"])
def test_masked_tokens_and_rows_that_do_not_count(backend, device, chunked, targets):
    student, teacher = (unit((9, 12), seed, torch.float32, device) for seed in (0, 1))
    layer, told = (unit((90, 12), seed, torch.float32, device) for seed in (7, 8))
    weight = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 1, 1], device=device) / 6
    kept = weight > 0
    student.requires_grad_()
    layer.requires_grad_()
    layers = {"prototypes": layer, "teacher_prototypes": told}
    options = {"weight": weight, "targets": targets, "teacher_temp": 0.1}
    loss = ibot_loss(student, teacher, **layers, **options)
    loss.backward()
    exact, rows = (t.detach().double().requires_grad_() for t in (student, layer))
    answers = (teacher.double() @ told.double().T)[kept]
    q = official_sinkhorn(answers, 0.1, 3) if targets == "sinkhorn" else (answers / 0.1).softmax(-1)
    logp = F.log_softmax(exact[kept] @ rows.T / 0.1, -1)
    expected = -(q * logp).sum(-1).mean()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    near(student.grad, exact.grad, 1e-5)
    near(layer.grad, rows.grad, 1e-5)
    assert (student.grad[~kept] == 0).all()


def test_the_logits_are_never_stored_whole(monkeypatch):
    monkeypatch.setattr(
        kernel, "chunks_of", lambda n, *_: (slice(i, i + 64) for i in range(0, n, 64))
    )
    student, teacher = (unit((v, 16, 8), v, torch.float32, "cpu") for v in (4, 2))
    layer = unit((1024, 8), 3, torch.float32, "cpu").requires_grad_()
    for targets in ("softmax", "sinkhorn"):
        layers = {"prototypes": layer, "teacher_prototypes": layer.detach()}
        run = lambda t=targets, w=layers: dino_loss(student, teacher, targets=t, **w)  # noqa: E731
        largest = max(size for _, size in sizes_of(lambda run=run: run().backward()))
        assert largest <= 1024 * 8 < 32 * 1024


def test_real_chunks_fill_half_the_cache():
    parts = list(kernel.chunks_of(65536, 768, 2, True))
    assert sum(part.stop - part.start for part in parts) >= 65536
    assert 768 * 2 * (parts[0].stop - parts[0].start) <= 24 << 20
    assert len(parts) == 4
    assert len(list(kernel.chunks_of(256, 8, 2, False))) == 1
    assert next(kernel.chunks_of(4096, 10**6, 2, True)) == slice(0, 1024)


def test_under_autocast_the_product_is_in_half_precision_and_the_loss_is_not(device):
    student, teacher = (unit((v, 3, 12), v, torch.float32, device) for v in (4, 2))
    layer = unit((90, 12), 7, torch.float32, device).requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        layers = {"prototypes": layer, "teacher_prototypes": layer.detach()}
        loss = dino_loss(student, teacher, **layers)
        plain = dino_loss(student @ layer.T, teacher @ layer.detach().T)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-3, atol=1e-4)
    loss.backward()
    assert layer.grad.dtype == torch.float32


def test_autocast_leaves_float64_alone_as_linear_does(device):
    student, teacher = (unit((v, 3, 12), v, torch.float64, device) for v in (4, 2))
    layer = unit((90, 12), 7, torch.float64, device)
    layers = {"prototypes": layer, "teacher_prototypes": layer}
    wanted = dino_loss(student, teacher, **layers)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(dino_loss(student, teacher, **layers), wanted)
        with pytest.raises(TypeError, match=r"^prototypes: expected the rows' torch\.float64"):
            dino_loss(student, teacher, **{**layers, "prototypes": layer.float()})
    assert wanted.dtype == torch.float64


def test_operator_and_graph(device):
    torch._dynamo.reset()
    student, teacher = (unit((v, 3, 12), v, torch.float32, device) for v in (4, 2))
    layer = unit((20, 12), 7, torch.float32, device)
    args = (student.flatten(0, 1).requires_grad_(), layer, teacher.flatten(0, 1), layer)
    from fastequi.kernels.dino import pairs_of

    options = (pairs_of(4, 2, 3, device), torch.ones(12, device=device), None, None, 0.1, 0.04)
    torch.library.opcheck(kernel.linear_dino_op.op, (*args, *options, True))
    compiled = torch.compile(linear_dino_loss, fullgraph=True, backend="aot_eager")
    expected = linear_dino_loss(student, layer, teacher, layer)
    torch.testing.assert_close(compiled(student, layer, teacher, layer), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student": torch.zeros(4, 8)}, ValueError, r"student: expected \[views, B, C\]"),
        ({"prototypes": torch.zeros(5, 7)}, ValueError, r"prototypes: expected \[N, 8\]"),
        ({"teacher_prototypes": torch.zeros(6, 8)}, ValueError, r"teacher_prototypes: .*\(5, 8\)"),
        ({"prototypes": torch.zeros(5, 8).double()}, TypeError, "prototypes: expected the rows'"),
        ({"center": torch.zeros(7)}, ValueError, r"center: expected \(5,\), got \(7,\)"),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    layers = {"prototypes": torch.zeros(5, 8), "teacher_prototypes": torch.zeros(5, 8)}
    given = {"student": torch.zeros(3, 4, 8), "teacher": torch.zeros(2, 4, 8), **layers, **change}
    with pytest.raises(error, match=message):
        dino_loss(**given)


@pytest.mark.parametrize("name", ["prototypes", "teacher_prototypes"])
def test_prototypes_come_for_both_sides(name):
    student, teacher, layer = torch.zeros(3, 4, 8), torch.zeros(2, 4, 8), torch.zeros(5, 8)
    rows, weight = torch.zeros(4, 8), torch.ones(4)
    for call in (
        lambda given: dino_loss(student, teacher, **given),
        lambda given: ibot_loss(rows, rows, **given),
        lambda given: DINOLoss(5)(student, teacher, **given),
        lambda given: IBOTLoss(5)(rows, rows, weight, **given),
    ):
        with pytest.raises(ValueError, match="prototypes, teacher_prototypes: expected both or"):
            call({name: layer})


def test_in_place_is_refused_where_no_logits_are_stored():
    student, teacher, layer = torch.zeros(3, 4, 8), torch.zeros(2, 4, 8), torch.zeros(5, 8)
    rows, weight = torch.zeros(4, 8), torch.ones(4)
    layers = {"prototypes": layer, "teacher_prototypes": layer}
    for call in (
        lambda: dino_loss(student, teacher, inplace=True, **layers),
        lambda: ibot_loss(rows, rows, inplace=True, **layers),
        lambda: DINOLoss(5, inplace=True)(student, teacher, **layers),
        lambda: IBOTLoss(5, inplace=True)(rows, rows, weight, **layers),
    ):
        with pytest.raises(ValueError, match="inplace: with prototypes no logits are stored"):
            call()


@pytest.mark.parametrize("targets", ["softmax", "sinkhorn"])
def test_the_positional_forms_and_the_modules_are_the_same_function(device, targets):
    student, teacher = (unit((v, 3, 12), v, torch.float32, device) for v in (4, 2))
    layer, other = (unit((20, 12), seed, torch.float32, device) for seed in (7, 8))
    layers = {"prototypes": layer, "teacher_prototypes": other}
    options = {"targets": targets, "teacher_temp": 0.07}
    loss = dino_loss(student, teacher, **layers, **options)
    assert torch.equal(linear_dino_loss(student, layer, teacher, other, **options), loss)
    module = DINOLoss(20, targets=targets).to(device)
    torch.testing.assert_close(module(student, teacher, 0.07, **layers), loss)
    rows, weight = teacher.flatten(0, 1), torch.full((6,), 1 / 6, device=device)
    loss = ibot_loss(student[:2].flatten(0, 1), rows, weight=weight, **layers, **options)
    given = student[:2].flatten(0, 1), layer, rows, other
    assert torch.equal(linear_ibot_loss(*given, weight=weight, **options), loss)
    module = IBOTLoss(20, targets=targets).to(device)
    torch.testing.assert_close(module(given[0], rows, weight, 0.07, **layers), loss)


def test_a_centre_moves_alike_before_and_after_the_layer():
    student, teacher = (unit((v, 3, 12), v, torch.float32, "cpu") for v in (4, 2))
    layer, other = (unit((20, 12), seed, torch.float32, "cpu") for seed in (7, 8))
    stored, never = DINOLoss(20), DINOLoss(20)
    stored(student @ layer.T, teacher @ other.T)
    never(student, teacher, prototypes=layer, teacher_prototypes=other)
    for module in (stored, never):
        module.update()
    assert stored.center.value.abs().max() > 0
    torch.testing.assert_close(never.center.value, stored.center.value)
