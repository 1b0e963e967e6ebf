"""GTSA's correspondence in C: any views, pairs, types and strides, by either of its two ways."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastequi.functional import correspondence_loss
from fastequi.kernels import backend, native_correspondence, native_similarities, toolchain
from fastequi.kernels import correspondence as kernel
from tests.support.native import NEEDS_C, expect_the_same_bits_of_any_threads, instruction_set
from tests.support.tolerances import GRAD

pytestmark = NEEDS_C

ROWS = st.one_of(st.integers(1, 6), st.integers(30, 36))
EPS = 1e-12


def features(views, batch, rows, width, seed, gap=0):
    """[views, batch, rows, width], with `gap` rows and channels between them."""
    generator = torch.Generator().manual_seed(seed)
    room = torch.randn(views, batch, rows + gap, width + gap, generator=generator)
    return room[:, :, :rows, :width]


def run(student, teacher, pairs, top, products, at_once=1 << 20, eps=EPS):
    """(the loss, its gradient) around PyTorch's products, or by one call of C."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_similarities, "_FEW", 0 if products else 1 << 40)
        options = student, teacher, pairs, top, True, eps, at_once
        return native_correspondence.prepared(*options)(student, teacher)


def by_reference(student, teacher, pairs, top):
    """The same in float64 and plain PyTorch, of the features as they are."""
    leaf = student.detach().double().requires_grad_()
    rows = F.normalize(leaf, dim=-1), F.normalize(teacher.double(), dim=-1)
    loss = kernel.correspondence_loss_ref(*rows, pairs, top)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def is_clear(student, teacher, pairs, top):
    """Whether no match, nor which of them count, hangs on float32's rounding."""
    rows = [F.normalize(x.double(), dim=-1) for x in (student, teacher)]
    for s, t in zip(pairs[::2], pairs[1::2], strict=True):
        similarity = rows[0][s] @ rows[1][t].mT
        for axis in (1, 2):
            best = similarity.sort(axis, descending=True).values.movedim(axis, -1)
            ranked = best[..., 0].sort(-1, descending=True).values
            gaps = (
                best[..., :1] - best[..., 1:2],
                ranked[:, top - 1 : top] - ranked[:, top : top + 1],
            )
            if any(gap.numel() and gap.min() < 1e-6 for gap in gaps):
                return False
    return True


def check(found, wanted):
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=1e-5, atol=1e-6)
    error = (found[1].double() - wanted[1]).norm() / wanted[1].norm().clamp(min=1e-9)
    assert error <= 5 * GRAD[torch.float32]  # of few channels matches point nearly as the rows do


@st.composite
def cases(draw):
    views, others = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    batch, m, n = draw(st.integers(1, 3)), draw(ROWS), draw(ROWS)
    width, gap = draw(st.integers(5, 40)), draw(st.integers(0, 2))
    seed = draw(st.integers(0, 999))
    pair = st.tuples(st.integers(0, views - 1), st.integers(0, others - 1))
    every = [(s, t) for t in range(others) for s in range(views)]
    pairs = draw(st.one_of(st.lists(pair, min_size=1, max_size=6), st.just(every)))
    student = features(views, batch, m, width, seed, gap)
    teacher = features(others, batch, n, width, seed + 1, gap)
    flat = [view for pair in pairs for view in pair]
    return student, teacher, flat, draw(st.integers(1, min(m, n)))


@given(cases(), st.booleans(), st.sampled_from([1, 50, 3000, 1 << 20]))
@settings(max_examples=150, deadline=None)
def test_fuzz_any_views_and_pairs(case, products, at_once):
    assume(is_clear(*case))
    check(run(*case, products, at_once), by_reference(*case))


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
@pytest.mark.parametrize("width", [3, 16, 45])
def test_every_instruction_set(isa, width, products, monkeypatch):
    case = features(3, 2, 20, width, 0), features(2, 2, 33, width, 1), [0, 1, 1, 0, 2, 1], 7
    assert is_clear(*case)
    with instruction_set(isa, monkeypatch):
        check(run(*case, products), by_reference(*case))


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("types", [(torch.bfloat16,) * 2, (torch.float32, torch.bfloat16),
                                   (torch.bfloat16, torch.float32)])  # fmt: skip
def test_bfloat16_rows_are_rounded_as_in_pytorch(types, products):
    """The student's type decides, as its unit rows are of that type."""
    student, teacher = (features(2, 2, 20, 24, seed).to(t) for seed, t in enumerate(types))
    pairs, top = [0, 1, 1, 0], 9
    found = run(student, teacher, pairs, top, products)
    rounded = [F.normalize(x.float(), dim=-1).to(types[0]).float() for x in (student, teacher)]
    wanted, by_unit = run(*rounded, pairs, top, True, eps=None)
    torch.testing.assert_close(found[0], wanted, rtol=1e-4, atol=1e-5)
    assert found[1].dtype == types[0]
    leaf = student.detach().float().requires_grad_()
    (by_student,) = torch.autograd.grad(F.normalize(leaf, dim=-1), leaf, by_unit)
    rounding = 1e-2 if types[0] == torch.bfloat16 else 1e-5
    assert (found[1].float() - by_student).norm() <= rounding * by_student.norm()


@pytest.mark.parametrize("products", [False, True])
def test_the_number_of_threads_does_not_change_a_bit(products):
    case = features(3, 4, 37, 50, 0), features(2, 4, 41, 50, 1), [0, 1, 1, 1, 2, 1, 0, 0], 13
    expect_the_same_bits_of_any_threads(lambda: run(*case, products))


@pytest.mark.parametrize("products", [False, True])
def test_of_equals_the_first_count_and_match(products):
    student, teacher = torch.ones(1, 1, 5, 4), torch.ones(1, 1, 7, 4)
    teacher[..., 0] += torch.tensor([0.0, 0, 1, 1, 0, 0, 0])[:, None].T  # two that are farther
    loss, grad = run(student, teacher, [0, 0], 3, products)
    assert loss == pytest.approx(-1, abs=1e-6)
    assert (grad[0, 0].abs().amax(-1) < 1e-6).all()  # matched by what points as they do
    loss, grad = run(student, -teacher, [0, 0], 3, products, eps=None)
    # forth: the first three rows, each to the first of the far less negative; back: to row 0
    assert (grad[0, 0, 3:] == 0).all()
    assert grad[0, 0, 0].norm() > grad[0, 0, 1].norm() == grad[0, 0, 2].norm() > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("products", [False, True])
def test_a_bad_value_is_not_lost(products, bad):
    student, teacher = features(1, 2, 9, 8, 0).clone(), features(1, 2, 9, 8, 1)
    student[0, 0, 3, 2] = bad
    loss, grad = run(student, teacher, [0, 0], 4, products)
    assert loss.isnan()
    assert grad[0, 1].isfinite().all()  # another image
    assert grad[0, 0, 3].isnan().any()


@given(
    st.integers(1, 3), ROWS, st.one_of(st.integers(1, 40), st.integers(505, 530)),
    st.integers(0, 999), st.booleans(), st.integers(1, 2), st.integers(0, 2),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_fuzz_the_highest_of_rows_and_columns(matrices, rows, columns, seed, bad, side, place):
    generator = torch.Generator().manual_seed(seed)
    s = torch.randint(-9, 9, (matrices, rows, columns), generator=generator).float()
    if bad:
        flat = s.view(-1)
        for value in (math.nan, math.inf, -math.inf):
            flat[torch.randint(len(flat), (3,), generator=generator)] = value
    apart = side + 1  # a place between them that is not written
    places = [place + i // side * apart + i % side for i in range(matrices)]
    high = [torch.full((places[-1] + 2, n), -math.inf) for n in (rows, columns)]
    at = [torch.zeros(len(high[0]), n).int() for n in (rows, columns)]
    native_similarities.prepared_best(tuple(s.shape), place, side, apart)(s, *high, *at)
    for found, where, axis in zip(high, at, (2, 1), strict=True):
        wanted, first = s.max(axis)
        torch.testing.assert_close(found[places], wanted, rtol=0, atol=0, equal_nan=True)
        assert (where[places] == first).logical_or(wanted == -math.inf).all()
        others = [i for i in range(len(found)) if i not in places]
        assert (found[others] == -math.inf).all()


@given(st.lists(st.sampled_from([-3.0, -0.0, 0.0, 1.0, 2.5, math.inf]), min_size=1, max_size=40),
       st.data())  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_fuzz_as_many_matches_count_as_shall(values, data):
    """Rows along one axis, whose similarities are these numbers; one row of the teacher."""
    student = torch.tensor(values)[None, None, :, None].clamp(max=9)
    teacher = torch.ones(1, 1, data.draw(st.integers(1, len(values))), 1)
    top = data.draw(st.integers(1, teacher.shape[2]))
    loss, grad = run(student, teacher, [0, 0], top, False, eps=None)
    forth = student.flatten().topk(top).values.sum()
    back = student.max() * top
    assert loss.item() == pytest.approx(-0.5 * (forth + back).item() / top, rel=1e-6)
    assert (grad != 0).sum() <= top + 1
    assert grad.sum().item() == pytest.approx(-1.0, rel=1e-6)


def test_matches_of_a_teacher_that_is_a_view_of_a_larger_tensor():
    """Its images are farther apart than their rows; its sign may be turned by the view."""
    student = F.normalize(features(1, 3, 6, 20, 5), dim=-1).requires_grad_()
    teacher = F.normalize(features(1, 3, 9, 20, 6), dim=-1)[:, :, 2:7]
    assert teacher.stride(1) != 5 * teacher.stride(2)

    def matched(teacher):
        found = []
        with backend.force("native"):
            for loss in (
                kernel.correspondence_loss(student, teacher, (0, 0), 3),
                correspondence_loss(student[0], teacher[0], top=3),
            ):
                found += [loss.detach(), torch.autograd.grad(loss, student)[0]]
        return found

    expected = matched(teacher.contiguous())
    for other in (teacher, torch._neg_view(-teacher), teacher.mT.contiguous().mT):
        for ours, wanted in zip(matched(other), expected, strict=True):
            torch.testing.assert_close(ours, wanted)


def test_later_calls_are_prepared_and_autocast_does_not_reach_into_them():
    student, teacher = (features(2, 3, 150, 45, seed) for seed in (0, 1))  # by products
    options = {"top": 70, "pairs": [(0, 1), (1, 0)]}
    expected = [correspondence_loss(student, teacher, **options) for _ in range(2)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = correspondence_loss(student, teacher, **options)
    assert torch.equal(found, expected[0])
    assert torch.equal(expected[1], expected[0])


def test_later_calls_have_second_derivatives_too():
    student, teacher = features(2, 3, 9, 12, 0).contiguous(), features(2, 3, 9, 12, 1)
    leaf = student.requires_grad_()
    found = []
    for pairs in (None, [(0, 0), (1, 1)]):
        for _ in range(2):
            loss = correspondence_loss(leaf, teacher, top=4, pairs=pairs)
            (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
            (plain,) = torch.autograd.grad(
                correspondence_loss(leaf, teacher, top=4, pairs=pairs), leaf
            )
            torch.testing.assert_close(first, plain)
            found.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def case_in_c():
    student, teacher = features(2, 3, 9, 12, 0).contiguous(), features(2, 3, 9, 12, 1)
    return student.requires_grad_(), teacher, {"top": 4, "pairs": [(0, 1), (1, 0)]}


def test_a_teacher_may_be_of_inference_mode_and_written_to_before_the_backward():
    student, teacher, options = case_in_c()
    (wanted,) = torch.autograd.grad(correspondence_loss(student, teacher, **options), student)
    with torch.inference_mode():
        inferred = teacher.clone()
    for _ in range(2):  # prepared and as a first call
        (found,) = torch.autograd.grad(correspondence_loss(student, inferred, **options), student)
        assert torch.equal(found, wanted)
    buffer = teacher.clone()
    loss = correspondence_loss(student, buffer, **options)
    again = correspondence_loss(student, buffer, **options)
    buffer.zero_()
    assert torch.equal(torch.autograd.grad(loss, student)[0], wanted)
    with pytest.raises(RuntimeError, match="the teacher was changed in place"):
        torch.autograd.grad(again, student, create_graph=True)


@pytest.mark.parametrize("graph", [False, True])
def test_hooks_are_called_once(graph):
    student, teacher, options = case_in_c()
    (plain,) = torch.autograd.grad(correspondence_loss(student, teacher, **options), student)
    calls = []
    student.register_hook(lambda grad: calls.append(1) or 2 * grad)
    loss = correspondence_loss(student, teacher, **options)
    (found,) = torch.autograd.grad(loss, student, create_graph=graph)
    torch.testing.assert_close(found, 2 * plain)
    assert len(calls) == 1
