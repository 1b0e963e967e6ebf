"""The C kernels of NT-Xent and KoLeo: any shape, panel, temperature or build."""

import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastequi.functional import koleo_loss, nt_xent_loss
from fastequi.kernels import backend, native_similarities, native_unit_rows, nt_xent, toolchain
from fastequi.kernels.koleo import nearest, nearest_ref
from fastequi.kernels.prepared import Calls
from tests.support.native import NEEDS_C, expect_the_same_bits_of_any_threads, instruction_set

pytestmark = NEEDS_C

ROWS = st.one_of(st.integers(1, 6), st.integers(30, 36), st.integers(60, 70))


@pytest.fixture
def native():
    with backend.force("native"):
        yield


@st.composite
def views(draw, least=1, narrowest=1):
    """Two views' embeddings, of any strides."""
    n, width = max(draw(ROWS), least), draw(st.integers(narrowest, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    first = torch.randn(n, width + 1, generator=generator)
    both = (
        first,
        first
        + draw(st.sampled_from([0.0, 0.3, 3])) * torch.randn(n, width + 1, generator=generator),
    )
    both = [z[:, :-1].to(draw(st.sampled_from([torch.float32, torch.bfloat16]))) for z in both]
    if draw(st.booleans()):
        both[0][draw(st.integers(0, n - 1))] = 0
    if draw(st.booleans()):
        both[1] = both[1].T.contiguous().T
    return both


@contextmanager
def in_c(panel):
    """With panels of so many similarities, or, of 0, all of few rows in one call."""
    with pytest.MonkeyPatch.context() as patch, backend.force("native"):
        for name in ("nt_xent", "koleo"):  # what is known of signatures is of one way
            patch.setattr(f"fastequi.functional.{name}._CALLS", Calls())
        if panel:
            patch.setattr(native_similarities, "_FEW", 0)
            patch.setattr(native_similarities, "PANEL", panel)
            patch.setattr(native_similarities, "SIDE", math.isqrt(panel))
        yield


def leaves(tensors, dtype=None):
    return [z.detach().to(dtype or z.dtype).requires_grad_() for z in tensors]


@settings(max_examples=150, deadline=None)
@given(
    views(),
    st.sampled_from([0.01, 0.0241, 0.0243, 0.1, 0.5, 3.0]),
    st.sampled_from([0, 1, 100, 1000, 1 << 18]),
)
def test_fuzz_nt_xent_equals_the_reference(both, temp, panel):
    """In float64, or of rows of bfloat16, which the reference rounds as well."""
    both[1] = both[1].to(both[0].dtype)
    half = both[0].dtype == torch.bfloat16
    ours, exact = leaves(both), leaves(both, None if half else torch.float64)
    with in_c(panel):
        loss = nt_xent_loss(*ours, temperature=temp)
        loss.backward()
    expected = nt_xent.nt_xent_loss_ref(*exact, temp)
    expected.backward()
    assert abs(loss.item() - expected.item()) <= 1e-5 * max(expected.item(), 1 / temp)
    for z, other in zip(ours, exact, strict=True):
        assert z.grad.dtype == z.dtype
        # of a row: sums of products of two numbers up to 1, over length and temperature
        size = 2 / (temp * len(z)) / z.detach().float().norm(dim=1, keepdim=True).clamp(min=1e-12)
        error = (z.grad.double() - other.grad.double()).abs() / size
        assert error.max() <= (1e-2 if half else 3e-6 / min(temp, 1)), error.max()


@settings(max_examples=150, deadline=None)
@given(views(least=2, narrowest=4), st.sampled_from([0, 1, 100, 1 << 18]))
def test_fuzz_koleo_equals_pytorch(both, panel):
    unit = F.normalize(both[0].detach().double(), dim=1)
    near = (unit @ unit.T).fill_diagonal_(-2).topk(2, 1).values
    # which row is the nearest does not hang on float32's rounding, nor is it the row itself
    assume((near[:, 0] - near[:, 1] > 1e-6).all())
    ours, theirs = leaves(both[:1]), leaves(both[:1])
    with in_c(panel):
        loss = koleo_loss(*ours)
    with backend.force("torch"):
        expected = koleo_loss(*theirs)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    size = theirs[0].grad.float().abs().max().clamp(min=1e-3)
    assert (ours[0].grad.float() - theirs[0].grad.float()).abs().max() <= 2e-2 * size


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 70), st.integers(0, 999), st.sampled_from([1, 64, 500]), st.integers(0, 40))
def test_fuzz_the_nearest_of_rows_that_meet_once(rows, seed, panel, first):
    # whole numbers: products are exact, and many are equal
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(-2, 3, (rows, 5), generator=generator).float()
    ids = torch.arange(rows)
    some = slice(min(first, rows - 1), None)
    with pytest.MonkeyPatch.context() as patch, backend.force("native"):
        patch.setattr(native_similarities, "PANEL", panel)
        patch.setattr(native_similarities, "SIDE", math.isqrt(panel))
        assert torch.equal(nearest(z, z, ids), nearest_ref(z, z, ids))
        assert torch.equal(nearest(z[some], z, ids[some]), nearest_ref(z[some], z, ids[some]))


@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
@pytest.mark.parametrize("panel", [0, 1 << 18])
def test_every_instruction_set_agrees(isa, panel, monkeypatch):
    z1, z2 = torch.randn(2, 70, 45, generator=torch.Generator().manual_seed(0)).unbind()

    def outcome():
        with in_c(panel):
            a, b = leaves([z1, z2])
            (nt_xent_loss(a, b) + nt_xent_loss(a, b, temperature=0.02) + koleo_loss(a)).backward()
            return a.grad, b.grad

    expected = outcome()
    with instruction_set(isa, monkeypatch):
        found = outcome()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_few_rows_the_number_of_threads_does_not_change_a_bit(dtype):
    z = torch.randn(2, 70, 45, generator=torch.Generator().manual_seed(0)).to(dtype)

    def call():
        with in_c(0):
            a, b = leaves(z)
            loss = nt_xent_loss(a, b) + koleo_loss(a)
            loss.backward()
            return loss.detach(), a.grad, b.grad

    assert native_similarities.few(140, 140, 45)
    expect_the_same_bits_of_any_threads(call)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_of_few_rows_a_bad_value_is_not_lost(bad):
    z = torch.randn(2, 9, 12)
    z[0, 4, 5] = bad
    with in_c(0):
        assert not nt_xent_loss(*z).isfinite()
        assert not koleo_loss(z[0]).isfinite()


def test_of_few_rows_one_view_alone_may_have_a_gradient():
    a, b = torch.randn(2, 9, 12)
    with in_c(0):
        both = leaves([a, b])
        nt_xent_loss(*both).backward()
        for i in range(2):
            one = [z.clone().requires_grad_(i == j) for j, z in enumerate((a, b))]
            for _ in range(2):  # known by its signature, too
                (found,) = torch.autograd.grad(nt_xent_loss(*one), one[i])
                assert torch.equal(found, both[i].grad)


def test_the_number_of_threads_does_not_change_a_bit(native, monkeypatch):
    """Of what is done in C; a library's products are given."""
    unit = F.normalize(torch.randn(140, 33, generator=torch.Generator().manual_seed(0)), dim=-1)
    given = unit @ unit.T
    unit, given = unit[:, :1].contiguous(), given.contiguous()

    def product(a, b, out):
        assert out.shape == given.shape
        return out.copy_(given)

    monkeypatch.setattr(native_similarities.torch, "mm", product)

    def call():
        z = unit[:70].clone(), unit[70:].clone()
        rows = native_unit_rows.unit_rows(z, 1e-12, True)
        return rows.unit, rows.inverse, nearest(unit, unit, torch.arange(140)), *logits()

    def logits():
        ids = torch.arange(140)
        return nt_xent.logits_op(unit, unit, ids, ids.roll(70), 0.1)

    expect_the_same_bits_of_any_threads(call)


@pytest.mark.parametrize("temp", [0.01, 0.2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_rows_make_the_loss_nan(native, temp, bad):
    z = torch.randn(20, 16)
    z[3, 5] = bad
    assert nt_xent_loss(z, torch.randn(20, 16), temperature=temp).isnan()
    assert koleo_loss(z).isnan()


def test_one_gradient_of_two(native):
    z1, z2 = torch.randn(2, 9, 12).unbind()
    one, (a, b) = leaves([z1])[0], leaves([z1, z2])
    nt_xent_loss(one, z2).backward()
    nt_xent_loss(a, b).backward()
    assert torch.equal(one.grad, a.grad)


def test_another_default_type_changes_nothing(native):
    z1, z2 = torch.randn(2, 40, 12).unbind()
    plain = [nt_xent_loss(z1, z2), koleo_loss(z1)]
    torch.set_default_dtype(torch.float64)
    try:
        other = [nt_xent_loss(z1, z2), koleo_loss(z1)]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_second_derivatives_are_refused(native):
    z = torch.randn(6, 8, requires_grad=True)
    for name, loss in (("nt_xent_loss", nt_xent_loss(z, z * 2)), ("koleo_loss", koleo_loss(z))):
        (grad,) = torch.autograd.grad(loss, z, create_graph=True)
        with pytest.raises(RuntimeError, match=f"{name}: its gradient is computed"):
            grad.sum().backward()


@pytest.mark.parametrize("name", ["nt_xent_loss", "koleo_loss", "ibot_loss"])
def test_one_graph_for_batches_of_any_size(name):
    """Chosen while the graph is made: nothing is forced here."""
    from fastequi.functional import ibot_loss

    loss = {
        "nt_xent_loss": nt_xent_loss,
        "koleo_loss": lambda a, _: koleo_loss(a),
        "ibot_loss": lambda a, b: ibot_loss(a, b, targets="sinkhorn"),
    }[name]
    torch._dynamo.reset()
    graphs = []

    def count(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=count)
    for rows in (6, 10, 14, 18):
        a, b = torch.randn(2, rows, 70).unbind()
        torch.testing.assert_close(compiled(a, b), loss(a, b))
    assert len(graphs) <= 2


def by_float64(loss, rows, **options):
    """Gradients of C in float32 and of PyTorch in float64."""
    found = []
    for name, dtype in (("native", torch.float32), ("torch", torch.float64)):
        given = [z.detach().to(dtype).requires_grad_() for z in rows]
        with backend.force(name):
            value = loss(*given, **options)
            found.append((value.item(), [g.double() for g in torch.autograd.grad(value, given)]))
    return found


def test_rows_shorter_than_eps_are_divided_by_it():
    """As F.normalize: their gradient is not projected, and NaN stays in its row's gradient."""
    torch.manual_seed(0)
    rows = [torch.randn(6, 9) for _ in range(2)]
    rows[0][2] *= 1e-14
    (ours, grads), (exact, wanted) = by_float64(nt_xent_loss, rows)
    assert ours == pytest.approx(exact, rel=1e-5)
    for grad, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-5)
    (ours, (grad,)), (exact, (other,)) = by_float64(koleo_loss, [rows[1] * 0.1], eps=0.5)
    assert ours == pytest.approx(exact, rel=1e-5)
    torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-5)
    rows[1][4, 3] = torch.nan
    with backend.force("native"):
        leaf = rows[1].clone().requires_grad_()
        nt_xent_loss(rows[0], leaf).backward()
    assert leaf.grad[4].isnan().all()


@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
def test_rows_that_coincide_have_gradients_that_cancel(isa, monkeypatch):
    """Each is the other's nearest: what one adds the other takes away, to the last bit."""
    torch.manual_seed(1)
    half = torch.randn(9, 33)
    z = torch.cat([half, half]).requires_grad_()
    with instruction_set(isa, monkeypatch), backend.force("native"):
        koleo_loss(z).backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_the_nearest_of_a_row_that_nothing_compares_with_is_another_one(native):
    """Row 0 of NaN: not itself, which has no distance to log."""
    z = torch.full((3, 4), torch.nan)
    found = nearest(z, z, torch.arange(3))
    assert (
        found.tolist() == nearest_ref(z, z, torch.arange(3)).tolist()
        or (found != torch.arange(3)).all()
    )


@pytest.mark.parametrize("temp", [0.0201, 0.0211, 0.0241, 0.0243, 0.03, 0.1])
def test_negatives_that_are_opposite_are_summed_exactly(temp):
    """exp(-2 / temp) is no normal number of float32 below .0242."""
    row = torch.tensor([[1.0, 0.0]])
    every = torch.cat([row, -row, -row, -row])
    places = torch.tensor([0]), torch.tensor([2])
    with backend.force("native"):
        negative, positive = nt_xent.logits_op(row, every, *places, temp)
    assert negative.item() == pytest.approx(math.log(2) - 1 / temp, abs=1e-4)
    assert positive.item() == pytest.approx(-1 / temp, rel=1e-6)


@pytest.mark.parametrize("temp", [0.03, 0.05])
def test_a_small_loss_is_not_rounded_to_nothing(temp):
    """log1p of a power of two: 1 and a small number would be 1."""
    rows = torch.tensor([[1.0, 0.0], [-0.3, 1.0]])
    (ours, grads), (exact, wanted) = by_float64(nt_xent_loss, [rows, rows], temperature=temp)
    assert 1e-20 < exact < 1e-9
    assert ours == pytest.approx(exact, rel=1e-3, abs=0)
    for grad, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


@pytest.mark.parametrize("temp", [1e-6, 1e-5, 1e-3])
def test_the_smallest_temperatures_give_finite_gradients(temp):
    torch.manual_seed(3)
    rows = [torch.randn(8, 16) for _ in range(2)]
    (ours, grads), (exact, wanted) = by_float64(nt_xent_loss, rows, temperature=temp)
    assert ours == pytest.approx(exact, rel=1e-5)
    for grad, other in zip(grads, wanted, strict=True):
        assert (grad - other).norm() <= 2e-2 * other.norm()
    with pytest.raises(
        ValueError, match="temperature: expected a finite number >= 1e-06, got 1e-07"
    ):
        nt_xent_loss(*rows, temperature=1e-7)


def test_views_of_two_types_are_compared_in_the_one_that_holds_both():
    torch.manual_seed(4)
    z1, z2 = (torch.randn(7, 12) for _ in range(2))
    for low, high in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float16, torch.float32),
    ):
        one, other = z1.clone().to(low), z2.clone().to(high)
        one.requires_grad_()
        other.requires_grad_()
        loss = nt_xent_loss(one, other)
        assert loss.dtype == (torch.float64 if high == torch.float64 else torch.float32)
        assert loss.item() == pytest.approx(nt_xent_loss(other, one).item(), rel=1e-6)
        same = nt_xent_loss(z1.to(low).to(high), z2.to(high))
        assert loss.item() == pytest.approx(same.item(), rel=1e-6)
        loss.backward()
        assert (one.grad.dtype, other.grad.dtype) == (low, high)
