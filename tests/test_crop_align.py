"""GTSA's crop loss: RoIAlign by loops over bins and samples, one image at a time, in float64."""

import pytest
import torch
from hypothesis import given as given_by_hypothesis
from hypothesis import settings, strategies

from fastequi.data.views.boxes import rotate_boxes
from fastequi.functional import crop_align_loss
from fastequi.kernels import backend as backends
from fastequi.kernels import crop_align as kernel
from fastequi.kernels import toolchain
from tests.support.allocations import sizes_of
from tests.support.crop_align import aligned
from tests.support.native import expect_the_same_bits_of_any_threads, instruction_set
from tests.support.tolerances import GRAD, LOSS


def by_hand(student, teacher, student_boxes, teacher_boxes, turns, bins, scale, pairs):
    cosines = []
    for p, (s, t) in enumerate(pairs):
        for b in range(student.shape[1]):
            ours = aligned(student[s, b], student_boxes[p, b].double() * scale, bins)
            theirs = aligned(teacher[t, b], teacher_boxes[p, b].double() * scale, bins)
            theirs = torch.rot90(theirs, int(turns[p, b]), (0, 1))
            for i in range(bins):
                for j in range(bins):
                    u, v = ours[i, j], theirs[i, j]
                    cosines.append(u @ v / (u.norm() * v.norm()))
    return -torch.stack(cosines).mean()


def boxes(count, batch, width, height, generator):
    low = torch.rand(count, batch, 2, generator=generator) * 0.6
    extent = 0.05 + torch.rand(count, batch, 2, generator=generator) * (0.95 - low)
    size = torch.tensor([width, height])
    return torch.cat([low * size, (low + extent) * size], -1)


def given(dtype, device, bins, channels=12, batch=2, small=(5, 6), large=(7, 9), seed=0):
    """Maps of odd sizes, boxes in pixels of cells of 16, all four turns, a view in two pairs."""
    generator = torch.Generator().manual_seed(seed)
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]
    student = torch.randn(3, batch, *small, channels, generator=generator).to(device, dtype)
    teacher = torch.randn(2, batch, *large, channels, generator=generator).to(device, dtype)
    return {
        "student": student.requires_grad_(),
        "teacher": teacher,
        "student_boxes": boxes(4, batch, 16 * small[1], 16 * small[0], generator).to(device),
        "teacher_boxes": boxes(4, batch, 16 * large[1], 16 * large[0], generator).to(device),
        "turns": (torch.arange(4 * batch).view(4, batch) % 4).to(device),
        "bins": bins,
        "scale": 1 / 16,
        "pairs": pairs,
    }


@pytest.mark.slow("triton-70")
@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("bins", "channels"), [(4, 12), (3, 70)])
def test_equals_the_loops_in_value_and_gradient(backend, device, dtype, bins, channels):
    args = given(dtype, device, bins, channels)
    loss = crop_align_loss(**args)
    (3 * loss).backward()
    exact = args["student"].detach().double().requires_grad_()
    expected = by_hand(**{**args, "student": exact, "teacher": args["teacher"].double()})
    (3 * expected).backward()
    half = dtype in (torch.bfloat16, torch.float16) and backend == "triton"
    # products of half precision round the weights of cells, too
    rounding = 20 * LOSS[dtype] if not half else 3e-2
    assert abs(loss.double() - expected) <= rounding
    error = (args["student"].grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error <= GRAD[dtype]
    assert args["student"].grad.dtype == dtype


@pytest.mark.parametrize("large", [(1, 1), (17, 20)])
def test_maps_of_one_cell_and_of_more_than_a_block(backend, device, large):
    args = given(torch.float32, device, 2, 5, 1, (3, 4), large)
    expected = by_hand(**{**args, **{n: args[n].double() for n in ("student", "teacher")}})
    torch.testing.assert_close(crop_align_loss(**args).double(), expected, rtol=1e-5, atol=1e-5)


def test_same_features_under_any_turn_are_perfectly_aligned(backend, device):
    image = torch.randn(1, 1, 6, 6, 8, device=device)
    box = torch.tensor([16.0, 8.0, 64.0, 80.0]).expand(1, 1, 4).to(device)
    for k in range(4):
        turn = torch.tensor([[k]], device=device)
        turned = torch.rot90(image, k, (2, 3))
        options = {"bins": 4, "scale": 1 / 16}
        loss = crop_align_loss(turned, image, rotate_boxes(box, turn, 96), box, turn, **options)
        assert loss.item() == pytest.approx(-1, abs=1e-5 if device.type == "cuda" else 1e-6)
        wrong = crop_align_loss(
            turned, image, rotate_boxes(box, turn, 96), box, turn + 1, **options
        )
        assert wrong > -0.9


@pytest.mark.slow(every=3)
@pytest.mark.parametrize("beyond", [-5, 4, 7])
def test_turns_are_taken_modulo_four(backend, device, beyond):
    args = given(torch.float32, device, 2, 5, 1, (3, 4), (5, 6))
    args["turns"] = torch.full_like(args["turns"], beyond % 4)
    within = crop_align_loss(**args)
    slope = torch.autograd.grad(within, args["student"])[0]
    args["turns"] = torch.full_like(args["turns"], beyond)
    loss = crop_align_loss(**args)
    assert torch.equal(loss, within)
    assert torch.equal(torch.autograd.grad(loss, args["student"])[0], slope)


@pytest.mark.slow("triton")
def test_empty_boxes_and_zero_maps_are_finite(backend, device):
    args = given(torch.float32, device, 4)
    args["student_boxes"] = args["student_boxes"].flip(-1)
    assert crop_align_loss(**args).isfinite()
    with torch.no_grad():
        args["student"].zero_()
    loss = crop_align_loss(**args)
    loss.backward()
    assert loss == 0
    assert args["student"].grad.isfinite().all()


@pytest.mark.slow("triton")
def test_same_bits_every_time(backend, device):
    args = given(torch.float32, device, 4)
    grads = [torch.autograd.grad(crop_align_loss(**args), args["student"])[0] for _ in range(3)]
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


@pytest.mark.slow("triton")
def test_strides_do_not_matter(backend, device):
    args = given(torch.float32, device, 4)
    expected = crop_align_loss(**args)
    student = args["student"].detach().permute(4, 0, 1, 2, 3).contiguous().permute(1, 2, 3, 4, 0)
    teacher = torch.cat([args["teacher"]] * 2, -1)[..., :12]
    assert not student.is_contiguous()
    other = crop_align_loss(**{**args, "student": student, "teacher": teacher})
    torch.testing.assert_close(other, expected)
    turned = torch._neg_view(-args["teacher"])  # a view that turns the sign
    torch.testing.assert_close(crop_align_loss(**{**args, "teacher": turned}), expected)
    turned = {
        name: torch._neg_view(-args[name]) for name in ("student_boxes", "teacher_boxes", "turns")
    }
    torch.testing.assert_close(crop_align_loss(**{**args, **turned}), expected)
    turned["turns"] = torch._neg_view(-args["turns"].int())
    torch.testing.assert_close(crop_align_loss(**{**args, **turned}), expected)


@pytest.mark.slow("triton")
@pytest.mark.parametrize("size", [(7, 1), (1, 7), (1, 1)])
def test_an_axis_of_one_may_have_any_stride(backend, device, size):
    """PyTorch calls a tensor contiguous whatever the stride of an axis of one cell is."""
    args = given(torch.float32, device, 2, small=size, large=size)
    expected = crop_align_loss(**args)
    for axes in ((2, 3), (2, 4), (3, 4)):
        odd = {}
        for name in ("student", "teacher"):
            maps = args[name].detach()
            turned = maps.transpose(*axes).contiguous().transpose(*axes)
            strides = [
                999 if n == 1 else step for n, step in zip(maps.shape, turned.stride(), strict=True)
            ]
            odd[name] = turned.as_strided(maps.shape, strides)
        torch.testing.assert_close(crop_align_loss(**{**args, **odd}), expected.detach())


WILD = [-1e30, -40.0, -0.5, 0.0, 1e-3, 7.5, 16.0, 40.0, 1e30]


@settings(max_examples=60, deadline=None)
@given_by_hypothesis(
    strategies.lists(strategies.sampled_from(WILD), min_size=64, max_size=64),
    strategies.lists(strategies.integers(-9, 9), min_size=8, max_size=8),
    strategies.sampled_from([1, 3, 4]),
)
def test_fuzz_any_box_and_turn_in_c_as_in_float64(values, turns, bins):
    """Boxes outside the map, reversed, empty, of parts of a cell; turns beyond four."""
    if backends.native.obstacle() is not None:
        pytest.skip("no C kernels")
    args = given(torch.float32, "cpu", bins)
    corners = torch.tensor(values).view(2, 4, 2, 4)
    args |= {"student_boxes": corners[0], "teacher_boxes": corners[1]}
    args["turns"] = torch.tensor(turns).view(4, 2)
    found = []
    for name, dtype in (("native", torch.float32), ("torch", torch.float64)):
        student = args["student"].detach().to(dtype).requires_grad_()
        with backends.force(name):
            loss = crop_align_loss(
                **{**args, "student": student, "teacher": args["teacher"].to(dtype)}
            )
            (grad,) = torch.autograd.grad(loss, student)
        found.append((loss.detach().double(), grad.double()))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)


def test_in_c_boxes_that_are_not_finite_spoil_their_pair_alone():
    args = given(torch.float32, "cpu", 4)
    args["teacher_boxes"][1, 0, 2] = torch.nan
    if backends.native.obstacle() is not None:
        pytest.skip("no C kernels")
    with backends.force("native"):
        loss = crop_align_loss(**args)
        loss.backward()
    assert loss.isnan()
    bad = args["student"].grad.isnan().flatten(2).any(-1)
    assert bad.nonzero().tolist() == [[1, 0]]  # pair 1 is of view 1


def test_in_c_threads_and_instruction_sets_agree(monkeypatch):
    if backends.native.obstacle() is not None:
        pytest.skip("no C kernels")
    args = given(torch.bfloat16, "cpu", 4, 70)

    def call():
        with backends.force("native"):
            loss = crop_align_loss(**args)
            return loss, torch.autograd.grad(loss, args["student"])[0].float()

    expect_the_same_bits_of_any_threads(call)
    wanted = call()
    order = list(toolchain.instruction_sets())
    for isa in order[: order.index(backends.native.instruction_set())]:
        with instruction_set(isa, monkeypatch):
            for ours, theirs in zip(call(), wanted, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)


def test_operators_do_not_grow_with_the_batch():
    counts = []
    for batch in (2, 9):
        args = given(torch.float32, "cpu", 4, batch=batch)
        counts.append(len(sizes_of(lambda a=args: crop_align_loss(**a))))
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_operator_and_graph(device):
    torch._dynamo.reset()
    args = given(torch.float32, device, 4)
    flat = [view for pair in args["pairs"] for view in pair]
    with backends.force("triton"):
        names = "student", "teacher", "student_boxes", "teacher_boxes", "turns"
        values = (*(args[name] for name in names), flat, 4, 1 / 16, 1, True)
        torch.library.opcheck(kernel.crop_align_op.op, values)
    compiled = torch.compile(crop_align_loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**args), crop_align_loss(**args))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"student": torch.zeros(4, 8)}, ValueError, r"student: expected \[views, B, height"),
        ({"student": torch.zeros(3, 2, 4, 4, 12).int()}, TypeError, "student: expected float32"),
        ({"teacher": torch.zeros(2, 2, 7, 9, 11)}, ValueError, "teacher: .*12.*, got .2, 2, 7"),
        ({"teacher": torch.zeros(2, 3, 7, 9, 12)}, ValueError, r"teacher: expected \[views, 2"),
        ({"student_boxes": torch.zeros(4, 2, 3)}, ValueError, r"student_boxes: expected \[4, 2, 4"),
        ({"teacher_boxes": torch.zeros(3, 2, 4)}, ValueError, r"teacher_boxes: expected \[4, 2, 4"),
        ({"teacher_boxes": torch.zeros(4, 2, 4).int()}, TypeError, "teacher_boxes: expected"),
        ({"turns": torch.zeros(4, 2)}, TypeError, "turns: expected integers, got torch.float32"),
        ({"turns": torch.zeros(4, 3).int()}, ValueError, "turns: expected integers"),
        ({"bins": 0}, ValueError, "bins: expected an integer >= 1, got 0"),
        ({"scale": 0.0}, ValueError, "scale: expected a finite number > 0, got 0.0"),
        ({"pairs": [(3, 0)] * 4}, ValueError, "pairs: expected .* below 3 and 2"),
        ({"pairs": None}, ValueError, "teacher: expected 3 views without pairs, got 2"),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        crop_align_loss(**{**given(torch.float32, "cpu", 4), **change})
