"""Blur against a direct convolution in float64, on both backends."""

import math

import pytest
import torch

from fastequi import gaussian_blur
from fastequi.functional import blur_recon_loss
from fastequi.kernels.gaussian_blur import gaussian_blur_op, gaussian_blur_ref
from fastequi.kernels.target import BlurTarget
from tests.support.blur import SIGMAS, eager
from tests.support.warp_recon import MEAN, STD, case


@pytest.mark.slow("triton-source1-image_dtype0", "triton-source1-image_dtype1")
@pytest.mark.parametrize("image_dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("source", [(9, 14), (33, 40)])
def test_equals_a_convolution_with_reflected_borders(
    backend, device, image_dtype, source, poisoned
):
    _, image, _ = case(source=source, image_dtype=image_dtype)
    image, sigma = image.to(device), SIGMAS.to(device)
    expected = eager(image, sigma)
    out = gaussian_blur(image, sigma)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    single = gaussian_blur(image, sigma[:, 0], dtype=torch.bfloat16)
    assert single.dtype == torch.bfloat16
    torch.testing.assert_close(single.double(), expected[:, 0], rtol=1e-2, atol=1e-2)
    normalised = gaussian_blur(image, sigma, mean=MEAN, std=STD)
    mean, std = (torch.tensor(v).double().view(3, 1, 1).to(device) for v in (MEAN, STD))
    torch.testing.assert_close(normalised.double(), (expected - mean) / std, rtol=1e-4, atol=1e-4)


def test_no_blur_is_the_image_and_constants_stay(backend, device):
    _, image, _ = case(source=(12, 12))
    image = image.to(device)
    zero = torch.zeros(2, device=device)
    torch.testing.assert_close(gaussian_blur(image, zero), image.float() / 255)
    flat = torch.full((2, 3, 5, 70), 0.3, device=device)
    torch.testing.assert_close(gaussian_blur(flat, zero + 2), flat)


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize(
    ("steps", "channels", "most"), [(1, 3, 2.0), (5, 4, 2.0), (3, 1, 4.0), (2, 1, 9.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_number_of_sigmas_and_channels(backend, device, steps, channels, most, dtype):
    """Programs of four sigmas, of three channels or one, of two blocks or more; of any radius."""
    generator = torch.Generator().manual_seed(steps)
    image = torch.randint(256, (1, channels, 18, 38), generator=generator, dtype=torch.uint8)
    sigma = most * torch.rand(1, steps, generator=generator)
    target = BlurTarget(max_sigma=most)
    expected = gaussian_blur_ref(image.double() / 255, sigma.double(), target, torch.float64)
    out = gaussian_blur(image.to(device), sigma.to(device), dtype=dtype, max_sigma=most).cpu()
    near = 1e-6 if dtype == torch.float32 else 1e-3
    torch.testing.assert_close(out.double(), expected, rtol=near, atol=near / 4)


@pytest.mark.parametrize("source", [(1, 1), (2, 5), (3, 1)])
def test_images_smaller_than_the_kernel_reflect_again_and_again(backend, device, source):
    _, image, _ = case(source=source)
    image, sigma = image.to(device), SIGMAS.to(device)

    def fold(i, n):  # the definition: walk back and forth between the borders
        period = max(2 * (n - 1), 1)
        i = abs(i) % period
        return min(i, period - i) if n > 1 else 0

    expected = torch.zeros(2, 2, 3, *source, dtype=torch.float64, device=device)
    x = image.double() / 255
    for b in range(2):
        for k in range(2):
            d = torch.arange(-8, 9).double()
            w = torch.exp(-d.square() / (2 * sigma[b, k].cpu().double() ** 2))
            w = (w / w.sum()).tolist()
            for i in range(source[0]):
                for j in range(source[1]):
                    for di in range(-8, 9):
                        for dj in range(-8, 9):
                            at = x[b, :, fold(i + di, source[0]), fold(j + dj, source[1])]
                            expected[b, k, :, i, j] += w[di + 8] * w[dj + 8] * at
    torch.testing.assert_close(gaussian_blur(image, sigma).double(), expected, rtol=1e-5, atol=1e-5)


def test_sigma_out_of_range_is_an_error_here_and_nan_in_the_kernel(backend, device):
    _, image, _ = (t.to(device) for t in case(size=(8, 8), source=(8, 8)))
    for bad in (-0.1, 2.5, math.nan):
        sigma = torch.tensor([[1.0, bad]] * 2, device=device)
        if device.type == "cpu":
            with pytest.raises(ValueError, match=r"sigma: expected values in 0\.\.max_sigma=2"):
                gaussian_blur(image, sigma)
        out = gaussian_blur_op.op(image, sigma, None, None, torch.float32, 2.0)
        assert out[:, 1].isnan().all()
        assert out[:, 0].isfinite().all()


def test_empty(backend, device):
    _, image, _ = (t.to(device) for t in case(size=(16, 16), source=(16, 16)))
    assert gaussian_blur(image[:0], SIGMAS.to(device)[:0]).shape == (0, 2, 3, 16, 16)


def test_opcheck(device):
    _, image, _ = (t.to(device) for t in case(b=2, size=(6, 6), source=(6, 6)))
    args = (image, SIGMAS.to(device), MEAN, STD, torch.float32, 2.0)
    torch.library.opcheck(gaussian_blur_op.op, args)


@pytest.mark.parametrize(
    ("sigma", "error", "message"),
    [
        (3.0, ValueError, "sigma: expected at most max_sigma=2 pixels, got 3"),
        (-1.0, ValueError, "sigma: expected a finite number >= 0, got -1"),
        (
            [1.0, 1.0],
            TypeError,
            r"sigma: expected a tensor \[B, K\] or \[B\], or a number, got \[1.0",
        ),
        (torch.tensor(1.0), ValueError, r"got \(\); one number for all is a float"),
    ],
)
def test_sigmas_that_do_not_fit(sigma, error, message):
    _, image, _ = case(size=(8, 8), source=(8, 8))
    with pytest.raises(error, match=message):
        gaussian_blur(image, sigma)
    with pytest.raises(error, match=message):
        blur_recon_loss(image.float(), image, sigma)


def test_bad_input_names_the_argument():
    _, image, _ = case(size=(8, 8), source=(8, 8))
    with pytest.raises(ValueError, match="max_sigma"):
        gaussian_blur(image, SIGMAS, max_sigma=0.0)
    with pytest.raises(TypeError, match="dtype"):
        gaussian_blur(image, SIGMAS, dtype=torch.uint8)


@pytest.mark.parametrize("most", [0.1, 0.3, 0.7, 1.1, 2.0])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_max_sigma_itself_is_blurred_however_its_type_rounds_it(device, most, kind, dtype):
    image = torch.rand(1, 1, 8, 8, dtype=dtype, device=device)
    sigma = torch.tensor([most], dtype=kind, device=device)
    expected = gaussian_blur(image.double(), sigma.double(), max_sigma=4.0)
    found = gaussian_blur(image, sigma, max_sigma=most)
    near = {"rtol": 0, "atol": 2e-4}  # what lies beyond the radius
    torch.testing.assert_close(found.double(), expected, **near)
    number = gaussian_blur(image, most, max_sigma=most)
    torch.testing.assert_close(number.double(), expected, rtol=0, atol=4e-3)  # sigma's rounding
    loss = blur_recon_loss(expected.to(dtype), image, sigma, max_sigma=most)
    assert loss.item() <= 1e-7
