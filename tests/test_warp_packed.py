"""The fast sampler against the eager chain in float64; what it leaves to the general one."""

import math

import pytest
import torch

from fastequi import warp
from fastequi.kernels import backend
from fastequi.kernels import warp as warp_op
from tests.support.packed import interleaved, thetas
from tests.support.warp import eager
from tests.support.warp_recon import MEAN, STD

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def only_packed(monkeypatch):
    class General:
        def __getitem__(self, grid):
            raise AssertionError("the general kernel ran")

    monkeypatch.setattr(warp_op, "warp_fwd_kernel", General())
    with backend.force("triton"):
        yield


@pytest.mark.slow(every=8)
@pytest.mark.parametrize("texel", [3, 4])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_chain(device, texel, padding_mode, align_corners, dtype, poisoned):
    image, theta = interleaved(1, (20, 27), texel).to(device), thetas(1, 2).to(device)
    color = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(1)).to(device)
    options = {"padding_mode": padding_mode, "align_corners": align_corners}
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    for matrix in (None, color):
        out = warp(image, theta, color=matrix, size=(11, 40), mean=MEAN, std=STD, dtype=dtype,
                   **options)  # fmt: skip
        expected = eager(image, theta, (11, 40), color=matrix, norm=True, **options)
        assert out.dtype == dtype
        wrong = (out.double() - expected).abs() > tolerance * (1 + expected.abs())
        assert wrong.double().mean() <= 0.002  # a border pixel may fall on either side


@pytest.mark.parametrize("texel", [3, 4])
@pytest.mark.parametrize("zoom", [0.6, 1.0])
def test_bytes_out_are_rounded(device, texel, zoom):
    image = interleaved(1, (24, 32), texel).to(device)
    theta = thetas(1, 2, zoom=zoom).to(device)
    out = warp(image, theta, dtype=torch.uint8)
    expected = (eager(image, theta, (24, 32)) * 255).round()
    difference = (out.double() - expected).abs()
    assert difference.max() <= 1
    assert (difference > 0).double().mean() < 0.01


def test_identity_and_half_a_turn_are_exact(device):
    image = interleaved(2, (16, 32), 3).to(device)
    identity = torch.eye(2, 3, device=device).expand(2, 1, 2, 3)
    assert torch.equal(warp(image, identity, dtype=torch.uint8)[:, 0], image)
    half = warp(image, -identity, dtype=torch.uint8)[:, 0]
    assert torch.equal(half, image.flip(-1, -2))


def test_theta_that_is_not_finite_gives_nan(device):
    theta = thetas(1, 2).clone()
    theta[0, 1, 0, 0] = math.nan
    out = warp(interleaved(1, (8, 8), 4).to(device), theta.to(device))
    assert out[0, 1].isnan().all()
    assert out[0, 0].isfinite().all()


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (interleaved(1, (12, 12), 3).contiguous(), None),
        (interleaved(1, (12, 12), 3) / 255, None),
        (interleaved(1, (12, 12), 3), (12, 13)),
    ],
)
def test_what_it_does_not_read_goes_to_the_general_kernel(device, image, size):
    with pytest.raises(AssertionError, match="the general kernel ran"):
        warp(image.to(device), thetas(1, 1).to(device), size=size)
