"""The C kernel of DINO's and iBOT's loss: any shape, logits or build; and its powers of two."""

import ctypes
import math
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastequi import functional
from fastequi.kernels import backend, linear_dino, native, native_dino, toolchain
from fastequi.kernels.dino import DINOTarget, dino_loss, dino_loss_ref, own_pairs, pairs_of
from tests.support.dino import storing
from tests.support.native import NEEDS_C, expect_the_same_bits_of_any_threads, instruction_set

pytestmark = NEEDS_C

POWERS = """
#include "exponentials.h"
void EXPORT(powers)(const float *x, float *out, int64_t n) {
  for (int64_t i = 0; i < n; i += LANES) AT(vf, out + i) = exp2_of(AT(vf, x + i));
}
void EXPORT(scaled)(const float *x, float *out, int64_t n) { /* as of a temperature of 0.04 */
  const float scale = 25 * LOG2E;
  for (int64_t i = 0; i < n; i += LANES) AT(vf, out + i) = exp2_below_128(AT(vf, x + i), scale);
}
void EXPORT(halves)(const float *x, float *out, int64_t n) {
  uint16_t to[2 * LANES];
  for (int64_t i = 0; i < n; i += LANES) {
    put_nearest_halves(to, splat(0.0f), AT(vf, x + i), 0);
    AT(vf, out + i) = load(to, LANES, BFLOAT16);
  }
}
void EXPORT(logarithms)(const float *x, float *out, int64_t n) {
  for (int64_t i = 0; i < n; i += LANES) AT(vf, out + i) = log2_of(AT(vf, x + i));
}
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """exponentials.h, compiled for every instruction set that runs here."""
    folder = tmp_path_factory.mktemp("powers")
    (folder / "powers.c").write_text(POWERS)
    order = list(toolchain.instruction_sets())
    found = {}
    for isa in order[: order.index(native.load()[2]) + 1]:
        out = folder / f"{isa}.so"
        command = [
            *toolchain.compiling(toolchain.compiler(), isa),
            "-shared",
            f"-I{toolchain.HERE}",
        ]
        subprocess.run([*command, str(folder / "powers.c"), "-o", str(out), "-lm"], check=True)
        found[isa] = ctypes.CDLL(str(out))
    return found


def of_arrays(libraries, name):
    """{isa: a function of float32 arrays}."""

    def of(function):
        def call(x):
            padded = np.zeros(-(-len(x) // 16) * 16, np.float32)
            padded[: len(x)] = x
            result = np.empty_like(padded)
            pointers = (a.ctypes.data_as(ctypes.c_void_p) for a in (padded, result))
            function(*pointers, ctypes.c_int64(len(padded)))
            return result[: len(x)]

        return call

    return {isa: of(getattr(library, f"{name}_{isa}")) for isa, library in libraries.items()}


@pytest.fixture(scope="module")
def powers(libraries):
    return of_arrays(libraries, "powers")


def test_powers_of_two_are_within_two_units_in_the_last_place(powers):
    generator = np.random.default_rng(0)
    whole = np.arange(-125, 128, dtype=np.float64)
    near = [np.nextafter(whole.astype(np.float32), np.float32(side)) for side in (-1e9, 1e9)]
    halves = (whole + 0.5).astype(np.float32)
    random = (whole[:, None] + generator.random((len(whole), 4000))).ravel()
    tiny = np.float32(2.0) ** np.arange(-149, 1)
    x = np.concatenate([whole, *near, halves, random, tiny, -tiny, [0.0, -0.0]]).astype(np.float32)
    x = x[(x > -124.9) & (x < 128)]
    exact = np.exp2(x.astype(np.float64))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    for isa, call in powers.items():
        error = np.abs(call(x).astype(np.float64) - exact) / unit
        assert error.max() <= 2, (isa, x[error.argmax()])


@pytest.mark.skipif(bool(toolchain.extra_flags()), reason="flags may leave products unfused")
def test_powers_of_scaled_numbers_do_not_round_the_product(libraries):
    scale = np.float32(25) * np.float32(1.44269504088896341)
    generator = np.random.default_rng(0)
    x = generator.uniform(-124.9, 127.9, 500_000).astype(np.float32) / scale
    exact = np.exp2(x.astype(np.float64) * np.float64(scale))
    unit = np.spacing(exact.astype(np.float32)).astype(np.float64)
    for isa, call in of_arrays(libraries, "scaled").items():
        error = np.abs(call(x).astype(np.float64) - exact) / unit
        assert error.max() <= 2, (isa, x[error.argmax()])


def test_powers_of_two_outside_the_range(powers):
    given = np.float32([-126.0, -126.5, -3e38, -np.inf, 128, 200, 3e38, np.inf, np.nan])
    between = np.linspace(-126.1, -124.9, 1000).astype(np.float32)
    for call in powers.values():
        low, high = call(given)[:4], call(given)[4:8]
        assert (low == 0).all()
        assert np.isposinf(high).all()
        assert np.isnan(call(given)[8])
        assert (call(between) >= 0).all()
        assert (call(between) <= np.exp2(between) * (1 + 2.0**-22)).all()


def test_numbers_become_the_nearest_bfloat16(libraries):
    generator = np.random.default_rng(0)
    size = 2.0 ** generator.uniform(-120, 120, 100_000) * generator.choice([-1, 1], 100_000)
    middle = (np.arange(128, 256) + 0.5) / 128  # between two
    x = np.concatenate([size, middle, -middle, [0.0, -0.0, np.inf, -np.inf]]).astype(np.float32)
    even = torch.from_numpy(x).bfloat16().float().numpy()
    for isa, call in of_arrays(libraries, "halves").items():
        found = call(x)
        assert np.array_equal(found[: len(size)], even[: len(size)]), isa
        assert np.array_equal(np.signbit(found), np.signbit(x)), isa
        assert np.array_equal(found[-4:], even[-4:]), isa
        above = found[len(size) : len(size) + len(middle)]
        assert np.array_equal(above, middle + 0.5 / 128), isa
        assert np.array_equal(found[len(size) + len(middle) : -4], -above), isa


def test_logarithms_are_within_two_units_or_a_rounding_of_one(libraries):
    generator = np.random.default_rng(0)
    size = 2.0 ** generator.uniform(-125, 127, 400_000)
    near = 1 + generator.uniform(-1, 1, 400_000) * 2.0 ** generator.uniform(-24, -1, 400_000)
    whole = 2.0 ** np.arange(-126, 128)
    x = np.concatenate([size, near, whole, whole * (1 + 2.0**-23)]).astype(np.float32)
    exact = np.log2(x.astype(np.float64))
    allowed = np.maximum(2 * np.spacing(np.abs(exact).astype(np.float32)), 2.0**-23)
    for isa, call in of_arrays(libraries, "logarithms").items():
        error = np.abs(call(x).astype(np.float64) - exact)
        assert (error <= allowed).all(), (isa, x[(error / allowed).argmax()])
        odd = call(np.float32([0, np.inf, np.nan, 1]))
        assert np.isneginf(odd[0])
        assert np.isposinf(odd[1])
        assert np.isnan(odd[2])
        assert odd[3] == 0


@st.composite
def problems(draw):
    """Random logits, pairs, weights and numbers of rows and columns."""
    batch, views, teachers = (draw(st.integers(1, n)) for n in (4, 5, 3))
    columns = draw(st.one_of(st.integers(1, 40), st.integers(500, 530), st.just(1500)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    kinds = st.sampled_from([torch.float32, torch.bfloat16])
    spread = draw(st.sampled_from([0.1, 1.0, 30.0]))

    def logits(rows):
        wide = torch.randn(rows, columns + 3, generator=generator) * spread
        wide = wide.to(draw(kinds))
        return wide[:, :columns] if draw(st.booleans()) else wide[:, :columns].contiguous()

    if draw(st.booleans()):
        student, teacher = logits(views * batch), logits(teachers * batch)
        pairs = pairs_of(views, teachers, batch, student.device)
    else:
        student, teacher = logits(views), logits(views)
        pairs = own_pairs(views, student.device)
    weight = torch.rand(len(student), generator=generator)
    weight[torch.rand(len(student), generator=generator) < 0.2] = 0
    temps = draw(st.floats(0.05, 1)), draw(st.floats(0.04, 1))
    column = torch.randn(columns, generator=generator) if draw(st.booleans()) else None
    row = None
    if draw(st.booleans()):
        y = teacher.float() if column is None else teacher.float() - column
        row = temps[1] * torch.logsumexp(y / temps[1], -1)
    return student, teacher, DINOTarget(pairs, weight, row, column, *temps)


def exact(student, teacher, target):
    """Loss and gradient of the reference in float64."""
    wide = target._replace(
        weight=target.weight.double(),
        row=None if target.row is None else target.row.double(),
        column=None if target.column is None else target.column.double(),
    )
    x = student.double().requires_grad_()
    loss = dino_loss_ref(x, teacher.double(), wide)
    return loss.detach(), torch.autograd.grad(loss, x)[0]


def ours(student, teacher, target, **options):
    x = student.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with backend.force("native"):
        loss = dino_loss(x, teacher, target, **options)
        loss.backward()
    return loss.detach(), x.grad


@settings(max_examples=200, deadline=None)
@given(problems(), st.booleans())
def test_fuzz_equals_the_reference_in_float64(problem, in_order):
    student, teacher, target = problem
    with pytest.MonkeyPatch.context() as patched:
        if in_order:  # of teachers, as many logits are
            patched.setattr(native_dino, "_SHARED", 0)
        loss, grad = ours(*problem)
    wanted, slope = exact(*problem)
    size = float((target.weight * (target.pairs >= 0).sum(1)).sum())
    spread = 10 + float(student.float().abs().max()) / target.student_temp
    other = 10 + float(teacher.float().abs().max()) / target.teacher_temp
    assert abs(loss - wanted) <= 2e-7 * size * spread * other  # exponents are of float32
    assert grad.dtype == student.dtype
    bound = 2**-8 if grad.dtype == torch.bfloat16 else 1e-6 * (spread + other)
    most = float(target.weight.max()) * max(target.pairs.shape[1], 1) / target.student_temp
    assert (grad.double() - slope).abs().max() <= bound * most
    assert (grad[target.weight == 0] == 0).all()


def plain(rows=12, columns=700, dtype=torch.float32):
    torch.manual_seed(0)
    student, teacher = torch.randn(rows, columns).to(dtype), torch.randn(6, columns).to(dtype)
    pairs = pairs_of(4, 2, 3, student.device)
    return (
        student,
        teacher,
        DINOTarget(pairs, torch.rand(rows), None, torch.randn(columns), 0.1, 0.05),
    )


def test_the_kernel_runs_and_is_not_the_pytorch_path(monkeypatch):
    from fastequi.kernels import dino

    def never(*_):
        raise AssertionError("the PyTorch path ran")

    monkeypatch.setattr(dino, "_in_chunks", never)
    ours(*plain())
    problem = plain()
    with pytest.raises(AssertionError, match="the PyTorch path ran"):
        ours(problem[0].half(), *problem[1:])  # a type that the kernel does not know


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_does_not_change_a_bit(dtype):
    expect_the_same_bits_of_any_threads(lambda: ours(*plain(dtype=dtype)))


@pytest.mark.parametrize("views", [2, 3, 11, 40])
@pytest.mark.parametrize("teachers", [2, 3])
def test_sums_of_teachers_that_grow_are_those_made_anew(views, teachers, monkeypatch):
    """In order of their teachers, whoever takes which rows."""
    torch.manual_seed(0)
    student, teacher = torch.randn(views * 4, 700), torch.randn(teachers * 4, 700)
    pairs = pairs_of(views, teachers, 4, student.device)
    column = torch.randn(700)
    problem = student, teacher, DINOTarget(pairs, torch.rand(views * 4), None, column, 0.1, 0.04)
    unordered = ours(*problem)
    monkeypatch.setattr(native_dino, "_SHARED", 0)
    expect_the_same_bits_of_any_threads(lambda: ours(*problem))
    for found, wanted in zip(ours(*problem), unordered, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    wanted, slope = exact(*problem)
    torch.testing.assert_close(ours(*problem)[0].double(), wanted, rtol=2e-6, atol=0)
    torch.testing.assert_close(ours(*problem)[1].double(), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("teachers", [1, 2])
def test_rows_of_little_weight_change_no_bit_of_others(teachers, monkeypatch):
    """Whose teachers' sum is rescaled; whoever takes the rows behind them."""
    torch.manual_seed(0)
    student, teacher = torch.randn(8 * 4, 700), torch.randn(teachers * 4, 700)
    pairs = pairs_of(8, teachers, 4, student.device)
    weight = torch.where(torch.rand(8 * 4) < 0.4, 1e-20, torch.rand(8 * 4))
    problem = student, teacher, DINOTarget(pairs, weight, None, None, 0.1, 0.04)
    monkeypatch.setattr(native_dino, "_SHARED", 0)
    expect_the_same_bits_of_any_threads(lambda: ours(*problem))
    little = weight < 1e-10
    weight[little] = 0.5
    whole = ours(*problem)[1][~little]
    weight[little] = 1e-20
    assert torch.equal(ours(*problem)[1][~little], whole)


@pytest.mark.parametrize("large", [1e12, 1e15, 1e16, 1e30, -1e30])
@pytest.mark.parametrize("views", [2, 4])
def test_large_teachers_are_even_where_several_sums_take_them(large, views, monkeypatch):
    """Ten maxima alike, or a whole row: the logarithm of their number is far below their digits."""
    torch.manual_seed(0)
    student, teacher = torch.randn(views * 4, 600), torch.zeros(2 * 4, 600)
    teacher[:, : 10 if large > 0 else 600] = large
    pairs = pairs_of(views, 2, 4, student.device)
    problem = student, teacher, DINOTarget(pairs, torch.ones(views * 4), None, None, 0.1, 0.04)
    wanted, slope = exact(*problem)
    monkeypatch.setattr(native_dino, "_SHARED", 0)
    loss, grad = ours(*problem)
    torch.testing.assert_close(loss.double(), wanted, rtol=2e-6, atol=0)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("columns", [15, 520, 1500, 3000])
@pytest.mark.parametrize("first", [-math.inf, -1e9, -300.0, 0.0])
def test_rows_whose_largest_logit_comes_late(columns, first):
    """A log-sum-exp begins a part again where its powers would grow too large."""
    torch.manual_seed(0)
    student, teacher = torch.randn(6, columns), torch.randn(6, columns)
    rising = torch.linspace(0, 200, columns) + torch.randn(columns)
    student[0], teacher[1] = rising, rising
    student[2, : columns - 3] = teacher[3, : columns - 3] = first
    target = DINOTarget(own_pairs(6, student.device), torch.ones(6), None, None, 0.1, 0.04)
    loss, grad = ours(student, teacher, target)
    wanted, slope = exact(student, teacher, target)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-3, atol=1e-5)


def test_gradients_in_bfloat16_are_the_nearest():
    student, teacher, target = plain(columns=1536, dtype=torch.bfloat16)
    student, teacher = 0.1 * student, 0.1 * teacher
    grad = ours(student, teacher, target)[1]
    slope = exact(student, teacher, target)[1]
    unit = torch.from_numpy(np.spacing(slope.abs().float().numpy())).double() * 2**16
    large = slope.abs() > 1e-3 * slope.abs().max()  # others are differences of nearly equal ones
    assert large.sum() > 1000
    assert ((grad.double() - slope).abs() / unit)[large].max() < 0.51


@pytest.mark.parametrize("teachers", [1, 2])
@pytest.mark.parametrize("weight", [1e-11, 1e-13, 1e-20, 1e-30])
def test_rows_of_little_weight_keep_their_digits(weight, teachers):
    """Powers are less the row's beginning, here 2^-60 of what they sum to: the share that each is
    multiplied by, times such a weight, is below the least float32 long before the gradient is."""
    torch.manual_seed(0)
    views, batch = teachers + 1, 3
    student, teacher = torch.randn(views * batch, 900), torch.randn(teachers * batch, 900)
    student[:, 700] += 60 * math.log(2) * 0.1
    teacher[:, 701] += 60 * math.log(2) * 0.04
    pairs = pairs_of(views, teachers, batch, student.device)
    weights = torch.full((views * batch,), weight)
    target = DINOTarget(pairs, weights, None, None, 0.1, 0.04)
    loss, grad = ours(student, teacher, target)
    wanted, slope = exact(student, teacher, target)
    torch.testing.assert_close(loss.double(), wanted, rtol=2e-5, atol=0)
    torch.testing.assert_close(grad.double() / weight, slope / weight, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("first", [-math.inf, -1e9, torch.finfo(torch.float32).min])
def test_a_gradient_in_the_place_of_rows_that_are_read_twice(first):
    """Where classes are masked out, or the largest logit comes late, products are summed apart."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 6, 1500)
    student[2, :700] = student[4, 700:] = teacher[2, :700] = teacher[4, 700:] = first
    target = DINOTarget(own_pairs(6, student.device), torch.ones(6), None, None, 0.1, 0.04)
    loss, grad = ours(student, teacher, target)
    x = student.clone().requires_grad_()
    with backend.force("native"):
        found = dino_loss(x, teacher, target, inplace=True)
        (slope,) = torch.autograd.grad(found, x)
    assert slope.data_ptr() == x.data_ptr()
    assert torch.equal(found, loss)
    assert torch.equal(slope, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [40, 512, 700, 1029])
def test_gradients_written_past_the_caches_are_the_same_bits(dtype, columns, monkeypatch):
    """Rows that begin at a whole vector and rows that do not; a gradient in the student's place."""
    problem = plain(columns=columns, dtype=dtype)
    loss, grad = ours(*problem)
    monkeypatch.setattr(native, "STREAM_BYTES", 0)
    for found in (ours(*problem), ours(*problem)):
        assert torch.equal(found[0], loss)
        assert torch.equal(found[1], grad)


def test_threads_do_not_share_what_they_work_on():
    rows = torch.randn(300, 700), torch.randn(300, 700)  # each meets a teacher of its own
    target = DINOTarget(own_pairs(300, rows[0].device), torch.ones(300), None, None, 0.1, 0.05)
    expect_the_same_bits_of_any_threads(lambda: ours(*rows, target))


def test_any_strides():
    student, teacher, target = plain()
    loss, grad = ours(student, teacher, target)
    turned = student.T.contiguous().T, teacher.T.contiguous().T
    spread = [torch.stack([t, t], -1)[..., 0] for t in target[1:4] if t is not None]
    other = target._replace(weight=spread[0], column=spread[1])
    found, slope = ours(*turned, other)
    assert torch.equal(found, loss)
    assert torch.equal(slope, grad)
    row = 0.05 * torch.logsumexp((teacher - target.column) / 0.05, 1)
    one = ours(student, teacher, target._replace(row=row))
    two = ours(student, teacher, target._replace(row=torch.stack([row, row], -1)[:, 0]))
    assert torch.equal(one[0], two[0])


@pytest.mark.parametrize("offset", [0, 20, 200, 1000])
def test_what_all_logits_have_in_common_is_not_lost(offset):
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 4096) + offset, torch.randn(8, 4096) + offset
    target = DINOTarget(own_pairs(8, student.device), torch.ones(8), None, None, 0.1, 0.04)
    loss, _ = ours(student, teacher, target)
    wanted, _ = exact(student, teacher, target)
    assert abs(loss - wanted) <= (2e-6 + 2e-7 * offset) * wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("common", [-1e9, 1e6, 1e9, 1e30])
def test_rows_of_one_large_number_are_even(common, dtype):
    """All classes alike, whatever is left of the logarithm of how many there are."""
    student, teacher = torch.randn(6, 700).to(dtype), torch.randn(6, 700).to(dtype)
    student[2] = common
    teacher[3] = common
    target = DINOTarget(own_pairs(6, student.device), torch.ones(6), None, None, 0.1, 0.04)
    loss, grad = ours(student, teacher, target)
    wanted, slope = exact(student, teacher, target)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("mask", [torch.finfo(torch.float32).min, -1e38, -1e33, -math.inf])
@pytest.mark.parametrize("name", ["native", "torch"])
def test_classes_masked_out_add_nothing(mask, name):
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 600), torch.randn(4, 600)
    target = DINOTarget(own_pairs(4, student.device), torch.ones(4), None, None, 0.1, 0.04)
    wanted, slope = exact(student[:, :300], teacher[:, :300], target)
    student[:, 300:] = teacher[:, 300:] = mask
    x = student.requires_grad_()
    with backend.force(name):
        loss = dino_loss(x, teacher, target)
        loss.backward()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(x.grad[:, :300].double(), slope, rtol=1e-4, atol=1e-5)
    assert (x.grad[:, 300:].abs() < 1e-30).all()


@pytest.mark.parametrize("name", ["native", "torch"])
@pytest.mark.parametrize("teachers", [1, 2])
def test_a_row_that_meets_no_teacher_is_not_read(name, teachers):
    """And a bad row of the teacher makes those alone bad that meet it."""
    pairs = pairs_of(3, teachers, 5, torch.device("cpu"))
    student, teacher = torch.randn(15, 600), torch.randn(5 * teachers, 600)
    target = DINOTarget(pairs, torch.ones(15), None, None, 0.1, 0.04)
    teacher[0, 3] = math.nan
    for loss_of in (lambda x: dino_loss(x, teacher, target), dino_loss_ref):
        x = student.clone().requires_grad_()
        with backend.force(name):
            args = () if loss_of is not dino_loss_ref else (teacher, target)
            loss_of(x, *args).backward()
        meets = (pairs == 0).any(1)
        assert torch.equal(x.grad.isnan().any(1), meets)
    if teachers == 1:
        student[:5] = math.nan  # view 0 is the teacher's own
        teacher[0, 3] = 0
        x = student.clone().requires_grad_()
        with backend.force(name):
            loss = dino_loss(x, teacher, target)
            loss.backward()
        assert loss.isfinite()
        assert (x.grad[:5] == 0).all()


def test_the_gradient_over_the_logits_is_the_same():
    student, teacher, target = plain()
    _, wanted = ours(student, teacher, target)
    x = student.clone().requires_grad_()
    with backend.force("native"):
        loss = dino_loss(x, teacher, target, inplace=True)
        (grad,) = torch.autograd.grad(loss, x)
    assert torch.equal(grad, wanted)
    assert grad.data_ptr() == x.data_ptr()


def test_without_a_gradient_nothing_is_written():
    student, teacher, target = plain()
    before = student.clone()
    with backend.force("native"), torch.no_grad():
        loss = dino_loss(student, teacher, target)
    assert loss == ours(student, teacher, target)[0]
    assert torch.equal(student, before)


@pytest.mark.parametrize("columns", [1, 15, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_written_outside_the_gradient(columns, dtype):
    student, teacher, target = plain(columns=columns, dtype=dtype)
    buffer = torch.full((12 + 2, columns + 40), 7.0, dtype=dtype)
    out, loss = buffer[1:13, 20 : 20 + columns], torch.empty(12)
    native_dino.dino(student, teacher, target._replace(row=None), loss, out)
    assert torch.equal(out, ours(student, teacher, target)[1])
    buffer[1:13, 20 : 20 + columns] = 7
    assert (buffer == 7).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_logit_makes_its_row_nan_and_no_other(bad):
    student, teacher, target = plain()
    student[4, 699] = bad
    loss, grad = ours(student, teacher, target)
    assert loss.isnan()
    rows = grad.isnan().any(1)
    assert rows.tolist() == [r == 4 for r in range(12)]
    target.weight[4] = 0  # not read
    loss, grad = ours(student, teacher, target)
    assert loss.isfinite()
    assert grad.isfinite().all()


@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
def test_every_instruction_set_agrees(isa, monkeypatch):
    problem = plain(columns=133)
    with instruction_set(isa, monkeypatch):
        loss, grad = ours(*problem)
    wanted, slope = exact(*problem)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(grad.double(), slope, rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("temp", [0.0013, 0.0004])
def test_low_temperatures_divide_by_the_whole_sum(temp, chunked, monkeypatch):
    """A sum's logarithm of some thousands is rounded by a part of 1e-4, the quotient is not."""
    torch.manual_seed(0)
    student = torch.randn(1, 6, 40)
    teacher = torch.randn(2, 6, 40)
    teacher[..., 3] = 4.7
    found = []
    for name, dtype in (("native", torch.float32), ("torch", torch.float64)):
        leaf = torch.cat([student, student]).to(dtype).requires_grad_()
        given = leaf, teacher.to(dtype)
        layers = {}
        if chunked:
            eye = torch.eye(40, dtype=dtype)
            layers = {"prototypes": eye, "teacher_prototypes": eye}
            narrow = lambda count, *sizes: (slice(i, i + 16) for i in range(0, count, 16))  # noqa: E731
            monkeypatch.setattr(linear_dino, "chunks_of", narrow)
            storing(monkeypatch, 0)
        with backend.force(name):
            loss = functional.dino_loss(*given, **layers, student_temp=0.1, teacher_temp=temp)
        found.append((loss.item(), torch.autograd.grad(loss, leaf)[0].double()))
    (ours, grad), (exact, wanted) = found
    assert ours == pytest.approx(exact, rel=3e-6)
    torch.testing.assert_close(grad, wanted, rtol=2e-5, atol=2e-6 * wanted.abs().max().item())


def test_numbers_below_the_least_normal_one_are_nobody_elses_loss():
    """The C kernels take them as 0 while they run; afterwards every thread counts them again."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 8, 4096, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 8, 4096, generator=generator)
    tiny = torch.full((1 << 20,), 1e-40)
    for targets in ("softmax", "sinkhorn"):
        with backend.force("native"):
            functional.dino_loss(student, teacher, targets=targets).backward()
        assert torch.equal(tiny * 1.0, tiny)
        assert (tiny * 1.0).min() > 0
