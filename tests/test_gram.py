"""Gram anchoring against DINOv3's definition, written out, in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastequi import GramLoss
from fastequi.functional import gram_loss
from fastequi.kernels import gram as kernel
from fastequi.kernels import gram_panels
from tests.support.allocations import sizes_of
from tests.support.tolerances import GRAD, LOSS

CLAMPS = "none", "both", "teacher"


def official(student, teacher, across_images=False, clamp="none", reduction="mean"):
    """facebookresearch/dinov3's GramLoss in words of our own: img_level, remove_neg and so on."""
    x, y = (z / z.norm(dim=2, keepdim=True) for z in (student, teacher))
    if across_images:
        x, y = x.reshape(1, -1, x.shape[2]), y.reshape(1, -1, y.shape[2])
    s, t = torch.einsum("bic,bjc->bij", x, x), torch.einsum("bic,bjc->bij", y, y)
    if clamp == "both":
        s, t = torch.where(s < 0, 0.0, s), torch.where(t < 0, 0.0, t)
    if clamp == "teacher":
        s, t = torch.where((s < 0) & (t < 0), 0.0, s), torch.where(t < 0, 0.0, t)
    square = (s - t) ** 2
    return {"mean": square.mean(), "sum": square.sum(), "none": square.mean((1, 2))}[reduction]


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(images, patches, width, teacher_width, dtype=torch.float32, device="cpu"):
    """A teacher and a student that has moved from it."""
    teacher = features(images, patches, teacher_width)
    student = features(images, patches, width, seed=1)
    shared = min(width, teacher_width)
    student[..., :shared] += teacher[..., :shared]
    return student.to(device, dtype), teacher.to(device, dtype)


def outcome(loss, student, teacher, factor=1.0, **options):
    """Value and the student's gradient of `factor` times it, in float64."""
    leaf = student.detach().clone().requires_grad_()
    value = loss(leaf, teacher, **options)
    (grad,) = torch.autograd.grad((factor * value).sum(), leaf)
    return value.detach().double(), grad.double()


def expect_equal(student, teacher, **options):
    """Within the tolerances of their type, under a loss scale."""
    ours = outcome(gram_loss, student, teacher, 2.0**12, **options)
    wanted = outcome(official, student.double(), teacher.double(), 2.0**12, **options)
    assert ours[0].shape == wanted[0].shape
    dtype = student.dtype
    torch.testing.assert_close(ours[0], wanted[0], rtol=2 * LOSS[dtype], atol=0)
    assert (ours[1] - wanted[1]).norm() <= GRAD[dtype] * wanted[1].norm()


@pytest.mark.slow("triton", every=4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize(
    ("shape", "reduction", "across"),
    [
        ((3, 70, 40, 24), "mean", False),
        ((2, 16, 16, 16), "none", False),
        ((3, 23, 17, 33), "sum", True),
        ((1, 5, 3, 80), "sum", False),
    ],
)
def test_equals_the_official_loss(backend, device, dtype, clamp, shape, reduction, across):
    options = {"clamp": clamp, "reduction": reduction, "across_images": across}
    expect_equal(*pair(*shape, dtype, device), **options)


@pytest.mark.slow("teacher", "triton")
@pytest.mark.parametrize("clamp", CLAMPS)
def test_an_image_of_many_patches_in_parts(backend, device, clamp, monkeypatch):
    """Panels of some rows each, of which the last is a rest; blocks that meet those behind."""
    monkeypatch.setattr(kernel, "PANEL", 10_000)
    monkeypatch.setattr(gram_panels, "PANEL", 10_000)
    for dtype in (torch.float32, torch.bfloat16):
        expect_equal(*pair(2, 300, 16, 24, dtype, device), clamp=clamp)


def test_panels_of_several_images(backend, device, monkeypatch):
    monkeypatch.setattr(kernel, "PANEL", 2 * 33 * 33)
    monkeypatch.setattr(gram_panels, "PANEL", 2 * 33 * 33)
    expect_equal(*pair(5, 33, 8, 8, device=device), reduction="none")


@pytest.mark.slow
def test_tall_tiles(device):
    """Those of images of 512 patches or more, with their mirror images, in half precision."""
    from fastequi.kernels import backend

    assert kernel.launch_config(torch.empty(1, 520, 16, dtype=torch.bfloat16))["BLOCK_M"] == 128
    with backend.force("triton"):
        for dtype in (torch.bfloat16, torch.float16):
            expect_equal(*pair(1, 520, 16, 16, dtype, device), clamp="both")


@pytest.mark.parametrize(
    ("student", "teacher", "none", "both", "clamp_teacher"),
    [
        (0.5, 0.2, 0.3, 0.3, 0.3),
        (-0.5, -0.8, 0.3, 0.0, 0.0),
        (-0.5, 0.5, 1.0, 0.5, 1.0),
        (0.5, -0.5, 1.0, 0.5, 0.5),
    ],
)
def test_which_cosines_a_clamp_changes(
    backend, device, student, teacher, none, both, clamp_teacher
):
    """By hand: two patches, of which the two equal entries off the diagonal differ."""

    def rows(cosine):
        pair = torch.tensor([[[2.0, 0.0], [3 * cosine, 3 * (1 - cosine**2) ** 0.5]]])
        return pair.to(device)

    for clamp, gap in (("none", none), ("both", both), ("teacher", clamp_teacher)):
        loss, grad = outcome(gram_loss, rows(student), rows(teacher), clamp=clamp)
        assert loss.item() == pytest.approx(gap**2 / 2, abs=1e-6)
        held = student < 0 and (clamp == "both" or (clamp == "teacher" and teacher < 0))
        assert bool(grad.abs().max() < 1e-6) == held


def test_what_is_known_without_a_formula(backend, device):
    teacher = torch.eye(8, device=device)[None] * 3
    alike = torch.ones(1, 8, 4, device=device)
    assert gram_loss(alike, teacher).item() == pytest.approx(1 - 1 / 8, rel=1e-6)
    assert gram_loss(alike, teacher, reduction="sum").item() == pytest.approx(56, rel=1e-6)
    student = features(2, 30, 12).to(device)
    loss, grad = outcome(gram_loss, student, student)
    assert loss < 1e-15  # a GPU's products of both sides round differently
    assert grad.abs().max() < 1e-9
    turn = torch.linalg.qr(features(12, 12, seed=3)).Q.to(device)
    length = torch.linspace(0.1, 9, 30, device=device)[:, None]
    assert gram_loss(length * (student @ turn), student).item() < 1e-12


def test_a_gradient_is_across_its_row(backend, device):
    """A row's length changes nothing."""
    student, teacher = pair(2, 40, 24, 24, device=device)
    _, grad = outcome(gram_loss, student, teacher)
    along = (grad * student).sum(2)
    assert (along.abs() <= 1e-6 * grad.norm(dim=2) * student.norm(dim=2)).all()


def test_digits_stay_when_the_student_is_near_its_anchor(backend, device):
    """Cosines that differ by 1e-4: squares of traces that cancel would have no digit left."""
    teacher = features(2, 60, 48)
    student = teacher + 1e-4 * features(2, 60, 48, seed=2)
    student, teacher = student.to(device), teacher.to(device)
    loss, grad = outcome(gram_loss, student, teacher)
    exact, wanted = outcome(official, student.double(), teacher.double())
    assert loss.item() == pytest.approx(exact.item(), rel=2e-3)
    assert (grad - wanted).norm() < 5e-3 * wanted.norm()


def test_rows_shorter_than_eps_are_divided_by_it(backend, device):
    """As F.normalize: their gradient is not projected."""

    def with_eps(student, teacher):
        x, y = (F.normalize(z, dim=-1, eps=0.5) for z in (student, teacher))
        return F.mse_loss(x @ x.mT, y @ y.mT)

    student, teacher = pair(2, 20, 8, 8, device=device)
    student[0, 3] *= 1e-3
    student[1, 4] = 0
    teacher[0, 5] = 0
    loss, grad = outcome(gram_loss, student, teacher, eps=0.5)
    exact, wanted = outcome(with_eps, student.double(), teacher.double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)
    zeros = torch.zeros(1, 4, 8, device=device)
    loss, grad = outcome(gram_loss, zeros, zeros)
    assert loss == 0
    assert not grad.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_values_make_their_own_image_nan(backend, device, bad):
    student, teacher = pair(3, 20, 8, 8, device=device)
    student[1, 4, 2] = bad
    for clamp in CLAMPS:
        loss, grad = outcome(gram_loss, student, teacher, clamp=clamp, reduction="none")
        assert loss.isnan().tolist() == [False, True, False]
        assert grad[1].isnan().any()
        assert grad[::2].isfinite().all()
        assert gram_loss(student, teacher, clamp=clamp).isnan()


@pytest.mark.slow("triton")
def test_inputs_of_any_strides(backend, device):
    """Patch tokens behind a class token, channels first, a view that turns the sign."""
    tokens, teacher = pair(3, 31, 16, 16, device=device)
    views = (
        tokens[:, 1:],
        tokens[:, 1:].mT.contiguous().mT,
        tokens.transpose(0, 1).contiguous().transpose(0, 1)[:, 1:],
        torch._neg_view(-tokens)[:, 1:],
        tokens[:1, 1:].expand(3, -1, -1),
    )
    for student in views:
        for other in (teacher[:, 1:], teacher[:, 1:].mT.contiguous().mT):
            ours = outcome(gram_loss, student, other)
            wanted = outcome(gram_loss, student.contiguous(), other.contiguous())
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-9)
    leaf = tokens.clone().requires_grad_()
    gram_loss(leaf[:, 1:], teacher[:, 1:]).backward()
    assert leaf.grad[:, 0].count_nonzero() == 0
    assert leaf.grad[:, 1:].all()


def test_memory_that_is_not_written_is_not_read(backend, device, poisoned):
    for clamp in CLAMPS:
        expect_equal(*pair(2, 37, 24, 8, device=device), clamp=clamp)
    expect_equal(*pair(1, 90, 24, 8, torch.bfloat16, device))


def test_the_same_bits_in_every_run(backend, device):
    student, teacher = pair(2, 150, 24, 24, torch.bfloat16, device)
    first = outcome(gram_loss, student, teacher)
    for _ in range(2):
        assert all(map(torch.equal, outcome(gram_loss, student, teacher), first))


def test_the_teacher_gets_no_gradient(backend, device):
    student, teacher = (x.requires_grad_() for x in pair(2, 9, 4, 4, device=device))
    gram_loss(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None
    assert not gram_loss(student.detach(), teacher).requires_grad


def test_features_of_two_types_are_compared_in_the_one_that_holds_both(backend, device):
    student, teacher = pair(2, 21, 16, 24, device=device)
    for low, high in ((torch.bfloat16, torch.float32), (torch.float32, torch.float64)):
        one, other = student.to(low), teacher.to(high)
        loss, grad = outcome(gram_loss, one, other)
        exact, wanted = outcome(official, one.double(), other.double())
        torch.testing.assert_close(loss, exact, rtol=1e-5, atol=0)
        assert (grad - wanted).norm() <= GRAD[low] * wanted.norm()
        assert gram_loss(one, other).dtype == high


@pytest.mark.parametrize("across", [False, True])
def test_an_empty_batch_costs_nothing(backend, device, across):
    student = torch.zeros(0, 4, 8, device=device, requires_grad=True)
    loss = gram_loss(student, student.detach(), across_images=across)
    loss.backward()
    assert loss == 0
    assert student.grad.shape == student.shape
    assert gram_loss(student, student, reduction="none").shape == (0,)


@pytest.mark.slow("triton")
def test_no_matrix_of_similarities_is_allocated(backend, device, monkeypatch):
    monkeypatch.setattr(kernel, "PANEL", 1 << 17)
    monkeypatch.setattr(gram_panels, "PANEL", 1 << 17)
    monkeypatch.setattr(gram_panels, "GPU_PANEL", 1 << 17)
    student, teacher = pair(1, 1200, 16, 16, device=device)
    student.requires_grad_()
    largest = max(size for _, size in sizes_of(lambda: gram_loss(student, teacher).backward()))
    assert largest <= 1200**2 / 4


def test_reference_is_the_official_loss():
    student, teacher = pair(3, 12, 8, 6, torch.float64)
    for clamp in CLAMPS:
        for reduction in ("mean", "sum", "none"):
            ours = outcome(kernel.gram_loss_ref, student, teacher, 1.0, clamp=clamp,
                           reduction=reduction, eps=1e-12)  # fmt: skip
            wanted = outcome(official, student, teacher, clamp=clamp, reduction=reduction)
            torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-14)


def test_operator(device):
    student, teacher = pair(2, 12, 8, 6, device=device)
    for reduction in ("mean", "none"):
        args = (student.requires_grad_(), teacher, "both", reduction, 1e-12, True)
        torch.library.opcheck(kernel.gram_op.op, args)


def test_compiles_to_one_graph():
    torch._dynamo.reset()
    student, teacher = pair(2, 12, 8, 6)
    compiled = torch.compile(gram_loss, fullgraph=True, backend="aot_eager")
    ours = outcome(compiled, student, teacher, clamp="teacher")
    torch.testing.assert_close(ours, outcome(gram_loss, student, teacher, clamp="teacher"))


def test_the_module_is_the_function():
    student, teacher = pair(2, 12, 8, 6)
    for options in (
        {},
        {"clamp": "both", "reduction": "none"},
        {"across_images": True, "reduction": "sum", "eps": 0.5},
    ):
        assert torch.equal(
            GramLoss(**options)(student, teacher), gram_loss(student, teacher, **options)
        )
    described = repr(GramLoss(clamp="teacher"))
    assert described == "GramLoss(across_images=False, clamp='teacher', reduction='mean')"


def test_what_does_not_fit_is_refused():
    student, teacher = pair(2, 12, 8, 6)
    for args, message in (
        ((student[0], teacher), r"student: expected \[B, N, C\], got \(12, 8\)"),
        ((student[:, :0], teacher[:, :0]), r"student: expected \[B, N, C\], got \(2, 0, 8\)"),
        ((student, teacher[:, :5]), r"teacher: expected \[2, 12, C\] .*, got \(2, 5, 6\)"),
        ((student, teacher[..., :0]), r"teacher: expected \[B, N, C\], got \(2, 12, 0\)"),
        ((student, teacher.to("meta")), "teacher: expected on cpu as student is, got meta"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            gram_loss(*args)
    with pytest.raises(TypeError, match=r"^teacher: expected float32"):
        gram_loss(student, teacher.long())
    for make in (lambda **o: gram_loss(student, teacher, **o), GramLoss):
        with pytest.raises(ValueError, match=r"^clamp: expected one of .*, did you mean 'teacher'"):
            make(clamp="teachers")
        with pytest.raises(ValueError, match=r'^reduction: "none" is for every image'):
            make(across_images=True, reduction="none")
        with pytest.raises(TypeError, match=r"^across_images: expected True or False, got 1"):
            make(across_images=1)
