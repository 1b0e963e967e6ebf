"""The C kernel of blur and its loss: any size, sigma, layout or build."""

import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastequi.functional import blur_recon_loss, gaussian_blur
from fastequi.kernels import backend, native_blur, toolchain
from fastequi.kernels.target import BlurTarget
from tests.support.native import NEEDS_C, expect_the_same_bits_of_any_threads, instruction_set

pytestmark = NEEDS_C

MEAN, STD = (0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.3)
SIZES = st.one_of(st.integers(1, 20), st.integers(60, 70))


@st.composite
def problems(draw):
    """A random call of the loss."""
    b, k, c, patch = draw(st.tuples(*[st.integers(1, 2)] * 2, st.integers(1, 4), st.integers(0, 4)))
    height, width = draw(SIZES), draw(SIZES)
    if patch:
        height, width = patch * draw(st.integers(1, 9)), patch * draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    image = torch.rand(b, c, height, width, generator=generator)
    kind = draw(st.sampled_from([torch.uint8, torch.float32, torch.bfloat16]))
    image = (image * 255).to(torch.uint8) if kind == torch.uint8 else image.to(kind)
    if draw(st.booleans()):
        image = image.contiguous(memory_format=torch.channels_last)
    if draw(st.booleans()):
        image = image.flip(-1).transpose(2, 3).contiguous().transpose(2, 3)
    tokens = (b, k, height // patch * (width // patch), patch * patch * c) if patch else ()
    pred = torch.randn(tokens or (b, k, c, height, width), generator=generator)
    pred = pred.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    if not patch and draw(st.booleans()):
        pred = pred.movedim(2, -1).contiguous().movedim(-1, 2)
    most = draw(st.sampled_from([0.3, 2.0, 5.0]))
    sigma = most * torch.rand(b, k, generator=generator)
    if draw(st.booleans()):
        sigma[0, 0] = draw(st.sampled_from([0.0, 1e-8, most]))
    options = {"max_sigma": most}
    if draw(st.booleans()):
        options |= {"mean": MEAN[:c], "std": STD[:c]}
    loss = {
        "loss": draw(st.sampled_from(["mse", "l1", "smooth_l1"])),
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        **({"layout": "patch", "patch_size": patch} if patch else {}),
    }
    return image, sigma, pred, options, loss


def outcome(name, problem, dtype):
    """Loss, its gradient and the blurred images, by one backend."""
    image, sigma, pred, options, loss = problem
    pred = pred.detach().requires_grad_()
    with backend.force(name):
        value = blur_recon_loss(pred, image, sigma, **options, **loss)
        value.sum().backward()
        views = gaussian_blur(image, sigma, dtype=dtype, **options)
    return value.detach(), pred.grad, views


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_fuzz_equals_the_pytorch_path(problem, dtype):
    ours, theirs = outcome("native", problem, dtype), outcome("torch", problem, dtype)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        size = b.float().abs().max().clamp(min=1e-3)
        error = (a.float() - b.float()).abs().max() / size
        if a is ours[1] and problem[4]["loss"] == "l1":
            continue  # a sign, which the last bit of a difference near 0 may turn
        assert error < (1e-2 if a.dtype == torch.bfloat16 else 2e-5)


def test_the_kernel_runs_and_is_not_the_pytorch_path(monkeypatch):
    def never(*_, **__):
        raise AssertionError("the PyTorch path ran")

    monkeypatch.setattr("fastequi.kernels.gaussian_blur.gaussian_blur_ref", never)
    monkeypatch.setattr("fastequi.kernels.blur_recon.gaussian_blur_ref", never)
    image, pred = torch.rand(2, 3, 9, 11), torch.rand(2, 3, 9, 11)
    with backend.force("native"):
        gaussian_blur(image, 1.0)
        blur_recon_loss(pred, image, torch.ones(2))
        with pytest.raises(AssertionError, match="the PyTorch path ran"):
            gaussian_blur(image.double(), 1.0)


@pytest.mark.parametrize("bad", [math.nan, -1.0, 2.1, math.inf])
def test_a_sigma_out_of_range_is_nan_for_its_step_alone(bad):
    sigma = torch.tensor([[1.0, bad]])
    image, pred = torch.rand(1, 3, 20, 30), torch.rand(1, 2, 3, 20, 30)
    out, total, grad = torch.empty_like(pred), torch.empty(1, 2), torch.empty_like(pred)
    target = BlurTarget(loss="mse", max_sigma=2.0)
    native_blur.blur(out, image, sigma, target)
    native_blur.blur_recon(pred, image, sigma, target, 1.0, total, grad)
    for found in (out, total, grad):
        assert found[0, 0].isfinite().all()
        assert found[0, 1].isnan().all()


def test_nothing_is_written_outside_the_results():
    shape, pad = (2, 2, 3, 17, 13), 512
    count = math.prod(shape)
    buffers = [torch.full((count + 2 * pad,), 7.0) for _ in range(2)]
    out, grad = (buffer[pad : pad + count].view(shape) for buffer in buffers)
    image, sigma, total = torch.rand(2, 3, 17, 13), torch.ones(2, 2), torch.empty(2, 2)
    target = BlurTarget(loss="mse", max_sigma=2.0)
    native_blur.blur(out, image, sigma, target)
    native_blur.blur_recon(torch.rand(shape), image, sigma, target, 1.0, total, grad)
    for buffer, inner in zip(buffers, (out, grad), strict=True):
        assert (buffer[:pad] == 7).all()
        assert (buffer[pad + count :] == 7).all()
        assert not (inner == 7).any()


def test_the_number_of_threads_does_not_change_a_bit():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 3, 70, 50), generator=generator, dtype=torch.uint8)
    pred = torch.randn(3, 2, 3, 70, 50, generator=generator)
    problem = image, 2 * torch.rand(3, 2, generator=generator), pred, {}, {}
    expect_the_same_bits_of_any_threads(lambda: outcome("native", problem, torch.float32))


@pytest.mark.parametrize("isa", list(toolchain.instruction_sets()))
def test_every_instruction_set_agrees(isa, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 33, 29, generator=generator)
    pred = torch.randn(2, 2, 3, 33, 29, generator=generator)
    problem = image, 2 * torch.rand(2, 2, generator=generator), pred, {}, {}
    expected = outcome("torch", problem, torch.float32)
    with instruction_set(isa, monkeypatch):
        found = outcome("native", problem, torch.float32)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma", [64.0, 20.0, 65.0])
def test_the_widest_kernels_are_those_of_float64(sigma, caplog):
    """Up to 64 in C, beyond it in PyTorch, which is said; the kernel reaches over all rows."""
    torch.manual_seed(0)
    image = torch.rand(1, 2, 70, 40)
    with backend.force("native"), caplog.at_level(logging.WARNING):
        found = gaussian_blur(image, sigma, max_sigma=sigma)
    with backend.force("torch"):
        exact = gaussian_blur(image.double(), sigma, max_sigma=sigma)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    assert native_blur.makes(image, torch.float32, sigma) == (sigma <= 64)


def test_sigma_may_be_a_view_that_turns_its_sign():
    image = torch.rand(2, 1, 9, 9)
    sigma = torch.tensor([[0.5, 1.5], [1.0, 0.2]])
    turned = torch._neg_view(-sigma)
    assert turned.is_neg()
    with backend.force("native"):
        assert torch.equal(gaussian_blur(image, turned), gaussian_blur(image, sigma))


def test_a_limit_that_sigmas_type_cannot_hold():
    image, sigma = torch.rand(1, 1, 9, 9), torch.tensor([[0.5]])
    with backend.force("torch"):
        expected = gaussian_blur(image, sigma)
        torch.testing.assert_close(gaussian_blur(image, sigma.half(), max_sigma=1e5), expected)
        with pytest.raises(ValueError, match=r"sigma: expected values in 0\.\.max_sigma.* got inf"):
            gaussian_blur(image, sigma.half() * torch.inf, max_sigma=1e5)


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
def test_slopes_where_prediction_and_target_are_equal_or_nan(loss):
    image = torch.rand(1, 1, 5, 21)
    pred = image[:, None].clone()
    pred[0, 0, 0, 1, 3] = torch.nan
    pred[0, 0, 0, 4, 20] += 5
    leaf = pred.requires_grad_()
    with backend.force("native"):
        value = blur_recon_loss(leaf, image, 0.0, loss=loss, reduction="sum")
        value.backward()
    assert value.isnan()
    assert leaf.grad.isnan().nonzero().tolist() == [[0, 0, 0, 1, 3]]
    slope = 10.0 if loss == "mse" else 1.0
    assert leaf.grad[0, 0, 0, 4, 20].item() == pytest.approx(slope)
    assert leaf.grad.nan_to_num(0).count_nonzero() == 1
