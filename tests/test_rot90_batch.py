"""RotNet's batch: np.rot90 of every image, bit for bit, on every backend."""

import numpy as np
import pytest
import torch

from fastequi.functional import rot90_batch
from fastequi.kernels import backend as backends
from fastequi.kernels import rot90_batch as kernel
from tests.support.native import expect_the_same_bits_of_any_threads

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FORMATS = [torch.contiguous_format, torch.channels_last]


def pixels(b, n, channels=3, interleaved=True):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(256, (b, n, n, channels), generator=generator, dtype=torch.uint8)
    images = images.permute(0, 3, 1, 2)
    return images if interleaved else images.contiguous()


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("n", [1, 7, 32, 45])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_turns_are_numpys_bit_for_bit(backend, device, n, interleaved, memory_format):
    images = pixels(3, n, interleaved=interleaved)
    out = rot90_batch(images.to(device), memory_format=memory_format)
    assert out.shape == (12, 3, n, n)
    assert out.is_contiguous(memory_format=memory_format)
    back = (out.cpu() * 255).round().to(torch.uint8).numpy()
    for b in range(3):
        for k in range(4):
            expected = np.rot90(images[b].numpy(), k, (1, 2))
            np.testing.assert_array_equal(back[4 * b + k], expected)


@pytest.mark.slow("triton", every=3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_normalised_and_cast(backend, device, dtype, memory_format):
    images = pixels(2, 33)
    options = {"mean": MEAN, "std": STD, "dtype": dtype, "memory_format": memory_format}
    out = rot90_batch(images.to(device), **options).cpu()
    assert out.dtype == dtype
    expected = kernel.rot90_batch_ref(images, None, MEAN, STD, torch.float64)
    eps = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-12
    torch.testing.assert_close(out.double(), expected, rtol=eps, atol=8 * eps * (eps < 1e-3))


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels(backend, device, channels):
    images = pixels(2, 9, channels)
    expected = kernel.rot90_batch_ref(images, None, None, None, torch.float32)
    out = rot90_batch(images.to(device)).cpu()
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)


def test_one_turn_per_image(backend, device):
    images, turns = pixels(6, 20), torch.tensor([0, 3, 1, 2, 2, 1])
    out = rot90_batch(images.to(device), turns=turns.to(device))
    every = rot90_batch(images.to(device)).unflatten(0, (6, 4))
    assert torch.equal(out.cpu(), every.cpu()[torch.arange(6), turns])


def test_windows_of_larger_images_and_repeated_rows(backend, device):
    large = pixels(2, 40).to(device)
    window = large[:, :, 3:23, 5:25]
    assert torch.equal(rot90_batch(window), rot90_batch(window.clone()))
    same = large[:1].expand(3, -1, -1, -1)
    out = rot90_batch(same).unflatten(0, (3, 4))
    assert torch.equal(out[0], out[2])
    assert rot90_batch(large[:0]).shape == (0, 3, 40, 40)
    turned = torch._neg_view(-window)  # a view that turns the sign, of bytes modulo 256
    assert torch.equal(rot90_batch(turned), rot90_batch(window))


def test_everything_is_written(backend, device, poisoned):
    out = rot90_batch(pixels(2, 37).to(device), memory_format=torch.channels_last)
    assert out.isfinite().all()


def test_operator_and_graph(device):
    images = pixels(2, 8).to(device)
    torch._dynamo.reset()
    args = (images, None, MEAN, STD, torch.float32, False)
    torch.library.opcheck(kernel.rot90_batch_op.op, args)
    compiled = torch.compile(rot90_batch, fullgraph=True, backend="aot_eager")
    assert torch.equal(
        compiled(images, mean=MEAN, std=STD), rot90_batch(images, mean=MEAN, std=STD)
    )


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        (torch.zeros(1, 3, 4, 4), {}, TypeError, "images: expected uint8 or uint16, got"),
        (
            torch.zeros(1, 3, 4, 5).byte(),
            {},
            ValueError,
            r"images: expected square .*\(1, 3, 4, 5\)",
        ),
        (pixels(1, 4), {"dtype": torch.int32}, TypeError, "dtype: expected float32"),
        (pixels(1, 4), {"mean": MEAN}, ValueError, "mean, std: expected both"),
        (pixels(1, 4), {"turns": torch.zeros(2).int()}, ValueError, "turns: expected 1 integers"),
        (
            pixels(1, 4),
            {"turns": torch.zeros(1)},
            TypeError,
            "turns: expected integers, got torch.float32",
        ),
        (pixels(1, 4), {"memory_format": torch.preserve_format}, ValueError, "memory_format"),
    ],
)
def test_bad_input_names_the_argument(images, options, error, message):
    with pytest.raises(error, match=message):
        rot90_batch(images, **options)


@pytest.mark.skipif(backends.native.obstacle() is not None, reason="no C kernels here")
def test_threads_do_not_share_what_they_work_on():
    images = pixels(32, 45)

    def call():
        with backends.force("native"):
            return (rot90_batch(images, memory_format=torch.channels_last),)

    expect_the_same_bits_of_any_threads(call)
