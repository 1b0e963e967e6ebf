"""DINO's and iBOT's loss against the official formulas, written out, in float64."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from fastequi.functional import dino_loss, ibot_loss
from fastequi.kernels import backend as backends
from fastequi.losses.dino import Center, DINOLoss, IBOTLoss
from tests.support.dino import logits, near, official_dino, official_sinkhorn
from tests.support.tolerances import GRAD


@pytest.fixture(params=["torch", "triton"])
def backend(request):
    with backends.force(request.param):
        yield request.param


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("views", "teachers", "width"), [(2, 2, 64), (5, 2, 37), (3, 1, 5000)])
@pytest.mark.parametrize("centred", [False, True])
def test_dino_equals_the_official_loss(backend, device, dtype, views, teachers, width, centred):
    student = logits((views, 3, width), dtype=dtype).to(device).requires_grad_()
    teacher = logits((teachers, 3, width), 0.3, seed=1, dtype=dtype).to(device)
    center = logits((width,), 0.1, seed=2).to(device) if centred else None
    loss = dino_loss(student, teacher, center=center, teacher_temp=0.07)
    (3 * loss).backward()
    exact = student.detach().double().requires_grad_()
    shift = center.double() if centred else 0.0
    expected = official_dino(exact, teacher.double(), 0.1, 0.07, shift)
    (3 * expected).backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert student.grad.dtype == dtype
    near(student.grad, exact.grad, GRAD[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ibot_equals_the_official_loss_and_reads_only_what_is_masked(backend, device, dtype):
    """facebookresearch/ibot: per image the mean over its masked tokens, then over images."""
    batch, tokens, width = 3, 7, 130
    student = logits((batch, tokens, width), dtype=dtype).to(device)
    teacher = logits((batch, tokens, width), 0.3, seed=1, dtype=dtype).to(device)
    center = logits((width,), 0.1, seed=2).to(device)
    mask = (logits((batch, tokens), seed=3) > 0).to(device)
    mask[1] = False
    mask[1, 2] = True
    exact = student.double().requires_grad_()
    q = F.softmax((teacher.double() - center) / 0.05, -1)
    each = torch.sum(-q * F.log_softmax(exact / 0.1, -1), -1)
    expected = ((each * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    expected.backward()
    weight = mask / mask.sum(-1, keepdim=True).clamp(min=1) / batch
    student = student.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    teacher = teacher.masked_fill(~mask[..., None], torch.nan)
    loss = ibot_loss(student, teacher, weight=weight, center=center, teacher_temp=0.05)
    loss.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    near(student.grad, exact.grad, GRAD[dtype])
    assert (student.grad[~mask] == 0).all()


def test_dinov2_teachers_through_the_loss(backend, device):
    student = logits((4, 3, 50)).to(device).requires_grad_()
    teacher = logits((2, 3, 50), 0.3, seed=1).to(device)
    loss = dino_loss(student, teacher, targets="sinkhorn", teacher_temp=0.06)
    loss.backward()
    exact = student.detach().double().requires_grad_()
    q = official_sinkhorn(teacher.double().flatten(0, 1), 0.06, 3).view(2, 3, 50)
    expected = official_dino(exact, teacher.double(), 0.1, 0.06, q=q)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    near(student.grad, exact.grad, 1e-5)


def test_sinkhorn_balances_the_rows_that_count(backend, device):
    student, teacher = (logits((9, 20), 0.5, seed=s).to(device) for s in (0, 1))
    weight = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 1, 1], device=device) / 6
    kept = weight > 0
    student.requires_grad_()
    loss = ibot_loss(student, teacher, weight=weight, targets="sinkhorn", teacher_temp=0.1)
    q = official_sinkhorn(teacher[kept].double(), 0.1, 3)
    logp = F.log_softmax(student.detach()[kept].double() / 0.1, -1)
    torch.testing.assert_close(loss.double(), -(q * logp).sum(-1).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e3, 3e4])
def test_extreme_logits_stay_finite(backend, device, scale):
    """Rows alike, one image, logits that overflow any exponential that is not shifted first."""
    student = logits((2, 1, 64), scale).to(device).requires_grad_()
    for targets in ("softmax", "sinkhorn"):
        loss = dino_loss(student, logits((2, 1, 64), scale, 1).to(device), targets=targets)
        (grad,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert grad.isfinite().all()


def test_in_place_reuses_the_logits_memory_and_is_noticed(backend, device):
    weight = logits((48, 16), seed=5).to(device).requires_grad_()
    x, teacher = logits((2, 4, 16)).to(device), logits((2, 4, 48), seed=1).to(device)

    def gradient(inplace):
        student = x @ weight.T
        before = student.data_ptr()
        loss = dino_loss(student, teacher, inplace=inplace)
        (by_logits, by_weight) = torch.autograd.grad(loss, [student, weight])
        return by_weight, by_logits.data_ptr() == before

    kept, same = gradient(False)
    assert not same
    over, same = gradient(True)
    assert same
    torch.testing.assert_close(over, kept)
    student = x @ weight.T
    entropy = student.softmax(-1).square().sum() + (student * student).sum()  # keeps the logits
    loss = dino_loss(student, teacher, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + entropy).backward()
    with pytest.raises(ValueError, match="inplace: student is a leaf"):
        dino_loss(logits((2, 4, 48)).to(device).requires_grad_(), teacher, inplace=True)
    half, keeps = logits((2, 4, 48)).to(device).half().requires_grad_(), teacher.half()
    copied = 2 * half  # float16 is not cast then: the memory would be another
    dino_loss(copied, keeps, inplace=True).backward()
    assert not torch.equal(copied.detach(), 2 * half.detach())


def test_strided_logits_and_empty_batches(backend, device):
    wide = logits((3, 4, 40)).to(device)
    teacher = logits((2, 4, 40), seed=1).to(device)
    flipped = wide.transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(dino_loss(flipped, teacher), dino_loss(wide, teacher))
    nothing = torch.zeros(3, 0, 8, device=device, requires_grad=True)
    loss = dino_loss(nothing, torch.zeros(2, 0, 8, device=device))
    loss.backward()
    assert loss == 0


def test_compiles_to_one_graph(backend, device):
    torch._dynamo.reset()
    student = logits((3, 2, 24)).to(device).requires_grad_()
    teacher = logits((2, 2, 24), seed=1).to(device)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(s, t):
        return dino_loss(2 * s, t, targets="sinkhorn")

    loss = step(student, teacher)
    loss.backward()
    plain = student.detach().clone().requires_grad_()
    expected = dino_loss(2 * plain, teacher, targets="sinkhorn")
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(student.grad, plain.grad)


def test_opcheck(device):
    from fastequi.kernels.dino import dino_op

    student = logits((4, 8)).to(device).requires_grad_()
    teacher = logits((2, 8), seed=1).to(device)
    pairs = torch.tensor([[0], [1], [-1], [0]], dtype=torch.int32, device=device)
    weight, row = torch.ones(4, device=device), torch.zeros(2, device=device)
    column = torch.zeros(8, device=device)
    args = (student, teacher, pairs, weight, row, column, 0.1, 0.04, True, False)
    torch.library.opcheck(dino_op.op, args)


@pytest.mark.parametrize(
    "types",
    list(itertools.permutations((torch.float64, torch.float32, torch.bfloat16, torch.float16), 2)),
    ids=str,
)
@pytest.mark.parametrize("targets", ["softmax", "centre", "sinkhorn"])
def test_student_and_teacher_of_any_types(types, targets):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(n, 3, 33, generator=generator) for n in (4, 2))
    student, teacher = student.to(types[0]), teacher.to(types[1])
    options = {"targets": "sinkhorn"} if targets == "sinkhorn" else {}
    if targets == "centre":
        options["center"] = 0.1 * torch.randn(33, generator=generator)
    found = dino_loss(student, teacher, **options)
    exact = dino_loss(student.double(), teacher.double(), **options)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


def test_runs_in_float32_under_autocast(backend, device):
    student, teacher = (logits((2, 4, 16), seed=s).to(device) for s in (0, 1))
    with torch.autocast(device.type, torch.bfloat16):
        loss = dino_loss(student.bfloat16(), teacher.bfloat16())
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student": torch.zeros(4, 8)}, ValueError, r"student: expected \[views, B, N\]"),
        ({"teacher": torch.zeros(2, 5, 8)}, ValueError, r"teacher: expected \[T, 4, 8\]"),
        ({"teacher": torch.zeros(4, 4, 8)}, ValueError, "1 <= T <= 3 views"),
        ({"student": torch.zeros(3, 4, 8).int()}, TypeError, "student: expected float32"),
        ({"student_temp": 0.0}, ValueError, "student_temp: expected a finite number > 0 and "),
        ({"student_temp": 1e37}, ValueError, r"student_temp: .* > 0 and <= 1e\+06, got 1e\+37"),
        ({"teacher_temp": 1e37}, ValueError, r"teacher_temp: .* > 0 and <= 1e\+06, got 1e\+37"),
        ({"center": torch.zeros(7)}, ValueError, r"center: expected \(8,\), got \(7,\)"),
        ({"targets": "sinkhon"}, ValueError, "targets: .*did you mean 'sinkhorn'"),
        ({"targets": "sinkhorn", "center": torch.zeros(8)}, ValueError, "center: Sinkhorn"),
        (
            {"targets": "sinkhorn", "iterations": 0},
            ValueError,
            "iterations: expected an integer >= 1, got 0",
        ),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    given = {"student": torch.zeros(3, 4, 8), "teacher": torch.zeros(2, 4, 8), **change}
    with pytest.raises(error, match=message):
        dino_loss(**given)


@pytest.mark.parametrize("targets", ["softmax", "sinkhorn"])
def test_the_highest_temperatures_make_all_prototypes_even(targets):
    student, teacher = logits((3, 4, 8), seed=0), logits((2, 4, 8), seed=1)
    temps = {"student_temp": 1e6, "teacher_temp": 1e6, "targets": targets}
    for loss in (dino_loss(student, teacher, **temps), ibot_loss(student[0], teacher[0], **temps)):
        torch.testing.assert_close(loss, torch.tensor(math.log(8.0)))
    for name in ("student_temp", "teacher_temp"):  # from 1e37 on C's sums were NaN
        with pytest.raises(ValueError, match=f"{name}: expected a finite number > 0 and <="):
            ibot_loss(student[0], teacher[0], **{**temps, name: 1e37})


def test_a_lone_view_and_a_weight_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="student: expected a view that the teacher does not"):
        dino_loss(torch.zeros(1, 4, 8), torch.zeros(1, 4, 8))
    with pytest.raises(ValueError, match=r"weight: expected \(4,\)"):
        ibot_loss(torch.zeros(4, 8), torch.zeros(4, 8), weight=torch.ones(5))


def test_the_centre_is_the_official_moving_average():
    center, rows = Center(5, 0.9), torch.randn(7, 5)
    center.add(rows[:3])
    center.add(rows[3:])
    assert (center.value == 0).all()  # until the step is taken
    center.update()
    torch.testing.assert_close(center.value, 0.1 * rows.mean(0))
    first = center.value.clone()
    center.update()  # no rows: iBOT without a masked patch
    assert torch.equal(center.value, first)
    assert list(center.state_dict()) == ["value"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_centre_stays_in_float32(dtype):
    """Sums of 20,000 rows are beyond float16, and a step of a hundredth below bfloat16's digits."""
    loss = DINOLoss(8)
    loss.center.value += 1.001
    loss = loss.to(dtype)
    assert (loss.center.value == torch.tensor(1.001)).all()
    rows = torch.full((2, 20_000, 8), 2.0, dtype=dtype)
    loss(torch.randn(2, 20_000, 8).to(dtype), rows)
    loss.update()
    torch.testing.assert_close(loss.center.value, torch.full((8,), 0.9 * 1.001 + 0.2))
    assert {buffer.dtype for buffer in loss.buffers()} == {torch.float32}
    again = copy.deepcopy(loss).float()
    assert torch.equal(again.center.value, loss.center.value)
    saved = {name: value.to(dtype) for name, value in loss.state_dict().items()}
    again.load_state_dict(saved, assign=True)
    again(torch.randn(2, 4, 8).to(dtype), torch.ones(2, 4, 8, dtype=dtype))
    again.update()
    assert {buffer.dtype for buffer in again.buffers()} == {torch.float32}


def test_a_centre_moves_in_training_mode_only():
    loss = DINOLoss(8).eval()
    loss(torch.randn(2, 4, 8), torch.ones(2, 4, 8))
    loss.update()
    assert (loss.center.value == 0).all()
    loss.train()(torch.randn(2, 4, 8), torch.ones(2, 4, 8))
    loss.update()
    assert (loss.center.value > 0).all()


def test_logits_of_other_prototypes_than_the_module_has_are_refused():
    for loss in (DINOLoss(8), IBOTLoss(8)):
        with pytest.raises(ValueError, match=r"^student: expected 8 prototypes, .* got 9"):
            loss(torch.zeros(2, 4, 9), torch.zeros(2, 4, 9))
    layers = {"prototypes": torch.zeros(9, 5), "teacher_prototypes": torch.zeros(9, 5)}
    with pytest.raises(ValueError, match=r"^student: expected 8 prototypes, .* got 9"):
        DINOLoss(8)(torch.zeros(2, 4, 5), torch.zeros(2, 4, 5), **layers)


def test_modules_have_their_functions_options():
    student, teacher = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    more = {"targets": "sinkhorn", "iterations": 1}
    assert torch.equal(DINOLoss(8, **more)(student, teacher), dino_loss(student, teacher, **more))
    assert torch.equal(IBOTLoss(8)(student, teacher), ibot_loss(student, teacher))
    with pytest.raises(TypeError, match=r"^weight: expected floats, got torch\.bool; of a mask"):
        ibot_loss(student, teacher, weight=torch.rand(2, 4) > 0.5)
    with pytest.raises(ValueError, match=r"^weight: expected none that requires a gradient"):
        ibot_loss(student, teacher, weight=torch.ones(2, 4, requires_grad=True))
    logits = torch.randn(2, 4, 8, requires_grad=True) * 1
    with pytest.raises(ValueError, match=r"^inplace: center shares the student's memory"):
        dino_loss(logits, teacher, center=logits.detach()[0, 0], inplace=True)


def test_the_loss_module_centres_with_the_steps_before():
    loss = DINOLoss(5)
    student, teacher = torch.randn(3, 4, 5), torch.randn(2, 4, 5)
    first = loss(student, teacher, 0.05)
    torch.testing.assert_close(first, official_dino(student, teacher, 0.1, 0.05))
    loss.update()
    shift = 0.1 * teacher.flatten(0, 1).mean(0)
    expected = official_dino(student, teacher, 0.1, 0.05, shift)
    torch.testing.assert_close(loss(student, teacher, 0.05), expected)
