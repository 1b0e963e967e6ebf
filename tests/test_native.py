"""The C kernels beyond what every backend is tested for: any θ, any size, any build."""

import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastequi.functional import gaussian_blur, warp, warp_recon_loss
from fastequi.kernels import backend, native, native_warp, toolchain
from fastequi.kernels.target import Sums, Target
from tests.support.native import expect_the_same_bits_of_any_threads, instruction_set

ROOT = Path(__file__).parent.parent
MEAN, STD = (0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.3)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the C kernels are tested where there is no GPU"
)
needs_compiler = pytest.mark.skipif(
    native.obstacle() is not None, reason=f"C kernels: {native.obstacle()}"
)

wild = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, 1e-38, 0.0])
tame = st.floats(-3, 3, width=32)
sizes = st.integers(1, 37)


@st.composite
def problems(draw, entries):
    """A random call: everything that the two ops can be given."""
    b, k, c, patch = draw(st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 4), st.integers(0, 5)))
    height, width = draw(sizes), draw(sizes)
    if patch:
        height, width = patch * draw(st.integers(1, 6)), patch * draw(st.integers(1, 6))
    source = draw(sizes), draw(sizes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    image = torch.rand(b, c, *source, generator=generator)
    kind = draw(st.sampled_from([torch.uint8, torch.float32, torch.bfloat16]))
    image = (image * 255).to(torch.uint8) if kind == torch.uint8 else image.to(kind)
    if draw(st.booleans()):
        image = image.contiguous(memory_format=torch.channels_last)
    if draw(st.booleans()):
        image = image.flip(-1).transpose(2, 3)
    values = draw(st.lists(entries, min_size=6 * b * k, max_size=6 * b * k))
    theta = torch.tensor(values).view(b, k, 2, 3)
    shape = (b, k, height // patch * (width // patch), patch * patch * c) if patch else (
        b, k, c, height, width)  # fmt: skip
    pred = torch.randn(shape, generator=generator)
    pred = pred.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    if not patch and draw(st.booleans()):
        pred = pred.movedim(2, -1).contiguous().movedim(-1, 2)
    options = {
        "padding_mode": draw(st.sampled_from(["zeros", "border", "reflection"])),
        "align_corners": draw(st.booleans()),
    }
    if draw(st.booleans()):
        options |= {"mean": MEAN[:c], "std": STD[:c]}
    if c == 3 and draw(st.booleans()):
        options["color"] = torch.randn(b, k, 3, 4, generator=generator)
    loss = {
        "loss": draw(st.sampled_from(["mse", "l1", "smooth_l1"])),
        "mask_outside": draw(st.booleans()),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        **({"layout": "patch", "patch_size": patch, "size": (height, width)} if patch else {}),
    }
    return image, theta, pred, (height, width), options, loss, draw(st.booleans())


def outcome(name, problem):
    """Loss, its gradients and the warped images, by one backend."""
    image, theta, pred, size, options, loss, by_theta = problem
    pred, theta = pred.detach().requires_grad_(), theta.detach().requires_grad_(by_theta)
    with backend.force(name):
        value = warp_recon_loss(pred, image, theta, **options, **loss)
        value.sum().backward()
        views = warp(image, theta.detach(), size=size, **options)
    return value.detach(), pred.grad.float(), theta.grad, views


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(problems(tame))
def test_fuzz_equals_the_pytorch_path(problem):
    ours, theirs = outcome("native", problem), outcome("torch", problem)
    half = {"by pred": problem[2].dtype, "views": ours[3].dtype}
    sharp = problem[5]["mask_outside"]  # a point on the very edge may fall on either side
    for name, a, b in zip(("loss", "by pred", "by theta", "views"), ours, theirs, strict=True):
        if name == "by theta" or (sharp and name != "views"):
            continue  # derivatives jump where a sample point crosses a pixel: tested elsewhere
        error = (a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-3)
        assert error < (2e-2 if half.get(name) == torch.bfloat16 else 2e-3), name


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(problems(st.one_of(wild, tame)))
def test_fuzz_any_theta_is_nan_or_a_number_for_its_step_alone(problem):
    value, by_pred, _, views = outcome("native", problem)
    theta = problem[1]
    bad = ~theta.isfinite().flatten(2).all(-1)
    assert views[bad].isnan().all()
    assert not views[~bad].isnan().any()
    assert by_pred[bad].isnan().all()
    assert not by_pred[~bad].isnan().any() or (bad.any() and value.ndim == 0)


@needs_compiler
@pytest.mark.parametrize("theta", [1e30, -1e30, 2.5, math.nan])
def test_nothing_is_written_outside_the_results(theta):
    shape, pad = (2, 2, 3, 9, 11), 512
    count = math.prod(shape)
    buffers = [torch.full((count + 2 * pad,), 7.0) for _ in range(2)]
    pred, grad = (buffer[pad : pad + count].view(shape) for buffer in buffers)
    image, matrix = torch.rand(2, 3, 5, 7), torch.full((2, 2, 2, 3), theta)
    total, nothing = torch.full((2, 2), 7.0), torch.empty(0)
    target = Target(9, 11)
    native_warp.warp_recon(
        pred, image, matrix, None, target, 1.0, Sums(total, nothing, grad, nothing)
    )
    native_warp.warp(pred, image, matrix, None, target._replace(padding_mode="border"))
    for buffer in buffers:
        assert (buffer[:pad] == 7).all()
        assert (buffer[pad + count :] == 7).all()
    assert not (grad == 7).any()


@needs_compiler
def test_the_number_of_threads_does_not_change_a_bit():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (9, 3, 40, 30), generator=generator, dtype=torch.uint8)
    theta = torch.eye(2, 3) + 0.3 * torch.randn(9, 3, 2, 3, generator=generator)
    pred = torch.randn(9, 3, 3, 70, 90, generator=generator)
    problem = image, theta, pred, (70, 90), {}, {}, True  # shared and one image per thread
    expect_the_same_bits_of_any_threads(lambda: outcome("native", problem))


@needs_compiler
@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
def test_every_instruction_set_agrees(isa, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 21, 19, generator=generator)
    theta = torch.eye(2, 3) + 0.3 * torch.randn(2, 2, 2, 3, generator=generator)
    pred = torch.randn(2, 2, 3, 33, 17, generator=generator)
    problem = (image, theta, pred, (33, 17), {"mean": MEAN[:3], "std": STD[:3]}, {}, True)
    expected = outcome("torch", problem)
    with instruction_set(isa, monkeypatch):
        found = outcome("native", problem)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@needs_compiler
def test_the_instruction_set_can_be_limited(monkeypatch):
    order = list(toolchain.instruction_sets())
    best = native.instruction_set()
    for most in order:
        monkeypatch.setenv("FASTEQUI_MAX_ISA", most)
        native.load.cache_clear()
        assert native.instruction_set() == min(most, best, key=order.index)
    monkeypatch.setenv("FASTEQUI_MAX_ISA", "avx2")
    native.load.cache_clear()
    with pytest.raises(ValueError, match=f"FASTEQUI_MAX_ISA: expected {order[0]}.*, got 'avx2'"):
        native.obstacle()
    monkeypatch.undo()
    native.load.cache_clear()
    assert native.instruction_set() == best


def _child(code, **env):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
@needs_compiler
def test_many_processes_build_once(tmp_path):
    code = "from fastequi.kernels import native; print(native.obstacle(), native.library_file())"
    children = [_child(code, FASTEQUI_CACHE=str(tmp_path)) for _ in range(4)]
    said = {child.communicate()[0].strip() for child in children}
    (library,) = tmp_path.glob("*.so")
    assert said == {f"None {library}"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", library.name]


@pytest.mark.slow(every=2)
@pytest.mark.parametrize(("cc", "reason"), [("no-such-cc", "no C compiler"), ("false", "failed")])
def test_without_a_working_compiler_the_pytorch_path_runs_and_says_so_once(tmp_path, cc, reason):
    code = """
import logging, torch, fastequi
logging.basicConfig()
image, theta = torch.rand(1, 3, 8, 8), torch.eye(2, 3)[None, None]
pred = torch.zeros(1, 1, 3, 8, 8, requires_grad=True)
for _ in range(2):
    loss = fastequi.warp_recon_loss(pred, image, theta)
    loss.backward()
torch.testing.assert_close(loss, image.square().mean())
from fastequi.functional import backend
print(*backend("cpu"))
"""
    out, err = _child(code, FASTEQUI_CACHE=str(tmp_path), CC=cc).communicate()
    assert out.startswith("torch eager PyTorch path, since the C kernels cannot run: "), err
    assert reason in out
    assert err.count("slower PyTorch path") == 1


def test_what_c_does_not_take_goes_to_pytorch_with_the_same_result():
    generator = torch.Generator().manual_seed(0)
    theta = torch.eye(2, 3).expand(1, 1, 2, 3)
    many = native_warp.CHANNELS + 1
    image = torch.rand(1, many, 8, 8, generator=generator)
    assert not native_warp.samples(image)
    loss = warp_recon_loss(torch.zeros(1, 1, many, 8, 8), image, theta)
    torch.testing.assert_close(loss, image.square().mean())
    endless = torch.zeros(1, dtype=torch.uint8).expand(1, 3, 1, 2**22)
    assert not native_warp.samples(endless)  # half a pixel beyond its edge is no float32
    half = torch.zeros(1, 1, 3, 8, 8, dtype=torch.float16)
    assert not native_warp.reads(half, 0)
    wide = torch.zeros(1, 1, 1025, 2, 2)
    assert native_warp.reads(wide, 0)
    assert not native_warp.reads(wide.flatten(3).mT.contiguous().mT.view(wide.shape), 0)
    assert not native_warp.reads(torch.zeros(1, 1, 2, 4 * 1025), 2)
    torch.testing.assert_close(
        warp_recon_loss(half, image[:, :3], theta), image[:, :3].square().mean()
    )


@needs_compiler
@pytest.mark.slow  # 3.0e9 values
def test_more_than_two_billion_elements():
    b, k, side = 3, 5, 8192  # 3.0e9 predicted values
    image = torch.rand(b, 3, 64, 64)
    theta = (torch.eye(2, 3) * 0.9).expand(b, k, 2, 3).contiguous()
    pred = torch.zeros(b, k, 3, side, side, dtype=torch.bfloat16)
    pred[-1, -1] = 0.25
    pred.requires_grad_()
    loss = warp_recon_loss(pred, image, theta, reduction="none")
    (by_pred,) = torch.autograd.grad(loss.sum(), pred)
    last = pred.detach()[-1:, -1:, :, -64:].float()
    grid = torch.nn.functional.affine_grid(theta[-1, -1:], [1, 3, side, side], align_corners=False)
    target = torch.nn.functional.grid_sample(image[-1:], grid[:, -64:], align_corners=False)
    expected = 2 * (last[0] - target) / (3 * side * side)
    torch.testing.assert_close(by_pred[-1, -1:, :, -64:].float(), expected, rtol=1e-2, atol=1e-10)
    assert loss.isfinite().all()


def test_the_log_names_the_reason_once(caplog, monkeypatch):
    monkeypatch.setattr(native, "library_file", lambda: (_ for _ in ()).throw(OSError("no disk")))
    native.load.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert native.obstacle() == native.obstacle() == "no disk"
        assert [record.message for record in caplog.records].count(
            "CPU kernels in C are not used, a slower PyTorch path is: no disk"
        ) == 1
    finally:
        native.load.cache_clear()


@needs_compiler
def test_another_default_device_is_not_read_by_c():
    """Memory of our own lies where the given tensors do."""
    from fastequi.functional import (
        gaussian_blur,
        gram_loss,
        ibot_loss,
        koleo_loss,
        nt_xent_loss,
        rot90_batch,
    )

    x, y = torch.randn(2, 6, 100).unbind()
    image = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    theta = torch.eye(2, 3).repeat(2, 1, 1, 1)
    calls = {
        "ibot_loss": lambda: ibot_loss(x, y, targets="sinkhorn"),
        "nt_xent_loss": lambda: nt_xent_loss(x, y),
        "koleo_loss": lambda: koleo_loss(x),
        "gram_loss": lambda: gram_loss(x[None], y[None]),
        "rot90_batch": lambda: rot90_batch(image),
        "warp": lambda: warp(image, theta),
        "warp_recon_loss": lambda: warp_recon_loss(torch.ones(2, 1, 3, 8, 8), image, theta),
        "gaussian_blur": lambda: gaussian_blur(image, torch.ones(2, device="cpu")),
    }
    calls.pop("warp_recon_loss")  # its prediction would be made on that device
    with backend.force("native"):
        wanted = {name: call() for name, call in calls.items()}
        with torch.device("meta"):
            found = {name: call() for name, call in calls.items()}
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], msg=name)


@needs_compiler
def test_views_that_turn_a_sign_are_read_as_they_are():
    from fastequi.functional import gaussian_blur, gram_loss, ibot_loss, koleo_loss, nt_xent_loss

    image = torch.complex(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)).conj().imag
    theta = torch.eye(2, 3).expand(1, 1, 2, 3).contiguous()
    x, y = torch.randn(2, 6, 40).unbind()
    turned, other = torch._neg_view(x), torch._neg_view(y)
    assert image.is_neg()
    assert turned.is_neg()
    pairs = {
        "warp": lambda i, *_: warp(i, theta),
        "warp_recon_loss": lambda i, *_: warp_recon_loss(torch.ones(1, 1, 1, 4, 4), i, theta),
        "prediction": lambda i, *_: warp_recon_loss(i[:, None], torch.rand_like(image) * 0, theta),
        "gaussian_blur": lambda i, *_: gaussian_blur(i, 1.0),
        "ibot_loss": lambda _, x, y: ibot_loss(x, y, targets="sinkhorn"),
        "nt_xent_loss": lambda _, x, y: nt_xent_loss(x, y),
        "koleo_loss": lambda _, x, y: koleo_loss(x),
        "gram_loss": lambda _, x, y: gram_loss(x[None], y[None]),
    }
    with backend.force("native"):
        for name, call in pairs.items():
            found = call(image, turned, other)
            plain = call(*(t.resolve_neg() for t in (image, turned, other)))
            torch.testing.assert_close(found, plain, msg=name)


def test_a_tensor_without_memory_is_refused():
    with pytest.raises(RuntimeError, match="expected values in memory, got meta"):
        native.pointer(torch.empty(3, device="meta"))
    with pytest.raises(RuntimeError, match="expected values in memory"):
        native.pointer(torch._efficientzerotensor(3))


@needs_compiler
def test_bfloat16_is_rounded_to_even():
    values = torch.tensor([1.00390625, 1.01171875, -1.00390625, 3e38, 1e-30, 0.5, 2.0])
    image = values.repeat(40)[None, None, None]  # whole vectors and a rest
    theta = torch.eye(2, 3).expand(1, 1, 2, 3).contiguous()
    with backend.force("native"):
        out = warp(image, theta, dtype=torch.bfloat16)[0, 0]
    torch.testing.assert_close(out, image[0].bfloat16(), rtol=0, atol=0, equal_nan=True)


@needs_compiler
def test_what_runs_slower_in_pytorch_is_said_once_for_every_op(caplog):
    from fastequi import functional as f

    wide = {"dtype": torch.float64}
    x, rows = torch.randn(6, 40, **wide), torch.randn(2, 1, 4, 8, **wide)
    image, theta = torch.rand(1, 3, 8, 8, **wide), torch.eye(2, 3)[None, None]
    many = torch.rand(1, 5000, 2, 2)
    boxes = torch.tensor([0.0, 0, 2, 2]).expand(1, 1, 4)
    calls = {
        "warp": lambda: f.warp(many, theta),
        "the path loss": lambda: f.warp_recon_loss(image[:, None], image, theta),
        "gaussian_blur": lambda: f.gaussian_blur(image, 1.0),
        "blur_recon_loss": lambda: f.blur_recon_loss(image[:, None], image, torch.ones(1, 1)),
        "rot90_batch": lambda: f.rot90_batch((image * 255).byte(), dtype=torch.float64),
        "nt_xent_loss": lambda: f.nt_xent_loss(x, x),
        "koleo_loss": lambda: f.koleo_loss(x),
        "gram_loss": lambda: f.gram_loss(rows[0], rows[1]),
        "the loss of DINO and iBOT": lambda: f.ibot_loss(x, x),
        "Sinkhorn-Knopp": lambda: f.ibot_loss(x, x, targets="sinkhorn"),
        "crop_align_loss": lambda: f.crop_align_loss(
            rows.view(2, 1, 2, 2, 8), rows.view(2, 1, 2, 2, 8), boxes, boxes,
            torch.zeros(1, 1, dtype=torch.int), bins=2, scale=1.0, pairs=[(0, 1)],
        ),
    }  # fmt: skip
    for name, call in calls.items():
        backend._say_type.cache_clear()
        caplog.clear()
        with backend.force("native"), caplog.at_level(logging.WARNING, backend.logger.name):
            call()
            call()
        said = [r.getMessage() for r in caplog.records if "runs in PyTorch" in r.getMessage()]
        assert len([line for line in said if line.startswith(f"{name} of")]) == 1, (name, said)


@needs_compiler
def test_float16_runs_in_c_as_float32(caplog):
    from fastequi import functional as f

    g = torch.Generator().manual_seed(0)
    rows, views = torch.randn(9, 40, generator=g), torch.randn(2, 3, 40, generator=g)
    maps, image = torch.randn(2, 1, 2, 2, 8, generator=g), torch.rand(1, 3, 8, 8, generator=g)
    weight, boxes = (torch.arange(9) % 3).float() / 9, torch.tensor([0.0, 0, 2, 2]).expand(1, 1, 4)
    theta, turns = 0.9 * torch.eye(2, 3)[None, None], torch.zeros(1, 1, dtype=torch.int)
    calls = {
        "warp": (image, lambda x: f.warp(x, theta).float().square().sum()),
        "warp_recon_loss": (image[:, None], lambda x: f.warp_recon_loss(x, image, theta)),
        "gaussian_blur": (image, lambda x: f.gaussian_blur(x, 1.0).float().square().sum()),
        "blur_recon_loss": (image[:, None], lambda x: f.blur_recon_loss(x, image, 1.0)),
        "nt_xent_loss": (rows, lambda x: f.nt_xent_loss(x, x.flip(0))),
        "koleo_loss": (rows, f.koleo_loss),
        "vicreg_loss": (rows, lambda x: f.vicreg_loss(x, x.flip(0))),
        "gram_loss": (views, lambda x: f.gram_loss(x, x.detach().flip(0))),
        "correspondence": (views, lambda x: f.correspondence_loss(x, x.detach().flip(0), top=2)),
        "dino_loss": (views, lambda x: f.dino_loss(x, x.detach().flip(0))),
        "ibot_loss": (rows, lambda x: f.ibot_loss(x, x.detach(), weight=weight)),
        "sinkhorn": (rows, lambda x: f.ibot_loss(x, x.detach(), targets="sinkhorn")),
        "of some": (
            rows,
            lambda x: f.ibot_loss(x, x.detach().flip(0), weight=weight, targets="sinkhorn"),
        ),
        "crop_align_loss": (
            maps,
            lambda x: f.crop_align_loss(
                x, x.detach().flip(0), boxes, boxes, turns, bins=2, pairs=[(0, 0)]
            ),
        ),
    }
    backend._say_type.cache_clear()
    for name, (values, call) in calls.items():
        half = values.half().requires_grad_()
        full = half.detach().float().requires_grad_()
        with backend.force("native"), caplog.at_level(logging.WARNING, backend.logger.name):
            for _ in range(2):  # the second call is a prepared one
                half.grad = full.grad = None
                loss, wanted = call(half), call(full)
                (256 * loss).backward()  # a loss scale
                (256 * wanted).backward()
                torch.testing.assert_close(loss, wanted, rtol=3e-3, atol=1e-5, msg=name)
                assert half.grad.dtype == torch.float16
                apart = (half.grad.float() - full.grad).norm() / full.grad.norm()
                assert apart < 3e-3, (name, apart)
    assert not caplog.records


@needs_compiler
def test_what_runs_slower_says_what_is_unusual(caplog):
    theta, many = torch.eye(2, 3)[None, None], torch.rand(1, 5000, 2, 2)
    negative = torch.complex(torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)).conj().imag
    backend._say_type.cache_clear()
    with backend.force("native"), caplog.at_level(logging.WARNING, backend.logger.name):
        for image in (negative, many):
            assert torch.isfinite(warp(image, theta)).all()
            assert torch.isfinite(gaussian_blur(image, 1.0)).all()
    said = [r.getMessage() for r in caplog.records]
    for words in ("3 channels, a negative view (resolve_neg())", "5000 channels"):
        assert len([line for line in said if line.startswith("warp of") and words in line]) == 1
        assert len([line for line in said if line.startswith("gauss") and words in line]) == 1
    with backend.force("native"):
        for found in (warp(many.half(), theta), gaussian_blur(many.half(), 1.0)):
            assert found.dtype == torch.float16
    caplog.clear()
    column = torch.rand(1, 1, 2000, 1, 1)
    with backend.force("native"), caplog.at_level(logging.WARNING, backend.logger.name):
        warp_recon_loss(column, torch.rand(1, 2000, 1, 1), theta)
    assert not caplog.records  # planar and channels-last at once


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 1), (1, 8), (1, 1)])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_steps_beyond_float32_read_nowhere_else(channels, size, place):
    """A row of one pixel takes no step, which is infinite all the same."""
    image = torch.rand(1, channels, 64, 64)
    theta = torch.eye(2, 3)[None].clone()
    for value in (6e36, 1e37, 3e38):
        theta[0, place[0], place[1]] = value
        with backend.force("native"):
            found = warp(image, theta, size=size)
            pred = torch.zeros(1, 1, channels, *size)
            loss = warp_recon_loss(pred, image, theta[:, None], size=None)
        assert found.isfinite().all()
        assert loss.isfinite()


@needs_compiler
def test_the_first_use_on_a_machine_says_that_it_compiles(tmp_path, monkeypatch, caplog):
    """It takes long; the library that is there then is used without a word."""
    monkeypatch.setenv("FASTEQUI_CACHE", str(tmp_path))
    monkeypatch.setattr(toolchain, "build", lambda cc, library: library.touch())
    library = toolchain.cached()
    assert (
        f"compiling the CPU kernels in C, once on this machine: half a minute to two, to {library}"
        in caplog.text
    )
    caplog.clear()
    assert toolchain.cached() == library
    assert not caplog.text
