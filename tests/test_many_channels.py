"""Images of 1 to many channels, of bytes, 16-bit integers and halves, against float64."""

import pytest
import torch

from fastequi import blur_recon_loss, gaussian_blur, warp, warp_recon_loss
from fastequi.kernels import native, native_warp
from fastequi.kernels.backend import force
from fastequi.kernels.pixel_loss import patchify
from fastequi.kernels.sampling import expect_narrow
from tests.support.native import expect_the_same_bits_of_any_threads
from tests.support.tolerances import GRAD, LOSS
from tests.support.warp_recon import assert_near, case, eager

DTYPES = (torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32)
CHANNELS = (1, 2, 4, 5, 8, 13)
needs_compiler = pytest.mark.skipif(native.obstacle() is not None, reason="no C kernels")


def normalisation(c):
    return {
        "mean": [0.3 + 0.6 * i / c for i in range(c)],
        "std": [0.2 + 0.01 * i for i in range(c)],
    }


def colours(kind, c, b=2, k=2):
    """A matrix of every channel by every channel and a shift, or a gain and an offset each."""
    g = torch.Generator().manual_seed(5)
    if kind == "gain":
        return torch.stack([0.7 + torch.rand(b, k, c, generator=g)] * 2, -1) - torch.tensor(
            [0, 0.8]
        )
    eye = torch.eye(c, c + 1)
    return eye + 0.2 * torch.randn(b, k, c, c + 1, generator=g)


def check(pred, image, theta, device, patch=0, **options):
    """Value and gradients against the float64 chain; predictions of any type."""
    size, dtype = pred.shape[-2:], pred.dtype
    pred, image, theta = pred.to(device), image.to(device), theta.to(device)
    options = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in options.items()}
    layout = {"layout": "patch", "patch_size": patch, "size": tuple(size)} if patch else {}
    tokens = patchify(pred, patch) if patch else pred
    ours, by_theta = tokens.clone().requires_grad_(), theta.clone().requires_grad_()
    loss = warp_recon_loss(ours, image, by_theta, reduction="sum", **layout, **options)
    loss.backward()
    wide, wide_theta = tokens.double().requires_grad_(), theta.double().requires_grad_()
    expected = eager(wide, image, wide_theta, patch=patch, size=size, **options).sum()
    expected.backward()
    assert abs(loss - expected) <= 10 * LOSS[dtype] * expected
    assert_near(ours.grad, wide.grad, GRAD[dtype])
    assert_near(by_theta.grad, wide_theta.grad, max(GRAD[dtype], 2e-5))


@pytest.mark.slow("triton-0-2", "triton-4-4", "triton-0-8", "triton-4-8")
@pytest.mark.parametrize("c", CHANNELS)
@pytest.mark.parametrize("patch", [0, 4])
def test_any_number_of_channels(backend, device, c, patch, poisoned):
    check(*case(c=c, size=(8, 12)), device, patch=patch, **normalisation(c))


@pytest.mark.slow("triton-6-image_dtype0", "triton-6-image_dtype3", "triton-6-image_dtype4")
@pytest.mark.parametrize("image_dtype", DTYPES)
@pytest.mark.parametrize("c", [1, 3, 6])
def test_any_type_of_image(backend, device, image_dtype, c, poisoned):
    check(
        *case(c=c, image_dtype=image_dtype), device, **normalisation(c), padding_mode="reflection"
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gains_of_many_channels_leave_values_that_are_not_finite_in_their_channel(
    backend, device, memory_format
):
    g = torch.Generator().manual_seed(3)
    image = torch.rand(1, 6, 5, 7, generator=g)
    image[0, 1, 2, 3], image[0, 4, 1, 1] = float("nan"), float("inf")
    image = image.contiguous(memory_format=memory_format).to(device)
    theta, color = torch.eye(2, 3, device=device)[None, None], colours("gain", 6, 1, 1).to(device)
    found = warp(image, theta, color=color)
    assert not torch.isfinite(found[:, :, [1, 4]]).all()
    assert torch.isfinite(found[:, :, [0, 2, 3, 5]]).all()
    pred = torch.rand(1, 1, 6, 5, 7, generator=g).to(device).requires_grad_()
    warp_recon_loss(pred, image, theta, color=color, reduction="sum").backward()
    assert torch.isfinite(pred.grad).flatten(3).all(-1).tolist() == [[[1, 0, 1, 1, 0, 1]]]
    wanted = image.nan_to_num(0.0, 0.0, 0.0).requires_grad_()
    slope = torch.rand(1, 1, 6, 5, 7, generator=g).to(device)
    slope[0, 0, 2, 2, 2] = float("nan")
    (back,) = torch.autograd.grad(warp(wanted, theta, color=color), wanted, slope)
    assert torch.isfinite(back).flatten(2).all(-1).tolist() == [[1, 1, 0, 1, 1, 1]]


@pytest.mark.slow("triton", every=2)
@pytest.mark.slow(
    "triton-matrix-13", "triton-gain-8", "triton-matrix-8", "triton-gain-2", "triton-matrix-5"
)
@pytest.mark.parametrize("c", CHANNELS)
@pytest.mark.parametrize("kind", ["matrix", "gain"])
def test_colour_of_any_number_of_channels(backend, device, c, kind, poisoned):
    if kind == "matrix" and c > 4:
        kind = "gain"
    drawn = case(c=c, size=(8, 12), image_dtype=torch.uint16)
    check(*drawn, device, color=colours(kind, c), **normalisation(c))
    check(*drawn, device, patch=4, color=colours(kind, c), mask_outside=True, loss="smooth_l1")


@pytest.mark.parametrize("c", [3, 4])
def test_a_gain_is_the_matrix_of_its_diagonal(backend, device, c, poisoned):
    pred, image, theta = (t.to(device) for t in case(c=c))
    gain = colours("gain", c).to(device)
    matrix = torch.cat([torch.diag_embed(gain[..., 0]), gain[..., 1:]], -1)
    ours, same = (warp_recon_loss(pred, image, theta, color=color) for color in (gain, matrix))
    assert torch.equal(ours, same)


@pytest.mark.parametrize("c", CHANNELS)
def test_a_warp_of_any_number_of_channels(backend, device, c, poisoned):
    _, image, theta = (t.to(device) for t in case(c=c, image_dtype=torch.uint16))
    color = colours("gain", c).to(device)
    found = warp(image, theta, color=color, size=(9, 14), **normalisation(c))
    zero = torch.zeros(2, 2, c, 9, 14, device=device, dtype=torch.float64).requires_grad_()
    total = eager(zero, image, theta, color=color, size=(9, 14), **normalisation(c)).sum()
    (slope,) = torch.autograd.grad(total, zero)  # of squares: -2 times what is looked for
    assert (found - slope / -2).abs().max() < 1e-4


@needs_compiler
@pytest.mark.parametrize(
    "size", [(300, 1), (3, 127), (4, 128), (3, 255), (2, 257), (1, 1030), (5, 60)]
)
@pytest.mark.parametrize("c", [1, 3, 6])
def test_rows_that_are_sampled_together(size, c):
    """In C, of planes: as many as make 256 pixels; longer rows in parts of 1,024."""
    drawn, here = case(c=c, k=1, size=size, source=(9, 12)), torch.device("cpu")
    with force("native"):
        check(*drawn, here, **normalisation(c), mask_outside=True)
        apart = drawn[0].mT.contiguous().mT  # whose rows do not follow one another
        check(apart, *drawn[1:], here, **normalisation(c))
        found = warp(drawn[1], drawn[2], size=size)
    with force("torch"):
        assert_near(found, warp(drawn[1], drawn[2], size=size).double(), 1e-5)


@needs_compiler
@pytest.mark.parametrize("c", [1025, 4096])
def test_wide_maps_of_features(c):
    _, image, theta = case(c=c, k=1, source=(4, 5), image_dtype=torch.float32)
    pred = torch.zeros(2, 1, c, 4, 5)
    with force("native"):
        assert native_warp.samples(image)
        assert native_warp.reads(pred, 0)
        check(pred, image, theta, torch.device("cpu"), color=colours("gain", c, k=1))


@pytest.mark.slow("triton-6")
@pytest.mark.parametrize("image_dtype", DTYPES)
@pytest.mark.parametrize("c", [1, 6])
def test_blur_of_any_number_of_channels_and_type(backend, device, image_dtype, c, poisoned):
    _, image, _ = case(c=c, source=(10, 13), image_dtype=image_dtype)
    image, sigma = image.to(device), torch.tensor([[0.5, 1.5], [0.0, 1.0]], device=device)
    largest = {torch.uint8: 255, torch.uint16: 65535}.get(image_dtype, 1)
    wide = image.double() / largest
    found = gaussian_blur(image, sigma, max_sigma=2.0, dtype=torch.float32)
    expected = gaussian_blur(wide, sigma.double(), max_sigma=2.0)
    assert (found - expected).abs().max() < 2e-3  # of tensor cores' halves on a GPU
    pred = torch.rand_like(found).requires_grad_()
    loss = blur_recon_loss(pred, image, sigma, max_sigma=2.0)
    loss.backward()
    by_hand = 2 * (pred.detach() - expected) / pred.numel()
    assert abs(loss - (pred - expected).square().mean()) < 1e-4
    assert_near(pred.grad, by_hand, 2e-3)


def test_shares_of_channels_are_each_read_by_c(backend):
    """What runs is the C kernel, and gives the same bits with any number of threads."""
    if backend != "native":
        pytest.skip("of the C kernels")
    pred, image, theta = case(b=3, c=23, size=(70, 90), source=(80, 70), image_dtype=torch.uint16)
    assert native_warp.samples(image)
    assert native_warp.reads(pred, 0)

    def call():
        own = pred.clone().requires_grad_()
        loss = warp_recon_loss(own, image, theta, color=colours("gain", 23, b=3))
        loss.backward()
        return loss.detach(), own.grad

    expect_the_same_bits_of_any_threads(call)


@pytest.mark.parametrize("c", [9, 400, 1024, 1025])
def test_as_many_channels_as_fit_a_thread(backend, device, c):
    if backend == "triton":
        pytest.skip("interpreted, a minute")
    check(*case(b=1, k=1, c=c, size=(4, 12), source=(5, 9)), device, patch=4, **normalisation(c))


def test_colours_of_other_shapes_are_refused(device):
    for c, last, expected in (
        (3, 3, r"expected \[B, K, 3, 4\] or \[B, K, 3, 2\]"),
        (1, 4, r"expected \[B, K, 1, 2\] with"),
        (5, 6, r"expected \[B, K, 5, 2\] with"),
    ):
        pred, image, theta = case(c=c)
        with pytest.raises(ValueError, match=f"color: {expected}"):
            warp_recon_loss(pred, image, theta, color=torch.ones(2, 2, c, last))
    with pytest.raises(TypeError, match="image: expected uint8, uint16 or a floating dtype"):
        warp_recon_loss(pred, image.int(), theta)


def test_places_that_the_kernels_cannot_count_are_refused():
    """They count places within an image in 32 bits, those of images in 64."""
    for shape, strides in (
        ((1 << 20, 3, 1 << 10, 1 << 10), (3 << 20, 1 << 20, 1 << 10, 1)),
        ((2, 2, 4, 4), (1, (1 << 31) - 16, 4, 1)),
    ):
        expect_narrow("image", torch.empty_strided(shape, strides, device="meta"), 1)
    for shape, strides in (
        ((1, 2, 4, 4), (1, (1 << 31) - 15, 4, 1)),
        ((1, 1, 1 << 16, 1 << 16), (1 << 32, 1 << 32, 1 << 16, 1)),
    ):
        with pytest.raises(ValueError, match=r"image: expected places below 2\^31 within an image"):
            expect_narrow("image", torch.empty_strided(shape, strides, device="meta"), 1)
