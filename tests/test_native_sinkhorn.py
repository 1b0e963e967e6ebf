"""The C kernels of log-sum-exps and Sinkhorn-Knopp: any shape, logits or build."""

import ctypes
import math
from ctypes import c_float, c_int32, c_int64, c_void_p

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastequi import functional
from fastequi.kernels import backend, native, native_sinkhorn, toolchain
from fastequi.kernels.sinkhorn import column_lse, row_lse, sinkhorn
from tests.support.native import NEEDS_C, expect_the_same_bits_of_any_threads, instruction_set

pytestmark = NEEDS_C


@st.composite
def problems(draw):
    """Random logits, a temperature, and weights or None."""
    rows = draw(st.one_of(st.integers(1, 6), st.integers(30, 70)))
    columns = draw(st.one_of(st.integers(1, 40), st.integers(500, 530), st.just(1500)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = torch.randn(rows, columns + 3, generator=generator) * draw(st.sampled_from([0.1, 1.0, 30]))
    x = x.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    x = x[:, :columns] if draw(st.booleans()) else x[:, :columns].contiguous()
    weight = None
    if draw(st.booleans()):
        weight = torch.rand(rows, generator=generator)
        weight[torch.rand(rows, generator=generator) < 0.3] = 0
        weight[draw(st.integers(0, rows - 1))] = 1
    return x, draw(st.floats(0.04, 1)), weight


def size(x, temp):
    """Of the exponents, of whose last places an error is made."""
    return 10 + float(x.float().abs().max()) / temp


@settings(max_examples=200, deadline=None)
@given(problems())
def test_fuzz_equals_float64(problem):
    x, temp, weight = problem
    numbers = torch.randn(len(x)), torch.randn(x.shape[1])
    if weight is not None:
        numbers[0][weight == 0] = torch.inf
    wide = x.double()
    with backend.force("native"):
        rows, columns = row_lse(x, temp, numbers[1]), column_lse(x, temp, numbers[0])
        found = sinkhorn(x, temp, 3, weight=weight)
    exact = (
        temp * ((wide - numbers[1]) / temp).logsumexp(1),
        temp * ((wide - numbers[0][:, None]) / temp).logsumexp(0),
    )
    wanted = sinkhorn(x.double(), temp, 3, weight=None if weight is None else weight.double())
    left_out = wanted[0] == torch.inf
    assert torch.equal(left_out, torch.zeros(len(x)) == 1 if weight is None else weight == 0)
    assert torch.equal(found[0] == torch.inf, left_out)
    kept = (rows, columns, found[0][~left_out], found[1]), (*exact, wanted[0][~left_out], wanted[1])
    for ours, theirs in zip(*kept, strict=True):
        assert ours.dtype == torch.float32
        # a few roundings of numbers of that size: logits over temperature, powers, both halves
        assert (ours - theirs).abs().max() / temp <= 5e-7 * size(x, temp)


def test_every_row_sums_to_one_and_every_column_alike():
    x = torch.randn(64, 700)
    with backend.force("native"):
        row, column = sinkhorn(x, 0.1, 20)
    q = torch.exp((x - row[:, None] - column) / 0.1)
    torch.testing.assert_close(q.sum(1), torch.ones(64))
    torch.testing.assert_close(q.sum(0), torch.full((700,), 64 / 700), rtol=0.05, atol=0)


def test_the_kernels_run_and_are_not_the_pytorch_path(monkeypatch):
    def never(*_):
        raise AssertionError("the PyTorch path ran")

    monkeypatch.setattr("fastequi.kernels.sinkhorn.log_sum_exp", never)
    monkeypatch.setattr("fastequi.kernels.sinkhorn._by_products", never)
    x = torch.randn(4, 30)
    with backend.force("native"):
        sinkhorn(x, 0.1, 3)
        with pytest.raises(AssertionError, match="the PyTorch path ran"):
            sinkhorn(x.double(), 0.1, 3)  # a type that the kernels do not know


class BalanceStruct(ctypes.Structure):
    """One iteration after the first, within `sinkhorn` in C."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "row", "before", "weight", "column", "next")),
        *((name, c_int64) for name in ("stride", "rows", "columns")),
        ("scale", c_float),
        *((name, c_int32) for name in ("dtype", "threads")),
    )


def balance(x, temp, row, before, weight):
    column, after = torch.empty(x.shape[1]), torch.empty_like(row)
    pointers = [native.pointer(t) for t in (x, row, before, weight, column, after)]
    sizes = x.stride(0), *x.shape, 1 / temp, native.DTYPES[x.dtype], native.threads(x.numel())
    native.call("balance", BalanceStruct(*pointers, *sizes))
    return after, column


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("depth", [30.0, 60.0, 80.0, 100.0, 1e4])
def test_a_column_far_below_all_others_keeps_its_digits(depth, weighted):
    """exp(-depth) of it in every row that counts: below -87 that is no float32 any more."""
    x = torch.randn(5, 40)
    x[:, 7] -= depth
    x[:, 39] -= 2 * depth
    weight = torch.tensor([1.0, 0, 1, 1, 0]) if weighted else None
    if weighted:
        x[1, 7] += depth / 2  # far above the others
    counted = torch.ones(5, dtype=torch.bool) if weight is None else weight != 0
    row, before = x.logsumexp(1), torch.zeros(40)
    wide = x.double()
    with backend.force("native"):
        rows, columns = balance(x, 1.0, row, before, weight)
    exact = (wide - row[:, None])[counted].logsumexp(0)
    assert (columns - exact).abs().max() <= 5e-7 * size(x, 1.0)
    ours, theirs = rows[counted], (wide - exact).logsumexp(1)[counted]
    assert (ours - theirs).abs().max() <= 5e-7 * size(x, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [1, 11])
@pytest.mark.parametrize("depth", [-1e4, -1e7, -1e9, -1e12, 1e9])
def test_prototypes_masked_by_a_number_are_as_in_pytorch(depth, masked, dtype):
    """Of which float32 has no digits left: a column's number and the logits must cancel. Products
    by 1 / temp do not, rounded or not: C had NaN, or 500 in place of 22."""
    student, teacher = torch.randn(2, 3, 17, 33, generator=torch.Generator().manual_seed(0))
    teacher[..., :masked] = depth
    teacher = teacher.to(dtype)
    for temp in (0.04, 0.05, 0.07):
        losses, grads = [], []
        for name in ("native", "torch"):
            x = student.to(dtype).requires_grad_()
            with backend.force(name):
                loss = functional.dino_loss(x, teacher, targets="sinkhorn", teacher_temp=temp)
                loss.backward()
            losses.append(loss)
            grads.append(x.grad)
        torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
        tolerance = {"rtol": 1e-2, "atol": 1e-5} if dtype == torch.float32 else {}
        torch.testing.assert_close(*grads, **tolerance)


@pytest.mark.parametrize("iterations", [2, 8, 10, 20, 50])
@pytest.mark.parametrize("depth", [-1e7, -1e8, -1e9, -1e12])
def test_many_iterations_of_prototypes_masked_by_a_number(depth, iterations):
    """With each one all columns' numbers fall by the same, which masked ones round away until they
    are a whole step too high or too low: C's rows summed to .3, or to NaN."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 5, 2049, generator=generator)
    teacher *= 5
    teacher[:, torch.rand(2049, generator=generator) < 0.3] = depth
    options = {"targets": "sinkhorn", "iterations": iterations}
    losses = []
    for name in ("native", "torch"):
        with backend.force(name):
            losses.append(functional.ibot_loss(student, teacher, student_temp=1.0, **options))
    with backend.force("native"):
        row, column = sinkhorn(teacher, 0.04, iterations)
    sums = ((teacher - column - row[:, None]).double() / 0.04).exp().sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-4, atol=0)
    torch.testing.assert_close(*losses, rtol=1e-2, atol=0)  # of float32 alone: 1e-3 from float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_of_one_process_an_iteration_takes_one_pass(dtype, iterations, weighted):
    """The first too, of which nothing is known before; halves by halves are the same."""
    x = torch.randn(6, 700).to(dtype)
    weight = torch.tensor([1.0, 0, 2, 1, 0, 1]) if weighted else None
    row, column, halves = torch.zeros(6), None, torch.zeros(6)
    left_out = torch.zeros(6, dtype=torch.bool) if weight is None else weight == 0
    with backend.force("native"):
        for _ in range(iterations):
            row, column = balance(x, 0.1, row, column, weight)
            halves[left_out] = math.inf
            columns = column_lse(x, 0.1, halves)
            halves = row_lse(x, 0.1, columns)
        found = sinkhorn(x, 0.1, iterations, weight=weight)
    assert torch.equal(found[0], row)
    assert torch.equal(found[1], column)
    assert (row[left_out] == math.inf).all()
    torch.testing.assert_close(row[~left_out], halves[~left_out], rtol=0, atol=2e-6)
    torch.testing.assert_close(column, columns, rtol=0, atol=2e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("depth", [5.0, 30.0, 1e3, 1e9])
def test_a_row_far_below_all_others_is_summed_by_itself(depth, weighted):
    """Less the columns' largest its powers are 2^-72 and less, or none that float32 has."""
    x = torch.randn(6, 700)
    x[3] -= depth
    weight = torch.tensor([1.0, 0, 2, 1, 0, 1]) if weighted else None
    wide = None if weight is None else weight.double()
    counted = torch.ones(6, dtype=torch.bool) if weight is None else weight != 0
    for iterations in (1, 2, 3):
        with backend.force("native"):
            row, column = sinkhorn(x, 0.1, iterations, weight=weight)
        wanted = sinkhorn(x.double(), 0.1, iterations, weight=wide)
        assert (row - wanted[0])[counted].abs().max() / 0.1 <= 5e-7 * size(x, 0.1)
        assert (column - wanted[1]).abs().max() / 0.1 <= 5e-7 * size(x, 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("loss", "weighted"),
    [(functional.dino_loss, False), (functional.ibot_loss, False), (functional.ibot_loss, True)],
)
def test_a_call_made_again_reads_its_own_rows_and_weights(loss, weighted, dtype):
    """A known signature goes to C with nothing but the pointers of its tensors."""
    g = torch.Generator().manual_seed(0)
    for _ in range(3):
        student, teacher = torch.randn(2, 2, 6, 40, generator=g).to(dtype)
        weight = (torch.rand(2, 6, generator=g) > 0.4) / 7 if weighted else None
        student.requires_grad_()
        exact = student.detach().double().requires_grad_()
        given = {} if weight is None else {"weight": weight}
        wide = {} if weight is None else {"weight": weight.double()}
        with backend.force("native"):
            found = loss(student, teacher, targets="sinkhorn", **given)
            (ours,) = torch.autograd.grad(found, student)
        wanted = loss(exact, teacher.double(), targets="sinkhorn", **wide)
        (theirs,) = torch.autograd.grad(wanted, exact)
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=1e-6)
        rounding = max(torch.finfo(dtype).eps, 3e-5)  # of logits over a temperature of .04
        torch.testing.assert_close(ours.double(), theirs, rtol=rounding, atol=2e-6)


@pytest.mark.parametrize("apart", [0, 20, 1000])
@pytest.mark.parametrize("loss", [functional.ibot_loss, functional.dino_loss])
def test_shares_of_rows_far_apart_sum_to_one(loss, apart):
    """A row's number in float32 is rounded by 1e-3 there, over a temperature of .04."""
    generator = torch.Generator().manual_seed(0)
    rows, width = 64, 1024
    teacher = 0.3 * torch.randn(1, rows, width, generator=generator)
    teacher += apart * torch.randn(1, rows, 1, generator=generator)
    views = 1 if loss is functional.ibot_loss else 2
    for _ in range(2):  # the first call of a signature, and a later one
        student = torch.zeros(views, rows, width, requires_grad=True)
        options = {"student_temp": 1.0, "teacher_temp": 0.04, "targets": "sinkhorn"}
        with backend.force("native"):
            found = loss(student, teacher, **options)
        found.backward()
        assert found.item() == pytest.approx(math.log(width), rel=1e-6)
        sums = (1 / width - student.grad[-1].double() * rows).sum(-1)
        assert (sums - 1).abs().max() < 2e-6


def test_several_processes_go_by_halves():
    """What stands between a column's and a row's half is done, in every iteration."""
    x, calls = torch.randn(6, 40), []

    def across(column):
        calls.append(column)
        return column

    with backend.force("native"):
        halves, fused = sinkhorn(x, 0.1, 3, across), sinkhorn(x, 0.1, 3)
    assert len(calls) == 3
    for ours, theirs in zip(halves, fused, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_compiled_graph_holds_all_iterations():
    x = torch.randn(6, 40)

    def balanced(x):
        return sinkhorn(x, 0.1, 3)

    compiled = torch.compile(balanced, fullgraph=True, backend="aot_eager")
    with backend.force("native"):
        for ours, theirs in zip(compiled(x), balanced(x), strict=True):
            assert torch.equal(ours, theirs)


def test_the_number_of_threads_does_not_change_a_bit():
    x = torch.randn(70, 1500)

    def call():
        with backend.force("native"):
            return *sinkhorn(x, 0.1, 3), column_lse(x, 0.1, torch.zeros(70))

    expect_the_same_bits_of_any_threads(call)


def test_infinities_and_nan_are_as_in_pytorch():
    x = torch.randn(5, 600)
    x[0, 3], x[1], x[2, 7], x[:, 500] = math.nan, -math.inf, math.inf, -math.inf
    x[3, :513] = -math.inf  # nothing finite in the first part of a row
    with backend.force("native"):
        rows, columns = row_lse(x, 1.0, None), column_lse(x, 1.0, torch.zeros(5))
    for ours, theirs in zip((rows, columns), (x.logsumexp(1), x.logsumexp(0)), strict=True):
        ours = torch.where(ours.isnan() & theirs.isposinf(), torch.inf, ours)  # inf - inf inside
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("column", [0, 3, 511, 512, 599])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_value_is_not_lost(column, bad):
    x = torch.randn(3, 600)
    x[1, column] = bad
    with backend.force("native"):
        assert (~row_lse(x, 0.1).isfinite()).tolist() == [False, True, False]
        assert (~column_lse(x, 0.1, torch.zeros(3)).isfinite()).nonzero().tolist() == [[column]]
        for iterations in (1, 3):
            row, _ = sinkhorn(x, 0.1, iterations)
            assert not row[1].isfinite()


def test_rows_of_weight_zero_are_not_read():
    x = torch.randn(6, 600)
    weight = torch.tensor([1.0, 0, 1, 1, 0, 1])
    counted = weight != 0
    with backend.force("native"):
        wanted = sinkhorn(x[counted], 0.1, 3)
        for bad in (math.nan, math.inf, 1e30):
            x[~counted] = bad
            row, column = sinkhorn(x, 0.1, 3, weight=weight)
            torch.testing.assert_close(row[counted], wanted[0], rtol=1e-6, atol=1e-5)
            torch.testing.assert_close(column, wanted[1], rtol=1e-6, atol=1e-5)


def test_any_strides():
    x, numbers = torch.randn(9, 70), (torch.randn(9), torch.randn(70))
    weight = torch.rand(9) + 0.1
    turned = x.T.contiguous().T
    apart = [torch.stack([n, n], -1)[:, 0] for n in (*numbers, weight)]
    with backend.force("native"):
        assert torch.equal(row_lse(turned, 0.1, apart[1]), row_lse(x, 0.1, numbers[1]))
        assert torch.equal(column_lse(turned, 0.1, apart[0]), column_lse(x, 0.1, numbers[0]))
        found = sinkhorn(turned, 0.1, 3, weight=apart[2])
        for ours, theirs in zip(found, sinkhorn(x, 0.1, 3, weight=weight), strict=True):
            assert torch.equal(ours, theirs)


def test_many_rows_take_little_memory_beside_the_logits():
    """Then an iteration goes by halves."""
    assert native_sinkhorn.takes(torch.empty(64, 65536, device="meta"))
    assert not native_sinkhorn.takes(torch.empty(200_000, 64, device="meta"))


@pytest.mark.parametrize("rows", [2000, 4096])
def test_the_way_does_not_depend_on_the_number_of_threads(rows):
    """Where one thread's scratch memory is allowed, and two threads' is not."""
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(3))
    assert native_sinkhorn.takes(x)
    with backend.force("native"):
        expect_the_same_bits_of_any_threads(lambda: sinkhorn(x, 0.1, 3))


@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
def test_every_instruction_set_agrees(isa, monkeypatch):
    x = torch.randn(7, 133)
    with instruction_set(isa, monkeypatch), backend.force("native"):
        found = sinkhorn(x, 0.1, 3)
    for ours, theirs in zip(found, sinkhorn(x.double(), 0.1, 3), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("loss", [functional.dino_loss, functional.ibot_loss])
@pytest.mark.parametrize("iterations", [0, 10_001, 2**32])
def test_a_number_of_iterations_that_c_cannot_take_is_refused(loss, iterations):
    """It is an integer of 32 bits there: 2^32 ran as one."""
    student, teacher = torch.randn(2, 2, 3, 7)
    with pytest.raises(ValueError, match=f"iterations: expected an integer .*got {iterations}"):
        loss(student, teacher, targets="sinkhorn", iterations=iterations)
