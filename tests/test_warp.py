"""The sampler that writes views, against the eager chain in float64, on both backends."""

import pytest
import torch

from fastequi import warp
from fastequi.kernels import native, native_warp
from fastequi.kernels.target import Target
from tests.support.warp import eager
from tests.support.warp_recon import MEAN, STD, case


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_eager_chain(backend, device, padding_mode, align_corners, dtype, poisoned):
    _, image, theta = (t.to(device) for t in case(scale=1.2))
    options = {"padding_mode": padding_mode, "align_corners": align_corners}
    color = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(1)).to(device)
    out = warp(image, theta, color=color, size=(9, 14), mean=MEAN, std=STD, dtype=dtype, **options)
    expected = eager(image, theta, (9, 14), color=color, norm=True, **options)
    assert out.dtype == dtype
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    wrong = (out.double() - expected).abs() > tolerance * (1 + expected.abs())
    assert wrong.double().mean() <= 0.002  # a border pixel may fall on either side


def test_floating_images_keep_their_dtype_and_uint8_gives_floats(backend, device):
    _, image, theta = (t.to(device) for t in case(source=(12, 10)))
    assert warp(image, theta).dtype == torch.float32
    assert warp(image, theta).shape == (2, 2, 3, 12, 10)
    half = (image.float() / 255).bfloat16()
    out = warp(half, theta)
    assert out.dtype == torch.bfloat16
    expected = eager(half, theta, (12, 10))
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)


def test_uint8_out_is_rounded(backend, device):
    _, image, theta = (t.to(device) for t in case())
    out = warp(image, theta, dtype=torch.uint8)
    expected = (eager(image, theta, tuple(image.shape[-2:])) * 255).round()
    difference = (out.double() - expected).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 0.01
    eye = torch.eye(2, 3, device=device).expand(2, 1, 2, 3)
    assert torch.equal(warp(image, eye, dtype=torch.uint8)[:, 0], image)


def test_without_the_axis_of_steps(backend, device):
    _, image, theta = (t.to(device) for t in case(k=1))
    color = torch.eye(3, 4, device=device).expand(2, 3, 4)
    assert torch.equal(warp(image, theta[:, 0], color=color), warp(image, theta)[:, 0])


def test_a_quarter_turn_is_rot90(backend, device):
    image = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0)).to(device)
    theta = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]], device=device).expand(2, 2, 3)
    torch.testing.assert_close(warp(image, theta), torch.rot90(image, 1, (-2, -1)))


def test_nan_theta_gives_nan_and_empty_gives_empty(backend, device):
    _, image, theta = (t.to(device) for t in case())
    bad = theta.clone()
    bad[1, 0, 0, 0] = float("nan")
    for padding_mode in ("zeros", "border", "reflection"):
        out = warp(image, bad, padding_mode=padding_mode)
        assert out[1, 0].isnan().all()
        assert out[0].isfinite().all()
    assert warp(image[:0], theta[:0]).shape == (0, 2, 3, 11, 8)


def test_gradients_to_image_theta_and_color(backend, device):
    _, image, theta = case(image_dtype=torch.float32)
    color = torch.eye(3, 4).expand(2, 2, 3, 4)
    ours = [t.to(device).clone().requires_grad_() for t in (image, theta, color)]
    theirs = [t.to(device).double().requires_grad_() for t in (image, theta, color)]
    warp(ours[0], ours[1], color=ours[2], size=(9, 14)).square().mean().backward()
    eager(theirs[0], theirs[1], (9, 14), color=theirs[2]).square().mean().backward()
    for leaf, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-3, atol=1e-5)


def test_opcheck_and_compile(device):
    from fastequi.kernels.warp import warp_op

    torch._dynamo.reset()
    _, image, theta = (t.to(device) for t in case(b=1, source=(6, 6)))
    args = (image, theta, None, 4, 5, MEAN, STD, torch.bfloat16, "zeros", False)
    torch.library.opcheck(warp_op.op, args)
    compiled = torch.compile(warp, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(image, theta, size=(4, 5)), warp(image, theta, size=(4, 5)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theta": torch.zeros(2, 2, 2)}, ValueError, "theta: expected"),
        ({"size": (0, 4)}, ValueError, "size: expected a size or"),
        ({"dtype": torch.int32}, TypeError, "dtype: expected a floating dtype or uint8"),
        ({"dtype": torch.uint8, "mean": MEAN, "std": STD}, ValueError, "dtype: uint8 cannot hold"),
        ({"padding_mode": "wrap"}, ValueError, "padding_mode"),
    ],
)
def test_bad_input_names_the_argument(change, error, message):
    _, image, theta = case()
    with pytest.raises(error, match=message):
        warp(**{"image": image, "theta": theta, **change})


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -3e38])
def test_bad_theta_reads_nothing_outside_in_the_backward_either(padding, bad):
    image = torch.rand(2, 3, 8, 8, requires_grad=True)
    theta = torch.eye(2, 3).repeat(2, 1, 1)
    theta[0, 0, 0] = bad
    out = warp(image, theta.requires_grad_(), padding_mode=padding)
    assert bool(out[0].isnan().any()) == (not abs(bad) < float("inf"))
    (grad,) = torch.autograd.grad(out[1].square().sum() + out[0].nan_to_num().sum(), image)
    alone = image.detach()[1:].requires_grad_()
    wanted = torch.autograd.grad(warp(alone, theta[1:], padding_mode=padding).square().sum(), alone)
    torch.testing.assert_close(grad[1:], wanted[0])


@pytest.mark.skipif(native.obstacle() is not None, reason="no C kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_images_past_the_caches_are_the_same(monkeypatch, dtype):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (2, 3, 64, 70), dtype=torch.uint8, generator=generator)
    theta = torch.tensor([[[0.9, 0.3, 0.1], [-0.3, 0.9, 0.0]]]).expand(2, 1, 2, 3)
    for size in ((64, 64), (33, 37)):  # rows at multiples of a cache line, and not
        views = []
        for most in (1 << 40, 0):
            monkeypatch.setattr(native, "STREAM_BYTES", most)
            views.append(torch.empty(2, 1, 3, *size, dtype=dtype))
            native_warp.warp(views[-1], image, theta, None, Target(*size))
        assert torch.equal(*views)
        assert views[0].isfinite().all()
