"""PSNR, SSIM and spectra against their definitions."""

import numpy as np
import pytest
import torch

from fastequi.evaluate.reconstruction import nearer_view, psnr, ssim
from fastequi.evaluate.spectrum import spectrum

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
SCALE = (torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1))


def images(seed, *shape):
    """Smooth images in 0..1, normalised."""
    coarse = torch.rand(*shape[:-2], 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse.flatten(0, -4), shape[-2:], mode="bicubic")
    return (smooth.view(shape).clamp(0, 1) - SCALE[0]) / SCALE[1]


def by_loops(x, y):
    """SSIM of one image pair in 0..1, pixel by pixel."""
    at = np.arange(-5, 6)
    weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    values = []
    for channel in range(3):
        for i in range(5, x.shape[1] - 5):
            for j in range(5, x.shape[2] - 5):
                a, b = (v[channel, i - 5 : i + 6, j - 5 : j + 6] for v in (x, y))
                ma, mb = (weight * a).sum(), (weight * b).sum()
                va, vb = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum()
                cov = (weight * (a - ma) * (b - mb)).sum()
                top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
                values.append(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return np.mean(values)


def test_ssim_is_its_definition():
    x, y = images(0, 2, 2, 3, 15, 13), images(1, 2, 2, 3, 15, 13)
    y = (x + y) / 2
    ours = ssim(x, y, MEAN, STD)
    assert ours.shape == (2, 2)
    for place in ((0, 0), (1, 1)):
        a, b = ((v[place] * SCALE[1] + SCALE[0]).clamp(0, 1).double().numpy() for v in (x, y))
        assert ours[place].item() == pytest.approx(by_loops(a, b), abs=1e-5)
    torch.testing.assert_close(ssim(x, x, MEAN, STD), torch.ones(2, 2))
    torch.testing.assert_close(ssim(y, x, MEAN, STD), ours)
    with pytest.raises(ValueError, match="at least 11x11 for SSIM, got 10x13"):
        ssim(x[..., :10, :], x[..., :10, :], MEAN, STD)


def test_psnr_is_its_definition_and_the_nearer_view_is_near():
    target = torch.zeros(2, 3, 8, 8)
    pred = torch.full_like(target, 0.1)  # 0.1 · 0.25 of the range
    value = psnr(pred, target, (0.5,) * 3, (0.25,) * 3)
    torch.testing.assert_close(value, torch.full((2,), -20 * torch.tensor(0.025).log10()))
    bright = torch.full((1, 3, 8, 8), 3.0)  # a colour change may leave 0..1, an image does not
    assert psnr(bright, bright, MEAN, STD) == 100
    assert psnr(bright, bright + 1, MEAN, STD) == 100
    v1, v2 = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert nearer_view(v1, v2, 2).mean((2, 3, 4)).tolist() == [[0, 1]]
    assert nearer_view(v1, v2, 3).mean((2, 3, 4)).tolist() == [[0, 0, 1]]


def test_the_spectrum_counts_dimensions():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 5, generator=generator)
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator)).Q[:5]
    even = spectrum(3 + 2 * rows @ basis)  # five equal directions of twenty
    assert (even.channels, even.rank) == (20, 5)
    assert even.variance == pytest.approx(4 * 5 / 20, rel=0.05)
    assert even.participation == pytest.approx(5, rel=0.02)
    assert even.entropy == pytest.approx(5, rel=0.02)
    one = spectrum(rows[:, :1] @ basis[:1] * 1e-3)
    assert one.rank == 1
    assert one.participation == pytest.approx(1)
    assert one.entropy == pytest.approx(1, abs=1e-6)
    uneven = spectrum(rows * torch.tensor([10.0, 1, 1, 1, 1]))
    assert uneven.rank == 5
    assert 1 < uneven.participation < uneven.entropy < 2
    for same in (torch.full((50, 4), 7.3), torch.zeros(50, 4)):
        assert spectrum(same).rank == spectrum(same).participation == 0
