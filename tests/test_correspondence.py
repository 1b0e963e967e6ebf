"""GTSA's patch correspondence: loops over patches, one pair at a time, in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastequi.functional import correspondence_loss
from fastequi.kernels import correspondence as kernel
from tests.support.allocations import sizes_of
from tests.support.correspondence import by_hand
from tests.support.tolerances import GRAD


def patches(pairs, count, channels, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(pairs, count, channels, generator=generator).to(dtype)


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("m", "n", "channels", "top"), [(9, 16, 12, 4), (37, 70, 33, 37)])
def test_equals_the_loops_in_value_and_gradient(backend, device, dtype, m, n, channels, top):
    student = patches(3, m, channels, 0, dtype).to(device).requires_grad_()
    teacher = patches(3, n, channels, 1, dtype).to(device)
    loss = correspondence_loss(student, teacher, top=top)
    (3 * loss).backward()
    # what the kernels see: unit rows in the features' own type
    exact, wanted = student.detach().double().cpu().requires_grad_(), teacher.double().cpu()
    expected = by_hand(exact, wanted, top)
    (3 * expected).backward()
    rounding = {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(dtype, 1e-5)
    torch.testing.assert_close(loss.double().cpu(), expected, rtol=rounding, atol=rounding)
    if dtype in (torch.float32, torch.float64):  # rounding may choose another match
        error = (student.grad.double().cpu() - exact.grad).norm() / exact.grad.norm()
        assert error <= GRAD[dtype]
    assert student.grad.dtype == dtype
    assert teacher.grad is None


def test_reference_is_the_loops():
    student, teacher = (F.normalize(patches(2, 9, 5, s, torch.float64), dim=-1) for s in (0, 1))
    expected = by_hand(student, teacher, 4)
    loss = kernel.correspondence_loss_ref(student[:, None], teacher[:, None], [0, 0, 1, 1], 4)
    torch.testing.assert_close(loss, expected)


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pairs_of_views_are_those_of_copies(backend, device, dtype):
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]
    student = patches(3, 4 * 9, 12, 0, dtype).view(3, 4, 9, 12).to(device).requires_grad_()
    teacher = patches(2, 4 * 16, 12, 1, dtype).view(2, 4, 16, 12).to(device)
    loss = correspondence_loss(student, teacher, top=5, pairs=pairs)
    (grad,) = torch.autograd.grad(loss, student)
    copies = torch.cat([student[s] for s, _ in pairs]), torch.cat([teacher[t] for _, t in pairs])
    expected = correspondence_loss(*copies, top=5)
    (wanted,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(loss, expected)
    assert (grad - wanted).norm() <= GRAD[dtype] * wanted.norm()


def test_identical_views_match_exactly_and_zero_patches_are_finite(backend, device):
    x = patches(2, 16, 8, 3).to(device)
    torch.testing.assert_close(correspondence_loss(x, x.clone(), top=16).cpu(), torch.tensor(-1.0))
    x[:, 3] = 0
    x.requires_grad_()
    loss = correspondence_loss(x, torch.zeros_like(x), top=16)
    loss.backward()
    assert loss == 0
    assert x.grad.isfinite().all()


def test_same_bits_every_time_and_ties_take_the_first(backend, device):
    x = torch.ones(2, 20, 8, device=device).requires_grad_()
    teacher = torch.ones(2, 24, 8, device=device)
    grads = []
    for _ in range(3):
        loss = correspondence_loss(x, teacher, top=7)
        grads.append(torch.autograd.grad(loss, x)[0])
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


@pytest.mark.parametrize(("m", "n", "top"), [(9, 150, 7), (64, 65, 60), (70, 33, 1)])
def test_as_many_matches_count_as_shall(backend, device, m, n, top):
    forth, back = (patches(2, 3, size, 0).round().to(device) for size in (m, n))  # many equals
    counted = kernel._counted(forth, back, top, -0.5)
    for high, weights in zip((forth, back), counted[:2], strict=True):
        best = high.topk(top, 2).values
        assert torch.equal(weights.sum(2), torch.full((2, 3), -0.5 * top, device=device))
        torch.testing.assert_close((high * weights).sum(2), -0.5 * best.sum(2))
        assert torch.equal(high[weights != 0].view(2, 3, top).amin(2), best.amin(2))
    loss = sum(-0.5 * high.topk(top, 2).values.sum() for high in (forth, back))
    torch.testing.assert_close(counted[2], loss)


def test_gradients_of_gradients_and_batches_of_them(backend, device):
    x, teacher = patches(2, 9, 12, 0).to(device).requires_grad_(), patches(2, 16, 12, 1).to(device)

    def plain():
        rows = F.normalize(x, dim=-1)[None], F.normalize(teacher, dim=-1)[None]
        return kernel.correspondence_loss_ref(*rows, [0, 0], 4)

    def ours():
        return correspondence_loss(x, teacher, top=4)

    def twice(loss):
        (first,) = torch.autograd.grad(3 * loss, x, create_graph=True)
        return first.detach(), torch.autograd.grad(first.square().sum(), x)[0]

    for got, wanted in zip(twice(ours()), twice(plain()), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    factors = torch.tensor([1.0, 3.0], device=device)
    (each,) = torch.autograd.grad(ours(), x, factors, is_grads_batched=True)
    (one,) = torch.autograd.grad(ours(), x)
    torch.testing.assert_close(each, torch.stack([one, 3 * one]))
    loss = ours()
    first, again = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)


def test_leading_axes_and_strides(backend, device):
    student, teacher = patches(6, 9, 12, 0).to(device), patches(6, 16, 12, 1).to(device)
    expected = correspondence_loss(student, teacher, top=5)
    shaped = student.view(2, 3, 9, 12), teacher.view(2, 3, 16, 12)
    torch.testing.assert_close(correspondence_loss(*shaped, top=5), expected)
    maps = student.mT.contiguous().mT  # a convolution's output: channels apart
    torch.testing.assert_close(correspondence_loss(maps, teacher, top=5), expected)


def test_similarities_are_not_stored_whole(monkeypatch):
    monkeypatch.setattr(kernel, "CHUNK", 100)
    student, teacher = patches(8, 10, 4, 0).requires_grad_(), patches(8, 10, 4, 1)
    run = lambda: correspondence_loss(student, teacher, top=5).backward()  # noqa: E731
    assert max(size for _, size in sizes_of(run)) <= 8 * 10 * 4


def test_operators_do_not_grow_with_the_batch():
    counts = []
    for pairs in (2, 36):
        student, teacher = patches(pairs, 9, 8, 0).requires_grad_(), patches(pairs, 9, 8, 1)
        counts.append(len(sizes_of(lambda s=student, t=teacher: correspondence_loss(s, t, top=4))))
    assert counts[0] == counts[1]


def test_operator_and_graph(device):
    torch._dynamo.reset()
    student, teacher = patches(2, 9, 8, 0).to(device), patches(2, 6, 8, 1).to(device)
    views = student[None].requires_grad_(), teacher[None]
    torch.library.opcheck(kernel.correspondence_op.op, (*views, [0, 0], 4, True))
    compiled = torch.compile(correspondence_loss, fullgraph=True, backend="aot_eager")
    expected = correspondence_loss(student, teacher, top=4)
    torch.testing.assert_close(compiled(student, teacher, top=4), expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student": torch.zeros(4)}, ValueError, r"student: expected \[..., patches, C\]"),
        ({"teacher": torch.zeros(2, 5, 7)}, ValueError, r"teacher: expected \[2, N, 8\]"),
        ({"teacher": torch.zeros(3, 5, 8)}, ValueError, r"teacher: expected \[2, N, 8\]"),
        ({"top": 0}, ValueError, "top: expected an integer >= 1, got 0"),
        ({"top": 5}, ValueError, r"top: expected an integer in 1 \.\. 4, got 5"),
        ({"student": torch.zeros(2, 4, 8).int()}, TypeError, "student: expected float32"),
        ({"pairs": [(0, 2)]}, ValueError, r"pairs: expected .* below 2 and 2, got \[\(0, 2\)\]"),
        ({"pairs": [(-1, 0)]}, ValueError, "pairs: expected"),
        ({"pairs": []}, ValueError, "pairs: expected"),
        ({"pairs": [(0, 0)], "student": torch.zeros(4, 8)}, ValueError, "student: expected .views"),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    given = {"student": torch.zeros(2, 4, 8), "teacher": torch.zeros(2, 6, 8), "top": 3, **change}
    with pytest.raises(error, match=message):
        correspondence_loss(given.pop("student"), given.pop("teacher"), **given)
